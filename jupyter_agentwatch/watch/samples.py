"""The telemetry samples that this process has been told of, kept in a bounded ring of compressed blocks.

They are decoded only when somebody looks: ten a second for hours are many, and most are never looked at. One is much
like the one before, so that a block takes a small part of what its samples would take.
"""

from __future__ import annotations

import threading
import zlib
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from jupyter_agentwatch.telemetry.model import Snapshot

__all__ = ["MAX_BYTES", "Samples"]

MAX_BYTES: Final = 4 * 2**20
"""Bytes that are kept: hours of a small sandbox at 10 Hz, some twenty minutes of one with eight GPUs."""

_BLOCK_BYTES: Final = 64 * 1024
_ARRAY32: Final = b"\xdd"
"""How MessagePack begins an array whose length follows in four bytes."""


class Samples:
    """A ring of samples. The reader thread puts, any thread looks.

    Attributes:
        left_out: Samples that the supervisor did not send because somebody was too slow.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        """Make an empty ring that keeps so many bytes."""
        self.left_out = 0
        self._max_bytes = max_bytes
        self._block_bytes = min(_BLOCK_BYTES, max_bytes // 8)
        self._blocks: deque[tuple[int, bytes]] = deque()
        """How many samples, and these as one compressed array."""
        self._newest: list[bytes] = []
        self._newest_bytes = 0
        self._bytes = 0
        self._count = 0
        self._lock = threading.Lock()

    def put(self, sample: bytes, left_out: int) -> None:
        """Keep a sample, and forget the oldest ones where there are too many bytes."""
        with self._lock:
            self.left_out += left_out
            self._count += 1
            self._newest.append(sample)
            self._newest_bytes += len(sample)
            if self._newest_bytes < self._block_bytes:
                return
            block = zlib.compress(_array(self._newest), 1)
            self._blocks.append((len(self._newest), block))
            self._bytes += len(block)
            self._newest, self._newest_bytes = [], 0
            while self._bytes > self._max_bytes and len(self._blocks) > 1:
                self._bytes -= len(self._blocks.popleft()[1])

    def since(self, count: int = 0) -> tuple[int, list[Snapshot]]:
        """Return how many have come so far, and those after the first `count` as far as they are kept, oldest first."""
        from jupyter_agentwatch.telemetry.model import Snapshot

        with self._lock:
            now = self._count
            wanted = now - count
            arrays, found = [_array(self._newest)], len(self._newest)
            for number, block in reversed(self._blocks):
                if found >= wanted:
                    break
                arrays.append(block)
                found += number
        if wanted <= 0:
            return now, []
        decode = msgspec.msgpack.Decoder(list[Snapshot]).decode
        kept = [each for block in reversed(arrays[1:]) for each in decode(zlib.decompress(block))]
        return now, (kept + decode(arrays[0]))[-wanted:]


def _array(samples: list[bytes]) -> bytes:
    return b"".join((_ARRAY32, len(samples).to_bytes(4, "big"), *samples))
