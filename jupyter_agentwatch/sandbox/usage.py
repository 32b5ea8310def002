"""What all processes inside use together, read from the kernel's own records; it decides nothing and keeps nothing."""

from __future__ import annotations

import contextlib
import os
import resource
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Most", "Usage", "bytes_in_folders", "bytes_in_memory_files", "measure"]


@dataclass(frozen=True, slots=True)
class Most:
    """The largest amount that one process has, and the session of that process."""

    amount: int = 0
    session: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """What the processes use at one moment.

    Attributes:
        processes: How many live: one that has ended and has only not been waited for does not.
        tasks: Threads, by the session of their process. The dead that nobody has waited for are among them, as they are
            for the kernel's limits.
        resident_bytes: Resident memory; a page that several share counts for each.
        open_files: Open descriptors of the process that has most of them.
        data_bytes: What RLIMIT_DATA bounds, and the stack, of the process that has most of it.
    """

    processes: int
    tasks: Mapping[int, int]
    resident_bytes: int
    open_files: Most = Most()
    data_bytes: Most = Most()


def measure(folder: str, names: Iterable[str]) -> Usage:
    """Look at processes once, one after the other.

    Args:
        folder: The `/proc` that shows them; sessions are numbered as it does.
        names: Their names there.
    """
    processes, pages, tasks, page = 0, 0, Counter[int](), resource.getpagesize()
    files, data = Most(), Most()
    for name in names:
        fields = _stat(f"{folder}/{name}/stat")
        if fields is None:
            continue
        threads = int(fields[17])
        tasks[int(fields[3])] += threads
        is_dead = fields[0] in b"ZX"
        if is_dead and threads <= 1:
            continue
        processes += 1
        # The memory is the process's, but the kernel shows none for a thread that has ended, such as the first one.
        pages += _pages_by_thread(f"{folder}/{name}/task") if is_dead else int(fields[21])
        count, data_bytes = _open_files(f"{folder}/{name}/fd"), _data_pages(f"{folder}/{name}/statm") * page
        if count > files.amount:
            files = Most(count, int(fields[3]))
        if data_bytes > data.amount:
            data = Most(data_bytes, int(fields[3]))
    return Usage(processes, tasks, pages * page, files, data)


def bytes_in_folders(folders: Iterable[str]) -> int:
    """Return the bytes that file systems hold, each counted once: those in memory (tmpfs) are memory in use.

    Args:
        folders: Where they are mounted; one that is not there counts nothing.
    """
    held: dict[int, int] = {}
    for folder in folders:
        with contextlib.suppress(OSError):
            found = os.statvfs(folder)
            held[os.stat(folder).st_dev] = (found.f_blocks - found.f_bfree) * found.f_frsize
    return sum(held.values())


def bytes_in_memory_files(folder: str, names: Iterable[str]) -> int:
    """Return the bytes in files without a name in any folder (memfd) that processes hold open, each counted once.

    One that no process holds, because it lies in a socket's queue, is not found; nor is one of huge pages.

    Args:
        folder: The `/proc` that shows the processes.
        names: Their names there.
    """
    own = os.memfd_create("agentwatch", os.MFD_CLOEXEC)
    try:
        device = os.fstat(own).st_dev
    finally:
        os.close(own)
    held: dict[int, int] = {}
    for name in names:
        with contextlib.suppress(OSError):
            for number in os.listdir(f"{folder}/{name}/fd"):
                path = f"{folder}/{name}/fd/{number}"
                with contextlib.suppress(OSError):
                    # The name first: to ask a file of a network's file system could wait for the network.
                    if os.readlink(path).startswith("/memfd:"):
                        info = os.stat(path)
                        if info.st_dev == device:
                            held[info.st_ino] = info.st_blocks * 512
    return sum(held.values())


def _open_files(folder: str) -> int:
    try:
        return os.stat(folder).st_size or len(os.listdir(folder))  # the kernel counts them from Linux 6.2 on
    except OSError:
        return 0


def _data_pages(path: str) -> int:
    try:
        return int(_read(path, 256).split()[5])
    except (OSError, ValueError, IndexError):
        return 0


def _stat(path: str) -> list[bytes] | None:
    """Return the fields after the name, which is the process's own choice; None where it is gone."""
    try:
        return _read(path, 1024).rpartition(b")")[2].split()
    except OSError:
        return None


def _read(path: str, size: int) -> bytes:
    # A file object would cost three times as much.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, size)
    finally:
        os.close(fd)


def _pages_by_thread(folder: str) -> int:
    with contextlib.suppress(OSError):
        for thread in os.listdir(folder):
            fields = _stat(f"{folder}/{thread}/stat")
            if fields is not None and fields[0] not in b"ZX":
                return int(fields[21])
    return 0
