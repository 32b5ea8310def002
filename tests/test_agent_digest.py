"""How far runs of agents are, put together from the record: the agent's own word joined with what was seen of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jupyter_agentwatch.testing import event
from jupyter_agentwatch.watch.agent_digest import AgentDigest

if TYPE_CHECKING:
    from jupyter_agentwatch.events import AnyEvent


def digested(*events: AnyEvent) -> AgentDigest:
    """Return the digest of records."""
    found = AgentDigest()
    for each in events:
        found.feed(each)
    return found


def begun(run: str = "r1", **fields: Any) -> AnyEvent:
    """Return the beginning of a run."""
    return event("agent", op="begin", run=run, agent="mine", text="a task", **fields)


def test_what_was_seen_of_a_step_counts_for_the_turn_that_caused_it() -> None:
    """Every command of a turn counts, an exec once, and what no agent has started counts for none."""
    digest = digested(
        begun(max_steps=5),
        *(event("step", step=step, op="start", run="r1", turn=1, argv=["true"]) for step in (1, 2)),
        event("step", step=3, op="start", argv=["true"]),
        event("exec", step=1, basis="claimed"),
        event("exec", step=1, basis="post"),
        event("connect", step=2, transport="tcp", addr="192.0.2.1", verdict="ask"),
        event("connect", step=2, transport="tcp", addr="192.0.2.1", verdict="deny"),
        event("connect", step=3, transport="tcp", addr="192.0.2.1", verdict="deny"),
        event("finding", step=2, rule="r", title="t", severity="high", verdict="deny"),
        event("model", step=2, op="response", flow=0, input_tokens=3, output_tokens=4, cost=0.5),
    )
    run = digest.runs["r1"]
    assert run.turns[1].verdicts == "2 allowed, 1 denied, 1 held, 1 found"
    assert (run.tokens, run.cost) == (7, 0.5)
    assert run.line == "agent mine: goes on · step 1 of 5 · 7 tokens · cost 0.5000"


def test_runs_at_the_same_time_are_told_apart() -> None:
    """Turns, rewards and ends go to the run that they name; one that nobody began is passed over."""
    digest = digested(
        begun("r1"),
        begun("r2"),
        event("agent", op="turn", run="r2", turn=1, action="say", text="two", outcome="said"),
        event("reward", run="r1", turn=1, total=2.0, terms={"task": 2.0}),
        event("reward", run="r1", turn=1, total=-1.0, terms={"price": -1.0}),
        event("agent", op="end", run="r2", turn=1, outcome="finished"),
        event("agent", op="turn", run="r3", turn=1),
    )
    assert list(digest.runs) == ["r1", "r2"]
    assert [run.outcome for run in digest.runs.values()] == ["", "finished"]
    assert digest.runs["r1"].turns[1].reward == 1.0
    assert digest.runs["r1"].line.endswith("reward +1 = task +2, price -1")


def test_a_digest_has_bounds() -> None:
    """However many runs, turns, steps and terms there are, what is kept stays bounded, and is the newest."""
    digest = digested(*(begun(f"r{number}") for number in range(50)))
    for number in range(1, 6000):
        digest.feed(event("step", step=number, op="start", run="r49", turn=number, argv=["x"]))
        digest.feed(event("reward", run="r49", turn=number, total=1.0, terms={f"t{number}": 1.0}))
    run = digest.runs["r49"]
    assert (len(digest.runs), len(run.turns), len(run.terms), run.steps) == (20, 500, 64, 5999)
    assert max(run.turns) == 5999
