"""Makes the raw system calls that it is told, and prints what each got: the errno's name, or "ok".

Argument: JSON list of [number, argument, …]; an argument is a number, a text (passed by its address) or
{"bytes": hex} (the same for bytes that are no text). Each call is made in a child, so that one that ends its caller is
reported as its signal.
"""

# ruff: noqa: T201 -- it answers on standard output

import ctypes
import errno
import json
import os
import sys

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def value(argument: object) -> object:
    if isinstance(argument, str):
        return ctypes.c_char_p(argument.encode())
    if isinstance(argument, dict):
        return ctypes.create_string_buffer(bytes.fromhex(argument["bytes"]))
    return ctypes.c_long(int(str(argument)))


def outcome(call: list[object]) -> str:
    number, *arguments = call
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        result = libc.syscall(ctypes.c_long(int(str(number))), *[value(each) for each in arguments])
        name = errno.errorcode.get(ctypes.get_errno(), "?") if result < 0 else "ok"
        os.write(writer, name.encode())
        os._exit(0)
    os.close(writer)
    said = os.read(reader, 64).decode()
    os.close(reader)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return said if status == 0 else f"signal {-status}"


print(json.dumps([outcome(call) for call in json.loads(sys.argv[1])]))
