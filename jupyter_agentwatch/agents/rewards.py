"""Rewards as sums of named terms, and a price on what the supervisor has on record: findings, compute, egress.

Amounts come from the audit log, which the sandbox cannot write to; never from what an agent says. A price on what a
detector sees teaches what it does not see: contain first, price second.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from jupyter_agentwatch.agents.model import AgentStep, RewardFunction
from jupyter_agentwatch.watch.accounts import Account
from jupyter_agentwatch.watch.episode import Usage

__all__ = ["PenalisedReward", "RewardLedger", "account_amounts", "check_prices", "price_terms", "priced_amounts"]

_FINDING: Final = "finding"
_PREFIX: Final = "price."
_AMOUNTS: Final = (
    *("egress_denied", "bytes_out", "gpu_outside_s", "gpu_s", "cpu_s", "listens", "tokens", "cost_usd", _FINDING),
)


def priced_amounts(step: AgentStep) -> dict[str, float]:
    """Return everything of a step that can have a price; see `account_amounts`."""
    return account_amounts(step.account, step.action.usage)


def account_amounts(account: Account, usage: Usage | None = None) -> dict[str, float]:
    """Return everything of what is on record that can have a price.

    Args:
        account: What the supervisor has on record.
        usage: What a model cost beside it.

    Returns:
        "finding" (how many, but for those of severity "info") and "finding.<family>"; "egress_denied" (connections,
        flows and names refused); "bytes_out"; "gpu_outside_s" (GPU seconds that no lease covers), "gpu_s" and "cpu_s";
        "listens" (listening sockets); "tokens" and "cost_usd" of the model.
    """
    used = usage or Usage()
    told = [finding for finding in account.findings if finding.severity != "info"]
    families = Counter(f"{_FINDING}.{finding.family}" for finding in told)
    return {
        "egress_denied": float(account.egress_denied),
        "bytes_out": float(account.bytes_out),
        "gpu_outside_s": account.gpu_outside_s,
        "gpu_s": account.gpu_s,
        "cpu_s": account.cpu_s,
        "listens": float(account.listens),
        "tokens": float(used.tokens),
        "cost_usd": used.cost_usd,
        _FINDING: float(len(told)),
        **{family: float(number) for family, number in families.items()},
    }


def check_prices(prices: Mapping[str, float]) -> dict[str, float]:
    """Return prices as they are.

    Raises:
        ValueError: There is no such amount, or a price is negative or no finite number.
    """
    for name, price in prices.items():
        if name not in _AMOUNTS and not name.startswith(f"{_FINDING}."):
            msg = f"prices: there is no amount {name!r}; known: {', '.join(_AMOUNTS)}, {_FINDING}.<family>"
            raise ValueError(msg)
        if not (math.isfinite(price) and price >= 0):
            msg = f"prices: {name} is {price}; give a number that is not negative"
            raise ValueError(msg)
    return dict(prices)


def price_terms(prices: Mapping[str, float], amounts: Mapping[str, float]) -> dict[str, float]:
    """Return a term "price.<name>" of `-price * amount` for each price."""
    return {f"{_PREFIX}{name}": -price * amounts.get(name, 0.0) for name, price in prices.items()}


class PenalisedReward:
    """A reward less the price of what is on record: its terms "price.<name>" are `-price * amount`.

    A price of 0 only measures: the term is 0, and the amount stands in `amounts`.

    Attributes:
        prices: Price of one of each amount.
        amounts: All amounts so far, priced or not.

    Example:
        >>> reward = PenalisedReward(task_reward, {"finding": 1.0, "gpu_outside_s": 0.1})  # doctest: +SKIP
        >>> watch.run_agent(agent, task, reward=reward)  # doctest: +SKIP
    """

    def __init__(self, reward: RewardFunction, prices: Mapping[str, float]) -> None:
        """Wrap a reward.

        Args:
            reward: What a step earns by itself.
            prices: Price of one of each, by the names of `priced_amounts`.

        Raises:
            ValueError: There is no such amount, or a price is negative or no finite number.
        """
        self.prices = check_prices(prices)
        self.amounts: Counter[str] = Counter()
        self._reward = reward

    def __call__(self, step: AgentStep) -> dict[str, float]:
        """Return the terms of the reward, and a negative one for each price."""
        amounts = priced_amounts(step)
        self.amounts.update(amounts)
        return dict(self._reward(step)) | price_terms(self.prices, amounts)


class RewardLedger:
    """What was earned, turn by turn and part by part; it only grows."""

    def __init__(self) -> None:
        """Make an empty ledger."""
        self._entries: list[tuple[int, dict[str, float]]] = []

    def add(self, turn: int, terms: Mapping[str, float]) -> None:
        """Enter what a turn earned."""
        self._entries.append((turn, {name: float(value) for name, value in terms.items()}))

    @property
    def entries(self) -> Sequence[tuple[int, Mapping[str, float]]]:
        """Each turn with its terms, in order."""
        return tuple(self._entries)

    @property
    def total(self) -> float:
        """Sum of everything."""
        return math.fsum(value for _, terms in self._entries for value in terms.values())

    def by_term(self) -> dict[str, float]:
        """Return the sum of each part, in the order in which they appeared."""
        names = dict.fromkeys(name for _, terms in self._entries for name in terms)
        return {name: math.fsum(terms.get(name, 0.0) for _, terms in self._entries) for name in names}

    def by_turn(self) -> list[float]:
        """Return the sum of each entry, in order."""
        return [math.fsum(terms.values()) for _, terms in self._entries]
