"""Agents for tests, whose actions are known beforehand."""

from __future__ import annotations

from jupyter_agentwatch.agents import Action, Finish, Observation

__all__ = ["Doing"]


class Doing:
    """Does one thing after the other, finishes, and keeps what it saw.

    Attributes:
        seen: The observations so far.
    """

    def __init__(self, *actions: Action) -> None:
        self._actions = iter(actions)
        self.seen: list[Observation] = []

    def act(self, observation: Observation, /) -> Action:
        """Return the next action."""
        self.seen.append(observation)
        return next(self._actions, Finish())
