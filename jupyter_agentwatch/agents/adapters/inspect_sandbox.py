"""Inspect AI: `sandbox="agentwatch"` gives every sample a watch of its own, and a tripped breaker ends the sample.

Found by Inspect through the entry-point group `inspect_ai`. An exception inside a tool call cannot stop a sample, so a
hook does: it is asked before each call of a model.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from typing import Any, Final, Literal, overload

from inspect_ai.hooks import BeforeModelGenerate, Hooks, SampleScoring, hooks
from inspect_ai.log import transcript
from inspect_ai.util import (
    ExecResult,
    LimitExceededError,
    OutputLimitExceededError,
    SandboxEnvironment,
    SandboxEnvironmentLimits,
    SandboxUnavailableError,
    SandboxUserUnsupportedError,
    sandbox,
    sandboxenv,
)
from pydantic import BaseModel, ConfigDict

from jupyter_agentwatch.agents.adapters.files import FileTooLargeError, read_file, write_file
from jupyter_agentwatch.agents.adapters.pausing import ENDED, LOOK_S
from jupyter_agentwatch.errors import AgentwatchError, ControlError, SessionEndedError
from jupyter_agentwatch.policy import Policy
from jupyter_agentwatch.watch import CommandResult, Running, Watch

__all__ = ["AgentwatchConfig", "AgentwatchSandbox", "BreakerHook"]

_NAME: Final = "agentwatch"
_REASON: Final = "the breaker tripped in an evaluation"
_SIGNALLED: Final = 128
"""What a shell adds to the number of the signal that ended a command."""


class AgentwatchConfig(BaseModel):
    """What `SandboxEnvironmentSpec("agentwatch", AgentwatchConfig(...))` says of a sample's watch.

    Attributes:
        policy: A policy as a mapping, the path of a YAML file, or None for the default: no network.
        on_trip: What a tripped breaker does. "end": the watch is killed and the sample ends. "pause": the sample waits
            until a person resumes the watch or kills it, or until the policy's `breaker.frozen_s` is over.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: dict[str, Any] | str | None = None
    on_trip: Literal["end", "pause"] = "end"

    def __hash__(self) -> int:
        """Make samples of one configuration known as such: a mapping of itself has no hash."""
        return hash(self.model_dump_json())


@sandboxenv(name=_NAME)
class AgentwatchSandbox(SandboxEnvironment):
    """One sample's watch, in a workspace that ends with it.

    Args:
        config: What it may do.

    Attributes:
        watch: The watch.
        has_tripped: Its breaker tripped, and by `on_trip` the sample is to end.
        is_scored: The agent has had its turn: what is asked of a model now, a scorer asks.
    """

    def __init__(self, config: AgentwatchConfig) -> None:
        super().__init__()
        self.has_tripped = False
        self.is_scored = False
        self._ends = config.on_trip == "end"
        self._folder = tempfile.TemporaryDirectory(prefix="agentwatch-", ignore_cleanup_errors=True)
        try:
            policy = config.policy if config.policy is not None else Policy()
            self.watch = Watch(policy=policy, workspace=self._folder.name)
        except BaseException:
            self._folder.cleanup()
            raise

    @classmethod
    async def sample_init(cls, task_name: str, config: Any, metadata: dict[str, str]) -> dict[str, SandboxEnvironment]:
        """Start the sample's watch."""
        given = AgentwatchConfig(policy=config) if isinstance(config, str) else config or AgentwatchConfig()
        return {"default": await asyncio.to_thread(cls, given)}

    @classmethod
    async def sample_cleanup(
        cls, task_name: str, config: Any, environments: dict[str, SandboxEnvironment], interrupted: bool
    ) -> None:
        """End the sample's watch, and put into the sample's log where the record is."""
        for each in environments.values():
            await asyncio.to_thread(each.as_type(cls).close)

    @classmethod
    def default_concurrency(cls) -> int:
        """Return how many samples run at once unless the user says otherwise: two for each processor."""
        return 2 * (os.cpu_count() or 1)

    @classmethod
    def config_files(cls) -> list[str]:
        """Return the name of a policy that is found beside the task without being named."""
        return ["agentwatch.yaml"]

    @classmethod
    def config_deserialize(cls, config: dict[str, Any]) -> BaseModel:
        """Read a configuration from an evaluation's log."""
        return AgentwatchConfig(**config)

    def close(self) -> None:
        """End the watch, note in the transcript where its record is, and remove the workspace."""
        try:
            self.watch.close()
            findings = self.watch.findings("low")
            transcript().info(
                {
                    "watch": self.watch.id,
                    "rung": self.watch.rung,
                    "log": str(self.watch.log),
                    "head": self.watch.head,
                    "tripped": self.has_tripped,
                    # Rules and severities only: titles and evidence hold the agent's own words.
                    "findings": [{"rule": f.rule, "severity": f.severity} for f in findings.itertuples()],
                },
                source=_NAME,
            )
        finally:
            self._folder.cleanup()

    async def exec(
        self,
        cmd: list[str],
        input: str | bytes | None = None,  # noqa: A002 -- Inspect's name
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        user: str | None = None,
        timeout: int | None = None,  # noqa: ASYNC109 -- a limit of the command, kept by the supervisor
        timeout_retry: bool = True,
        concurrency: bool = True,
    ) -> ExecResult[str]:
        """Run a command as a step of the watch. It is never tried again: what it did once is done.

        Raises:
            SandboxUserUnsupportedError: A user was named; there is only one inside.
            SandboxUnavailableError: The watch was killed.
            TimeoutError: It did not end in time, and was killed with all that it had started.
            PermissionError: The program cannot be executed.
            OutputLimitExceededError: It wrote more than Inspect takes.
        """
        if user is not None:
            msg = f"there is one user inside, and it cannot be chosen: leave user={user!r} out"
            raise SandboxUserUnsupportedError(msg)
        given = "" if input is None else input
        try:
            running = await self._started(cmd, cwd=cwd, env=env, timeout=timeout or None, stdin=given)
            result = await self._attended(running)
        except SessionEndedError:
            raise SandboxUnavailableError(ENDED) from None
        if result.outcome == "timeout":
            msg = f"command timed out after {timeout} s"
            raise TimeoutError(msg)
        if result.outcome == "not-executable":
            msg = f"permission denied: {cmd[0]!a} cannot be executed"
            raise PermissionError(msg)
        _check_output(result)
        stderr = result.stderr or (f"{cmd[0]!a}: not found" if result.outcome == "not-found" else "")
        code = result.returncode
        return ExecResult(result.ok, _SIGNALLED - code if code < 0 else code, result.stdout, stderr)

    async def write_file(self, file: str, contents: str | bytes) -> None:
        """Write a file by a command inside.

        Raises:
            SandboxUnavailableError: The watch was killed.
            PermissionError: It cannot be written.
            IsADirectoryError: There is a folder of this name.
        """
        try:
            await write_file(self.watch, file, contents.encode() if isinstance(contents, str) else contents)
        except AgentwatchError:
            raise SandboxUnavailableError(ENDED) from None

    @overload
    async def read_file(self, file: str, text: Literal[True] = True) -> str: ...
    @overload
    async def read_file(self, file: str, text: Literal[False]) -> bytes: ...
    async def read_file(self, file: str, text: bool = True) -> str | bytes:
        """Read a file by commands inside.

        Raises:
            SandboxUnavailableError: The watch was killed.
            FileNotFoundError: There is none.
            PermissionError: It cannot be read.
            IsADirectoryError: It is a folder.
            UnicodeDecodeError: It is no UTF-8, and `text` is set.
            OutputLimitExceededError: It is larger than Inspect takes.
        """
        try:
            data = await read_file(self.watch, file, limit=SandboxEnvironmentLimits.MAX_READ_FILE_SIZE)
        except FileTooLargeError:
            raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR, None) from None
        except AgentwatchError:
            raise SandboxUnavailableError(ENDED) from None
        return data.decode() if text else data

    def default_polling_interval(self) -> float:
        """Return the seconds between two looks for a request from inside: a command costs milliseconds here."""
        return 0.2

    async def wait_closed(self) -> bool:
        """Wait until the watch's breaker is closed.

        Returns:
            False where it never will be again: the watch is gone, or `on_trip` has ended it.
        """
        while not self.has_tripped:
            try:
                state = (await asyncio.to_thread(self.watch.status)).state
            except SessionEndedError:
                return False
            if state == "closed":
                return True
            if self._ends:
                self.has_tripped = True
                await asyncio.to_thread(self.watch.kill, _REASON)
            else:
                await asyncio.sleep(LOOK_S)
        return False

    async def _started(self, cmd: list[str], **options: Any) -> Running:
        was_closed = False
        while True:
            try:
                return await self.watch.start_async(cmd, **options)
            except SessionEndedError:
                raise
            except ControlError:
                # Once more after the breaker: somebody may have resumed the watch since the refusal.
                if was_closed:
                    raise
            if not await self.wait_closed():
                raise SessionEndedError(ENDED)
            was_closed = True

    async def _attended(self, running: Running) -> CommandResult:
        """Stay with a command to its end, and look at the breaker meanwhile: of itself, what it froze never ends."""
        ended = asyncio.ensure_future(_result(running))
        try:
            while not (await asyncio.wait({ended}, timeout=LOOK_S))[0]:
                await self.wait_closed()
            return ended.result()
        except BaseException:
            ended.cancel()
            running.abandon()
            raise


@hooks(name=_NAME, description="Ends a sample whose watch was stopped by its circuit breaker, or killed.")
class BreakerHook(Hooks):
    """Stops a sample before the next call of a model. It holds no state: each sample's sandbox holds its own."""

    async def on_before_model_generate(self, data: BeforeModelGenerate) -> None:
        """Let the call go on where the watch of this sample is closed, or once it is.

        Raises:
            LimitExceededError: It is tripped or gone: Inspect ends the sample, and scores it.
        """
        own = _own_sandbox()
        if own is not None and not own.is_scored and not await own.wait_closed():
            raise LimitExceededError("custom", value=1, limit=1, message=ENDED)

    async def on_sample_scoring(self, data: SampleScoring) -> None:
        """Let scorers ask models, also where the sample was ended."""
        own = _own_sandbox()
        if own is not None:
            own.is_scored = True


def _own_sandbox() -> AgentwatchSandbox | None:
    """Return the sandbox of the sample that runs here, None where there is none, or another provider's."""
    try:
        own: AgentwatchSandbox = sandbox().as_type(AgentwatchSandbox)
    except (ProcessLookupError, TypeError):
        return None
    return own


async def _result(running: Running) -> CommandResult:
    return await running


def _check_output(result: CommandResult) -> None:
    limit = SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE
    if max(result.stdout_total, result.stderr_total) > limit or result.stdout_truncated or result.stderr_truncated:
        kept = result.stdout_bytes[:limit].decode("utf-8", "replace")
        raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE_STR, kept)
