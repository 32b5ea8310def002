"""What runs of agents earned, as lines over time: the return of each run, the sum of each part of the reward. Pure."""

from __future__ import annotations

from typing import Final

from jupyter_agentwatch.events import AnyEvent, Reward
from jupyter_agentwatch.watch.charts import Line

__all__ = ["RewardChart"]

_MOST_TERMS: Final = 16
_OTHERS: Final = "other parts"
_RETURN: Final = "return"


class RewardChart:
    """Takes records of rewards one by one; a run's return stands at the time of its last reward.

    Attributes:
        title: What is shown.
        panels: Name and unit of each panel.
    """

    title = "Rewards of agents' runs, as their drivers reckoned them"
    panels = (("return of a run", "reward"), ("terms, summed", "reward"))

    def __init__(self) -> None:
        """Make a chart without any reward."""
        self._returns: dict[str, tuple[int, float]] = {}
        self._terms: dict[str, Line] = {}

    def feed(self, event: AnyEvent) -> bool:
        """Take the next record; returns whether it was a reward."""
        if not isinstance(event, Reward):
            return False
        # Popped, so that runs stand in the order of their last rewards: the line never goes back in time.
        _, earned = self._returns.pop(event.run, (0, 0.0))
        self._returns[event.run] = (event.t_wall_ns, earned + event.total)
        for term, value in event.terms.items():
            name = term if term in self._terms or len(self._terms) < _MOST_TERMS else _OTHERS
            line = self._terms.setdefault(name, Line(panel=1, group=name, part=""))
            before = line.values[-1] if line.values else 0.0
            line.t_ns.append(event.t_wall_ns)
            line.values.append((before or 0.0) + value)
        return True

    @property
    def lines(self) -> list[Line]:
        """The returns, then each part in the order in which it appeared."""
        returns = Line(panel=0, group=_RETURN, part="")
        returns.t_ns = [when for when, _ in self._returns.values()]
        returns.values = [earned for _, earned in self._returns.values()]
        return [returns, *self._terms.values()]

    @property
    def notes(self) -> list[str]:
        """What must be said beside the lines."""
        return [] if self._returns else ["none on record"]
