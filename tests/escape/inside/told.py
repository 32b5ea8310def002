"""What each program of the corpus says of itself: what it got that it must not get, or why it could not be tried.

What was read from outside is printed as it is, so that the runner, which alone knows the secret, can look for it.
"""

# ruff: noqa: T201, ANN001, ANN002, ANN003, ANN201 -- it answers on standard output
# mypy: ignore-errors

import ctypes
import errno
import json
import os
import sys

way = sys.argv[1]
world = json.loads(sys.argv[2])
got: list[str] = []
said: dict[str, str] = {}
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def tries(what, act, *arguments):
    """Do something that must fail; return what came of it, or None."""
    try:
        result = act(*arguments)
    except (OSError, ValueError, OverflowError, AttributeError) as error:
        said[what] = errno.errorcode.get(getattr(error, "errno", None) or 0, type(error).__name__)
        return None
    got.append(what)
    return result


def call(number, *arguments):
    """Make a raw system call, by number or name."""
    if isinstance(number, str):
        number = world["numbers"][number]
    texts = [ctypes.c_char_p(each) if isinstance(each, bytes) else each for each in arguments]
    done = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(x) if isinstance(x, int) else x for x in texts])
    if done < 0:
        raise OSError(ctypes.get_errno(), "call")
    return done


def shows(path, size=1 << 16):
    """Read a file, and print what is in it."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        sys.stdout.buffer.write(os.read(fd, size) + b"\n")
    finally:
        os.close(fd)


def writes(path, flags=os.O_WRONLY | os.O_APPEND):
    """Open a file for writing and write to it."""
    fd = os.open(path, flags, 0o600)
    try:
        os.write(fd, b"x")
    finally:
        os.close(fd)


def asks(**question):
    """Let the runner, which is outside, do something; return its answer."""
    print("ASK " + json.dumps(question), flush=True)
    return json.loads(sys.stdin.readline() or "null")


def ends(na="", **more):
    """Say what came of it."""
    sys.stdout.flush()
    print("\nEND " + json.dumps({"got": got, "na": na, "said": said, **more}), flush=True)
