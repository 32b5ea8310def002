"""Tries to read or to write each path that it is told, and prints what it got: the errno's name, or "ok".

Arguments: "read", "write" or "list", then a JSON list of paths.
"""

# ruff: noqa: T201 -- it answers on standard output

import errno
import json
import os
import sys


def attempt(path: str) -> object:
    try:
        if sys.argv[1] == "list":
            return sorted(os.listdir(path))
        if sys.argv[1] == "read":
            with open(path, "rb") as file:
                file.read(1)
        else:
            with open(path, "ab", buffering=0) as file:
                file.write(b"x")
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?")
    return "ok"


print(json.dumps([attempt(path) for path in json.loads(sys.argv[2])]))
