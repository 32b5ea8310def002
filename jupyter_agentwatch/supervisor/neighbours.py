"""Calls that name another process, where the sandbox shares its PID namespace: only its own processes may be named.

The names are registers, which nobody can change after the look, and a process id is not given to another process while
the caller waits for long: so a call that was judged may proceed as it stands.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from jupyter_agentwatch.events import Finding
from jupyter_agentwatch.sandbox.descendants import descendants, is_descendant
from jupyter_agentwatch.sandbox.notify import Listener, Notification, as_int
from jupyter_agentwatch.sandbox.shared_filter import PROCESS_CALLS, SIGNAL_CALLS
from jupyter_agentwatch.sandbox.tasks import TaskTable
from jupyter_agentwatch.supervisor.record import Recorder

__all__ = ["NeighbourGuard"]

_NAMED_SECOND: Final = ("setpriority", "ioprio_set")


class NeighbourGuard:
    """Judges which process a call names. Used by the notification thread.

    Args:
        listener: Answers calls.
        tasks: Who makes them.
        recorder: Told of calls that name a process outside.
        init_pid: The sandbox's processes stem from this one.
    """

    def __init__(self, listener: Listener, tasks: TaskTable, recorder: Recorder, init_pid: int) -> None:
        self._listener = listener
        self._tasks = tasks
        self._recorder = recorder
        self._init_pid = init_pid
        self._told: set[tuple[int, str]] = set()

    def handlers(self) -> dict[str, Callable[[Notification], None]]:
        """Return what handles each call, by the call's name."""
        first = {name: self._handler(name, 0) for name in (*PROCESS_CALLS, *SIGNAL_CALLS)}
        return first | {name: self._handler(name, 1) for name in _NAMED_SECOND}

    def _handler(self, name: str, index: int) -> Callable[[Notification], None]:
        def handle(n: Notification) -> None:
            pid = as_int(n.args[index])
            if pid == 0 or self._is_inside(pid):
                self._listener.proceed(n.id)
                return
            if pid > 0 and not os.path.exists(f"/proc/{pid}"):
                self._listener.finish(n.id, errno.ESRCH)
                return
            self._tell(n, name, pid)
            self._listener.finish(n.id, errno.EPERM)

        return handle

    def _is_inside(self, pid: int) -> bool:
        if pid > 0:
            return is_descendant(pid, self._init_pid)
        if pid == -1:
            return False  # everybody whom the user may signal
        # A group lies within one session, and every session of the sandbox is the sandbox's alone.
        try:
            return is_descendant(-pid, self._init_pid) or self._has_group(-pid)
        except OverflowError:
            return False

    def _has_group(self, group: int) -> bool:
        for each in descendants(self._init_pid):
            try:
                if os.getpgid(each.pid) == group:
                    return True
            except ProcessLookupError:
                continue
        return False

    def _tell(self, n: Notification, name: str, pid: int) -> None:
        task = self._tasks.get(n.tid)
        if (task.step, name) in self._told:
            return  # once for each step and call: a program that tries all numbers must not fill the log
        self._told.add((task.step, name))
        self._recorder.record(
            Finding,
            verdict="deny",
            step=task.step,
            pid=task.tgid,
            rule="agentwatch.outside_process",
            title=f"{name} of process {pid}, which is not the sandbox's, was denied",
            severity="high",
            family="tampering",
            technique="T1489",
            sync=True,
        )
