"""Passes every record on to the clients that asked for records, off the thread that made it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection

from jupyter_agentwatch.supervisor.control import Connection

__all__ = ["EventFan"]


class EventFan:
    """A queue from the recording threads to the subscribed connections.

    Args:
        loop: The control thread's loop.
        connections: All clients, subscribed or not; the supervisor's own living set.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, connections: Collection[Connection]) -> None:
        self._loop = loop
        self._connections = connections
        self._unsent: list[bytes] = []
        self._lock = threading.Lock()

    def put(self, body: bytes) -> None:
        """Queue a record. Any thread, under the recorder's lock: it only queues, and wakes the loop for the first."""
        if not any(connection.is_subscribed for connection in tuple(self._connections)):
            return
        with self._lock:
            self._unsent.append(body)
            first = len(self._unsent) == 1
        if first:
            self._loop.call_soon_threadsafe(self._send)

    def _send(self) -> None:
        with self._lock:
            batch, self._unsent = self._unsent, []
        for connection in tuple(self._connections):
            if connection.is_subscribed:
                connection.send_events(batch)
