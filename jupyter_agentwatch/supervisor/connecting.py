"""Connects sockets that the sandbox shares with us, and never waits: whether and how long they block is theirs to say.

Where the machine takes part in TCP fast open, one call does it. Where it does not, each connect gets a thread.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Callable
from typing import Final

__all__ = ["Connects", "connect_at_once"]

_CONNECT_FLAGS: Final = socket.MSG_FASTOPEN | socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_MAX_WAITING: Final = 64


def connect_at_once(sock: socket.socket, host: str, port: int) -> int:
    """Begin to connect a stream socket that others share; return the errno, 0 where it is connected.

    A plain connect waits where the socket blocks, and both whether it does and how long the peer's answer stays away
    (IP_MINTTL, TCP_MD5SIG) are for the sandbox to say, at any moment. A send with MSG_FASTOPEN connects, too, and its
    MSG_DONTWAIT is the call's own. It sends no data here. It gives EOPNOTSUPP where `net.ipv4.tcp_fastopen` has been
    switched off for clients; every network namespace begins with it on.
    """
    try:
        sock.sendto(b"", _CONNECT_FLAGS, (host, port))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


class Connects:
    """Connects callers' sockets and tells how that went: at once, or from a thread where there is no fast open."""

    def __init__(self) -> None:
        self._room = threading.Semaphore(_MAX_WAITING)
        self._waiting: set[socket.socket] = set()

    def begin(self, sock: socket.socket, name: tuple[str, int], then: Callable[[int], None]) -> None:
        """Begin to connect, and call `then` once with the errno; 0 where it is connected. Any thread; never waits.

        Args:
            sock: Our descriptor of a caller's socket, open until `then` has been called.
            name: Where to, on loopback.
            then: Called by this thread, or by another one where there is no fast open. Sockets that block, and drop
                the answer that they wait for, can occupy 64 of these; then the others get EAGAIN.
        """
        error = connect_at_once(sock, *name) or errno.EISCONN  # 0: another call on it has connected it meanwhile
        if error == errno.EOPNOTSUPP:
            error = self._begin_aside(sock, name, then)
        if error != errno.EOPNOTSUPP:
            then(error)

    def close(self) -> None:
        """End the connects that still wait."""
        for sock in list(self._waiting):
            with contextlib.suppress(OSError):  # it has just ended
                sock.shutdown(socket.SHUT_RDWR)

    def _begin_aside(self, sock: socket.socket, name: tuple[str, int], then: Callable[[int], None]) -> int:
        if not self._room.acquire(blocking=False):
            return errno.EAGAIN
        try:
            threading.Thread(target=self._connect, args=(sock, name, then), name="connect", daemon=True).start()
        except RuntimeError:  # the machine gives no more threads
            self._room.release()
            return errno.EAGAIN
        return errno.EOPNOTSUPP

    def _connect(self, sock: socket.socket, name: tuple[str, int], then: Callable[[int], None]) -> None:
        self._waiting.add(sock)
        try:
            error = sock.connect_ex(name)
        finally:
            self._waiting.discard(sock)
            self._room.release()
        then(error)
