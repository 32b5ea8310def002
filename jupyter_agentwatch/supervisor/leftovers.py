"""Pipes of commands that have ended, held open by orphans: read and dropped, so that an orphan never blocks on them."""

from __future__ import annotations

import asyncio
import os
from typing import Final

__all__ = ["Leftovers"]

_CHUNK: Final = 256 * 1024


class Leftovers:
    """Descriptors to read from until their other end is closed. Belongs to the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._fds: set[int] = set()

    def take(self, fd: int) -> None:
        """Take over a descriptor that nobody else reads."""
        self._fds.add(fd)
        self._loop.add_reader(fd, self._drop, fd)

    def close(self) -> None:
        """Close all of them."""
        for fd in list(self._fds):
            self._close(fd)

    def _drop(self, fd: int) -> None:
        try:
            if os.read(fd, _CHUNK):
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # EIO: the terminal's other side is closed
        self._close(fd)

    def _close(self, fd: int) -> None:
        self._fds.discard(fd)
        self._loop.remove_reader(fd)
        os.close(fd)
