"""How an allowed connect ends: refused, timed out, in progress, given up, or held for a person's word."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from jupyter_agentwatch import Watch
from jupyter_agentwatch.events import Connect, Control, Dns, Finding
from tests.outside import LONG_S, NEVER_STOPPED, flows, follow, recorded, wait_for_line
from tests.servers import (
    PRELUDE,
    Server,
    Slow,
    descriptors,
    echo,
    free_port,
    inside,
    network,
    read_all,
    rule,
    wait_descriptors,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]


GREETING = b"SSH-2.0-late\r\n"


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
        assert [each.title for each in recorded(watch, Finding) if each.rule.startswith("agentwatch.")] == []


def test_dials_that_nobody_answers_are_bounded(tmp_path: Path, rung: str) -> None:
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
        each = 3 if rung == "B" else 2  # on rung B the supervisor keeps what it made until it has a peer
        assert descriptors(watch) <= before + each * 512 + 20
        assert watch.kill("enough").survivors == 0


@pytest.mark.rungs("A")  # on rung B nobody can take a socket back that has had a peer
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
    policy = network(rule(first.port), rule(second.port)) | NEVER_STOPPED
    with first, second, Watch(policy, tmp_path) as watch:
        assert inside(watch, source, first.port, second.port) == 0
        assert {(e.port, e.server_name, e.protocol) for e in flows(watch, "named")} == {
            (first.port, "", "ssh"),
            (second.port, "", "ssh"),
        }


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
        assert [(e.verdict, e.rule) for e in recorded(watch, Connect) if e.transport == "tcp" and e.port != 53] == [
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
