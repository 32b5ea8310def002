"""What each exec claimed, and what then really ran.

The claim is recorded before the exec, the truth at the first call after it. A difference is a critical finding.
"""

from __future__ import annotations

import contextlib
import errno
import time
from typing import Final

from jupyter_agentwatch.audit.log import LogWriteError
from jupyter_agentwatch.events import Exec, Finding, from_path
from jupyter_agentwatch.sandbox.notify import Gone, Listener, Notification, TargetMemory
from jupyter_agentwatch.sandbox.paths import Root
from jupyter_agentwatch.sandbox.programs import (
    Claim,
    Program,
    claimed_exec,
    is_immutable,
    is_what_was_claimed,
    name_exists,
    running_name,
    running_program,
)
from jupyter_agentwatch.sandbox.tasks import TaskTable, is_alive, parent_of
from jupyter_agentwatch.supervisor.record import Recorder

__all__ = ["ExecWatch"]

_SLOW_EXEC_S: Final = 3.0
"""An exec after which nothing has changed for so many seconds is taken to have failed."""

_UNVERIFIED_S: Final = 0.05
"""A program that makes no trapped call after its exec (a static one) is looked up after this many seconds."""

_KEPT_PROGRAMS: Final = 8192


class ExecWatch:
    """Follows execs from claim to truth. Used by the notification thread alone.

    Args:
        listener: Where callers wait.
        tasks: Who they are.
        root: The sandbox's root.
        memory: Reads their memory.
        recorder: Where records go.
    """

    def __init__(
        self, listener: Listener, tasks: TaskTable, root: Root, memory: TargetMemory, recorder: Recorder
    ) -> None:
        self._listener = listener
        self._tasks = tasks
        self._root = root
        self._memory = memory
        self._recorder = recorder
        self._claims: dict[int, Claim] = {}
        self._programs: dict[int, str] = {}
        self._same: set[tuple[str, str]] = set()
        self._known_names: set[str] = set()

    @property
    def has_claims(self) -> bool:
        """Some exec is not settled yet."""
        return bool(self._claims)

    def settle_before(self, tid: int) -> None:
        """Settle the caller's earlier exec before it is let through with anything else."""
        if tid in self._claims:
            self._settle(tid, self._claims.pop(tid))

    def exec(self, n: Notification, dirfd: int, path_at: int, argv_at: int) -> None:
        """Record what an exec names, and let it through."""
        # Everything that can wait until the caller goes on is left to `_record_truth`: this and the two ways between
        # caller and supervisor are what an exec costs.
        step = self._tasks.step_of(n.tid)
        try:
            claim = claimed_exec(self._memory, n.tid, dirfd, path_at, argv_at)
        except OSError:
            # A bad address, or one that only the caller can read (PROT_WRITE alone): what we cannot read must not run.
            self._listener.finish(n.id, errno.EFAULT)
            return
        if not self._listener.is_valid(n.id):
            return
        earlier = self._claims.pop(n.tid, None)
        if earlier is not None:
            self._settle(n.tid, earlier)
        claim.step = step
        # A search along PATH makes a call for each folder; those for names that are not there are folded.
        if claim.path in self._known_names or claim.meant is not None or name_exists(n.tid, claim.path):
            claim.seq = self._record_claim(n.tid, claim)
        claim.made = time.monotonic()
        claim.due = claim.made + _UNVERIFIED_S
        self._claims[n.tid] = claim
        self._listener.proceed(n.id)

    def _record_claim(self, pid: int, claim: Claim) -> int:
        return self._recorder.record(
            Exec,
            basis="claimed",
            step=claim.step,
            pid=pid,
            path=from_path(claim.path),
            argv=claim.argv,
            argv_truncated=claim.truncated,
        )

    def after_exec(self, n: Notification) -> None:
        """Read what runs now, let the caller go on, and record it."""
        # The C library calls set_tid_address once after each exec, before main: the caller stands still meanwhile,
        # so what /proc says of it is the truth, and the answer does not wait for the log.
        claim = self._claims.pop(n.tid, None)
        if claim is not None:
            name = running_name(n.tid)
            if name == claim.path or (claim.path, name) in self._same:
                self._listener.proceed(n.id)
                self._record_truth(n.tid, claim, name, mismatch=False)
                return
        program = running_program(n.tid)
        if claim is None:
            claim = self._claim_of_a_thread(n, program)
        self._listener.proceed(n.id)
        if claim is not None:
            self._compare(n.tid, claim, program)

    def _claim_of_a_thread(self, n: Notification, program: Program) -> Claim | None:
        """Find the claim of an exec whose caller did not lead its thread group: it has the leader's id now.

        One that fits comes first, then the newest of the same step whose thread is gone: the exec ran something else.
        Without any, a program that is not the one we know of has come about in a way that we did not see.
        """
        step = self._tasks.step_of(n.tid)
        gone = [tid for tid, claim in self._claims.items() if claim.step == step and not is_alive(tid)]
        fitting = [tid for tid in gone if is_what_was_claimed(self._root, program, self._claims[tid])]
        # Asked last: while the caller waits, no exec has ended it, so none of these threads is gone because of one.
        if not self._listener.is_valid(n.id):
            return None  # a leader that the exec has just ended: what /proc says is not about it
        if gone:
            return self._claims.pop(max(fitting or gone, key=lambda tid: self._claims[tid].made))
        if self._programs.get(n.tid, program.name) == program.name:
            return None
        return Claim("", [], truncated=True, before=program.name, step=step)

    def look_up_late(self) -> None:
        """Settle claims that no call has settled in time."""
        now = time.monotonic()
        for tgid in [tgid for tgid, claim in self._claims.items() if claim.due <= now]:
            with contextlib.suppress(LogWriteError):
                self._settle_late(tgid, self._claims.pop(tgid), now)

    def _settle_late(self, tgid: int, claim: Claim, now: float) -> None:
        """Look a claim up without a call; an exec that has not come about by now may be slow, or may have failed.

        A caller that is gone may have been a thread whose exec has made it the leader (see `_claim_of_a_thread`).
        """
        try:
            is_open = running_name(tgid) == claim.before
        except Gone:
            is_open = True
        if is_open and now - claim.made < _SLOW_EXEC_S:
            claim.due = now + (now - claim.made)
            self._claims[tgid] = claim
        else:
            self._settle(tgid, claim)

    def _settle(self, tgid: int, claim: Claim) -> None:
        """Find out what became of an exec after which the C library did not report (a static program, a failure)."""
        with contextlib.suppress(Gone):
            program = running_program(tgid)
            # A caller that has ended may have left its id to a stranger.
            if program.name != claim.before and self._tasks.step_of(tgid) == claim.step:
                self._compare(tgid, claim, program)
            return
        if claim.seq < 0:  # perhaps it ran and has ended: rather a record of a name that was not there than none
            claim.seq = self._record_claim(tgid, claim)

    def _compare(self, tgid: int, claim: Claim, program: Program) -> None:
        same = is_what_was_claimed(self._root, program, claim)
        if same and is_immutable(claim.path) and is_immutable(program.name):
            if len(self._same) >= _KEPT_PROGRAMS:
                self._same.clear()
            self._same.add((claim.path, program.name))
        self._record_truth(tgid, claim, program.name, mismatch=not same)

    def _record_truth(self, tgid: int, claim: Claim, name: str, *, mismatch: bool) -> None:
        ppid = 0
        with contextlib.suppress(Gone):  # it may have ended since
            ppid = parent_of(tgid)
        if claim.seq < 0:
            claim.seq = self._record_claim(tgid, claim)
        if len(self._programs) >= _KEPT_PROGRAMS:
            self._programs.clear()
        self._programs[tgid] = name
        exe = from_path(name)
        seq = self._recorder.record(
            Exec, basis="post", step=claim.step, pid=tgid, ppid=ppid, exe=exe, claim_seq=claim.seq, mismatch=mismatch
        )
        if not mismatch:
            if len(self._known_names) >= _KEPT_PROGRAMS:
                self._known_names.clear()
            self._known_names.add(claim.path)
        else:
            self._recorder.record(
                Finding,
                basis="post",
                step=claim.step,
                pid=tgid,
                rule="agentwatch.exec_mismatch",
                title=f"a process asked to run {from_path(claim.path)} but runs {exe}",
                severity="critical",
                technique="T1036",
                evidence=[claim.seq, seq],
                sync=True,
            )
