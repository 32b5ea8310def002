"""How a command ended: told once to the log and once to the client, with the limit that ended it, if one did."""

from __future__ import annotations

import contextlib
import math
import os
import signal
from dataclasses import dataclass
from typing import Any, Final, Literal

from jupyter_agentwatch.audit.log import LogWriteError
from jupyter_agentwatch.events import Exit, LimitHit, Step
from jupyter_agentwatch.policy import Limits
from jupyter_agentwatch.supervisor.record import Recorder
from jupyter_agentwatch.wire.messages import CommandEnded

__all__ = ["Ending", "how_ended", "note_exit", "note_limit", "tell_end"]

_LIMIT_SIGNALS: Final = {int(signal.SIGXCPU): "cpu_s", int(signal.SIGXFSZ): "file_bytes"}


@dataclass(frozen=True, slots=True)
class Ending:
    """What is known of a command's end.

    Attributes:
        step: The command.
        ended_by: "timeout", "killed", "limit:…", "not-found", "not-executable", or "" where it ended by itself.
        status: Wait status of its first process.
        duration_s: Wall time.
        cpu: User and system time of it and of the children that it waited for, seconds.
        max_rss_bytes: Largest resident memory of one of these.
        written: Bytes written to standard output and standard error.
    """

    step: int
    ended_by: str
    status: int
    duration_s: float
    cpu: tuple[float, float]
    max_rss_bytes: int
    written: tuple[int, int]


def how_ended(status: int) -> tuple[int | None, int | None]:
    """Return exit code and signal of a wait status; one of them is None."""
    if os.WIFSIGNALED(status):
        return None, os.WTERMSIG(status)
    return os.waitstatus_to_exitcode(status), None


def note_exit(news: dict[str, Any], who: tuple[int, int], recorder: Recorder, *, is_orphan: bool) -> None:
    """Record that a process ended.

    Args:
        news: What init told of it.
        who: Its host pid and its step, as far as they are known.
        recorder: Where the record goes; the process has ended also where that cannot be written.
        is_orphan: It is no command's first process.
    """
    code, number = how_ended(news["status"])
    pid, step = who
    with contextlib.suppress(LogWriteError):
        recorder.record(Exit, step=news["step"] or step, pid=pid, exit_code=code, signal=number, orphan=is_orphan)


def note_limit(
    recorder: Recorder, step: int, fields: dict[str, Any], verdict: Literal["kill", "deny"] = "kill"
) -> None:
    """Record that a limit ended a step, or cut it short; it holds also where the record cannot be written."""
    with contextlib.suppress(LogWriteError):
        recorder.record(LimitHit, verdict=verdict, step=step, sync=True, **fields)


def tell_end(ending: Ending, limits: Limits, recorder: Recorder) -> CommandEnded:
    """Record the end, and return what the client is told."""
    code, number = how_ended(ending.status)
    outcome = ending.ended_by or ("exited" if number is None else "signalled")
    limit = _LIMIT_SIGNALS.get(number or 0)
    if number == signal.SIGKILL and sum(ending.cpu) >= (limits.cpu_s or math.inf):
        limit = "cpu_s"  # it had ignored SIGXCPU
    if limit is not None and not ending.ended_by:
        outcome = f"limit:{limit}"
        maximum = float(getattr(limits, limit) or 0)
        note_limit(
            recorder, ending.step, {"limit": limit, "value": maximum, "maximum": maximum, "action": "command ended"}
        )
    out, err = ending.written
    cut = limits.output_bytes
    if max(out, err) > cut:
        dropped = {"limit": "output_bytes", "value": float(max(out, err)), "maximum": float(cut)}
        note_limit(recorder, ending.step, dropped | {"action": "the rest of the output dropped"}, "deny")
    measured: dict[str, Any] = {
        "outcome": outcome,
        "exit_code": code,
        "signal": number,
        "duration_s": ending.duration_s,
        "cpu_user_s": ending.cpu[0],
        "cpu_system_s": ending.cpu[1],
        "max_rss_bytes": ending.max_rss_bytes,
        "stdout_bytes": out,
        "stderr_bytes": err,
    }
    with contextlib.suppress(LogWriteError):  # it ended all the same; the gap will be on record
        recorder.record(Step, op="end", step=ending.step, **measured)
    return CommandEnded(
        step=ending.step,
        **measured,
        stdout_truncated=out > cut,
        stderr_truncated=err > cut,
        head=recorder.head,
    )
