"""Puts the workspace back to kept images, each file with one name in one atomic step, never through a symbolic link.

It does not decide: whether an undo is allowed is settled before, and what is asked for here is done.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

from jupyter_agentwatch.errors import WorkspaceError
from jupyter_agentwatch.events import from_bytes, printable
from jupyter_agentwatch.sandbox.beneath import WorkspaceTree, why
from jupyter_agentwatch.sandbox.preimage import BlobStore, Image

__all__ = ["restore"]

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NODE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def restore(tree: WorkspaceTree, store: BlobStore, plan: Mapping[bytes, tuple[Image, Image]]) -> None:
    """Make each path of a plan again what its first image says.

    Args:
        tree: The workspace.
        store: Holds the contents.
        plan: Path relative to the workspace → (what it shall be, what it is now). Whatever is below a directory that
            goes away is in the plan, too. Of a file without `blob` only mode and times are put back.

    Raises:
        WorkspaceError: The system refused a change. Those before it are done; the same call again does the rest.
    """
    removed = [q for q, (want, now) in plan.items() if now.kind != "absent" and _in_the_way(want, now)]
    made = [q for q, (want, _) in plan.items() if want.kind != "absent"]
    # Children sort after their parents: they go before them and come after them, and a directory gets its mode last,
    # when nothing has to be written into it any more. First comes what the step may have taken away: our way in.
    for rel in sorted(q for q, (_, now) in plan.items() if now.kind == "directory"):
        _do(_open_up, tree, rel, plan[rel][1])
    for rel in sorted(removed, reverse=True):
        _do(_remove, tree, rel, plan[rel][1])
    for rel in sorted(made):
        want, now = plan[rel]
        if want.kind == "symlink":
            _do(_make_link, tree, rel, want)
        elif want.kind == "file" and want.blob is not None:
            is_shared = want.names > 1 < now.names and want.ident[:2] == now.ident[:2]
            _do(partial(_rewrite_file if is_shared else _make_file, store), tree, rel, want)
        elif want.kind == "directory" and now.kind != "directory":
            _do(_make_directory, tree, rel, want)
    for rel in sorted(made, reverse=True):
        want, _ = plan[rel]
        if want.kind == "directory" or (want.kind == "file" and want.blob is None):
            _do(_set_mode_and_times, tree, rel, want)


def _in_the_way(want: Image, now: Image) -> bool:
    return want.kind == "absent" or (want.kind == "directory") != (now.kind == "directory")


def _do(action: Callable[[int, bytes, Image], None], tree: WorkspaceTree, rel: bytes, image: Image) -> None:
    try:
        with tree.parent(rel) as (folder, name):
            action(folder, name, image)
    except OSError as error:
        msg = f"undo stopped at {printable(from_bytes(rel))}: {why(error)}; put that right and undo again for the rest"
        raise WorkspaceError(msg) from error


def _open_up(folder: int, name: bytes, _now: Image) -> None:
    fd = os.open(name, _NODE, dir_fd=folder)
    try:
        info = os.fstat(fd)
        if stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_IRWXU != stat.S_IRWXU:
            with suppress(PermissionError):  # it is another user's
                os.chmod(b"/proc/self/fd/%d" % fd, stat.S_IMODE(info.st_mode) | stat.S_IRWXU)
    finally:
        os.close(fd)


def _remove(folder: int, name: bytes, now: Image) -> None:
    if now.kind == "directory":
        os.rmdir(name, dir_fd=folder)
    else:
        os.unlink(name, dir_fd=folder)


def _make_directory(folder: int, name: bytes, want: Image) -> None:
    os.mkdir(name, 0o700, dir_fd=folder)
    _give(folder, name, want)
    if want.attributes:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            _set_attributes(fd, want)
        finally:
            os.close(fd)


def _make_link(folder: int, name: bytes, want: Image) -> None:
    temporary = _temporary()
    os.symlink(want.target, temporary, dir_fd=folder)
    _give(folder, temporary, want)
    os.utime(temporary, ns=(want.changed_ns, want.changed_ns), dir_fd=folder, follow_symlinks=False)
    _put_in_place(folder, temporary, name)


def _make_file(store: BlobStore, folder: int, name: bytes, want: Image) -> None:
    temporary = _temporary()
    fd = os.open(temporary, _NEW_FILE, 0o600, dir_fd=folder)
    try:
        if want.blob is not None:
            store.write(want.blob, fd)
        with suppress(PermissionError):
            os.fchown(fd, *want.owner)
        _set_attributes(fd, want)
        os.fchmod(fd, _safe_mode(os.fstat(fd), want))
        _set_times(fd, want)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
    finally:
        os.close(fd)
    _put_in_place(folder, temporary, name)


def _rewrite_file(store: BlobStore, folder: int, name: bytes, want: Image) -> None:
    """Put a content back into the very inode, for all its names (hard links): a new file would part them."""
    node = os.open(name, _NODE, dir_fd=folder)
    try:
        path, info = b"/proc/self/fd/%d" % node, os.fstat(node)
        if not stat.S_ISREG(info.st_mode) or (info.st_dev, info.st_ino) != want.ident[:2]:
            raise OSError(errno.ESTALE, "it became another file meanwhile")
        os.chmod(path, stat.S_IMODE(info.st_mode) | stat.S_IWUSR)
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if want.blob is not None:
                store.write(want.blob, fd)
            os.fchmod(fd, _safe_mode(os.fstat(fd), want))
            _set_times(fd, want)
        finally:
            os.close(fd)
    finally:
        os.close(node)


def _put_in_place(folder: int, temporary: bytes, name: bytes) -> None:
    try:
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise


def _set_times(file: int | bytes, want: Image) -> None:
    # A compiler's rule "newer than its source" must come out as before. Who read a file when is not put back.
    os.utime(file, ns=(os.stat(file).st_atime_ns, want.changed_ns))


def _set_attributes(fd: int, want: Image) -> None:
    for name, value in want.attributes:
        with suppress(OSError):  # the file is of more worth than what the file system does not take
            os.setxattr(fd, name, value)


def _set_mode_and_times(folder: int, name: bytes, want: Image) -> None:
    # An O_PATH descriptor opens nothing, and its link under /proc/self/fd can lead to no other inode.
    fd = os.open(name, _NODE, dir_fd=folder)
    try:
        info = os.fstat(fd)
        mode = _safe_mode(info, want)
        if not stat.S_ISLNK(info.st_mode) and stat.S_IMODE(info.st_mode) != mode:
            os.chmod(b"/proc/self/fd/%d" % fd, mode)
        if stat.S_ISREG(info.st_mode) and info.st_mtime_ns != want.changed_ns:
            with suppress(PermissionError):  # it is another user's
                _set_times(b"/proc/self/fd/%d" % fd, want)
    finally:
        os.close(fd)


def _give(folder: int, name: bytes, want: Image) -> None:
    info = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if (info.st_uid, info.st_gid) != want.owner:
        with suppress(PermissionError):
            os.chown(name, *want.owner, dir_fd=folder, follow_symlinks=False)


def _safe_mode(info: os.stat_result, want: Image) -> int:
    # Setuid of one owner must not become setuid of another where we may not give the file back to the first.
    return want.mode if (info.st_uid, info.st_gid) == want.owner else want.mode & ~(stat.S_ISUID | stat.S_ISGID)


def _temporary() -> bytes:
    return b".agentwatch-%s.tmp" % secrets.token_hex(8).encode()
