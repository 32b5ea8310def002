"""Begins connects, outside and on sockets that the sandbox shares with us: whether those block is for it to say.

Where the machine takes part in TCP fast open, one call does it. Where it does not, each connect gets a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from jupyter_agentwatch.policy import HOST_LOOPBACK
from jupyter_agentwatch.sandbox.sockaddr import Address

__all__ = ["Connects", "begin", "connect_at_once", "outcome_of", "resolve"]

_CONNECT_FLAGS: Final = socket.MSG_FASTOPEN | socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_MAX_WAITING: Final = 64

T = TypeVar("T")


def begin(address: Address) -> tuple[socket.socket, int]:
    """Begin to connect to an address outside; return our socket, and EINPROGRESS or how it has ended already."""
    destination: tuple[str, int] | tuple[str, int, int, int] = (address.host, address.port)
    if ":" in address.host:
        destination = (address.host, address.port, 0, address.scope)
    elif address.host == HOST_LOOPBACK:
        destination = ("127.0.0.1", address.port)
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    outside = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    error = outside.connect_ex(destination)
    if error != errno.EINPROGRESS:
        return outside, error
    try:
        outside.getpeername()  # on loopback a connect has ended when it returns
    except OSError:
        return outside, outside.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.EINPROGRESS
    return outside, 0


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


async def outcome_of(loop: asyncio.AbstractEventLoop, sock: socket.socket, timeout_s: float) -> int:
    """Wait until a connecting socket is writable; return its errno (ETIMEDOUT after `timeout_s` seconds)."""
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock, resolve, ready, None)
    try:
        await asyncio.wait_for(ready, timeout_s)
    except TimeoutError:
        return errno.ETIMEDOUT
    finally:
        loop.remove_writer(sock)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def resolve(future: asyncio.Future[T], value: T) -> None:
    """Give a future its value, unless it was given up meanwhile."""
    if not future.done():
        future.set_result(value)


class Connects:
    """Connects callers' sockets and tells how that went: at once, or from a thread where there is no fast open."""

    def __init__(self) -> None:
        self._room = threading.Semaphore(_MAX_WAITING)
        self._waiting: set[socket.socket] = set()
        self._is_over = False

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
        """End the connects that still wait; nobody is told any more."""
        self._is_over = True
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
        if not self._is_over:
            then(error)
