"""What a saved notebook and a report draw of a run: a bounded digest of its record, made event by event. Pure.

Every text in it is as it came, hostile; whoever shows it makes it safe.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Final

from jupyter_agentwatch.events import AnyEvent, BreakerChanged, Connect, Finding, Flow, Gpu, Resources, Session, Step
from jupyter_agentwatch.watch.agent_digest import AgentDigest
from jupyter_agentwatch.watch.connections import ConnectionGraph, ConnectionGrapher

__all__ = ["Command", "Points", "Story"]

_COMMANDS: Final = 200
_FINDINGS: Final = 50
_POINTS: Final = 600
_GPUS: Final = 16


@dataclass(slots=True)
class Command:
    """One step; times in Unix nanoseconds, `ended_ns` 0 while it runs."""

    number: int
    argv: list[str]
    started_ns: int
    ended_ns: int = 0
    outcome: str = ""


class Points(list[tuple[int, float]]):
    """Values by Unix time in nanoseconds, from the first on: of too many every second one goes."""

    def add(self, t_ns: int, value: float) -> None:
        """Take the next value.

        Args:
            t_ns: Unix time, nanoseconds.
            value: What was measured.
        """
        self.append((t_ns, value))
        if len(self) > _POINTS:
            del self[1::2]


class Story:
    """The digest of one run.

    Attributes:
        watch: Id of the watch.
        rung: Rung of isolation.
        workspace: Its folder.
        state: State of the breaker, or "ended".
        why: What moved it last, or why the run ended.
        began_ns: Unix time of the first record.
        last_ns: Unix time of the last record.
        denied: Calls that were refused.
        steps: Commands that were started.
        survivors: Processes left at the end; None before it.
        commands: The newest steps.
        findings: The newest findings.
        agents: Runs of agents, turn by turn.
        cpu: Percent of one core by Unix time in nanoseconds.
        memory: Resident bytes, likewise.
        gpus: Percent of each GPU's time that was used, likewise; by the name that it is drawn with.
    """

    def __init__(self, watch: str) -> None:
        """Begin with nothing."""
        self.watch = watch
        self.rung = ""
        self.workspace = ""
        self.state = "closed"
        self.why = ""
        self.began_ns = 0
        self.last_ns = 0
        self.denied = 0
        self.steps = 0
        self.survivors: int | None = None
        self.commands: OrderedDict[int, Command] = OrderedDict()
        self.findings: deque[Finding] = deque(maxlen=_FINDINGS)
        self.cpu = Points()
        self.memory = Points()
        self.gpus: dict[str, Points] = {}
        self.agents = AgentDigest()
        self._grapher = ConnectionGrapher()

    @property
    def has_ended(self) -> bool:
        """Nothing more comes."""
        return self.state == "ended"

    def graph(self, most: int) -> ConnectionGraph:
        """Return who talked to whom, folded to so many nodes."""
        return self._grapher.graph(most)

    def feed(self, event: AnyEvent) -> None:
        """Take the next record of the log."""
        self.began_ns = self.began_ns or event.t_wall_ns
        self.last_ns = max(self.last_ns, event.t_wall_ns)
        self._grapher.feed(event)
        self.agents.feed(event)
        match event:
            case Session():
                self._session(event)
            case Step():
                self._step(event)
            case Finding():
                self.findings.append(event)
            case BreakerChanged():
                self.state, self.why = event.after, event.cause
            case Resources() if not event.pid and event.interval_s > 0:
                self.cpu.add(event.t_wall_ns, 100 * event.cpu_s / event.interval_s)
                self.memory.add(event.t_wall_ns, float(event.rss_bytes))
            case Gpu() if event.op == "device" and event.utilization is not None:
                self._gpu(event, event.utilization)
            case Connect() | Flow() if event.verdict == "deny":
                self.denied += 1
            case _:
                pass

    def _session(self, event: Session) -> None:
        if event.op == "open":
            self.rung, self.workspace = event.rung, event.workspace
        else:
            self.state, self.why, self.survivors = "ended", event.reason, event.survivors

    def _gpu(self, event: Gpu, utilization: float) -> None:
        name = f"GPU {event.index}{' SIMULATED' if event.simulated else ''}"
        if name in self.gpus or len(self.gpus) < _GPUS:
            self.gpus.setdefault(name, Points()).add(event.t_wall_ns, utilization)

    def _step(self, event: Step) -> None:
        if event.op == "start":
            self.steps += 1
            self.commands[event.step] = Command(event.step, event.argv, event.t_wall_ns)
            if len(self.commands) > _COMMANDS:
                self.commands.popitem(last=False)
        elif event.step in self.commands:
            command = self.commands[event.step]
            command.ended_ns = event.t_wall_ns
            command.outcome = f"exit {event.exit_code}" if event.exit_code is not None else event.outcome
