"""Opens files for writing: `same N` and `new N` print nanoseconds for N opens, `storm SECONDS` prints their number."""

from __future__ import annotations

import os
import sys
import time

FLAGS = os.O_WRONLY | os.O_CREAT


def same(count: int) -> int:
    """Time opens of one file that exists."""
    path = "opened-again"
    os.close(os.open(path, FLAGS))
    begun = time.perf_counter_ns()
    for _ in range(count):
        os.close(os.open(path, FLAGS))
    return time.perf_counter_ns() - begun


def new(count: int) -> int:
    """Time opens that each make a file."""
    os.makedirs("opened-new", exist_ok=True)
    names = [f"opened-new/{number}" for number in range(count)]
    begun = time.perf_counter_ns()
    for name in names:
        os.close(os.open(name, FLAGS))
    took = time.perf_counter_ns() - begun
    for name in names:
        os.unlink(name)
    return took


def storm(seconds: float) -> int:
    """Open one file as fast as it goes; return how often."""
    path, count, end = f"storm-{os.getpid()}", 0, time.monotonic() + seconds
    while time.monotonic() < end:
        os.close(os.open(path, FLAGS))
        count += 1
    return count


if __name__ == "__main__":
    mode, amount = sys.argv[1:]
    answer = storm(float(amount)) if mode == "storm" else {"same": same, "new": new}[mode](int(amount))
    sys.stdout.write(f"{answer}\n")
