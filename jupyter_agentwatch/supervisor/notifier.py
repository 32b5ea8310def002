"""Tells somebody outside that the breaker has tripped: a command or an address of the user's, never the sandbox's.

What is told holds the agent's words, so it goes as JSON on a standard input or in a body, and through no shell.
"""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import msgspec

from jupyter_agentwatch.events import printable

if TYPE_CHECKING:
    from jupyter_agentwatch.policy import Notify

__all__ = ["notify"]

_TOLD = 200


def notify(where: Notify, what: dict[str, Any]) -> list[str]:
    """Tell everybody whom the policy names. Blocks until all have answered or their time is over.

    Args:
        where: Whom.
        what: What happened.

    Returns:
        How each went, in words; nothing where nobody is named.
    """
    body = msgspec.json.encode(what)
    told = []
    if where.command:
        told.append(_run(where.command, body, where.timeout_s))
    if where.url:
        told.append(_post(where.url, body, where.timeout_s))
    return told


def _run(command: list[str], body: bytes, timeout_s: float) -> str:
    name = printable(command[0], _TOLD)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        return f"{name}: {error.strerror}"
    try:
        process.communicate(body, timeout_s)
    except subprocess.TimeoutExpired:
        # Its whole session: what it has started may not outlive the time limit either.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"{name}: killed after {timeout_s:g} s"
    return f"{name}: exit {process.returncode}"


def _post(url: str, body: bytes, timeout_s: float) -> str:
    from http.client import HTTPException
    from urllib.request import Request, urlopen

    name = printable(url, _TOLD)
    request = Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 -- the policy lets only HTTP through
    try:
        with urlopen(request, timeout=timeout_s) as response:  # noqa: S310 -- as above
            return f"{name}: {response.status}"
    except (OSError, HTTPException, ValueError) as error:
        return f"{name}: {printable(f'{type(error).__name__}: {error}', _TOLD)}"
