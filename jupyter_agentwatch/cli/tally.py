"""What happened, counted from the audit log: the one meaning of "processes", "denied" and "files written".

Pure: events in, counts out. Shown by the command line and by the notebook's summary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from jupyter_agentwatch.events import AnyEvent, Connect, Dns, Exec, Exit, FileOp, Finding, Flow, Gap, LimitHit, Step

__all__ = ["Destination", "Tally", "tally"]

_REMOVALS = {"unlink", "unlinkat", "rmdir"}
_TWO_NAMES = {"rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat"}
_FOLDERS = {"mkdir", "mkdirat"}
_INSIDE = "inside"
_NOT_FILES = ("/dev/", "/proc/")


@dataclass(frozen=True)
class Destination:
    """One destination with what became of the calls that named it.

    Attributes:
        verdict: "allow" or "deny".
        where: "host:port", "address:port", a socket path, or "name <name>" for a refused DNS query. Hostile text.
        reason: The policy rule, or why none allowed it.
        count: Calls.
    """

    verdict: str
    where: str
    reason: str
    count: int


@dataclass(frozen=True)
class Tally:
    """Counts over a run of events.

    Attributes:
        steps: Commands started.
        processes: Distinct processes that exec'd, or that init reaped.
        allowed: Connections to the outside allowed, and not refused later by their first bytes. What stays inside the
            sandbox (its own loopback, its DNS stub) does not count.
        denied: Connections denied, at connect or by their first bytes.
        names_refused: DNS queries refused.
        files: Distinct paths written, renamed to or linked to, without folders and devices, sorted. Hostile text.
        removed: Distinct paths removed.
        destinations: Every destination, the denied ones first.
        findings: Findings in order.
        limits: Names of the limits that were reached.
        lost: Records that are missing, as `gap` records tell.
    """

    steps: int
    processes: int
    allowed: int
    denied: int
    names_refused: int
    files: tuple[str, ...]
    removed: int
    destinations: tuple[Destination, ...]
    findings: tuple[Finding, ...]
    limits: tuple[str, ...]
    lost: int


def tally(events: Iterable[AnyEvent]) -> Tally:
    """Count what happened in `events` (those of a step, or of a whole watch)."""
    counting = _Counting()
    for event in events:
        counting.add(event)
    return counting.result()


@dataclass
class _Counting:
    steps: int = 0
    names_refused: int = 0
    lost: int = 0
    pids: set[int] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    calls: dict[tuple[str, int], tuple[str, str, str]] = field(default_factory=dict)
    names: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    limits: dict[str, None] = field(default_factory=dict)

    def add(self, event: AnyEvent) -> None:
        match event:
            case Exec() | Exit() if event.pid:
                self.pids.add(event.pid)
            case Step(op="start"):
                self.steps += 1
            case Connect():
                self._connect(event)
            case Flow(op="named") if event.verdict in ("deny", "kill"):
                where = f"{event.host or event.addr}:{event.port}"
                self.calls["flow", event.flow] = ("deny", where, event.rule or event.protocol)
            case Dns() if event.verdict == "deny":
                self.names_refused += 1
                self.names[event.qname, event.rule] += 1
            case FileOp() if event.verdict == "allow":
                self._file(event)
            case Finding():
                self.findings.append(event)
            case LimitHit():
                self.limits[event.limit] = None
            case Gap():
                self.lost += event.lost
            case _:
                pass

    def _connect(self, event: Connect) -> None:
        if event.verdict == "ask" or (event.verdict == "allow" and event.rule == _INSIDE):
            return  # a held call's answer is a record of its own
        where = event.addr if event.transport == "unix" else f"{event.host or event.addr}:{event.port}"
        verdict = "allow" if event.verdict == "allow" else "deny"
        # A flow may have several records (pending, done); one that its first bytes got refused stays refused.
        key = ("flow", event.flow) if event.flow else ("seq", event.seq)
        if self.calls.get(key, ("", "", ""))[0] != "deny":
            self.calls[key] = (verdict, where, event.rule)

    def _file(self, event: FileOp) -> None:
        path = event.path2 if event.op in _TWO_NAMES and event.path2 else event.path
        if not path.startswith(_NOT_FILES) and event.op not in _FOLDERS:
            (self.removed if event.op in _REMOVALS else self.files).add(path)

    def result(self) -> Tally:
        grouped = Counter(self.calls.values())
        verdicts = Counter(verdict for verdict, _, _ in self.calls.values())
        found = [Destination(verdict, where, reason, count) for (verdict, where, reason), count in grouped.items()]
        found += [Destination("deny", f"name {name}", rule, count) for (name, rule), count in self.names.items()]
        return Tally(
            steps=self.steps,
            processes=len(self.pids),
            allowed=verdicts["allow"],
            denied=verdicts["deny"],
            names_refused=self.names_refused,
            files=tuple(sorted(self.files)),
            removed=len(self.removed),
            destinations=tuple(sorted(found, key=lambda d: (d.verdict == "allow", -d.count, d.where))),
            findings=tuple(self.findings),
            limits=tuple(self.limits),
            lost=self.lost,
        )
