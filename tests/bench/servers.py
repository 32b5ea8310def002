"""Servers on loopback, each a process of its own so that no lock of the bench's interpreter slows it.

`python servers.py http|source|sink BYTES` prints its port and serves one connection after the other until it is killed.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_PIECE = 1 << 20
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


@contextlib.contextmanager
def server(kind: str, size: int = 0) -> Iterator[int]:
    """Start a server and return its port; end it afterwards.

    Args:
        kind: "http" answers each request; "source" sends `size` bytes; "sink" takes them and answers "!".
        size: Bytes, a multiple of 1 MiB.
    """
    argv = [sys.executable, "-I", "-S", str(Path(__file__)), kind, str(size)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        try:
            if process.stdout is None:
                msg = "the server was started without a pipe"
                raise RuntimeError(msg)
            yield int(process.stdout.readline())
        finally:
            process.kill()


def _http(sock: socket.socket, _size: int) -> None:
    if sock.recv(4096):
        sock.sendall(_ANSWER)


def _source(sock: socket.socket, size: int) -> None:
    piece = memoryview(bytes(_PIECE))
    for _ in range(size // _PIECE):
        sock.sendall(piece)


def _sink(sock: socket.socket, size: int) -> None:
    view, left = memoryview(bytearray(_PIECE)), size
    while left and (got := sock.recv_into(view)):
        left -= got
    sock.sendall(b"?" if left else b"!")


def _serve(kind: str, size: int) -> None:
    handle = {"http": _http, "source": _source, "sink": _sink}[kind]
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        sys.stdout.write(f"{listening.getsockname()[1]}\n")
        sys.stdout.flush()
        while True:
            sock, _ = listening.accept()
            with sock, contextlib.suppress(OSError):
                handle(sock, size)


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
