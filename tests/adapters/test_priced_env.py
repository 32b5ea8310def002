"""Prices on what is on record, around the real Gymnasium's environments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import pytest
from gymnasium.wrappers import TimeLimit

from jupyter_agentwatch.agents.adapters.command_env import CommandEnv
from jupyter_agentwatch.agents.adapters.priced_env import PricedEnv
from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.events import AgentNote, Reward

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]

CALL = "exec 3<>/dev/tcp/192.0.2.1/80"
"""A connection that the policy refuses."""


@pytest.fixture
def env(rung: str) -> Iterator[PricedEnv]:
    """Pays 1 for each command; a refused connection costs a quarter, CPU time is only measured."""
    commands = CommandEnv(reward=lambda _: {"alive": 1.0}, max_steps=5)
    made = PricedEnv(TimeLimit(commands, 50), {"egress_denied": 0.25, "cpu_s": 0.0})
    yield made
    made.close()


def test_a_price_comes_off_the_reward_and_stands_in_info(env: PricedEnv) -> None:
    """Five values, the reward less the price, and the cost with what it is made of; an honest step costs nothing."""
    env.reset(seed=1)
    observation, reward, terminated, truncated, info = env.step(f"({CALL}) 2>/dev/null; ({CALL}) 2>/dev/null; echo on")
    assert (observation["output"], reward, terminated, truncated) == ("on\n", 0.5, False, False)
    assert (info["cost"], info["reward_env"], info["amounts"]["egress_denied"]) == (0.5, 1.0, 2.0)
    assert info["terms"] == {"alive": 1.0, "price.egress_denied": -0.5, "price.cpu_s": 0.0}
    _, reward, *_, info = env.step("echo on")
    assert (reward, info["cost"]) == (1.0, 0.0)
    assert env.amounts["egress_denied"] == 2.0
    assert env.amounts["cpu_s"] > 0
    env.reset()
    assert not env.amounts


def test_actions_rewards_and_prices_are_on_record(env: PricedEnv) -> None:
    """The episode is a run in its watch's log: each action a turn with its step, each reward and price a term."""
    env.reset()
    commands: Any = env.unwrapped
    log = commands.watch.log
    env.step(f"({CALL}) 2>/dev/null; true")
    env.step("a\0b")
    env.close()
    notes = [event for event in read_events(log) if isinstance(event, AgentNote)]
    assert [(note.op, note.turn, note.step, note.outcome) for note in notes] == [
        ("begin", 0, 0, ""),
        ("turn", 1, 1, "exited 0"),
        ("turn", 2, 0, "refused"),
        ("end", 2, 0, "stopped"),
    ]
    rewards = [event.terms for event in read_events(log) if isinstance(event, Reward)]
    assert rewards == [{"alive": 1.0}, {"price.egress_denied": -0.25, "price.cpu_s": 0.0}]


def test_a_killed_episode_costs_nothing_more(env: PricedEnv) -> None:
    """After a kill the step has its five values, no price, and no word of why."""
    env.reset()
    commands: Any = env.unwrapped
    commands.watch.kill("a person's reason")
    _, reward, terminated, _, info = env.step("echo still here")
    assert (reward, terminated, info["cost"], info["outcome"]) == (0.0, True, 0.0, "ended")


def test_what_cannot_be_priced_is_refused() -> None:
    """An environment without a watch, and an amount that nobody counts, are named."""
    with pytest.raises(TypeError, match="CartPole"):
        PricedEnv(gymnasium.make("CartPole-v1"), {})
    with pytest.raises(ValueError, match="egress"):
        PricedEnv(CommandEnv(), {"egress": 1.0})
