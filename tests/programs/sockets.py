"""Tries to make each socket that it is told, and prints what it got: the errno's name, or "ok".

Arguments: JSON list of [family, type, protocol]; with a fourth member, [level, option, value] is set on it, and with
"pair" a pair is made.
"""

# ruff: noqa: T201 -- it answers on standard output

import errno
import json
import socket
import sys


def attempt(family: int, kind: int, protocol: int, extra: object = None) -> str:
    try:
        if extra == "pair":
            for end in socket.socketpair(family, kind, protocol):
                end.close()
            return "ok"
        with socket.socket(family, kind, protocol) as made:
            if isinstance(extra, list):
                made.setsockopt(*extra)
            if extra == "fastopen":
                made.sendto(b"x", 0x20000000, ("127.0.0.1", 9))
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?")
    return "ok"


print(json.dumps([attempt(*each) for each in json.loads(sys.argv[1])]))
