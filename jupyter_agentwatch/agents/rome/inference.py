"""What the lab's numbers allow to be said: intervals, permutation tests, and a correction for many tests at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jupyter_agentwatch.agents.rome.learner import Reals

__all__ = ["Interval", "chance", "holm", "interval", "iqm"]


@dataclass(frozen=True, slots=True)
class Interval:
    """An interquartile mean over seeds with its 95 % bootstrap interval."""

    iqm: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.iqm:.2f} [{self.low:.2f}, {self.high:.2f}]"


def interval(values: Reals, *, draws: int = 2000, seed: int = 12345) -> Interval:
    """Return the interquartile mean of values, with the 95 % percentile interval of a bootstrap over them.

    Args:
        values: One for each seed.
        draws: Resamples.
        seed: Of the resampling, so that the same values give the same interval.
    """
    picks = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.percentile(iqm(values[picks]), (2.5, 97.5))
    return Interval(float(iqm(values)), float(low), float(high))


def iqm(values: Reals) -> Reals:
    """Return the interquartile mean over the last axis: the mean without the lowest and the highest quarter."""
    ordered = np.sort(values, axis=-1)
    cut = ordered.shape[-1] // 4
    return np.asarray(ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1))


def chance(one: Reals, two: Reals, draws: int, dice: np.random.Generator) -> float:
    """Return how often values that are dealt at random differ in their IQMs by at least as much as these do.

    The p-value of a permutation test: exact, whatever the values' distribution, where both come from one.

    Args:
        one: Values, one for each seed.
        two: Other ones.
        draws: Permutations.
        dice: What deals.
    """
    pool = np.concatenate([one, two])
    dealt = dice.permuted(np.broadcast_to(pool, (draws, len(pool))), axis=1)
    differences = np.abs(iqm(dealt[:, : len(one)]) - iqm(dealt[:, len(one) :]))
    slack = 1e-9  # sums of the same numbers in another order
    return float((1 + np.sum(differences >= abs(iqm(one) - iqm(two)) - slack)) / (draws + 1))


def holm(chances: Reals) -> Reals:
    """Return chances corrected for their number by Holm's method, in their order.

    What stays at or below a level then is a false alarm in at most that share of all tables.

    Args:
        chances: One for each test.
    """
    order = np.argsort(chances, kind="stable")
    factors = np.arange(len(chances), 0, -1)
    corrected = np.empty(len(chances))
    corrected[order] = np.minimum(np.maximum.accumulate(chances[order] * factors), 1.0)
    return corrected
