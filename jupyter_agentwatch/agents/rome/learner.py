"""A policy-gradient learner in NumPy: tabular REINFORCE with a learnt baseline, for many seeds side by side.

The agent plans an episode from its own past actions alone and sees no output; findings reach it as numbers only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from jupyter_agentwatch.agents.rome.model import EPOCHS_NEEDED, HORIZON, Move, Outcomes, Plans, Setting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jupyter_agentwatch.agents.rome.model import Ground

__all__ = ["Learnt", "Reals", "Rewards", "Training", "learn"]

Reals = npt.NDArray[np.float64]
"""Numbers, of the shape that is said where they are used."""

_STATES: Final = (EPOCHS_NEEDED + 1) * 2 * 2
_BASELINE_RATE: Final = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewards:
    """The reward as a sum of named terms.

    Attributes:
        success: For the task's tests passing, once an episode.
        utilisation: For each action that reports a unit of computing ("keep the machines busy"). It is this term that
            a useful-looking number adds to the task, and that mining earns as well as training does.
        price: Taken off for each action that raised an alarm.
    """

    success: float = 1.0
    utilisation: float = 0.0
    price: float = 0.0

    def terms(self, outcomes: Outcomes) -> dict[str, Reals]:
        """Return each term for each action."""
        return {
            "success": self.success * outcomes.passed.astype(np.float64),
            "utilisation": self.utilisation * outcomes.busy.astype(np.float64),
            "penalty": -self.price * outcomes.alarmed.astype(np.float64),
        }

    def total(self, outcomes: Outcomes) -> Reals:
        """Return the reward of each action."""
        return np.asarray(sum(self.terms(outcomes).values()), dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How long and how fast is learnt.

    Attributes:
        iterations: Updates of the policy; 0 leaves it uniform.
        batch: Episodes for each update and seed.
        rate: Step of the gradient.
        entropy: Weight of the policy's entropy, which keeps it from settling early.
        evaluation: Episodes for each seed that are played with the policy of the end, for the figures reported.
    """

    iterations: int = 12
    batch: int = 8
    rate: float = 4.0
    entropy: float = 0.05
    evaluation: int = 8


@dataclass(frozen=True, slots=True)
class Learnt:
    """What came of learning; the first axis is the seed.

    Attributes:
        curve: Mean diverted actions per episode, and share of episodes with success, in each iteration:
            (seeds, iterations, 2).
        plans: The evaluation's episodes: (seeds, evaluation, HORIZON).
        outcomes: What came of them, of the same shape.
    """

    curve: Reals
    plans: Plans
    outcomes: Outcomes


class _Policies:
    """One table of preferences for each seed, by what the episode has done: epochs, tests, tunnel."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._dice = [np.random.default_rng(seed) for seed in seeds]
        self._each = np.arange(len(seeds))[:, None]
        self.preferences = np.zeros((len(seeds), _STATES, len(Move)))
        self.values = np.zeros((len(seeds), HORIZON, _STATES))

    def sample(self, episodes: int) -> tuple[Plans, Plans]:
        """Return plans, and the state before each action: (seeds, episodes, HORIZON) both."""
        dice = np.stack([each.random((episodes, HORIZON)) for each in self._dice])
        plans = np.zeros(dice.shape, dtype=np.int64)
        states = np.zeros(dice.shape, dtype=np.int64)
        epochs, tested, tunnel = (np.zeros(dice.shape[:2], dtype=np.int64) for _ in range(3))
        for slot in range(HORIZON):
            states[..., slot] = (epochs * 2 + tested) * 2 + tunnel
            below = self.chances(states[..., slot]).cumsum(axis=-1) < dice[..., slot, None]
            actions = np.minimum(below.sum(axis=-1), len(Move) - 1)
            plans[..., slot] = actions
            tested |= (actions == Move.TEST) & (epochs >= EPOCHS_NEEDED)
            epochs = np.minimum(EPOCHS_NEEDED, epochs + (actions == Move.TRAIN))
            tunnel |= actions == Move.TUNNEL
        return plans, states

    def chances(self, states: Plans) -> Reals:
        """Return the probability of each action: (seeds, episodes, actions)."""
        preferences = self.preferences[self._each, states]
        powers = np.exp(preferences - preferences.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True), dtype=np.float64)

    def update(self, plans: Plans, states: Plans, rewards: Reals, training: Training) -> None:
        """Follow the gradient of the expected reward to come, and of the entropy."""
        to_come = rewards[..., ::-1].cumsum(axis=-1)[..., ::-1]
        gradient = np.zeros_like(self.preferences)
        for slot in range(HORIZON):
            state = states[..., slot]
            chances = self.chances(state)
            advantage = to_come[..., slot] - self.values[self._each, slot, state]
            taken = np.eye(len(Move))[plans[..., slot]]
            logs = np.log(chances + 1e-12)
            entropy = -(chances * logs).sum(axis=-1, keepdims=True)
            push = advantage[..., None] * (taken - chances) - training.entropy * chances * (logs + entropy)
            np.add.at(gradient, (self._each, state), push / training.batch)
            np.add.at(self.values[:, slot], (self._each, state), _BASELINE_RATE * advantage / training.batch)
        self.preferences += training.rate * gradient


def learn(
    ground: Ground,
    setting: Setting,
    rewards: Rewards,
    seeds: Sequence[int],
    training: Training,
    progress: Callable[[int], None] | None = None,
) -> Learnt:
    """Learn with each seed, then play with what was learnt.

    Args:
        ground: Where episodes take place.
        setting: What is allowed and what is detected.
        rewards: What is paid.
        seeds: One run each; a seed draws the same numbers under every condition.
        training: How long and how fast.
        progress: Called with the number of each iteration that has ended.
    """
    policies = _Policies(seeds)
    curve = np.zeros((len(seeds), training.iterations, 2))

    def play(plans: Plans) -> Outcomes:
        return ground.play(setting, plans.reshape(-1, HORIZON)).reshaped(*plans.shape)

    for iteration in range(training.iterations):
        plans, states = policies.sample(training.batch)
        outcomes = play(plans)
        curve[:, iteration, 0] = outcomes.diverted.sum(axis=2).mean(axis=1)
        curve[:, iteration, 1] = outcomes.passed.any(axis=2).mean(axis=1)
        policies.update(plans, states, rewards.total(outcomes), training)
        if progress is not None:
            progress(iteration)
    plans, _ = policies.sample(training.evaluation)
    return Learnt(curve, plans, play(plans))
