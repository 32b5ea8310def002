"""Connects to something inside the sandbox, which may block as long as its peer likes: each on a thread of its own."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from jupyter_agentwatch.sandbox.notify import Listener, Notification
from jupyter_agentwatch.sandbox.sockaddr import connect_raw
from jupyter_agentwatch.sandbox.tasks import Task
from jupyter_agentwatch.supervisor.askers import DnsAskers
from jupyter_agentwatch.supervisor.closer import Closer

__all__ = ["InsideConnects"]

_NO_FAMILY: Final = bytes(2)  # dissolves an association
_WAITING: Final = 64
_LINGER_SIZE: Final = 8  # struct linger: whether, and for how long


class InsideConnects:
    """Performs connects that were judged, and answers their callers.

    Args:
        listener: Where callers wait.
        askers: Told whose socket a query will come from.
        closer: Closes our descriptors of callers' sockets.
        connected: Told of each socket that has a peer from now on.
    """

    def __init__(
        self, listener: Listener, askers: DnsAskers, closer: Closer, connected: Callable[[socket.socket], None]
    ) -> None:
        self._connected = connected
        self._listener = listener
        self._askers = askers
        self._closer = closer
        self._waiting = threading.Semaphore(_WAITING)
        self._workers = ThreadPoolExecutor(_WAITING, thread_name_prefix="blocking-connect")
        self._blocked: set[socket.socket] = set()

    def perform(
        self, n: Notification, sock: socket.socket, raw: bytes, held: int = -1, asker: Task | None = None
    ) -> None:
        """Connect a socket with exactly these bytes. Never waits.

        Whatever O_NONBLOCK says, a stream is connected by another thread: the caller can change it meanwhile.

        Args:
            n: The caller's notification.
            sock: Our descriptor of its socket; taken over.
            raw: The address.
            held: A descriptor that `raw` goes through, or -1; taken over.
            asker: Who will ask for names by this socket, or None.
        """
        if sock.type == socket.SOCK_DGRAM:
            self._connect(n, sock, raw, held, asker)
        elif self._waiting.acquire(blocking=False):
            work = self._workers.submit(self._connect, n, sock, raw, held, asker)
            work.add_done_callback(lambda _: self._waiting.release())
        else:
            self._release(sock, held)
            self._listener.finish(n.id, errno.EAGAIN)

    def close(self) -> None:
        """Let go of threads that still wait: a connect that nobody answers would hold up our end for minutes."""
        self._workers.shutdown(wait=False, cancel_futures=True)
        for sock in list(self._blocked):
            with contextlib.suppress(OSError):  # it has just ended
                sock.shutdown(socket.SHUT_RDWR)

    def _connect(self, n: Notification, sock: socket.socket, raw: bytes, held: int, asker: Task | None) -> None:
        self._blocked.add(sock)
        error = connect_raw(sock.fileno(), raw)
        self._blocked.discard(sock)
        if asker is not None:
            self._askers.note(sock, asker)
        if error in {0, errno.EINPROGRESS} and raw[:2] != _NO_FAMILY:
            self._connected(sock)
        # Before the answer: what the caller does with its connection afterwards must not find us holding it.
        self._release(sock, held)
        self._listener.finish(n.id, error)

    def _release(self, sock: socket.socket, held: int) -> None:
        if sock.family != socket.AF_UNIX and not any(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_SIZE)
        ):
            sock.close()
        else:
            self._closer.close(sock)
        if held >= 0:
            self._closer.close(held)
