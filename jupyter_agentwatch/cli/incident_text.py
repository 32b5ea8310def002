"""Incidents in words, for a terminal and a notebook alike; the agent's own words in them are made safe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, get_args

from jupyter_agentwatch.cli.words import count, one_line
from jupyter_agentwatch.events import Severity, printable

if TYPE_CHECKING:
    from jupyter_agentwatch.watch.incidents import Incident

__all__ = ["incident_lines"]

_SEVERITIES: Final = get_args(Severity)
_SHOWN: Final = 200
_FEW: Final = 5


def incident_lines(incidents: Iterable[Incident], at_least: str = "info") -> list[str]:
    """Return a few lines for each incident of a severity or above: what, who, what was prevented, what it cost."""
    least = _SEVERITIES.index(at_least)
    return [line for each in incidents if _SEVERITIES.index(each.severity) >= least for line in _lines(each)]


def _lines(incident: Incident) -> Iterator[str]:
    clock = datetime.fromtimestamp(incident.began_wall_ns / 1e9, UTC).isoformat(timespec="milliseconds")[11:23]
    cell = f", cell {printable(incident.cell)}" if incident.cell else ""
    yield f"{clock} {incident.severity} {printable(incident.family)}, step {incident.step}{cell}"
    yield f"  {printable(incident.title, _SHOWN)}"
    if incident.command:
        yield f"  asked for: {one_line(incident.command, _SHOWN)}"
    if incident.action is not None:
        said = printable(f"{incident.action.action} {incident.action.thought}", _SHOWN)
        yield f"  agent: turn {incident.turn} of run {printable(incident.run)}: {said}"
    if incident.ancestry:
        chain = " ← ".join(f"{printable(each.exe)} ({each.pid})" for each in incident.ancestry[:_FEW])
        yield f"  process: {chain}"
    for rule in sorted({each.rule for each in incident.findings})[:_FEW]:
        yield f"  rule: {printable(rule)}"
    yield f"  records: {', '.join(str(event.seq) for event in incident.evidence[: 2 * _FEW])}"
    yield from (f"  prevented: {printable(each, _SHOWN)}" for each in incident.prevented[:_FEW])
    yield from (f"  breaker: {printable(each.before)} -> {printable(each.after)}" for each in incident.breaker)
    yield from (
        f"  last bytes: {printable(each, _SHOWN)}" for move in incident.breaker for each in move.last_bytes[:_FEW]
    )
    leaked, cost = incident.leaked, incident.cost
    if leaked.bytes_out or leaked.bytes_in:
        where = ", ".join(printable(each, _SHOWN) for each in leaked.destinations[:_FEW])
        yield f"  leaked: {leaked.bytes_out} bytes out, {leaked.bytes_in} in, in {leaked.seconds:.1f} s: {where}"
    if cost.slowdown is not None:
        yield f"  the leased job was slowed down by {cost.slowdown:.0%}"
    money = f", {cost.money:.2f} in money" if cost.money else ""
    used = f"{cost.bytes_out} bytes out, {cost.cpu_s:.1f} s CPU, {cost.gpu_s:.1f} s GPU{money}"
    yield f"  {count(len(incident.findings), 'finding')} in {incident.duration_s:.1f} s; used: {used}"
