"""What a caller asks for and what comes of it: plain values, checked before anything is sent."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jupyter_agentwatch.errors import CommandFailedError
from jupyter_agentwatch.watch.turn import Turn
from jupyter_agentwatch.wire.messages import CommandEnded, RunCommand

__all__ = [
    "Command",
    "CommandResult",
    "build_request",
    "checked_result",
    "input_bytes",
    "make_result",
    "shell_program",
]

Command = str | Sequence[str | os.PathLike[str]]
"""A shell script as one text, or a program with its arguments, executed as they are."""

_EXIT_CODES = {"not-found": 127, "not-executable": 126, "timeout": 124}
_KILLED = -9


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """How a command ended, and what it wrote. That it failed is a result, not an exception.

    Attributes:
        step: Number of the command in its watch, from 1.
        argv: What was executed.
        outcome: "exited", "signalled", "timeout", "limit:<name>", "not-found", "not-executable" or "killed".
        exit_code: Exit code, where it exited.
        signal: Number of the signal that ended it, where one did.
        stdout_bytes: What it wrote to standard output, up to the policy's `limits.output_bytes`.
        stderr_bytes: What it wrote to standard error, up to the same limit.
        stdout_truncated: Standard output was longer than what is kept.
        stderr_truncated: Standard error was longer than what is kept.
        stdout_total: Bytes written to standard output, kept or not.
        stderr_total: Bytes written to standard error, kept or not.
        duration_s: Wall time in seconds.
        cpu_user_s: CPU time in user mode, seconds.
        cpu_system_s: CPU time in the kernel, seconds.
        max_rss_bytes: Largest resident memory of one process, bytes.
        head: Head hash of the audit log when the command had ended.
    """

    step: int
    argv: tuple[str, ...]
    outcome: str
    exit_code: int | None
    signal: int | None
    stdout_bytes: bytes = field(repr=False)
    stderr_bytes: bytes = field(repr=False)
    stdout_truncated: bool
    stderr_truncated: bool
    stdout_total: int
    stderr_total: int
    duration_s: float
    cpu_user_s: float
    cpu_system_s: float
    max_rss_bytes: int
    head: str

    @property
    def stdout(self) -> str:
        """Standard output as text; bytes that are not UTF-8 become U+FFFD. Hostile: do not show it as HTML."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Standard error as text; bytes that are not UTF-8 become U+FFFD. Hostile: do not show it as HTML."""
        return self.stderr_bytes.decode("utf-8", "replace")

    @property
    def ok(self) -> bool:
        """It exited with 0."""
        return self.outcome == "exited" and self.exit_code == 0

    @property
    def returncode(self) -> int:
        """One number, as `subprocess` gives: the exit code, or the signal's number below zero.

        A command that was not found gives 127 and one that is not executable 126, as from a shell. Where the
        supervisor tells neither code nor signal, a timeout gives 124 and any other end -9.
        """
        if self.exit_code is not None:
            return self.exit_code
        if self.signal is not None:
            return -self.signal
        return _EXIT_CODES.get(self.outcome, _KILLED)

    def __repr__(self) -> str:
        what = f"{self.outcome} {self.returncode}" if self.outcome in {"exited", "signalled"} else self.outcome
        return (
            f"CommandResult(step={self.step}, {what}, {self.duration_s:.3f} s, "
            f"stdout={_size(self.stdout_total, cut=self.stdout_truncated)}, "
            f"stderr={_size(self.stderr_total, cut=self.stderr_truncated)})"
        )


def shell_program() -> str:
    """Return the shell that runs commands given as text: /bin/bash where there is one, else /bin/sh."""
    return "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh"


def build_request(
    command: Command,
    *,
    workspace: Path,
    cell: str = "",
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    stdin: bool = False,
    pty: bool = False,
    gpu: int | str | None = None,
    turn: Turn | None = None,
) -> RunCommand:
    """Check what a caller asks for and make the message of it.

    Raises:
        TypeError: An argument is not text.
        ValueError: An argument cannot be executed as it is; the text names it.
    """
    if timeout is not None and not (timeout > 0 and math.isfinite(timeout)):
        msg = f"timeout must be a positive number of seconds, not {timeout!r}"
        raise ValueError(msg)
    return RunCommand(
        argv=_arguments(command),
        cell=cell if turn is None else turn.cell,
        cwd="" if cwd is None else _text(os.path.join(workspace, os.fspath(cwd)), "cwd"),
        env=_variables(env or {}),
        timeout_s=timeout or 0.0,
        stdin=stdin,
        pty=pty,
        gpu=_gpu(gpu),
        run="" if turn is None else turn.run,
        turn=0 if turn is None else turn.number,
    )


def input_bytes(data: object) -> bytes | None:
    """Return what a command is to read; None where a caller gives nothing, or only says whether there is to be a pipe.

    Raises:
        TypeError: It is neither bytes nor text.
    """
    if data is None or isinstance(data, bool):
        return None
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    msg = f"stdin must be bytes or text, not {type(data).__name__}"
    raise TypeError(msg)


def checked_result(result: CommandResult, *, check: bool) -> CommandResult:
    """Return the result of a command.

    Raises:
        CommandFailedError: It failed, and `check` is set.
    """
    if check and not result.ok:
        msg = f"command {result.step} ({result.argv[0]}) failed: {result.outcome}, return code {result.returncode}"
        raise CommandFailedError(msg, result)
    return result


def make_result(argv: Sequence[str], ended: CommandEnded, stdout: bytes, stderr: bytes) -> CommandResult:
    """Join the supervisor's account of a command's end with the output that was kept here."""
    return CommandResult(
        step=ended.step,
        argv=tuple(argv),
        outcome=ended.outcome,
        exit_code=ended.exit_code,
        signal=ended.signal,
        stdout_bytes=stdout,
        stderr_bytes=stderr,
        stdout_truncated=ended.stdout_truncated or len(stdout) < ended.stdout_bytes,
        stderr_truncated=ended.stderr_truncated or len(stderr) < ended.stderr_bytes,
        stdout_total=ended.stdout_bytes,
        stderr_total=ended.stderr_bytes,
        duration_s=ended.duration_s,
        cpu_user_s=ended.cpu_user_s,
        cpu_system_s=ended.cpu_system_s,
        max_rss_bytes=ended.max_rss_bytes,
        head=ended.head,
    )


def _arguments(command: Command) -> list[str]:
    if isinstance(command, str):
        return [shell_program(), "-c", _text(command, "command")]
    if isinstance(command, (bytes, bytearray, os.PathLike)) or not isinstance(command, Sequence):
        msg = f"command must be a shell script (str) or a sequence of arguments, not {type(command).__name__}"
        raise TypeError(msg)
    if not command:
        msg = "command is an empty sequence: name at least a program"
        raise ValueError(msg)
    return [_text(os.fspath(part), f"command[{index}]") for index, part in enumerate(command)]


def _gpu(gpu: object) -> int | str | None:
    if gpu is None or (isinstance(gpu, int) and not isinstance(gpu, bool)):
        return gpu
    return _text(gpu, "gpu")


def _variables(env: Mapping[str, str]) -> dict[str, str]:
    for name in env:
        if not _text(name, "env") or "=" in name:
            msg = f"env: {name!r} is not a variable's name"
            raise ValueError(msg)
    return {name: _text(value, f"env[{name!r}]") for name, value in env.items()}


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        msg = f"{what} must be text, not {type(value).__name__}"
        raise TypeError(msg)
    if "\0" in value:
        msg = f"{what} holds a NUL character, which no program can be given"
        raise ValueError(msg)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        msg = f"{what} is not valid Unicode text: {error.reason} at position {error.start}"
        raise ValueError(msg) from error
    return value


def _size(total: int, *, cut: bool) -> str:
    return f"{total} bytes, truncated" if cut else f"{total} bytes"
