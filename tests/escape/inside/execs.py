"""Runs one of two programs while a child flips a letter of its name; says which ones really ran."""


# mypy: ignore-errors

import ctypes
import mmap
import os
import shutil
import signal

from told import ends, libc, world

for letter, program in (("a", "true"), ("b", "false")):
    shutil.copy(os.path.realpath(f"/usr/bin/{program}"), f"prog-{letter}")
page = mmap.mmap(-1, mmap.PAGESIZE)
page[:9] = b"./prog-a\0"
at = ctypes.addressof(ctypes.c_char.from_buffer(page))
page[256:261] = b"prog\0"
arguments = (ctypes.c_void_p * 2)(at + 256, 0)
flipper = os.fork()
if flipper == 0:
    letters = ctypes.create_string_buffer(b"ab", 2)
    a, b, copy = ctypes.addressof(letters), ctypes.addressof(letters) + 1, ctypes.memmove
    while True:
        copy(at + 7, b, 1)
        copy(at + 7, a, 1)
ran = []
pid = ctypes.c_int()
for _ in range(world["tries"]):
    # The name is read from the shared page by the child's exec, which this call makes in our own memory.
    if libc.posix_spawn(ctypes.byref(pid), ctypes.c_void_p(at), None, None, arguments, None):
        continue
    ran.append(os.waitstatus_to_exitcode(os.waitpid(pid.value, 0)[1]))
os.kill(flipper, signal.SIGKILL)
os.waitpid(flipper, 0)
ends(ran="".join("ab?"[min(code, 2)] for code in ran), tries=len(ran))
