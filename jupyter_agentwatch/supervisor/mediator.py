"""The notification thread: takes each trapped call, decides, records, and only then answers.

Every path out of a handler answers the call or proves that the caller is gone. A handler that raises anything
unforeseen answers EPERM and leaves a finding: a monitor that fails must be seen to fail, and must not let through.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Final

from jupyter_agentwatch.audit.log import LogWriteError
from jupyter_agentwatch.events import Exec, FileOp, Finding, LimitHit, from_bytes
from jupyter_agentwatch.sandbox.history import WorkspaceHistory
from jupyter_agentwatch.sandbox.notify import Gone, Listener, Notification, TargetMemory, as_int
from jupyter_agentwatch.sandbox.paths import AT_FDCWD, Root
from jupyter_agentwatch.sandbox.programs import (
    Claim,
    Program,
    claimed_exec,
    claimed_path,
    is_immutable,
    is_what_was_claimed,
    name_exists,
    running_name,
    running_program,
)
from jupyter_agentwatch.sandbox.syscalls import Machine
from jupyter_agentwatch.sandbox.tasks import TaskTable, parent_of
from jupyter_agentwatch.supervisor.network import NetworkBroker
from jupyter_agentwatch.supervisor.record import Recorder

__all__ = ["Mediator"]

Handler = Callable[[Notification], None]

_SLOW_EXEC_S: Final = 3.0
"""An exec after which nothing has changed for so many seconds is taken to have failed."""

_UNVERIFIED_S: Final = 0.05
"""A program that makes no trapped call after its exec (a static one) is looked up after this many seconds."""

_COUNT_AGAIN_S: Final = 0.05
_FORK_S: Final = 1.0
"""A fork that was let through so many seconds ago has happened, however busy the machine is."""
_KEPT_PROGRAMS: Final = 8192
_KEPT_NAMES: Final = 4096
_OPENING: Final = ("open", "openat", "creat", "truncate")
_REPORT_AGAIN_S: Final = 1.0


def _text(path: str) -> str:
    return path if path.isascii() else from_bytes(os.fsencode(path))


class Mediator:
    """Answers trapped calls on one thread (`run`).

    Args:
        machine: Call numbers.
        listener: Where calls arrive.
        tasks: Who makes them.
        root: The sandbox's root.
        recorder: Where records go.
        history: Keeps what a step is about to change.
        network: Judges and performs what concerns sockets.
        count_members: Counts processes and threads inside.
        max_tasks: Bound on them where the supervisor must hold it, or None.
    """

    def __init__(
        self,
        *,
        machine: Machine,
        listener: Listener,
        tasks: TaskTable,
        root: Root,
        recorder: Recorder,
        history: WorkspaceHistory,
        network: NetworkBroker,
        count_members: Callable[[], int],
        max_tasks: int | None,
    ) -> None:
        self._listener = listener
        self._tasks = tasks
        self._root = root
        self._recorder = recorder
        self._history = history
        self._network = network
        self._memory = TargetMemory()
        self._claims: dict[int, Claim] = {}
        self._touched: set[tuple[int, str]] = set()
        self._programs: dict[int, str] = {}
        self._same: set[tuple[str, str]] = set()
        self._known_names: set[str] = set()
        self._count_members = count_members
        self._max_tasks = max_tasks
        self._room = 0
        self._full_until = 0.0
        self._forking: dict[int, float] = {}
        self._limit_told: set[int] = set()
        self._frozen = False
        self._held: list[Notification] = []
        self._reported: dict[tuple[int, type[Exception]], float] = {}
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thaw_lock = threading.Lock()
        self._handlers = self._table(machine)
        self._exec_numbers = {machine.numbers[name] for name in ("execve", "execveat", "set_tid_address")}

    def _table(self, machine: Machine) -> dict[int, Handler]:
        handlers: dict[str, Handler] = {
            "execve": lambda n: self._exec(n, AT_FDCWD, n.args[0], n.args[1]),
            "execveat": lambda n: self._exec(n, as_int(n.args[0]), n.args[1], n.args[2]),
            "set_tid_address": self._after_exec,
            "setsid": self._new_session,
            "clone": self._clone,
            "fork": self._clone,
            "vfork": self._clone,
            "connect": self._network.connect,
            "bind": self._network.bind,
            "listen": self._network.listen,
            "sendto": self._network.sendto,
        }
        # name → (index of dirfd or None, index of path, index of second dirfd or None, index of second path or None)
        files: dict[str, tuple[int | None, int, int | None, int | None]] = {
            **dict.fromkeys(("open", "creat", "unlink", "mkdir", "rmdir", "truncate", "mknod"), (None, 0, None, None)),
            **dict.fromkeys(("openat", "unlinkat", "mkdirat", "mknodat"), (0, 1, None, None)),
            **dict.fromkeys(("rename", "link"), (None, 0, None, 1)),
            **dict.fromkeys(("renameat", "renameat2", "linkat"), (0, 1, 2, 3)),
            "symlink": (None, 1, None, None),
            "symlinkat": (1, 2, None, None),
        }
        for name, where in files.items():
            handlers[name] = self._file_handler(name, *where)
        return {machine.numbers[name]: handler for name, handler in handlers.items() if name in machine.numbers}

    def run(self) -> None:
        """Serve until no task of the sandbox is left."""
        poller = select.poll()
        poller.register(self._listener.fd, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        while True:
            for fd, events in poller.poll(50 if self._claims else None):
                if fd == self._wake_read:
                    if not self._woken():
                        return
                elif events & select.POLLIN:
                    notification = self._listener.receive()
                    if notification is not None:
                        self._serve(notification)
                elif events & (select.POLLHUP | select.POLLERR):
                    return
            if self._claims:
                self._look_up_late_claims()

    def freeze(self) -> None:
        """Hold every call from now on, unanswered."""
        with self._thaw_lock:
            self._frozen = True

    def thaw(self) -> None:
        """Answer what was held, and go on."""
        with self._thaw_lock:
            self._frozen = False
        os.write(self._wake_write, b"t")

    def stop(self) -> None:
        """Leave `run` soon; calls that are trapped afterwards wait for the kill."""
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"q")

    @property
    def held(self) -> int:
        """Number of calls that wait because the watch is frozen."""
        return len(self._held)

    def _woken(self) -> bool:
        if b"q" in os.read(self._wake_read, 64):
            return False
        self._touched.clear()  # an undo may have forgotten what was kept
        waiting, self._held = self._held, []
        for notification in waiting:
            self._serve(notification)
        return True

    def _serve(self, notification: Notification) -> None:
        if self._frozen:
            self._held.append(notification)
            return
        try:
            handler = self._handlers.get(notification.number)
            if handler is None:
                self._listener.finish(notification.id, errno.EPERM)
                return
            if notification.tid in self._claims and notification.number not in self._exec_numbers:
                self._settle(notification.tid, self._claims.pop(notification.tid))
            handler(notification)
        except Gone:
            # Perhaps only a descriptor or folder of it is gone: a caller that still waits must get an answer.
            self._listener.finish(notification.id, errno.EPERM)
        except LogWriteError:
            self._listener.finish(notification.id, errno.EPERM)
        except Exception as error:  # noqa: BLE001 -- whatever it was: deny, and say so
            self._listener.finish(notification.id, errno.EPERM)
            self._report(notification, error)

    def _report(self, notification: Notification, error: Exception) -> None:
        kind, now = (notification.number, type(error)), time.monotonic()
        if now - self._reported.get(kind, -_REPORT_AGAIN_S) < _REPORT_AGAIN_S:
            return  # a program that provokes it again and again must not fill the disk with it
        self._reported[kind] = now
        with contextlib.suppress(LogWriteError, ValueError):
            title = f"the monitor failed on call {notification.number} and denied it: {type(error).__name__}: {error}"
            self._recorder.record(
                Finding, verdict="deny", rule="agentwatch.monitor_error", title=title[:500], severity="high", sync=True
            )

    # -- programs ------------------------------------------------------------------------------------------------

    def _exec(self, n: Notification, dirfd: int, path_at: int, argv_at: int) -> None:
        # Everything that can wait until the caller goes on is left to `_record_truth`: this and the two ways between
        # caller and supervisor are what an exec costs.
        step = self._tasks.step_of(n.tid)
        try:
            claim = claimed_exec(self._memory, n.tid, dirfd, path_at, argv_at)
        except OSError:
            self._listener.proceed(n.id)  # a bad address: the kernel will say so, and starts nothing
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
            path=_text(claim.path),
            argv=claim.argv,
            argv_truncated=claim.truncated,
        )

    def _after_exec(self, n: Notification) -> None:
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
        if not self._listener.is_valid(n.id):
            return None  # a leader that the exec has just ended: what /proc says is not about it
        step = self._tasks.step_of(n.tid)
        gone = [tid for tid, claim in self._claims.items() if claim.step == step and not _is_alive(tid)]
        fitting = [tid for tid in gone if is_what_was_claimed(self._root, program, self._claims[tid])]
        if gone:
            return self._claims.pop(max(fitting or gone, key=lambda tid: self._claims[tid].made))
        if self._programs.get(n.tid, program.name) == program.name:
            return None
        return Claim("", [], truncated=True, before=program.name, step=step)

    def _look_up_late_claims(self) -> None:
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
        exe = _text(name)
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
                title=f"a process asked to run {_text(claim.path)} but runs {exe}",
                severity="critical",
                technique="T1036",
                evidence=[claim.seq, seq],
                sync=True,
            )

    def _new_session(self, n: Notification) -> None:
        if self._tasks.new_session(n.tid):
            self._listener.proceed(n.id)
        else:
            self._listener.finish(n.id, errno.EPERM)

    def _clone(self, n: Notification) -> None:
        """Hold the bound on tasks. Only registers and a count take part, so letting the call proceed is safe."""
        self._forking.pop(n.tid, None)
        if self._max_tasks is None or self._tasks.is_init(n.tid) or self._has_room():
            self._forking[n.tid] = time.monotonic()
            self._listener.proceed(n.id)
            return
        self._listener.finish(n.id, errno.EAGAIN)
        task = self._tasks.get(n.tid)
        if task.step not in self._limit_told:
            self._limit_told.add(task.step)
            self._recorder.record(
                LimitHit,
                verdict="deny",
                step=task.step,
                pid=task.tgid,
                limit="processes",
                value=float(self._max_tasks),
                maximum=float(self._max_tasks),
                action="fork denied",
                sync=True,
            )

    def _has_room(self) -> bool:
        if self._room > 0:
            self._room -= 1
            return True
        now = time.monotonic()
        if now < self._full_until or self._max_tasks is None:
            return False
        # Forks that were let through may not have happened yet when we count; half of what is left, to count again.
        self._forking = {tid: since for tid, since in self._forking.items() if now - since < _FORK_S}
        self._room = (self._max_tasks - len(self._forking) - self._count_members() + 1) // 2
        if self._room <= 0:
            self._full_until = now + _COUNT_AGAIN_S
            return False
        self._room -= 1
        return True

    # -- files ---------------------------------------------------------------------------------------------------

    def _file_handler(
        self, op: str, dirfd_index: int | None, path_index: int, dirfd2_index: int | None, path2_index: int | None
    ) -> Handler:
        listener, memory, tasks, history = self._listener, self._memory, self._tasks, self._history
        record, touched, opens = self._recorder.record, self._touched, op in _OPENING

        def handle(n: Notification) -> None:
            task, args = tasks.get(n.tid), n.args
            path2 = ""
            try:
                dirfd = AT_FDCWD if dirfd_index is None else as_int(args[dirfd_index])
                path = claimed_path(memory, n.tid, dirfd, args[path_index])
                if path2_index is not None:
                    dirfd = AT_FDCWD if dirfd2_index is None else as_int(args[dirfd2_index])
                    path2 = claimed_path(memory, n.tid, dirfd, args[path2_index])
            except OSError:
                listener.proceed(n.id)  # a bad address: the kernel will say so, and changes nothing
                return
            if not listener.is_valid(n.id):
                return
            shown, shown2 = _text(path), _text(path2)
            record(FileOp, basis="claimed", step=task.step, pid=task.tgid, op=op, path=shown, path2=shown2)
            if not opens:
                touched.clear()  # a name may lead elsewhere from now on
                history.touch(task.step, path, op=op)
                if path2:
                    history.touch(task.step, path2, op=op)
            elif (task.step, path) not in touched:
                if len(touched) >= _KEPT_NAMES:
                    touched.clear()
                touched.add((task.step, path))
                history.touch(task.step, path, op=op)
            listener.proceed(n.id)

        return handle


def _is_alive(tid: int) -> bool:
    try:
        os.getsid(tid)
    except ProcessLookupError:
        return False
    return True
