"""What a path in the workspace was at one moment, and a bounded store for the contents of files.

Nothing here lets the agent decide how much is read or kept, and nothing is raised for what it did: the image says why
it is incomplete.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jupyter_agentwatch.errors import WorkspaceError
from jupyter_agentwatch.sandbox.beneath import NotKeptError, WorkspaceTree, lstat, open_regular, why

__all__ = ["ABSENT", "Blob", "BlobStore", "Image", "bytes_text", "file_chunks", "look", "look_at"]

_CHUNK = 1 << 20
_PACKED = 128 * 1024  # up to here a write into one shared file costs an eighth of creating a file
_SETTLED_NS = 100_000_000  # within one tick of its clock a file system may stamp two changes alike
_ATTRIBUTES = ("user.", "system.posix_acl_")
_MOST_ATTRIBUTES = 16  # of one file; file systems bound the size of each
_TORN = "it changed while it was read"
_FICLONE = 0x40049409


@dataclass(frozen=True, slots=True)
class Blob:
    """A content in a `BlobStore`: `size` bytes at `offset` of the shared file, or of an own file called `name`."""

    size: int
    offset: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """What one path was at one moment.

    Attributes:
        kind: "special" is a FIFO, socket or device; of "unknown" only the reason in `lost` is known.
        mode: Permission bits, with setuid, setgid and sticky.
        owner: User and group id.
        ident: Device, inode, size in bytes, mtime and ctime in ns.
        names: Hard links to the inode.
        target: Where a symbolic link points to.
        blob: The content of a file, where it was kept.
        lost: Why the content is not kept. A file with neither is one that was only looked at.
        settled: The last change lay far enough back for a later one to show in `ident`.
        attributes: Extended attributes that a user may set, access control lists among them, where they were kept.
    """

    kind: Literal["absent", "file", "directory", "symlink", "special", "unknown"]
    mode: int = 0
    owner: tuple[int, int] = (0, 0)
    ident: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    names: int = 1
    target: bytes = b""
    blob: Blob | None = None
    lost: str = ""
    settled: bool = True
    attributes: tuple[tuple[str, bytes], ...] = ()

    @property
    def size(self) -> int:
        """Size of a file in bytes."""
        return self.ident[2]

    @property
    def changed_ns(self) -> int:
        """When the content was modified last (mtime), ns of Unix time."""
        return self.ident[3]


ABSENT = Image("absent")
"""Nothing is there."""


class BlobStore:
    """Contents of files, kept in a folder of ours.

    Args:
        folder: Is created with mode 0700, or exists so and is empty.
        file_bytes: A larger file is not kept.
        total_bytes: Bytes kept in all.

    Raises:
        WorkspaceError: The folder is not ours alone, or not empty.
    """

    def __init__(self, folder: Path, *, file_bytes: int, total_bytes: int) -> None:
        self._folder, self._file_bytes, self._total = folder, file_bytes, total_bytes
        folder.mkdir(mode=0o700, exist_ok=True)
        info = folder.lstat()
        ours = stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() and not stat.S_IMODE(info.st_mode) & 0o077
        if not ours or any(folder.iterdir()):
            msg = f"{folder} must be an empty folder of yours with mode 0700; remove it or name another one"
            raise WorkspaceError(msg)
        self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._names = {"pack"}
        self._pack = self._create("pack")
        self._end = self._used = self._count = 0
        self._reflinks = True

    def keep(self, folder: int, name: bytes, info: os.stat_result) -> Image:
        """Return what `name` in the open directory `folder` is, with the content where it is a file.

        What cannot be kept is in the image's `lost`; nothing is raised for what the agent did.

        Args:
            folder: Descriptor of the directory.
            name: One component.
            info: What lstat said of it.
        """
        if stat.S_ISDIR(info.st_mode):
            return _image(info, "directory", attributes=_attributes(b"/proc/self/fd/%d/%b" % (folder, name)))
        if not stat.S_ISREG(info.st_mode):
            return look_at(folder, name, info)
        try:
            with open_regular(folder, name) as (fd, opened):
                info = opened
                return _image(info, "file", blob=self._put(fd, info), attributes=_attributes(fd))
        except (OSError, NotKeptError) as error:
            return _image(info, "file", lost=why(error))

    def chunks(self, blob: Blob) -> Iterator[bytes]:
        """Yield a content in pieces of 1 MiB."""
        if blob.name:
            with self._opened(blob) as fd:
                yield from file_chunks(fd, 0, blob.size)
        else:
            yield from file_chunks(self._pack, blob.offset, blob.size)

    def write(self, blob: Blob, fd: int) -> None:
        """Write a kept content into an empty file."""
        if blob.name:
            with self._opened(blob) as source:
                self._transfer(source, fd, blob.size)
        else:
            _write_all(fd, os.pread(self._pack, blob.size, blob.offset), 0)

    def drop(self, blob: Blob) -> None:
        """Forget a content. Only one with an own file gives its bytes back: the shared file refills no holes."""
        if blob.name:
            os.unlink(blob.name, dir_fd=self._fd)
            self._names.discard(blob.name)
            self._used -= blob.size

    def close(self) -> None:
        """Remove the folder with everything that was kept."""
        os.close(self._pack)
        for name in self._names:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._fd)
        os.close(self._fd)
        with suppress(OSError):
            self._folder.rmdir()

    def _put(self, fd: int, info: os.stat_result) -> Blob:
        size = info.st_size
        if size > self._file_bytes:
            msg = f"larger than {bytes_text(self._file_bytes)}"
            raise NotKeptError(msg)
        if self._used + size > self._total:
            msg = f"the {bytes_text(self._total)} that this watch may keep are used up"
            raise NotKeptError(msg)
        blob = self._put_small(fd, size) if size <= _PACKED else self._put_large(fd, size)
        self._used += size
        now = os.fstat(fd)
        if (now.st_size, now.st_mtime_ns, now.st_ctime_ns) != (size, info.st_mtime_ns, info.st_ctime_ns):
            self.drop(blob)
            raise NotKeptError(_TORN)
        return blob

    def _put_small(self, fd: int, size: int) -> Blob:
        content = os.pread(fd, size + 1, 0)
        if len(content) != size:
            raise NotKeptError(_TORN)
        _write_all(self._pack, content, self._end)
        self._end += size
        return Blob(size, self._end - size)

    def _put_large(self, fd: int, size: int) -> Blob:
        self._count += 1
        name = str(self._count)
        out = self._create(name)
        try:
            self._transfer(fd, out, size)
        except BaseException:
            os.unlink(name, dir_fd=self._fd)
            raise
        finally:
            os.close(out)
        self._names.add(name)
        return Blob(size, 0, name)

    def _create(self, name: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=self._fd)

    @contextmanager
    def _opened(self, blob: Blob) -> Iterator[int]:
        fd = os.open(blob.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            yield fd
        finally:
            os.close(fd)

    def _transfer(self, source: int, target: int, size: int) -> None:
        """Fill an empty file: by sharing blocks where the file system can (asked once, then remembered), else copy."""
        if self._reflinks:
            try:
                fcntl.ioctl(target, _FICLONE, source)
            except OSError:
                self._reflinks = False
            else:
                return
        done = 0
        with suppress(OSError):
            while done < size and (count := os.copy_file_range(source, target, size - done, done, done)):
                done += count
        for piece in file_chunks(source, done, size - done):
            _write_all(target, piece, done)
            done += len(piece)


def look(tree: WorkspaceTree, rel: bytes) -> Image:
    """Return what a path relative to the workspace is now, without its content."""
    if not rel:
        return Image("directory")
    try:
        with tree.parent(rel) as (fd, name):
            return look_at(fd, name)
    except OSError as error:
        # Where a component has become a symbolic link, the path that we knew by this name is gone.
        gone = error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
        return ABSENT if gone else Image("unknown", lost=why(error))


def look_at(folder: int, name: bytes, info: os.stat_result | None = None) -> Image:
    """Return what `name` in the open directory `folder` is now, without its content.

    Args:
        folder: Descriptor of the directory.
        name: One component.
        info: What lstat said of it, where that is known.
    """
    try:
        info = info or lstat(folder, name)
        if info is None:
            return ABSENT
        if stat.S_ISLNK(info.st_mode):
            return _image(info, "symlink", target=os.readlink(name, dir_fd=folder))
    except OSError as error:
        return Image("unknown", lost=why(error))
    if stat.S_ISREG(info.st_mode):
        return _image(info, "file")
    return _image(info, "directory" if stat.S_ISDIR(info.st_mode) else "special")


def file_chunks(fd: int, offset: int, size: int) -> Iterator[bytes]:
    """Yield at most `size` bytes of an open file in pieces of 1 MiB; less where the file ends before."""
    end = offset + size
    while offset < end and (piece := os.pread(fd, min(_CHUNK, end - offset), offset)):
        yield piece
        offset += len(piece)


def bytes_text(count: int) -> str:
    """Return a limit as people write it: in MiB or KiB where it is a whole number of them."""
    for shift, unit in ((20, "MiB"), (10, "KiB")):
        if count and count % (1 << shift) == 0:
            return f"{count >> shift} {unit}"
    return f"{count} bytes"


def _image(
    info: os.stat_result,
    kind: Literal["file", "directory", "symlink", "special"],
    *,
    target: bytes = b"",
    blob: Blob | None = None,
    lost: str = "",
    attributes: tuple[tuple[str, bytes], ...] = (),
) -> Image:
    ident = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
    settled = time.time_ns() - info.st_ctime_ns > _SETTLED_NS
    mode, owner = stat.S_IMODE(info.st_mode), (info.st_uid, info.st_gid)
    return Image(kind, mode, owner, ident, info.st_nlink, target, blob, lost, settled, attributes)


def _attributes(file: int | bytes) -> tuple[tuple[str, bytes], ...]:
    with suppress(OSError):  # a file system need not have any
        # A descriptor is not followed anywhere; a name in a folder must not be.
        by_name = {} if isinstance(file, int) else {"follow_symlinks": False}
        names = [name for name in os.listxattr(file, **by_name) if name.startswith(_ATTRIBUTES)]
        return tuple((name, os.getxattr(file, name, **by_name)) for name in names[:_MOST_ATTRIBUTES])
    return ()


def _write_all(fd: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
