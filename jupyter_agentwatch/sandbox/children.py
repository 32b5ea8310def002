"""Who stems from a process by the kernel's own lists of children: the cost goes by these, not by the machine's crowd.

Init loads it before its sandbox stands, so it imports nothing but `os`.
"""

from __future__ import annotations

import os

__all__ = ["listed_offspring"]


def listed_offspring(root: int) -> list[int] | None:
    """Return the ids of the processes that stem from `root`, or None where the kernel keeps no such lists.

    One that is just being made or moved to another parent may be missing.

    Args:
        root: Process id.
    """
    found: list[int] = []
    waiting = [root]
    while waiting:
        parent = waiting.pop()
        try:
            threads = os.listdir(f"/proc/{parent}/task")
        except OSError:
            continue
        for thread in threads:
            children = _children(f"/proc/{parent}/task/{thread}/children")
            if children is None:
                return None
            found += children
            waiting += children
    return found


def _children(file: str) -> list[int] | None:
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        # Gone meanwhile, or a kernel without CONFIG_PROC_CHILDREN.
        return [] if os.path.exists(f"/proc/self/task/{os.getpid()}/children") else None
    except OSError:
        return []
    try:
        text = b""
        while piece := os.read(fd, 1 << 16):
            text += piece
    except OSError:
        return []
    finally:
        os.close(fd)
    return [int(word) for word in text.split()]
