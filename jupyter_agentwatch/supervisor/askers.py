"""Who asks the DNS stub: the stub sees a source port only, the broker made the connection that the port belongs to.

A port alone does not say it: another task may have got it since, by a `sendmsg` that is not trapped. So a datagram is
put down to who had its port only where the kernel says that the port is still the same socket's.
"""

from __future__ import annotations

import os
import socket
import time
from collections import OrderedDict
from typing import Final, NamedTuple

from jupyter_agentwatch.sandbox.tasks import Task

__all__ = ["DNS_PORT", "DnsAskers"]

DNS_PORT: Final = 53
"""Where the stub listens inside."""

_KEPT: Final = 4096
_TABLE_BYTES: Final = 1 << 16
"""How much of the kernel's table is read, some 500 sockets: a program that opens thousands must not slow the loop."""

_JUST_NOW_S: Final = 0.05
"""A socket that has been closed already may have sent a query so many seconds ago."""


class _Note(NamedTuple):
    task: Task
    inode: int
    made: float


class DnsAskers:
    """Local ports inside by what they were used for last. Filled by the broker's threads, asked by the loop's.

    Args:
        init_pid: A process in the sandbox's network namespace.
    """

    def __init__(self, init_pid: int) -> None:
        self._tables = (f"/proc/{init_pid}/net/udp", f"/proc/{init_pid}/net/udp6")
        self._notes: OrderedDict[tuple[bool, int], _Note] = OrderedDict()

    def note(self, sock: socket.socket, task: Task) -> None:
        """Remember that a socket, just connected to the stub or sent from, is a task's."""
        name = sock.getsockname()
        key = (sock.type == socket.SOCK_DGRAM, int(name[1]))
        self._notes[key] = _Note(task, os.fstat(sock.fileno()).st_ino, time.monotonic())
        self._notes.move_to_end(key)
        while len(self._notes) > _KEPT:
            self._notes.popitem(last=False)

    def who(self, port: int, *, is_udp: bool) -> Task:
        """Return the task behind a source port; step 0 where it is not known."""
        noted = self._notes.get((is_udp, port))
        # Every stream was connected by the broker, which has noted it since its port was another's.
        if noted is not None and (not is_udp or self._is_still(noted, port)):
            return noted.task
        return Task(0, 0)

    def _is_still(self, noted: _Note, port: int) -> bool:
        inodes = {inode for table in self._tables for inode in _inodes(table, port)}
        return inodes == {noted.inode} or (not inodes and time.monotonic() - noted.made < _JUST_NOW_S)


def _inodes(table: str, port: int) -> list[int]:
    """Return the sockets that have a local port, as far as the beginning of a table shows them."""
    try:
        fd = os.open(table, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []  # the sandbox has just ended
    try:
        text = os.read(fd, _TABLE_BYTES)
        while len(text) < _TABLE_BYTES and (piece := os.read(fd, _TABLE_BYTES)):
            text += piece
    except OSError:
        return []
    finally:
        os.close(fd)
    end = b":%04X" % port
    rows = (row.split() for row in text.split(b"\n")[1:] if end in row)
    return [int(row[9]) for row in rows if len(row) > 9 and row[1].endswith(end)]
