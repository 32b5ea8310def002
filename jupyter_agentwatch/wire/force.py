"""The kill of last resort: finds the supervisor that holds a control socket, and ends it with all that it started.

Used only when the supervisor does not answer. It signals no process that is not proved to be ours.
"""

from __future__ import annotations

import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import psutil

from jupyter_agentwatch.errors import ControlError
from jupyter_agentwatch.wire.messages import Killed

__all__ = ["kill_supervisors", "supervisors_of"]

_PATIENCE_S = 5.0
_POLL_S = 0.005
_MARK = (b"-m", b"jupyter_agentwatch.supervisor")


def supervisors_of(path: Path) -> list[int]:
    """Return the processes of this user that run our supervisor and hold the socket at `path`; usually one or none.

    The socket's inode is the proof: a process id from anywhere else could by now be another process's.
    """
    wanted = {f"socket:[{inode}]" for inode in _inodes(path)}
    if not wanted:
        return []
    own = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _is_ours(entry))
    return [pid for pid in own if wanted & _descriptors(pid)]


def kill_supervisors(path: Path, why: str) -> Killed:
    """End the supervisor that holds a control socket by SIGKILL, and wait until its whole sandbox is gone.

    Args:
        path: The control socket.
        why: What made this necessary, for the note.

    Returns:
        Counts of the supervisor's descendants. The first of the sandbox's processes is among them; when it is gone,
        the kernel has ended every other one of its PID namespace.

    Raises:
        ControlError: No supervisor of this user holds the socket.
    """
    started = time.monotonic()
    pids = supervisors_of(path)
    if not pids:
        msg = f"{why}, and no supervisor process of yours holds {path}: nothing was killed"
        raise ControlError(msg)
    family: list[psutil.Process] = []
    for pid in pids:
        family += _kill_one(pid, path)
    alive = _wait_for_end(family)
    names = ", ".join(map(str, pids))
    note = f"{why}: SIGKILL to the supervisor (process {names}); its log has no close record"
    latency = (time.monotonic() - started) * 1000
    return Killed(killed=len(family) - alive, survivors=alive, latency_ms=latency, head="", note=note)


def _kill_one(pid: int, path: Path) -> list[psutil.Process]:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return []
    try:
        # Checked again now that the pidfd holds the process fast: the number cannot be reused from here on.
        if pid not in supervisors_of(path):
            return []
        process = psutil.Process(pid)
        family = process.children(recursive=True)
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except (psutil.Error, ProcessLookupError):
        return []
    else:
        return family
    finally:
        os.close(descriptor)


def _wait_for_end(family: list[psutil.Process]) -> int:
    """Return how many still live after a while. A zombie is dead, whether its new parent reaps it or not."""
    deadline = time.monotonic() + _PATIENCE_S
    while (alive := sum(map(_lives, family))) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return alive


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _inodes(path: Path) -> set[str]:
    rows = (line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text("utf-8", "replace").splitlines())
    return {row[6] for row in rows if len(row) == 8 and row[7] == str(path)}


def _is_ours(entry: Path) -> bool:
    try:
        argv = (entry / "cmdline").read_bytes().split(b"\0")
        return entry.stat().st_uid == os.getuid() and _MARK in pairwise(argv)
    except OSError:  # it has just ended
        return False


def _descriptors(pid: int) -> set[str]:
    found: set[str] = set()
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    except OSError:  # the descriptor or the process has just gone; what was seen before counts
        return found
    return found
