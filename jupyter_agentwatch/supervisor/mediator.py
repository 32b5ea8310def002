"""The notification threads: one takes each trapped call, decides, records, and only then answers.

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
from jupyter_agentwatch.events import Finding, LimitHit
from jupyter_agentwatch.sandbox.history import WorkspaceHistory
from jupyter_agentwatch.sandbox.notify import Gone, Listener, Notification, TargetMemory, as_int, run_soon
from jupyter_agentwatch.sandbox.paths import AT_FDCWD, Root
from jupyter_agentwatch.sandbox.syscalls import Machine
from jupyter_agentwatch.sandbox.tasks import TaskTable
from jupyter_agentwatch.supervisor.execs import ExecWatch
from jupyter_agentwatch.supervisor.gate import Gate, Held
from jupyter_agentwatch.supervisor.network import NetworkBroker
from jupyter_agentwatch.supervisor.record import Recorder
from jupyter_agentwatch.supervisor.stand_ins import StandIns
from jupyter_agentwatch.supervisor.writes import WriteWatch

__all__ = ["Mediator"]

Handler = Callable[[Notification], None]

_RECEIVERS: Final = 4
"""Threads that take calls where forks are trapped: while one serves, the others take what comes in the meantime.

Each wakes up for each call, and a write-open takes up to 60 µs longer; so all but one rest while nobody forks.
"""

_LOOK_MS: Final = 4
_FORKS_S: Final = 0.05
"""After a fork, more are expected for so long."""

_COUNT_AGAIN_S: Final = 0.05
_FORK_S: Final = 1.0
"""A fork that was let through so many seconds ago has happened, however busy the machine is."""
_REPORT_AGAIN_S: Final = 1.0


class Mediator:
    """Answers trapped calls, one at a time; `run` returns when there are no more.

    Args:
        machine: Call numbers.
        listener: Where calls arrive.
        tasks: Who makes them.
        root: The sandbox's root.
        recorder: Where records go.
        gate: Says which calls wait.
        history: Keeps what a step is about to change.
        network: Judges and performs what concerns sockets.
        unshared: What takes the place of namespaces, where there are none.
        count_members: Counts processes and threads inside.
        max_tasks: Bound on them where the supervisor must hold it, or None.
        memory_bytes: Bound on what one process may allocate, which the kernel holds, or None.
    """

    def __init__(
        self,
        *,
        machine: Machine,
        listener: Listener,
        tasks: TaskTable,
        root: Root,
        recorder: Recorder,
        gate: Gate,
        history: WorkspaceHistory,
        network: NetworkBroker,
        unshared: StandIns | None,
        count_members: Callable[[], int],
        max_tasks: int | None,
        memory_bytes: int | None,
    ) -> None:
        self._listener = listener
        self._tasks = tasks
        self._root = root
        self._recorder = recorder
        self._gate = gate
        self._network = network
        self._memory = TargetMemory()
        self._execs = ExecWatch(listener, tasks, root, self._memory, recorder, gate)
        self._writes = WriteWatch(
            listener=listener,
            tasks=tasks,
            root=root,
            memory=self._memory,
            recorder=recorder,
            gate=gate,
            history=history,
            metadata=unshared.metadata if unshared is not None else None,
        )
        self._count_members = count_members
        self._max_tasks = max_tasks
        self._takes_ahead = max_tasks is not None or unshared is not None
        self._memory_bytes = memory_bytes
        self._room = 0
        self._full_until = 0.0
        self._forking: dict[int, float] = {}
        self._limits_told: set[tuple[str, int]] = set()
        self._held: list[Notification] = []
        self._reported: dict[tuple[int, type[Exception]], float] = {}
        self._turn = 0
        self._serving = threading.Lock()  # guards everything here: calls are taken by several threads, served by one
        self._failure: Exception | None = None
        self._over = threading.Event()
        self._forks_until = 0.0
        self._are_forks_expected = threading.Event()
        self._is_asleep = False
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._handlers = self._table(machine, unshared)
        self._exec_numbers = {machine.numbers[name] for name in ("execve", "execveat", "set_tid_address")}

    def _table(self, machine: Machine, unshared: StandIns | None) -> dict[int, Handler]:
        handlers: dict[str, Handler] = {
            "execve": lambda n: self._execs.exec(n, AT_FDCWD, n.args[0], n.args[1]),
            "execveat": lambda n: self._execs.exec(n, as_int(n.args[0]), n.args[1], n.args[2]),
            "set_tid_address": self._execs.after_exec,
            "sched_getaffinity": self._count_processors,
            "setsid": self._new_session,
            "clone": self._clone,
            "fork": self._clone,
            "vfork": self._clone,
            "mmap": self._allocate,
            "connect": self._network.connect,
            "bind": self._network.bind,
            "listen": self._network.listen,
            "sendto": self._network.sendto,
            **self._writes.handlers(),
        }
        if unshared is not None:
            handlers |= unshared.handlers(handlers)
        return {machine.numbers[name]: handler for name, handler in handlers.items() if name in machine.numbers}

    def run(self) -> None:
        """Serve until no task of the sandbox is left."""
        try:
            for number in range(_RECEIVERS if self._takes_ahead else 0):
                name = f"receiver {number}"
                threading.Thread(target=self._receive, args=(number > 0,), name=name, daemon=True).start()
            self._look_after()
        finally:
            with self._serving:
                self._over.set()
                self._execs.close()

    def _receive(self, may_rest: bool) -> None:
        """Take calls as soon as they are made; one that may rest does, while no forks are expected.

        Until a call is taken, a signal with a handler ends it with EINTR, which fork never gives otherwise: the end of
        an earlier child, say, while this call waits for the one before it, or for its turn after the new child.
        """
        ended = select.poll()
        ended.register(self._listener.fd, 0)
        run_soon()
        try:
            while not self._over.is_set():
                if may_rest and time.monotonic() > self._forks_until:
                    self._are_forks_expected.clear()
                    if time.monotonic() > self._forks_until:  # asked again: a fork may have come in between
                        self._are_forks_expected.wait()
                if not self._serve_next() and ended.poll(0):
                    return
        except Exception as error:  # noqa: BLE001 -- whatever it was: `run` raises it
            self._failure = error
            self.stop()

    def _serve_next(self) -> bool:
        """Wait for the next call and serve it; False where there was none."""
        notification = self._listener.receive()
        if notification is None:
            return False
        with self._serving:
            if self._over.is_set():
                return False
            self._turn += 1
            self._serve(notification)
            self._execs.look_up_late()
            if self._is_asleep and self._execs.patience_ms is not None:
                self._is_asleep = False
                os.write(self._wake_write, b"c")
        return True

    def _look_after(self) -> None:
        """Settle claims that are due, and serve what was held, until the sandbox or somebody ends it.

        Where no other thread takes calls, this one does.
        """
        poller = select.poll()
        poller.register(self._listener.fd, 0 if self._takes_ahead else select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        while True:
            with self._serving:
                self._execs.look_up_late()
                patience_ms = self._execs.patience_ms
                expects_forks = time.monotonic() <= self._forks_until
                self._is_asleep = self._takes_ahead and patience_ms is None and not expects_forks
            if patience_ms is None and expects_forks:  # and claims of execs after them, by other threads
                patience_ms = _LOOK_MS
            for fd, events in poller.poll(patience_ms):
                if fd == self._wake_read:
                    if not self._woken():
                        self._raise_failure()
                        return
                elif events & select.POLLIN:
                    self._serve_next()
                elif events & (select.POLLHUP | select.POLLERR):
                    return

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def serve_held(self) -> None:
        """Serve what was held once more: the gate has been opened. Any thread."""
        os.write(self._wake_write, b"t")

    def stop(self) -> None:
        """Leave `run` soon; calls that are trapped afterwards wait for the kill."""
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"q")

    @property
    def held(self) -> int:
        """Number of calls that wait because the watch is frozen."""
        return len(self._held)

    def progress(self) -> int | None:
        """Return a number that changes with each call that is served, or None while none is. Any thread."""
        return self._turn if self._serving.locked() else None

    def _woken(self) -> bool:
        said = os.read(self._wake_read, 64)
        if b"q" in said:
            return False
        if b"t" in said:
            with self._serving:
                self._turn += 1
                self._writes.forget_touched()
                waiting, self._held = self._held, []
                for notification in waiting:
                    self._serve(notification)
        return True

    def _serve(self, notification: Notification) -> None:
        if self._is_held(notification):
            self._held.append(notification)
            return
        self._turn += 1
        try:
            handler = self._handlers.get(notification.number)
            if handler is None:
                self._listener.finish(notification.id, errno.EPERM)
                return
            if notification.number not in self._exec_numbers:
                self._execs.settle_before(notification)
            handler(notification)
        except Held:
            self._held.append(notification)
        except Gone:
            # Perhaps only a descriptor or folder of it is gone: a caller that still waits must get an answer.
            self._listener.finish(notification.id, errno.EPERM)
        except LogWriteError:
            self._listener.finish(notification.id, errno.EPERM)
        except Exception as error:  # noqa: BLE001 -- whatever it was: deny, and say so
            self._listener.finish(notification.id, errno.EPERM)
            self._report(notification, error)

    def _is_held(self, notification: Notification) -> bool:
        if self._gate.is_shut:
            return True
        if not self._gate.is_tripped or notification.tid == self._gate.starting:
            return False
        try:
            # Init and what it has just forked have no step: they must come to their end, so that init can freeze.
            return self._tasks.step_of(notification.tid) != 0
        except Gone:
            return True

    def _report(self, notification: Notification, error: Exception) -> None:
        kind, now = (notification.number, type(error)), time.monotonic()
        if now - self._reported.get(kind, -_REPORT_AGAIN_S) < _REPORT_AGAIN_S:
            return  # a program that provokes it again and again must not fill the disk with it
        self._reported[kind] = now
        with contextlib.suppress(LogWriteError, ValueError):
            title = f"the monitor failed on call {notification.number} and denied it: {type(error).__name__}: {error}"
            self._recorder.record(
                Finding,
                verdict="deny",
                rule="agentwatch.monitor_error",
                title=title[:500],
                severity="high",
                family="monitor",
                sync=True,
            )

    # -- processes -----------------------------------------------------------------------------------------------

    def _new_session(self, n: Notification) -> None:
        starting = self._tasks.starting
        if self._tasks.new_session(n.tid):
            if starting and not self._tasks.starting:
                self._gate.starting = n.tid
            self._listener.proceed(n.id)
        else:
            self._listener.finish(n.id, errno.EPERM)

    def _clone(self, n: Notification) -> None:
        """Hold the bound on tasks. Only registers and a count take part, so letting the call proceed is safe."""
        self._forks_until = time.monotonic() + _FORKS_S
        self._are_forks_expected.set()
        self._forking.pop(n.tid, None)
        if self._max_tasks is None or self._tasks.is_init(n.tid) or self._has_room():
            self._forking[n.tid] = time.monotonic()
            self._listener.proceed(n.id)
            return
        self._listener.finish(n.id, errno.EAGAIN)
        self._tell_limit(n, "processes", self._max_tasks, self._max_tasks, "fork denied")

    def _count_processors(self, n: Notification) -> None:
        """Let it go on: an exec of the caller's has been settled before we are asked."""
        self._listener.proceed(n.id)

    def _allocate(self, n: Notification) -> None:
        """Tell that a program asks for more memory than it may have: the kernel refuses it, and tells nobody else."""
        if self._memory_bytes is not None:
            self._tell_limit(n, "memory_bytes", n.args[1], self._memory_bytes, "allocation denied by the kernel")
        self._listener.proceed(n.id)

    def _tell_limit(self, n: Notification, limit: str, value: int, maximum: int, action: str) -> None:
        """Record it once for a step: a program may try again and again."""
        task = self._tasks.get(n.tid)
        if (limit, task.step) in self._limits_told:
            return
        self._limits_told.add((limit, task.step))
        self._recorder.record(
            LimitHit,
            verdict="deny",
            step=task.step,
            pid=task.tgid,
            limit=limit,
            value=float(value),
            maximum=float(maximum),
            action=action,
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
