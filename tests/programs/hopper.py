"""Never stays: each process lives for one fork, in a session of its own. Several of them run at once."""

# ruff: noqa: T201 -- it answers on standard output

import os
import signal

for _ in range(4):
    if os.fork() == 0:
        break
else:
    print("hopping", flush=True)
    while True:
        signal.pause()
while True:
    if os.fork():
        os._exit(0)
    os.setsid()
