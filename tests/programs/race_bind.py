"""Binds a socket to a name again and again while other processes rename something else over that name.

Arguments: what is renamed, as "link" (a symbolic link to the target) or "socket" (the target itself, moved there and
back), the target, and seconds. Prints how often the bind succeeded.
"""

# ruff: noqa: T201 -- it answers on standard output

import contextlib
import json
import os
import signal
import socket
import sys
import time

what, target, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
NAME = "bound.sock"


def replace_for_ever(own: str) -> None:
    while True:
        with contextlib.suppress(OSError):
            if what == "link":
                os.symlink(target, own)
                os.rename(own, NAME)
            else:
                os.rename(target, NAME)
                os.rename(NAME, target)


others = []
for index in range(1 if what == "socket" else 3):
    child = os.fork()
    if child == 0:
        replace_for_ever(f"link-{index}")
    others.append(child)
end, bound = time.monotonic() + seconds, 0
while time.monotonic() < end:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        if what == "link":
            os.unlink(NAME)
        made.bind(NAME)
        bound += 1
for child in others:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print(json.dumps(bound))
