"""What can be done to a live watch from outside of the kernel that owns it: ask how it is, tell it something, end it.

The command line and the Jupyter server both act through this module, so that a kill is the same everywhere. Every call
blocks for a bounded time and goes over a connection of its own: nothing that another client waits for can delay it.
"""

from __future__ import annotations

import time
from pathlib import Path

from jupyter_agentwatch.errors import ControlError, SessionEndedError
from jupyter_agentwatch.wire.client import ask
from jupyter_agentwatch.wire.force import kill_supervisors, supervisors_of
from jupyter_agentwatch.wire.messages import Ack, Kill, Killed, Request, Status, WatchStatus
from jupyter_agentwatch.wire.runtime import control_socket
from jupyter_agentwatch.wire.stragglers import end_stragglers

__all__ = ["ANSWER_S", "kill_watch", "tell_watch", "watch_status"]

ANSWER_S = 2.0
"""Seconds after which a supervisor counts as silent."""

_LAST_STEPS_S = 0.5
_POLL_S = 0.02


def watch_status(watch: str, *, name: str) -> WatchStatus:
    """Return a picture of a watch now.

    Args:
        watch: Its id.
        name: Who asks, for the audit log.

    Raises:
        SessionEndedError: Nobody listens on its socket.
        ControlError: Its supervisor is silent, or the socket is another user's.
    """
    return ask(control_socket(watch), Status(), WatchStatus, name=name, timeout=ANSWER_S)


def tell_watch(watch: str, message: Request, *, name: str) -> None:
    """Send a watch a request that is answered with a plain yes (`Suspend`, `Resume`, `Answer`).

    Args:
        watch: Its id.
        message: The request.
        name: Who asks, for the audit log.

    Raises:
        RefusedError: The supervisor said no; the text is its own.
        SessionEndedError: Nobody listens on its socket.
        ControlError: Its supervisor is silent, or the socket is another user's.
    """
    ask(control_socket(watch), message, Ack, name=name, timeout=ANSWER_S)


def kill_watch(watch: str, *, reason: str, name: str) -> Killed:
    """End everything in a watch, by its supervisor or, where that does not answer, by ending the supervisor.

    Args:
        watch: Its id.
        reason: For the audit log.
        name: Who kills, for the audit log.

    Returns:
        What was counted; `note` says where it went another way than by a request.

    Raises:
        SessionEndedError: It had ended before, nobody holds its socket, and none of its processes is found; a socket
            that was left over is removed.
        ControlError: Nothing was killed: the supervisor does not answer and is not to be found, or is another user's.
    """
    path = control_socket(watch)
    try:
        return ask(path, Kill(reason=reason, by=name), Killed, name=name, timeout=ANSWER_S)
    except SessionEndedError as error:
        if _is_abandoned(path):
            return _end_abandoned(path, error)
        why = str(error)  # somebody removed the socket's name while its supervisor lives
    except ControlError as error:
        why = str(error)
    return kill_supervisors(path, why)


def _end_abandoned(path: Path, error: SessionEndedError) -> Killed:
    """End what a dead supervisor has left, and its socket; raise where there is nothing."""
    started = time.monotonic()
    found, left = end_stragglers(path)
    if not left:
        path.unlink(missing_ok=True)
    if not found:
        msg = "it had ended before, and nothing of it is found"
        raise SessionEndedError(msg) from error
    note = "its supervisor and its init had ended before, and nobody had counted what they left"
    latency = (time.monotonic() - started) * 1000
    return Killed(killed=found - left, survivors=left, latency_ms=latency, head="", note=note)


def _is_abandoned(path: Path) -> bool:
    """Nobody holds the socket, or whoever does is about to end: a supervisor takes its socket away first."""
    deadline = time.monotonic() + _LAST_STEPS_S
    while supervisors_of(path):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True
