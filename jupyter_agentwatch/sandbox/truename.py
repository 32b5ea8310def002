"""What a name inside leads to, for one thread of the sandbox: through links, dots, and the magic links of /proc.

The supervisor is not that thread: its own /proc/self, working directory and descriptors must take no part. Nothing is
opened but as a place (O_PATH), so that no FIFO, device or lease can hold the supervisor up.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final, NamedTuple, Self

from jupyter_agentwatch.sandbox.notify import Gone
from jupyter_agentwatch.sandbox.paths import Root

__all__ = ["TrueName", "TrueNames"]

_MAX_LINKS: Final = 40  # the kernel's own limit of symbolic links in one path
_MAX_STEPS: Final = 1024  # components looked at for one name; 6 ms
_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOWHERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


class TrueName(NamedTuple):
    """What a name leads to.

    Attributes:
        path: Absolute name inside without links and dots; None where there can be nothing, so that a call fails.
        is_fixed: Only a call that changes names can make it lead elsewhere. A magic link follows the caller, its
            working directory or its descriptors, which nobody tells us of.
    """

    path: bytes | None
    is_fixed: bool


class _Nowhere(Exception):  # noqa: N818 -- an answer, not an error
    """The name leads to nothing that a call could change."""


class TrueNames:
    """Resolves names inside. Not thread-safe.

    Args:
        root: The sandbox's root.
    """

    def __init__(self, root: Root) -> None:
        self._root = root

    def resolve(self, path: bytes, tid: int, *, follow: bool) -> TrueName:
        """Return what an absolute name leads to for a thread.

        Args:
            path: The name.
            tid: The thread, as the supervisor numbers it.
            follow: The last component, too, is followed where it is a link.

        Raises:
            Gone: The thread is gone.
            OSError: ELOOP for a name so long that looking it up would hold up everybody else; else as the kernel
                gives it where something on the way may not be searched.
        """
        if _is_plain(path) and self._is_true(path, follow=follow):
            return TrueName(path, is_fixed=True)
        walk = _Walk(self._root, tid)
        try:
            return TrueName(walk.run(path, follow=follow), walk.is_fixed)
        except _Nowhere:
            return TrueName(None, walk.is_fixed)
        except OSError as error:
            if error.errno in _NOWHERE and not walk.is_too_long:
                return TrueName(None, walk.is_fixed)
            raise

    def _is_true(self, path: bytes, *, follow: bool) -> bool:
        """Whether a name without dots has no link in it: one look for what nearly all names are."""
        folder, _, name = path.rpartition(b"/")
        try:
            fd = self._root.open_true(folder or b"/", os.O_DIRECTORY)
        except OSError:
            return False
        try:
            return not follow or not _is_link(fd, name)
        finally:
            os.close(fd)


class _Place:
    """One open folder, that of the name found so far."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self.fd = root.open_true(b"/")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def enter(self, part: bytes) -> None:
        self._swap(os.open(part, _FOLDER, dir_fd=self.fd))

    def reopen(self, parts: list[bytes]) -> None:
        self._swap(self._root.open_true(b"/" + b"/".join(parts), os.O_DIRECTORY))

    def _swap(self, fd: int) -> None:
        os.close(self.fd)
        self.fd = fd


class _Walk:
    """One look-up, component by component."""

    def __init__(self, root: Root, tid: int) -> None:
        self._root, self._tid = root, tid
        self._links = self._steps = 0
        self.is_fixed = True
        self.is_too_long = False

    def run(self, path: bytes, *, follow: bool) -> bytes:
        done: list[bytes] = []
        todo = path.rstrip(b"/").split(b"/")[::-1]
        follow = follow or path.endswith(b"/")
        with _Place(self._root) as place:
            while todo:
                part = todo.pop()
                if part in {b"", b"."}:
                    continue
                self._count()
                if part == b"..":
                    done = done[:-1]
                    place.reopen(done)
                    continue
                target = self._target(place.fd, part, done, last=not todo) if todo or follow else None
                if target is None:
                    done.append(part)
                    if todo:
                        place.enter(part)
                elif _is_magic(done):
                    self.is_fixed = False
                    done = [each for each in target.split(b"/") if each]
                    if todo:
                        place.reopen(done)
                else:
                    if target.startswith(b"/"):
                        done = []
                        place.reopen(done)
                    todo += target.split(b"/")[::-1]
        return b"/" + b"/".join(done)

    def _count(self) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            self.is_too_long = True
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

    def _target(self, folder: int, name: bytes, done: list[bytes], *, last: bool) -> bytes | None:
        """Return where a link leads, or None where it is none; a magic link's is a true name."""
        if done == [b"proc"] and name in {b"self", b"thread-self"}:
            return self._own_folder(name)  # they lead members of the PID namespace only, which the supervisor is not
        try:
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            if last:
                return None
            raise
        if not stat.S_ISLNK(info.st_mode):
            return None
        self._links += 1
        if self._links > _MAX_LINKS:
            raise _Nowhere
        target = os.readlink(name, dir_fd=folder)
        if _is_magic(done) and not target.startswith(b"/"):
            raise _Nowhere  # a pipe, a socket, a namespace
        return target

    def _own_folder(self, name: bytes) -> bytes:
        self.is_fixed = False
        group, thread = _inner_ids(self._tid)
        return group if name == b"self" else b"%b/task/%b" % (group, thread)


def _is_magic(done: list[bytes]) -> bool:
    """Whether links in this folder are magic: all below a process's own folder are. No other procfs can be mounted."""
    return len(done) > 1 and done[0] == b"proc" and done[1].isdigit()


def _inner_ids(tid: int) -> tuple[bytes, bytes]:
    """Return thread group and thread as they are numbered inside."""
    try:
        with open(f"/proc/{tid}/status", "rb", buffering=0) as status:
            text = status.read(4096)
    except OSError as error:
        raise Gone from error
    fields = dict(line.split(b":\t", 1) for line in text.split(b"\n") if b":\t" in line)
    try:
        return fields[b"NStgid"].split()[-1], fields[b"NSpid"].split()[-1]
    except (KeyError, IndexError) as error:
        raise Gone from error


def _is_plain(path: bytes) -> bool:
    return b"//" not in path and not path.endswith(b"/") and (b"/." not in path or not _has_dots(path))


def _has_dots(path: bytes) -> bool:
    return b"/./" in path + b"/" or b"/../" in path + b"/"


def _is_link(folder: int, name: bytes) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False
