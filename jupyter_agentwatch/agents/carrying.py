"""Carrying out what an agent chose: always as a command in the sandbox, edits too, so that all of it is recorded."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jupyter_agentwatch.agents.adapters.pausing import when_closed
from jupyter_agentwatch.agents.model import Action, Edit, Finish, Observation, Patch, Say, Shell, Unclear
from jupyter_agentwatch.errors import AgentwatchError, SessionEndedError

if TYPE_CHECKING:
    from jupyter_agentwatch.watch.command import Command, CommandResult
    from jupyter_agentwatch.watch.handle import Watch
    from jupyter_agentwatch.watch.running import Running

__all__ = ["Bench", "Carried", "Interrupted", "cut"]

_EDITOR = Path(__file__).with_name("edit_inside.py")


class Interrupted(Exception):  # noqa: N818 -- no error: somebody wants the run to end
    """The run is to end; nothing more is carried out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What came of an action.

    Attributes:
        step: The command that carried it out, 0 for none.
        shown: What the action says, for the log.
        told: What came of it, for the log.
        text: What came of it, for the agent.
        outcome: How the command ended, "" where there was none.
        exit_code: Its exit code, where it exited.
        truncated: `text` is not all of it.
    """

    step: int = 0
    shown: str = ""
    told: str = ""
    text: str = ""
    outcome: str = ""
    exit_code: int | None = None
    truncated: bool = False

    def observation(self, task: str, turn: int) -> Observation:
        """Return what the agent gets to see of it."""
        return Observation(
            task=task,
            turn=turn,
            text=self.text,
            outcome=self.outcome,
            exit_code=self.exit_code,
            truncated=self.truncated,
        )


class Bench:
    """Where one run's actions are carried out.

    Args:
        watch: The sandbox.
        timeout: Most seconds of one command; None: the policy's limit.
        chars: Characters of output that an agent gets.
        gpu: GPU that is leased to each command.

    Attributes:
        started: Monotonic time at which the run began.
        paused_s: Seconds for which the watch took no command.
        steps: The commands so far, whose records the run answers for.
    """

    def __init__(self, watch: Watch, timeout: float | None, chars: int, gpu: int | str | None) -> None:
        self.started = time.monotonic()
        self.paused_s = 0.0
        self.steps: list[int] = []
        self._watch = watch
        self._timeout = timeout
        self._chars = chars
        self._gpu = gpu
        self._lock = threading.Lock()
        self._running: Running | None = None
        self._interrupted = threading.Event()

    def interrupt(self) -> None:
        """Kill the command that runs, if one does, and carry out nothing more; does not wait."""
        self._interrupted.set()
        with self._lock:
            running = self._running
        if running is not None:
            running.abandon()

    def end_leftovers(self) -> None:
        """End what commands of the run have left running; a watch that has ended has nothing left."""
        with contextlib.suppress(AgentwatchError):
            for step in set(self._watch.status().steps_alive).intersection(self.steps):
                self._watch.end_step(step)

    def carry_out(self, action: Action) -> Carried:
        """Carry out an action; waits while the watch is throttled or frozen.

        Raises:
            Interrupted: `interrupt` was called.
            SessionEndedError: The watch has ended.
            ControlError: The supervisor refuses every command.
        """
        match action:
            case Shell(command=command, timeout=timeout):
                return self._shell(command, timeout)
            case Edit(path=path, old=old, new=new):
                return self._edit(f"edit {path}", {"path": path, "old": old, "new": new})
            case Patch(diff=diff):
                return self._edit(diff, {"diff": diff})
            case Say(text=text):
                return Carried(shown=text)
            case Finish(text=text):
                return Carried(shown=text)
            case Unclear(text=text, problem=problem):
                return Carried(shown=text, told=problem, text=problem)
        return Carried()

    def _shell(self, command: Command, timeout: float | None) -> Carried:
        shown = command if isinstance(command, str) else shlex.join(map(str, command))
        try:
            result = self._run(command, timeout)
        except (TypeError, ValueError) as error:
            # What no program can be given, as a NUL: the agent's mistake, and it may mend it.
            return Carried(shown=shown, told="refused", text=f"this cannot be run: {error}", outcome="refused")
        return self._carried(shown, result)

    def _edit(self, shown: str, wanted: dict[str, str]) -> Carried:
        program = [sys.executable, "-I", "-S", "-c", _EDITOR.read_text("utf-8")]
        return self._carried(shown, self._run(program, None, json.dumps(wanted).encode()))

    def _carried(self, shown: str, result: CommandResult) -> Carried:
        if result.outcome in {"killed", "signalled"} and self._watch.status().state == "killed":
            msg = f"watch {self._watch.id} was killed"
            raise SessionEndedError(msg)
        text, truncated = _output(result, self._chars)
        told = f"{result.outcome} {result.returncode}" if result.outcome in {"exited", "signalled"} else result.outcome
        return Carried(
            step=result.step,
            shown=shown,
            told=told,
            text=text,
            outcome=result.outcome,
            exit_code=result.exit_code,
            truncated=truncated,
        )

    def _run(self, command: Command, timeout: float | None, stdin: bytes | None = None) -> CommandResult:
        running = self._start(command, min((each for each in (timeout, self._timeout) if each), default=None), stdin)
        self.steps.append(running.step)
        with self._lock:
            self._running = running
        try:
            if self._interrupted.is_set():
                running.abandon()
            return running.wait()
        finally:
            with self._lock:
                self._running = None

    def _start(self, command: Command, timeout: float | None, stdin: bytes | None) -> Running:
        if self._interrupted.is_set():
            raise Interrupted

        def start() -> Running:
            return self._watch.start(command, timeout=timeout, stdin=stdin, gpu=self._gpu)

        return when_closed(self._watch, start, wait=self._pause)

    def _pause(self, seconds: float) -> None:
        start = time.monotonic()
        is_interrupted = self._interrupted.wait(seconds)
        self.paused_s += time.monotonic() - start
        if is_interrupted:
            raise Interrupted


def cut(text: str, limit: int) -> str:
    """Return a text, or its beginning and end with a note of what is left out between them."""
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    return f"{text[:head]}\n[… {len(text) - limit} characters left out …]\n{text[len(text) - (limit - head) :]}"


def _output(result: CommandResult, limit: int) -> tuple[str, bool]:
    streams: Sequence[tuple[str, bytes, int]] = (
        ("", result.stdout_bytes, result.stdout_total),
        ("[stderr]\n", result.stderr_bytes, result.stderr_total),
    )
    parts = [label + _ends(data, total, limit) for label, data, total in streams if total]
    text = "\n".join(parts)
    whole = len(result.stdout_bytes) + len(result.stderr_bytes)
    is_cut = result.stdout_truncated or result.stderr_truncated or len(text) > limit or whole > 4 * limit
    return cut(text, limit), is_cut


def _ends(data: bytes, total: int, limit: int) -> str:
    """Decode no more of a long output than can be shown: four bytes make one character at most."""
    room = 4 * limit
    kept = data if len(data) <= 2 * room else data[:room] + data[-room:]
    text = kept.decode("utf-8", "replace").removesuffix("\n")
    return text if total == len(data) else f"{text}\n[output of {total} bytes; the rest was not kept]"
