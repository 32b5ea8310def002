"""Counts who is left of a sandbox, from outside and from the kernel's own records, never from what the sandbox says.

It asks `/proc`, and says whether that is the right one to ask.
"""

from __future__ import annotations

import os

__all__ = ["count_in_namespace", "is_proc_ours", "namespace_of"]


def namespace_of(pid: int) -> int:
    """Return the inode of a process's PID namespace, which names it as long as a member lives.

    Raises:
        OSError: The process is gone.
    """
    return os.stat(f"/proc/{pid}/ns/pid").st_ino


def count_in_namespace(namespace: int) -> int:
    """Count the processes on this machine that are members of a PID namespace (0 when it has ended)."""
    count = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                count += os.stat(f"/proc/{name}/ns/pid").st_ino == namespace
            except OSError:
                continue  # ended meanwhile, or another user's: not one of ours
    return count


def is_proc_ours() -> bool:
    """Say whether `/proc` shows our own PID namespace: in another's, our numbers are other processes', or nobody's."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False
