"""What a command wrote, kept once, in the order in which it came, and readable from any place at any time."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

__all__ = ["Cursor", "Output"]


@dataclass(slots=True)
class Cursor:
    """One reader's place in an `Output`."""

    run: int = 0
    used: int = 0
    offsets: list[int] = field(default_factory=lambda: [0, 0])


class Output:
    """Two growing byte strings and the order in which they grew. One thread adds, any number read.

    The order is kept as the lengths of runs, 8 bytes each: a program that writes single bytes to standard output
    and standard error by turns cannot make it cost more than a small multiple of what it wrote, as a list of
    pieces would.
    """

    def __init__(self, limit: int) -> None:
        """Keep at most `limit` bytes of each stream."""
        self._limit = limit
        self._streams = (bytearray(), bytearray())
        self._runs = array("Q")

    def add(self, stream: int, data: bytes) -> None:
        """Append a piece of `stream` (1 or 2); what exceeds the limit, and any other stream, is dropped."""
        if stream not in {1, 2}:
            return
        kept = self._streams[stream - 1]
        data = data[: self._limit - len(kept)]
        if not data:
            return
        # A reader goes by the runs, so the bytes must be there first.
        kept += data
        bit = stream - 1
        if self._runs and self._runs[-1] & 1 == bit:
            self._runs[-1] += len(data) << 1
        else:
            self._runs.append(len(data) << 1 | bit)

    def read(self, cursor: Cursor) -> tuple[int, bytes] | None:
        """Return the next piece after `cursor` and move it on; None where there is nothing yet."""
        while cursor.run < len(self._runs):
            # Asked before the length is read: a run that is not the last one can no longer grow.
            is_last = cursor.run == len(self._runs) - 1
            value = self._runs[cursor.run]
            bit, length = value & 1, value >> 1
            if length > cursor.used:
                start = cursor.offsets[bit]
                end = start + length - cursor.used
                cursor.used = length
                cursor.offsets[bit] = end
                return bit + 1, bytes(self._streams[bit][start:end])
            if is_last:
                return None
            cursor.run += 1
            cursor.used = 0
        return None

    def kept(self, stream: int) -> bytes:
        """Return all that is kept of a stream."""
        return bytes(self._streams[stream - 1])

    def is_full(self, stream: int) -> bool:
        """No further byte of this stream will be kept."""
        return len(self._streams[stream - 1]) >= self._limit
