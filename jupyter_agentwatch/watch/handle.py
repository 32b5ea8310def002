"""`Watch`: everything that a notebook or an agent can ask of a sandbox, in one object."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.errors import ControlError
from jupyter_agentwatch.policy import Policy
from jupyter_agentwatch.sandbox.places import check_workspace
from jupyter_agentwatch.watch.agent_runs import WatchAgents
from jupyter_agentwatch.watch.cell import current_cell
from jupyter_agentwatch.watch.command import Command, CommandResult, build_request, checked_result, input_bytes
from jupyter_agentwatch.watch.importable import guard_imports
from jupyter_agentwatch.watch.judged import WatchFindings
from jupyter_agentwatch.watch.opening import load_policy, plan_launch, private_folders
from jupyter_agentwatch.watch.process import SupervisorProcess, supervisor_command
from jupyter_agentwatch.watch.rules import load_rules
from jupyter_agentwatch.watch.running import Interrupts, OnOutput, Running
from jupyter_agentwatch.watch.shell import Shell, Terminal, shell_command, terminal_command
from jupyter_agentwatch.watch.table import event_columns, event_table
from jupyter_agentwatch.watch.telemetry import WatchTelemetry
from jupyter_agentwatch.watch.turn import current_turn
from jupyter_agentwatch.watch.views import WatchViews
from jupyter_agentwatch.wire.messages import (
    Ack,
    Answer,
    Change,
    Changes,
    DiffStep,
    Killed,
    Resume,
    Status,
    Suspend,
    UndoStep,
    WatchStatus,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Watch"]

_NAME = "kernel"
_ANSWER_S = 10.0


class Watch(WatchTelemetry, WatchFindings, WatchViews, WatchAgents):
    """A sandbox under supervision. It begins when it is made and ends with `close`, `kill`, or this process.

    Any number of threads may use one watch at once; each command is a step of its own.

    Attributes:
        last_result: The last command's result, also after a KeyboardInterrupt.

    Example:
        >>> with Watch(workspace="project") as watch:  # doctest: +SKIP
        ...     print(watch.run("make test").stdout)
    """

    def __init__(
        self,
        policy: Policy | Mapping[str, Any] | str | os.PathLike[str] | None = None,
        workspace: str | os.PathLike[str] = ".",
        *,
        cell: Callable[[], str] | None = None,
        supervisor: Sequence[str] | None = None,
    ) -> None:
        """Start a supervisor and its sandbox.

        Args:
            policy: What the commands may do: a `Policy`, the same as a mapping, or the path of a YAML file.
                Default: the workspace, no network, no GPU.
            workspace: The folder that the commands work in; it has the same path inside.
            cell: Called at each command, in the caller's thread; returns the id of the notebook cell. Default: the
                cell that runs in this kernel.
            supervisor: Program and arguments to start instead of our supervisor (`testing.FakeSupervisor`).

        Raises:
            PolicyError: The policy is malformed or asks for what cannot be granted.
            WorkspaceError: The workspace is no folder, is a symbolic link, exposes secrets, or is in use.
            RungError: This machine cannot give the isolation that the policy asks for.
            SessionEndedError: The supervisor ended while it started.
            ControlError: The supervisor could not be reached, or a folder of ours is not private.

        Warns:
            ImportableWorkspaceWarning: This Python imports modules from a folder that the commands can write to.
        """
        self.last_result: CommandResult | None = None
        self._policy = load_policy(policy)
        self._workspace = check_workspace(Path(workspace), private_folders())
        self._cell = cell or current_cell
        self._rules = load_rules(self._policy, self._workspace)
        launch = plan_launch(self._policy, self._workspace, self._cell(), self._rules.data)
        self._import_risk = guard_imports(self._policy, self._workspace, launch.python)
        self._supervisor = SupervisorProcess.start(launch, supervisor or supervisor_command())
        self._client = self._supervisor.client
        self._listen()
        # Runs when the watch is forgotten and at the end of the interpreter; it must not refer to the watch.
        self._finalizer = weakref.finalize(self, self._supervisor.close)

    def __enter__(self) -> Self:
        """Return the watch itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    async def __aenter__(self) -> Self:
        """Return the watch itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it without blocking the event loop."""
        import asyncio

        await asyncio.to_thread(self.close)

    @property
    def id(self) -> str:
        """Id of the watch: 8 hexadecimal characters."""
        return self._client.welcome.watch

    @property
    def policy(self) -> Policy:
        """What the commands may do."""
        return self._policy

    @property
    def workspace(self) -> Path:
        """Absolute path of the workspace."""
        return self._workspace

    @property
    def log(self) -> Path:
        """Path of the audit log."""
        return self._supervisor.log

    @property
    def rung(self) -> str:
        """Rung of the isolation ladder that this machine gives, as it is to be printed."""
        return self._client.welcome.rung

    @property
    def notes(self) -> list[str]:
        """What a person should know of this watch (what is weaker here than elsewhere)."""
        return [*self._client.welcome.notes, *filter(None, [self._import_risk]), *self._rule_notes()]

    @property
    def head(self) -> str:
        """Head hash of the audit log, as far as this process has heard: what makes truncation show."""
        return self._client.head

    @property
    def has_ended(self) -> bool:
        """The watch was killed or closed, or its supervisor is gone."""
        return self._client.has_ended

    def run(
        self,
        command: Command,
        *,
        timeout: float | None = None,
        stdin: bytes | str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        gpu: int | str | None = None,
        on_output: OnOutput | None = None,
        check: bool = False,
    ) -> CommandResult:
        """Run a command and wait for its end.

        ■ in Jupyter (SIGINT) interrupts the command, a second one kills it; either way the sandbox lives on, and
        KeyboardInterrupt is raised when the command has ended, with its result in `last_result`.

        Args:
            command: A text is a shell script; a sequence is a program with its arguments.
            timeout: Wall time in seconds, after which the command is killed (outcome "timeout").
            stdin: What it reads; default: nothing.
            env: Variables in addition to the policy's.
            cwd: Folder, relative to the workspace; default: the workspace.
            gpu: Index or UUID of a GPU that it is expected to use: leased to it until it ends, and the only one that
                CUDA shows it.
            on_output: Called in this thread with (stream, bytes) as output comes.
            check: Raise where the command does not exit with 0.

        Raises:
            CommandFailedError: It failed, and `check` is set.
            KeyboardInterrupt: ■ was pressed.
            SessionEndedError: The watch was killed.
            ControlError: The supervisor refused.
            ValueError: An argument holds what no program can be given.
        """
        running = self._prepare(command, timeout=timeout, stdin=stdin, env=env, cwd=cwd, gpu=gpu)
        with Interrupts() as interrupts:
            result = running.attend(interrupts, on_output)
        if interrupts.count:
            raise KeyboardInterrupt
        return checked_result(result, check=check)

    def start(
        self,
        command: Command,
        *,
        timeout: float | None = None,
        stdin: bytes | str | bool | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        gpu: int | str | None = None,
    ) -> Running:
        """Start a command and return at once.

        Args:
            command: As for `run`.
            timeout: As for `run`.
            stdin: True: a pipe for `Running.write`; otherwise as for `run`.
            env: As for `run`.
            cwd: As for `run`.
            gpu: As for `run`.

        Raises:
            SessionEndedError: The watch was killed.
            ControlError: The supervisor refused.
            ValueError: An argument holds what no program can be given.
        """
        running = self._prepare(command, timeout=timeout, stdin=stdin, env=env, cwd=cwd, gpu=gpu)
        running.launch_and_wait()
        return running

    async def start_async(
        self,
        command: Command,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 -- a limit of the command, kept by the supervisor
        stdin: bytes | str | bool | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        gpu: int | str | None = None,
    ) -> Running:
        """As `start`, without blocking the event loop; the result can be awaited and iterated over with `async for`."""
        running = self._prepare(command, timeout=timeout, stdin=stdin, env=env, cwd=cwd, gpu=gpu)
        await running.launch_async()
        return running

    async def run_async(
        self,
        command: Command,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 -- a limit of the command, kept by the supervisor
        stdin: bytes | str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        gpu: int | str | None = None,
        on_output: OnOutput | None = None,
        check: bool = False,
    ) -> CommandResult:
        """As `run`, without blocking the event loop; when it is cancelled, the command is killed."""
        running = await self.start_async(command, timeout=timeout, stdin=stdin, env=env, cwd=cwd, gpu=gpu)
        try:
            if on_output is not None:
                async for stream, data in running:
                    on_output(stream, data)
            result = await running
        except BaseException:
            running.abandon()
            raise
        return checked_result(result, check=check)

    @overload
    def shell(self, pty: Literal[False] = False, *, env: Mapping[str, str] | None = None) -> Shell: ...
    @overload
    def shell(self, pty: Literal[True], *, env: Mapping[str, str] | None = None) -> Terminal: ...
    def shell(self, pty: bool = False, *, env: Mapping[str, str] | None = None) -> Shell | Terminal:
        """Open a persistent shell: folder and variables last from one command to the next.

        Args:
            pty: On a terminal, raw: a `Terminal` to read from and write to, instead of a `Shell` to run commands in.
            env: Variables in addition to the policy's.
        """
        command = terminal_command() if pty else shell_command()
        running = self._prepare(command, stdin=True, env=env, pty=pty)
        running.launch_and_wait()
        return Terminal(running, self._client) if pty else Shell(running)

    def suspend(self) -> None:
        """Stop every process and hold every call, until `resume` or `kill`.

        Raises:
            SessionEndedError: The watch has ended.
            ControlError: The supervisor refused.
        """
        self._client.request(Suspend(by=_NAME), Ack, timeout=_ANSWER_S)

    def resume(self) -> None:
        """Let a suspended watch go on.

        Raises:
            SessionEndedError: The watch has ended.
            ControlError: The supervisor refused.
        """
        self._client.request(Resume(by=_NAME), Ack, timeout=_ANSWER_S)

    def answer(self, ask: int, *, allow: bool) -> None:
        """Decide a call that is held for a person (`status().asks`).

        Raises:
            SessionEndedError: The watch has ended.
            ControlError: Nothing is held under this number any more.
        """
        self._client.request(Answer(ask=ask, allow=allow, by=_NAME), Ack, timeout=_ANSWER_S)

    def kill(self, reason: str = "") -> Killed:
        """End everything in the sandbox and close the log. Final; a further call returns what the first one did.

        Where the supervisor does not answer within 2 s, it is killed itself, which ends its sandbox; the result's
        `note` says so.

        Args:
            reason: For the audit log.

        Returns:
            How many processes ended, how many were left (-1: nobody could count them), and in how many milliseconds.
        """
        killed = self._supervisor.kill(reason)
        self._finalizer.detach()
        return killed

    def close(self) -> None:
        """End the watch quietly; idempotent, also after `kill`."""
        self._finalizer()

    def status(self) -> WatchStatus:
        """Return a picture of the watch now.

        Raises:
            SessionEndedError: The watch has ended.
        """
        return self._client.request(Status(), WatchStatus, timeout=_ANSWER_S)

    def events(
        self, kind: str | None = None, step: int | None = None, verdict: str | None = None, cell: str | None = None
    ) -> pd.DataFrame:
        """Return what is on record, as a table; also after the watch has ended.

        Args:
            kind: Only this kind: "exec", "connect", "file" …; the table then has only its columns.
            step: Only this command.
            verdict: Only "allow", "deny", "ask" or "kill".
            cell: Only commands of this notebook cell.

        Returns:
            One row for each event in the order of the log; `time` is UTC. Text that the sandbox chose is as it came.

        Raises:
            LogError: The log cannot be read.
            ValueError: There is no such kind.
        """
        event_columns(kind)  # refuses an unknown kind in this method's own words
        kinds = None if kind is None else {kind}
        found = read_events(self.log, kinds=kinds, step=step)
        wanted = (e for e in found if verdict in {None, e.verdict} and cell in {None, e.cell})
        return event_table(wanted, kind)

    def diff(self, step: int | None = None) -> list[Change]:
        """Return what a step changed in the workspace.

        A row with change "unclaimed" is one that no call on record explains: somebody outside changed it while the step
        ran, or a program altered a name after it was recorded. What it was before is not known.

        Args:
            step: Number of the command; default: the last one that ended.

        Raises:
            ControlError: There is no such step.
            SessionEndedError: The watch has ended.
        """
        return self._client.request(DiffStep(step=self._or_last(step)), Changes).changes

    def undo(self, step: int) -> list[Change]:
        """Take back what a step changed in the workspace, all of it or nothing.

        Args:
            step: Number of the command.

        Returns:
            What was taken back, and as "unclaimed" what was left as it is.

        Raises:
            UndoConflictError: A later step changed the same files, or a pre-image was not kept.
            ControlError: There is no such step.
            SessionEndedError: The watch has ended.
        """
        return self._client.request(UndoStep(step=step), Changes).changes

    def __repr__(self) -> str:
        state = "ended" if self.has_ended else "live"
        return f"<Watch {self.id} {state}, {self.rung}, workspace={self._workspace}, log={self.log}>"

    def _prepare(
        self,
        command: Command,
        *,
        timeout: float | None = None,
        stdin: bytes | str | bool | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        gpu: int | str | None = None,
        pty: bool = False,
    ) -> Running:
        request = build_request(
            command,
            workspace=self._workspace,
            cell=self._cell(),
            timeout=timeout,
            env=env,
            cwd=cwd,
            stdin=stdin not in {None, False},
            pty=pty,
            gpu=gpu,
            turn=current_turn(),
        )
        return Running(
            self._client,
            request,
            limit=self._policy.limits.output_bytes,
            stdin=input_bytes(stdin),
            on_result=self._keep_result,
        )

    def _keep_result(self, result: CommandResult) -> None:
        self.last_result = result

    def _or_last(self, step: int | None) -> int:
        if step is not None:
            return step
        if self.last_result is None:
            msg = "no command has ended in this watch yet: name a step"
            raise ControlError(msg)
        return self.last_result.step
