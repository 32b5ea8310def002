"""The telemetry samples that this process has been told of, kept in a bounded ring as they came.

They are decoded only when somebody looks: ten a second for hours are many, and most are never looked at.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from jupyter_agentwatch.telemetry.model import Snapshot

__all__ = ["MAX_BYTES", "Samples"]

MAX_BYTES: Final = 16 * 2**20
"""Bytes of samples that are kept: an hour of a small sandbox at 10 Hz, some minutes of a large one."""


class Samples:
    """A ring of samples. The reader thread puts, any thread looks.

    Attributes:
        left_out: Samples that the supervisor did not send because somebody was too slow.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        """Make an empty ring that keeps so many bytes."""
        self.left_out = 0
        self._max_bytes = max_bytes
        self._kept: deque[bytes] = deque()
        self._bytes = 0
        self._count = 0
        self._lock = threading.Lock()

    def put(self, sample: bytes, left_out: int) -> None:
        """Keep a sample, and forget the oldest ones where there are too many bytes."""
        with self._lock:
            self.left_out += left_out
            self._count += 1
            self._kept.append(sample)
            self._bytes += len(sample)
            while self._bytes > self._max_bytes and len(self._kept) > 1:
                self._bytes -= len(self._kept.popleft())

    def since(self, count: int = 0) -> tuple[int, list[Snapshot]]:
        """Return how many have come so far, and those after the first `count` as far as they are kept, oldest first."""
        from jupyter_agentwatch.telemetry.model import Snapshot

        with self._lock:
            now = self._count
            wanted = min(now - count, len(self._kept))
            chosen = list(self._kept)[len(self._kept) - wanted :] if wanted > 0 else []
        decoder = msgspec.msgpack.Decoder(Snapshot)
        return now, [decoder.decode(each) for each in chosen]
