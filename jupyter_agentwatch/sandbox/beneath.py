"""The one way into the workspace: every access stays beneath it, whatever the agent swaps meanwhile.

The workspace is writable by the agent and the reader may be root: nothing here follows a symbolic link blindly, or
opens anything but a regular file or a directory.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jupyter_agentwatch.errors import WorkspaceError

__all__ = [
    "MAX_DEPTH",
    "MAX_PATH",
    "TOO_DEEP",
    "NotKeptError",
    "WorkspaceTree",
    "is_beyond",
    "lstat",
    "open_regular",
    "why",
]

MAX_PATH = 4000
"""Longest path below the workspace, in bytes, that is looked at: PATH_MAX less room for a temporary name."""

MAX_DEPTH = 128
"""Most components of such a path: every look-up of what is known above a path costs a step for each."""

_OPENAT2 = 437  # the same number on x86_64 and aarch64
_RESOLVE = 0x02 | 0x04 | 0x08  # NO_MAGICLINKS | NO_SYMLINKS | BENEATH
_DIR_PATH = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_DIR_READ = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NODE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_HOWS = {flags: (ctypes.c_uint64 * 3)(flags, 0, _RESOLVE) for flags in (_DIR_PATH, _DIR_READ)}

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
_syscall.restype = ctypes.c_long


TOO_DEEP = f"paths of more than {MAX_DEPTH} levels or {MAX_PATH} bytes"
"""What to tell a person about them."""


class NotKeptError(Exception):
    """A content or a tree cannot be kept; the text is the reason, to be shown to a person."""


class WorkspaceTree:
    """The workspace as seen through one descriptor; every access stays beneath it.

    Args:
        workspace: Absolute path of a directory, not a symbolic link.

    Raises:
        WorkspaceError: It is not that.
    """

    def __init__(self, workspace: Path) -> None:
        raw = os.fsencode(workspace)
        if not raw.startswith(b"/"):
            msg = f"workspace {workspace} must be an absolute path"
            raise WorkspaceError(msg)
        try:
            self._fd = os.open(raw, _DIR_PATH | os.O_NOFOLLOW)
        except OSError as error:
            msg = f"workspace {workspace} cannot be opened as a directory: {error.strerror}"
            raise WorkspaceError(msg) from error
        # The agent may name the workspace by the path that it was given or by the one that getcwd tells it.
        names = (os.path.normpath(raw), os.readlink(b"/proc/self/fd/%d" % self._fd))
        self._prefixes = tuple(name.rstrip(b"/") + b"/" for name in dict.fromkeys(names))
        probe = _syscall(_OPENAT2, self._fd, b".", _HOWS[_DIR_PATH], 24)
        self._has_openat2 = probe >= 0
        if self._has_openat2:
            os.close(probe)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)

    def inside(self, path: bytes) -> bytes | None:
        """Return an absolute path as one relative to the workspace (not resolved), None if its text does not say so."""
        for prefix in self._prefixes:
            if path.startswith(prefix):
                return path[len(prefix) :].rstrip(b"/")
            if path == prefix[:-1]:
                return b""
        return None

    def open(self, rel: bytes, *, read: bool = False) -> int:
        """Open the directory `rel` (empty: the workspace itself) through no symbolic link at all.

        Args:
            rel: Path relative to the workspace, without "..".
            read: To list it; else only as the base of `*at` calls.

        Raises:
            OSError: ELOOP or ENOTDIR where a component is a symbolic link.
        """
        flags = _DIR_READ if read else _DIR_PATH
        if b"/" not in rel:  # one component needs no openat2, and an ordinary call costs half as much
            return os.open(rel or b".", flags | os.O_NOFOLLOW, dir_fd=self._fd) if rel or read else os.dup(self._fd)
        if not self._has_openat2:
            return self._open_stepwise(rel, flags)
        fd: int = _syscall(_OPENAT2, self._fd, rel or b".", _HOWS[flags], 24)
        if fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return fd

    @contextmanager
    def parent(self, rel: bytes) -> Iterator[tuple[int, bytes]]:
        """Open the directory that holds `rel`; gives its descriptor and the last component."""
        folder, _, name = rel.rpartition(b"/")
        fd = self.open(folder)
        try:
            yield fd, name
        finally:
            os.close(fd)

    def info(self, rel: bytes) -> os.stat_result | None:
        """Return what is known of a path, following nothing; None where it is not there or cannot be looked at."""
        try:
            if not rel:
                return os.fstat(self._fd)
            with self.parent(rel) as (fd, name):
                return lstat(fd, name)
        except OSError:
            return None

    def walk(self, top: bytes, limit: int) -> Iterator[tuple[bytes, int, os.stat_result]]:
        """Yield everything below a directory, parents first: path, descriptor of its directory, what lstat says.

        Raises:
            NotKeptError: There are more than `limit` paths, one is too long, or a directory cannot be read.
        """
        todo, seen = [top], 0
        while todo:
            rel = todo.pop()
            try:
                fd = self.open(rel, read=True)
            except OSError as error:
                raise NotKeptError(why(error)) from error
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        name = os.fsencode(entry.name)
                        child, seen = (rel + b"/" + name if rel else name), seen + 1
                        if seen > limit:
                            msg = f"more than {limit} paths"
                            raise NotKeptError(msg)
                        if is_beyond(child):
                            raise NotKeptError(TOO_DEEP)
                        info = lstat(fd, name)
                        if info is None:
                            continue
                        if stat.S_ISDIR(info.st_mode):
                            todo.append(child)
                        yield child, fd, info
            except OSError as error:
                raise NotKeptError(why(error)) from error
            finally:
                os.close(fd)

    def _open_stepwise(self, rel: bytes, flags: int) -> int:
        here = os.dup(self._fd)
        try:
            for part in rel.split(b"/") if rel else ():
                here = _swap(here, os.open(part, _DIR_PATH | os.O_NOFOLLOW, dir_fd=here))
            return os.open(b".", flags, dir_fd=here)
        finally:
            os.close(here)


@contextmanager
def open_regular(folder: int, name: bytes) -> Iterator[tuple[int, os.stat_result]]:
    """Open a regular file for reading, and never anything else, whatever is swapped in meanwhile.

    Raises:
        NotKeptError: It is no regular file.
        OSError: It cannot be opened; EAGAIN where a lease that the agent took would have made us wait.
    """
    node = os.open(name, _NODE, dir_fd=folder)
    try:
        info = os.fstat(node)
        if not stat.S_ISREG(info.st_mode):
            msg = "it became something else while it was read"
            raise NotKeptError(msg)
        fd = os.open(b"/proc/self/fd/%d" % node, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    finally:
        os.close(node)
    try:
        yield fd, info
    finally:
        os.close(fd)


def is_beyond(rel: bytes) -> bool:
    """Whether a path relative to the workspace is longer or deeper than is looked at."""
    return len(rel) > MAX_PATH or rel.count(b"/") >= MAX_DEPTH


def lstat(folder: int, name: bytes) -> os.stat_result | None:
    """Return what is known of `name` in the open directory `folder` without following it; None if there is none."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def why(error: Exception) -> str:
    """Return what to tell a person about a failed access."""
    return (error.strerror or "input/output error") if isinstance(error, OSError) else str(error)


def _swap(old: int, new: int) -> int:
    os.close(old)
    return new
