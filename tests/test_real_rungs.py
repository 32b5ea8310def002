"""What is peculiar to a rung: which is taken, what it refuses to promise, what it does in a namespace's place."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jupyter_agentwatch import Watch
from jupyter_agentwatch.errors import PolicyError
from jupyter_agentwatch.events import Connect, Finding, Listen
from tests.outside import LONG_S, last_step, recorded
from tests.servers import inside

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module")
def unshared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    """A watch on rung B without any network."""
    with Watch({"isolation": "B"}, tmp_path_factory.mktemp("project")) as watch:
        yield watch


def test_the_rung_that_was_asked_for_is_taken(tmp_path: Path) -> None:
    """A and B are exactly these; "required" takes A where it can be had, and says nothing."""
    for asked, rung in (("A", "A"), ("B", "B"), ("required", "A")):
        with Watch({"isolation": asked}, tmp_path) as watch:
            assert watch.rung.startswith(rung)
            assert watch.notes == []


@pytest.mark.parametrize(
    ("files", "match"),
    [({"hide": ["secret"]}, "hide.*rung B cannot hide"), ({"read": ["kept"]}, "must stay read-only.*rung B")],
)
def test_what_rung_b_cannot_promise_is_refused(tmp_path: Path, files: dict[str, list[str]], match: str) -> None:
    """Landlock takes no rights away below a folder: a policy that needs it is an error that says what to do."""
    (tmp_path / "secret").write_text("s")
    (tmp_path / "kept").mkdir()
    with pytest.raises(PolicyError, match=match):
        Watch({"isolation": "B", "filesystem": files}, tmp_path)


def test_rung_c_confines_the_network_and_not_files(tmp_path: Path) -> None:
    """Where it is asked for: files outside can be changed, connections and other processes cannot be reached."""
    beyond = tmp_path / "beyond"
    workspace = tmp_path / "project"
    workspace.mkdir()
    source = """
open(sys.argv[1], "w").write("changed")
got = []
for address in (("192.0.2.1", 443), ("198.51.100.7", 22)):
    with socket.socket() as s:
        got.append(code(s.connect_ex(address)))
tell([*got, attempt(os.kill, int(sys.argv[2]), 0), attempt(os.kill, -1, 0)])
"""
    with Watch({"isolation": "C"}, workspace) as watch:
        assert watch.rung.startswith("C")
        said = inside(watch, source, beyond, os.getpid())
        assert said == ["EACCES", "EACCES", "EPERM", "EPERM"]
        assert beyond.read_text() == "changed"
        assert {event.rule for event in recorded(watch, Finding)} == {"agentwatch.outside_process"}
        assert watch.kill("done").survivors == 0


def test_servers_listen_on_loopback_whatever_they_ask_for(unshared: Watch) -> None:
    """Everywhere becomes loopback, an address of the machine is not available, and the true name is on record."""
    source = """
got = []
for family, host in (
    (socket.AF_INET, ""), (socket.AF_INET6, "::"), (socket.AF_INET, "192.0.2.1"), (socket.AF_INET, "127.0.0.7"),
):
    with socket.socket(family) as s:
        got.append(attempt(s.bind, (host, 0)))
        if got[-1] == "OK":
            s.listen()
            got[-1] = s.getsockname()[0]
with socket.socket() as s:
    s.listen()
    got.append(s.getsockname()[0])
with socket.socket() as s:
    got.append(attempt(s.setsockopt, socket.SOL_SOCKET, socket.SO_REUSEPORT, 1))
tell(got)
"""
    loopback = "127.0.0.1"
    assert inside(unshared, source) == [
        *(loopback, f"::ffff:{loopback}", "EADDRNOTAVAIL", "127.0.0.7", loopback, "ENOPROTOOPT"),
    ]
    offered = recorded(unshared, Listen, last_step(unshared))
    assert {event.addr for event in offered if event.verdict == "allow"} <= {
        *(loopback, f"::ffff:{loopback}", "127.0.0.7"),
    }


def test_a_port_that_was_let_go_can_be_bound_again_at_once(unshared: Watch) -> None:
    """Programs look for a free port by binding and closing: what the supervisor keeps of it is in nobody's way."""
    source = """
for _ in range(20):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with socket.socket() as s:
        s.bind(("127.0.0.1", port))
        s.listen()
tell("free")
"""
    assert inside(unshared, source) == "free"


def test_a_server_of_the_machine_is_not_inside(unshared: Watch) -> None:
    """The machine's loopback, abstract names and a person's sockets in the workspace are refused, and on record."""
    source = """
got = []
for family, address in ((socket.AF_INET, ("127.0.0.1", int(sys.argv[1]))), (socket.AF_UNIX, "\\0" + sys.argv[2])):
    with socket.socket(family) as s:
        got.append(code(s.connect_ex(address)))
with socket.socket(socket.AF_UNIX) as s:
    got.append(code(s.connect_ex("theirs.sock")))
tell(got)
"""
    name = f"aw-test-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX) as named,
    ):
        abstract.bind(f"\0{name}")
        abstract.listen()
        named.bind(os.path.relpath(unshared.workspace / "theirs.sock"))
        named.listen()
        assert inside(unshared, source, server.getsockname()[1], name) == ["EACCES"] * 3
        for listening in (server, abstract, named):
            listening.setblocking(False)
            with pytest.raises(BlockingIOError):
                listening.accept()
    denied = [event for event in recorded(unshared, Connect, last_step(unshared)) if event.verdict == "deny"]
    assert [event.transport for event in denied] == ["tcp", "unix", "unix"]


def test_shared_memory_is_the_sandboxes_own(unshared: Watch) -> None:
    """Semaphores, shared memory and pools work, and neither are they in the machine's /dev/shm nor is that seen."""
    source = """
import multiprocessing
from multiprocessing import shared_memory
def double(number):
    return number * 2
with multiprocessing.Pool(2) as pool:
    got = [pool.map(double, [1, 2])]
memory = shared_memory.SharedMemory("aw-test-own", create=True, size=10)
other = shared_memory.SharedMemory("aw-test-own")
memory.buf[:3] = b"abc"
got += [bytes(other.buf[:3]).decode(), os.path.exists("/dev/shm/aw-test-own")]
other.close(), memory.close(), memory.unlink()
got.append(attempt(shared_memory.SharedMemory, "aw-test-own"))
got.append(attempt(shared_memory.SharedMemory, sys.argv[1]))
tell(got)
"""
    theirs = f"aw-test-{os.getpid()}"
    with open(f"/dev/shm/{theirs}", "wb") as file:
        file.write(bytes(10))
    try:
        assert inside(unshared, source, theirs) == [[2, 4], "abc", False, "ENOENT", "ENOENT"]
    finally:
        os.unlink(f"/dev/shm/{theirs}")


def test_neighbours_cannot_be_touched(unshared: Watch) -> None:
    """Signals, limits, priorities and affinity of a process outside are refused; of one inside they work."""
    source = """
import resource, subprocess
def change(pid):
    return [
        attempt(os.kill, pid, 0), attempt(resource.prlimit, pid, resource.RLIMIT_CORE, (0, 0)),
        attempt(os.setpriority, os.PRIO_PROCESS, pid, 15), attempt(os.sched_setaffinity, pid, os.sched_getaffinity(0)),
        attempt(os.sched_setscheduler, pid, os.SCHED_BATCH, os.sched_param(0)),
    ]
child = subprocess.Popen(["sleep", "100"])
got = [change(int(sys.argv[1])), change(child.pid), attempt(os.setpriority, os.PRIO_USER, 0, 5)]
child.kill()
tell([*got, child.wait()])
"""
    with subprocess.Popen(["sleep", "100"]) as neighbour:
        before = os.getpriority(os.PRIO_PROCESS, neighbour.pid)
        refused, allowed, user, status = inside(unshared, source, neighbour.pid)
        assert os.getpriority(os.PRIO_PROCESS, neighbour.pid) == before
        neighbour.kill()
    assert refused == ["EPERM"] * 5
    assert allowed == ["OK"] * 5
    assert (user, status) == ("EPERM", -9)


def test_modes_and_times_change_in_the_workspace_alone(unshared: Watch, tmp_path: Path) -> None:
    """Modes and times, by name, link and descriptor, work change on what may be written, and on nothing else."""
    theirs = tmp_path / "theirs"
    theirs.touch(mode=0o640)
    os.utime(theirs, (1, 1))
    source = """
open("mine", "w").close()
os.symlink(sys.argv[1], "way")
def change(path):
    return [attempt(os.chmod, path, 0o711), attempt(os.utime, path, (5, 6)), attempt(os.utime, path)]
got = [change("mine"), change(sys.argv[1]), change("way")]
with open("mine") as file:
    got.append([attempt(os.fchmod, file.fileno(), 0o600), attempt(os.utime, file.fileno(), (7, 8))])
status = os.stat("mine")
tell([*got, oct(status.st_mode & 0o7777), status.st_atime, status.st_mtime])
"""
    got = inside(unshared, source, theirs)
    assert got[0] == ["OK"] * 3
    assert got[1] == got[2] == ["EACCES"] * 3
    assert got[3:] == [["OK", "OK"], "0o600", 7.0, 8.0]
    status = theirs.stat()
    assert (status.st_mode & 0o7777, status.st_mtime) == (0o640, 1)


def test_an_owner_cannot_be_changed_but_may_be_said_again(unshared: Watch, tmp_path: Path) -> None:
    """What an archiver of root's does to each file works, where it changes nothing; nothing outside is touched."""
    theirs = tmp_path / "theirs"
    theirs.touch(mode=0o640)
    before = theirs.stat()
    source = """
import subprocess
open("mine", "w").close()
os.symlink(sys.argv[1], "out")
os.symlink("mine", "in")
own, group = os.geteuid(), os.getegid()
names = ("mine", "in", sys.argv[1], "out")
got = [[attempt(os.chown, name, own, group), attempt(os.chown, name, -1, -1)] for name in names]
got.append([attempt(os.chown, "mine", own + 1, -1), attempt(os.chown, "mine", -1, group + 1)])
got.append([attempt(os.lchown, "out", own, group), attempt(os.chown, "missing", own, group)])
with open("mine") as file:
    got.append([attempt(os.fchown, file.fileno(), own, group), attempt(os.fchown, file.fileno(), own + 1, group)])
subprocess.run(["tar", "cf", "made.tar", "mine"], check=True)
subprocess.run(["tar", "xf", "made.tar", "--same-owner"], check=True)
tell(got)
"""
    got = inside(unshared, source, theirs)
    assert got[:2] == [["OK", "OK"]] * 2
    assert got[2:4] == [["EACCES", "EACCES"]] * 2
    assert got[4:] == [["EPERM", "EPERM"], ["OK", "ENOENT"], ["OK", "EPERM"]]
    assert theirs.stat() == before


def test_the_supervisor_keeps_no_right_of_roots(unshared: Watch) -> None:
    """What is done for a command can do no more than the command: the supervisor has no capability, and gets none."""
    text = Path(f"/proc/{unshared.status().pid}/status").read_text()
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert unshared.run("grep -c . /proc/self/status", timeout=LONG_S).ok
