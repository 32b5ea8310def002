"""The supervisor's descriptors of the sandbox's sockets: taken from the caller, or kept since they were made for it.

Where a namespace is ours, `pidfd_getfd` takes a socket from its owner at the moment of the call. Docker's profile
refuses that call, so there the supervisor makes every socket itself, puts it into the caller (ADDFD), and keeps its own
descriptor by the inode until the socket has a peer: no longer, or the peer would never see its end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from jupyter_agentwatch.sandbox.notify import Gone, Listener, Notification, another, as_int, duplicate_socket
from jupyter_agentwatch.supervisor.closer import Closer

__all__ = ["MadeSockets", "SocketSource", "TakenSockets"]

_MAX_KEPT: Final = 4096
_SWEEP_AT: Final = 512


class SocketSource(Protocol):
    """Where the broker gets its descriptor of a caller's socket from."""

    def take(self, tid: int, fd: int) -> socket.socket:
        """Return a descriptor of our own of the socket that a thread calls `fd`; the caller of this closes it.

        Raises:
            Gone: The thread is gone.
            OSError: What the thread's call is to be answered with.
        """

    def connected(self, sock: socket.socket) -> None:
        """Note that the caller's socket has a peer, or listens, so that none of ours may keep it open. Any thread."""

    def let_go(self) -> bool:
        """Let go of sockets that their owners have closed; return whether there can have been any."""


class TakenSockets:
    """Takes each socket from its owner when it is needed.

    Args:
        closer: Closes what proves to be no socket.
    """

    def __init__(self, closer: Closer) -> None:
        self._closer = closer

    def take(self, tid: int, fd: int) -> socket.socket:
        """See `SocketSource`."""
        return duplicate_socket(tid, fd, self._closer.close)

    def connected(self, sock: socket.socket) -> None:
        """See `SocketSource`; nothing is kept."""

    def let_go(self) -> bool:
        """See `SocketSource`; nothing is kept."""
        return False


class MadeSockets:
    """Makes every socket for its caller, and keeps a descriptor of it.

    Args:
        listener: Puts sockets into callers.
        members: Processes of the sandbox, asked when many sockets are kept: what none of them has open is let go.
        closer: Closes what is let go.
    """

    def __init__(self, listener: Listener, members: Callable[[], Iterable[int]], closer: Closer) -> None:
        self._closer = closer
        self._listener = listener
        self._members = members
        self._kept: dict[int, tuple[socket.socket, float]] = {}
        self._sweep_at = _SWEEP_AT
        self._lock = threading.Lock()

    def make(self, n: Notification) -> None:
        """Answer a trapped `socket` call, whose arguments are all registers, with a socket of our making."""
        family, kind, protocol = (as_int(argument) for argument in n.args[:3])
        if len(self._kept) >= self._sweep_at and not self._has_room():
            self._listener.finish(n.id, errno.ENFILE)
            return
        try:
            made = socket.socket(family, kind & ~socket.SOCK_CLOEXEC, protocol)
        except OSError as refusal:
            self._listener.finish(n.id, refusal.errno or errno.EPERM)
            return
        with self._lock:
            self._kept[os.fstat(made.fileno()).st_ino] = (made, time.monotonic())
        self._listener.inject(n.id, made.fileno(), cloexec=bool(kind & socket.SOCK_CLOEXEC))

    def take(self, tid: int, fd: int) -> socket.socket:
        """See `SocketSource`. A socket that is not kept has a peer already, or came from `accept` or `socketpair`."""
        inode = _inode_of(tid, fd)
        with self._lock:
            kept = self._kept.get(inode)
            if kept is None:
                raise OSError(errno.EISCONN, os.strerror(errno.EISCONN))
            return another(kept[0])

    def connected(self, sock: socket.socket) -> None:
        """See `SocketSource`."""
        with contextlib.suppress(OSError), self._lock:
            kept = self._kept.pop(os.fstat(sock.fileno()).st_ino, None)
            if kept is not None:
                kept[0].close()  # the caller's is another one, so that this is not the last and cannot linger

    def let_go(self, older_than_s: float = 0.0) -> bool:
        """See `SocketSource`. What is kept of a closed socket would hold its port.

        Args:
            older_than_s: Spare what was made since. Any thread but the notification thread must, because a socket is
                not yet its owner's when it has just been made.
        """
        if not self._kept:
            return False
        alive = {inode for pid in self._members() for inode in _inodes_of(pid)}
        before = time.monotonic() - older_than_s
        with self._lock:
            dead = [inode for inode, (_, made) in self._kept.items() if inode not in alive and made <= before]
            for inode in dead:
                self._closer.close(self._kept.pop(inode)[0])
        return bool(dead)

    def _has_room(self) -> bool:
        self.let_go()
        self._sweep_at = min(_MAX_KEPT, max(_SWEEP_AT, 2 * len(self._kept)))
        return len(self._kept) < _MAX_KEPT


def _inode_of(tid: int, fd: int) -> int:
    try:
        return _socket_inode(os.readlink(f"/proc/{tid}/fd/{fd}"))
    except FileNotFoundError as error:
        if not os.path.exists(f"/proc/{tid}"):
            raise Gone from error
        raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from error


def _socket_inode(link: str) -> int:
    kind, _, number = link.partition(":[")
    if kind != "socket":
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    return int(number[:-1])


def _inodes_of(pid: int) -> Iterable[int]:
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                yield _socket_inode(os.readlink(f"{folder}/{name}"))
