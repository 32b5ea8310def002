"""Changes in the workspace that no call on record explains: the net below the claims, for diff and undo.

A second thread can change a name after it was put on record. It cannot set a file's change time (ctime), which is what
is looked at here. It only reads, and only when somebody asks.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from jupyter_agentwatch.sandbox.beneath import WorkspaceTree, is_beyond, lstat

__all__ = ["Ledger", "Unclaimed", "Window", "find_unclaimed", "stamp_now"]

_COARSE: Final = 5  # CLOCK_REALTIME_COARSE: what file systems stamp with; the precise clock is up to a tick ahead


@dataclass(slots=True)
class Window:
    """When a step's processes lived, in ns as file systems stamp (`stamp_now`); `until` is None while one may live."""

    since: int
    until: int | None = None

    def holds(self, moment: int) -> bool:
        """Whether a change time lies within."""
        return self.since <= moment and (self.until is None or moment <= self.until)


def stamp_now() -> int:
    """Return the time that a change of a file would be stamped with now, at the least: ns of Unix time."""
    return time.clock_gettime_ns(_COARSE)


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """A path that changed without a claim; `is_other_name` of a file that was changed under a name on record."""

    rel: bytes
    is_other_name: bool = False


@dataclass(frozen=True, slots=True)
class Ledger:
    """What explains a change.

    Attributes:
        claimed: Whether a path is on record.
        folders: Folders of all paths that are.
        inodes: Device and inode of files on record that have several names.
        stamps: Change times, by path, that are our own doing.
    """

    claimed: Callable[[bytes], bool]
    folders: set[bytes]
    inodes: set[tuple[int, int]]
    stamps: Mapping[bytes, int]


def find_unclaimed(tree: WorkspaceTree, window: Window, ledger: Ledger, limit: int) -> tuple[list[Unclaimed], bool]:
    """Return what changed in a window of time by no claim, sorted by path, and whether all could be looked at.

    A folder counts where an entry of it came or went and no entry that is on record, or found here, explains it.

    Args:
        tree: The workspace.
        window: The time.
        ledger: What is on record.
        limit: Most paths that are looked at.
    """
    found: list[Unclaimed] = []
    changed: list[bytes] = []
    explained = set(ledger.folders)
    seen, is_whole = 0, True
    for rel, info in _entries(tree):
        seen += 1
        if seen > limit:
            is_whole = False
            break
        stamp = info.st_ctime_ns
        if not window.holds(stamp) or ledger.stamps.get(rel) == stamp or ledger.claimed(rel):
            continue
        if stat.S_ISDIR(info.st_mode):
            changed.append(rel)
        else:
            found.append(Unclaimed(rel, (info.st_dev, info.st_ino) in ledger.inodes))
            explained.add(rel.rpartition(b"/")[0])
    found += [Unclaimed(rel) for rel in changed if rel not in explained]
    return sorted(found, key=lambda each: each.rel), is_whole


def _entries(tree: WorkspaceTree) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield everything that can be looked at, the workspace itself first; what cannot be read is passed over."""
    todo = [b""]
    while todo:
        rel = todo.pop()
        try:
            fd = tree.open(rel, read=True)
        except OSError:
            continue
        try:
            if not rel:
                yield rel, os.fstat(fd)
            for name in os.listdir(fd):
                raw = os.fsencode(name)
                child = rel + b"/" + raw if rel else raw
                info = None if is_beyond(child) else lstat(fd, raw)
                if info is None:
                    continue
                if stat.S_ISDIR(info.st_mode):
                    todo.append(child)
                yield child, info
        except OSError:
            continue
        finally:
            os.close(fd)
