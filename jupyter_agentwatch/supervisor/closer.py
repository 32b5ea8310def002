"""Closes the supervisor's descriptors of what belongs to the sandbox, where nobody waits for the close.

The last close of a socket can take as long as its owner likes: SO_LINGER waits for a peer that reads nothing, and a
UNIX socket takes along whatever descriptors lie in its queue. A program inside makes ours the last one by closing its
own while its call is being judged. So no thread that anything else waits for may close such a descriptor.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from queue import SimpleQueue
from typing import Final

from jupyter_agentwatch.sandbox.tcp import TCP_CLOSE, tcp_state

__all__ = ["Closer"]

_MAX_THREADS: Final = 16
_NO_LINGER: Final = bytes(4)  # struct linger begins with whether it is on
_MAX_WAITING: Final = 1024


class Closer:
    """Closes on threads of its own, made as they are needed; a close that takes its time keeps one of them busy.

    Peers see the end of a connection when the last descriptor is closed, so a close must not wait without need.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[socket.socket | int | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self._closed = 0

    def close(self, what: socket.socket | int) -> None:
        """Close a socket, or a descriptor of anything, soon. Any thread; never waits.

        A socket must have no other user: it is closed by its object, so that a second close does nothing.
        """
        if isinstance(what, socket.socket) and _has_nothing_to_wait_for(what):
            what.close()  # at once, because the port that it is bound to may be wanted
            return
        self._queue.put(what)
        if not self._idle.acquire(blocking=False) and len(self._threads) < _MAX_THREADS:
            thread = threading.Thread(target=self._run, name="closer", daemon=True)
            self._threads.append(thread)
            thread.start()

    @property
    def is_full(self) -> bool:
        """So much waits to be closed that no more should be taken."""
        return self._queue.qsize() >= _MAX_WAITING

    def progress(self) -> int | None:
        """Return how much has been closed, or None where nothing waits for a thread."""
        return self._closed if len(self._threads) >= _MAX_THREADS and not self._queue.empty() else None

    def stop(self) -> None:
        """End the threads that are free, after what waits now has been closed."""
        for _ in self._threads:
            self._queue.put(None)

    def _run(self) -> None:
        while True:
            what = self._queue.get()
            if what is None:
                return
            with contextlib.suppress(OSError):
                if isinstance(what, int):
                    os.close(what)
                else:
                    what.close()
            del what  # or this socket's object would live on until the next one comes
            self._closed += 1
            self._idle.release()


def _has_nothing_to_wait_for(sock: socket.socket) -> bool:
    """Datagrams do not linger, nor do streams without a peer or without SO_LINGER, and none carries descriptors.

    A program that sets SO_LINGER between this look and the close makes us wait, if it also makes ours the last close;
    the watchdog ends a watch whose calls wait.
    """
    if sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return sock.family != socket.AF_UNIX and sock.type == socket.SOCK_DGRAM
    if sock.type == socket.SOCK_DGRAM:
        return True
    try:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 4) == _NO_LINGER or tcp_state(sock) == TCP_CLOSE
    except OSError:
        return False
