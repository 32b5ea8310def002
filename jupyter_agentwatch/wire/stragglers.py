"""Ends what outlived both its supervisor and its init, which only a sandbox without namespaces can leave behind.

Such processes are nobody's children any more. What they cannot take off, and what they have had from their start, tells
them from all others.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

__all__ = ["end_stragglers"]

_PATIENCE_S: Final = 5.0
_POLL_S: Final = 0.005
_HAS_A_FILTER: Final = b"\nSeccomp:\t2\n"


def end_stragglers(control: Path) -> tuple[int, int]:
    """Kill what a dead watch has left, again and again until nothing of it is found.

    A process is the watch's where it has a system call filter, and an environment that names the watch's own folder, as
    each command gets it. One that has taken on another environment is not found.

    Args:
        control: The watch's control socket, behind which nobody is any more.

    Returns:
        How many processes were found, and how many of them are left.
    """
    mark = b"/%s/" % os.fsencode(control.with_suffix(".fresh").name)
    found: set[int] = set()
    deadline = time.monotonic() + _PATIENCE_S
    while left := [int(name) for name in os.listdir("/proc") if name.isdigit() and _is_left(name, mark)]:
        found.update(left)
        if time.monotonic() >= deadline:
            break
        for pid in left:
            _end(pid, mark)
        time.sleep(_POLL_S)
    return len(found), len(left)


def _is_left(name: str, mark: bytes) -> bool:
    folder = Path("/proc", name)
    try:
        return mark in (folder / "environ").read_bytes() and _HAS_A_FILTER in (folder / "status").read_bytes()
    except OSError:  # it has ended, or is somebody else's
        return False


def _end(pid: int, mark: bytes) -> None:
    try:
        held = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _is_left(str(pid), mark):  # the number cannot become another one's from here on
            signal.pidfd_send_signal(held, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(held)
