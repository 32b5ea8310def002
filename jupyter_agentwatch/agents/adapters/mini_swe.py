"""mini-swe-agent: an `Environment` that runs the agent's commands in a watch.

Also from its command line: `--environment-class jupyter_agentwatch.agents.adapters.mini_swe.AgentwatchEnvironment`.
"""

from __future__ import annotations

import os
import platform
from typing import Any, Final

from minisweagent.exceptions import InterruptAgentFlow, Submitted
from pydantic import BaseModel, ConfigDict

from jupyter_agentwatch.agents.adapters.pausing import ENDED, when_closed
from jupyter_agentwatch.errors import ControlError, SessionEndedError
from jupyter_agentwatch.watch import CommandResult, Watch

__all__ = ["AgentwatchEnvironment", "AgentwatchEnvironmentConfig"]

_SUBMIT: Final = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
"""The word that mini-swe-agent tells its model to say in the first line when the task is done."""
_WORDS: Final = {"timeout": "timed out after {seconds:g} s", "killed": "was killed"}


class AgentwatchEnvironmentConfig(BaseModel):
    """What mini-swe-agent's configuration says under `environment`.

    Attributes:
        policy: A policy as a mapping, the path of a YAML file, or None for the default: no network.
        workspace: Folder that the commands work in; it has the same path inside. "": the current folder.
        cwd: Folder of each command, relative to the workspace.
        env: Variables in addition to the policy's.
        timeout: Seconds that one command may take.
    """

    model_config = ConfigDict(extra="forbid")

    policy: dict[str, Any] | str | None = None
    workspace: str = ""
    cwd: str = ""
    env: dict[str, str] = {}
    timeout: float = 30


class AgentwatchEnvironment:
    """Runs each action as a step of a watch; while the breaker has stopped the watch, the agent waits.

    Args:
        watch: A watch of yours, which lives on afterwards; None: one of its own, by the configuration.
        config: Fields of `AgentwatchEnvironmentConfig`.

    Attributes:
        config: The configuration.
        watch: The watch.

    Raises:
        PolicyError: The policy is malformed.
        RungError: This machine cannot give the isolation that the policy asks for.
    """

    def __init__(self, watch: Watch | None = None, **config: Any) -> None:
        self.config = AgentwatchEnvironmentConfig(**config)
        self.watch = watch or Watch(policy=self.config.policy, workspace=self.config.workspace or ".")
        self._is_own = watch is None

    def execute(self, action: dict[str, Any], cwd: str = "", *, timeout: float | None = None) -> dict[str, Any]:
        """Run one action.

        Args:
            action: As the model layer made it: `command` is a shell script.
            cwd: Folder, relative to the workspace; default: the configuration's.
            timeout: Seconds; default: the configuration's.

        Returns:
            `output` (both streams), `returncode`, and `exception_info` where it did not end by itself.

        Raises:
            Submitted: The command says that the task is done.
            InterruptAgentFlow: The watch was killed: the agent's run is over.
        """
        seconds = timeout or self.config.timeout
        # The first line joins the streams in the order in which they were written.
        script = f"exec 2>&1\n{action.get('command', '')}"
        try:
            result = when_closed(
                self.watch,
                lambda: self.watch.run(
                    script, timeout=seconds, cwd=cwd or self.config.cwd or None, env=self.config.env
                ),
            )
        except SessionEndedError:
            over = {"role": "exit", "content": ENDED, "extra": {"exit_status": "SandboxEnded", "submission": ""}}
            raise InterruptAgentFlow(over) from None
        except (ControlError, ValueError) as error:
            return _failed(error)
        if result.ok:
            _check_submitted(result)
        return _output(result, seconds)

    def get_template_vars(self, **kwargs: Any) -> dict[str, Any]:
        """Return what prompts may name: the configuration, the system, the workspace; none of our variables."""
        kernel = platform.uname()._asdict() | {"node": "sandbox"}
        return {**self.config.model_dump(), **kernel, "cwd": self._folder(), **kwargs}

    def serialize(self) -> dict[str, Any]:
        """Return what goes into the trajectory: how it was configured, and where the record is."""
        about = {"environment": self.config.model_dump(mode="json"), "environment_type": _type_name(self)}
        record = {"watch": self.watch.id, "rung": self.watch.rung, "log": str(self.watch.log), "head": self.watch.head}
        return {"info": {"config": about, "agentwatch": record}}

    def cleanup(self) -> None:
        """End the watch, unless it is the caller's."""
        if self._is_own:
            self.watch.close()

    def _folder(self) -> str:
        return os.path.normpath(self.watch.workspace / self.config.cwd)


def _check_submitted(result: CommandResult) -> None:
    first, _, rest = result.stdout.lstrip().partition("\n")
    if first.strip() == _SUBMIT:
        raise Submitted({"role": "exit", "content": rest, "extra": {"exit_status": "Submitted", "submission": rest}})


def _output(result: CommandResult, seconds: float) -> dict[str, Any]:
    how = result.outcome if result.outcome not in {"exited", "signalled"} else ""
    told = f"The command {_WORDS.get(how, how).format(seconds=seconds)}." if how else ""
    cut = "\n(the rest of the output was not kept)" if result.stdout_truncated else ""
    return {"output": result.stdout + cut, "returncode": result.returncode, "exception_info": told}


def _failed(error: Exception) -> dict[str, Any]:
    about = {"exception_type": type(error).__name__, "exception": str(error)}
    return {"output": "", "returncode": -1, "exception_info": f"The command was not run: {error}", "extra": about}


def _type_name(environment: object) -> str:
    return f"{type(environment).__module__}.{type(environment).__name__}"
