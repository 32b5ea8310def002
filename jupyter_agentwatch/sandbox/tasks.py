"""Which process made a call, and which step it belongs to.

A step is known by its session id: init starts every command in a new session, and `setsid` is trapped, so a new
session is entered here before it exists. The kernel keeps a session id through double forks and re-parenting, and does
not reuse it while a member lives; nothing that the process can write (environment, name, argv) takes part.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from jupyter_agentwatch.sandbox.notify import Gone

__all__ = ["Task", "TaskTable", "family_of", "is_alive"]

_MANY: Final = 4096
_PIDFD_GET_INFO: Final = 0xC040FF0B
_PIDFD_THREAD: Final = os.O_EXCL  # Linux 6.9: a pidfd of a thread that leads no group
_PIDFD_INFO: Final = struct.Struct("=QQIII28x")  # linux/pidfd.h: mask, cgroup id, pid, tgid, ppid, and what is left
_FRESH_S: Final = 0.1


@dataclass(slots=True)
class Task:
    """A thread that made a call: its thread group as the host numbers it, and its step."""

    tgid: int
    step: int


@dataclass(frozen=True, slots=True)
class _Session:
    step: int
    inner: int


class TaskTable:
    """Finds out who makes calls. Used by the notification thread; `sessions_of` may be asked by another one.

    `starting` is the step whose command init is about to start: the next new session of a child of init is its.
    `doomed` are steps that are being killed, which may make no further session.

    Args:
        init_pid: Init as the host sees it.
        living_sessions: Session ids, as init numbers them, that still have members; asked when many have been made.
        forker: Thread of init that forks commands, where that is not its first one.
    """

    def __init__(self, init_pid: int, living_sessions: Callable[[], set[int]], forker: int = 0) -> None:
        self._init = init_pid
        self._forker = forker
        self._living_sessions = living_sessions
        self._sessions: dict[int, _Session] = {}
        self._leaders_inside: dict[int, int] = {}
        self._shares_pids: bool | None = None  # not known before the first process has ended
        self._look_again_at = _MANY
        self._leaders: dict[int, float] = {}
        self.starting = 0
        self.doomed: set[int] = set()

    def is_init(self, tid: int) -> bool:
        """Say whether init makes the call: it forks what we tell it to, however full the sandbox is."""
        return tid in {self._init, self._forker}

    def step_of(self, tid: int) -> int:
        """Return the step of a thread id, 0 where it has none.

        Raises:
            Gone: There is no such thread any more.
        """
        try:
            session = self._sessions.get(os.getsid(tid))  # takes thread ids, too
        except ProcessLookupError as error:
            raise Gone from error
        return session.step if session is not None else 0

    def get(self, tid: int) -> Task:
        """Return the task of a thread id.

        Raises:
            Gone: There is no such thread any more.
        """
        step, now = self.step_of(tid), time.monotonic()
        # Reading /proc/<tid>/status costs 16 µs; `pidfd_open` costs 4 and refuses an id that leads no thread group.
        # An id is not given to another task within the moment that an answer is reused: ids go round.
        if self._leaders.get(tid, 0.0) > now:
            return Task(tid, step)
        try:
            os.close(os.pidfd_open(tid))
        except OSError:
            return Task(int(_status(tid)[b"Tgid"]), step)
        if len(self._leaders) >= _MANY:
            self._leaders.clear()
        self._leaders[tid] = now + _FRESH_S
        return Task(tid, step)

    def new_session(self, tid: int) -> bool:
        """Enter the session that the thread is about to make; call it before the call is let through.

        False where its step is doomed: it must stay in a session that is known, or it could outrun its end.

        Raises:
            Gone: There is no such thread any more.
        """
        fields = _status(tid)
        tgid, inner = int(fields[b"Tgid"]), int(fields[b"NStgid"].split()[-1])
        before = self._sessions.get(int(fields[b"NSsid"].split()[0]))
        step = before.step if before is not None else 0
        if step == 0 and int(fields[b"PPid"]) == self._init:
            step, self.starting = self.starting, 0
        if len(self._sessions) >= self._look_again_at:
            self._forget_the_dead()
        if step in self.doomed:
            return False
        self._sessions[tgid] = _Session(step, inner)
        self._leaders_inside[inner] = tgid  # the last one counts: its number may have been that of one that has ended
        return True

    def ended(self, inner: int) -> tuple[int, int]:
        """Return the process that init has just reaped, as the host numbers it, and its step; (0, 0) where unknown.

        A process inside is known by its session: one that led none, and was left behind by its parent, has no name
        here, except where the sandbox shares our process ids.
        """
        host = self._leaders_inside.get(inner) or (inner if self._has_our_numbers() else 0)
        if not host or is_alive(host):  # a number that has gone round, or a word of init's that cannot be true
            return 0, 0
        session = self._sessions.get(host)
        return host, session.step if session is not None else 0

    def _has_our_numbers(self) -> bool:
        if self._shares_pids is None:
            try:
                self._shares_pids = len(_status(self._init)[b"NStgid"].split()) == 1
            except Gone:  # init has ended meanwhile
                return False
        return self._shares_pids

    def sessions_of(self, step: int) -> list[int]:
        """Return the step's session ids as init numbers them."""
        return [session.inner for session in list(self._sessions.values()) if session.step == step]

    def step_of_session(self, session: int) -> int:
        """Return the step of a session id as init numbers it, 0 where it is none that we know."""
        # The last one counts: its number may have been that of one that has ended.
        known = reversed(list(self._sessions.values()))
        return next((each.step for each in known if each.inner == session), 0)

    def steps(self) -> set[int]:
        """Return the steps that have made sessions, some of which may have ended."""
        return {session.step for session in list(self._sessions.values())}

    def _forget_the_dead(self) -> None:
        living = self._living_sessions()
        # One whose leader lives may be about to be made: its setsid has been let through, but it may not have run yet.
        self._sessions = {
            sid: session for sid, session in self._sessions.items() if session.inner in living or is_alive(sid)
        }
        self._leaders_inside = {session.inner: sid for sid, session in self._sessions.items()}
        self._look_again_at = max(_MANY, 2 * len(self._sessions))


def is_alive(tid: int) -> bool:
    """Say whether there is such a thread."""
    try:
        os.getsid(tid)
    except ProcessLookupError:
        return False
    return True


def family_of(tid: int) -> tuple[int, int]:
    """Return the process of a thread and that process's parent, as the host numbers them.

    Raises:
        Gone: There is no such thread any more.
    """
    # One ioctl (Linux 6.13) instead of a file that the kernel has to write as text.
    info = bytearray(_PIDFD_INFO.size)
    try:
        fd = os.pidfd_open(tid, _PIDFD_THREAD)
        try:
            fcntl.ioctl(fd, _PIDFD_GET_INFO, info, True)
            _, _, _, tgid, parent = _PIDFD_INFO.unpack(info)
        finally:
            os.close(fd)
    except ProcessLookupError as error:
        raise Gone from error
    except OSError:
        fields = _status(tid)
        return int(fields[b"Tgid"]), int(fields[b"PPid"])
    return tgid, parent


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
    if not {b"Tgid", b"PPid", b"NStgid", b"NSsid"} <= fields.keys():
        raise Gone
    return fields
