"""Flows of which no byte has come yet: the control thread is woken by the first one, not by the connect.

On a virtual machine, waking another thread costs more than all the rest of a connect, and the two threads would then
compete for the interpreter while the caller waits.
"""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from jupyter_agentwatch.sandbox.flow import FlowSpec, FlowState

__all__ = ["QuietFlows"]

_MAX: Final = 256
"""Flows that are kept. What comes beyond begins at once, so that the gateway's own bound holds."""

_BATCH: Final = 64
_SPEAKS: Final = select.EPOLLIN | select.EPOLLRDHUP


class _Quiet(NamedTuple):
    spec: FlowSpec
    inside: socket.socket
    outside: socket.socket
    since: float


class QuietFlows:
    """Joined connections before their first byte. `add` and `states` may be called from any thread.

    Args:
        loop: The control thread's loop.
        begin: Called by the loop for each flow when one of its ends has something to say, a close perhaps.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, begin: Callable[[FlowSpec, socket.socket, socket.socket], None]
    ) -> None:
        self._loop = loop
        self._begin = begin
        self._epoll = select.epoll()
        self._lock = threading.Lock()
        self._waiting: dict[int, _Quiet] = {}  # each flow twice: by either end's descriptor
        loop.call_soon_threadsafe(self._watch)

    def add(self, spec: FlowSpec, inside: socket.socket, outside: socket.socket) -> None:
        """Keep a flow until one of its ends speaks; both sockets are taken over."""
        if len(self._waiting) >= 2 * _MAX:
            self._loop.call_soon_threadsafe(self._begin, spec, inside, outside)
            return
        quiet = _Quiet(spec, inside, outside, time.monotonic())
        with self._lock:
            self._waiting[inside.fileno()] = self._waiting[outside.fileno()] = quiet
            self._epoll.register(outside, _SPEAKS)
            self._epoll.register(inside, _SPEAKS)

    def states(self) -> list[FlowState]:
        """Return a snapshot of the flows that are kept."""
        with self._lock:
            kept = {id(quiet): quiet for quiet in self._waiting.values()}.values()
        now = time.monotonic()
        return [FlowState(quiet.spec, "held", "", "", 0, 0, now - quiet.since) for quiet in kept]

    def begin_all(self) -> None:
        """Begin every flow that is kept: the watch ends. For the loop's thread."""
        with self._lock:
            descriptors = list(self._waiting)
        for fd in descriptors:
            self._take(fd)

    def close(self) -> None:
        """Keep no flow any more. For the loop's thread, when nothing is kept."""
        self._loop.remove_reader(self._epoll)
        self._epoll.close()

    def _watch(self) -> None:
        if not self._epoll.closed:
            self._loop.add_reader(self._epoll, self._look)

    def _look(self) -> None:
        for fd, _ in self._epoll.poll(0, _BATCH):
            self._take(fd)

    def _take(self, fd: int) -> None:
        with self._lock:
            quiet = self._waiting.pop(fd, None)
            if quiet is None:
                return
            for sock in (quiet.inside, quiet.outside):
                self._waiting.pop(sock.fileno(), None)
                self._epoll.unregister(sock)
        self._begin(quiet.spec, quiet.inside, quiet.outside)
