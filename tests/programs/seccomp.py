"""Installs an ordinary filter of its own (getppid gives EPERM), then tries one with a listener. Prints what it got.

Arguments: JSON object of call numbers, and the machine's audit architecture.
"""

# ruff: noqa: T201 -- it answers on standard output

import ctypes
import errno
import json
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
numbers = json.loads(sys.argv[1])
LOAD, EQUAL, GIVE, ALLOW, REFUSE = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000 | errno.EPERM


def install(flags: int) -> str:
    program = [(LOAD, 0, 0, 0), (EQUAL, 0, 1, numbers["getppid"]), (GIVE, 0, 0, REFUSE), (GIVE, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    filt = struct.pack("@HP", len(program), ctypes.addressof(code))
    done = libc.syscall(ctypes.c_long(numbers["seccomp"]), ctypes.c_long(1), ctypes.c_long(flags), filt)
    return "ok" if done >= 0 else errno.errorcode.get(ctypes.get_errno(), "?")


def parent() -> str:
    done = libc.syscall(ctypes.c_long(numbers["getppid"]))
    return "ok" if done >= 0 else errno.errorcode.get(ctypes.get_errno(), "?")


with open("/proc/self/status") as status:
    fields = dict(line.split(":\t", 1) for line in status if ":\t" in line)
found = {"no_new_privs": fields["NoNewPrivs"].strip(), "capabilities": fields["CapEff"].strip()}
found |= {"bounding": fields["CapBnd"].strip(), "before": parent(), "own filter": install(0), "after": parent()}
print(json.dumps(found | {"listener": install(1 << 3), "listener with others": install(1 << 3 | 1 << 5)}))
