"""Which process made a call, and which step it belongs to.

A step is known by its session id: init starts every command in a new session, and `setsid` is trapped, so a new
session is entered here before it exists. The kernel keeps a session id through double forks and re-parenting, and does
not reuse it while a member lives; nothing that the process can write (environment, name, argv) takes part.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Final

from jupyter_agentwatch.sandbox.notify import Gone

__all__ = ["Task", "TaskTable"]

_FRESH_S: Final = 0.2
"""How long an answer is reused: an id cannot come round in that time (the smallest pid_max is 301, and a whole round
of forks in 0.2 s would need each to take below 0.7 ms for ids that are all free again; the default takes 32,768)."""

_KEPT: Final = 4096


@dataclass(slots=True)
class Task:
    """A thread that made a call: thread group and parent as the host numbers them, `inner` group as init does."""

    tgid: int
    ppid: int
    inner: int
    umask: int
    step: int
    expires: float


class TaskTable:
    """Looks tasks up in /proc and keeps what it saw for a moment. Used by the notification thread alone.

    `starting` is the step whose command init is about to start: the next new session of a child of init is its.
    """

    def __init__(self, init_pid: int) -> None:
        self._init = init_pid
        self._tasks: dict[int, Task] = {}
        self._steps: dict[int, int] = {}
        self._inner: dict[int, set[int]] = {}
        self.starting = 0

    def get(self, tid: int) -> Task:
        """Return the task of a thread id.

        Raises:
            Gone: There is no such thread any more.
        """
        now = time.monotonic()
        task = self._tasks.get(tid)
        if task is not None and task.expires > now:
            return task
        task = self._read(tid, now)
        if len(self._tasks) >= _KEPT:
            self._tasks.clear()
        self._tasks[tid] = task
        return task

    def new_session(self, tid: int) -> Task:
        """Enter the session that the thread is about to make; call it before the call is let through."""
        task = self._read(tid, time.monotonic())
        step = task.step
        if step == 0 and task.ppid == self._init:
            step, self.starting = self.starting, 0
        self._steps[task.tgid] = step
        self._inner.setdefault(step, set()).add(task.inner)
        self._tasks.pop(tid, None)
        task.step = step
        return task

    def sessions_of(self, step: int) -> list[int]:
        """Return the step's session ids as init numbers them."""
        return sorted(self._inner.get(step, ()))

    def forget_step(self, step: int) -> None:
        """Drop a step of which nothing lives any more."""
        self._inner.pop(step, None)
        for session in [session for session, of in self._steps.items() if of == step]:
            del self._steps[session]

    def _read(self, tid: int, now: float) -> Task:
        fields = _status(tid)
        return Task(
            tgid=int(fields[b"Tgid"]),
            ppid=int(fields[b"PPid"]),
            inner=int(fields[b"NStgid"].split()[-1]),
            umask=int(fields[b"Umask"], 8),
            step=self._steps.get(int(fields[b"NSsid"].split()[0]), 0),
            expires=now + _FRESH_S,
        )


def _status(tid: int) -> dict[bytes, bytes]:
    try:
        fd = os.open(f"/proc/{tid}/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, 4096)
        finally:
            os.close(fd)
    except OSError as error:
        raise Gone from error
    # Only the first lines: the name comes first and is the process's own choice, but the kernel escapes newlines in it.
    fields: dict[bytes, bytes] = {}
    for line in text.split(b"\n", 20)[:20]:
        key, _, value = line.partition(b":\t")
        fields[key] = value
    if not {b"Tgid", b"PPid", b"NStgid", b"NSsid", b"Umask"} <= fields.keys():
        raise Gone
    return fields
