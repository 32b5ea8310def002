"""Modes and times of files, where Landlock holds the files: it does not restrict these, so the supervisor sets them.

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

from jupyter_agentwatch.sandbox.notify import Listener, Notification, TargetMemory, as_int
from jupyter_agentwatch.sandbox.paths import AT_FDCWD, Root, base_folder
from jupyter_agentwatch.sandbox.programs import claimed_path
from jupyter_agentwatch.sandbox.truename import TrueNames

__all__ = ["Metadata"]

_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_EMPTY_PATH: Final = 0x1000
_SPECS = struct.Struct("=4q")
_SECONDS = struct.Struct("=2q")

_libc = ctypes.CDLL(None, use_errno=True)


class Metadata:
    """Performs what changes modes and times. Used by the notification thread.

    Args:
        listener: Answers calls.
        root: What names are resolved in.
        writable: Real names of the folders and files where commands may write.
    """

    def __init__(self, listener: Listener, root: Root, writable: Sequence[str]) -> None:
        self._listener = listener
        self._root = root
        self._names = TrueNames(root)
        self._memory = TargetMemory()
        self._writable = tuple(os.fsencode(name).rstrip(b"/") for name in writable)

    def handlers(self) -> dict[str, Callable[[Notification], None]]:
        """Return what handles each call that sets times, by the call's name."""
        return {
            "utimensat": lambda n: self._times(n, 0, 1, 2, flags=as_int(n.args[3])),
            "futimesat": lambda n: self._times(n, 0, 1, 2, scale=1000),
            "utimes": lambda n: self._times(n, None, 0, 1, scale=1000),
            "utime": lambda n: self._times(n, None, 0, 1, scale=0),
        }

    def set_mode(self, true: bytes, mode: int) -> int:
        """Set the mode of what a true name (no links, no dots) stands for; return the errno.

        A setgid file outlives the watch: others on the machine could run it with the user's group.
        """

        def change(held: int) -> None:
            if mode & stat.S_ISGID and not stat.S_ISDIR(os.fstat(held).st_mode):
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            os.chmod(f"/proc/self/fd/{held}", mode)

        return self._on(true, change)

    def _times(
        self, n: Notification, folder: int | None, path: int, times: int, *, flags: int = 0, scale: int = 1
    ) -> None:
        dirfd = AT_FDCWD if folder is None else as_int(n.args[folder])
        try:
            # Without a name it is the descriptor itself that is meant.
            named = n.args[path] != 0 and not (
                flags & _AT_EMPTY_PATH and not self._memory.string(n.tid, n.args[path], 2)
            )
            claimed = claimed_path(self._memory, n.tid, dirfd, n.args[path]) if named else base_folder(n.tid, dirfd)
            specs = self._specs(n, n.args[times], scale) if n.args[times] else None
        except OSError as refusal:
            self._listener.finish(n.id, refusal.errno or errno.EFAULT)
            return
        if not self._listener.is_valid(n.id):
            return
        follow = named and not flags & _AT_SYMLINK_NOFOLLOW
        try:
            true, _ = self._names.resolve(os.fsencode(claimed), n.tid, follow=follow)
        except OSError as refusal:
            self._listener.finish(n.id, refusal.errno or errno.EACCES)
            return
        error = errno.ENOENT if true is None else self._on(true, lambda held: _set_times(held, specs))
        self._listener.finish(n.id, error)

    def _specs(self, n: Notification, address: int, scale: int) -> bytes:
        """Return two `timespec`s: of nanoseconds (1), microseconds (1000), or of whole seconds (0)."""
        if scale == 0:
            accessed, changed = _SECONDS.unpack(self._memory.read(n.tid, address, _SECONDS.size))
            return _SPECS.pack(accessed, 0, changed, 0)
        data = self._memory.read(n.tid, address, _SPECS.size)
        if scale == 1:
            return data
        accessed, first, changed, second = _SPECS.unpack(data)
        if not (0 <= first < 1_000_000 and 0 <= second < 1_000_000):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return _SPECS.pack(accessed, first * scale, changed, second * scale)

    def _on(self, true: bytes, change: Callable[[int], None]) -> int:
        if not any(true == place or true.startswith(place + b"/") for place in self._writable):
            return errno.EACCES
        try:
            held = self._root.open_true(true)
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
