"""What a sandbox looks like at a freeze, kept as text for whoever has to decide: processes, connections, last bytes.

Everything here is bounded: the sandbox decides how many of both there are, and what they are called.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from itertools import islice
from typing import Final

from jupyter_agentwatch.events import from_bytes
from jupyter_agentwatch.sandbox.descendants import offspring
from jupyter_agentwatch.sandbox.flow import FlowState

__all__ = ["connections", "last_bytes", "process_tree"]

_MOST: Final = 64
_LONGEST: Final = 300
_TOLD: Final = 16


def process_tree(init_pid: int) -> list[str]:
    """Return the first 64 processes below init: "pid parent program arguments", parents before children."""
    return list(filter(None, map(_process, islice(offspring(init_pid), _MOST))))


def connections(flows: Iterable[FlowState]) -> list[str]:
    """Return the first 64 open connections, with what has passed through them."""
    return [
        f"{each.spec.addr}:{each.spec.port} {each.spec.host} step {each.spec.step} pid {each.spec.pid} {each.phase} "
        f"{each.protocol} {each.server_name} out {each.bytes_out} in {each.bytes_in} for {each.age_s:.1f} s"[:_LONGEST]
        for each in islice(flows, _MOST)
    ]


def last_bytes(live: Iterable[FlowState], ended: Iterable[FlowState]) -> list[str]:
    """Return the end of what passed through connections, or was held back of it, each way and quoted; 16 at most.

    Args:
        live: Connections that are open.
        ended: Those that have ended, the last one last: what the breaker trips for has been reset by then.
    """
    spoken = [each for each in (*reversed([*ended]), *live) if each.last_out or each.last_in]
    return [
        f"{each.spec.addr}:{each.spec.port} {each.spec.host} step {each.spec.step} pid {each.spec.pid} {each.phase} "
        f"out {_quoted(each.last_out)} in {_quoted(each.last_in)}"
        for each in islice(spoken, _TOLD)
    ]


def _quoted(data: bytes) -> str:
    return repr(data).removeprefix("b")


def _process(pid: int) -> str:
    exe, parent, line = "?", "?", b""
    with contextlib.suppress(OSError):  # it has just ended, or hides itself
        with open(f"/proc/{pid}/stat", "rb") as file:
            parent = file.read().rpartition(b")")[2].split()[1].decode()
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            line = file.read(_LONGEST)
        exe = from_bytes(os.fsencode(os.readlink(f"/proc/{pid}/exe")))
    return f"{pid} {parent} {exe} {from_bytes(line.rstrip(bytes(1)).replace(bytes(1), b' '))}"[:_LONGEST]
