"""Large and odd traffic through a real sandbox's gateway: urgent data, slow readers, IPv6, event loops, crowds."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

import jupyter_agentwatch
from jupyter_agentwatch import Watch
from jupyter_agentwatch.events import Finding, Flow
from tests.outside import recorded, wait_for_line
from tests.servers import PRELUDE, Server, Slow, echo, inside, network, read_all, rule, wait_descriptors

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]


def monitor_findings(watch: Watch) -> list[Finding]:
    """Return what the monitor says of itself; what detectors think of a test's traffic is another matter."""
    return [event for event in recorded(watch, Finding) if event.rule.startswith("agentwatch.monitor")]


def closed_flows(watch: Watch) -> list[Flow]:
    """Return the last records of all flows that have ended."""
    return [event for event in recorded(watch, Flow) if event.op == "closed"]


# Urgent data, slow readers


def test_urgent_data_disturbs_no_other_byte(tmp_path: Path) -> None:
    """Bytes sent with MSG_OOB in both directions are dropped or, as natively, become ordinary; all others arrive."""
    source = """
with socket.create_connection((HOST, int(sys.argv[1]))) as s:
    s.send(b"!", socket.MSG_OOB)
    for piece in (b"one ", b"two ", b"three"):
        s.sendall(piece)
        s.send(b"!", socket.MSG_OOB)
    s.shutdown(socket.SHUT_WR)
    got = b""
    while piece := s.recv(4096):
        got += piece
tell(got.decode())
"""

    def answer(connection: socket.socket) -> bytes:
        got = read_all(connection)
        for piece in (b"four ", b"five"):
            connection.sendall(piece)
            connection.send(b"?", socket.MSG_OOB)
        return got

    with Server(answer) as server, Watch(network(rule(server.port)), tmp_path) as watch:
        assert inside(watch, source, server.port).replace("?", "") == "four five"
        (said,) = server.wait_said(1)
        assert said.replace(b"!", b"") == b"one two three"
        assert monitor_findings(watch) == []


def test_slow_readers_cost_no_memory(tmp_path: Path) -> None:
    """Thirty-two flows whose reader does not read: the supervisor keeps little of them, and all arrives in the end."""
    each, count = 8 << 20, 32
    content = hashlib.shake_256(b"slow").digest(each)
    source = """
import hashlib
socks = [socket.create_connection((HOST, int(sys.argv[1]))) for _ in range(int(sys.argv[2]))]
for s in socks:
    s.sendall(b"go\\n")
    assert s.recv(1)
print("begun", flush=True)
sys.stdin.readline()
digests = set()
for s in socks:
    got = hashlib.sha256(b"0")
    while piece := s.recv(1 << 20):
        got.update(piece)
    digests.add(got.hexdigest())
tell(sorted(digests))
"""

    def push(connection: socket.socket) -> None:
        connection.recv(3)
        connection.sendall(b"0" + content)

    with Server(push) as server, Watch(network(rule(server.port)), tmp_path) as watch:
        supervisor = psutil.Process(watch.status().pid)
        before = supervisor.memory_info().rss
        argv = ["python3", "-IS", "-c", PRELUDE + source, str(server.port), str(count)]
        running = watch.start(argv, stdin=True, timeout=60)
        wait_for_line(running, b"begun")
        for _ in range(20):  # rounds of the supervisor's loop, which reads what it can
            watch.status()
        grown = supervisor.memory_info().rss - before
        running.write(b"\n")
        done = running.wait(60)
        assert done.ok, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == [hashlib.sha256(b"0" + content).hexdigest()]
        assert grown < count * each // 4


# Event loops


def test_sockets_that_an_epoll_already_watches_connect(tmp_path: Path) -> None:
    """Registered edge-triggered before the connect, as event loops do: each becomes writable once, connected truly."""
    source = """
fast, slow, count = map(int, sys.argv[1:])
poller, socks = select.epoll(), {}
for k in range(count):
    s = socket.socket()
    s.setblocking(False)
    poller.register(s, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
    socks[s.fileno()] = s
poller.poll(0)  # that they are not connected yet
got = {code(s.connect_ex((HOST, slow if k % 2 else fast))) for k, s in enumerate(socks.values())}
print("begun", flush=True)
ready, said = set(), {}
while len(said) < count:
    for fd, events in poller.poll(20):
        s = socks[fd]
        if fd not in ready:
            assert events & select.EPOLLOUT, events
            assert not s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            s.getpeername()
            s.sendall(b"%d" % fd)
            s.shutdown(socket.SHUT_WR)
            ready.add(fd)
        try:
            while piece := s.recv(100):
                said[fd] = said.get(fd, b"") + piece
        except BlockingIOError:
            pass
right = sum(said[fd] in (b"SSH-2.0-late\\r\\n", b"%d" % fd) for fd in socks)
tell([sorted(got), right])
"""
    with (
        Server(echo) as fast,
        Slow() as slow,
        Watch(network(rule(fast.port), rule(slow.port)), tmp_path) as watch,
    ):
        argv = ["python3", "-IS", "-c", PRELUDE + source, str(fast.port), str(slow.port), "40"]
        running = watch.start(argv, timeout=60)
        wait_for_line(running, b"begun")
        slow.free()
        done = running.wait(60)
        assert done.ok, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == [["EINPROGRESS"], 40]


CROWD: Final = """
import asyncio
there = sys.argv[1], int(sys.argv[2])
async def one():
    reader, writer = await asyncio.open_connection(*there)
    line = await reader.readline()
    writer.close()
    return line
async def main():
    work = [asyncio.create_task(one()) for _ in range(200)]
    begun = 0
    while begun < 200:
        await asyncio.sleep(0)
        begun = len(os.listdir("/proc/self/fd")) - before
    print("begun", flush=True)
    return await asyncio.gather(*work)
before = len(os.listdir("/proc/self/fd")) + 3  # the loop's own
tell(len([line for line in asyncio.run(main()) if line == b"SSH-2.0-late\\r\\n"]))
"""


@pytest.mark.parametrize("host", ["192.0.0.8", "host.loopback"])
def test_two_hundred_slow_dials_at_once_hold_no_loop_up(tmp_path: Path, host: str) -> None:
    """All of a program's 200 connects have returned before the first dial ends; then each gets its connection."""
    with Slow() as slow, Watch(network(rule(slow.port)), tmp_path) as watch:
        running = watch.start(["python3", "-IS", "-c", PRELUDE + CROWD, host, str(slow.port)], timeout=60)
        wait_for_line(running, b"begun")
        assert closed_flows(watch) == []
        slow.free()
        done = running.wait(60)
        assert done.ok, done.stderr
        assert done.stdout.splitlines()[-1] == "200"
        assert monitor_findings(watch) == []


# Many of everything


def test_many_connections_and_events_leave_no_memory_behind(tmp_path: Path) -> None:
    """After the first hundreds of connections and thousands of events, further ones make the supervisor no larger."""
    source = """
for k in range(int(sys.argv[2])):
    with socket.create_connection((HOST, int(sys.argv[1]))) as s:
        s.sendall(b"GET / HTTP/1.1\\r\\nHost: host.loopback\\r\\n\\r\\n")
        s.recv(100)
    for n in range(10):
        open("file", "w").close()
tell("done")
"""

    def answer(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

    with Server(answer) as server, Watch(network(rule(server.port, "http")), tmp_path) as watch:
        supervisor = psutil.Process(watch.status().pid)
        assert inside(watch, source, server.port, 300) == "done"
        files, memory = len(os.listdir(f"/proc/{supervisor.pid}/fd")), supervisor.memory_info().rss
        for _ in range(2):
            assert inside(watch, source, server.port, 300) == "done"
        wait_descriptors(watch, files)
        assert supervisor.memory_info().rss - memory < 4 << 20
        assert sum(watch.status().counts.values()) > 9_000


# In network namespaces of their own


GROUND: Final = """
import contextlib, errno, fcntl, json, os, socket, struct, sys, threading
from pathlib import Path
from jupyter_agentwatch import Watch
from jupyter_agentwatch.supervisor.connecting import connect_at_once
from tests.outside import *
from tests.servers import *
from jupyter_agentwatch.events import Connect, Finding
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
    fcntl.ioctl(asked, 0x8914, struct.pack("=16sH14x", b"lo", 0x49))  # SIOCSIFFLAGS: up
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as asked:
    fcntl.ioctl(asked, 0x8916, struct.pack("=16sIi", socket.inet_pton(socket.AF_INET6, "2001:db8::1"), 128, 1))
RUNG, WORKSPACE = sys.argv[1], Path(sys.argv[2])
"""


def in_a_namespace(source: str, rung: str, workspace: Path) -> Any:
    """Run Python in a network namespace of its own, where it may set what it likes; return the JSON printed last."""
    root = str(Path(jupyter_agentwatch.__file__).parents[1])
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", GROUND + source, rung, str(workspace)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


IPV6: Final = """
program = '''
fast, digest = int(sys.argv[1]), []
for block in (True, False):
    s = socket.socket(socket.AF_INET6)
    s.setblocking(block)
    error = s.connect_ex(("2001:db8::1", fast))
    select.select([], [s], [], 20)
    s.setblocking(True)
    s.sendall(b"x" * 100000)
    s.shutdown(socket.SHUT_WR)
    got = 0
    while piece := s.recv(1 << 16):
        got += len(piece)
    digest.append([code(error) if error else "OK", got])
other = socket.socket(socket.AF_INET6)
digest.append(attempt(other.connect, ("2001:db8:1::1", fast)))
tell(digest)
'''
listening = None
while listening is None:  # an address can be used a moment after it was given
    with contextlib.suppress(OSError):
        listening = socket.create_server(("2001:db8::1", 0), family=socket.AF_INET6)
def serve():
    for _ in range(2):
        with listening.accept()[0] as connection:
            echo(connection)
threading.Thread(target=serve).start()
port = listening.getsockname()[1]
policy = {"isolation": RUNG, "network": {"rules": [{"cidr": "2001:db8::/64", "ports": [port]}]}}
with Watch(policy, WORKSPACE) as watch:
    got = inside(watch, program, port)
    seen = [(e.addr, e.verdict, e.errno) for e in recorded(watch, Connect) if e.port == port]
print(json.dumps([got, seen]))
"""


def test_ipv6_destinations_are_reached_and_judged(tmp_path: Path, rung: str) -> None:
    """A blocking and a non-blocking connect to an IPv6 address of the policy work; another network is denied."""
    got, seen = in_a_namespace(IPV6, rung, tmp_path)
    assert got == [["OK", 100_000], ["EINPROGRESS", 100_000], "EACCES"]
    assert seen == [["2001:db8::1", "allow", -1]] * 2 + [["2001:db8:1::1", "deny", 13]]


NO_FAST_OPEN: Final = """
ORDINARY = '''
import asyncio
fast, slow = map(int, sys.argv[1:])
def blocking():
    with socket.create_connection((HOST, fast)) as s:
        s.sendall(b"blocking")
        s.shutdown(socket.SHUT_WR)
        return s.recv(64, socket.MSG_WAITALL).decode()
async def one(k):
    reader, writer = await asyncio.open_connection(HOST, fast)
    writer.write(b"%d" % k)
    writer.write_eof()
    got = await reader.read()
    writer.close()
    return got == b"%d" % k
async def late():
    before = len(os.listdir("/proc/self/fd"))
    begun = [asyncio.create_task(asyncio.open_connection(HOST, slow)) for _ in range(3)]
    while len(os.listdir("/proc/self/fd")) < before + 3:
        await asyncio.sleep(0)
    print("begun", flush=True)
    return [(await (await each)[0].readline()).decode() for each in begun]
async def many():
    return sum(await asyncio.gather(*(one(k) for k in range(100))))
tell([blocking(), asyncio.run(many()), asyncio.run(late())])
os._exit(0)
'''
UNANSWERED = '''
from concurrent.futures import ThreadPoolExecutor
def far(_):  # answers of the gateway count as coming from too far away
    s = socket.socket()
    s.setsockopt(0, 21, 255)
    return attempt(s.connect, (HOST, int(sys.argv[1])))
with ThreadPoolExecutor(80) as pool:
    work = pool.map(far, range(80))
    print("begun", flush=True)
    tell(sorted(set(work)))
'''
Path("/proc/sys/net/ipv4/tcp_fastopen").write_text("0")
told = []
with Server(echo) as server, Slow() as slow, socket.socket() as tried:
    told.append(connect_at_once(tried, "127.0.0.1", server.port) == errno.EOPNOTSUPP)
    with Watch({**network(rule(server.port), rule(slow.port)), "isolation": RUNG}, WORKSPACE) as watch:
        argv = ["python3", "-IS", "-c", PRELUDE + ORDINARY, str(server.port), str(slow.port)]
        running = watch.start(argv, timeout=60)
        wait_for_line(running, b"begun")
        slow.free()
        done = running.wait(60)
        told.append(json.loads(done.stdout.splitlines()[-1]) if done.ok else done.stderr)
        argv = ["python3", "-IS", "-c", PRELUDE + UNANSWERED, str(server.port)]
        wait_for_line(watch.start(argv, timeout=60), b"begun")
        told.append(watch.run("touch a b c").ok)
        watch.suspend()
        watch.resume()
        told.append(watch.run(["true"]).ok)
        told.append([e.rule for e in recorded(watch, Finding) if e.rule.startswith("agentwatch.monitor")])
        killed = watch.kill("test")
        told.append([killed.survivors, killed.note])
print(json.dumps(told))
"""


def test_without_tcp_fast_open_connects_work_and_hold_nobody_up(tmp_path: Path, rung: str) -> None:
    """The machine has it off: blocking, polled and parked connects work, and ones that hang keep nobody waiting."""
    told = in_a_namespace(NO_FAST_OPEN, rung, tmp_path)
    assert told[0]
    assert told[1] == ["blocking", 100, ["SSH-2.0-late\r\n"] * 3]
    assert told[2:] == [True, True, [], [0, ""]]
