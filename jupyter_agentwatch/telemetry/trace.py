"""Recorded GPU traces: JSON Lines with a version, checked line by line before anything of them is shown.

A trace may come from anywhere, so it is hostile: bounded in size, no unknown field, no number out of range, and nothing
in it is ever put down to a process of this machine.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from jupyter_agentwatch.errors import AgentwatchError
from jupyter_agentwatch.events import printable
from jupyter_agentwatch.telemetry.model import GpuProcess, GpuSample, GpuSource, NoGpu, ProcessSample, Reading

__all__ = ["MAX_TRACE_BYTES", "TRACE_VERSION", "TraceError", "TraceGpus", "TraceHeader", "TraceTick", "read_trace"]

TRACE_VERSION: Final = 1
"""Version of the format that is written, and the only one that is read."""

MAX_TRACE_BYTES: Final = 64 * 2**20
"""Size of a trace at most."""

_MAX_LINE: Final = 2**20
_MAX_SPEED: Final = 1000.0


class TraceError(AgentwatchError):
    """A trace cannot be read or recorded; the text names file, line and reason."""


class TraceHeader(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """First line of a trace.

    Attributes:
        format: What this is.
        version: Version of the format.
        recorded: Backend that it was recorded from.
        t_wall_ns: Unix time of the recording's begin, nanoseconds.
        note: What ran, in a person's words.
    """

    format: Literal["agentwatch-gpu-trace"]
    version: int
    recorded: GpuSource
    t_wall_ns: Annotated[int, Meta(ge=0, le=2**62)]
    note: Annotated[str, Meta(max_length=1000)] = ""


class TraceTick(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every other line: all devices at one moment.

    Attributes:
        t_s: Seconds since the recording's begin; never less than in the line before.
        gpus: The devices.
    """

    t_s: Annotated[float, Meta(ge=0, le=1e7)]
    gpus: Annotated[list[GpuSample], Meta(max_length=128)]


_Line = TypeVar("_Line", TraceHeader, TraceTick)

_HEADER: Final = msgspec.json.Decoder(TraceHeader)
_TICK: Final = msgspec.json.Decoder(TraceTick)


class TraceGpus:
    """The `telemetry.backend.GpuBackend` of a recorded trace: it begins with the first sample that is asked for.

    Time stamps are moved to now, and drawn out or together with `speed`, so that the distance of two measurements is
    that of the replay. After the last line every device has the state "ended".

    Args:
        path: The trace.
        speed: Seconds of the trace for each second that passes, above 0 and up to 1000.

    Raises:
        TraceError: It is not a trace; the text names the line.
        ValueError: `speed` is out of range.
    """

    no_gpu: NoGpu | None

    def __init__(self, path: str | Path, *, speed: float = 1.0) -> None:
        if not 0 < speed <= _MAX_SPEED:
            msg = f"speed of a trace: {speed} is not above 0 and up to {_MAX_SPEED:g}"
            raise ValueError(msg)
        self._header, self._ticks = read_trace(path)
        self._times = [tick.t_s for tick in self._ticks]
        self._speed = speed
        self._began: tuple[int, int] | None = None
        self._next = 0
        has_devices = any(tick.gpus for tick in self._ticks)
        self.no_gpu = None if has_devices else NoGpu(kind="device", reason="the recorded trace has no GPU in it")

    def sample(self, t_mono_ns: int, t_wall_ns: int, processes: Sequence[ProcessSample] = ()) -> list[GpuSample]:
        """Go on to `t_mono_ns`; see `telemetry.backend.GpuBackend.sample`."""
        del processes
        if self._began is None:
            self._began = t_mono_ns, t_wall_ns
        position = (t_mono_ns - self._began[0]) / 1e9 * self._speed
        until = max(1, bisect_right(self._times, position))
        passed, self._next = self._ticks[self._next : until], max(self._next, until)
        latest = self._ticks[until - 1]
        is_over = position > self._times[-1]
        return [self._replayed(gpu, passed, t_mono_ns, t_wall_ns, is_over=is_over) for gpu in latest.gpus]

    def close(self) -> None:
        """Nothing is held."""

    def _replayed(
        self, gpu: GpuSample, passed: Sequence[TraceTick], t_mono_ns: int, t_wall_ns: int, *, is_over: bool
    ) -> GpuSample:
        # Lines that went by between two ticks are not shown, but their measurements are distinct ones: they stay.
        same = [other for tick in passed for other in tick.gpus if other.uuid == gpu.uuid and other.index == gpu.index]
        readings = [
            Reading(t_ns=self._moved(reading.t_ns), percent=reading.percent)
            for other in same
            for reading in other.readings
        ]
        stamps: dict[str, Any] = {"t_mono_ns": t_mono_ns, "t_wall_ns": t_wall_ns}
        if is_over:
            identity: dict[str, Any] = {
                name: getattr(gpu, name) for name in ("index", "uuid", "name", "parent_uuid", "instance")
            }
            over = GpuSample(**identity, **stamps, source="trace", state="ended", error="the recorded trace is over")
            return msgspec.structs.replace(over, simulated=self._is_simulated(gpu), readings=readings)
        return msgspec.structs.replace(
            gpu,
            **stamps,
            source="trace",
            simulated=self._is_simulated(gpu),
            readings=readings,
            xids=[xid for other in same for xid in other.xids][:64],
            processes=[self._nobodys(process) for process in gpu.processes],
        )

    def _is_simulated(self, gpu: GpuSample) -> bool:
        return gpu.simulated or self._header.recorded == "simulated"

    def _nobodys(self, process: GpuProcess) -> GpuProcess:
        return msgspec.structs.replace(
            process,
            sandbox_pid=0,
            start_ticks=0,
            member=None,
            attribution="none",
            step=0,
            t_ns=self._moved(process.t_ns) if process.t_ns else 0,
        )

    def _moved(self, t_ns: int) -> int:
        began = self._began[1] if self._began is not None else 0
        return max(0, began + round((t_ns - self._header.t_wall_ns) / self._speed))


def read_trace(path: str | Path) -> tuple[TraceHeader, list[TraceTick]]:
    """Read and check a whole trace.

    Raises:
        TraceError: It cannot be read, is too large, or a line is not what it must be.
    """
    name = printable(str(path))
    lines = _bytes(path, name).split(b"\n")
    if lines[-1]:
        msg = f"{name}: line {len(lines)}: it has no end; the file was cut off"
        raise TraceError(msg)
    header = _decoded(_HEADER, lines[0], name, 1)
    if header.version != TRACE_VERSION:
        msg = f"{name}: line 1: version {header.version} of the format; this program reads version {TRACE_VERSION}"
        raise TraceError(msg)
    ticks: list[TraceTick] = []
    for number, line in enumerate(lines[1:-1], 2):
        tick = _decoded(_TICK, line, name, number)
        if ticks and tick.t_s < ticks[-1].t_s:
            msg = f"{name}: line {number}: t_s: {tick.t_s:g} s comes after {ticks[-1].t_s:g} s; time must not go back"
            raise TraceError(msg)
        ticks.append(tick)
    if not ticks:
        msg = f"{name}: line 2: a header without samples; record for longer"
        raise TraceError(msg)
    return header, ticks


def _bytes(path: str | Path, name: str) -> bytes:
    try:
        # Not blocking: opening a FIFO must not wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                msg = f"{name}: a trace must be a regular file"
                raise TraceError(msg)
            data = file.read(MAX_TRACE_BYTES + 1)
    except (OSError, ValueError) as error:
        msg = f"{name}: the trace cannot be read: {error}"
        raise TraceError(msg) from error
    if len(data) > MAX_TRACE_BYTES:
        msg = f"{name}: the trace has more than {MAX_TRACE_BYTES} bytes; record less"
        raise TraceError(msg)
    if not data:
        msg = f"{name}: line 1: the file is empty; a trace begins with a header"
        raise TraceError(msg)
    return data


def _decoded(decoder: msgspec.json.Decoder[_Line], line: bytes, name: str, number: int) -> _Line:
    if len(line) > _MAX_LINE:
        msg = f"{name}: line {number}: longer than {_MAX_LINE} bytes"
        raise TraceError(msg)
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        msg = f"{name}: line {number}: {printable(str(error))}"
        raise TraceError(msg) from error
