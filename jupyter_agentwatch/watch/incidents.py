"""Findings put together: each incident as one object, with its step, its processes, and what came of it.

Made from the audit log alone, so that it can be had of a live watch, of one that has ended, and of any log.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, get_args

import msgspec

from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.events import (
    AgentNote,
    AnyEvent,
    BreakerChanged,
    Connect,
    Exec,
    Finding,
    Flow,
    Gpu,
    Session,
    Severity,
    Step,
)
from jupyter_agentwatch.policy import Budgets, Policy
from jupyter_agentwatch.watch.harm import Cost, Harm, Leak

__all__ = ["Incident", "Process", "find_incidents", "shape_of"]

_RANK: Final = {severity: rank for rank, severity in enumerate(get_args(Severity))}
_WORTH: Final = _RANK["medium"]
_MOST: Final = 64
_DEPTH: Final = 64


@dataclass(frozen=True, slots=True)
class Process:
    """One process of an ancestry, as it was recorded; `argv` and `exe` are the agent's own choice."""

    pid: int
    exe: str
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """Findings of one family about one step. Texts in it are the agent's where a title quotes them.

    Attributes:
        watch: Id of the watch.
        step: The step; 0 where none is the cause.
        cell: Notebook cell that started it, or "".
        command: What that cell, or the agent, asked for.
        run: Id of the agent's run that asked for it, or "".
        turn: The turn of that run, 0 for none.
        action: What the agent noted of that turn: what it chose, its thought, what came of it; None where it is not on
            record, as for a turn that a kill has cut off.
        family: What it is a sign of.
        severity: The highest of its findings'.
        title: Of the finding of that severity, the first one's.
        shape: Equal for incidents that show the same rules, in whichever watch.
        findings: All findings, in order.
        began_wall_ns: Unix time in nanoseconds of the first record that it rests on.
        ended_wall_ns: When the breaker contained it, or its step ended; None while it goes on.
        ancestry: The process that it is about, then its parents, as far as they are known.
        evidence: The records that the findings rest on, the first 64.
        prevented: What was denied or did not run, in words, the first 64.
        breaker: Moves of the breaker that it caused. A freeze has with it which processes there were, the open
            connections, and the last bytes of each.
        leaked: What passed between its step and the outside all the same.
        cost: What its step used from its beginning on.
        duration_s: Seconds from its beginning to its end, or to the last record.
    """

    watch: str
    step: int
    cell: str
    command: tuple[str, ...]
    run: str
    turn: int
    action: AgentNote | None
    family: str
    severity: Severity
    title: str
    shape: str
    findings: tuple[Finding, ...]
    began_wall_ns: int
    ended_wall_ns: int | None
    ancestry: tuple[Process, ...]
    evidence: tuple[AnyEvent, ...]
    prevented: tuple[str, ...]
    breaker: tuple[BreakerChanged, ...]
    leaked: Leak
    cost: Cost
    duration_s: float


@dataclass(slots=True)
class _Draft:
    """An incident while the log is read; `first` is the position of the first record that it rests on."""

    findings: list[Finding]
    wanted: set[int]
    first: int
    harm: Harm
    evidence: list[AnyEvent] = field(default_factory=list)
    prevented: list[str] = field(default_factory=list)
    breaker: list[BreakerChanged] = field(default_factory=list)
    ancestry: tuple[Process, ...] = ()
    began: AnyEvent | None = None
    ended: AnyEvent | None = None


def find_incidents(log: Path) -> list[Incident]:
    """Return the incidents of a log, in the order in which they were noticed.

    Findings below "medium" alone make none.

    Args:
        log: Path of the audit log.

    Raises:
        LogError: The log cannot be read.
    """
    groups: dict[tuple[int, str], list[Finding]] = {}
    for event in read_events(log, kinds={"finding"}):
        if isinstance(event, Finding):
            groups.setdefault((event.step, event.family), []).append(event)
    drafts = []
    for findings in groups.values():
        if any(_RANK[each.severity] >= _WORTH for each in findings):
            wanted = {seq for each in findings for seq in (*each.evidence, each.seq)}
            drafts.append(_Draft(findings, wanted, min(wanted), Harm(findings[0].step)))
    if not drafts:
        return []
    story = _Story(drafts)
    for event in read_events(log):
        story.feed(event)
    return [story.told(draft) for draft in drafts]


def shape_of(family: str, rules: Iterable[str]) -> str:
    """Return what incidents of the same kind have in common, in whichever run: "mining: mining.stratum"."""
    return f"{family or 'unknown'}: {', '.join(sorted(set(rules)))}"


class _Story:
    """Reads a log once from its beginning, and fills in what belongs to each incident."""

    def __init__(self, drafts: list[_Draft]) -> None:
        self._drafts = drafts
        self._wanting: dict[int, list[_Draft]] = {}
        for draft in drafts:
            for seq in draft.wanted:
                self._wanting.setdefault(seq, []).append(draft)
        self._by_step: dict[int, list[_Draft]] = {}
        for draft in drafts:
            self._by_step.setdefault(draft.findings[0].step, []).append(draft)
        self._prices = Budgets()
        self._commands: dict[int, Step] = {}
        self._actions: dict[tuple[str, int], AgentNote] = {}
        self._parents: dict[int, int] = {}
        self._processes: dict[int, Process] = {}
        self._claims: dict[int, Exec] = {}
        self._last: AnyEvent | None = None

    def feed(self, event: AnyEvent) -> None:
        """Take the next record."""
        self._last = event
        match event:
            case Session() if event.op == "open" and event.policy:
                self._prices = msgspec.json.decode(event.policy, type=Policy).budgets
            case Step() if event.op == "start" and event.step in self._by_step:
                self._commands[event.step] = event
            case AgentNote() if event.op == "turn" and event.step in self._by_step:
                self._actions[event.run, event.turn] = event
            case Exec():
                self._exec(event)
            case BreakerChanged():
                self._breaker(event)
            case Gpu():
                for draft in self._drafts[:_MOST]:
                    if draft.ended is None:
                        draft.harm.beside(event, since=event.seq >= draft.first)
        for draft in self._wanting.get(event.seq, ()):
            self._evidence(draft, event)
        for draft in self._by_step.get(event.step, ()) if event.step else ():
            if event.seq >= draft.first:
                self._of_step(draft, event)

    def told(self, draft: _Draft) -> Incident:
        """Return an incident when all records were taken."""
        worst = max(draft.findings, key=lambda each: (_RANK[each.severity], -each.seq))
        first = draft.findings[0]
        began = draft.began or first
        end = draft.ended or self._last or began
        asked = self._commands.get(first.step)
        turn = (asked.run, asked.turn) if asked is not None else ("", 0)
        return Incident(
            watch=first.watch,
            step=first.step,
            cell=first.cell,
            command=tuple(asked.argv) if asked is not None else (),
            run=turn[0],
            turn=turn[1],
            action=self._actions.get(turn),
            family=first.family,
            severity=worst.severity,
            title=worst.title,
            shape=shape_of(first.family, (each.rule for each in draft.findings)),
            findings=tuple(draft.findings),
            began_wall_ns=began.t_wall_ns,
            ended_wall_ns=draft.ended.t_wall_ns if draft.ended is not None else None,
            ancestry=draft.ancestry,
            evidence=tuple(draft.evidence),
            prevented=tuple(draft.prevented),
            breaker=tuple(draft.breaker),
            leaked=draft.harm.leak(began.t_mono_ns),
            cost=draft.harm.cost(self._prices),
            duration_s=max(0.0, (end.t_mono_ns - began.t_mono_ns) / 1e9),
        )

    def _exec(self, event: Exec) -> None:
        if event.basis == "claimed" and not event.unconfirmed:
            self._claims[event.seq] = event
            return
        claim = self._claims.pop(event.claim_seq, None)
        if event.basis == "post":
            self._parents[event.pid] = event.ppid
            self._processes[event.pid] = Process(event.pid, event.exe, tuple(event.argv))
        elif claim is not None and event.unconfirmed in {"held", "refused"}:
            for draft in self._wanting.get(claim.seq, ()):
                _tell(draft, f"{event.unconfirmed} before it ran: {' '.join(claim.argv)[:300]}")

    def _breaker(self, event: BreakerChanged) -> None:
        for draft in self._drafts:
            if not draft.wanted.isdisjoint(event.evidence):
                draft.breaker.append(event)
                draft.ended = draft.ended or event
                draft.harm.stopped(event.flows, event.t_mono_ns)
                if not draft.ancestry:
                    draft.ancestry = _ancestry_at_trip(event.processes, draft.findings[-1].pid)
            elif event.after == "killed" and event.seq > draft.first:
                draft.ended = draft.ended or event

    def _evidence(self, draft: _Draft, event: AnyEvent) -> None:
        draft.began = draft.began or event
        if isinstance(event, Finding):
            if not draft.ancestry:
                draft.ancestry = self._ancestry(event.pid)
        elif len(draft.evidence) < _MOST:
            draft.evidence.append(event)

    def _ancestry(self, pid: int) -> tuple[Process, ...]:
        chain: list[Process] = []
        while pid in self._processes and len(chain) < _DEPTH and pid not in {each.pid for each in chain}:
            chain.append(self._processes[pid])
            pid = self._parents.get(pid, 0)
        return tuple(chain)

    def _of_step(self, draft: _Draft, event: AnyEvent) -> None:
        draft.harm.use(event)
        match event:
            case Connect() if event.verdict == "deny":
                _tell(draft, f"connect to {event.host or event.addr}:{event.port} denied [{event.rule}]")
            case Flow() if event.op == "named" and event.verdict == "deny":
                where = f"{event.host or event.addr}:{event.port}"
                _tell(draft, f"{event.protocol} to {where} denied [{event.rule}], no byte of it passed")
            case Step() if event.op == "end":
                draft.ended = draft.ended or event


def _tell(draft: _Draft, what: str) -> None:
    if len(draft.prevented) < _MOST and what not in draft.prevented:
        draft.prevented.append(what)


def _ancestry_at_trip(processes: Iterable[str], pid: int) -> tuple[Process, ...]:
    """Read what the breaker kept: "pid parent program arguments"."""
    known: dict[int, tuple[int, Process]] = {}
    for line in processes:
        words = line.split(" ")
        if len(words) >= 3 and words[0].isdecimal():
            parent = int(words[1]) if words[1].isdecimal() else 0
            known[int(words[0])] = (parent, Process(int(words[0]), words[2], tuple(words[3:])))
    chain: list[Process] = []
    while pid in known and len(chain) < _DEPTH:
        parent, process = known.pop(pid)
        chain.append(process)
        pid = parent
    return tuple(chain)
