"""Ends of every kind: whatever a program did to live on, nothing is left, and the log says so and verifies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jupyter_agentwatch import Policy, Watch
from jupyter_agentwatch.audit.verify import verify_log
from jupyter_agentwatch.errors import ControlError, SessionEndedError
from jupyter_agentwatch.events import BreakerChanged, Exec, FileOp, LimitHit, Step
from jupyter_agentwatch.policy import Breaker, Limits
from tests.outside import (
    IDLE,
    LONG_S,
    PROGRAMS,
    closing,
    hold,
    inside_of,
    last_step,
    marked,
    members,
    put,
    recorded,
    state_of,
    wait_all_ended,
    wait_for_line,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]

ROOT = Path(__file__).parent.parent


@pytest.fixture
def marker() -> str:
    """A text that no other process of this machine has on its command line."""
    return f"marker-{uuid.uuid4().hex}"


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """A watch of the test's own."""
    with Watch(Policy(limits=Limits(processes=4096)), tmp_path) as watch:
        yield watch


def start_daemons(watch: Watch, count: int, way: str, after: str, marker: str) -> Any:
    """Start daemons and wait until all of them stand."""
    running = watch.start(["python3", put(watch, "daemons.py"), str(count), way, after, marker])
    wait_for_line(running, b"standing")
    end = time.monotonic() + LONG_S
    while len(marked(marker)) < count + (after == "stay"):  # amid an exec, a process shows no command line
        assert time.monotonic() < end, "not all daemons are there"
        os.sched_yield()
    return running


# Daemons


def test_daemons_outlive_their_command_and_stay_its_own(watch: Watch, marker: str) -> None:
    """After a command's end its daemons live on; what they do later is on record as that step's, from any session."""
    os.mkfifo(watch.workspace / "go")
    os.mkfifo(watch.workspace / "done")
    script = f"(setsid sh -c ': {marker}; setsid sh -c \"read x <go; echo late >late; echo >done\"' &) & wait"
    first = watch.run(script)
    assert first.ok
    watch.run(["true"])
    (watch.workspace / "go").write_bytes(b"go\n")
    (watch.workspace / "done").read_bytes()
    (late,) = [each for each in recorded(watch, FileOp) if each.path == str(watch.workspace / "late")]
    assert (late.step, late.op) == (first.step, "openat")


@pytest.mark.parametrize("way", ["exec", "fork"])
def test_a_thousand_daemons_are_killed(watch: Watch, marker: str, way: str) -> None:
    """1,000 processes that forked twice and made sessions of their own: none is left, counted from outside."""
    inside = inside_of(watch)
    start_daemons(watch, 1000, way, "leave", marker).wait(LONG_S)
    there = members(inside)
    assert len(there) > 1000
    held = hold(there)
    killed = watch.kill("test")
    wait_all_ended(held, 2)
    assert (members(inside), marked(marker)) == ([], [])
    assert killed.survivors == 0
    assert killed.killed >= 1000
    end = closing(watch.log)
    assert (end.killed, end.survivors, end.verdict, end.reason) == (killed.killed, 0, "kill", "test")


def test_a_step_that_is_killed_takes_its_daemons_along(watch: Watch, marker: str) -> None:
    """Killing one command ends all its sessions, and nothing of another command's."""
    other = watch.start(["sh", "-c", "echo up; exec sleep 1000"])
    wait_for_line(other, b"up")
    running = start_daemons(watch, 20, "exec", "stay", marker)
    held = hold(marked(marker))
    assert len(held) > 20
    running.kill()
    assert running.wait(LONG_S).outcome == "killed"
    wait_all_ended(held)
    assert not other.has_ended
    assert watch.status().running_steps == [other.step]


def test_a_timeout_ends_what_a_command_left_behind(watch: Watch, marker: str) -> None:
    """A command whose time is over ends with all its daemons, and the limit is on record."""
    running = watch.start(["python3", put(watch, "daemons.py"), "10", "fork", "stay", marker], timeout=2)
    wait_for_line(running, b"standing")
    held = hold(marked(marker))
    result = running.wait(LONG_S)
    assert result.outcome == "timeout"
    wait_all_ended(held)
    (limit,) = recorded(watch, LimitHit)
    assert (limit.limit, limit.value, limit.verdict, limit.step) == ("timeout", 2.0, "kill", result.step)


def test_processes_that_never_stay_are_ended_with_their_step(watch: Watch) -> None:
    """Processes that change id and session all the time cannot outrun the end of their step."""
    inside = inside_of(watch)
    running = watch.start(["python3", put(watch, "hopper.py")], timeout=1.5)
    wait_for_line(running, b"hopping")
    assert running.wait(LONG_S).outcome == "timeout"
    assert watch.run(["true"]).ok  # started after the step's end, so that init has seen to all of it
    assert len(members(inside)) == 1


def test_processes_that_never_stay_are_ended_with_the_watch(watch: Watch) -> None:
    """Nor can they outrun the end of the watch."""
    inside = inside_of(watch)
    wait_for_line(watch.start(["python3", put(watch, "hopper.py")]), b"hopping")
    assert watch.kill().survivors == 0
    assert members(inside) == []
    closing(watch.log)


def test_a_fork_bomb_is_bounded(tmp_path: Path) -> None:
    """A fork bomb stays below the limit of processes, the watch answers meanwhile, and a kill leaves nothing."""
    with Watch(Policy(limits=Limits(processes=200)), tmp_path) as watch:
        inside = inside_of(watch)
        running = watch.start(["python3", put(watch, "bomb.py")])
        wait_for_line(running, b"lit")
        counts = [len(members(inside)) for _ in range(30)]
        while not recorded(watch, LimitHit):
            counts.append(len(members(inside)))
        assert max(counts) <= 202
        assert watch.status().state == "closed"
        running.kill()
        assert running.wait(LONG_S).outcome == "killed"
        assert watch.run(["true"]).ok
        again = watch.start(["python3", "bomb.py"])
        wait_for_line(again, b"lit")
        assert watch.kill().survivors == 0
        assert members(inside) == []
    limits = recorded(watch, LimitHit)
    assert {(limit.limit, limit.maximum, limit.verdict) for limit in limits} == {("processes", 200.0, "deny")}
    closing(watch.log)


LEADERLESS = """
import ctypes, os, threading
if os.fork() == 0:
    os.setsid()
    reader, writer = os.pipe()
    def stay():
        print("apart", flush=True)
        os.read(reader, 1)
    threading.Thread(target=stay).start()
    ctypes.CDLL(None).syscall(ctypes.c_long({"x86_64": 60, "aarch64": 93}[os.uname().machine]), ctypes.c_long(0))
os.wait()
"""


def test_threads_that_outlive_their_main_thread_are_ended_with_their_step(watch: Watch) -> None:
    """A process in a session of its own whose main thread has ended looks like a zombie, and is ended all the same."""
    inside = inside_of(watch)
    running = watch.start(["python3", "-c", LEADERLESS], timeout=1.5)
    wait_for_line(running, b"apart")
    assert running.wait(LONG_S).outcome == "timeout"
    assert watch.run(["true"]).ok  # started after the step's end, so that init has seen to all of it
    assert len(members(inside)) == 1
    assert watch.status().processes == 0


# The dead man's switch


@contextlib.contextmanager
def owned(workspace: Path, marker: str, way: str) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """Start a process that owns a watch; yields it and what it told."""
    argv = [sys.executable, str(PROGRAMS / "owner.py"), str(workspace), marker, way]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) as owner:
        assert owner.stdout is not None
        try:
            yield owner, json.loads(owner.stdout.readline())
        finally:
            owner.kill()


@pytest.mark.parametrize("way", ["alone", "forked"])
def test_the_end_of_the_owner_is_the_end_of_the_watch(tmp_path: Path, marker: str, way: str) -> None:
    """The owner is killed in mid-command: all is gone in 2 s and the log closed, also if a child holds its fds."""
    with owned(tmp_path, marker, way) as (owner, told):
        inside = [pid for pid in marked(marker) if pid not in {owner.pid, told["child"]}]
        held = hold([told["supervisor"], *inside])
        assert len(held) > 1
        owner.kill()
        wait_all_ended(held, 2)
        left = set(marked(marker)) - {owner.pid, told["child"]}
        if told["child"]:
            os.kill(told["child"], signal.SIGKILL)
    assert left == set()
    end = closing(Path(told["log"]))
    assert end.reason in {"the owner process ended", "the owner hung up"}
    assert end.survivors == 0


def test_the_end_of_the_supervisor_is_the_end_of_the_sandbox(watch: Watch, marker: str) -> None:
    """The supervisor is killed in mid-command: nothing lives on, callers are told, what is in the log verifies."""
    inside = inside_of(watch)
    running = start_daemons(watch, 5, "fork", "stay", marker)
    held = hold(members(inside))
    assert len(held) > 5
    os.kill(watch.status().pid, signal.SIGKILL)
    wait_all_ended(held, 2)
    with pytest.raises(SessionEndedError):
        running.wait(LONG_S)
    with pytest.raises(SessionEndedError):
        watch.run(["true"])
    assert (members(inside), marked(marker)) == ([], [])
    found = verify_log(watch.log)
    assert not found.closed
    assert found.first_bad is None
    assert found.records > 3


# Suspension


COUNTING = """
import os
with open("count", "wb", buffering=0) as file:
    n = 0
    while True:
        n += 1
        os.pwrite(file.fileno(), b"%d" % n, 0)
        if n == 1000:
            print("counting", flush=True)
"""


def test_a_suspended_process_makes_no_progress(watch: Watch) -> None:
    """While a watch is suspended a busy process stands still; after resume it goes on from where it was."""
    inside = inside_of(watch)
    running = watch.start(["python3", "-c", COUNTING])
    wait_for_line(running, b"counting")
    watch.suspend()
    before = (watch.workspace / "count").read_bytes()
    # Init itself is not stopped: it has just answered, and may not yet have come to rest.
    states = {state_of(pid) for pid in members(inside) if pid != inside.init.pid}
    with pytest.raises(ControlError, match="frozen"):
        watch.run(["true"])
    assert (watch.workspace / "count").read_bytes() == before
    assert states <= {"T", "S", "D"}
    watch.resume()
    with (watch.workspace / "count").open("rb") as file:
        while int(file.read() or b"0") <= int(before):
            file.seek(0)
    running.kill()
    moves = [(event.before, event.after, event.cause) for event in recorded(watch, BreakerChanged)]
    assert moves == [("closed", "frozen", "person-suspends"), ("frozen", "closed", "person-resumes")]


def test_calls_are_held_and_complete_after_resume(watch: Watch) -> None:
    """A program that makes trapped calls all the time loses none of them to a suspension: each succeeds, in the end."""
    program = """
import os, sys
print("begun", flush=True)
for n in range(3000):
    os.close(os.open("held", os.O_WRONLY | os.O_CREAT))
print("all", flush=True)
"""
    running = watch.start(["python3", "-c", program])
    wait_for_line(running, b"begun")
    for _ in range(10):
        watch.suspend()
        watch.resume()
    result = running.wait(LONG_S)
    assert (result.stdout.split(), result.stderr) == (["begun", "all"], "")
    opened = [each for each in recorded(watch, FileOp, result.step) if each.path.endswith("/held")]
    assert len(opened) >= 3000


WAKING = """
import ctypes, os, signal, struct
libc = ctypes.CDLL(None, use_errno=True)
event = struct.pack("=Qii48x", 0, signal.SIGCONT, 0)
for number in range(100):  # one after the other: SIGSTOP takes off one that is just pending
    timer = ctypes.c_void_p()
    assert libc.timer_create(1, event, ctypes.byref(timer)) == 0
    first = struct.pack("=4q", 0, 0, number // 10, number % 10 * 100_000_000 + 1)
    assert libc.timer_settime(timer, 0, first, None) == 0
print("set", flush=True)
while True:
    pass
"""


def test_a_process_that_wakes_itself_ends_the_watch(watch: Watch) -> None:
    """A timer that sends SIGCONT to its stopped process gains no run: the suspended watch is killed, and says why.

    Since Linux 6.13 the timer may also be kept from sending it; then the process gains no run either.
    """
    inside = inside_of(watch)
    running = watch.start(["python3", "-c", WAKING])
    wait_for_line(running, b"set")
    pid = next(event.pid for event in recorded(watch, Exec) if event.basis == "post")
    with contextlib.suppress(SessionEndedError):
        watch.suspend()
    try:
        assert running.wait(5).outcome == "killed"
    except SessionEndedError:
        pass
    except TimeoutError:
        used = cpu_ticks(pid)
        with pytest.raises(TimeoutError):
            running.wait(1)
        assert cpu_ticks(pid) == used
        assert watch.kill().survivors == 0
        return
    watch.close()
    assert closing(watch.log).reason == "processes went on after they were stopped"
    assert members(inside) == []


def cpu_ticks(pid: int) -> tuple[str, str]:
    """Return the user and system time of a process, in clock ticks (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[11], fields[12]


def test_kill_works_while_suspended(watch: Watch) -> None:
    """A suspended watch can be killed, and nothing is left of it."""
    inside = inside_of(watch)
    running = watch.start(["python3", "-c", COUNTING])
    wait_for_line(running, b"counting")
    watch.suspend()
    assert watch.kill().survivors == 0
    assert members(inside) == []
    with contextlib.suppress(SessionEndedError):
        assert running.wait(LONG_S).outcome == "killed"
    closing(watch.log)


def test_what_was_stopped_before_stays_stopped(watch: Watch) -> None:
    """A process that had stopped itself before the suspension is still stopped after it, its neighbours go on."""
    running = watch.start(f"sh -c 'kill -STOP $$; echo woken' & echo pid=$!; {IDLE}")
    wait_for_line(running, b"pid=")
    inside = inside_of(watch)

    def states() -> list[str]:
        found = []
        for pid in members(inside):
            with contextlib.suppress(OSError):
                found.append(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
        return found

    while "T" not in states():
        pass
    watch.suspend()
    watch.resume()
    while states().count("T") != 1:
        pass
    assert watch.run(["true"]).ok
    running.kill()
    assert "woken" not in running.wait(LONG_S).stdout


def test_suspending_while_commands_start_loses_nothing(watch: Watch) -> None:
    """Suspensions that fall into the start of commands break neither: each command runs, or is refused."""
    over = threading.Event()
    outcomes: list[str] = []

    def run_for_ever() -> None:
        while not over.is_set():
            try:
                outcomes.append(watch.run(["true"]).outcome)
            except ControlError:
                outcomes.append("refused")

    threads = [threading.Thread(target=run_for_ever) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(40):
            watch.suspend()
            watch.resume()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert set(outcomes) <= {"exited", "refused"}
    assert watch.run(["true"]).ok


@pytest.mark.parametrize("way", ["kill", "resume"])
def test_a_suspension_that_nobody_ends_expires(tmp_path: Path, way: str) -> None:
    """After the policy's time a suspended watch is killed, or goes on, and the log says that nobody decided it."""
    policy = Policy(breaker=Breaker(frozen_s=0.5, on_expiry="kill" if way == "kill" else "resume"))
    with Watch(policy, tmp_path) as watch:
        running = watch.start(["sh", "-c", "echo up; read x; exit 7"], stdin=True)
        wait_for_line(running, b"up")
        watch.suspend()
        if way == "kill":
            with contextlib.suppress(SessionEndedError):
                assert running.wait(LONG_S).outcome == "killed"
            watch.close()
            assert closing(watch.log).reason == "frozen for too long"
        else:
            running.write(b"go\n")
            assert running.wait(LONG_S).exit_code == 7
    causes = [event.cause for event in recorded(watch, BreakerChanged)]
    assert causes[1].startswith(f"expiry-{way}s")
    assert [event.op for event in recorded(watch, Step)] == ["start", "end"]
    assert last_step(watch) == 1
