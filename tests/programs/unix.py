"""Connects to UNIX sockets, and serves some of its own. Prints what it got.

Arguments: "connect" and a JSON list of names ("@…" is abstract), or "serve" and such a list.
"""

# ruff: noqa: T201 -- it answers on standard output

import errno
import json
import socket
import sys


def connected(name: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        try:
            made.connect(name.replace("@", "\0"))
            return made.recv(64).decode()
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, "?")


def served(name: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        try:
            listening.bind(name.replace("@", "\0"))
            listening.listen()
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
                caller.connect(name.replace("@", "\0"))
                accepted, _ = listening.accept()
                with accepted:
                    accepted.sendall(b"inside")
                return caller.recv(64).decode()
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, "?")


act = connected if sys.argv[1] == "connect" else served
print(json.dumps([act(name) for name in json.loads(sys.argv[2])]))
