"""The part of `Watch` that is about agents: run one, or keep the account of one that something else runs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from jupyter_agentwatch.watch.accounts import Accounts
from jupyter_agentwatch.watch.episode import Episode
from jupyter_agentwatch.wire.client import Client
from jupyter_agentwatch.wire.messages import Ack, SignalStep

if TYPE_CHECKING:
    from jupyter_agentwatch.agents.loop import AgentRun
    from jupyter_agentwatch.agents.model import Agent, Budget, OnStep, RewardFunction
    from jupyter_agentwatch.watch.handle import Watch

__all__ = ["WatchAgents"]

_ANSWER_S = 10.0


class WatchAgents:
    """What `Watch` inherits. It needs the connection, the path of the log, and who says which cell runs."""

    _client: Client
    _cell: Callable[[], str]
    _accounts: Accounts | None = None

    @property
    def log(self) -> Path:
        """Path of the audit log."""
        raise NotImplementedError

    @property
    def accounts(self) -> Accounts:
        """What the supervisor has on record of each step, counted."""
        if self._accounts is None:
            self._accounts = Accounts(self.log)
        return self._accounts

    def episode(self, agent: str, task: str, *, max_steps: int = 0) -> Episode:
        """Begin the account of a run that something else drives: a framework's loop, a learner, a program.

        Args:
            agent: Name of the agent.
            task: What it is to do.
            max_steps: Most turns that it may take, for those who watch it; 0: nobody knows.
        """
        return Episode(self._client, agent=agent, task=task, cell=self._cell(), max_steps=max_steps)

    def end_step(self, step: int) -> None:
        """Kill every process of a step, whether its command still runs or has left them behind.

        Raises:
            SessionEndedError: The watch has ended.
            ControlError: The supervisor refused.
        """
        self._client.request(SignalStep(step=step, signal=signal.SIGKILL), Ack, timeout=_ANSWER_S)

    def when_ended(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have a function called when the watch has ended, whoever ended it; at once where it has.

        Args:
            listener: Called in another thread as a rule, perhaps twice: it must neither block nor raise.

        Returns:
            A function that takes it back.
        """
        return self._client.call_at_end(listener)

    def run_agent(
        self,
        agent: Agent,
        task: str,
        *,
        max_steps: int = 50,
        budget: Budget | None = None,
        step_timeout: float | None = 300.0,
        output_chars: int = 16_000,
        gpu: int | str | None = None,
        reward: RewardFunction | None = None,
        on_step: OnStep | None = None,
    ) -> AgentRun:
        """Let an agent work on a task, in a thread of its own, until it has finished or something ends it.

        A frozen watch pauses the run, a killed one ends it; the agent is never told why. What its commands have left
        running ends with the run. Every process, connection,
        write and finding bears the step that caused it, and the notebook cell that called this.

        Args:
            agent: Anything with `act(observation) -> action`.
            task: What it is to do.
            max_steps: Most actions.
            budget: What it may cost; default: no bound.
            step_timeout: Seconds that one command may take, where the action does not say less; None: the policy's.
            output_chars: Characters of a command's output that the agent gets, its beginning and its end.
            gpu: GPU that its commands are expected to use; leased to each while it runs.
            reward: Called after each step; returns what it earned, by the names of its parts.
            on_step: Called after each step, in the agent's thread.

        Returns:
            The run; `wait` or `await` it, or iterate over its steps as they come.

        Raises:
            ValueError: The task is empty, or a bound is not positive.
            SessionEndedError: The watch has ended.
        """
        from jupyter_agentwatch.agents.loop import Bounds, start_run

        bounds = Bounds(
            max_steps=max_steps, budget=budget, step_timeout=step_timeout, output_chars=output_chars, gpu=gpu
        )
        return start_run(cast("Watch", self), agent, task, bounds, reward=reward, on_step=on_step)
