"""Telemetry as lines over time, without any plotting: what figures draw, and what live figures draw further. Pure.

A GPU's utilisation is drawn at the driver's own time stamps: each measurement once, never repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from jupyter_agentwatch.telemetry.model import GpuSample, Resources, Snapshot

__all__ = ["Chart", "GpuChart", "Line", "ResourcesChart", "SampleChart"]

_MIB: Final = 2**20
_GIB: Final = 2**30
_MEGA: Final = 1e6


@dataclass(slots=True)
class Line:
    """One quantity over time.

    Attributes:
        panel: Number of the panel that it is drawn in, from 0.
        group: What it is about, as "GPU 0": the lines of one group share colour and entry in the legend.
        part: What of it, where a panel has several lines of one group: "sandbox"; "" for the whole.
        t_ns: Unix time of each value, nanoseconds; never the same twice in a row.
        values: The values; None where it was not known.
    """

    panel: int
    group: str
    part: str
    t_ns: list[int] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)


class Chart(Protocol):
    """Lines over time, in panels below each other."""

    @property
    def title(self) -> str:
        """What is shown."""

    @property
    def panels(self) -> Sequence[tuple[str, str]]:
        """Name and unit of each panel."""

    @property
    def lines(self) -> list[Line]:
        """Every line, in the order in which they appeared."""

    @property
    def notes(self) -> list[str]:
        """What must be said beside the lines: errors, that there is no GPU, that nothing of it is real."""


class SampleChart(Chart, Protocol):
    """Lines that grow with each sample."""

    def feed(self, snapshot: Snapshot) -> None:
        """Take the next sample."""


class _Lines:
    """Lines by name, of at most `keep` points each."""

    def __init__(self, keep: int | None) -> None:
        self._keep = keep
        self._lines: dict[tuple[int, str, str], Line] = {}

    @property
    def lines(self) -> list[Line]:
        """Every line, in the order in which they appeared."""
        return list(self._lines.values())

    def _add(self, panel: int, group: str, t_ns: int, value: float | None, part: str = "") -> None:
        line = self._lines.setdefault((panel, group, part), Line(panel, group, part))
        if line.t_ns and t_ns <= line.t_ns[-1]:
            return  # the same measurement once more
        line.t_ns.append(t_ns)
        line.values.append(value)
        if self._keep is not None and len(line.t_ns) > self._keep:
            del line.t_ns[0], line.values[0]


class GpuChart(_Lines):
    """Utilisation, memory, power and temperature of each GPU, and the sandbox's part of the first two.

    Args:
        keep: Points kept of each line; None: all.
    """

    title = "GPUs"
    panels = (("utilisation", "%"), ("memory", "GiB"), ("power", "W"), ("temperature", "°C"))

    def __init__(self, keep: int | None = None) -> None:
        super().__init__(keep)
        self._last: Snapshot | None = None
        self._labels: dict[str, str] = {}

    @property
    def notes(self) -> list[str]:
        """Why there is no GPU, which one is in error, and what is not real."""
        if self._last is None:
            return ["no sample has come yet"]
        gone = self._last.no_gpu
        told = [f"No GPU: {gone.reason}"] if gone is not None else []
        if any(gpu.simulated for gpu in self._last.gpus):
            told.append("SIMULATED")
        if any(gpu.source == "trace" for gpu in self._last.gpus):
            told.append("RECORDED TRACE")
        return [*told, *(f"{_name(gpu)}: {gpu.error or gpu.state}" for gpu in self._last.gpus if gpu.state != "ok")]

    def feed(self, snapshot: Snapshot) -> None:
        """Take the next sample."""
        self._last = snapshot
        for gpu in snapshot.gpus:
            self._feed(gpu, self._labels.setdefault(gpu.uuid, _name(gpu)), snapshot.t_wall_ns)

    def _feed(self, gpu: GpuSample, name: str, t_ns: int) -> None:
        if gpu.state != "ok":
            for panel in range(len(self.panels)):
                self._add(panel, name, t_ns, None)  # a gap, not a line across it
            return
        for reading in gpu.readings:
            self._add(0, name, reading.t_ns, reading.percent)
        ours = [each for each in gpu.processes if each.member]
        if gpu.process_utilization:
            share = sum(each.utilization or 0.0 for each in ours)
            stamp = max((each.t_ns for each in ours), default=0)
            self._add(0, name, stamp or t_ns, min(100.0, share), "sandbox")
        if gpu.memory_used_bytes is not None:
            self._add(1, name, t_ns, gpu.memory_used_bytes / _GIB)
            self._add(1, name, t_ns, sum(each.memory_bytes or 0 for each in ours) / _GIB, "sandbox")
        if gpu.power_w is not None:
            self._add(2, name, t_ns, gpu.power_w)
        if gpu.temperature_c is not None:
            self._add(3, name, t_ns, gpu.temperature_c)


class ResourcesChart(_Lines):
    """CPU, memory, processes and storage of the sandbox.

    Args:
        keep: Points kept of each line; None: all.
    """

    title = "CPU, memory and storage of the sandbox"
    panels = (("CPU", "% of one core"), ("memory", "MiB"), ("alive", "count"), ("storage", "MB/s"))

    def __init__(self, keep: int | None = None) -> None:
        super().__init__(keep)
        self._before: Resources | None = None

    @property
    def notes(self) -> list[str]:
        """Whether nothing has come yet."""
        return [] if self._before is not None else ["no sample has come yet"]

    def feed(self, snapshot: Snapshot) -> None:
        """Take the next sample."""
        now, t_ns = snapshot.resources, snapshot.t_wall_ns
        self._add(0, "CPU", t_ns, now.cpu_percent)
        self._add(1, "resident memory", t_ns, now.rss_bytes / _MIB)
        self._add(2, "processes", t_ns, len(now.processes) + now.unread)
        self._add(2, "threads", t_ns, now.threads)
        before, self._before = self._before, now
        if before is not None and now.t_mono_ns > before.t_mono_ns:
            passed_s = (now.t_mono_ns - before.t_mono_ns) / 1e9
            self._add(3, "read", t_ns, max(0, now.read_bytes - before.read_bytes) / passed_s / _MEGA)
            self._add(3, "written", t_ns, max(0, now.write_bytes - before.write_bytes) / passed_s / _MEGA)


def _name(gpu: GpuSample) -> str:
    part = f" MIG {gpu.instance}" if gpu.instance else ""
    return f"GPU {gpu.index}{part}{' SIMULATED' if gpu.simulated else ''}"
