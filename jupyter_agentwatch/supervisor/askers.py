"""Who asks the DNS stub: the stub sees a source port only, the broker made the connection that the port belongs to."""

from __future__ import annotations

import socket
from collections import OrderedDict
from typing import Final

from jupyter_agentwatch.sandbox.tasks import Task

__all__ = ["DNS_PORT", "DnsAskers"]

DNS_PORT: Final = 53
"""Where the stub listens inside."""

_KEPT: Final = 4096


class DnsAskers:
    """Local ports inside by what they were used for last. Filled by the broker's threads, asked by the loop's."""

    def __init__(self) -> None:
        self._tasks: OrderedDict[tuple[bool, int], Task] = OrderedDict()

    def note(self, sock: socket.socket, task: Task) -> None:
        """Remember that a socket, just connected to the stub or sent from, is a task's."""
        name = sock.getsockname()
        key = (sock.type == socket.SOCK_DGRAM, int(name[1]))
        self._tasks[key] = task
        self._tasks.move_to_end(key)
        while len(self._tasks) > _KEPT:
            self._tasks.popitem(last=False)

    def who(self, port: int, *, is_udp: bool) -> Task:
        """Return the task behind a source port; step 0 where it is not known."""
        return self._tasks.get((is_udp, port), Task(0, 0))
