"""Which watch holds which workspace, and what watches that were killed have left behind.

A claim is a lock on a file in the runtime folder, so it ends with its process, however that ends. It bears the watch's
id, and it is taken before any of the watch's other files are made: what belongs to no claim that is held is dead.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import time
from pathlib import Path
from typing import Final

from jupyter_agentwatch.errors import WorkspaceError
from jupyter_agentwatch.sandbox.cgroup import clear_leaves
from jupyter_agentwatch.wire.runtime import audit_log, control_socket, is_watch_id, runtime_dir

__all__ = ["Claim", "claim_workspace", "clear_away", "forget_silence", "sweep"]

_TRIES: Final = 20
_TRY_AGAIN_S: Final = 0.005
"""Somebody who sweeps holds a lock that nobody else does for a moment."""

_ROUNDS: Final = 100
_FOLDERS: Final = (".store", ".fresh")


class Claim:
    """A workspace that is ours as long as this process lives, or until it is released.

    Args:
        path: The lock's file.
        fd: The same, open and locked.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd

    def release(self) -> None:
        """Give the workspace up, and remove the lock's file."""
        self._path.unlink(missing_ok=True)
        os.close(self._fd)


def claim_workspace(workspace: Path, watch: str) -> Claim:
    """Hold a workspace, by its inode: two histories of one folder would both lie.

    Args:
        workspace: The folder.
        watch: For whom.

    Raises:
        WorkspaceError: Another watch holds it.
    """
    info = workspace.stat()
    path = runtime_dir() / f"{info.st_dev:x}-{info.st_ino:x}.lock"
    other = ""
    for turn in range(_TRIES):
        if turn:
            time.sleep(_TRY_AGAIN_S)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if _lock(fd, path):
            os.ftruncate(fd, 0)
            os.pwrite(fd, watch.encode(), 0)
            return Claim(path, fd)
        other = _holder(fd)
        os.close(fd)
    msg = (
        f"workspace {workspace} is in use by watch {other or 'that is just starting'}; close that one, or choose "
        "another folder"
    )
    raise WorkspaceError(msg)


def sweep() -> None:
    """Remove what watches that were killed left in the runtime folder, and beside their logs."""
    # First what is there, then who lives: each claim is older than what belongs to it.
    left = {path.stem for suffix in _FOLDERS for path in runtime_dir().glob(f"*{suffix}")}
    living: set[str] = set()
    for lock in runtime_dir().glob("*.lock"):
        watch, is_held = _look(lock)
        (living if is_held else left).add(watch)
    for watch in filter(is_watch_id, left - living):
        if not _answers(control_socket(watch)):
            clear_away(watch)
            forget_silence(audit_log(watch))
    clear_leaves()  # also of watches whose runtime folder has gone


def clear_away(watch: str) -> None:
    """End a launcher that hangs and what outlived its init; remove a watch's cgroup, socket, folders, half-made anchor.

    Args:
        watch: Its id; nothing of it may be in use any more.
    """
    _end_launcher(f"{audit_log(watch)}.stderr")
    # Not at the start of a watch: the sandbox is on its way before these are there.
    import shutil

    from jupyter_agentwatch.audit.log import anchor_scratch
    from jupyter_agentwatch.wire.stragglers import end_stragglers

    control = control_socket(watch)
    end_stragglers(control)
    clear_leaves(watch)
    control.unlink(missing_ok=True)
    for suffix in _FOLDERS:
        shutil.rmtree(control.with_suffix(suffix), ignore_errors=True)
    anchor_scratch(audit_log(watch)).unlink(missing_ok=True)


def forget_silence(log: Path) -> None:
    """Remove the file beside a log that holds its supervisor's standard error, where nothing stands in it."""
    said = Path(f"{log}.stderr")
    with contextlib.suppress(OSError):
        if said.lstat().st_size == 0:
            said.unlink()


def _lock(fd: int, path: Path) -> bool:
    """Lock a file for us alone; False also where it has been removed since it was opened."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return path.stat().st_ino == os.fstat(fd).st_ino
    except (BlockingIOError, FileNotFoundError):
        return False


def _holder(fd: int) -> str:
    return os.pread(fd, 64, 0).decode(errors="replace")


def _look(lock: Path) -> tuple[str, bool]:
    """Return the watch that holds a claim, or held it last, and which of these; what nobody holds is removed."""
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return "", False
    try:
        is_held = not _lock(fd, lock)
        if not is_held:
            lock.unlink()
        return _holder(fd), is_held
    finally:
        os.close(fd)


def _end_launcher(said: str) -> None:
    """End a bubblewrap that waits for ever: it was made by another one, which was killed before it let it go on.

    Nobody else: without namespaces, init must live to end what it has started.

    Args:
        said: Where a dead watch's standard error went, which names its launcher.
    """
    for _ in range(_ROUNDS):
        found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_launcher(pid, said)]
        if not found:
            return
        for pid in found:
            with contextlib.suppress(OSError):
                held = os.pidfd_open(pid)
                try:
                    if _is_launcher(pid, said):
                        signal.pidfd_send_signal(held, signal.SIGKILL)
                finally:
                    os.close(held)
        time.sleep(_TRY_AGAIN_S)


def _is_launcher(pid: int, said: str) -> bool:
    try:
        if pid == os.getpid() or os.readlink(f"/proc/{pid}/fd/2").removesuffix(" (deleted)") != said:
            return False
        # Or it is a dead supervisor's child, and has not yet become what it should.
        is_on_its_way = b"\0jupyter_agentwatch.supervisor\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
        return is_on_its_way or os.path.basename(os.readlink(f"/proc/{pid}/exe")) == "bwrap"
    except OSError:  # it has ended, or is somebody else's
        return False


def _answers(control: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # one that has no time for us lives
        return probe.connect_ex(str(control)) not in {errno.ECONNREFUSED, errno.ENOENT}
