"""Runs ./prog-a or ./prog-b while a child flips the letter under the call; prints the exit codes: 0 for a, 1 for b.

Arguments: how many times, and "plain" or "noisy" (a second thread calls exec, while the first one makes calls that are
trapped, too).
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
page[:9] = b"./prog-a\0"
at = ctypes.addressof(ctypes.c_char.from_buffer(page))
arguments = (ctypes.c_char_p * 2)(b"program", None)


def flip_for_ever() -> None:
    letters = ctypes.create_string_buffer(b"ab", 2)
    a, b = ctypes.addressof(letters), ctypes.addressof(letters) + 1
    copy = ctypes.memmove
    while True:
        copy(at + 7, b, 1)
        copy(at + 7, a, 1)


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
