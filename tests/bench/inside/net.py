"""Clients that time themselves, in seconds: `connects HOST PORT N` prints two lists, `in|out HOST PORT BYTES` one."""

from __future__ import annotations

import json
import socket
import sys
import time

PIECE = 1 << 20
REQUEST = b"GET / HTTP/1.1\r\nHost: host.loopback\r\nConnection: close\r\n\r\n"


def connects(address: tuple[str, int], count: int) -> tuple[list[float], list[float]]:
    """Connect and make one HTTP request, again and again; return the times of connect, and of both together."""
    connected, answered = [], []
    for _ in range(count):
        with socket.socket() as sock:
            begun = time.perf_counter()
            sock.connect(address)
            connected.append(time.perf_counter() - begun)
            sock.sendall(REQUEST)
            while sock.recv(4096):
                pass
            answered.append(time.perf_counter() - begun)
    return connected, answered


def receive(address: tuple[str, int], size: int) -> float:
    """Take what a server sends."""
    view, left = memoryview(bytearray(PIECE)), size
    with socket.create_connection(address) as sock:
        begun = time.perf_counter()
        while left and (got := sock.recv_into(view)):
            left -= got
        took = time.perf_counter() - begun
    if left:
        sys.exit(f"{left} bytes did not come")
    return took


def send(address: tuple[str, int], size: int) -> float:
    """Send to a server that answers with one byte when it has all."""
    piece = memoryview(bytes(PIECE))
    with socket.create_connection(address) as sock:
        begun = time.perf_counter()
        for _ in range(size // PIECE):
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        if sock.recv(1) != b"!":
            sys.exit("the server did not get all")
        return time.perf_counter() - begun


if __name__ == "__main__":
    mode, host, port, amount = sys.argv[1:]
    # Looked up once: the price of a name is not the price of a connect.
    where = (socket.gethostbyname(host), int(port))
    run = {"connects": connects, "in": receive, "out": send}[mode]
    sys.stdout.write(json.dumps(run(where, int(amount))))
