"""Runs one of two things while a child flips a letter under the call; prints the exit codes: 0 for a, 1 for b.

Arguments: how many times, and a way: "plain" flips the name, ./prog-a or ./prog-b; "noisy" does so while a second
thread calls exec and the first one makes calls that are trapped, too; "arguments" flips the last argument of test(1),
and "script" that of ./script.
"""

# ruff: noqa: T201 -- it answers on standard output

import ctypes
import json
import mmap
import os
import signal
import sys
import threading

libc = ctypes.CDLL(None, use_errno=True)
times, way = int(sys.argv[1]), sys.argv[2]
SET_TID_ADDRESS = {"x86_64": 218, "aarch64": 96}[os.uname().machine]
page = mmap.mmap(-1, mmap.PAGESIZE)
names = {"arguments": b"/usr/bin/test", "script": b"./script"}
name = names.get(way, b"./prog-a")
page[: len(name)] = name
page[256:257] = b"a"
at = ctypes.addressof(ctypes.c_char.from_buffer(page))
flipped = at + (256 if way in names else 7)
arguments = (ctypes.c_void_p * 5)()
for index, word in enumerate((b"test\0", b"a\0", b"=\0")):
    page[512 + 16 * index : 512 + 16 * index + len(word)] = word
    arguments[index] = at + 512 + 16 * index
arguments[3] = at + 256


def flip_for_ever() -> None:
    letters = ctypes.create_string_buffer(b"ab", 2)
    a, b = ctypes.addressof(letters), ctypes.addressof(letters) + 1
    copy = ctypes.memmove
    while True:
        copy(flipped, b, 1)
        copy(flipped, a, 1)


def run() -> None:
    libc.execv(ctypes.c_void_p(at), arguments)
    os._exit(127)


def make_noise() -> None:
    threading.Thread(target=run).start()
    while True:
        os.close(os.open("/dev/null", os.O_WRONLY))
        libc.syscall(ctypes.c_long(SET_TID_ADDRESS), None)


flipper = os.fork()
if flipper == 0:
    flip_for_ever()
codes = []
for _ in range(times):
    child = os.fork()
    if child == 0:
        if way == "noisy":
            make_noise()
        run()
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os.kill(flipper, signal.SIGKILL)
os.waitpid(flipper, 0)
print(json.dumps(codes))
