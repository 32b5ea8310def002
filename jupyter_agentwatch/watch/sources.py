"""What figures are made from: each source takes what is new, and describes the figure as it is then."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, Protocol, get_args

from jupyter_agentwatch.audit.reader import LogTail
from jupyter_agentwatch.watch.charts import GpuChart, ResourcesChart, SampleChart
from jupyter_agentwatch.watch.connections import ConnectionGrapher, folded_by_host
from jupyter_agentwatch.watch.figures import FigureSpec, chart_spec, graph_spec
from jupyter_agentwatch.watch.reward_chart import RewardChart
from jupyter_agentwatch.watch.samples import Samples

__all__ = ["FigureName", "Source", "open_source"]

FigureName = Literal["gpu", "resources", "connections", "reward"]
"""What a figure shows."""

_BATCH: Final = 4096


class Source(Protocol):
    """What one figure is made from. One thread at a time."""

    def update(self) -> bool:
        """Take what is new; returns whether the figure has changed by it."""

    def spec(self) -> FigureSpec:
        """Describe the figure as it is now."""


def open_source(name: FigureName, samples: Samples, log: Path, keep: int | None = None) -> Source:
    """Return what a figure is made from.

    Args:
        name: Which figure.
        samples: The telemetry.
        log: Path of the audit log.
        keep: Points kept of each line over time; None: all.

    Raises:
        ValueError: There is no such figure.
    """
    if name not in get_args(FigureName):
        msg = f"figure: {name!r} is none of {', '.join(get_args(FigureName))}"
        raise ValueError(msg)
    if name == "connections":
        return _Recorded(log)
    if name == "reward":
        return _Rewarded(log)
    return _Sampled(samples, GpuChart(keep) if name == "gpu" else ResourcesChart(keep))


class _Sampled:
    """Lines over time, from samples."""

    def __init__(self, samples: Samples, chart: SampleChart) -> None:
        self._samples = samples
        self._chart = chart
        self._taken = 0

    def update(self) -> bool:
        self._taken, new = self._samples.since(self._taken)
        for snapshot in new:
            self._chart.feed(snapshot)
        return bool(new)

    def spec(self) -> FigureSpec:
        return chart_spec(self._chart)


class _Recorded:
    """The connection graph, from the log."""

    def __init__(self, log: Path) -> None:
        self._tail = LogTail(log)
        self._grapher = ConnectionGrapher()

    def update(self) -> bool:
        has_changed = False
        while events := self._tail.read_new(_BATCH):
            for event in events:
                has_changed |= self._grapher.feed(event)
        return has_changed

    def spec(self) -> FigureSpec:
        return graph_spec(folded_by_host(self._grapher.graph()))


class _Rewarded:
    """What runs of agents earned, from the log."""

    def __init__(self, log: Path) -> None:
        self._tail = LogTail(log)
        self._chart = RewardChart()

    def update(self) -> bool:
        has_changed = False
        while events := self._tail.read_new(_BATCH):
            for event in events:
                has_changed |= self._chart.feed(event)
        return has_changed

    def spec(self) -> FigureSpec:
        return chart_spec(self._chart)
