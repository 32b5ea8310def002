"""Connects as fast as it can while the address, or the socket behind the descriptor, changes under the call.

Arguments: "address" or "descriptor", JSON object {"host", "allowed", "forbidden", "seconds"}. Prints how many connects
succeeded and how many were refused.

A child process flips one byte pair of the address in a shared page, so that no interpreter lock is in its way.
"""

# ruff: noqa: T201 -- it answers on standard output

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import struct
import sys
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)
way, asked = sys.argv[1], json.loads(sys.argv[2])
page = mmap.mmap(-1, mmap.PAGESIZE)  # shared with the child
at = ctypes.addressof(ctypes.c_char.from_buffer(page))
port = ctypes.c_uint16.from_address(at + 2)
good, bad = socket.htons(asked["allowed"]), socket.htons(asked["forbidden"])
page[:16] = struct.pack("=HH", socket.AF_INET, good) + socket.inet_aton(asked["host"]) + bytes(8)
LINGER = struct.pack("=ii", 1, 0)


def flip_for_ever() -> None:
    source = ctypes.create_string_buffer(struct.pack("=HH", good, bad), 4)
    one, other = ctypes.addressof(source), ctypes.addressof(source) + 2
    copy = ctypes.memmove
    while True:
        copy(at + 2, other, 2)
        copy(at + 2, one, 2)


def swap_for_ever(descriptor: int) -> None:
    while not over.is_set():
        for family in (socket.AF_INET, socket.AF_UNIX, socket.AF_INET):
            with socket.socket(family, socket.SOCK_STREAM) as other:
                os.dup2(other.fileno(), descriptor)


flipper = os.fork()
if flipper == 0:
    flip_for_ever()
over = threading.Event()
fixed = os.open("/dev/null", os.O_RDONLY)
if way == "descriptor":
    threading.Thread(target=swap_for_ever, args=(fixed,), daemon=True).start()
outcomes: dict[str, int] = {}
end = time.monotonic() + asked["seconds"]
while time.monotonic() < end:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
    descriptor = fixed if way == "descriptor" else made.fileno()
    result = libc.connect(descriptor, ctypes.c_void_p(at), 16)
    name = "ok" if result == 0 else errno.errorcode.get(ctypes.get_errno(), "?")
    outcomes[name] = outcomes.get(name, 0) + 1
    made.close()
over.set()
os.kill(flipper, signal.SIGKILL)
os.waitpid(flipper, 0)
print(json.dumps(outcomes))
