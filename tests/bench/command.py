"""The benchmark's command line: runs the groups in order, says what it does, and writes the result."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from jupyter_agentwatch.errors import AgentwatchError
from tests.bench import (
    agents,
    clicks,
    crowds,
    engine,
    events,
    freezes,
    judged,
    kill,
    lab,
    latency,
    network,
    overhead,
    sampling,
    soak,
    streaming,
)
from tests.bench.figures import FIGURES
from tests.bench.ground import Ground, MeasureError, load, machine
from tests.bench.table import Row, as_json, as_markdown

__all__ = ["GROUPS", "ONCE", "is_wanted", "main"]

GROUPS: Final[dict[str, tuple[Callable[[Ground], list[Row]], tuple[str, ...]]]] = {
    "session": (latency.session, ("session.",)),
    "true": (latency.true, ("true.",)),
    "imports": (overhead.imports, ("import.",)),
    "search": (overhead.search, ("grep.",)),
    "execs": (overhead.execs, ("exec.",)),
    "writes": (overhead.writes, ("write.",)),
    "builds": (overhead.builds, ("build.",)),
    "connects": (network.connects, ("connect.",)),
    "transfers": (network.transfers, ("transfer.",)),
    "parallel": (crowds.parallel, ("parallel.",)),
    "kills": (kill.kills, ("kill.",)),
    "throughput": (events.throughput, ("events.",)),
    "resting": (events.resting, ("supervisor.",)),
    "memory": (crowds.memory, ("memory.",)),
    "clicks": (clicks.clicks, ("click.",)),
    "stream": (streaming.stream, ("stream.",)),
    "graph": (streaming.graph, ("graph.",)),
    "sampling": (sampling.sampling, ("sampling.",)),
    "bundle": (sampling.bundle, ("bundle.",)),
    "soak": (soak.soak, ("soak.",)),
    "steps": (agents.steps, ("steps.",)),
    "lab": (lab.lab, ("lab.",)),
    "engine": (engine.engine, ("engine.",)),
    "freezes": (freezes.freezes, ("freeze.",)),
    "judged": (judged.judged, ("detection.",)),
}
"""Name → what measures a group, and how the names of its figures begin."""

ONCE: Final = frozenset({"bundle", "clicks", "engine", "graph", "judged", "lab", "soak", "stream"})
"""Groups on which the rung has no influence: a run on rung B leaves them out unless they are asked for."""


def main(argv: Sequence[str]) -> int:
    """Run the benchmark.

    Args:
        argv: Arguments of the command line.

    Returns:
        0 when everything was measured, whether or not the targets were met; 1 when something could not be measured.
    """
    options = _parser().parse_args(argv)
    if options.list:
        for name in GROUPS:
            sys.stdout.write(f"{name:12}{', '.join(_figures(name))}\n")
        return 0
    chosen = options.only or [name for name in GROUPS if is_wanted(name, rung=options.rung, soak=options.soak)]
    facts, begun = machine(), time.monotonic()
    rows: list[Row] = []
    try:
        with Ground(quick=options.quick, rung=options.rung) as ground:
            for name in chosen:
                rows += _group(name, ground)
    except AgentwatchError as error:
        _say(f"no session can be opened here: {error}")
        return 1
    facts["load after"] = load()
    facts["rung"] = options.rung
    result = {"quick": options.quick, "seconds": time.monotonic() - begun}
    page = as_markdown(rows, facts, **result)
    sys.stdout.write(page)
    folder = options.output or (None if options.quick or options.only else Path(__file__).parent)
    if folder is not None:
        name = "latest" if options.rung == "A" else f"latest-{options.rung}"
        title = f"# Latest full run of `make bench`, rung {options.rung}\n\n"
        (folder / f"{name}.json").write_text(as_json(rows, facts, **result), "utf-8")
        (folder / f"{name}.md").write_text(title + page, "utf-8")
        _say(f"written: {name}.json and {name}.md in {folder}")
    return int(any(row.note.startswith("failed") for row in rows))


def is_wanted(name: str, *, rung: str, soak: bool) -> bool:
    """Return whether a run that names no group measures this one.

    Args:
        name: The group.
        rung: "A" or "B".
        soak: Whether the ten minutes were asked for.
    """
    return (name not in ONCE or rung == "A") and (name != "soak" or soak)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few samples: only shows that each row works")
    parser.add_argument("--rung", choices=("A", "B"), default="A", help="rung of every session (default: A)")
    parser.add_argument("--only", action="append", choices=GROUPS, help="only this group; may be repeated")
    parser.add_argument("--soak", action="store_true", help="also look for growth over ten minutes")
    parser.add_argument("--list", action="store_true", help="show the groups and their figures")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where the result goes; default: beside this program for a full run, nowhere otherwise",
    )
    return parser


def _group(name: str, ground: Ground) -> list[Row]:
    measure, _ = GROUPS[name]
    _say(f"{name} …")
    begun = time.monotonic()
    try:
        rows = measure(ground)
    except (MeasureError, AgentwatchError, OSError, ValueError, subprocess.SubprocessError) as error:
        # Only the kind of error: its text may name paths of this machine, and the table is for others, too.
        _say(f"{name} failed: {error}")
        return [Row(figure, None, note=f"failed: {type(error).__name__}") for figure in _figures(name)]
    for row in rows:
        value = "not measured" if row.value is None else f"{row.value:.4g} {FIGURES[row.name].unit}"
        verdict = {True: "", False: "  ← misses its target", None: ""}[row.met]
        _say(f"  {row.name:24}{value}{verdict}")
    _say(f"  ({time.monotonic() - begun:.1f} s)")
    return rows


def _figures(group: str) -> list[str]:
    return [name for name in FIGURES if name.startswith(GROUPS[group][1])]


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
