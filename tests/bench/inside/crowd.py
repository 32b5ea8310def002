"""Starts N processes that wait, and says "ready" when all are there: `programs N` by exec, `interpreters N` by fork."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

SPAWNERS = 4
"""Programs start faster from several processes, and the crowd is only the scene of what is measured."""


def programs(count: int) -> None:
    """Start programs: `posix_spawn` returns when the exec has succeeded."""

    def spawn() -> None:
        for _ in range(count // SPAWNERS):
            os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})

    fork_and_await(SPAWNERS, spawn)


def interpreters(count: int) -> None:
    """Fork this interpreter."""
    fork_and_await(count, lambda: None)


def fork_and_await(count: int, work: Callable[[], None]) -> None:
    """Fork children that do their work and stay; return when each has told by a pipe that it is done."""
    read, write = os.pipe()
    for _ in range(count):
        if os.fork() == 0:
            work()
            os.write(write, b"!")
            signal.pause()
    there = 0
    while there < count:
        there += len(os.read(read, 4096))


if __name__ == "__main__":
    mode, amount = sys.argv[1:]
    {"programs": programs, "interpreters": interpreters}[mode](int(amount))
    os.write(1, b"ready\n")
    signal.pause()
