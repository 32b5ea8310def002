"""Gymnasium: an environment whose actions are shell commands, really run, in a watch that is new in each episode."""

from __future__ import annotations

import shutil
import string
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import gymnasium
from gymnasium import spaces

from jupyter_agentwatch.agents.adapters.pausing import when_closed
from jupyter_agentwatch.errors import ControlError, SessionEndedError, WorkspaceError
from jupyter_agentwatch.events import printable
from jupyter_agentwatch.policy import Policy
from jupyter_agentwatch.watch import CommandResult, Watch
from jupyter_agentwatch.watch.episode import Episode
from jupyter_agentwatch.watch.turn import Turn

__all__ = ["CommandEnv", "Observation", "RewardTerms"]

Observation = dict[str, Any]
"""`output`: what the command wrote, as ASCII with escapes; `exit_code`: as `CommandResult.returncode`."""

RewardTerms = Callable[[CommandResult], Mapping[str, float]]
"""Prices one command: amounts by name, which add up to the reward."""

_WIDEST: Final = 1 << 15


class CommandEnv(gymnasium.Env[Observation, str]):
    """Each action is a shell script and a step of the episode's watch; actions and rewards are on record there.

    The breaker's doings are invisible: while it has stopped the watch, `step` waits; after a kill, the episode is over.

    Args:
        reward: Named terms of a command's reward; default: none, so that the reward is 0.
        done: Says whether a command ended the episode with success or failure.
        template: Folder whose copy is the workspace of each episode; default: an empty one.
        policy: As for `Watch`.
        max_steps: Commands in one episode, after which it is truncated.
        timeout: Seconds that one command may take.
        max_output: Characters of output in an observation; the rest is cut and counted.
        max_command: Characters of the longest action.

    Attributes:
        watch: The episode's watch; None before the first `reset` and after `close`.

    Example:
        >>> env = CommandEnv(reward=lambda r: {"passed": float(r.ok)})  # doctest: +SKIP
        >>> observation, info = env.reset(seed=1)  # doctest: +SKIP
        >>> observation, reward, terminated, truncated, info = env.step("python -m pytest -q")  # doctest: +SKIP
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 -- Gymnasium's own declaration

    def __init__(
        self,
        *,
        reward: RewardTerms | None = None,
        done: Callable[[CommandResult], bool] | None = None,
        template: str | Path | None = None,
        policy: Policy | Mapping[str, Any] | str | Path | None = None,
        max_steps: int = 50,
        timeout: float = 60.0,
        max_output: int = 4000,
        max_command: int = 4000,
    ) -> None:
        self.action_space = spaces.Text(max_command, min_length=0, charset=string.printable)
        # The note about what was cut, and escapes of what is not printable, need room of their own.
        longest = 10 * max_output + 100
        self.observation_space = spaces.Dict(
            {
                "output": spaces.Text(longest, min_length=0, charset=string.printable),
                "exit_code": spaces.Discrete(2 * _WIDEST, start=-_WIDEST),
            }
        )
        self.watch: Watch | None = None
        self._reward = reward
        self._done = done
        self._template = Path(template) if template is not None else None
        self._policy = policy
        self._max_steps = max_steps
        self._timeout = timeout
        self._max_output = max_output
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._episode: Episode | None = None
        self._last: tuple[Turn, int] | None = None
        self._steps = 0
        self._is_over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """End the former episode's watch and begin a new one in a fresh copy of the template.

        Raises:
            WorkspaceError: The template is no folder.
            PolicyError: The policy is malformed.
            RungError: This machine cannot give the isolation that the policy asks for.
        """
        super().reset(seed=seed)
        self.close()
        self._folder = tempfile.TemporaryDirectory(prefix="agentwatch-", ignore_cleanup_errors=True)
        workspace = Path(self._folder.name, "work")
        if self._template is None:
            workspace.mkdir(mode=0o700)
        elif self._template.is_dir():
            shutil.copytree(self._template, workspace, symlinks=True)
        else:
            self.close()
            msg = f"template {printable(str(self._template))} is no folder"
            raise WorkspaceError(msg)
        self.watch = Watch(policy=self._policy, workspace=workspace)
        self._episode = self.watch.episode("gymnasium", "an episode of CommandEnv", max_steps=self._max_steps)
        self._steps, self._is_over = 0, False
        return {"output": "", "exit_code": 0}, {"watch": self.watch.id, "log": str(self.watch.log)}

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Run one command.

        Returns:
            Observation, reward, terminated (done, or the watch was killed), truncated (the episode's steps are used
            up), and `info`: the command's `step`, its `outcome`, the reward's `terms`.

        Raises:
            ResetNeeded: The episode is over, or none has begun.
        """
        watch, episode = self.watch, self._episode
        if watch is None or episode is None or self._is_over:
            msg = "the episode is over, or none has begun: call reset()"
            raise gymnasium.error.ResetNeeded(msg)
        self._steps += 1
        self._last = None
        with episode.turn() as turn:
            return self._carried_out(watch, episode, turn, action)

    def _carried_out(
        self, watch: Watch, episode: Episode, turn: Turn, action: str
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        truncated = self._steps >= self._max_steps
        try:
            result = when_closed(watch, lambda: watch.run(action, timeout=self._timeout))
        except SessionEndedError:
            self._is_over = True
            return self._observed("", -9), 0.0, True, False, {"step": 0, "outcome": "ended", "terms": {}}
        except (ControlError, ValueError) as error:  # no command at all: a NUL, or more than a message holds
            episode.note(turn, "shell", action, outcome="refused")
            self._is_over = truncated
            info = {"step": 0, "outcome": "refused", "terms": {}}
            return self._observed(str(error), -1), 0.0, False, truncated, info
        self._last = (turn, result.step)
        episode.note(turn, "shell", action, step=result.step, outcome=f"{result.outcome} {result.returncode}")
        terms = dict(self._reward(result)) if self._reward else {}
        self.pay(terms)
        terminated = bool(self._done and self._done(result))
        self._is_over = terminated or truncated
        info = {"step": result.step, "outcome": result.outcome, "terms": terms}
        observation = self._observed(result.stdout + result.stderr, result.returncode)
        return observation, float(sum(terms.values())), terminated, truncated, info

    def pay(self, terms: Mapping[str, float]) -> None:
        """Put further terms of the last command's reward on record; a wrapper that pays or charges calls it.

        Args:
            terms: The terms by their names; a price is negative. Nothing happens where no command was run.

        Raises:
            ValueError: There are too many terms, or one is not a finite number.
        """
        if self._episode is not None and self._last is not None and terms:
            turn, step = self._last
            self._episode.reward(turn, terms, step=step)

    def close(self) -> None:
        """End the episode's watch and remove its workspace; idempotent."""
        watch, folder, episode = self.watch, self._folder, self._episode
        is_over = self._is_over
        self.watch, self._folder, self._episode, self._is_over = None, None, None, True
        if episode is not None:
            episode.end("ended" if is_over else "stopped")
        if watch is not None:
            watch.close()
        if folder is not None:
            folder.cleanup()

    def _observed(self, output: str, code: int) -> Observation:
        rest = len(output) - self._max_output
        shown = "".join(_ascii(c) for c in output[: self._max_output])
        return {"output": f"{shown}... (+{rest} characters)" if rest > 0 else shown, "exit_code": code}


def _ascii(char: str) -> str:
    return char if char in string.printable else ascii(char)[1:-1]
