"""SWE-ReX: a runtime and a deployment whose shells and commands run in a watch.

ROCK's sandboxes have the same nine methods as SWE-ReX's runtimes, so what drives the one can drive this, too.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

from swerex.deployment.abstract import AbstractDeployment
from swerex.deployment.hooks.abstract import CombinedDeploymentHook, DeploymentHook
from swerex.exceptions import (
    CommandTimeoutError,
    DeploymentNotStartedError,
    NonZeroExitCodeError,
    SessionDoesNotExistError,
    SessionExistsError,
)
from swerex.runtime.abstract import (
    AbstractRuntime,
    Action,
    BashAction,
    BashInterruptAction,
    BashObservation,
    CloseBashSessionResponse,
    CloseResponse,
    CloseSessionRequest,
    CloseSessionResponse,
    Command,
    CommandResponse,
    CreateBashSessionResponse,
    CreateSessionRequest,
    CreateSessionResponse,
    IsAliveResponse,
    Observation,
    ReadFileRequest,
    ReadFileResponse,
    UploadRequest,
    UploadResponse,
    WriteFileRequest,
    WriteFileResponse,
)
from swerex.utils.log import get_logger

from jupyter_agentwatch.agents.adapters.files import FileTooLargeError, read_file, write_file
from jupyter_agentwatch.agents.adapters.pausing import ENDED, when_closed
from jupyter_agentwatch.errors import SessionEndedError
from jupyter_agentwatch.watch import Shell, Watch

__all__ = ["AgentwatchDeployment", "AgentwatchRuntime"]

_MAX_FILE: Final = 100 << 20
_MAX_UPLOAD: Final = 10_000
"""Files of one upload."""


class AgentwatchRuntime(AbstractRuntime):
    """A runtime on a watch. While the breaker has stopped the watch, what is asked waits.

    Args:
        watch: Where to run. It lives on after `close`.

    Attributes:
        watch: The watch.
    """

    def __init__(self, watch: Watch) -> None:
        self.logger = get_logger("rex-runtime")
        self.watch = watch
        self._shells: dict[str, Shell] = {}

    async def is_alive(self, *, timeout: float | None = None) -> IsAliveResponse:  # noqa: ASYNC109 -- SWE-ReX's
        """Say whether the watch has not ended."""
        alive = not self.watch.has_ended
        return IsAliveResponse(is_alive=alive, message="" if alive else ENDED)

    async def create_session(self, request: CreateSessionRequest) -> CreateSessionResponse:
        """Open a shell that stays.

        Raises:
            SessionExistsError: There is one of this name.
            SessionEndedError: The watch was killed.
        """
        if request.session in self._shells:
            msg = f"session {request.session} exists"
            raise SessionExistsError(msg)
        shell = await asyncio.to_thread(when_closed, self.watch, self.watch.shell)
        self._shells[request.session] = shell
        sources = "".join(f"source {path}\n" for path in request.startup_source)
        result = await asyncio.to_thread(shell.run, f"exec 2>&1\n{sources}")
        return CreateBashSessionResponse(output=result.stdout)

    async def run_in_session(self, action: Action) -> Observation:
        """Run a command in a shell, or interrupt the one that runs.

        Raises:
            SessionDoesNotExistError: There is no such shell.
            CommandTimeoutError: It did not end in time, and was interrupted.
            NonZeroExitCodeError: It failed, and `check` is "raise".
            NotImplementedError: It talks to a terminal: that takes `Watch.shell(pty=True)`.
            ShellEndedError: It ended its shell.
            SessionEndedError: The watch was killed.
        """
        shell = self._shell(action.session)
        if isinstance(action, BashInterruptAction):
            await asyncio.to_thread(shell.running.interrupt)
            return BashObservation(exit_code=0)
        if action.is_interactive_command or action.is_interactive_quit or action.expect:
            msg = "interactive commands need a terminal, which these sessions do not have"
            raise NotImplementedError(msg)
        result = await asyncio.to_thread(shell.run, action.command, timeout=action.timeout)
        if result.timed_out:
            msg = f"timeout after {action.timeout} seconds while running command {action.command!r}"
            raise CommandTimeoutError(msg)
        _check_exit(result.exit_code if action.check == "raise" else 0, result.stdout, action)
        return BashObservation(output=result.stdout, exit_code=None if action.check == "ignore" else result.exit_code)

    async def close_session(self, request: CloseSessionRequest) -> CloseSessionResponse:
        """End a shell and what runs in it.

        Raises:
            SessionDoesNotExistError: There is no such shell.
        """
        shell = self._shell(request.session)
        del self._shells[request.session]
        await asyncio.to_thread(shell.close)
        return CloseBashSessionResponse()

    async def execute(self, command: Command) -> CommandResponse:
        """Run a command as a step of its own.

        Raises:
            CommandTimeoutError: It did not end in time, and was killed.
            NonZeroExitCodeError: It failed, and `check` is set.
            ValueError: It is a list to be run by a shell, or a text that is not.
            SessionEndedError: The watch was killed.
        """
        if command.shell != isinstance(command.command, str):
            msg = "give a list of arguments, or one text with shell=True"
            raise ValueError(msg)
        given: Any = command.command
        if command.merge_output_streams:
            script, rest = (given, []) if command.shell else ('exec "$@"', given)
            given = ["/bin/bash", "-c", f"exec 2>&1\n{script}", "bash", *rest]
        result = await asyncio.to_thread(
            when_closed,
            self.watch,
            lambda: self.watch.run(given, timeout=command.timeout, env=command.env, cwd=command.cwd),
        )
        if result.outcome == "timeout":
            msg = f"timeout after {command.timeout} seconds while running command {command.command!r}"
            raise CommandTimeoutError(msg)
        _check_exit(result.returncode if command.check else 0, result.stdout + result.stderr, command)
        return CommandResponse(stdout=result.stdout, stderr=result.stderr, exit_code=result.returncode)

    async def read_file(self, request: ReadFileRequest) -> ReadFileResponse:
        """Read a file by a command inside.

        Raises:
            OSError: It cannot be read, or is larger than 100 MiB.
            UnicodeDecodeError: It is not text of this encoding.
            SessionEndedError: The watch was killed.
        """
        try:
            data = await read_file(self.watch, request.path, limit=_MAX_FILE)
        except FileTooLargeError as error:
            raise OSError(str(error)) from None
        return ReadFileResponse(content=data.decode(request.encoding or "utf-8", request.errors or "strict"))

    async def write_file(self, request: WriteFileRequest) -> WriteFileResponse:
        """Write a file by a command inside, with the folders that lead to it.

        Raises:
            OSError: It cannot be written.
            SessionEndedError: The watch was killed.
        """
        await write_file(self.watch, request.path, request.content.encode())
        return WriteFileResponse()

    async def upload(self, request: UploadRequest) -> UploadResponse:
        """Copy a file or folder of this machine inside; what is no regular file in a folder is left out.

        Raises:
            OSError: It cannot be read here, or written there, or has more than 10,000 files.
            SessionEndedError: The watch was killed.
        """
        for path, name in await asyncio.to_thread(_files_of, Path(request.source_path)):
            target = f"{request.target_path.rstrip('/')}/{name}" if name else request.target_path
            await write_file(self.watch, target, await asyncio.to_thread(path.read_bytes))
        return UploadResponse()

    async def close(self) -> CloseResponse:
        """End every shell; the watch lives on."""
        shells, self._shells = list(self._shells.values()), {}
        if not self.watch.has_ended:
            for shell in shells:
                await asyncio.to_thread(shell.close)
        return CloseResponse()

    def _shell(self, name: str) -> Shell:
        if self.watch.has_ended:
            raise SessionEndedError(ENDED)
        if name not in self._shells:
            msg = f"session {name} does not exist"
            raise SessionDoesNotExistError(msg)
        return self._shells[name]


class AgentwatchDeployment(AbstractDeployment):
    """Starts and ends a watch of its own, and a runtime on it.

    Args:
        options: What `Watch` takes: `policy`, `workspace`.
    """

    def __init__(self, **options: Any) -> None:
        self.logger = get_logger("rex-deploy")
        self._options = options
        self._hooks = CombinedDeploymentHook()
        self._runtime: AgentwatchRuntime | None = None

    def add_hook(self, hook: DeploymentHook) -> None:
        """Have somebody told what is begun."""
        self._hooks.add_hook(hook)

    async def is_alive(self, *, timeout: float | None = None) -> IsAliveResponse:  # noqa: ASYNC109 -- SWE-ReX's
        """Say whether the watch has not ended.

        Raises:
            DeploymentNotStartedError: It was not started.
        """
        return await self.runtime.is_alive(timeout=timeout)

    async def start(self) -> None:
        """Start the watch.

        Raises:
            AgentwatchError: It could not be started.
        """
        self._hooks.on_custom_step("Starting the watch")
        self._runtime = AgentwatchRuntime(await asyncio.to_thread(lambda: Watch(**self._options)))

    async def stop(self) -> None:
        """End the watch and all that runs in it; idempotent."""
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            await asyncio.to_thread(runtime.watch.close)

    @property
    def runtime(self) -> AgentwatchRuntime:
        """The runtime.

        Raises:
            DeploymentNotStartedError: It was not started.
        """
        if self._runtime is None:
            raise DeploymentNotStartedError
        return self._runtime

    def __del__(self) -> None:
        """Nothing: the watch ends itself when it is forgotten, also without an event loop."""


def _files_of(source: Path) -> list[tuple[Path, str]]:
    """Return the files of an upload, each with its name below the target; "" where the target is the file."""
    if not source.is_dir():
        return [(source, "")]
    files = [p for p in sorted(source.rglob("*")) if p.is_file() and not p.is_symlink()]
    if len(files) > _MAX_UPLOAD:
        msg = f"{source} has more than {_MAX_UPLOAD} files"
        raise OSError(msg)
    return [(path, str(path.relative_to(source))) for path in files]


def _check_exit(code: int, output: str, what: BashAction | Command) -> None:
    if code:
        msg = f"Command {what.command!r} failed with exit code {code}. Here is the output:\n{output!r}"
        raise NonZeroExitCodeError(f"{what.error_msg}: {msg}" if what.error_msg else msg)
