"""Unmodified clients through a real sandbox's gateway: curl, git, urllib, asyncio, TLS, WebSocket, byte for byte."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from jupyter_agentwatch import Watch
from jupyter_agentwatch.events import Connect, Finding, Flow
from tests.outside import recorded
from tests.servers import CERTIFICATE, Quiet, Server, echo, git_handler, http_server, inside, network, read_all, rule

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]

SIZE: Final = 20 << 20


class Echo(Quiet):
    """Answers a GET with its path, a POST with the digest of its body and its headers' Host."""

    def do_GET(self) -> None:  # noqa: N802 -- the name is the base class's
        """Answer with the path."""
        self.reply(f"you asked for {self.path}".encode())

    def do_POST(self) -> None:  # noqa: N802 -- as above
        """Answer with what came."""
        body = self.read_body()
        self.reply(f"{len(body)} {hashlib.sha256(body).hexdigest()} {self.headers['Host']}".encode())


class Bulk(Quiet):
    """Serves 20 MiB, and takes what is sent."""

    content = hashlib.shake_256(b"bulk").digest(SIZE)

    def do_GET(self) -> None:  # noqa: N802 -- the name is the base class's
        """Answer with all of it."""
        self.reply(self.content)

    def do_POST(self) -> None:  # noqa: N802 -- as above
        """Answer with the digest of what came."""
        self.reply(hashlib.sha256(self.read_body()).hexdigest().encode())


def ended(watch: Watch, count: int) -> list[Flow]:
    """Wait until this many flows have ended, and return their last records."""
    found: list[Flow] = []
    for _ in range(2000):
        found = [event for event in recorded(watch, Flow) if event.op == "closed"]
        if len(found) >= count:
            return found
        watch.status()
    pytest.fail(f"only {len(found)} flows have ended")


def named(watch: Watch) -> list[tuple[str, str, str]]:
    """Return (protocol, server name, verdict) of each flow as it was named."""
    return [(e.protocol, e.server_name, e.verdict) for e in recorded(watch, Flow) if e.op == "named"]


# curl


@pytest.mark.parametrize("protocol", ["http", "any"])
def test_curl_gets_and_posts(tmp_path: Path, protocol: str) -> None:
    """GET, POST, a chunked upload and a connection that is kept alive work, each flow is named and counted."""
    (tmp_path / "upload").write_bytes(os.urandom(300_000))
    digest = hashlib.sha256((tmp_path / "upload").read_bytes()).hexdigest()
    with http_server(Echo) as port, Watch(network(rule(port, protocol)), tmp_path) as watch:
        base = f"http://host.loopback:{port}"
        curl = ["curl", "-sS", "--fail", "--max-time", "20"]
        kept = watch.run([*curl, "-w", "|%{num_connects}|", f"{base}/one", f"{base}/two"])
        assert kept.stdout == "you asked for /one|1|you asked for /two|0|"
        posted = watch.run([*curl, "--ipv4", "--data-binary", "@upload", f"{base}/"])
        assert posted.stdout == f"300000 {digest} host.loopback:{port}"
        chunked = watch.run([*curl, "-H", "Transfer-Encoding: chunked", "--data-binary", "@upload", f"{base}/"])
        assert chunked.stdout == posted.stdout
        by_address = watch.run([*curl, f"http://192.0.0.8:{port}/address"])
        assert by_address.stdout == "you asked for /address"
        ends = ended(watch, 4)
        assert named(watch) == [("http", "host.loopback", "allow")] * 3 + [("http", "192.0.0.8", "allow")]
        assert [e.bytes_out > 300_000 for e in ends] == [False, True, True, False]
        assert {e.flow for e in ends} == {e.flow for e in recorded(watch, Connect) if e.flow}
        assert recorded(watch, Finding) == []


def test_curl_is_refused_as_the_policy_says(tmp_path: Path) -> None:
    """A port, a name and a Host header that no rule names fail at connect, at the name and at the first bytes."""
    with http_server(Echo) as port, http_server(Echo) as other, Watch(network(rule(port)), tmp_path) as watch:
        curl = ["curl", "-sS", "--max-time", "20"]
        elsewhere = watch.run([*curl, f"http://host.loopback:{other}/"])
        assert (elsewhere.exit_code, elsewhere.stdout) == (7, "")
        unknown = watch.run([*curl, "http://denied.example/"])
        assert (unknown.exit_code, unknown.stdout) == (6, "")
        pinned = [*curl, "--resolve", f"a.example:{port}:192.0.0.8", f"http://a.example:{port}/"]
        fronted = watch.run(pinned)
        assert (fronted.exit_code, fronted.stdout) == (56, "")
        assert named(watch) == [("http", "a.example", "deny")]
        denied = [(e.port, e.rule, e.errno) for e in recorded(watch, Connect) if e.verdict == "deny"]
        assert denied == [(other, "no-rule", 13)]
        assert [e.reason for e in ended(watch, 1)] == ["denied:server-name-mismatch"]


def test_curl_speaks_tls(tmp_path: Path) -> None:
    """HTTPS with a certificate that is checked works where tls is allowed; plain HTTP to the same port does not."""
    shutil.copy(CERTIFICATE, tmp_path / "ca.pem")
    with http_server(Echo, tls=True) as port, Watch(network(rule(port, "tls")), tmp_path) as watch:
        curl = ["curl", "-sS", "--max-time", "20"]
        assert watch.run([*curl, "--cacert", "ca.pem", f"https://host.loopback:{port}/x"]).stdout == "you asked for /x"
        assert watch.run([*curl, f"https://host.loopback:{port}/x"]).exit_code == 60
        assert watch.run([*curl, f"http://host.loopback:{port}/x"]).exit_code == 56
        hidden = [*curl, "--insecure", "--resolve", f"b.example:{port}:192.0.0.8", f"https://b.example:{port}/"]
        assert watch.run(hidden).exit_code == 35
        assert named(watch) == [
            ("tls", "host.loopback", "allow"),
            ("tls", "host.loopback", "allow"),
            ("http", "host.loopback", "deny"),
            ("tls", "b.example", "deny"),
        ]


# Bulk


def test_twenty_mebibytes_arrive_as_they_were_sent(tmp_path: Path) -> None:
    """Both directions are byte-exact with curl over HTTP and over TLS, and the counts on record are right."""
    expected = hashlib.sha256(Bulk.content).hexdigest()
    (tmp_path / "bulk").write_bytes(Bulk.content)
    with (
        http_server(Bulk) as plain,
        http_server(Bulk, tls=True) as secure,
        Watch(network(rule(plain, "http"), rule(secure, "tls")), tmp_path) as watch,
    ):
        for scheme, port in (("http", plain), ("https", secure)):
            curl = f"curl -sS --insecure --max-time 60 {scheme}://host.loopback:{port}/"
            assert watch.run(f"{curl} | sha256sum").stdout.split()[0] == expected
            assert watch.run(f"{curl} -H Expect: --data-binary @bulk").stdout == expected
        got, sent, _, _ = ended(watch, 4)
        assert SIZE < got.bytes_in < SIZE + 1000
        assert SIZE < sent.bytes_out < SIZE + 1000


def test_both_directions_at_once_are_exact(tmp_path: Path) -> None:
    """20 MiB through an echo server come back as they went, while both directions are full."""
    source = """
import hashlib
SIZE = 20 << 20
data = hashlib.shake_256(b"echo").digest(SIZE)
with socket.create_connection((HOST, int(sys.argv[1]))) as s:
    sender = threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR)))
    sender.start()
    got = hashlib.sha256()
    while piece := s.recv(1 << 20):
        got.update(piece)
    sender.join()
tell(got.hexdigest() == hashlib.sha256(data).hexdigest())
"""
    with Server(echo) as server, Watch(network(rule(server.port)), tmp_path) as watch:
        assert inside(watch, source, server.port) is True
        (end,) = ended(watch, 1)
        assert (end.bytes_out, end.bytes_in, end.reason) == (SIZE, SIZE, "eof")


# Python


def test_two_hundred_connections_at_once(tmp_path: Path) -> None:
    """With asyncio a program opens 200 connections in parallel, each gets its own answer, and each is its own flow."""
    source = """
import asyncio
async def one(index):
    reader, writer = await asyncio.open_connection("host.loopback" if index % 2 else HOST, int(sys.argv[1]))
    writer.write(b"%d" % index * 1000)
    writer.write_eof()
    got = await reader.read()
    writer.close()
    return got == b"%d" % index * 1000
async def main():
    return sum(await asyncio.gather(*map(one, range(200))))
tell(asyncio.run(main()))
"""
    with Server(echo) as server, Watch(network(rule(server.port)), tmp_path) as watch:
        assert inside(watch, source, server.port) == 200
        ends = ended(watch, 200)
        assert len({e.flow for e in ends}) == 200
        assert sorted(e.bytes_in for e in ends) == sorted(len(str(index)) * 1000 for index in range(200))
        assert sorted(server.wait_said(200)) == sorted(e.bytes_out for e in ends)


def test_urllib_and_ssl_work_unmodified(tmp_path: Path) -> None:
    """Python's clients work over HTTP and HTTPS with a checked certificate; a denied port raises PermissionError."""
    source = """
import ssl, urllib.error, urllib.request
plain, secure, denied = sys.argv[1:4]
context = ssl.create_default_context(cafile="ca.pem")
got = [urllib.request.urlopen(f"http://host.loopback:{plain}/a", timeout=20).read().decode()]
got.append(urllib.request.urlopen(f"http://host.loopback:{plain}/", data=b"x" * 70000, timeout=20).read().decode())
got.append(urllib.request.urlopen(f"https://host.loopback:{secure}/b", timeout=20, context=context).read().decode())
try:
    urllib.request.urlopen(f"http://host.loopback:{denied}/", timeout=20)
except urllib.error.URLError as error:
    got.append(type(error.reason).__name__)
tell(got)
"""
    shutil.copy(CERTIFICATE, tmp_path / "ca.pem")
    with (
        http_server(Echo) as plain,
        http_server(Echo, tls=True) as secure,
        http_server(Echo) as denied,
        Watch(network(rule(plain, "http"), rule(secure, "tls")), tmp_path) as watch,
    ):
        digest = hashlib.sha256(b"x" * 70000).hexdigest()
        assert inside(watch, source, plain, secure, denied) == [
            "you asked for /a",
            f"70000 {digest} host.loopback:{plain}",
            "you asked for /b",
            "PermissionError",
        ]


def test_a_websocket_is_upgraded(tmp_path: Path) -> None:
    """The handshake and the frames of both sides pass where websocket is allowed, and the flow bears that name."""
    source = """
import base64
with socket.create_connection((HOST, int(sys.argv[1]))) as s:
    fields = [f"GET /chat HTTP/1.1", f"Host: host.loopback:{sys.argv[1]}", "Connection: Upgrade", "Upgrade: websocket"]
    fields += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: " + base64.b64encode(bytes(16)).decode(), "", ""]
    s.sendall("\\r\\n".join(fields).encode())
    head = b""
    while not head.endswith(b"\\r\\n" * 2):
        head += s.recv(1)
    s.sendall(bytes([0x82, 0x85, 1, 2, 3, 4]) + bytes(a ^ b for a, b in zip(b"hello", bytes([1, 2, 3, 4, 1]))))
    tell([head.split(b"\\r\\n")[0].decode(), s.recv(7, socket.MSG_WAITALL).hex(), head.decode().count("Accept")])
"""

    def serve(connection: socket.socket) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1)
        key = head.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key, usedforsecurity=False).digest())
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        frame = connection.recv(11, socket.MSG_WAITALL)
        text = bytes(a ^ b for a, b in zip(frame[6:], frame[2:6] * 2, strict=False))
        connection.sendall(b"\x82\x05" + text)
        return text + read_all(connection)

    with Server(serve) as server, Watch(network(rule(server.port, "websocket")), tmp_path) as watch:
        assert inside(watch, source, server.port) == [
            "HTTP/1.1 101 Switching Protocols",
            "8205" + b"hello".hex(),
            1,
        ]
        assert server.wait_said(1) == [b"hello"]
        assert named(watch) == [("websocket", "host.loopback", "allow")]


# git


def test_git_clones_fetches_and_pushes(tmp_path: Path) -> None:
    """Over smart HTTP git works inside: clone, commit, push, fetch what somebody else pushed; content is the same."""
    remote, project, seed = tmp_path / "remote", tmp_path / "project", tmp_path / "seed"
    project.mkdir()
    blob = os.urandom(3 << 20)
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", f"{remote}/box.git")
    git(tmp_path, "-C", f"{remote}/box.git", "config", "http.receivepack", "true")
    git(tmp_path, "clone", "--quiet", f"{remote}/box.git", str(seed))
    (seed / "blob").write_bytes(blob)
    commit_and_push(seed, "first")
    with http_server(git_handler(remote)) as port, Watch(network(rule(port, "http")), project) as watch:
        url = f"http://host.loopback:{port}/box.git"
        cloned = watch.run(f"git clone --quiet {url} box && cd box && git log --format=%s", check=True)
        assert cloned.stdout == "first\n"
        assert (project / "box" / "blob").read_bytes() == blob
        pushed = watch.run(
            "cd box && head -c 2000000 /dev/urandom > more && git add more && "
            "git -c user.name=ada -c user.email=ada@example.org commit --quiet -m second && git push --quiet",
            env={"GIT_TERMINAL_PROMPT": "0"},
        )
        assert pushed.ok, pushed.stderr
        git(seed, "pull", "--quiet")
        assert (seed / "more").read_bytes() == (project / "box" / "more").read_bytes()
        (seed / "third").write_text("third")
        commit_and_push(seed, "third")
        fetched = watch.run("cd box && git pull --quiet && cat third && git fsck --strict", check=True)
        assert fetched.stdout.startswith("third")
        assert set(named(watch)) == {("http", "host.loopback", "allow")}
        refused = watch.run("git clone --quiet http://denied.example/box.git other")
        assert refused.exit_code == 128
        assert "Could not resolve host" in refused.stderr


def git(folder: Path, *arguments: str) -> None:
    """Run git outside, without anybody's own settings."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True, timeout=60)


def commit_and_push(folder: Path, message: str) -> None:
    """Commit everything in a clone outside, and push it."""
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=eve", "-c", "user.email=eve@example.org", "commit", "--quiet", "-m", message)
    git(folder, "push", "--quiet", "origin", "HEAD:main")
