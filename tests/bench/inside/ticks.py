"""Busy processes that keep writing the time: `python ticks.py COUNT`; prints "ready" when all do.

Each has a file of its own, `tick-N`, with the monotonic clock in nanoseconds, 20 digits, written over and over.
"""

import os
import sys
import time


def tick(number: int, ready: int) -> None:
    """Write the time until killed."""
    handle = os.open(f"tick-{number}", os.O_RDWR | os.O_CREAT, 0o600)
    told = False
    while True:
        os.pwrite(handle, b"%020d" % time.monotonic_ns(), 0)
        if not told:
            told = True
            os.write(ready, b".")


if __name__ == "__main__":
    count = int(sys.argv[1])
    reading, writing = os.pipe()
    for each in range(count):
        if os.fork() == 0:
            tick(each, writing)
    while count:
        count -= len(os.read(reading, count))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    os.wait()
