"""Rows, statistics, and the two forms of the result: a table for people and JSON of a stable form."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.bench.figures import FIGURES

__all__ = ["SCHEMA", "Row", "as_json", "as_markdown", "median", "p99", "spread"]

SCHEMA: Final = 1
"""Version of the JSON form: `{schema, quick, seconds, machine: {…}, rows: [{name, title, unit, statistic, target,
sense, value, met, n, beside, note}]}`; `met` is null where there is no target or no value."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure.

    Attributes:
        name: Key of `FIGURES`.
        value: In the figure's unit; None where it could not be measured.
        n: Samples of ours that the value rests on.
        beside: What was measured side by side, name → text with unit.
        note: Why there is no value, or what a reader must know.
    """

    name: str
    value: float | None
    n: int = 0
    beside: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none, or no value."""
        figure = FIGURES[self.name]
        if figure.target is None or self.value is None:
            return None
        return self.value <= figure.target if figure.sense == "<=" else self.value >= figure.target


def median(samples: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(samples)


def p99(samples: Sequence[float]) -> float:
    """Return the smallest sample that at least 99 % of all do not exceed."""
    return sorted(samples)[math.ceil(len(samples) * 0.99) - 1]


def spread(samples: Sequence[float], unit: str, scale: float = 1.0) -> str:
    """Return median and quartiles as text: what tells a reader how noisy the machine was."""
    if len(samples) < 4:
        return f"{median(samples) * scale:.4g} {unit}"
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return f"{middle * scale:.4g} [{low * scale:.4g}-{high * scale:.4g}] {unit}"


def as_json(rows: Sequence[Row], machine: Mapping[str, Any], *, quick: bool, seconds: float) -> str:
    """Return the result as JSON of form `SCHEMA`."""
    head = {"schema": SCHEMA, "quick": quick, "seconds": round(seconds, 1), "machine": dict(machine)}
    return json.dumps({**head, "rows": [_plain(row) for row in rows]}, indent=1, ensure_ascii=False) + "\n"


def _plain(row: Row) -> dict[str, Any]:
    figure = FIGURES[row.name]
    value = None if row.value is None else float(f"{row.value:.6g}")
    return {
        "name": row.name,
        "title": figure.title,
        "unit": figure.unit,
        "statistic": figure.statistic,
        "target": figure.target,
        "sense": figure.sense,
        "value": value,
        "met": row.met,
        "n": row.n,
        "beside": dict(row.beside),
        "note": _note(row),
    }


def as_markdown(rows: Sequence[Row], machine: Mapping[str, Any], *, quick: bool, seconds: float) -> str:
    """Return the result as a Markdown page."""
    kind = "Quick run: too few samples to quote" if quick else "Full run"
    facts = "\n".join(f"* {name}: {value}" for name, value in machine.items())
    lines = ["| figure | measured | target | met | n | beside it |", "|---|---|---|---|---|---|"]
    lines += [_line(row) for row in rows]
    notes = [f"* **{FIGURES[row.name].title}**: {_note(row)}" for row in rows if _note(row)]
    tail = ["", "Notes", "", *notes] if notes else []
    return "\n".join([f"{kind}, {seconds:.0f} s.", "", facts, "", *lines, *tail]) + "\n"


def _line(row: Row) -> str:
    figure = FIGURES[row.name]
    measured = "-" if row.value is None else f"{row.value:.4g} {figure.unit} ({figure.statistic})"
    target = "-" if figure.target is None else f"{'≤' if figure.sense == '<=' else '≥'} {figure.target:g} {figure.unit}"
    met = {True: "yes", False: "**no**", None: "-"}[row.met]
    beside = "; ".join(f"{name} {text}" for name, text in row.beside.items())
    return f"| {figure.title} | {measured} | {target} | {met} | {row.n or '-'} | {beside} |"


def _note(row: Row) -> str:
    floor = FIGURES[row.name].floor if row.met is False else ""
    return "; ".join(part for part in (row.note, floor) if part)
