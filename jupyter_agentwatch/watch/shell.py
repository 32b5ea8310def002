"""A persistent shell in the sandbox: folder and variables last from one command to the next.

The end of each command is found by a marker that the shell writes. The marker keeps output and commands apart; it
is no proof of anything, because whatever runs in the sandbox can write to the same pipes.
"""

from __future__ import annotations

import secrets
import shlex
import signal
import threading
import time
from dataclasses import dataclass, field
from typing import Self

from jupyter_agentwatch.errors import AgentwatchError, ControlError, ShellEndedError
from jupyter_agentwatch.watch.command import shell_program
from jupyter_agentwatch.watch.output import Cursor
from jupyter_agentwatch.watch.running import Interrupts, Running
from jupyter_agentwatch.wire.client import Bell, Client
from jupyter_agentwatch.wire.messages import Ack, Resize

__all__ = ["Shell", "ShellResult", "Terminal", "shell_command", "terminal_command"]

_GRACE_S = 2.0
_ANSWER_S = 10.0

# Descriptors on which the shell writes its markers. Commands never see them: each runs with both closed, and they
# are numbers that scripts do not use for themselves (a plain sh knows only single digits).
_MARKS = {"/bin/bash": (198, 199)}
_SH_MARKS = (8, 9)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellResult:
    """How one command of a persistent shell ended.

    Attributes:
        exit_code: What the shell says of it: `$?` after the command, 128 + signal for a signal.
        stdout_bytes: What came from standard output in the meantime, also from jobs in the background.
        stderr_bytes: The same of standard error.
        duration_s: Wall time in seconds, measured here.
        timed_out: It was interrupted because its time was over.
    """

    exit_code: int
    stdout_bytes: bytes = field(repr=False)
    stderr_bytes: bytes = field(repr=False)
    duration_s: float
    timed_out: bool = False

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
        """The exit code is 0."""
        return self.exit_code == 0


class Shell:
    """A shell that stays; `Watch.shell` makes it. One command runs at a time, also with several threads.

    Each command reads from /dev/null. All of a shell's output together counts against the policy's
    `limits.output_bytes`; when that is used up, the shell is over.

    Attributes:
        running: The shell itself as a command of the watch.
        last_result: The last command's result, also after an interrupt.
    """

    def __init__(self, running: Running) -> None:
        """Take over a shell that was started with `shell_command()`."""
        self.running = running
        self.last_result: ShellResult | None = None
        self._lock = threading.Lock()
        self._cursor = Cursor()
        self._kept = (bytearray(), bytearray())
        self._out, self._err = _MARKS.get(running.argv[0], _SH_MARKS)
        # With the trap, SIGINT ends the command in the foreground and not the shell.
        self._pending = f"exec {self._out}>&1 {self._err}>&2\ntrap : INT\n"

    def __enter__(self) -> Self:
        """Return the shell itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def run(self, command: str, *, timeout: float | None = None) -> ShellResult:
        """Run a command and wait for its end. ■ interrupts it; a second ■ ends the shell.

        Args:
            command: Shell text, of any number of lines.
            timeout: Seconds after which it is interrupted, and killed with its shell if that does not end it.

        Raises:
            ShellEndedError: The command ended the shell (`exit`, `exec`, `set -e`, a kill, the output limit).
            SessionEndedError: The watch ended.
            ValueError: The command holds a NUL character.
        """
        if "\0" in command:
            msg = "command holds a NUL character, which no shell can be given"
            raise ValueError(msg)
        with self._lock, Interrupts() as interrupts:
            self.last_result = self._run(command, timeout, interrupts)
        if interrupts.count:
            raise KeyboardInterrupt
        return self.last_result

    def close(self) -> None:
        """End the shell and what runs in it; idempotent."""
        try:
            if not self.running.has_ended:
                self.running.close_stdin()
                self.running.wait(_GRACE_S)
        except BrokenPipeError:
            pass
        except (TimeoutError, ControlError):
            self.running.kill()

    def _run(self, command: str, timeout: float | None, interrupts: Interrupts) -> ShellResult:
        start = time.monotonic()
        nonce = secrets.token_hex(16)
        turn = _Turn(self.running, interrupts, start + timeout if timeout else None)
        with self.running.listening(interrupts.bell.ring, output=True):
            self._send(command, nonce)
            while (code := self._found(nonce)) is None:
                if self.running.has_ended:
                    # Its last output may have come between the search and the end.
                    if (code := self._found(nonce)) is not None:
                        break
                    raise self._over(interrupts)
                if full := next((s for s in (1, 2) if self.running.is_full(s)), 0):
                    self.running.kill()
                    name = "standard output" if full == 1 else "standard error"
                    msg = f"the shell is over: its {name} reached limits.output_bytes; open a new shell"
                    raise ShellEndedError(msg)
                turn.wait()
        stdout, stderr = self._cut(nonce)
        return ShellResult(
            exit_code=code,
            stdout_bytes=stdout,
            stderr_bytes=stderr,
            duration_s=time.monotonic() - start,
            timed_out=turn.timed_out,
        )

    def _send(self, command: str, nonce: str) -> None:
        out, err = self._out, self._err
        text = (
            f"{self._pending}command eval {shlex.quote(command)} </dev/null {out}>&- {err}>&-\n"
            f"command printf '\\036{nonce}:%d\\036' \"$?\" >&{out}; command printf '\\036{nonce}\\036' >&{err}\n"
        )
        self._pending = ""
        try:
            self.running.write(text)
        except BrokenPipeError as error:
            msg = "the shell is over; open a new one with Watch.shell()"
            raise ShellEndedError(msg) from error

    def _found(self, nonce: str) -> int | None:
        """Take in what has come; return the exit code once both markers are there."""
        while piece := self.running.read(self._cursor):
            stream, data = piece
            self._kept[stream - 1].extend(data)
        if self._kept[1].find(_err_mark(nonce)) < 0:
            return None
        at = self._kept[0].find(begin := _out_mark(nonce))
        end = self._kept[0].find(b"\x1e", at + len(begin)) if at >= 0 else -1
        if end < 0:
            return None
        digits = bytes(self._kept[0][at + len(begin) : end])
        return int(digits) if digits.isdigit() and len(digits) <= 3 else -1

    def _cut(self, nonce: str) -> tuple[bytes, bytes]:
        """Take this command's output off; what follows the markers belongs to the next one."""
        out, err = self._kept
        begin, mark = _out_mark(nonce), _err_mark(nonce)
        at = out.find(begin)
        stdout = bytes(out[:at])
        del out[: out.find(b"\x1e", at + len(begin)) + 1]
        at = err.find(mark)
        stderr = bytes(err[:at])
        del err[: at + len(mark)]
        return stdout, stderr

    def _over(self, interrupts: Interrupts) -> BaseException:
        if interrupts.count:
            return KeyboardInterrupt()
        try:
            result = self.running.wait()
        except AgentwatchError as error:
            return error
        stderr = bytes(self._kept[1][-400:]).decode("utf-8", "replace").strip()
        msg = f"the shell is over: {result.outcome} {result.returncode}; the watch goes on, open a new shell"
        return ShellEndedError(f"{msg}. Its last words were: {stderr!a}" if stderr else msg)


class _Turn:
    """Patience with one command of a shell: when to interrupt it and when to end the shell."""

    def __init__(self, running: Running, interrupts: Interrupts, deadline: float | None) -> None:
        self.timed_out = False
        self._running = running
        self._interrupts = interrupts
        self._deadline = deadline
        self._handled = 0

    def wait(self) -> None:
        """Wait until something changes; act on ■ and on the deadline."""
        if self._interrupts.count > self._handled:
            self._handled += 1
            self._running.post_signal(signal.SIGINT if self._handled == 1 else signal.SIGKILL)
            return
        left = None if self._deadline is None else self._deadline - time.monotonic()
        if self._interrupts.bell.wait(left):
            return
        self._running.post_signal(signal.SIGKILL if self.timed_out else signal.SIGINT)
        self._deadline = None if self.timed_out else time.monotonic() + _GRACE_S
        self.timed_out = True


class Terminal:
    """A shell on a terminal of its own, raw: what a person would see, escapes and all. `Watch.shell(pty=True)`.

    Attributes:
        running: The shell as a command of the watch.
    """

    def __init__(self, running: Running, client: Client) -> None:
        """Take over a command that was started on a terminal."""
        self.running = running
        self._client = client
        self._cursor = Cursor()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Return the terminal itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def read(self, timeout: float | None = None) -> bytes:
        """Return what the terminal has shown since the last call, waiting for the first byte; b"" at its end.

        Raises:
            TimeoutError: Nothing came within `timeout` seconds.
        """
        bell = Bell()
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock, self.running.listening(bell.ring, output=True):
            while True:
                over = self.running.has_ended
                if data := b"".join(iter(self._next, b"")):
                    return data
                if over:
                    return b""
                if not bell.wait(None if deadline is None else deadline - time.monotonic()):
                    msg = f"the terminal showed nothing for {timeout:g} s"
                    raise TimeoutError(msg)

    def write(self, data: bytes | str) -> None:
        """Type something; a line ends with `\\r` or `\\n`, Ctrl-C is `\\x03`.

        Raises:
            BrokenPipeError: The shell has ended.
        """
        self.running.write(data)

    def resize(self, rows: int, columns: int) -> None:
        """Change the terminal's size, in characters.

        Raises:
            ValueError: A size below 1 or above 65535.
            ControlError: The shell has ended.
        """
        if not (0 < rows < 1 << 16 and 0 < columns < 1 << 16):
            msg = f"rows and columns must be between 1 and 65535, not {rows} and {columns}"
            raise ValueError(msg)
        self._client.request(Resize(step=self.running.step, rows=rows, columns=columns), Ack, timeout=_ANSWER_S)

    def close(self) -> None:
        """End the shell and what runs in it; idempotent."""
        self.running.kill()

    def _next(self) -> bytes:
        piece = self.running.read(self._cursor)
        return piece[1] if piece else b""


def shell_command() -> list[str]:
    """Return the command of a `Shell`: no start-up files, script from standard input."""
    program = shell_program()
    return [program, "--noprofile", "--norc", "-s"] if program in _MARKS else [program, "-s"]


def terminal_command() -> list[str]:
    """Return the command of a `Terminal`: an interactive shell without start-up files."""
    program = shell_program()
    return [program, "--noprofile", "--norc", "-i"] if program in _MARKS else [program, "-i"]


def _out_mark(nonce: str) -> bytes:
    return f"\x1e{nonce}:".encode()


def _err_mark(nonce: str) -> bytes:
    return f"\x1e{nonce}\x1e".encode()
