"""Starts N processes that wait, and says "ready" when all are there: `programs N` by exec, `interpreters N` by fork."""

from __future__ import annotations

import os
import signal
import sys


def programs(count: int) -> None:
    """Start programs: `posix_spawn` returns when the exec has succeeded."""
    for _ in range(count):
        os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})


def interpreters(count: int) -> None:
    """Fork this interpreter; each child tells by a pipe that it is there."""
    read, write = os.pipe()
    for _ in range(count):
        if os.fork() == 0:
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
