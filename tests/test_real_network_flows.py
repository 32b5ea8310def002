"""What passes through an allowed connection, and which first bytes never leave."""

from __future__ import annotations

import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from jupyter_agentwatch import Watch
from jupyter_agentwatch.events import Connect, Session
from tests.outside import LONG_S, NEVER_STOPPED, flows, follow, recorded, wait_for_line
from tests.servers import (
    PRELUDE,
    Server,
    descriptors,
    inside,
    network,
    read_all,
    rule,
    wait_descriptors,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]


# What passes through a flow


def test_one_direction_may_close_first(tmp_path: Path) -> None:
    """After the client's FIN the server still answers, all of it arrives, and both byte counts are on record."""
    source = """
with socket.create_connection((HOST, int(sys.argv[1]))) as s:
    s.sendall(b"question" * 1000)
    s.shutdown(socket.SHUT_WR)
    got = b""
    while piece := s.recv(1 << 16):
        got += piece
tell([len(got), got.count(b"answer")])
"""

    def answer(connection: socket.socket) -> int:
        asked = read_all(connection)
        connection.sendall(b"answer" * 100_000)
        return len(asked)

    with Server(answer) as server, Watch(network(rule(server.port)), tmp_path) as watch:
        assert inside(watch, source, server.port) == [600_000, 100_000]
        assert server.wait_said(1) == [8000]
        (end,) = follow(watch, "closed")
        assert (end.bytes_out, end.bytes_in, end.reason, end.verdict) == (8000, 600_000, "eof", "allow")


def test_resets_are_passed_on(tmp_path: Path) -> None:
    """A server's RST resets the client, a client's RST resets the server, and the record names the side."""
    source = """
there = (HOST, int(sys.argv[1]))
with socket.create_connection(there) as s:
    s.sendall(b"SSH-2.0-reset-me")
    s.settimeout(LONG_S)
    got = attempt(s.recv, 1)
with socket.create_connection(there) as s:
    s.sendall(b"SSH-2.0-wait")
    s.recv(1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
tell(got)
"""

    def serve(connection: socket.socket) -> str:
        if connection.recv(100).endswith(b"reset-me"):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return "reset"
        connection.sendall(b"x")
        try:
            return f"read {connection.recv(1)!r}"
        except ConnectionResetError:
            return "was reset"

    with Server(serve) as server, Watch(network(rule(server.port)), tmp_path) as watch:
        assert inside(watch, source, server.port) == "ECONNRESET"
        assert sorted(server.wait_said(2)) == ["reset", "was reset"]
        assert [e.reason for e in follow(watch, "closed", 2)] == ["outside:ECONNRESET", "inside:ECONNRESET"]


def test_a_peer_that_never_answers_is_cut_by_the_kill(tmp_path: Path) -> None:
    """A flow that only waits lives as long as its watch, and its end is on record before the log's."""
    source = """
s = socket.create_connection((HOST, int(sys.argv[1])))
s.sendall(b"hello?")
tell("asked")
s.recv(1)
"""
    asked = threading.Event()

    def silent(connection: socket.socket) -> bytes:
        first = connection.recv(100)
        asked.set()
        return first + read_all(connection)

    with Server(silent) as server, Watch(network(rule(server.port)), tmp_path) as watch:
        wait_for_line(watch.start(["python3", "-IS", "-c", PRELUDE + source, str(server.port)]), b"asked")
        assert asked.wait(LONG_S)
        assert watch.kill("no answer").survivors == 0
        assert server.wait_said(1) == [b"hello?"]
        (named,), (end,) = flows(watch, "named"), flows(watch, "closed")
        assert (named.protocol, named.verdict) == ("unknown", "allow")
        assert (end.bytes_out, end.bytes_in) == (6, 0)
        assert end.seq < recorded(watch, Session)[-1].seq


def test_a_connection_that_says_nothing_is_on_record_to_its_end(tmp_path: Path) -> None:
    """A connection over which nothing was said ends by either side's close, or by the kill, and that is on record."""
    source = """
there = (HOST, int(sys.argv[1]))
socket.create_connection(there).close()
with socket.create_connection(there) as s:
    s.settimeout(LONG_S)
    print("quiet", flush=True)
    s.recv(1)
"""

    def hold(connection: socket.socket) -> int:
        return len(read_all(connection))

    with Server(hold) as server, Watch(network(rule(server.port)), tmp_path) as watch:
        running = watch.start(["python3", "-c", PRELUDE + source, str(server.port)])
        wait_for_line(running, b"quiet")
        (first,) = follow(watch, "closed")
        assert (first.bytes_out, first.bytes_in, first.reason) == (0, 0, "eof")
        watch.kill("enough")
        assert server.wait_said(2) == [0, 0]
        _, second = flows(watch, "closed")
        assert (second.bytes_out, second.bytes_in, second.reason) == (0, 0, "closed:killed")


def test_two_thousand_short_connections_leak_nothing(tmp_path: Path) -> None:
    """Connections in a row are each named and ended on record, and the supervisor's descriptors are as before."""
    source = """
there = (HOST, int(sys.argv[1]))
for _ in range(2000):
    with socket.create_connection(there) as s:
        s.sendall(b"GET / HTTP/1.0" + b"\\r\\n" * 2)
        assert s.recv(100) == b"ok", "a wrong answer"
tell("done")
"""

    def answer(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"ok")

    with Server(answer) as server, Watch(network(rule(server.port, "http")), tmp_path) as watch:
        before = descriptors(watch)
        assert inside(watch, source, server.port) == "done"
        wait_descriptors(watch, before)
        assert len(follow(watch, "closed", 2000)) == 2000
        assert {(e.protocol, e.bytes_out, e.bytes_in, e.reason) for e in flows(watch, "closed")} == {
            ("http", 18, 2, "eof")
        }
        assert len({e.flow for e in flows(watch, "named")}) == 2000


def test_a_suspended_watch_lets_no_connect_and_no_byte_through(tmp_path: Path) -> None:
    """While the watch is suspended, what the server says stays outside and no connect begins; then both go on."""
    source = """
there = (HOST, int(sys.argv[1]))
s = socket.create_connection(there)
s.sendall(b"SSH-2.0-x")
tell("in")
got = s.recv(100).decode()
with socket.create_connection(there) as t:
    t.sendall(b"SSH-2.0-y")
    tell([got, t.recv(100).decode()])
"""
    heard, go, sent = threading.Event(), threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> bytes:
        first = connection.recv(100)
        heard.set()
        if first.endswith(b"x"):
            go.wait(LONG_S)
        connection.sendall(b"late")
        sent.set()
        return first

    with Server(serve) as server, Watch(network(rule(server.port)), tmp_path) as watch:
        running = watch.start(["python3", "-IS", "-c", PRELUDE + source, str(server.port)])
        wait_for_line(running, b"in")
        assert heard.wait(LONG_S)
        watch.suspend()
        go.set()
        assert sent.wait(LONG_S)
        watch.status()
        assert flows(watch, "closed") == []
        assert len(recorded(watch, Connect)) == 1
        watch.resume()
        assert running.wait(LONG_S).stdout.splitlines()[-1] == '["late", "late"]'
        assert {e.bytes_in for e in follow(watch, "closed", 2)} == {4}


# Protocols


LOGIN = b'{"id":1,"method":"mining.subscribe","params":[]}\n'
HELLO = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"


@pytest.mark.parametrize(
    ("protocol", "first", "named"),
    [
        pytest.param("http", b"SSH-2.0-OpenSSH_9.2\r\n", "ssh", id="ssh where http is allowed"),
        pytest.param("http", HELLO, "unknown", id="a broken hello where http is allowed"),
        pytest.param("http", b"\0\1\2\3 nothing that is known", "unknown", id="noise where http is allowed"),
        pytest.param("tls", b"GET / HTTP/1.1\r\nHost: host.loopback\r\n\r\n", "http", id="http where tls is allowed"),
        pytest.param(
            "http",
            b"GET / HTTP/1.1\r\nHost: host.loopback\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            "websocket",
            id="a websocket where http is allowed",
        ),
        pytest.param("any", LOGIN, "stratum", id="a mining login"),
        pytest.param("any", b"\n \0" + LOGIN, "stratum", id="a mining login behind padding"),
        pytest.param("any", b"\x05\x01\x00", "socks5", id="socks 5"),
        pytest.param("any", b"\x04\x01\x01\xbb\xc6\x33\x64\x07\x00", "socks4", id="socks 4"),
    ],
)
def test_first_bytes_that_are_refused_never_leave(tmp_path: Path, protocol: str, first: bytes, named: str) -> None:
    """The server sees a connection and not one byte, the client a reset, and the record says what was refused."""
    source = """
with socket.create_connection((HOST, int(sys.argv[1]))) as s:
    s.sendall(bytes.fromhex(sys.argv[2]))
    s.settimeout(LONG_S)
    tell(attempt(s.recv, 1))
"""
    with Server(read_all) as server, Watch(network(rule(server.port, protocol)) | NEVER_STOPPED, tmp_path) as watch:
        assert inside(watch, source, server.port, first.hex()) == "ECONNRESET"
        assert server.wait_said(1) == [b""]
        (refused,), (end,) = flows(watch, "named"), follow(watch, "closed")
        assert (refused.protocol, refused.verdict, refused.rule) == (named, "deny", f"protocol:{named}")
        assert (end.verdict, end.bytes_out, end.reason) == ("deny", 0, f"denied:protocol:{named}")
        assert refused.flow == recorded(watch, Connect)[0].flow


def test_a_login_after_the_hold_is_refused_as_well(tmp_path: Path) -> None:
    """A client that outwaits the hold with an empty line and then logs in to a pool sends no part of the login."""
    source = """
with socket.create_connection((HOST, int(sys.argv[1]))) as s:
    s.sendall(b" ")
    s.settimeout(LONG_S)
    s.recv(1)  # the server has the blank, so the hold is over
    s.sendall(bytes.fromhex(sys.argv[2]))
    tell(attempt(s.recv, 1))
"""

    def serve(connection: socket.socket) -> bytes:
        first = connection.recv(1)
        connection.sendall(b"?")
        return first + read_all(connection)

    policy = network(rule(0x7FFF), first_bytes={"wait_s": 0.02})
    with Server(serve) as server:
        policy["network"]["rules"] = [rule(server.port)]
        with Watch(policy | NEVER_STOPPED, tmp_path) as watch:
            assert inside(watch, source, server.port, LOGIN.hex()) == "ECONNRESET"
            assert server.wait_said(1) == [b" "]
            assert [(e.protocol, e.verdict) for e in flows(watch, "named")] == [
                ("unknown", "allow"),
                ("stratum", "deny"),
            ]


@pytest.mark.parametrize("protocol", ["any", "ssh"])
def test_a_server_may_speak_first(tmp_path: Path, protocol: str) -> None:
    """An SSH server's banner reaches a client that waits for it, and the client's own goes out unchanged."""
    source = """
with socket.create_connection((HOST, int(sys.argv[1]))) as s:
    got = s.recv(100).decode()
    s.sendall(b"SSH-2.0-client" + bytes([13, 10]))
    s.shutdown(socket.SHUT_WR)
    tell([got, s.recv(100).decode()])
"""

    def serve(connection: socket.socket) -> bytes:
        connection.sendall(b"SSH-2.0-server\r\n")
        said = read_all(connection)
        connection.sendall(b"bye")
        return said

    with Server(serve) as server, Watch(network(rule(server.port, protocol)), tmp_path) as watch:
        assert inside(watch, source, server.port) == ["SSH-2.0-server\r\n", "bye"]
        assert server.wait_said(1) == [b"SSH-2.0-client\r\n"]
        (named,) = flows(watch, "named")
        assert (named.protocol, named.verdict) == ("ssh", "allow")
