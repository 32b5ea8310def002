"""Ten minutes of a live dashboard: whether browser, kernel or supervisor grow. Only by `--soak`."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Final

import psutil

from tests.bench.browsing import browsing
from tests.bench.ground import Ground
from tests.bench.streaming import Meter
from tests.bench.table import Row
from tests.jupyter_page import LONG_MS, run_all

__all__ = ["slope", "soak"]

_MINUTES: Final = 10
_WARM_S: Final = 60
_CELL: Final = """
import os
from pathlib import Path
from jupyter_agentwatch import Watch
from jupyter_agentwatch.policy import Policy, Telemetry

Path("soak").mkdir()
watch = Watch(Policy(telemetry=Telemetry(simulate_gpus=8)), "soak")
watch.start("while :; do ls > /dev/null; python3 -c 'sum(range(10**6))'; sleep 1; done")
Path("pids").write_text(f"{os.getpid()} {watch.status().pid}")
"""
_SHOW: Final = "from jupyter_agentwatch.notebook.dashboard import Dashboard\nDashboard(watch)"


def soak(ground: Ground) -> list[Row]:
    """Look at the three every ten seconds, from a minute after the beginning on."""
    whole_s, every_s, warm_s = ground.n(_MINUTES * 60, 12), ground.n(10, 2), ground.n(_WARM_S, 3)
    times: list[float] = []
    taken: dict[str, list[float]] = {"browser": [], "kernel": [], "supervisor": []}
    with browsing() as (lab, page):
        meter = Meter(page)
        lab.notebook("soaking", [_CELL, _SHOW])
        run_all(page, lab, "soaking")
        page.locator(".aw-root[data-view=dashboard] .aw-panel-header[data-state]").wait_for(timeout=LONG_MS)
        kernel, supervisor = (psutil.Process(int(word)) for word in Path(lab.folder, "pids").read_text("utf-8").split())
        page.wait_for_timeout(1000 * warm_s)
        begun = time.monotonic()
        while time.monotonic() - begun < whole_s:
            times.append(time.monotonic() - begun)
            taken["browser"].append(meter.heap_mib())
            taken["kernel"].append(kernel.memory_info().rss / (1 << 20))
            taken["supervisor"].append(supervisor.memory_info().rss / (1 << 20))
            page.wait_for_timeout(1000 * every_s)
    return [_row(name, times, values) for name, values in taken.items()]


def _row(name: str, times: list[float], values: list[float]) -> Row:
    per_second, doubt = slope(times, values)
    beside = {
        "standard error": f"{600 * doubt:.3g} MiB",
        "first": f"{values[0]:.4g} MiB",
        "last": f"{values[-1]:.4g} MiB",
        "least": f"{min(values):.4g} MiB",
        "most": f"{max(values):.4g} MiB",
    }
    note = f"slope over {times[-1]:.0f} s of a live dashboard, after warming up"
    return Row(f"soak.{name}", 600 * per_second, len(values), beside, note)


def slope(times: list[float], values: list[float]) -> tuple[float, float]:
    """Return the slope of the least-squares line and its standard error.

    Args:
        times: At least three different ones.
        values: As many.
    """
    line = statistics.linear_regression(times, values)
    middle = statistics.fmean(times)
    residual = sum((value - line.intercept - line.slope * at) ** 2 for at, value in zip(times, values, strict=True))
    spread = sum((at - middle) ** 2 for at in times)
    return line.slope, (residual / (len(times) - 2) / spread) ** 0.5
