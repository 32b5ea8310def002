"""Resolves names as a process inside the sandbox would, from outside, without following it out of its root."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final

from jupyter_agentwatch.sandbox.notify import Gone
from jupyter_agentwatch.sandbox.syscalls import X86_64

__all__ = ["AT_FDCWD", "Root", "base_folder"]

AT_FDCWD: Final = -100
"""What a call passes for a folder to start from the working directory."""

_OPENAT2: Final = X86_64.numbers["openat2"]  # 437 on every machine of our tables
_NO_MAGICLINKS, _NO_SYMLINKS, _IN_ROOT = 0x02, 0x04, 0x10
_HOW = struct.Struct("=QQQ")

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def base_folder(tid: int, dirfd: int) -> str:
    """Return the folder that a relative name of the thread starts from, as it is named inside.

    Raises:
        Gone: The thread is gone, or the descriptor is not open.
    """
    link = f"/proc/{tid}/cwd" if dirfd == AT_FDCWD else f"/proc/{tid}/fd/{dirfd}"
    try:
        return os.readlink(link)
    except OSError as error:
        raise Gone from error


class Root:
    """The sandbox's root folder, held open: names resolve beneath it even where they hold absolute links."""

    def __init__(self, init_pid: int) -> None:
        self._fd = os.open(f"/proc/{init_pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def open_path(self, path: bytes | str, flags: int = 0) -> int:
        """Return an O_PATH descriptor of an absolute name inside (the last component is followed).

        Raises:
            OSError: As the kernel gives it (ENOENT, ELOOP, EACCES).
        """
        return self._open(os.fsencode(path), flags, _NO_MAGICLINKS | _IN_ROOT)

    def open_true(self, path: bytes, flags: int = 0) -> int:
        """Return an O_PATH descriptor of an absolute name inside that goes through no link at all.

        Raises:
            OSError: ELOOP where a component is a link; else as the kernel gives it.
        """
        return self._open(path, flags, _NO_MAGICLINKS | _NO_SYMLINKS | _IN_ROOT)

    def _open(self, name: bytes, flags: int, resolve: int) -> int:
        how = _HOW.pack(os.O_PATH | os.O_CLOEXEC | flags, 0, resolve)
        while True:
            fd = _syscall(_OPENAT2, self._fd, ctypes.c_char_p(name), how, _HOW.size)
            if fd >= 0:
                return int(fd)
            number = ctypes.get_errno()
            if number != errno.EAGAIN:  # a rename beneath the root while it looked: try again
                raise OSError(number, os.strerror(number), name)

    def identity(self, path: bytes | str) -> tuple[int, int]:
        """Return device and inode of an absolute name inside.

        Raises:
            OSError: As `open_path`.
        """
        fd = self.open_path(path)
        try:
            info = os.fstat(fd)
        finally:
            os.close(fd)
        return info.st_dev, info.st_ino

    def first_bytes(self, path: bytes | str, size: int) -> bytes:
        """Return the beginning of a regular file inside, or b"" where there is none to read."""
        try:
            held = self.open_path(path)
        except OSError:
            return b""
        try:
            fd = os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return b""
        finally:
            os.close(held)
        try:
            return os.read(fd, size)
        except OSError:
            return b""
        finally:
            os.close(fd)

    def close(self) -> None:
        """Release the root."""
        os.close(self._fd)
