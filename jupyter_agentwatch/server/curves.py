"""Telemetry as browsers get it: names of lines as JSON, their new points as few bytes, whatever number of samples came.

Pure; one thread at a time. Charts decide what a line is, here as in the kernel's figures.
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from jupyter_agentwatch.errors import ControlError
from jupyter_agentwatch.server.render import encode, safe
from jupyter_agentwatch.telemetry.model import Snapshot
from jupyter_agentwatch.watch.charts import GpuChart, Line, ResourcesChart, SampleChart

__all__ = ["POINTS", "Curves", "News", "Packed"]

POINTS: Final = 600
"""Points that are kept of each line: a minute at 10 Hz."""

_VERSION: Final = 1
_HEAD: Final = struct.Struct("<IId")
_RUN: Final = struct.Struct("<II")
_MS: Final = 1_000_000
_DECODER: Final = msgspec.msgpack.Decoder(Snapshot)


class Packed(bytes):
    """A message that is not text: points of lines.

    Little endian: u32 version (1), u32 number of runs, f64 base (Unix time, milliseconds); then for each run u32 number
    of the line, u32 count, so many f32 milliseconds after the base, so many f32 values, NaN for what is not known.
    """


@dataclass(frozen=True, slots=True)
class News:
    """What a browser is to be sent.

    Attributes:
        lines: JSON that names the lines, in the order of their numbers; None where nothing of it has changed.
        points: Points that are new; None where there are none.
    """

    lines: bytes | None
    points: Packed | None

    @property
    def messages(self) -> list[bytes]:
        """Both, as far as they are there: the names first."""
        return [each for each in (self.lines, self.points) if each is not None]


class Curves:
    """The lines of one run, of which a browser has all but what is new."""

    def __init__(self) -> None:
        """Begin without any line."""
        self._charts: dict[str, SampleChart] = {"gpu": GpuChart(POINTS), "resources": ResourcesChart(POINTS)}
        self._numbers: dict[tuple[str, int, str, str], int] = {}
        self._sent_ns: list[int] = []
        self._said = b""

    def take(self, samples: Sequence[bytes]) -> News:
        """Take samples, and return what is new by them.

        Args:
            samples: MessagePack of `telemetry.model.Snapshot`, in their order.

        Raises:
            ControlError: One of them is no sample.
        """
        for sample in samples:
            try:
                snapshot = _DECODER.decode(sample)
            except (msgspec.DecodeError, RecursionError) as error:
                msg = f"the supervisor sent what is not a sample: {error}"
                raise ControlError(msg) from error
            for chart in self._charts.values():
                chart.feed(snapshot)
        lines = self._lines()
        for key, _ in lines:
            if key not in self._numbers:
                self._numbers[key] = len(self._numbers)
                self._sent_ns.append(-1)
        said = self._names()
        changed, self._said = (said if said != self._said else None), said
        new = [
            (number, _after(line, self._sent_ns[number])) for (key, line) in lines for number in [self._numbers[key]]
        ]
        for number, (stamps, _) in new:
            self._sent_ns[number] = stamps[-1] if stamps else self._sent_ns[number]
        return News(changed, _packed(new))

    def whole(self) -> News:
        """Return everything that is kept, for a browser that begins to look."""
        return News(self._names(), _packed([(self._numbers[key], _after(line, -1)) for key, line in self._lines()]))

    def _lines(self) -> list[tuple[tuple[str, int, str, str], Line]]:
        return [
            ((name, line.panel, line.group, line.part), line)
            for name, chart in self._charts.items()
            for line in chart.lines
        ]

    def _names(self) -> bytes:
        lines: list[Any] = [
            {"chart": chart, "panel": panel, "group": group, "part": part}
            for chart, panel, group, part in self._numbers
        ]
        notes = {name: chart.notes for name, chart in self._charts.items()}
        return encode({"type": "lines", "lines": safe(lines), "notes": safe(notes)})


_Points = tuple[Sequence[int], Sequence[float | None]]


def _after(line: Line, t_ns: int) -> _Points:
    first = len(line.t_ns)
    while first > 0 and line.t_ns[first - 1] > t_ns:
        first -= 1
    return line.t_ns[first:], line.values[first:]


def _packed(lines: Sequence[tuple[int, _Points]]) -> Packed | None:
    runs = [(number, points) for number, points in lines if points[0]]
    if not runs:
        return None
    base_ms = min(stamps[0] for _, (stamps, _) in runs) / _MS
    parts = [_HEAD.pack(_VERSION, len(runs), base_ms)]
    for number, (stamps, values) in runs:
        parts.append(_RUN.pack(number, len(stamps)))
        parts.append(_floats([t_ns / _MS - base_ms for t_ns in stamps]))
        parts.append(_floats([math.nan if value is None else value for value in values]))
    return Packed(b"".join(parts))


def _floats(values: list[float]) -> bytes:
    found = array("f", values)
    if sys.byteorder == "big":
        found.byteswap()
    return found.tobytes()
