"""Uses up what the machine has: memory, disk, files, output, descriptors, what the kernel counts for each user."""

# ruff: noqa: ANN201 -- it tries what must not be done
# mypy: ignore-errors

import contextlib
import errno
import os
import socket
import sys
import time

from told import ends, got, said, way

MIB = 1 << 20


def memory():
    """By pages, until something stops it; 1 GiB at most, the bound is far below."""
    held = [bytearray(os.urandom(1) * (8 * MIB)) for _ in range(128)]
    time.sleep(2)
    got.append(f"{len(held) * 8} MiB")


def memory_file():
    """By files in memory."""
    fds = [os.memfd_create(f"held{index}") for index in range(8)]
    for fd in fds:
        for _ in range(128):
            os.write(fd, bytes(MIB))
    time.sleep(2)
    got.append("1 GiB in files in memory")


def big_file():
    """One file beyond the bound, by every way to make it long."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    fd = os.open("big", os.O_RDWR | os.O_CREAT)
    with contextlib.suppress(OSError):
        while os.write(fd, bytes(MIB)) and os.fstat(fd).st_size <= 40 * MIB:
            pass
    for name, act in (
        ("truncate", lambda: os.ftruncate(fd, 64 * MIB)),
        ("fallocate", lambda: os.posix_fallocate(fd, 0, 64 * MIB)),
        ("hole", lambda: os.pwrite(fd, b"x", 64 * MIB)),
        ("splice", lambda: os.copy_file_range(os.open("/usr/bin/env", os.O_RDONLY), fd, 4096, 0, 64 * MIB)),
    ):
        with contextlib.suppress(OSError):
            act()
        said[name] = str(os.fstat(fd).st_size)
    if os.fstat(fd).st_size > 16 * MIB:
        got.append(f"a file of {os.fstat(fd).st_size} bytes")
    os.unlink("big")


def many_files():
    """Files that are each small: 64 MiB and 2,000 inodes, and no more, for the machine's sake."""
    os.makedirs("many", exist_ok=True)
    made = 0
    try:
        for index in range(2000):
            with open(f"many/{index}", "wb") as file:
                file.write(bytes(32768))
            made += 1
    except OSError as error:
        said["stopped"] = errno.errorcode.get(error.errno or 0, "?")
    if made == 2000:
        got.append("2,000 files of 64 MiB together")


def output():
    """More output than is kept."""
    for _ in range(40):
        sys.stdout.buffer.write(b"x" * MIB)
    sys.stdout.flush()


def descriptors():
    """More open files than allowed."""
    held = []
    with contextlib.suppress(OSError):
        while len(held) < 20_000:
            held += [os.dup(0)]
    for fd in held:
        os.close(fd)
    if len(held) > 4096:
        got.append(f"{len(held)} descriptors")


def in_flight():
    """What the kernel counts for each user: descriptors in flight, notices, pipe pages."""
    held = []
    with contextlib.suppress(OSError):
        for _ in range(600):
            one, other = socket.socketpair()
            held += [one, other]
            for _ in range(3):
                socket.send_fds(one, [b"x"], [other.fileno()] * 100)
    import ctypes

    libc = ctypes.CDLL(None)
    notices = [fd for fd in (libc.inotify_init1(0) for _ in range(2000)) if fd >= 0]
    pipes = []
    with contextlib.suppress(OSError):
        for _ in range(1500):
            pipes += os.pipe()
    from told import asks

    for what, works in asks(quotas=True).items():
        if not works:
            got.append(f"others of the user cannot have {what} any more")
    said["notices"] = str(len(notices))


ACTS = {
    "memory": memory, "memory-file": memory_file, "big-file": big_file, "many-files": many_files, "output": output,
    "descriptors": descriptors, "in-flight": in_flight,
}  # fmt: skip
ACTS[way]()
ends()
