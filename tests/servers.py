"""Servers on loopback for tests of the network path, and how a test runs a piece of Python inside a watch."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import pytest

from jupyter_agentwatch.policy import HOST_LOOPBACK
from tests.outside import LONG_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jupyter_agentwatch import Watch

CERTIFICATE: Final = Path(__file__).parent / "data" / "loopback.pem"
"""Key and self-signed certificate for host.loopback, made for these tests: they protect nothing."""

PRELUDE: Final = f"""
import ctypes, errno, json, os, select, socket, struct, sys, threading, time
HOST, LONG_S = {HOST_LOOPBACK!r}, {LONG_S}
def code(number):
    return errno.errorcode.get(number, str(number))
def attempt(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return code(error.errno)
    return "OK"
def tell(value):
    print(json.dumps(value), flush=True)
"""


def rule(port: int, protocol: str = "any", verdict: str = "allow", host: str = "host.loopback") -> dict[str, Any]:
    """Return a network rule for one port, by default of the supervisor's loopback."""
    return {"host": host, "ports": [port], "protocol": protocol, "verdict": verdict}


def network(*rules: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Return a policy that differs from the default by its network only."""
    return {"network": {"rules": list(rules), **settings}}


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def wait_listens(port: int) -> None:
    """Wait until somebody listens on a port of loopback."""
    for _ in range(2000):
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), LONG_S):
            return
        time.sleep(0.005)  # the kernel tells nobody when a port is taken
    pytest.fail(f"nobody listens on port {port}")


def inside(watch: Watch, source: str, *arguments: object) -> Any:
    """Run Python inside, with `PRELUDE` before it, and return the JSON that it printed last."""
    result = watch.run(["python3", "-IS", "-c", PRELUDE + source, *map(str, arguments)], timeout=60)
    assert result.ok, (result.outcome, result.exit_code, result.stderr[-2000:])
    return json.loads(result.stdout.splitlines()[-1])


def read_all(connection: socket.socket) -> bytes:
    """Read until the peer closes its direction; a reset ends it, too."""
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1 << 16):
            received += piece
    return bytes(received)


class Server:
    """A TCP server on loopback that handles each connection in a thread; `said` holds what handlers returned."""

    def __init__(self, handle: Callable[[socket.socket], Any]) -> None:
        self._handle = handle
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = int(self._listening.getsockname()[1])
        self.said: list[Any] = []
        self._more = threading.Condition()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        """Begin to accept."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Accept no more, and wait for the thread that did."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join(LONG_S)
        self._listening.close()

    def wait_said(self, count: int) -> list[Any]:
        """Wait until this many handlers have returned, and return what they did."""
        with self._more:
            assert self._more.wait_for(lambda: len(self.said) >= count, LONG_S), f"only {self.said} of {count}"
            return list(self.said)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(LONG_S)
            said = self._handle(connection)
        with self._more:
            self.said.append(said)
            self._more.notify_all()


def echo(connection: socket.socket) -> int:
    """Send back what comes, until the peer closes its direction; return the number of bytes."""
    count = 0
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1 << 20):
            connection.sendall(piece)
            count += len(piece)
    return count


class Slow:
    """A listener that answers no SYN until `free`: its backlog is full. A connect to it is truly in progress."""

    def __init__(self) -> None:
        self._listening = socket.socket()
        self._listening.bind(("127.0.0.1", 0))
        self._listening.listen(0)
        self.port = int(self._listening.getsockname()[1])
        self._filling = [socket.socket() for _ in range(3)]
        self._accepted: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        """Fill the backlog."""
        for each in self._filling:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", self.port))
        return self

    def __exit__(self, *_: object) -> None:
        """Close everything."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        if self._thread.ident is not None:
            self._thread.join(LONG_S)
        for each in (self._listening, *self._filling, *self._accepted):
            each.close()

    def free(self) -> None:
        """From now on accept every connection, and greet it with a line."""
        self._listening.listen(512)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self._accepted.append(connection)
                connection.sendall(b"SSH-2.0-late\r\n")


class _HttpServer(ThreadingHTTPServer):
    context: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection, which of a refused flow ends without a byte."""
        if self.context is None:
            super().finish_request(request, client_address)
        elif request.recv(1, socket.MSG_PEEK):
            with self.context.wrap_socket(request, server_side=True) as secure:
                super().finish_request(secure, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that breaks off is what some tests are about."""


@contextlib.contextmanager
def http_server(handler: type[BaseHTTPRequestHandler], *, tls: bool = False) -> Iterator[int]:
    """Serve HTTP/1.1 on loopback, and yield the port."""
    server = _HttpServer(("127.0.0.1", 0), handler)
    if tls:
        server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.context.load_cert_chain(CERTIFICATE)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join(LONG_S)
        server.server_close()


class Quiet(BaseHTTPRequestHandler):
    """HTTP/1.1 without a log on standard error."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the name is the base class's
        """Say nothing."""

    def read_body(self) -> bytes:
        """Read a body of known length, or in chunks."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def reply(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Answer with a whole body."""
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def git_handler(repositories: Path) -> type[Quiet]:
    """Return a handler that serves bare repositories by `git http-backend`, for clone, fetch and push."""

    class Git(Quiet):
        def do_GET(self) -> None:
            self._run(b"")

        def do_POST(self) -> None:
            self._run(self.read_body())

        def _run(self, body: bytes) -> None:
            path, _, query = self.path.partition("?")
            environment = {
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": str(repositories),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "safe.directory",
                "GIT_CONFIG_VALUE_0": "*",
                "REQUEST_METHOD": self.command,
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "REMOTE_USER": "ada",
            }
            command = ["git", "http-backend"]
            answer = subprocess.run(command, input=body, env=environment, capture_output=True, check=True).stdout
            head, _, content = answer.partition(b"\r\n\r\n")
            headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
            self.reply(content, int(headers.pop("Status", "200").split()[0]), headers)

    return Git


def descriptors(watch: Watch) -> int:
    """Count the descriptors that the supervisor has open; telemetry keeps some of /proc, which come and go."""
    folder, found = f"/proc/{watch.status().pid}/fd", 0
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            found += not os.readlink(f"{folder}/{name}").startswith("/proc/")
    return found


def wait_descriptors(watch: Watch, most: int) -> None:
    """Wait until the supervisor has this many descriptors open or fewer."""
    count, deadline = sys.maxsize, time.monotonic() + LONG_S
    while time.monotonic() < deadline:  # each round is a request to the supervisor, hence a round of its loop
        count = descriptors(watch)
        if count <= most:
            return
    pytest.fail(f"the supervisor keeps {count} descriptors open, not {most}")
