"""What sockets get that stay inside the sandbox, or should: refusals, the sandbox's own loopback, datagrams."""

from __future__ import annotations

import socket
import tempfile
from typing import TYPE_CHECKING

import pytest

from jupyter_agentwatch import Watch
from jupyter_agentwatch.events import Finding, Listen
from tests.outside import LONG_S, connects, last_step, recorded, wait_for_line
from tests.servers import (
    PRELUDE,
    inside,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]


# Refusals


@pytest.mark.parametrize(
    ("host", "family", "address"),
    [
        ("198.51.100.7", "AF_INET", "198.51.100.7"),
        ("2001:db8::1", "AF_INET6", "2001:db8::1"),
        ("::ffff:198.51.100.7", "AF_INET6", "198.51.100.7"),
        ("192.0.0.8", "AF_INET", "192.0.0.8"),
        ("169.254.169.254", "AF_INET", "169.254.169.254"),
    ],
)
def test_a_connect_that_no_rule_allows_gets_eacces(closed: Watch, host: str, family: str, address: str) -> None:
    """A blocking and a non-blocking connect to the outside both get EACCES, and each is on record as denied."""
    source = """
host, family = sys.argv[1], getattr(socket, sys.argv[2])
got = []
for timeout in (None, 0):
    with socket.socket(family) as s:
        s.settimeout(timeout)
        got.append(code(s.connect_ex((host, 443))))
tell(got)
"""
    assert inside(closed, source, host, family) == ["EACCES", "EACCES"]
    assert connects(closed) == [("tcp", address, 443, "deny", "no-rule", 13)] * 2


def test_a_bad_connect_gets_what_the_kernel_would_say(closed: Watch) -> None:
    """Bad descriptors, addresses, sizes and families get the kernel's own errno, and are no error of the monitor."""
    source = """
libc = ctypes.CDLL(None, use_errno=True)
def connect(fd, raw, size=None):
    result = libc.connect(fd, raw, len(raw) if size is None else size)
    return code(ctypes.get_errno()) if result else "OK"
v4 = struct.pack("=HH4s8x", 2, 0x5000, bytes([198, 51, 100, 7]))
with socket.socket() as s, socket.socket(socket.AF_INET6) as s6, open("/dev/null") as file:
    tell([
        connect(999, v4), connect(-1, v4), connect(file.fileno(), v4),
        connect(s.fileno(), None, 16), connect(s.fileno(), ctypes.c_void_p(8), 16),
        connect(s.fileno(), v4, 0), connect(s.fileno(), v4, 1), connect(s.fileno(), v4, -1),
        connect(s.fileno(), v4 + bytes(200)), connect(s6.fileno(), v4 + bytes(12)), connect(s.fileno(), v4[:4]),
    ])
"""
    got = inside(closed, source.replace("connect(s.fileno(), None, 16), ", ""))
    assert got == [
        *("EBADF", "EBADF", "ENOTSOCK", "EFAULT", "EINVAL", "EINVAL", "EINVAL", "EINVAL"),
        *("EAFNOSUPPORT", "EINVAL"),
    ]
    assert [event.title for event in recorded(closed, Finding) if event.rule.startswith("agentwatch.")] == []


@pytest.mark.rungs("A")  # rung B shares these tables with the machine
def test_the_gateways_own_ports_are_closed_to_the_sandbox(closed: Watch) -> None:
    """The gateway's and the parking ports refuse direct connects, and nobody can bind or share them."""
    source = """
def listening(table):
    rows = [line.split() for line in open(table).read().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}
got = {}
for family, table, host, everywhere in (
    (socket.AF_INET, "/proc/net/tcp", "127.0.0.1", "0.0.0.0"), (socket.AF_INET6, "/proc/net/tcp6", "::1", "::")
):
    for port in listening(table) - {53}:
        said = []
        with socket.socket(family) as s:
            said.append(attempt(s.connect, (host, port)))
        for where in (host, everywhere):
            with socket.socket(family) as s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                said.append(attempt(s.bind, (where, port)))
        got[port] = said
libc = ctypes.CDLL(None, use_errno=True)
with socket.socket() as s:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    raw = struct.pack("=H", 0) + max(got).to_bytes(2, "big") + bytes(12)
    got["no family"] = [code(ctypes.get_errno()) if libc.bind(s.fileno(), raw, 16) else "OK"]
tell(got)
"""
    got = inside(closed, source)
    assert got.pop("no family") == ["EADDRINUSE"]
    assert len(got) == 4
    assert list(got.values()) == [["ECONNREFUSED", "EADDRINUSE", "EADDRINUSE"]] * 4
    assert {(e[3], e[4], e[5]) for e in connects(closed)} == {("deny", "gateway-port", 111)}
    tried = {(e.port, e.verdict, e.errno) for e in recorded(closed, Listen, last_step(closed))}
    assert {(int(port), "deny", 98) for port in got} <= tried


def test_a_connect_hidden_in_a_send_is_refused(closed: Watch) -> None:
    """MSG_FASTOPEN, in sendto, sendmsg and sendmmsg, and TCP_FASTOPEN_CONNECT get EOPNOTSUPP: none goes unrecorded."""
    source = """
FASTOPEN = 0x20000000
libc = ctypes.CDLL(None, use_errno=True)
with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as s:
    there = server.getsockname()
    tell([
        attempt(s.sendto, b"x", FASTOPEN, there), attempt(s.sendmsg, [b"x"], [], FASTOPEN, there),
        code(ctypes.get_errno()) if libc.sendmmsg(s.fileno(), bytes(64), 1, FASTOPEN) else "OK",
        attempt(s.setsockopt, socket.IPPROTO_TCP, 30, 1), attempt(s.getpeername),
    ])
"""
    assert inside(closed, source) == ["ENOTSUP"] * 4 + ["ENOTCONN"]  # EOPNOTSUPP by its first name
    assert connects(closed) == []


def test_what_leads_around_the_broker_does_not_exist(closed: Watch) -> None:
    """Raw, packet, MPTCP, SCTP, vsock and UNIX datagram sockets cannot be made."""
    source = """
def make(*arguments):
    socket.socket(*arguments).close()
tell([
    attempt(make, socket.AF_INET, socket.SOCK_RAW, 1), attempt(make, socket.AF_PACKET, socket.SOCK_RAW),
    attempt(make, socket.AF_INET, socket.SOCK_STREAM, 262), attempt(make, socket.AF_INET6, socket.SOCK_SEQPACKET, 132),
    attempt(make, socket.AF_VSOCK, socket.SOCK_STREAM), attempt(make, socket.AF_UNIX, socket.SOCK_DGRAM),
    attempt(make, socket.AF_ALG, socket.SOCK_SEQPACKET), attempt(make, socket.AF_NETLINK, socket.SOCK_RAW, 9),
    attempt(socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM),
])
"""
    assert inside(closed, source) == [
        *("EACCES", "EAFNOSUPPORT", "EPROTONOSUPPORT", "EACCES", "EAFNOSUPPORT", "EACCES", "EAFNOSUPPORT"),
        *("EPROTONOSUPPORT", "EACCES"),
    ]


# The sandbox's own loopback


def test_servers_inside_work_for_every_kind_of_client(closed: Watch) -> None:
    """Blocking, non-blocking, asyncio and UNIX clients reach servers inside, and every name offered is on record."""
    source = """
import asyncio
def once(server):
    peer, _ = server.accept()
    with peer:
        peer.sendall(peer.recv(100)[::-1])
def ask(family, where, timeout=LONG_S):
    with socket.socket(family) as server:
        server.bind(where)
        server.listen()
        threading.Thread(target=once, args=(server,)).start()
        with socket.socket(family) as client:
            client.settimeout(timeout)
            client.connect(server.getsockname())
            client.sendall(b"abc")
            return client.recv(100).decode()
async def serve(reader, writer):
    writer.write((await reader.read(100))[::-1])
    writer.close()
async def ask_async():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"abc")
    return (await reader.read()).decode()
got = [ask(socket.AF_INET, ("127.0.0.1", 0)), ask(socket.AF_INET, ("127.0.0.1", 0), None)]
got += [ask(socket.AF_INET6, ("::1", 0)), ask(socket.AF_INET6, ("::ffff:127.0.0.1", 0))]
got += [ask(socket.AF_UNIX, name) for name in ("own.sock", os.environ["TMPDIR"] + "/own.sock", chr(0) + "name")]
with socket.socket() as s:
    nobody = attempt(s.connect, ("127.0.0.1", 9))
tell([*got, asyncio.run(ask_async()), nobody])
"""
    assert inside(closed, source) == ["cba"] * 8 + ["ECONNREFUSED"]
    assert {(e[3], e[4]) for e in connects(closed)} == {("allow", "inside")}
    offered = recorded(closed, Listen, last_step(closed))
    tmp = closed.run('printf %s "$TMPDIR"').stdout
    assert {e.addr for e in offered if e.transport == "unix"} == {"own.sock", f"{tmp}/own.sock", "@name"}
    assert {e.addr for e in offered if e.transport == "tcp"} == {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert {e.op for e in offered} == {"bind", "listen"}
    assert all(e.verdict == "allow" for e in offered)


def test_a_socket_bears_the_name_that_it_was_given(closed: Watch, rung: str) -> None:
    """The name of a UNIX socket is the path that was bound, so that multiprocessing can pass it on."""
    source = """
import multiprocessing
os.umask(0o077)
names = []
for name in ("short.sock", os.environ["TMPDIR"] + "/long.sock", chr(0) + "abstract"):
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(name)
        got = s.getsockname()
        names.append(got.decode() if isinstance(got, bytes) else got)
        with socket.socket(socket.AF_UNIX) as early:
            names.append(attempt(early.connect, name))
with socket.socket(socket.AF_UNIX) as s, multiprocessing.Manager() as manager:
    shared = manager.dict()
    shared["key"] = "value"
    names += [dict(shared), oct(os.stat("short.sock").st_mode & 0o777), attempt(s.bind, "short.sock")]
    names += [attempt(s.bind, "/usr/new.sock"), attempt(s.bind, "missing/x"), attempt(s.bind, "x" * 107)]
tell(names)
"""
    tmp = closed.run('printf %s "$TMPDIR"').stdout
    assert inside(closed, source) == [
        *("short.sock", "ECONNREFUSED", f"{tmp}/long.sock", "ECONNREFUSED", "\0abstract", "ECONNREFUSED"),
        *({"key": "value"}, "0o700", "EADDRINUSE", "EACCES" if rung == "B" else "EROFS", "ENOENT", "OK"),
    ]
    offered = recorded(closed, Listen, last_step(closed))
    assert {(e.op, e.addr, e.basis) for e in offered if "sock" in e.addr or "@" in e.addr} == {
        ("bind", "short.sock", "claimed"),
        ("bind", f"{tmp}/long.sock", "claimed"),
        ("bind", "/usr/new.sock", "claimed"),
        ("bind", "@abstract", "verified"),
    }


def test_a_granted_folder_does_not_make_its_sockets_ours(tmp_path: Path) -> None:
    """Where the policy grants /dev/shm, a server of the host there is still refused, and one made inside is not."""
    source = """
server, client, s = (socket.socket(socket.AF_UNIX) for _ in range(3))
with server, client, s:
    server.bind(sys.argv[1] + ".inner")
    server.listen()
    tell([attempt(client.connect, sys.argv[1]), attempt(s.connect, sys.argv[1] + ".inner")])
"""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, socket.socket(socket.AF_UNIX) as server:
        name = f"{folder}/host.sock"
        server.bind(name)
        server.listen()
        with Watch({"filesystem": {"write": ["/dev/shm"]}}, tmp_path) as watch:
            assert inside(watch, source, name) == ["EACCES", "OK"]
            (denied,) = [event for event in connects(watch) if event[3] == "deny"]
            assert denied == ("unix", name, 0, "deny", "unix-socket", 13)


@pytest.mark.rungs("A")  # rung B has no datagrams
def test_datagrams_stay_inside(closed: Watch) -> None:
    """UDP works inside, with and without connect; to the outside it gets EACCES on record, and no way round leaves."""
    source = """
OUT = ("198.51.100.7", 53)
with socket.socket(type=socket.SOCK_DGRAM) as a, socket.socket(type=socket.SOCK_DGRAM) as b:
    a.bind(("127.0.0.1", 0))
    a.settimeout(LONG_S)
    payload = bytes(range(256)) * 200
    got = [b.sendto(payload, a.getsockname())]
    received, sender = a.recvfrom(1 << 16)
    got += [received == payload, a.sendto(b"", sender), b.recv(10).decode()]
    b.connect(a.getsockname())
    got += [b.send(b"plain"), a.recv(10).decode()]
    got += [b.sendmsg([b"un", b"seen"], [], 0, a.getsockname()), a.recv(10).decode()]
    got += [attempt(b.sendto, bytes(70000), a.getsockname())]
with socket.socket(type=socket.SOCK_DGRAM) as s, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s6:
    got += [attempt(s.sendto, b"x", OUT), attempt(s.connect, OUT), attempt(s.sendto, b"x", ("192.0.0.8", 53))]
    got += [attempt(s6.sendto, b"x", ("2001:db8::1", 53)), attempt(s.sendmsg, [b"x"], [], 0, OUT)]
tell(got)
"""
    assert inside(closed, source) == [
        *(51200, True, 0, "", 5, "plain", 6, "unseen", "EMSGSIZE"),
        *("EACCES", "EACCES", "EACCES", "EACCES", "ENETUNREACH"),
    ]
    denied = [event for event in connects(closed) if event[3] == "deny"]
    assert [(e[0], e[1], e[2], e[4], e[5]) for e in denied] == [
        ("udp", "198.51.100.7", 53, "udp", 13),
        ("udp", "198.51.100.7", 53, "udp", 13),
        ("udp", "192.0.0.8", 53, "udp", 13),
        ("udp", "2001:db8::1", 53, "udp", 13),
    ]


@pytest.mark.rungs("A")  # as above
def test_a_corked_datagram_shows_nothing_of_the_supervisor(closed: Watch) -> None:
    """A datagram that the supervisor sent is a copy: held back with UDP_CORK and MSG_ZEROCOPY, it stays what it was."""
    source = """
ZEROCOPY, CORK, SEGMENT = 0x4000000, 1, 103
with socket.socket(type=socket.SOCK_DGRAM) as to, socket.socket(type=socket.SOCK_DGRAM) as s:
    to.bind(("127.0.0.1", 0))
    to.settimeout(LONG_S)
    s.setsockopt(socket.SOL_SOCKET, 60, 1)
    s.setsockopt(socket.IPPROTO_UDP, SEGMENT, 1400)
    s.setsockopt(socket.IPPROTO_UDP, CORK, 1)
    s.sendto(b"A" * 50000, ZEROCOPY, to.getsockname())
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        for _ in range(20):
            other.sendto(b"B" * 50000, to.getsockname())
            to.recv(1 << 16)
    s.setsockopt(socket.IPPROTO_UDP, CORK, 0)
    got = b""
    while len(got) < 50000:
        got += to.recv(1 << 16)
tell([len(got), got.count(b"A")])
"""
    assert inside(closed, source) == [50000, 50000]


def test_interfaces_can_be_listed_and_not_changed(closed: Watch) -> None:
    """Programs that ask for interfaces see the loopback alone, or the machine's on B; a change gets EPERM, any way."""
    source = """
DOWN = struct.pack("=IHHII", 32, 16, 5, 1, 0) + struct.pack("=BxHiII", 0, 0, 1, 0, 1)  # RTM_NEWLINK with ACK: lo down
def change(send):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as s:
        s.settimeout(LONG_S)
        s.bind((0, 0))
        send(s)
        answer = s.recv(4096)
    length, kind, _, _, _, error = struct.unpack_from("=IHHIIi", answer)
    return [kind, code(-error)]
ways = [lambda s: s.sendto(DOWN, (0, 0)), lambda s: s.sendmsg([DOWN], [], 0, (0, 0)), lambda s: s.send(DOWN)]
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as s:
    other = attempt(s.sendto, DOWN, (1, 0))
tell([socket.if_nameindex(), [change(way) for way in ways], other])
"""
    seen = [[1, "lo"]] if closed.status().rung == "A" else [list(each) for each in socket.if_nameindex()]
    assert inside(closed, source) == [seen, [[2, "EPERM"]] * 3, "EINVAL"]


def test_a_connect_that_turns_blocking_does_not_hold_up_the_others(closed: Watch) -> None:
    """A socket whose O_NONBLOCK flips during connects to a full listener stops nobody else's calls."""
    source = """
import os
name, made = chr(0) + "full", []
listening = socket.socket(socket.AF_UNIX)
listening.bind(name)
listening.listen(0)
for _ in range(4):
    made.append(socket.socket(socket.AF_UNIX))
    made[-1].setblocking(False)
    made[-1].connect_ex(name)
flipping = socket.socket(socket.AF_UNIX)
for _ in range(90):  # more than may wait at a time
    if os.fork() == 0:
        while True:
            flipping.connect_ex(name)
if os.fork() == 0:
    while True:
        os.set_blocking(flipping.fileno(), False)
        os.set_blocking(flipping.fileno(), True)
tell("flipping")
sys.stdout.flush()
os.wait()
"""
    running = closed.start(["python3", "-c", PRELUDE + source])
    wait_for_line(running, b"flipping")
    assert all(closed.run(["true"], timeout=LONG_S).ok for _ in range(100))
    running.kill()
    assert running.wait(LONG_S).outcome == "killed"
