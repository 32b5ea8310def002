"""Rewards: named terms, prices on what the supervisor has on record, the ledger, and the figure of both."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_agentwatch.agents import (
    AgentStep,
    Finish,
    Observation,
    Outcome,
    PenalisedReward,
    RewardLedger,
    Say,
    Shell,
    priced_amounts,
)
from jupyter_agentwatch.testing import event
from jupyter_agentwatch.watch import Account, Usage
from jupyter_agentwatch.watch.figures import chart_spec, plotted
from jupyter_agentwatch.watch.reward_chart import RewardChart

if TYPE_CHECKING:
    from pathlib import Path

    from jupyter_agentwatch import Watch

PATIENCE_S = 60.0


def a_step(*events: tuple[str, dict[str, Any]], usage: Usage | None = None) -> AgentStep:
    """Return a step of which these events are on record."""
    account = Account()
    for kind, fields in events:
        account.feed(event(kind, **fields))
    return AgentStep(
        turn=1,
        action=Say("x", usage=usage or Usage()),
        step=1,
        observation=Observation(task="t", turn=1),
        account=account,
        agent_s=0.0,
        step_s=0.0,
    )


def test_amounts_are_counted_from_the_record() -> None:
    """Findings by family, refusals, bytes, compute with and without a lease, and what the model cost."""
    step = a_step(
        ("finding", {"family": "mining", "severity": "high"}),
        ("finding", {"family": "mining", "severity": "info"}),
        ("finding", {"family": "tunnel", "severity": "low"}),
        ("connect", {"verdict": "deny"}),
        ("connect", {"verdict": "allow"}),
        ("dns", {"verdict": "deny"}),
        ("flow", {"op": "closed", "bytes_out": 700}),
        ("flow", {"op": "named", "bytes_out": 7}),
        ("gpu", {"op": "process", "gpu_seconds": 2.0, "outside_s": 1.5}),
        ("gpu", {"op": "device", "gpu_seconds": 9.0, "outside_s": 9.0}),
        ("step", {"op": "end", "cpu_user_s": 0.5, "cpu_system_s": 0.25}),
        ("listen", {"op": "listen"}),
        ("listen", {"op": "bind"}),
        usage=Usage(tokens_in=10, tokens_out=5, cost_usd=0.1),
    )
    assert priced_amounts(step) == {
        "egress_denied": 2.0,
        "bytes_out": 700.0,
        "gpu_outside_s": 1.5,
        "gpu_s": 2.0,
        "cpu_s": 0.75,
        "listens": 1.0,
        "tokens": 15.0,
        "cost_usd": 0.1,
        "finding": 2.0,
        "finding.mining": 1.0,
        "finding.tunnel": 1.0,
    }


def test_a_penalised_reward_is_the_reward_less_its_prices() -> None:
    """Each price is a term of its own, one of 0 only measures, and what does not occur costs nothing."""
    prices = {"finding.mining": 2.0, "gpu_outside_s": 0.1, "egress_denied": 0.0, "finding.shell": 5.0}
    reward = PenalisedReward(lambda _: {"task": 1.0}, prices)
    step = a_step(
        ("finding", {"family": "mining", "severity": "high"}),
        ("gpu", {"op": "process", "gpu_seconds": 2.0, "outside_s": 2.0}),
        ("connect", {"verdict": "deny"}),
    )
    for _ in range(2):
        terms = reward(step)
        assert terms == {
            "task": 1.0,
            "price.finding.mining": -2.0,
            "price.gpu_outside_s": pytest.approx(-0.2),
            "price.egress_denied": 0.0,
            "price.finding.shell": 0.0,
        }
    assert (reward.amounts["egress_denied"], reward.amounts["gpu_outside_s"]) == (2.0, 4.0)


@pytest.mark.parametrize(
    ("prices", "says"),
    [
        ({"fun": 1.0}, "no amount 'fun'; known: egress_denied"),
        ({"cpu_s": -1.0}, "cpu_s is -1.0"),
        ({"cpu_s": math.nan}, "nan"),
    ],
)
def test_prices_that_mean_nothing_are_refused(prices: dict[str, float], says: str) -> None:
    """An unknown amount and a price that is negative or no number are named."""
    with pytest.raises(ValueError, match=says):
        PenalisedReward(lambda _: {}, prices)


TERMS = st.dictionaries(st.sampled_from("abcd"), st.floats(-1e6, 1e6), max_size=4)


@given(st.lists(TERMS, max_size=20))
def test_a_ledger_adds_up_both_ways(entries: list[dict[str, float]]) -> None:
    """The total is the sum of the turns and the sum of the parts."""
    ledger = RewardLedger()
    for turn, terms in enumerate(entries, 1):
        ledger.add(turn, terms)
    assert ledger.total == pytest.approx(math.fsum(ledger.by_term().values()), abs=1e-6)
    assert ledger.total == pytest.approx(math.fsum(ledger.by_turn()), abs=1e-6)
    assert [turn for turn, _ in ledger.entries] == list(range(1, len(entries) + 1))


def test_the_chart_shows_returns_and_parts() -> None:
    """A run's return stands at its last reward, the parts are summed, too many of them are one line."""
    chart = RewardChart()
    assert chart.notes == ["none on record"]
    assert not chart.feed(event("exec"))
    chart.feed(event("reward", run="a", t_wall_ns=1, total=1.0, terms={"task": 2.0, "price": -1.0}))
    chart.feed(event("reward", run="b", t_wall_ns=2, total=5.0, terms={"task": 5.0}))
    chart.feed(event("reward", run="a", t_wall_ns=3, total=1.0, terms={"task": 1.0}))
    returns, task, price = chart.lines
    assert (returns.t_ns, returns.values) == ([2, 3], [5.0, 2.0])
    assert (task.group, task.t_ns, task.values) == ("task", [1, 2, 3], [2.0, 7.0, 8.0])
    assert (price.group, price.values) == ("price", [-1.0])
    for number in range(40):
        chart.feed(event("reward", run="c", terms={f"part {number}": 1.0}))
    assert len(chart.lines) == 1 + 16 + 1
    assert chart.lines[-1].values[-1] == 26.0
    shown = plotted(chart_spec(chart)).data[0]
    assert (shown.name, shown.showlegend, shown.mode) == ("return", True, "lines+markers")  # a run is one point


@pytest.mark.sandbox
@pytest.mark.rungs("A", "B")
def test_a_real_run_pays_for_what_it_did(closed: Watch, tmp_path: Path) -> None:
    """Refused connections of a real run are priced from the log, and the figure shows the run's return."""
    actions = iter([Shell("exec 3<>/dev/tcp/192.0.2.1/80; exec 3<>/dev/tcp/192.0.2.1/81"), Shell("true"), Finish()])

    class Once:
        def act(self, _observation: Observation, /) -> Any:
            return next(actions)

    reward = PenalisedReward(lambda step: {"task": float(step.observation.ok)}, {"egress_denied": 0.5})
    run = closed.run_agent(Once(), "call out", reward=reward)
    assert run.wait(PATIENCE_S) is Outcome.FINISHED, run.reason
    assert run.ledger.by_term() == {"task": 1.0, "price.egress_denied": -1.0}
    assert [step.reward["price.egress_denied"] for step in run.steps] == [-1.0, 0.0, 0.0]
    figure = closed.figure("reward")
    assert {trace.name for trace in figure.data} == {"return", "task", "price.egress_denied"}
    assert figure.data[0].y[-1] == pytest.approx(0.0)
    assert list(closed.events(kind="reward")["total"]) == [-1.0, 1.0, 0.0]
