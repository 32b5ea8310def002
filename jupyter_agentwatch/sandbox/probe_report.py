"""What was found by probing, and what follows from it: the rungs that can be had, and what the others lack.

Pure: what is stated here was tried elsewhere, and nothing is concluded from what was not tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

__all__ = ["RUNGS", "Probe", "Report", "Rung", "conclude", "failed_probe", "refusals", "report_text"]

Rung = Literal["A", "B", "C"]
"""A rung of the isolation ladder on which something is isolated."""

RUNGS: Final[tuple[Rung, ...]] = ("A", "B", "C")
"""All of them, the strongest first."""

_LABELS: Final = {
    "A": "isolated",
    "B": "confined, shared namespaces",
    "C": "no isolation: run refuses, unless the policy says isolation: C (network confined, files not)",
    "E": "no isolation: run refuses",
}


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """One mechanism, as it was found by trying.

    Attributes:
        name: What is probed; one of a kind.
        ok: It works.
        tried: The action that was really tried.
        detail: What came of it.
        fix: What to run or to change where it failed, else "".
        required_for: Rungs that cannot be had without it, among "A", "B" and "C"; none: it is optional.
        lacks: Where it works, what of it this system does not have, each with what that means.
    """

    name: str
    ok: bool
    tried: str
    detail: str
    fix: str
    required_for: tuple[Rung, ...]
    lacks: tuple[str, ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What this machine can enforce; `doctor --json` prints its fields, and those of `Probe`, under these names.

    Attributes:
        rung: What a policy gets that leaves it open (`isolation: required`): "A", else "B", else "E": `run` refuses.
        label: The rung in words.
        available: Rungs that a policy can name; "C" is only ever taken where it is named.
        limits_by: Who holds which limit, one line.
        probes: All of them, in the order in which they were tried.
        missing: For each of "A", "B" and "C", names of the probes that it requires and that failed.
    """

    rung: Literal["A", "B", "E"]
    label: str
    available: tuple[Rung, ...]
    limits_by: str
    probes: tuple[Probe, ...]
    missing: dict[Rung, tuple[str, ...]]


def conclude(probes: Sequence[Probe], limits_by: str) -> Report:
    """Return the report on what was found.

    Args:
        probes: Everything that was tried.
        limits_by: Who holds which limit.
    """
    missing = {rung: tuple(p.name for p in probes if rung in p.required_for and not p.ok) for rung in RUNGS}
    available = tuple(rung for rung in RUNGS if not missing[rung])
    best = available[0] if available else "E"
    return Report(
        rung="E" if best == "C" else best,
        label=_LABELS[best],
        available=available,
        limits_by=limits_by,
        probes=tuple(probes),
        missing=missing,
    )


def refusals(failed: Mapping[Rung, Probe]) -> str:
    """Return why rungs cannot be had.

    Args:
        failed: For each of them a probe that it requires, and that failed.
    """
    by_name: dict[str, list[Rung]] = {}
    for rung, each in failed.items():
        by_name.setdefault(each.name, []).append(rung)
    found = {each.name: each for each in failed.values()}
    return "; ".join(_refusal(rungs, found[name]) for name, rungs in by_name.items())


def _refusal(rungs: list[Rung], failed: Probe) -> str:
    who = f"rung {rungs[0]} needs" if len(rungs) == 1 else f"rungs {' and '.join(rungs)} need"
    what = f"probe '{failed.name}' failed: tried {failed.tried}: {failed.detail}"
    return f"{who} {failed.name}: {what}{f'; fix: {failed.fix}' if failed.fix else ''}"


def failed_probe(report: Report, isolation: Literal["required"] | Rung = "required") -> str:
    """Return why the isolation that a policy asks for cannot be had: the first probe that failed, and its fix.

    Args:
        report: What `probe` returned.
        isolation: What the policy asks for.

    Returns:
        A text for each rung that would have done, or "" where one of them can be had.
    """
    wanted: tuple[Rung, ...] = ("A", "B") if isolation == "required" else (isolation,)
    if any(rung in report.available for rung in wanted):
        return ""
    found = {p.name: p for p in report.probes}
    return refusals({rung: found[report.missing[rung][0]] for rung in wanted})


def report_text(report: Report) -> str:
    """Return the report as plain text for people: a line for each probe, then what is lacking, then the fixes.

    Args:
        report: What `probe` returned.
    """
    width = max((len(p.name) for p in report.probes), default=0)
    named = ", ".join(report.available) or "none that can be had here"
    lines = [f"rung {report.rung}: {report.label}", f"isolation that a policy can name: {named}"]
    lines += [f"limits: {report.limits_by}", "", "        for"]
    lines += [
        f"{_state(p):<6}  {''.join(p.required_for) or '-':<3}  {p.name:<{width}}  {p.tried}: {p.detail}"
        for p in report.probes
    ]
    lacking = [f"  {p.name}: {each}" for p in report.probes for each in p.lacks]
    fixes = [f"  {p.name} ({_needed(p)}): {p.fix}" for p in report.probes if p.fix]
    lines += ["", "Works, but lacks:", *lacking] if lacking else []
    return "\n".join([*lines, *(["", "To fix:", *fixes] if fixes else [])])


def _state(result: Probe) -> str:
    return "ok" if result.ok else "FAILED" if result.required_for else "absent"


def _needed(result: Probe) -> str:
    return f"rung {', '.join(result.required_for)}" if result.required_for else "optional"
