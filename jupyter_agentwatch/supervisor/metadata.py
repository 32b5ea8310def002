"""Modes, times and owners of files, where Landlock holds the files: it does not restrict these, the supervisor does.

Each name is resolved once to an open place; what was judged is what is changed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Callable, Sequence
from typing import Final

from jupyter_agentwatch.sandbox.notify import Notification, TargetMemory
from jupyter_agentwatch.sandbox.paths import Root

__all__ = ["Metadata", "read_times"]

_AT_EMPTY_PATH: Final = 0x1000
_SPECS = struct.Struct("=4q")
_SECONDS = struct.Struct("=2q")

_libc = ctypes.CDLL(None, use_errno=True)


def read_times(memory: TargetMemory, n: Notification, address: int, scale: int) -> bytes:
    """Return the two `timespec`s that a call names.

    Args:
        memory: Reads the caller's memory.
        n: The call.
        address: Where they are.
        scale: Nanoseconds in a unit of the smaller number; 0 where there are only whole seconds.

    Raises:
        Gone: The process is gone.
        OSError: EFAULT, or EINVAL as the kernel gives it.
    """
    if scale == 0:
        accessed, changed = _SECONDS.unpack(memory.read(n.tid, address, _SECONDS.size))
        return _SPECS.pack(accessed, 0, changed, 0)
    data = memory.read(n.tid, address, _SPECS.size)
    if scale == 1:
        return data
    accessed, first, changed, second = _SPECS.unpack(data)
    if not (0 <= first < 1_000_000 and 0 <= second < 1_000_000):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return _SPECS.pack(accessed, first * scale, changed, second * scale)


class Metadata:
    """Performs what changes modes and times. Used by the notification thread.

    Args:
        root: What names are resolved in.
        writable: Real names of the folders and files where commands may write.
    """

    def __init__(self, root: Root, writable: Sequence[str]) -> None:
        self._root = root
        self._writable = tuple(os.fsencode(name).rstrip(b"/") for name in writable)

    def set_mode(self, true: bytes, mode: int) -> int:
        """Set the mode of what a true name (no links, no dots) stands for; return the errno.

        A setgid file outlives the watch: others on the machine could run it with the user's group.
        """

        def change(held: int) -> None:
            if mode & stat.S_ISGID and not stat.S_ISDIR(os.fstat(held).st_mode):
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            os.chmod(f"/proc/self/fd/{held}", mode)

        return self._on(true, change)

    def set_times(self, true: bytes, specs: bytes | None) -> int:
        """Set access and modification time of what a true name stands for, both to now for None; return the errno."""
        return self._on(true, lambda held: _set_times(held, specs))

    def keep_owner(self, true: bytes, owner: int, group: int) -> int:
        """Say whether a true name has this owner and group already (-1: any); return 0, or the errno of a refusal."""

        def compare(held: int) -> None:
            info = os.fstat(held)
            if owner not in {-1, info.st_uid} or group not in {-1, info.st_gid}:
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        return self._on(true, compare)

    def _on(self, true: bytes, change: Callable[[int], None]) -> int:
        if not any(true == place or true.startswith(place + b"/") for place in self._writable):
            return errno.EACCES
        try:
            held = self._root.open_true(true, os.O_NOFOLLOW)  # a link has times of its own
        except OSError as refusal:
            return refusal.errno or errno.EACCES
        try:
            change(held)
        except OSError as refusal:
            return refusal.errno or errno.EPERM
        finally:
            os.close(held)
        return 0


def _set_times(held: int, specs: bytes | None) -> None:
    if _libc.utimensat(held, b"", specs, _AT_EMPTY_PATH) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
