"""Types into a terminal of its own by TIOCSTI, which could type into a user's. Prints what it got."""

# ruff: noqa: T201 -- it answers on standard output

import errno
import fcntl
import json
import os

TIOCSTI, TIOCLINUX = 0x5412, 0x541C


def attempt(descriptor: int, request: int) -> str:
    try:
        fcntl.ioctl(descriptor, request, b"x")
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?")
    return "ok"


_, slave = os.openpty()
found = [attempt(slave, TIOCSTI), attempt(slave, TIOCSTI | 1 << 31), attempt(slave, TIOCLINUX)]
print(json.dumps(found))
