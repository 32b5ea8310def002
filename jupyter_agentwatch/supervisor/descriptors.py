"""How many open files the supervisor may have, and the kernel's table of them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
from typing import Final

__all__ = ["make_room", "max_flows"]

_MOST: Final = 1 << 16
_MOST_FLOWS: Final = 4096
_OTHERS: Final = 1024
"""What everything else but flows may have open."""


def make_room() -> None:
    """Raise the bound on open files, and have the kernel's table of them as large as it may get.

    To be called before there are threads: growing the table of a process that has some waits until every processor has
    switched (`expand_fdtable` in the kernel's fs/file.c), 10 to 20 ms for the 64th, the 128th, the 256th descriptor,
    and a caller whose connect needs it waits as well.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = max(soft, min(hard, _MOST))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with contextlib.suppress(OSError):  # connects would be slower, no more
        os.close(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, min(soft - 1, 2 * _MOST_FLOWS + _OTHERS)))


def max_flows() -> int:
    """Return how many flows there are descriptors for: two each, and a margin for everything else."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(_MOST_FLOWS, (soft - _OTHERS) // 2))
