"""What each exec claimed, and what then really ran.

The claim is recorded before the exec, the truth at the first call after it. A difference is a critical finding, and a
claim whose truth nobody could see gets a record that says so.
"""

from __future__ import annotations

import contextlib
import errno
import math
import time
from typing import Final, Literal

from jupyter_agentwatch.audit.log import LogWriteError
from jupyter_agentwatch.events import Exec, Finding, from_path
from jupyter_agentwatch.sandbox.notify import Gone, Listener, Notification, TargetMemory
from jupyter_agentwatch.sandbox.paths import Root
from jupyter_agentwatch.sandbox.programs import (
    Claim,
    Program,
    argument_texts,
    claimed_exec,
    has_claimed_arguments,
    is_immutable,
    name_exists,
    running_arguments,
    running_name,
    running_program,
    words_before,
)
from jupyter_agentwatch.sandbox.tasks import TaskTable, family_of, is_alive
from jupyter_agentwatch.supervisor.gate import Gate, Held
from jupyter_agentwatch.supervisor.record import Recorder

__all__ = ["ExecWatch"]

_SLOW_EXEC_S: Final = 3.0
"""An exec after which nothing has changed for so many seconds is taken to have failed."""

_UNVERIFIED_S: Final = 0.002
"""A program that makes no trapped call after its exec (a static one) is looked up after this many seconds.

One that has ended by then leaves no truth: nothing in the kernel tells an unprivileged process what a dead one ran.
"""

_KEPT_PROGRAMS: Final = 8192

_Difference = Literal["", "program", "arguments"]
_Why = Literal["failed", "ended", "unreadable", "held", "refused"]


class ExecWatch:
    """Follows execs from claim to truth. Used by the notification thread alone.

    Args:
        listener: Where callers wait.
        tasks: Who they are.
        root: The sandbox's root.
        memory: Reads their memory.
        recorder: Where records go.
        gate: Shut where a record has tripped the breaker.
    """

    def __init__(
        self, listener: Listener, tasks: TaskTable, root: Root, memory: TargetMemory, recorder: Recorder, gate: Gate
    ) -> None:
        self._listener = listener
        self._tasks = tasks
        self._root = root
        self._memory = memory
        self._recorder = recorder
        self._gate = gate
        self._claims: dict[int, Claim] = {}
        self._threads: set[int] = set()  # callers of claims that do not lead their process
        self._next_look = math.inf
        self._programs: dict[int, str] = {}
        self._same: dict[tuple[str, str], bytes] = {}  # claimed and running name → what comes before a script's name
        self._known_names: set[str] = set()

    @property
    def patience_ms(self) -> int | None:
        """Milliseconds after which `look_up_late` wants to be called, None while it has nothing to do."""
        if not self._claims:
            return None
        return max(1, math.ceil((self._next_look - time.monotonic()) * 1000))

    def settle_before(self, n: Notification) -> None:
        """Settle the caller's earlier exec before it is let through with anything else."""
        if n.tid in self._claims:
            self._settle(n.tid, self._take(n.tid))
        if self._threads:
            self._settle_threads(n)

    def exec(self, n: Notification, dirfd: int, path_at: int, argv_at: int) -> None:
        """Record what an exec names, and let it through."""
        step = self._tasks.step_of(n.tid)
        try:
            claim = claimed_exec(self._memory, n.tid, dirfd, path_at, argv_at)
            claim.tgid, claim.ppid = family_of(n.tid)
        except OSError:
            # A bad address, or one that only the caller can read (PROT_WRITE alone): what we cannot read must not run.
            self._listener.finish(n.id, errno.EFAULT)
            return
        if not self._listener.is_valid(n.id):
            return
        self.settle_before(n)
        claim.step = step
        # A search along PATH makes a call for each folder; those for names that are not there are folded.
        if claim.path in self._known_names or claim.meant is not None or name_exists(n.tid, claim.path):
            was_tripped = self._gate.is_tripped
            claim.seq = self._record_claim(claim)
            if self._gate.is_tripped and self._is_stopped(n, claim, was_tripped=was_tripped):
                return
        if n.tid == self._gate.starting:
            self._gate.starting = 0
        claim.made = time.monotonic()
        self._await(n.tid, claim, claim.made + _UNVERIFIED_S)
        if claim.tgid != n.tid:
            self._threads.add(n.tid)
        self._listener.proceed(n.id)

    def _is_stopped(self, n: Notification, claim: Claim, *, was_tripped: bool) -> bool:
        """Keep a program from running that was asked for when the breaker tripped; return whether it was refused.

        Init waits for the first exec of a command, and could not freeze anything if that one were held: it is let
        through where something else has tripped the breaker, and refused where it has done so itself.

        Raises:
            Held: It waits.
        """
        if n.tid != self._gate.starting:
            self._record_unconfirmed(claim, "held")
            raise Held
        if was_tripped:
            return False
        self._gate.starting = 0
        self._record_unconfirmed(claim, "refused")
        self._listener.finish(n.id, errno.EACCES)
        return True

    def after_exec(self, n: Notification) -> None:
        """Read what runs now, let the caller go on, and record it."""
        # The C library calls set_tid_address once after each exec, before any code of the program, of what it preloads
        # or of an auditor of the linker: the caller stands still, so what /proc says of it is the truth. What it says
        # is read before the answer; the answer does not wait for the log.
        claim = self._claims.get(n.tid)
        try:
            name, line = running_name(n.tid), running_arguments(n.tid)
            if claim is not None and not self._threads:
                before = b"" if name == claim.path else self._same.get((claim.path, name))
                if before is not None and line == claim.line(before):
                    if self._listener.proceed(n.id):
                        self._record_truth(n.tid, self._take(n.tid), name, line)
                    return
            program = running_program(n.tid)
        except PermissionError:
            self._listener.proceed(n.id)
            if claim is not None:
                self._record_unconfirmed(self._take(n.tid), "unreadable")
            return
        claim = self._claim_behind(n, program, line)
        difference = self._difference(claim, program, line) if claim is not None else ""
        self._listener.proceed(n.id)
        if claim is not None:
            self._record_truth(n.tid, claim, program.name, line, difference)

    def look_up_late(self) -> None:
        """Settle claims that no call has settled in time."""
        now = time.monotonic()
        if now < self._next_look:
            return
        for tid in [tid for tid, claim in self._claims.items() if claim.due <= now]:
            with contextlib.suppress(LogWriteError):
                self._look_up(tid, self._take(tid, keep_thread=True), now)
        self._next_look = min((claim.due for claim in self._claims.values()), default=math.inf)

    def close(self) -> None:
        """Settle every claim that is left: the sandbox has ended."""
        for tid in list(self._claims):
            with contextlib.suppress(LogWriteError, ValueError):  # the log may be closed by now
                self._settle(tid, self._take(tid))

    # -- claims --------------------------------------------------------------------------------------------------

    def _await(self, tid: int, claim: Claim, due: float) -> None:
        claim.due = due
        self._claims[tid] = claim
        self._next_look = min(self._next_look, due)

    def _take(self, tid: int, *, keep_thread: bool = False) -> Claim:
        if not keep_thread:
            self._threads.discard(tid)
        return self._claims.pop(tid)

    def _settle_threads(self, n: Notification) -> None:
        """Settle the claims of threads that are gone: perhaps an exec has made one of them the leader, which calls."""
        gone = self._gone_threads(n.tid)
        # Asked last, as below: a call that stands means that no exec is under way in its process.
        if gone and self._listener.is_valid(n.id):
            for tid in sorted(gone, key=lambda tid: -self._claims[tid].made):
                self._settle(n.tid, self._take(tid))

    def _gone_threads(self, tgid: int) -> list[int]:
        return [tid for tid in self._threads if self._claims[tid].tgid == tgid and not is_alive(tid)]

    def _claim_behind(self, n: Notification, program: Program, line: bytes) -> Claim | None:
        """Find the claim of the exec that has just come about.

        A caller that did not lead its process has the leader's id now, and other threads' execs, the leader's perhaps,
        were ended by it. One that fits comes first, then the newest: the exec ran something else. Without any, a
        program that is not the one we know of has come about in a way that we did not see.
        """
        callers = [tid for tid in (n.tid,) if tid in self._claims] + self._gone_threads(n.tid)
        fitting = [tid for tid in callers if not self._difference(self._claims[tid], program, line)]
        # Asked last: while the caller waits, no exec has ended it, so none of these threads is gone because of one.
        if not self._listener.is_valid(n.id):
            return None  # a leader that the exec has just ended: what /proc says is not about it
        if callers:
            found = self._take(max(fitting or callers, key=lambda tid: self._claims[tid].made))
            for tid in callers:
                if tid in self._claims:
                    self._record_unconfirmed(self._take(tid), "ended")
            return found
        if self._programs.get(n.tid, program.name) == program.name:
            return None
        step = self._tasks.step_of(n.tid)
        return Claim("", b"", [], [], has_more=True, truncated=True, before=program.name, tgid=n.tid, step=step)

    # -- what came of them ---------------------------------------------------------------------------------------

    def _look_up(self, tid: int, claim: Claim, now: float) -> None:
        """Look a claim up without a call; an exec that has not come about by now may be slow, or may have failed.

        A caller that is gone may have been a thread whose exec has made it, or is just making it, the leader.
        """
        who = claim.tgid if tid in self._threads and not is_alive(tid) else tid
        try:
            # Between the old program and the new one there are no arguments.
            is_open = running_name(who) == claim.before or not running_arguments(who)
        except Gone:
            is_open = tid in self._threads  # it may have become the leader between these questions
        except PermissionError:
            is_open = False
        if is_open and now - claim.made < _SLOW_EXEC_S:
            self._await(tid, claim, now + (now - claim.made))
            return
        self._threads.discard(tid)
        self._settle(who, claim)

    def _settle(self, tid: int, claim: Claim) -> None:
        """Find out what became of an exec after which the C library did not report (a static program, a failure)."""
        try:
            program, line = running_program(tid), running_arguments(tid)
            # A caller that has ended may have left its id to a stranger.
            is_stranger = self._tasks.step_of(tid) != claim.step
        except Gone:
            self._record_unconfirmed(claim, "ended")
        except PermissionError:
            self._record_unconfirmed(claim, "unreadable")
        else:
            difference = self._difference(claim, program, line)
            if is_stranger:
                self._record_unconfirmed(claim, "ended")
            elif difference and program.name == claim.before:
                self._record_unconfirmed(claim, "failed")
            else:
                self._record_truth(claim.tgid, claim, program.name, line, difference)

    def _difference(self, claim: Claim, program: Program, line: bytes) -> _Difference:
        """Say in what the truth differs from the claim, and keep what can be known again by its name."""
        words = words_before(self._root, program, claim)
        if words is None:
            return "program"
        if not has_claimed_arguments(line, claim, words):
            return "arguments"
        if is_immutable(self._root, claim.path) and is_immutable(self._root, program.name):
            if len(self._same) >= _KEPT_PROGRAMS:
                self._same.clear()
            self._same[claim.path, program.name] = b"".join(word + b"\0" for word in words)
        return ""

    # -- records -------------------------------------------------------------------------------------------------

    def _record_claim(self, claim: Claim) -> int:
        return self._recorder.record(
            Exec,
            basis="claimed",
            step=claim.step,
            pid=claim.tgid,
            path=from_path(claim.path),
            argv=claim.argv,
            argv_truncated=claim.truncated,
        )

    def _record_unconfirmed(self, claim: Claim, why: _Why) -> None:
        if claim.seq < 0:
            if why == "failed":
                return  # a candidate of a search along PATH that was not there
            claim.seq = self._record_claim(claim)  # rather a record of a name that was not there than none
        self._recorder.record(
            Exec, basis="claimed", step=claim.step, pid=claim.tgid, claim_seq=claim.seq, unconfirmed=why
        )

    def _record_truth(self, tgid: int, claim: Claim, name: str, line: bytes, difference: _Difference = "") -> None:
        if claim.seq < 0:
            claim.seq = self._record_claim(claim)
        if len(self._programs) >= _KEPT_PROGRAMS:
            self._programs.clear()
        self._programs[tgid] = name
        argv, truncated = (claim.argv, False) if line == claim.line() else argument_texts(line)
        exe = from_path(name)
        seq = self._recorder.record(
            Exec,
            basis="post",
            step=claim.step,
            pid=tgid,
            ppid=claim.ppid,
            exe=exe,
            argv=argv,
            argv_truncated=truncated,
            claim_seq=claim.seq,
            mismatch=difference != "",
        )
        if not difference:
            if len(self._known_names) >= _KEPT_PROGRAMS:
                self._known_names.clear()
            self._known_names.add(claim.path)
            return
        path = from_path(claim.path)
        titles = {
            "program": f"a process asked to run {path} but runs {exe}",
            "arguments": f"a process asked to run {path} with other arguments than it runs with",
        }
        self._recorder.record(
            Finding,
            basis="post",
            step=claim.step,
            pid=tgid,
            rule="agentwatch.exec_mismatch",
            title=titles[difference],
            severity="critical",
            family="tampering",
            technique="T1036",
            evidence=[claim.seq, seq],
            sync=True,
        )
