"""How runs of agents stand, turn by turn, put together from the record: bounded, and pure.

What an agent says of itself is joined with what the supervisor saw of its commands. Every text in it is hostile.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Final

from jupyter_agentwatch.events import AgentNote, AnyEvent, Finding, ModelCall, Reward, Step

__all__ = ["AgentDigest", "AgentProgress", "AgentTurn"]

_RUNS: Final = 20
_TURNS: Final = 500
_STEPS: Final = 5000
_TERMS: Final = 64
_CALLS: Final = frozenset({"exec", "connect", "listen", "dns", "file", "model"})


@dataclass(slots=True)
class AgentTurn:
    """One turn of a run.

    Attributes:
        number: From 1.
        action: What was chosen; "" while its command runs and nobody has said.
        text: What the action says, or the command that runs.
        outcome: What came of it; "" while it goes on.
        calls: Calls of its commands by verdict.
        findings: Findings about its commands.
        tokens: Tokens read and written for it.
        cost: What these cost.
        reward: What it earned; None where nothing was said.
    """

    number: int
    action: str = ""
    text: str = ""
    outcome: str = ""
    calls: Counter[str] = field(default_factory=Counter)
    findings: int = 0
    tokens: int = 0
    cost: float = 0.0
    reward: float | None = None

    @property
    def verdicts(self) -> str:
        """What was allowed, denied, held and found, in words; "" where nothing was."""
        told = {"allowed": self.calls["allow"], "denied": self.calls["deny"] + self.calls["kill"]}
        told |= {"held": self.calls["ask"], "found": self.findings}
        return ", ".join(f"{number} {name}" for name, number in told.items() if number)


@dataclass(slots=True)
class AgentProgress:
    """One run of an agent.

    Attributes:
        run: Its id.
        agent: Name of the agent.
        task: What it is to do.
        max_steps: Most turns; 0 where nobody said.
        outcome: How it ended; "" while it goes on.
        answer: What the agent said at the end, or what went wrong.
        steps: Turns that were begun.
        tokens: Tokens read and written.
        cost: What these cost.
        terms: Sums of the rewards' parts.
        turns: The newest turns by their numbers.
    """

    run: str
    agent: str = ""
    task: str = ""
    max_steps: int = 0
    outcome: str = ""
    answer: str = ""
    steps: int = 0
    tokens: int = 0
    cost: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)
    turns: OrderedDict[int, AgentTurn] = field(default_factory=OrderedDict)

    @property
    def line(self) -> str:
        """How it stands, in one line of hostile text."""
        of = f" of {self.max_steps}" if self.max_steps else ""
        parts = [f"agent {self.agent}: {self.outcome or 'goes on'}", f"step {self.steps}{of}"]
        parts += [f"{self.tokens} tokens"] if self.tokens else []
        parts += [f"cost {self.cost:.4f}"] if self.cost else []
        terms = ", ".join(f"{name} {value:+g}" for name, value in self.terms.items())
        parts += [f"reward {sum(self.terms.values()):+g} = {terms}"] if terms else []
        return " · ".join(parts)


class AgentDigest:
    """The runs of agents in one watch, the newest 20 with their newest 500 turns.

    Attributes:
        runs: By their ids, oldest first.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.runs: OrderedDict[str, AgentProgress] = OrderedDict()
        self._turn_of: OrderedDict[int, AgentTurn] = OrderedDict()
        self._run_of: dict[int, AgentProgress] = {}

    def feed(self, event: AnyEvent) -> None:
        """Take the next record."""
        match event:
            case AgentNote():
                self._note(event)
            case Reward() if event.run in self.runs:
                run = self.runs[event.run]
                for name, value in event.terms.items():
                    if name in run.terms or len(run.terms) < _TERMS:
                        run.terms[name] = run.terms.get(name, 0.0) + value
                turn = self._turn(run, event.turn)
                turn.reward = (turn.reward or 0.0) + event.total
            case Step(op="start") if event.run in self.runs:
                run = self.runs[event.run]
                turn = self._turn(run, event.turn)
                turn.text = turn.text or " ".join(event.argv)
                self._belongs(event.step, run, turn)
            case _ if event.step in self._turn_of:
                self._count(event)

    def _note(self, event: AgentNote) -> None:
        if event.op == "begin":
            self.runs[event.run] = AgentProgress(event.run, event.agent, event.text, event.max_steps)
            if len(self.runs) > _RUNS:
                self.runs.popitem(last=False)
        run = self.runs.get(event.run)
        if run is None or event.op == "begin":
            return
        if event.op == "end":
            run.outcome, run.answer = event.outcome, event.text
            return
        turn = self._turn(run, event.turn)
        turn.action, turn.text, turn.outcome = event.action, event.text, event.outcome
        _spend(run, turn, event.tokens_in + event.tokens_out, event.cost_usd)
        if event.step:
            self._belongs(event.step, run, turn)

    def _count(self, event: AnyEvent) -> None:
        turn = self._turn_of[event.step]
        if isinstance(event, Finding):
            turn.findings += 1
            return
        kind = str(event.__struct_config__.tag)
        # An allowed exec has two records: the claim, and what was found running.
        if event.verdict != "allow" or (kind in _CALLS and not (kind == "exec" and event.basis == "post")):
            turn.calls[event.verdict] += 1
        if isinstance(event, ModelCall) and event.op == "response":
            _spend(self._run_of[event.step], turn, event.input_tokens + event.output_tokens, event.cost)

    def _turn(self, run: AgentProgress, number: int) -> AgentTurn:
        turn = run.turns.get(number)
        if turn is None:
            turn = run.turns[number] = AgentTurn(number)
            run.steps = max(run.steps, number)
            if len(run.turns) > _TURNS:
                run.turns.popitem(last=False)
        return turn

    def _belongs(self, step: int, run: AgentProgress, turn: AgentTurn) -> None:
        if not step or step in self._turn_of:
            return
        self._turn_of[step], self._run_of[step] = turn, run
        if len(self._turn_of) > _STEPS:
            oldest, _ = self._turn_of.popitem(last=False)
            del self._run_of[oldest]


def _spend(run: AgentProgress, turn: AgentTurn, tokens: int, cost: float) -> None:
    turn.tokens += tokens
    turn.cost += cost
    run.tokens += tokens
    run.cost += cost
