"""An agent that does again what another one did: no model is asked, so that a run can be had again at will."""

from __future__ import annotations

import os

from jupyter_agentwatch.agents.model import Action, Finish, Observation
from jupyter_agentwatch.agents.trajectory import Trajectory, read_trajectory

__all__ = ["ReplayAgent"]


class ReplayAgent:
    """Replays a trajectory, whatever comes of it; one object serves one run.

    Attributes:
        name: Who did it first.
        task: What that one was to do.

    Example:
        >>> agent = ReplayAgent("run.traj.json")  # doctest: +SKIP
        >>> watch.run_agent(agent, agent.task or "as recorded").wait()  # doctest: +SKIP
    """

    def __init__(self, trajectory: Trajectory | str | os.PathLike[str]) -> None:
        """Take a trajectory, or the path of one in any form that `read_trajectory` knows.

        Raises:
            TrajectoryError: The file cannot be read, or is of none of these forms.
        """
        known = trajectory if isinstance(trajectory, Trajectory) else read_trajectory(trajectory)
        self.name = f"replay of {known.agent}"
        self.task = known.task
        self._actions = iter(known.actions)

    def act(self, _observation: Observation, /) -> Action:
        """Return the next action; the end of the recording is the end of the run."""
        return next(self._actions, Finish())
