"""Starts daemons that leave their parent and their session behind, says when all of them stand, and ends or stays.

Arguments: how many, "fork" (they stay copies of this interpreter) or "exec" (each becomes a sleep), "leave" or "stay",
and a text that marks their command lines.
"""

# ruff: noqa: T201 -- it answers on standard output

import os
import signal
import sys

count, way, after, marker = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
reader, writer = os.pipe()
for _ in range(count):
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.write(writer, b".")
        os.close(writer)
        if way == "exec":
            os.execv("/usr/bin/sleep", [marker, "1000"])  # noqa: S606 -- no shell is wanted
        while True:
            signal.pause()
    os.waitpid(child, 0)
os.close(writer)
standing = 0
while standing < count:
    standing += len(os.read(reader, 4096))
print("standing", flush=True)
while after == "stay":
    signal.pause()
