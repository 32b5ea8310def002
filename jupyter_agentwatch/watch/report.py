"""A run as one document: what happened, what was prevented, what got out, what it cost, and how to check all of it.

Made from the audit log alone, of a watch that lives or has ended. Everything in it that an agent could have chosen is
quoted; the page runs nothing and loads nothing.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec

from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.audit.verify import Verification, verify_log
from jupyter_agentwatch.errors import LogError
from jupyter_agentwatch.events import (
    AnyEvent,
    BreakerChanged,
    Finding,
    Gap,
    LimitHit,
    Session,
    Severity,
    Step,
    from_path,
)
from jupyter_agentwatch.watch.connections import ConnectionGraph
from jupyter_agentwatch.watch.document import (
    Block,
    Heading,
    Listing,
    Paragraph,
    Picture,
    Quoted,
    Span,
    Table,
    to_html,
    to_html_page,
    to_markdown,
)
from jupyter_agentwatch.watch.exports import write_whole
from jupyter_agentwatch.watch.incidents import Incident, find_incidents
from jupyter_agentwatch.watch.picture import plots
from jupyter_agentwatch.watch.story import Story

__all__ = ["Report", "make_report"]

_MOST_ROWS: Final = 500
_MOST_INCIDENTS: Final = 100
_FEW: Final = 16
_STAMPS: Final = frozenset({"seq", "t_mono_ns", "t_wall_ns", "watch", "verdict", "basis", "cell", "step", "kind"})
_SEVERITIES: Final = get_args(Severity)


@dataclass(frozen=True, slots=True)
class Report:
    """One run as a document.

    Attributes:
        title: What it is called.
        blocks: What it is made of.
    """

    title: str
    blocks: tuple[Block, ...]

    @property
    def markdown(self) -> str:
        """The document as Markdown."""
        return to_markdown(self.blocks)

    @property
    def html(self) -> str:
        """The document as one page of HTML that needs nothing else."""
        return to_html_page(self.title, self.blocks)

    def save(self, path: str | os.PathLike[str], *, form: Literal["markdown", "html"] | None = None) -> Path:
        """Write it to a file in one move, readable by its owner alone.

        Args:
            path: The file; one that is there is replaced.
            form: None: HTML where the name ends in .html or .htm, else Markdown.

        Raises:
            OSError: It cannot be written.
        """
        target = Path(path)
        form = form or ("html" if target.suffix.lower() in {".html", ".htm"} else "markdown")
        text = self.html if form == "html" else self.markdown
        return write_whole(target, (text.encode("utf-8"),))

    def _repr_html_(self) -> str:
        # In a notebook it is one output among many: it scrolls, and its tables read as those of the page.
        return (
            "<style>.aw-report.aw-report table :is(td,th){text-align:left}"
            ".aw-report code{overflow-wrap:anywhere}</style>"
            '<div class="aw-report" tabindex="0" role="region" aria-label="report of a watch" '
            f'style="max-height:40em;overflow:auto">{to_html(self.blocks)}</div>'
        )

    def __str__(self) -> str:
        """Return the document as Markdown."""
        return self.markdown


@dataclass(slots=True)
class _Facts:
    """What one pass over the log gathers."""

    opened: Session
    closed: Session | None = None
    last: AnyEvent | None = None
    steps: dict[int, tuple[Step, Step | None]] = field(default_factory=dict)
    more_steps: int = 0
    findings: Counter[tuple[int, str]] = field(default_factory=Counter)
    by_severity: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    moves: list[BreakerChanged] = field(default_factory=list)
    limits: list[LimitHit] = field(default_factory=list)
    lost: int = 0

    def add(self, event: AnyEvent) -> None:
        self.last = event
        self.kinds[event.__struct_config__.tag] += 1  # type: ignore[index]
        match event:
            case Session() if event.op == "close":
                self.closed = event
            case Step() if event.op == "start":
                if len(self.steps) < _MOST_ROWS:
                    self.steps[event.step] = (event, None)
                else:
                    self.more_steps += 1
            case Step() if event.step in self.steps:
                self.steps[event.step] = (self.steps[event.step][0], event)
            case Finding():
                self.findings[event.step, event.severity] += 1
                self.by_severity[event.severity] += 1
            case BreakerChanged() if len(self.moves) < _MOST_ROWS:
                self.moves.append(event)
            case LimitHit() if len(self.limits) < _MOST_ROWS:
                self.limits.append(event)
            case Gap():
                self.lost += event.lost


def make_report(log: Path) -> Report:
    """Return the report of a log.

    Args:
        log: Path of the audit log.

    Raises:
        LogError: The log cannot be read, or does not begin with a session.
    """
    events = read_events(log)
    first = next(events, None)
    if not isinstance(first, Session):
        msg = f"{from_path(str(log))}: does not begin with a session record; verify the log"
        raise LogError(msg)
    facts, story = _Facts(first), Story(first.watch)
    facts.add(first)
    for event in events:
        facts.add(event)
        story.feed(event)
    incidents = find_incidents(log)
    blocks = [
        *_beginning(facts, incidents),
        *_plots(story),
        *_incidents(incidents),
        *_steps(facts),
        *_connections(story.graph(_MOST_ROWS)),
        *_breaker(facts),
        *_checking(log, verify_log(log)),
    ]
    return Report(f"agentwatch {first.watch}", tuple(blocks))


def _beginning(facts: _Facts, incidents: Sequence[Incident]) -> Iterator[Block]:
    opened, closed = facts.opened, facts.closed
    yield Heading(1, ("Watch ", Quoted(opened.watch)))
    if closed is None:
        state = "It goes on, or its supervisor ended without closing the log; this is what was recorded so far."
    else:
        left = str(closed.survivors) if closed.survivors >= 0 else "an unknown number"
        state = f"It ended; processes killed at its end: {closed.killed}, left behind: {left}."
    worst = max(incidents, key=lambda each: _SEVERITIES.index(each.severity), default=None)
    found = "No incident." if worst is None else f"{_count(len(incidents), 'incident')}, the worst is {worst.severity}."
    yield Paragraph((f"{found} {state}",))
    until = (facts.last or opened).t_wall_ns
    severities = ", ".join(
        f"{facts.by_severity[name]} {name}" for name in reversed(_SEVERITIES) if facts.by_severity[name]
    )
    rows: list[tuple[str, Span]] = [
        ("from", _time(opened.t_wall_ns)),
        ("until", _time(until)),
        ("workspace", Quoted(opened.workspace)),
        ("isolation", Quoted(f"rung {opened.rung}; limits by {opened.limits_by}")),
        ("agentwatch", Quoted(opened.version)),
        ("policy (SHA-256)", Quoted(opened.policy_sha256)),
        ("Sigma rules (SHA-256)", Quoted(opened.rules_sha256)),
        ("records", ", ".join(f"{number} {kind}" for kind, number in sorted(facts.kinds.items()))),
        ("findings", severities or "none"),
        ("records lost", str(facts.lost)),
    ]
    if closed is not None:
        rows.append(("ended because", Quoted(closed.reason)))
    yield Table(("", ""), rows)


def _plots(story: Story) -> Iterator[Block]:
    if drawn := plots(story):
        yield Picture(
            "CPU, memory, GPUs and connections of the run; the tables below say the same of connections", drawn
        )


def _incidents(incidents: Sequence[Incident]) -> Iterator[Block]:
    yield Heading(2, ("Incidents",))
    if not incidents:
        yield Paragraph(("None: no finding of medium severity or above.",))
        return
    leaked = sum(each.leaked.bytes_out for each in incidents)
    money = sum(each.cost.money for each in incidents)
    yield Table(
        ("#", "severity", "sign of", "step", "began", "prevented", "leaked, bytes", "money"),
        [
            (
                *(str(number), each.severity, Quoted(each.family), str(each.step), _time(each.began_wall_ns)),
                *(str(len(each.prevented)), str(each.leaked.bytes_out), f"{each.cost.money:.2f}"),
            )
            for number, each in enumerate(incidents[:_MOST_INCIDENTS], 1)
        ],
    )
    together = f"Together: {leaked} bytes, {money:.2f} in money (steps with several incidents count for each)."
    more = len(incidents) - _MOST_INCIDENTS
    yield Paragraph((together if more <= 0 else f"{together} {more} more are not shown.",))
    for number, each in enumerate(incidents[:_MOST_INCIDENTS], 1):
        yield from _incident(number, each)


def _incident(number: int, incident: Incident) -> Iterator[Block]:
    yield Heading(3, (f"{number}. {incident.severity}: ", Quoted(incident.title)))
    cost, leaked = incident.cost, incident.leaked
    end = _time(incident.ended_wall_ns) if incident.ended_wall_ns is not None else "it goes on"
    slower = "not known" if cost.slowdown is None else f"{cost.slowdown:.0%}"
    sent: list[Span] = [f"{leaked.bytes_out} bytes out, {leaked.bytes_in} in, in {leaked.seconds:.1f} s"]
    for where in leaked.destinations:
        sent += [" ", Quoted(where)]
    yield Table(
        ("", ""),
        [
            ("step and cell", (f"step {incident.step}, cell ", Quoted(incident.cell))),
            ("asked for", Quoted(" ".join(incident.command))),
            ("agent's action", _action(incident)),
            ("from, until", f"{_time(incident.began_wall_ns)}, {end} ({incident.duration_s:.1f} s)"),
            ("shape", Quoted(incident.shape)),
            ("leaked", sent),
            ("cost", f"{cost.gpu_hours:.4f} GPU hours, {cost.cpu_hours:.4f} CPU hours, {cost.money:.2f} in money"),
            ("slowdown of the leased job", slower),
            ("breaker", ", ".join(f"{move.before} to {move.after}" for move in incident.breaker) or "did not trip"),
        ],
    )
    if incident.ancestry:
        chain: list[Span] = ["Processes, from the one that it is about to its forebears: "]
        for place, each in enumerate(incident.ancestry[:_FEW]):
            chain += [" ← " if place else "", Quoted(f"{each.pid} {' '.join(each.argv) or each.exe}")]
        yield Paragraph(chain)
    rules = {each.rule: each for each in incident.findings}
    yield Listing(
        [
            (Quoted(name), f" ({each.severity}, ", Quoted(each.technique), "): ", Quoted(each.rationale))
            for name, each in list(rules.items())[:_FEW]
        ]
    )
    if incident.prevented:
        yield Paragraph(("Prevented:",))
        yield Listing([(Quoted(each),) for each in incident.prevented[:_FEW]])
    yield from _at_freeze(incident)
    yield Paragraph(("Evidence, as it stands in the log:",))
    yield Table(
        ("record", "time", "kind", "verdict", "basis", "what"),
        [
            (
                *(str(each.seq), _time(each.t_wall_ns), str(each.__struct_config__.tag), each.verdict, each.basis),
                Quoted(_fields(each)),
            )
            for each in incident.evidence[:_FEW]
        ],
    )
    if len(incident.evidence) > _FEW:
        rest = ", ".join(str(each.seq) for each in incident.evidence[_FEW:])
        yield Paragraph((f"More records: {rest}.",))


def _action(incident: Incident) -> Sequence[Span]:
    if not incident.run:
        return ("not by an agent's run",)
    where: list[Span] = ["turn ", str(incident.turn), " of run ", Quoted(incident.run)]
    note = incident.action
    return [*where, ": ", Quoted(f"{note.action} {note.text}"), " ", Quoted(note.thought)] if note else where


def _at_freeze(incident: Incident) -> Iterator[Block]:
    """What stood still at the freeze, and what had passed last: what a person decides by."""
    for move in incident.breaker:
        for what, lines in (
            ("Processes at the freeze:", move.processes),
            ("Open connections at the freeze:", move.flows),
            ("Last bytes of connections:", move.last_bytes),
        ):
            if lines:
                yield Paragraph((what,))
                yield Listing([(Quoted(each),) for each in lines[:_FEW]])


def _steps(facts: _Facts) -> Iterator[Block]:
    yield Heading(2, ("Steps",))
    rows = []
    for number, (start, end) in facts.steps.items():
        findings = ", ".join(f"{n} {s}" for s in reversed(_SEVERITIES) if (n := facts.findings[number, s]))
        if end is None:
            outcome, took, cpu = "goes on, or its end is not on record", "", ""
        else:
            code = f" {end.exit_code}" if end.exit_code is not None else f" signal {end.signal}" if end.signal else ""
            outcome = f"{end.outcome}{code}"
            took, cpu = f"{end.duration_s:.2f}", f"{end.cpu_user_s + end.cpu_system_s:.2f}"
        command = Quoted(" ".join(start.argv))
        rows.append((str(number), Quoted(start.cell), command, Quoted(outcome), took, cpu, findings))
    if not rows:
        yield Paragraph(("None.",))
        return
    yield Table(("step", "cell", "command", "outcome", "seconds", "CPU seconds", "findings"), rows)
    if facts.more_steps:
        yield Paragraph((f"{facts.more_steps} more are not shown.",))


def _connections(graph: ConnectionGraph) -> Iterator[Block]:
    yield Heading(2, ("Connections",))
    processes = {each.key: each for each in graph.processes}
    endpoints = {each.key: each for each in graph.endpoints}
    rows = []
    for edge in sorted(graph.edges, key=lambda each: (each.verdict == "allow", -each.bytes_out, -each.denied))[
        :_MOST_ROWS
    ]:
        process, endpoint = processes[edge.process], endpoints[edge.endpoint]
        port = f":{endpoint.port}" if endpoint.port else ""
        where = f"{endpoint.host or endpoint.addr}{port}" + (f" and {endpoint.folded} more" if endpoint.folded else "")
        rows.append(
            (
                *(edge.verdict, Quoted(endpoint.transport), Quoted(where), Quoted(", ".join(sorted(edge.protocols)))),
                Quoted(f"step {process.step} pid {process.pid} {process.program}"),
                *(str(edge.allowed), str(edge.denied), str(edge.bytes_out), str(edge.bytes_in)),
                Quoted(", ".join(sorted(edge.rules))),
            )
        )
    if not rows:
        yield Paragraph(("None.",))
        return
    names = ("verdict", "by", "to", "protocol", "process", "allowed", "denied", "bytes out", "bytes in", "rule")
    yield Table(names, rows)


def _breaker(facts: _Facts) -> Iterator[Block]:
    if facts.moves:
        yield Heading(2, ("Breaker",))
        yield Table(
            ("record", "time", "from", "to", "why", "by"),
            [
                (str(e.seq), _time(e.t_wall_ns), Quoted(e.before), Quoted(e.after), Quoted(e.cause), Quoted(e.by))
                for e in facts.moves
            ],
        )
    if facts.limits:
        yield Heading(2, ("Limits that were reached",))
        yield Table(
            ("record", "time", "limit", "value", "granted", "what was done"),
            [
                (
                    *(str(each.seq), _time(each.t_wall_ns), Quoted(each.limit)),
                    *(f"{each.value:g}", f"{each.maximum:g}", Quoted(each.action)),
                )
                for each in facts.limits
            ],
        )


_STILL_HOLDS: Final = (
    "The log must still hold this head, which also stands in the notebook's output; one that was cut off or rewritten "
    "does not: "
)
_BASIS: Final = (
    "Basis of a record: verified, the supervisor did it; post, read from the kernel afterwards; claimed, the program "
    "could have changed it meanwhile."
)


def _checking(log: Path, verified: Verification) -> Iterator[Block]:
    path, state = from_path(str(log)), "whole" if verified.ok else "NOT whole"
    named = shlex.quote(path)
    yield Heading(2, ("How to check this",))
    yield Paragraph((f"When this was written, the log was {state}: ", Quoted(verified.message)))
    facts: list[tuple[str, Span]] = [("log", Quoted(path)), ("records", str(verified.records))]
    yield Table(("", ""), [*facts, ("head", Quoted(verified.head))])
    yield Paragraph((_STILL_HOLDS, Quoted(f"jupyter agentwatch verify {named} --head {verified.head}")))
    yield Paragraph(("The detectors find the same again in it: ", Quoted(f"jupyter agentwatch replay {named}")))
    yield Paragraph((_BASIS,))


def _fields(event: AnyEvent) -> str:
    """Return what a record says beyond its stamps, as JSON."""
    found = msgspec.to_builtins(event)
    return msgspec.json.encode({name: value for name, value in found.items() if name not in _STAMPS}).decode()


def _time(t_wall_ns: int) -> str:
    try:
        moment = datetime.fromtimestamp(t_wall_ns / 1e9, UTC)
    except (OverflowError, ValueError, OSError):  # a log that somebody made up
        return f"{t_wall_ns} ns"
    return moment.isoformat(sep=" ", timespec="milliseconds").replace("+00:00", " UTC")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun if number == 1 else noun + 's'}"
