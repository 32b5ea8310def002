"""Incidents of a run as a browser gets them: put together from its log, each text safe to show, all of it bounded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from jupyter_agentwatch.errors import LogError
from jupyter_agentwatch.server.render import safe
from jupyter_agentwatch.watch.incidents import Incident, find_incidents

__all__ = ["MOST_INCIDENTS", "MOST_LOG", "recent_incidents"]

MOST_LOG: Final = 64 * 1024 * 1024
"""Bytes of a log that are read for a page: some hundred thousand records, and some seconds."""

MOST_INCIDENTS: Final = 50
"""Incidents in one answer, the newest ones."""

_SHOWN: Final = 8


def recent_incidents(log: Path) -> list[Any]:
    """Return the newest incidents of a log as JSON that is safe to show, oldest first.

    Args:
        log: The audit log, which may still grow.

    Raises:
        LogError: The log cannot be read, or is longer than a page may ask for.
    """
    try:
        size = log.stat().st_size
    except OSError as error:
        msg = f"{log}: {error.strerror}"
        raise LogError(msg) from error
    if size > MOST_LOG:
        msg = f"the log has {size >> 20} MiB, too many to be read for a page: ask watch.incidents() in the notebook"
        raise LogError(msg)
    found: list[Any] = safe([_incident(each) for each in find_incidents(log)[-MOST_INCIDENTS:]])
    return found


def _incident(incident: Incident) -> dict[str, Any]:
    return {
        "family": incident.family,
        "severity": incident.severity,
        "title": incident.title,
        "step": incident.step,
        "cell": incident.cell,
        "command": " ".join(incident.command),
        "run": incident.run,
        "turn": incident.turn,
        "thought": incident.action.thought if incident.action is not None else "",
        "shape": incident.shape,
        "findings": len(incident.findings),
        "began_ms": incident.began_wall_ns / 1e6,
        "ended_ms": None if incident.ended_wall_ns is None else incident.ended_wall_ns / 1e6,
        "duration_s": incident.duration_s,
        "ancestry": _first(f"{each.pid} {' '.join(each.argv) or each.exe}" for each in incident.ancestry),
        "prevented": _first(incident.prevented),
        "breaker": _first(f"{each.before} → {each.after}: {each.cause}" for each in incident.breaker),
        "last_bytes": _first(each for move in incident.breaker for each in move.last_bytes),
        "leaked_out": incident.leaked.bytes_out,
        "leaked_in": incident.leaked.bytes_in,
        "leaked_s": incident.leaked.seconds,
        "slowdown": incident.cost.slowdown,
        "cpu_s": incident.cost.cpu_s,
        "gpu_s": incident.cost.gpu_s,
        "bytes_out": incident.cost.bytes_out,
        "money": incident.cost.money,
    }


def _first(texts: Iterable[str]) -> list[str]:
    every = list(texts)
    return [*every[:_SHOWN], *([f"… and {len(every) - _SHOWN} more"] if len(every) > _SHOWN else [])]
