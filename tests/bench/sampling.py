"""What measuring the sandbox costs, and how much the browser has to load."""

from __future__ import annotations

import gzip
import time
from pathlib import Path
from typing import Final

import jupyter_agentwatch
from jupyter_agentwatch import Watch
from jupyter_agentwatch.policy import Policy, Telemetry
from tests.bench.events import cpu_s
from tests.bench.ground import PYTHON, Ground, MeasureError
from tests.bench.table import Row

__all__ = ["bundle", "sampling"]

_CROWD: Final = 100


def sampling(ground: Ground) -> list[Row]:
    """Compare two supervisors of a hundred sleeping processes each, of which one measures a hundredth as often."""
    seconds = ground.n(30, 5)
    shares = {}
    for name, hz in (("often", 10.0), ("hardly ever", 0.1)):
        with ground.session(Policy(telemetry=Telemetry(hz=hz)), ground.stage(f"sampling-{name}")) as watch:
            _await_crowd(watch)
            pid = watch.status().pid
            time.sleep(3)
            before, begun = cpu_s(pid), time.monotonic()
            time.sleep(seconds)
            shares[name] = (cpu_s(pid) - before) / (time.monotonic() - begun) * 100
    beside = {"supervisor at 10 Hz": f"{shares['often']:.3g} %", "at 0.1 Hz": f"{shares['hardly ever']:.3g} %"}
    return [Row("sampling.cpu", shares["often"] - shares["hardly ever"], 1, beside, f"over {seconds} s each")]


def _await_crowd(watch: Watch) -> None:
    running = watch.start([PYTHON, "-I", "-S", "crowd.py", "programs", str(_CROWD)])
    for _, piece in running:
        if b"ready" in piece:
            return
    msg = "the crowd ended before it was ready"
    raise MeasureError(msg)


def bundle(ground: Ground) -> list[Row]:
    """Compress the modules as a server does."""
    del ground
    package = Path(jupyter_agentwatch.__file__).parent
    modules = sorted([*package.glob("notebook/static/*.js"), *package.glob("labextension/static/*.js")])
    sizes = {path.name.partition(".")[0]: len(gzip.compress(path.read_bytes(), 9)) / 1000 for path in modules}
    if not sizes:
        return [Row("bundle.gzip", None, note="not built")]
    beside = {name: f"{size:.4g} kB" for name, size in sizes.items()}
    return [Row("bundle.gzip", sum(sizes.values()), len(sizes), beside, "all modules; each is loaded once per page")]
