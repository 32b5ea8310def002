"""`replay` and `hunt`: the detectors over a recorded log, and findings of all logs together."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import msgspec

from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.cli.logs import find_log
from jupyter_agentwatch.cli.output import remark, say, say_json
from jupyter_agentwatch.cli.words import count
from jupyter_agentwatch.errors import LogError
from jupyter_agentwatch.events import AnyEvent, Finding, Session, Severity, decode_event, printable
from jupyter_agentwatch.policy import Policy
from jupyter_agentwatch.wire.runtime import log_dir

if TYPE_CHECKING:
    from jupyter_agentwatch.detect.model import Draft

__all__ = ["hunt", "replay", "replayed"]

_INDEX: Final = "index.sqlite"
_MOST: Final = 100_000
_SHOWN: Final = 300
_SEVERITIES: Final = get_args(Severity)
_OF_DETECTORS: Final = frozenset(
    {
        "agentwatch.detector_failed",
        "agentwatch.records_lost",
        "agentwatch.rule_failed",
        "agentwatch.window_forgot",
    }
)
"""Findings about the detectors are theirs; all others with this prefix are the supervisor's own."""


def replay(options: argparse.Namespace) -> int:
    """Show what the detectors find in a log; 0 unless it is not what they found when it was recorded.

    With other rules than the log's own nothing is compared.
    """
    log = find_log(options.log)
    opened = _opened(log)
    policy = msgspec.json.decode(opened.policy, type=Policy) if opened.policy else Policy()
    data, names = _rules(options.rules, policy)
    found = list(replayed(log, data, policy))
    for draft in found:
        if options.json:
            say_json(draft)
        else:
            say(_line(draft))
    if options.rules is not None:
        return 0
    if names != opened.rules_sha256:
        remark("the rules of the policy are not those that were used: their files, or this program, have changed")
        return 1
    recorded = [_key(each) for each in _recorded(log)]
    same = [_key(each) for each in found] == recorded
    if not same:
        remark(f"the log itself has {count(len(recorded), 'finding')} of the detectors, and they are not these")
    return 0 if same else 1


def replayed(log: Path, rules: bytes, policy: Policy) -> Iterator[Draft]:
    """Yield what the detectors find in a log.

    Args:
        log: Path of the log.
        rules: Compiled Sigma rules, b"" for none.
        policy: What was in force; rules that it disables find nothing.

    Raises:
        LogError: The log cannot be read.
    """
    from jupyter_agentwatch.supervisor.detection import Detectors

    detectors = Detectors(rules, policy.detect.disabled, policy)
    for event in read_events(log):
        if not isinstance(event, Finding):
            yield from detectors.feed(event)


@dataclass(slots=True)
class _Cluster:
    """Incidents of one shape."""

    shape: str
    severity: str = "info"
    title: str = ""
    incidents: set[tuple[str, int]] = field(default_factory=set)
    times: list[int] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        watches = sorted({watch for watch, _ in self.incidents})
        return {
            "shape": self.shape,
            "severity": self.severity,
            "title": self.title,
            "incidents": len(self.incidents),
            "watches": watches,
            "first_wall_ns": min(self.times),
            "last_wall_ns": max(self.times),
        }


def hunt(options: argparse.Namespace) -> int:
    """Show the findings of all logs, put together by what they have in common; 0 where there are any."""
    rows = [cluster.row() for cluster in _clusters(_hunted(options))]
    rows.sort(key=lambda row: (-len(row["watches"]), -_SEVERITIES.index(row["severity"]), row["shape"]))
    if options.json:
        say_json(rows)
    else:
        for row in rows:
            say(_cluster_text(row))
        if not rows:
            say("nothing found")
    return 0 if rows else 1


def _hunted(options: argparse.Namespace) -> list[Finding]:
    from jupyter_agentwatch.audit.index import AuditIndex

    since = datetime.now(UTC) - timedelta(days=options.days) if options.days is not None else None
    with AuditIndex(log_dir() / _INDEX) as index:
        done = index.refresh(log_dir())
        for path, problem in done.problems.items():
            remark(f"{printable(str(path), 4096)}: {printable(problem, 2000)}")
        rows = index.query(kinds={"finding"}, text=options.text, since=since, limit=_MOST)
    least = _SEVERITIES.index(options.severity)
    events = (decode_event(row["json"].encode()) for row in rows)
    found = [each for each in events if isinstance(each, Finding) and _SEVERITIES.index(each.severity) >= least]
    return [each for each in found if options.rule in {None, each.rule, each.family}]


def _clusters(found: Iterable[Finding]) -> list[_Cluster]:
    """Put findings of one step and family together, and those together that show the same rules."""
    from jupyter_agentwatch.watch.incidents import shape_of

    incidents: dict[tuple[str, int, str], list[Finding]] = {}
    for each in found:
        incidents.setdefault((each.watch, each.step, each.family), []).append(each)
    clusters: dict[str, _Cluster] = {}
    for (watch, step, family), findings in incidents.items():
        shape = shape_of(family, (each.rule for each in findings))
        cluster = clusters.setdefault(shape, _Cluster(shape))
        cluster.incidents.add((watch, step))
        cluster.times += [each.t_wall_ns for each in findings]
        worst = max(findings, key=lambda each: _SEVERITIES.index(each.severity))
        if _SEVERITIES.index(worst.severity) >= _SEVERITIES.index(cluster.severity):
            cluster.severity, cluster.title = worst.severity, worst.title
    return list(clusters.values())


def _cluster_text(row: dict[str, Any]) -> str:
    watches = row["watches"]
    named = ", ".join(printable(each) for each in watches[:8]) + (", …" if len(watches) > 8 else "")
    first, last = (
        datetime.fromtimestamp(row[name] / 1e9, UTC).isoformat(timespec="seconds")
        for name in ("first_wall_ns", "last_wall_ns")
    )
    return (
        f"{row['severity']}: {printable(row['shape'], _SHOWN)}\n"
        f"  {count(row['incidents'], 'incident')} in {count(len(watches), 'watch', 'watches')} ({named}), "
        f"{first} to {last}\n  {printable(row['title'], _SHOWN)}"
    )


def _opened(log: Path) -> Session:
    first: AnyEvent = next(read_events(log))
    if not isinstance(first, Session):
        msg = f"{printable(str(log), 4096)}: does not begin with a session record; verify the log"
        raise LogError(msg)
    return first


def _rules(given: list[str] | None, policy: Policy) -> tuple[bytes, str]:
    """Return compiled rules and what the log would name them by."""
    from jupyter_agentwatch.watch.rules import compile_files, expanded, problem_notes

    texts = given if given is not None else policy.detect.rules
    if not texts:
        return b"", ""
    compiled = compile_files([expanded(text) for text in texts], policy.detect.disabled)
    for note in problem_notes(compiled.problems):
        remark(printable(note, 4096))
    return compiled.data, compiled.sha256


def _recorded(log: Path) -> Iterator[Finding]:
    for event in read_events(log, kinds={"finding"}):
        if isinstance(event, Finding) and (not event.rule.startswith("agentwatch.") or event.rule in _OF_DETECTORS):
            yield event


def _key(found: Finding | Draft) -> tuple[Any, ...]:
    which = (found.rule, found.title, found.severity, found.family, found.technique, found.rationale)
    return (*which, tuple(found.evidence), found.step, found.pid)


def _line(draft: Draft) -> str:
    seqs = ", ".join(map(str, draft.evidence))
    return f"step {draft.step} {draft.severity}: {printable(draft.title, _SHOWN)} [{printable(draft.rule)}] ({seqs})"
