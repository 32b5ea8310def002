"""smolagents: an executor that runs the agent's Python in a watch, in one interpreter that lives as long as it does."""

from __future__ import annotations

import json
import secrets
import sys
import threading
from collections.abc import Iterator
from typing import Any, Final

from smolagents.local_python_executor import CodeOutput
from smolagents.monitoring import AgentLogger, LogLevel
from smolagents.remote_executors import RemotePythonExecutor
from smolagents.serialization import SerializationError
from smolagents.utils import AgentError

from jupyter_agentwatch.agents.adapters.pausing import ENDED, when_closed
from jupyter_agentwatch.errors import AgentwatchError
from jupyter_agentwatch.watch import Running, Watch

__all__ = ["AgentwatchExecutor"]

_INTERPRETER: Final = r"""
import ast, contextlib, json, os, sys, traceback
marks = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
os.dup2(1, 2)
orders, sys.stdin = sys.stdin, open(os.devnull)
space = {"__name__": "__main__"}

def value(code):
    tree = ast.parse(code, "<action>")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<action>", "exec"), space)
    return eval(compile(ast.Expression(last.value), "<action>", "eval"), space) if last else None

for line in orders:
    order = json.loads(line)
    told = {"kind": "value", "text": ""}
    try:
        found = value(order["code"])
        told["text"] = "" if found is None else str(found)
    except BaseException as error:
        told = {"kind": "error", "text": traceback.format_exc(limit=8)}
        if type(error).__name__ == "FinalAnswerException":
            told = {"kind": "answer", "text": str(error.value)}
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    os.write(1, f"\x1e{order['mark']}\x1e".encode())
    marks.write(json.dumps({"mark": order["mark"], **told}) + "\n")
    marks.flush()
"""
"""Runs inside. What it tells is hostile: the code that it runs could say the same."""

_MAX_LOGS: Final = 1 << 20
_MAX_TOLD: Final = 4 << 20


class AgentwatchExecutor(RemotePythonExecutor):
    """Give it to an agent: `CodeAgent(..., executor=AgentwatchExecutor(watch))`.

    Tools run inside as well: their source is sent there. Packages are not installed: the interpreter is the notebook's
    own, seen read-only, with what is installed there. What comes and goes is JSON, never pickles.

    Args:
        watch: Where to run. It lives on afterwards.
        timeout: Seconds that one action may take; then it is interrupted, and what it has defined is kept.
        logger: smolagents' logger; default: one that is quiet.

    Raises:
        ControlError: The supervisor refused.
        SessionEndedError: The watch was killed.
    """

    def __init__(self, watch: Watch, *, timeout: float = 60.0, logger: AgentLogger | None = None) -> None:
        super().__init__([], logger or AgentLogger(level=LogLevel.OFF))
        self.watch = watch
        self._timeout = timeout
        self._running: Running | None = None
        self._pieces: Iterator[tuple[int, bytes]] = iter(())
        self._streams = (bytearray(), bytearray())

    def run_code_raise_errors(self, code: str) -> CodeOutput:
        """Run one action, and return the value of its last expression, what it printed, and whether it is the answer.

        Raises:
            AgentError: It failed, took too long, or ended the interpreter: the text is for the agent.
        """
        mark = secrets.token_hex(16)
        try:
            running = self._interpreter()
            running.write(json.dumps({"mark": mark, "code": code}) + "\n")
            told, logs = self._wait_told(running, mark)
        except (AgentwatchError, BrokenPipeError, ValueError) as error:
            self.cleanup()
            reason = ENDED if self.watch.has_ended else f"the interpreter is gone, with all that was defined: {error}"
            raise AgentError(reason, self.logger) from None
        match told.get("kind"):
            case "value":
                return CodeOutput(output=told.get("text"), logs=logs, is_final_answer=False)
            case "answer":
                return CodeOutput(output=self._answer(str(told.get("text"))), logs=logs, is_final_answer=True)
        trouble = f"{logs}\n{told.get('text')}"
        raise AgentError(trouble, self.logger)

    def install_packages(self, additional_imports: list[str]) -> list[str]:
        """Install nothing: what is not there cannot be imported, and says so when it is."""
        return additional_imports

    def cleanup(self) -> None:
        """End the interpreter; the watch lives on. The next action begins a new one."""
        running, self._running = self._running, None
        if running is not None and not self.watch.has_ended:
            running.kill()

    def _answer(self, text: str) -> Any:
        try:
            return self._deserialize_final_answer(text)
        except (SerializationError, ValueError, TypeError, KeyError) as error:  # made by hand, to be something else
            trouble = f"the answer cannot be read: {error}"
            raise AgentError(trouble, self.logger) from None

    def _interpreter(self) -> Running:
        if self._running is None or self._running.has_ended:
            argv = [sys.executable, "-u", "-c", _INTERPRETER]
            self._running = when_closed(self.watch, lambda: self.watch.start(argv, stdin=True))
            self._pieces = iter(self._running)
            self._streams = (bytearray(), bytearray())
        return self._running

    def _wait_told(self, running: Running, mark: str) -> tuple[dict[str, Any], str]:
        """Collect output until the interpreter has told how the action ended."""
        logs, told = self._streams
        found: dict[str, Any] | None = None
        end = f"\x1e{mark}\x1e".encode()
        # The first limit interrupts the action; what does not end then is killed, with its interpreter.
        timers = [threading.Timer(self._timeout, running.interrupt), threading.Timer(self._timeout + 5, running.kill)]
        for timer in timers:
            timer.daemon = True
            timer.start()
        try:
            for stream, data in self._pieces:
                (logs if stream == 1 else told).extend(data)
                if len(told) > _MAX_TOLD:
                    msg = "it told more than can be taken"
                    raise ValueError(msg)
                while found is None and (line := told.find(b"\n")) >= 0:
                    found = _told(bytes(told[:line]), mark)
                    del told[: line + 1]
                if found is not None and (at := logs.find(end)) >= 0:
                    text = bytes(logs[:at][-_MAX_LOGS:]).decode("utf-8", "replace")
                    del logs[: at + len(end)]
                    return found, text
        finally:
            for timer in timers:
                timer.cancel()
        msg = "the action ended it"
        raise ValueError(msg)


def _told(line: bytes, mark: str) -> dict[str, Any] | None:
    """Return what a line tells of the action with this mark; None where it is another's, or somebody else's."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) and document.get("mark") == mark else None
