"""Gymnasium: a wrapper that charges for what the supervisor has on record; the five values of a step stay five."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium

from jupyter_agentwatch.agents.adapters.command_env import CommandEnv, Observation
from jupyter_agentwatch.agents.rewards import account_amounts, check_prices, price_terms

__all__ = ["PricedEnv"]


class PricedEnv(gymnasium.Wrapper[Observation, str, Observation, str]):
    """Takes a price off the reward for findings, refused egress, compute outside a lease, and what else is on record.

    `info` gets `cost` (what was charged, not negative), `reward_env` (the reward before), `amounts` (all that can have
    a price) and the prices among its `terms`, whose sum is the reward. A price of 0 only measures. What comes on
    record late, as a GPU's use, is charged with the next step.

    Attributes:
        prices: Price of one of each amount.
        amounts: All amounts of the episode so far, priced or not.

    Example:
        >>> env = PricedEnv(CommandEnv(), {"finding": 1.0, "egress_denied": 0.25})  # doctest: +SKIP
        >>> observation, reward, terminated, truncated, info = env.step("make test")  # doctest: +SKIP
    """

    def __init__(self, env: gymnasium.Env[Observation, str], prices: Mapping[str, float]) -> None:
        """Wrap an environment.

        Args:
            env: A `CommandEnv`, perhaps wrapped.
            prices: Price of one of each, by the names of `account_amounts`.

        Raises:
            TypeError: It is no `CommandEnv`.
            ValueError: There is no such amount, or a price is negative or no finite number.
        """
        super().__init__(env)
        if not isinstance(env.unwrapped, CommandEnv):
            msg = f"env: {type(env.unwrapped).__name__} is no CommandEnv: it has no watch whose record could be priced"
            raise TypeError(msg)
        self.prices = check_prices(prices)
        self.amounts: Counter[str] = Counter()
        self._commands = env.unwrapped
        self._steps: list[int] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin a new episode, in which nothing is on record yet."""
        self.amounts.clear()
        self._steps.clear()
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, info

    def step(self, action: str) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Run one command, and charge for it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if info["step"]:
            self._steps.append(info["step"])
        watch = self._commands.watch
        amounts = account_amounts(watch.accounts.take(self._steps)) if watch is not None else {}
        self.amounts.update(amounts)
        charged = price_terms(self.prices, amounts)
        self._commands.pay(charged)
        cost = -sum(charged.values())
        told = {"cost": cost + 0.0, "reward_env": float(reward), "amounts": amounts}
        info = info | told | {"terms": info["terms"] | charged}
        return observation, float(reward) - cost, terminated, truncated, info
