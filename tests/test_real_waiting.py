"""Nothing that a program or a client does makes the supervisor's threads wait, and one that hangs is ended."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from jupyter_agentwatch import Watch
from jupyter_agentwatch.audit.verify import verify_log
from jupyter_agentwatch.errors import AgentwatchError
from jupyter_agentwatch.events import Dns, Finding
from jupyter_agentwatch.wire.watches import kill_watch
from tests.outside import (
    LONG_S,
    closing,
    hold,
    inside_of,
    last_step,
    marked,
    members,
    recorded,
    wait_all_ended,
    wait_for_line,
)
from tests.servers import PRELUDE, Server, Slow, inside, network, rule

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]

ROOT = Path(__file__).parent.parent


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Watch]:
    """A watch without any network."""
    with Watch(workspace=tmp_path) as watch:
        yield watch


# Sockets that make others wait

LINGER = """
import contextlib, random
libc = ctypes.CDLL(None, use_errno=True)
way = sys.argv[1]
listening = socket.create_server(("127.0.0.1", 0), backlog=512)
listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
address, kept = listening.getsockname(), []

def full():
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    s.connect(address)
    kept.append(listening.accept()[0])
    with contextlib.suppress(BlockingIOError):
        while True:
            s.send(bytes(4096), socket.MSG_DONTWAIT)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3000))
    return s

def closing(fd, after):  # where ours is the last close, this thread waits, too
    until = time.perf_counter() + after
    while time.perf_counter() < until:
        pass
    os.close(fd)

raw = struct.pack("=H", 2) + address[1].to_bytes(2, "big") + bytes([127, 0, 0, 1]) + bytes(8)
for k in range(100):
    s = full()
    if way == "carried":
        lingering = s
        s, other = socket.socketpair(socket.AF_UNIX)
        socket.send_fds(other, [b"x"], [lingering.fileno()])
        lingering.close()
        other.close()
    fd = s.detach()
    threading.Thread(target=closing, args=(fd, random.random() * 6e-4), daemon=True).start()
    call = {"bind": lambda: libc.bind(fd, raw, 16), "connect": lambda: libc.connect(fd, raw, 16)}
    call.get(way, lambda: libc.listen(fd, 5))()
tell(len(kept))
os._exit(0)
"""


@pytest.mark.parametrize("way", ["listen", "bind", "connect", "carried"])
def test_a_socket_that_lingers_holds_nobody_up(closed: Watch, way: str) -> None:
    """A socket that its owner closes during a call, with SO_LINGER and data unsent, itself or queued in another one."""
    running = closed.start(["python3", "-IS", "-c", PRELUDE + LINGER, way], timeout=LONG_S)
    result = running.wait(LONG_S)
    assert result.ok, (result.outcome, result.stderr[-2000:])
    assert int(result.stdout) == 100
    closed.suspend()
    closed.resume()
    assert closed.run(["true"], timeout=LONG_S).ok
    assert recorded(closed, Finding) == []


UNANSWERED = """
def far(s):  # answers of the gateway count as coming from too far away
    s.setsockopt(*((41, 73) if s.family == socket.AF_INET6 else (0, 21)), 255)
s = socket.socket()
far(s)
print("connecting", flush=True)
tell(attempt(s.connect, (HOST, int(sys.argv[1]))))
"""


def test_an_answer_that_the_caller_drops_holds_nobody_up(tmp_path: Path) -> None:
    """A blocking connect whose socket drops the gateway's answer: other calls go on, and the caller gets ETIMEDOUT."""
    with Server(lambda _: None) as server, Watch(network(rule(server.port)), tmp_path) as watch:
        running = watch.start(["python3", "-IS", "-c", PRELUDE + UNANSWERED, str(server.port)], timeout=LONG_S)
        wait_for_line(running, b"connecting")
        server.wait_said(1)  # the dial has ended, hence the joining has begun
        assert watch.run("touch a b c").ok
        watch.suspend()
        watch.resume()
        assert running.wait(LONG_S).stdout.splitlines()[-1] == '"ETIMEDOUT"'


TURNING = """
import fcntl
def turn(s, after):
    until = time.perf_counter() + after
    while time.perf_counter() < until:
        pass
    fcntl.fcntl(s, fcntl.F_SETFL, 0)
for k in range(40):
    s = socket.socket()
    s.setblocking(False)
    threading.Thread(target=turn, args=(s, k * 25e-5), daemon=True).start()
    threading.Thread(target=attempt, args=(s.connect, (HOST, int(sys.argv[1]))), daemon=True).start()
    time.sleep(0.02)  # each is a try of its own: nothing tells when the supervisor has parked it
print("turned", flush=True)
threading.Event().wait()
"""


def test_a_connect_in_progress_that_turns_blocking_holds_nobody_up(tmp_path: Path) -> None:
    """O_NONBLOCK taken away while a dial is under way: the watch can still be asked, suspended and killed."""
    with Slow() as slow, Watch(network(rule(slow.port)), tmp_path) as watch:
        running = watch.start(["python3", "-IS", "-c", PRELUDE + TURNING, str(slow.port)], timeout=LONG_S)
        wait_for_line(running, b"turned")
        assert watch.status().running_steps == [running.step]
        watch.suspend()
        killed = watch.kill("test")
    assert (killed.survivors, killed.note) == (0, "")


# Threads that hang all the same

HANGING = """
import os, runpy, sys
_, root, fifo, module, name = sys.argv
sys.path.append(root)
sys.argv[:] = ["supervisor"]
place = __import__(module, fromlist=["x"])
for part in name.split(".")[:-1]:
    place = getattr(place, part)
def hang(*_arguments, **_named):
    os.read(os.open(fifo, os.O_RDONLY), 1)
setattr(place, name.split(".")[-1], hang)
runpy.run_module("jupyter_agentwatch.supervisor", run_name="__main__", alter_sys=True)
"""


def hanging(folder: Path, module: str, name: str) -> list[str]:
    """Return a supervisor that blocks in one of its functions until somebody writes to `folder`/fifo."""
    os.mkfifo(folder / "fifo")
    argv = (str(ROOT), str(folder / "fifo"), f"jupyter_agentwatch.{module}", name)
    return [sys.executable, "-P", "-c", HANGING, *argv]


LISTEN = ["python3", "-c", "import socket; print('up', flush=True); socket.create_server(('127.0.0.1', 0))"]


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A workspace, and a folder beside it."""
    (tmp_path / "project").mkdir()
    (tmp_path / "beside").mkdir()
    return tmp_path / "project", tmp_path / "beside"


def test_a_notification_thread_that_hangs_ends_the_watch(places: tuple[Path, Path]) -> None:
    """The sandbox is killed within seconds, a critical finding and the reason say why, and the process ends."""
    workspace, beside = places
    supervisor = hanging(beside, "supervisor.network", "listen_raw")
    with Watch(workspace=workspace, supervisor=supervisor) as watch:
        inside, process = inside_of(watch), hold([watch.status().pid])
        result = watch.run(LISTEN, timeout=LONG_S)
        assert result.outcome == "killed", result
        wait_all_ended(process)
        wait_all_ended(hold(members(inside)))
        end = closing(watch.log)
        (finding,) = recorded(watch, Finding)
    assert (finding.rule, finding.severity) == ("agentwatch.monitor_stuck", "critical")
    assert "the notification thread" in end.reason
    assert "the notification thread" in finding.title
    assert end.survivors == 0


def test_a_kill_ends_a_supervisor_that_hangs(places: tuple[Path, Path]) -> None:
    """With the notification thread blocked, a kill is answered, the log is closed and no supervisor is left."""
    workspace, beside = places
    supervisor = hanging(beside, "supervisor.network", "listen_raw")
    with Watch(workspace=workspace, supervisor=supervisor) as watch:
        process = hold([watch.status().pid])
        running = watch.start(LISTEN)
        wait_for_line(running, b"up")
        with (beside / "fifo").open("wb"):  # opens when the thread has opened its end; it reads from now on
            killed = kill_watch(watch.id, reason="test", name="test")  # whose owner would put an end to it himself
            assert (killed.survivors, killed.note) == (0, "")
            wait_all_ended(process)
        assert closing(watch.log).reason == "test"


def test_a_control_thread_that_hangs_ends_the_sandbox(places: tuple[Path, Path]) -> None:
    """Nobody can be answered any more: the sandbox is killed and the process ends, without a line of the log lost."""
    workspace, beside = places
    supervisor = hanging(beside, "supervisor.requests", "Requests._status")
    with Watch(workspace=workspace, supervisor=supervisor) as watch:
        (supervisor_pid,) = marked(str(beside / "fifo"))
        children = psutil.Process(supervisor_pid).children(recursive=True)
        assert children
        held = hold([supervisor_pid, *(child.pid for child in children)])
        with pytest.raises(AgentwatchError):
            watch.status()
        wait_all_ended(held)
        assert verify_log(watch.log).first_bad is None


def test_a_kill_does_not_queue_behind_diffs(places: tuple[Path, Path]) -> None:
    """With forty diffs that never end, a kill is answered as ever."""
    workspace, beside = places
    supervisor = hanging(beside, "sandbox.history", "WorkspaceHistory.changes")
    with Watch(workspace=workspace, supervisor=supervisor) as watch:
        step = watch.run("touch made").step
        refused: list[str] = []

        def ask() -> None:
            try:
                watch.diff(step)
            except AgentwatchError as error:
                refused.append(type(error).__name__)

        threads = [threading.Thread(target=ask) for _ in range(40)]
        for thread in threads:
            thread.start()
        with (beside / "fifo").open("wb"):  # opens when a diff has begun
            killed = watch.kill("test")
        for thread in threads:
            thread.join(LONG_S)
        assert (killed.survivors, killed.note) == (0, "")
        assert len(refused) == 40
        assert closing(watch.log).reason == "test"


# Names

ASKING = """
s = socket.socket(type=socket.SOCK_DGRAM)
s.settimeout(LONG_S)
def ask(name):
    parts = b"".join(bytes([len(part)]) + part for part in name.encode().split(b"."))
    s.sendto(struct.pack(">6H", 7, 256, 1, 0, 0, 0) + parts + bytes([0]) + struct.pack(">2H", 1, 1), ("127.0.0.1", 53))
for k in range(9):
    ask(f"n{k}.example")
print("asked", flush=True)
tell([s.recv(600)[3] & 15 for _ in range(9)])
"""

SLOW_NAMES = """
import os, runpy, socket, sys
_, root, fifo = sys.argv
sys.path.append(root)
sys.argv[:] = ["supervisor"]
def look(name, *_arguments, **_named):
    with open(fifo + ".asked", "a") as file:
        file.write(f"{name}\\n")
    os.read(os.open(fifo, os.O_RDONLY), 1)
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("198.51.100.7", 0))]
socket.getaddrinfo = look
runpy.run_module("jupyter_agentwatch.supervisor", run_name="__main__", alter_sys=True)
"""


@pytest.mark.rungs("A")  # asks by datagrams, which rung B does not have
@pytest.mark.rungs("A")  # rung B has no datagrams
def test_no_name_is_looked_up_while_the_watch_is_suspended(places: tuple[Path, Path]) -> None:
    """A query that waits for a free thread when the watch is suspended leaves the machine only after the resume."""
    workspace, beside = places
    os.mkfifo(beside / "fifo")
    asked = beside / "fifo.asked"
    argv = [sys.executable, "-P", "-c", SLOW_NAMES, str(ROOT), str(beside / "fifo")]
    policy = network({"host": "*.example", "ports": [80]})

    def names() -> list[str]:
        return asked.read_text().split() if asked.exists() else []

    with Watch(policy, workspace, supervisor=argv) as watch:
        running = watch.start(["python3", "-IS", "-c", PRELUDE + ASKING], timeout=LONG_S)
        wait_for_line(running, b"asked")
        while len(names()) < 8:  # so many threads look names up
            watch.status()
        watch.suspend()
        fifo = os.open(beside / "fifo", os.O_RDWR)  # both ends, so that no look-up waits for a writer from now on
        os.write(fifo, bytes(8))
        while sum(e.rcode == "NOERROR" for e in recorded(watch, Dns)) < 8:
            watch.status()
        for _ in range(20):  # each is a round of the supervisor's loop
            watch.status()
        assert len(names()) == 8
        watch.resume()
        os.write(fifo, bytes(1))
        assert running.wait(LONG_S).stdout.splitlines()[-1] == str([0] * 9)
        assert len(names()) == 9
        os.close(fifo)


STALE = """
import contextlib
name = sys.argv[1].encode()
wire = struct.pack(">6H", 7, 256, 1, 0, 0, 0) + bytes([4]) + name + bytes([0]) + struct.pack(">2H", 1, 1)
s = socket.socket(type=socket.SOCK_DGRAM)
if len(sys.argv) == 2:
    s.sendto(wire, ("127.0.0.1", 53))
else:
    port = int(sys.argv[2])
    for _ in range(1_000_000):
        s = socket.socket(type=socket.SOCK_DGRAM)
        with contextlib.suppress(OSError):
            s.setsockopt(socket.IPPROTO_IP, 51, struct.pack("=I", port << 16 | port))  # IP_LOCAL_PORT_RANGE, Linux 6.3
        s.sendmsg([b"x"], [], 0, ("127.0.0.1", 9))
        if s.getsockname()[1] == port:
            break
        s.close()
    s.sendmsg([wire], [], 0, ("127.0.0.1", 53))
s.settimeout(LONG_S)
assert s.recv(600)[3] & 15 == 5
tell(s.getsockname()[1])
"""


@pytest.mark.rungs("A")  # asks by datagrams, which rung B does not have
@pytest.mark.rungs("A")  # rung B has no datagrams
def test_a_port_that_the_kernel_gave_again_is_nobody_elses(closed: Watch) -> None:
    """A query by sendmsg from a port that the kernel chose, which another step had before, is not put down to that."""
    port = inside(closed, STALE, "olds")
    old = last_step(closed)
    assert inside(closed, STALE, "news", port) == port
    steps = {e.qname: e.step for e in recorded(closed, Dns)}
    assert steps["olds"] == old
    assert steps["news"] in {0, last_step(closed)}
