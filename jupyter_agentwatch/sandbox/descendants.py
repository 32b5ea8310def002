"""The processes that stem from one, read from /proc in one pass: who belongs to a sandbox without a PID namespace.

A child that loses its parent goes to the nearest ancestor that asked for orphans, so what a sub-reaper started stays
its descendant whatever it does. A pass sees a moving tree: only one that finds nobody, after forks were closed, counts.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

from jupyter_agentwatch.sandbox.children import listed_offspring

__all__ = ["Descendant", "descendants", "is_descendant", "kill_descendants", "offspring"]


@dataclass(frozen=True, slots=True)
class Descendant:
    """One process, as proc_pid_stat(5) shows it.

    Attributes:
        pid: Process id.
        parent: Its parent.
        state: State letter of its first thread.
        session: Session id.
        threads: Number of threads.
        pages: Resident memory, in pages.
        born: Start time in clock ticks after boot; with the id, it names the process for good.
    """

    pid: int
    parent: int
    state: str
    session: int
    threads: int
    pages: int
    born: int

    @property
    def is_over(self) -> bool:
        """It has ended, and only its parent has not yet asked how."""
        return self.state in "ZX" and self.threads <= 1


def descendants(root: int) -> list[Descendant]:
    """Return every process that stems from `root`, parents before children; `root` itself is not among them."""
    children: dict[int, list[Descendant]] = {}
    for each in _everybody():
        children.setdefault(each.parent, []).append(each)
    found: list[Descendant] = []
    waiting = [root]
    while waiting:
        below = children.pop(waiting.pop(), [])
        found += below
        waiting += [each.pid for each in below]
    return found


def offspring(root: int) -> list[int]:
    """Return the ids of the processes that stem from `root`, by the kernel's lists of children.

    It costs by the number of these processes and not by the machine's, and may miss one that is just being made or
    moved: what has to be complete, such as an end, asks `descendants`.
    """
    found = listed_offspring(root)
    return [each.pid for each in descendants(root)] if found is None else found


def is_descendant(pid: int, root: int) -> bool:
    """Say whether a process, or a thread of it, stems from `root`."""
    for _ in range(4096):
        parent = _look(pid)
        if parent is None or parent.parent <= 1:
            return parent is not None and parent.parent == root
        if parent.parent == root:
            return True
        pid = parent.parent
    return False


def kill_descendants(root: int, spare: frozenset[int] = frozenset()) -> int:
    """Send SIGKILL to every descendant of `root` but `spare`, once; return how many were there to be killed.

    Each is named by a pidfd and looked at again through it, so that an id which has gone to a stranger is left alone.
    """
    count = 0
    for each in descendants(root):
        if each.pid in spare or each.is_over:
            continue
        count += 1
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(each.pid)
            try:
                now = _look(each.pid)
                if now is not None and now.born == each.born:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)
    return count


def _everybody() -> Iterator[Descendant]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            found = _look(int(name))
            if found is not None:
                yield found


def _look(pid: int) -> Descendant | None:
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, 1024)
        finally:
            os.close(fd)
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()  # the name before is the process's own choice
    return Descendant(
        pid=pid,
        parent=int(fields[1]),
        state=fields[0].decode(),
        session=int(fields[3]),
        threads=int(fields[17]),
        pages=int(fields[21]),
        born=int(fields[19]),
    )
