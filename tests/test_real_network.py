"""What sockets inside a real sandbox get: verdicts, errnos, connections in progress, names, questions, records."""

from __future__ import annotations

import contextlib
import socket
import struct
import tempfile
import threading
from typing import TYPE_CHECKING, Any

import pytest

from jupyter_agentwatch import Watch
from jupyter_agentwatch.events import Connect, Control, Dns, Finding, Flow, Listen, Session
from tests.outside import LONG_S, last_step, recorded, wait_for_line
from tests.servers import (
    PRELUDE,
    Server,
    Slow,
    descriptors,
    echo,
    inside,
    network,
    read_all,
    rule,
    wait_descriptors,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.sandbox

GREETING = b"SSH-2.0-late\r\n"


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    """A watch without any network, for tests that leave it as it was."""
    with Watch(workspace=tmp_path_factory.mktemp("project")) as watch:
        yield watch


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def connects(watch: Watch) -> list[tuple[str, str, int, str, str, int]]:
    """Return (transport, address, port, verdict, rule, errno) of the last step's connects."""
    found = recorded(watch, Connect, last_step(watch))
    return [(e.transport, e.addr, e.port, e.verdict, e.rule, e.errno) for e in found]


def flows(watch: Watch, op: str) -> list[Flow]:
    """Return the flow records with this `op`."""
    return [event for event in recorded(watch, Flow) if event.op == op]


def follow(watch: Watch, op: str, count: int = 1) -> list[Flow]:
    """Wait until this many flow records with this `op` are there: each request is a round of the supervisor's loop."""
    found: list[Flow] = []
    for _ in range(2000):
        found = flows(watch, op)
        if len(found) >= count:
            return found
        watch.status()
    pytest.fail(f"only {len(found)} flows are {op}")


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
    assert recorded(closed, Finding) == []


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
got += [ask(socket.AF_UNIX, "own.sock"), ask(socket.AF_UNIX, "/tmp/own.sock"), ask(socket.AF_UNIX, chr(0) + "name")]
with socket.socket() as s:
    nobody = attempt(s.connect, ("127.0.0.1", 9))
tell([*got, asyncio.run(ask_async()), nobody])
"""
    assert inside(closed, source) == ["cba"] * 8 + ["ECONNREFUSED"]
    assert {(e[3], e[4]) for e in connects(closed)} == {("allow", "inside")}
    offered = recorded(closed, Listen, last_step(closed))
    assert {e.addr for e in offered if e.transport == "unix"} == {"own.sock", "/tmp/own.sock", "@name"}
    assert {e.addr for e in offered if e.transport == "tcp"} == {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert {e.op for e in offered} == {"bind", "listen"}
    assert all(e.verdict == "allow" for e in offered)


def test_a_socket_bears_the_name_that_it_was_given(closed: Watch) -> None:
    """The name of a UNIX socket is the path that was bound, so that multiprocessing can pass it on."""
    source = """
import multiprocessing
os.umask(0o077)
names = []
for name in ("short.sock", "/tmp/long.sock", chr(0) + "abstract"):
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
    assert inside(closed, source) == [
        *("short.sock", "ECONNREFUSED", "/tmp/long.sock", "ECONNREFUSED", "\0abstract", "ECONNREFUSED"),
        *({"key": "value"}, "0o700", "EADDRINUSE", "EROFS", "ENOENT", "OK"),
    ]
    offered = recorded(closed, Listen, last_step(closed))
    assert {(e.op, e.addr, e.basis) for e in offered if "sock" in e.addr or "@" in e.addr} == {
        ("bind", "short.sock", "claimed"),
        ("bind", "/tmp/long.sock", "claimed"),
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
    """Programs that ask for interfaces see the loopback alone; a change gets EPERM, whichever way."""
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
    assert inside(closed, source) == [[[1, "lo"]], [[2, "EPERM"]] * 3, "EINVAL"]


# Outcomes of an allowed connect


def test_a_closed_port_refuses(tmp_path: Path) -> None:
    """A connect to an allowed port without a server gets ECONNREFUSED exactly, and the flow says why it failed."""
    port = free_port()
    source = """
got = []
for timeout in (None, 0, LONG_S):
    with socket.socket() as s:
        s.settimeout(timeout)
        got.append(code(s.connect_ex((HOST, int(sys.argv[1])))))
tell(got)
"""
    with Watch(network(rule(port)), tmp_path) as watch:
        assert inside(watch, source, port) == ["ECONNREFUSED"] * 3
        found = flows(watch, "failed")
        assert [(e.flow, e.port, e.reason.split(":")[0]) for e in found] == [
            (flow, port, "ECONNREFUSED") for flow in (1, 2, 3)
        ]
        assert {(e.verdict, e.rule, e.errno, e.host) for e in recorded(watch, Connect)} == {
            ("allow", "network.rules[0]", -1, "host.loopback")
        }


def test_a_connect_that_nobody_answers_times_out(tmp_path: Path) -> None:
    """After connect_timeout_s a blocking connect gets ETIMEDOUT; one in progress ends unconnected."""
    source = """
there = (HOST, int(sys.argv[1]))
waiting = socket.socket()
waiting.setblocking(False)
got = [code(waiting.connect_ex(there))]
with socket.socket() as s:
    got.append(code(s.connect_ex(there)))
poll = select.poll()
poll.register(waiting, select.POLLOUT)
((_, events),) = poll.poll(LONG_S * 1000)
got += [bool(events & select.POLLERR), code(waiting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))]
got += [attempt(waiting.getpeername)]
tell(got)
"""
    with Slow() as slow, Watch(network(rule(slow.port), connect_timeout_s=0.2), tmp_path) as watch:
        assert inside(watch, source, slow.port) == ["EINPROGRESS", "ETIMEDOUT", True, "ECONNRESET", "ENOTCONN"]
        assert [e.reason.split(":")[0] for e in flows(watch, "failed")] == ["ETIMEDOUT"] * 2


def test_a_connect_in_progress_is_truly_in_progress(tmp_path: Path) -> None:
    """Until the outside answers, a non-blocking socket is not writable and not connected; then it is, without error."""
    source = """
there, mapped = (HOST, int(sys.argv[1])), ("::ffff:" + HOST, int(sys.argv[1]))
poll, pending, got = select.epoll(), {}, []
for family, bound, where in (
    (socket.AF_INET, "", there), (socket.AF_INET, "127.0.0.2", there),
    (socket.AF_INET6, "", mapped), (socket.AF_INET6, "::1", mapped),
):
    s = socket.socket(family)
    if bound:
        s.bind((bound, 0))
    s.setblocking(False)
    got.append([code(s.connect_ex(where)), code(s.connect_ex(where)), attempt(s.getpeername), attempt(s.send, b"x")])
    poll.register(s, select.EPOLLOUT)
    pending[s.fileno()] = (s, where)
blocked = socket.socket()
blocking = threading.Thread(target=blocked.connect, args=(there,))
blocking.start()
got.append(len(poll.poll(0)))
tell(got)
ready = {}
while len(ready) < 4:
    for fd, events in poll.poll(LONG_S):
        ready[fd] = events
        poll.modify(fd, 0)
got = [[bool(events & select.EPOLLOUT), bool(events & select.EPOLLERR)] for events in ready.values()]
for s, where in pending.values():
    got.append([code(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)), attempt(s.connect, where)])
    s.settimeout(LONG_S)
    got[-1].append(s.recv(100).decode())
blocking.join()
got.append(blocked.recv(100).decode())
tell(got)
"""
    with Slow() as slow, Watch(network(rule(slow.port)), tmp_path) as watch:
        running = watch.start(["python3", "-IS", "-c", PRELUDE + source, str(slow.port)])
        first = wait_for_line(running, b"\n")
        assert first.count(b'["EINPROGRESS", "EALREADY", "ENOTCONN", "EAGAIN"]') == 4
        assert first.endswith(b"0]\n")
        slow.free()
        result = running.wait(LONG_S)
        assert result.ok, result.stderr
        said = result.stdout.splitlines()[-1]
        assert said.count("[true, false]") == 4
        assert said.count(GREETING.decode().replace("\r\n", "\\r\\n")) == 5
        assert said.count('["0", "OK", ') + said.count('["0", "EISCONN", ') == 4
        assert [e.protocol for e in follow(watch, "named", 5)] == ["ssh"] * 5
        assert len([e for e in recorded(watch, Connect) if e.verdict == "allow"]) == 5


def test_a_caller_that_gives_up_leaves_nothing(tmp_path: Path) -> None:
    """Sockets closed, reset or re-used while they are in progress cost the supervisor nothing in the end."""
    source = """
there = (HOST, int(sys.argv[1]))
libc = ctypes.CDLL(None, use_errno=True)
kept, got = [], []
for index in range(30):
    s = socket.socket()
    s.setblocking(False)
    got.append(code(s.connect_ex(there)))
    if index % 3 == 0:
        s.close()
    elif index % 3 == 1:
        s.shutdown(socket.SHUT_RDWR)
        kept.append(s)
    else:
        got.append(code(libc.connect(s.fileno(), bytes(16), 16)))
        s.bind(("127.0.0.1", 0))
        s.listen()
        kept.append(s)
tell(sorted(set(got)))
"""
    with Slow() as slow, Watch(network(rule(slow.port), connect_timeout_s=0.3), tmp_path) as watch:
        before = descriptors(watch)
        assert inside(watch, source, slow.port) == ["0", "EINPROGRESS"]
        assert len(follow(watch, "failed", 30)) == 30
        wait_descriptors(watch, before)
        assert recorded(watch, Finding) == []


def test_dials_that_nobody_answers_are_bounded(tmp_path: Path) -> None:
    """An agent that leaves connects behind gets EAGAIN in the end, so that the supervisor keeps its descriptors."""
    source = """
there, said, lock = (HOST, int(sys.argv[1])), [], threading.Lock()
def many():
    for _ in range(60):
        with socket.socket() as s:
            s.setblocking(False)
            number = s.connect_ex(there)
        with lock:
            said.append(code(number))
threads = [threading.Thread(target=many) for _ in range(10)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
tell([said.count("EINPROGRESS"), said.count("EAGAIN")])
"""
    with Slow() as slow, Watch(network(rule(slow.port)), tmp_path) as watch:
        before = descriptors(watch)
        assert inside(watch, source, slow.port) == [512, 88]
        assert descriptors(watch) <= before + 2 * 512 + 20
        assert watch.kill("enough").survivors == 0


def test_what_is_in_use_cannot_be_connected_again(tmp_path: Path) -> None:
    """A connected socket gets EISCONN, a listening one too; a dissolved one can be used again."""
    source = """
there = (HOST, int(sys.argv[1]))
libc = ctypes.CDLL(None)
with socket.socket() as s, socket.create_server(("127.0.0.1", 0)) as server:
    s.connect(there)
    got = [attempt(s.connect, there), attempt(s.connect, ("127.0.0.1", 9)), attempt(server.connect, there)]
    got.append(libc.connect(s.fileno(), bytes(16), 16))
    s.connect(there)
    s.sendall(b"again")
    s.shutdown(socket.SHUT_WR)
    got.append(s.recv(100).decode())
tell(got)
"""
    with Server(echo) as server, Watch(network(rule(server.port)), tmp_path) as watch:
        assert inside(watch, source, server.port) == ["EISCONN", "EISCONN", "EISCONN", 0, "again"]
        assert sorted(server.wait_said(2)) == [0, 5]


def test_the_peer_that_is_seen_is_the_gateway(tmp_path: Path) -> None:
    """The peer's name is the gateway's loopback port, not the destination: the record has the true one."""
    source = """
with socket.create_connection((HOST, int(sys.argv[1]))) as s:
    tell(s.getpeername())
"""
    with Server(echo) as server, Watch(network(rule(server.port)), tmp_path) as watch:
        host, port = inside(watch, source, server.port)
        assert host == "127.0.0.1"
        assert port != server.port
        assert [(e.addr, e.port, e.host) for e in recorded(watch, Connect)] == [
            ("192.0.0.8", server.port, "host.loopback")
        ]


def test_one_port_on_two_addresses_is_two_callers(tmp_path: Path) -> None:
    """Two sockets with the same port on different loopback addresses each get the server that they asked for."""
    source = """
first, second = (HOST, int(sys.argv[1])), (HOST, int(sys.argv[2]))
wrong = 0
for _ in range(50):
    with socket.socket() as a, socket.socket() as b:
        a.bind(("127.0.0.2", 0))
        b.bind(("127.0.0.3", a.getsockname()[1]))
        for s in (a, b):
            s.setblocking(False)
        a.connect_ex(first), b.connect_ex(second)
        for s, expected in ((a, b"SSH-2.0-first"), (b, b"SSH-2.0-second")):
            s.settimeout(LONG_S)
            wrong += s.recv(100) != expected
tell(wrong)
"""

    def say(text: bytes) -> Any:
        return lambda connection: (connection.sendall(text), read_all(connection))[1]

    first, second = Server(say(b"SSH-2.0-first")), Server(say(b"SSH-2.0-second"))
    with first, second, Watch(network(rule(first.port), rule(second.port)), tmp_path) as watch:
        assert inside(watch, source, first.port, second.port) == 0
        assert {(e.port, e.server_name, e.protocol) for e in flows(watch, "named")} == {
            (first.port, "", "ssh"),
            (second.port, "", "ssh"),
        }


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
    with Server(read_all) as server, Watch(network(rule(server.port, protocol)), tmp_path) as watch:
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
        with Watch(policy, tmp_path) as watch:
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


# Names


def test_names_are_answered_as_the_policy_says(tmp_path: Path) -> None:
    """An allowed name has its address, a denied one fails with a record, one that does not exist fails cleanly."""
    source = """
def look(name):
    try:
        found = socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)
        return sorted({entry[4][0] for entry in found})
    except socket.gaierror as error:
        return {socket.EAI_AGAIN: "EAI_AGAIN", socket.EAI_NONAME: "EAI_NONAME", socket.EAI_FAIL: "EAI_FAIL",
                socket.EAI_NODATA: "EAI_NODATA"}.get(error.errno, error.errno)
    except UnicodeError:
        return "UnicodeError"
tell([look(n) for n in ("host.loopback", "localhost", "HOST.LOOPBACK.", "denied.example", "missing.invalid",
                        "x" * 60 + ".example", "a" * 64 + ".example")])
"""
    rules = rule(80), {"host": "*.invalid", "ports": [80]}
    with Watch(network(*rules), tmp_path) as watch:
        got = inside(watch, source)
        assert got[:3] == [["192.0.0.8"], ["127.0.0.1", "::1"], ["192.0.0.8"]] or got[1] == ["127.0.0.1"]
        assert got[0] == got[2] == ["192.0.0.8"]
        assert all(isinstance(each, str) for each in got[3:])
        found = recorded(watch, Dns)
        denied = {(e.rcode, e.rule) for e in found if e.qname == "denied.example"}
        assert denied == {("REFUSED", "no-rule")}
        assert {e.verdict for e in found if e.qname == "denied.example"} == {"deny"}
        asked = [e.rcode for e in found if e.qname == "missing.invalid"]
        assert asked[0] == "PENDING"
        assert set(asked) - {"PENDING"} <= {"NXDOMAIN", "SERVFAIL", "NOERROR"}
        assert not [e for e in found if len(e.qname.split(".")[0]) > 63]
        entry = watch.run("getent hosts host.loopback; getent hosts denied.example")
        assert (entry.stdout.split(), entry.exit_code) == (["192.0.0.8", "host.loopback"], 2)
        assert recorded(watch, Finding) == []


def test_raw_queries_cannot_hurt_the_name_server(tmp_path: Path) -> None:
    """Over UDP and TCP, hostile names and broken messages get an rcode or nothing, and the next query is answered."""
    source = """
def query(name, kind=1, ident=7):
    return struct.pack(">6H", ident, 256, 1, 0, 0, 0) + name + bytes([0]) + struct.pack(">2H", kind, 1)
def label(text):
    return bytes([len(text)]) + text
good = query(label(b"host") + label(b"loopback"))
def udp(wire):
    with socket.socket(type=socket.SOCK_DGRAM) as s:
        s.connect(("127.0.0.1", 53))
        s.settimeout(LONG_S)
        s.send(wire)
        s.send(good)  # whatever the first one gets, this one is answered
        while True:
            answer = s.recv(4096)
            if answer[:2] == good[:2] and answer.endswith(bytes([192, 0, 0, 8])):
                return True
def tcp(*wires):
    with socket.create_connection(("127.0.0.1", 53), LONG_S) as s:
        for wire in wires:
            s.sendall(struct.pack(">H", len(wire)) + wire)
        got = []
        for _ in wires:
            size = s.recv(2, socket.MSG_WAITALL)
            got.append(s.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)[3] & 15 if size else "closed")
        return got
hostile = [
    query(label(bytes([97, 0, 98])) + label(b"example"), ident=1), query(label(b"a" * 63) * 3, ident=2),
    query(label(b"a" * 63) * 5, ident=3), query(bytes([192, 12]), ident=4), query(label(b"ab;rm -rf"), ident=5),
    query(label(b"denied"), 255, 6), bytes(12), bytes(3), b"", os.urandom(600), query(label(b"t"), 16, 8) + bytes(400),
]
tell([all([udp(wire) for wire in hostile]), tcp(good, query(label(b"denied"))), tcp(bytes(11) + good), tcp(good)])
"""
    with Watch(network(rule(80)), tmp_path) as watch:
        got = inside(watch, source)
        assert (got[0], got[1], got[3]) == (True, [0, 5], [0])
        assert recorded(watch, Finding) == []
        names = {e.qname for e in recorded(watch, Dns)}
        assert {"host.loopback", "denied"} <= names
        assert any("\\000" in name for name in names)


def test_a_tunnel_over_names_is_refused_and_on_record(closed: Watch) -> None:
    """Of a flood of queries that carry data in their labels, none is resolved and every one is on record."""
    source = """
s = socket.socket(type=socket.SOCK_DGRAM)
s.connect(("127.0.0.1", 53))
s.settimeout(LONG_S)
rcodes = []
for index in range(300):
    name = b"%08x" % index
    wire = struct.pack(">6H", index, 256, 1, 0, 0, 0) + bytes([8]) + name + bytes([6]) + b"tunnel" + bytes([7])
    s.send(wire + b"example" + bytes([0]) + struct.pack(">2H", 16, 1))
    rcodes.append(s.recv(600)[3] & 15)
tell(rcodes)
"""
    assert set(inside(closed, source)) == {5}
    found = [e for e in recorded(closed, Dns) if e.qname.endswith(".tunnel.example")]
    assert {e.qname for e in found} == {f"{index:08x}.tunnel.example" for index in range(300)}
    assert {(e.verdict, e.rcode, e.qtype) for e in found} == {("deny", "REFUSED", "TXT")}


def test_a_query_is_never_put_down_to_who_had_the_port_before(closed: Watch) -> None:
    """A query by sendmsg, which is not seen, from a port that another step has used is that of who has bound it now."""
    source = """
s = socket.socket(type=socket.SOCK_DGRAM)
s.bind(("127.0.0.1", 40053))
s.settimeout(LONG_S)
name = sys.argv[1].encode()
wire = struct.pack(">6H", 7, 256, 1, 0, 0, 0) + bytes([len(name)]) + name + bytes([0]) + struct.pack(">2H", 1, 1)
s.sendto(wire, ("127.0.0.1", 53)) if name == b"first" else s.sendmsg([wire], [], 0, ("127.0.0.1", 53))
tell(s.recv(600)[3] & 15)
"""
    steps = {}
    for name in ("first", "second"):
        assert inside(closed, source, name) == 5
        steps[name] = last_step(closed)
    found = {e.qname: e.step for e in recorded(closed, Dns) if e.qname in steps}
    assert found == steps


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


# A person's word


ASK = """
with socket.socket() as s:
    tell(code(s.connect_ex((HOST, int(sys.argv[1])))))
"""


@pytest.mark.parametrize(("allow", "outcome"), [(True, "0"), (False, "EACCES")])
def test_a_connect_waits_for_a_persons_word(tmp_path: Path, allow: bool, outcome: str) -> None:
    """With the verdict ask the call is held until the answer, and the record names who gave it."""
    with Server(echo) as server, Watch(network(rule(server.port, verdict="ask")), tmp_path) as watch:
        running = watch.start(["python3", "-IS", "-c", PRELUDE + ASK, str(server.port)])
        (ident, text) = wait_for_ask(watch)
        assert text == f"step 1: connect to host.loopback port {server.port}"
        assert server.said == []
        watch.answer(ident, allow=allow)
        assert running.wait(LONG_S).stdout.strip() == f'"{outcome}"'
        asked, answered = recorded(watch, Connect)
        assert (asked.verdict, asked.rule, asked.flow) == ("ask", "network.rules[0]", answered.flow)
        assert answered.verdict == ("allow" if allow else "deny")
        assert answered.rule.startswith("network.rules[0]: kernel (pid ")
        assert [(e.op, e.detail.split()[-1]) for e in recorded(watch, Control) if e.op == "answer"] == [
            ("answer", "allow" if allow else "deny")
        ]
        assert watch.status().asks == {}
        if allow:
            assert server.wait_said(1) == [0]
        else:
            assert flows(watch, "named") == flows(watch, "closed") == []


def wait_for_ask(watch: Watch) -> tuple[int, str]:
    """Wait until a call is held for a person; return its number and text."""
    for _ in range(5000):
        asks = watch.status().asks
        if asks:
            return next(iter(asks.items()))
    pytest.fail("nothing was asked")


def test_a_question_that_nobody_answers_is_a_no(tmp_path: Path) -> None:
    """After ask_timeout_s the connect gets EACCES, and the record says that nobody answered; a name likewise."""
    source = (
        ASK
        + """
try:
    socket.getaddrinfo("asked.example", 80)
except socket.gaierror:
    tell("no name")
"""
    )
    port = free_port()
    rules = rule(port, verdict="ask"), rule(80, verdict="ask", host="asked.example")
    with Watch(network(*rules, ask_timeout_s=0.1), tmp_path) as watch:
        assert inside(watch, source, port) == "no name"
        assert [(e.verdict, e.rule) for e in recorded(watch, Connect) if e.transport == "tcp"] == [
            ("ask", "network.rules[0]"),
            ("deny", "network.rules[0]: nobody answered in 0.1 s"),
        ]
        assert {(e.rcode, e.verdict) for e in recorded(watch, Dns) if e.qname == "asked.example"} == {
            ("PENDING", "ask"),
            ("REFUSED", "deny"),
        }


def test_a_held_connect_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """While one connect waits for a person, other calls are answered; a kill ends the wait."""
    with Server(echo) as server, contextlib.ExitStack() as stack:
        policy = network(rule(server.port, verdict="ask"), rule(free_port()))
        watch = stack.enter_context(Watch(policy, tmp_path))
        watch.start(["python3", "-IS", "-c", PRELUDE + ASK, str(server.port)])
        wait_for_ask(watch)
        assert watch.run("echo alive > file; cat file").stdout == "alive\n"
        assert watch.kill("no word").survivors == 0
        assert server.said == []
