"""Attacks init and a sibling of the same user: ptrace, process_vm_readv, /proc/<pid>/mem, signals. Prints what it got.

Argument: JSON object of call numbers.
"""

# ruff: noqa: T201 -- it answers on standard output

import ctypes
import errno
import json
import os
import signal
import sys

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
numbers = json.loads(sys.argv[1])
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206


def call(name: str, *arguments: object) -> str:
    done = libc.syscall(ctypes.c_long(numbers[name]), *arguments)
    return "ok" if done >= 0 else errno.errorcode.get(ctypes.get_errno(), "?")


def opened(path: str, flags: int) -> str:
    try:
        os.close(os.open(path, flags))
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?")
    return "ok"


def signalled(pid: int, number: int) -> str:
    try:
        os.kill(pid, number)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?")
    return "sent"


target = ctypes.create_string_buffer(b"secret of the parent")
reader, writer = os.pipe()
sibling = os.fork()
if sibling == 0:
    os.close(writer)
    os.read(reader, 1)
    os._exit(0)
local = ctypes.create_string_buffer(8)
vector = (ctypes.c_ulong * 2)(ctypes.addressof(local), 8)
remote = (ctypes.c_ulong * 2)(ctypes.addressof(target), 8)
found: dict[str, str] = {}
for who, pid in (("init", 1), ("sibling", sibling)):
    found[f"attach {who}"] = call("ptrace", ctypes.c_long(PTRACE_ATTACH), ctypes.c_long(pid), None, None)
    found[f"seize {who}"] = call("ptrace", ctypes.c_long(PTRACE_SEIZE), ctypes.c_long(pid), None, None)
    for name in ("process_vm_readv", "process_vm_writev"):
        found[f"{name} {who}"] = call(
            name, ctypes.c_long(pid), vector, ctypes.c_long(1), remote, ctypes.c_long(1), ctypes.c_long(0)
        )
for name in ("mem", "environ", "maps", "root/etc", "cwd/.", "fd/0", "exe"):
    found[f"read {name} of init"] = opened(f"/proc/1/{name}", os.O_RDONLY)
found["write mem of init"] = opened("/proc/1/mem", os.O_WRONLY)
for name in ("KILL", "STOP", "INT", "TERM", "HUP", "CHLD", "PIPE", "SEGV", "USR1", "ALRM"):
    found[f"{name} to init"] = signalled(1, getattr(signal, f"SIG{name}"))
os.close(writer)
found["sibling's end"] = str(os.waitstatus_to_exitcode(os.waitpid(sibling, 0)[1]))
print(json.dumps(found))
