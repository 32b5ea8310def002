"""Opens names that a second thread flips between one in TMPDIR and one in the workspace, and prints which it changed.

Arguments: number of files `v<n>` of its folder, each of which is tried once.
"""

# ruff: noqa: T201 -- it answers on standard output

import ctypes
import json
import os
import sys
import threading

libc = ctypes.CDLL(None, use_errno=True)
done = threading.Event()
names = [os.fsencode(os.environ["TMPDIR"]) + b"/", os.fsencode(os.getcwd()) + b"/"]
size = max(map(len, names)) + 16
# Of one length, so that one store of the pointer's target is one name or the other: "/tmp//////v1".
whole = [base + b"/" * (max(map(len, names)) - len(base)) for base in names]
memory = ctypes.create_string_buffer(size)
at = ctypes.addressof(memory)


def flip() -> None:
    while not done.is_set():
        for each in whole:
            ctypes.memmove(at, each, len(each))


for number in range(int(sys.argv[1])):
    with open(f"{os.environ['TMPDIR']}/v{number}", "wb"):
        pass
threading.Thread(target=flip, daemon=True).start()
for number in range(int(sys.argv[1])):
    ctypes.memmove(at + len(whole[0]), b"v%d\0" % number, len(b"v%d\0" % number))
    fd = libc.open(ctypes.c_void_p(at), os.O_WRONLY | os.O_APPEND)
    if fd >= 0:
        os.write(fd, b"changed")
        os.close(fd)
done.set()
print(json.dumps([n for n in range(int(sys.argv[1])) if os.path.getsize(f"v{n}")]))
