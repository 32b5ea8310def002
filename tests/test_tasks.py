"""Which step a process belongs to: real processes, real sessions, and nothing that a process says of itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from jupyter_agentwatch.sandbox import tasks as tasks_module
from jupyter_agentwatch.sandbox.notify import Gone
from jupyter_agentwatch.sandbox.tasks import Task, TaskTable, family_of
from tests.outside import LONG_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHILD = """
import ctypes, os, signal, sys, threading
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
def say(value):
    print(value, flush=True)
def fork(*, twice=False):
    if os.fork() == 0:
        if twice and os.fork():
            os._exit(0)
        say(os.getpid())
        signal.sigwait({signal.SIGUSR1})
        os.setsid()
        say("new session")
        signal.sigwait({signal.SIGUSR1})
        os._exit(0)
def thread():
    def wait():
        say(threading.get_native_id())
        signal.sigwait({signal.SIGUSR1})
    threading.Thread(target=wait, daemon=True).start()
def rename(name):
    say(ctypes.CDLL(None).prctl(15, name, 0, 0, 0))
def session():
    os.setsid()
    say(os.getsid(0))
say(os.getpid())
for line in iter(sys.stdin.readline, ""):
    exec(line)
"""


class Child:
    """A process that does what it is told, line by line, and answers."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = int(self.hear())

    def tell(self, line: str) -> str:
        """Send a line of Python that says something, and return what it says."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.hear()

    def hear(self) -> str:
        """Return the next line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        """Kill it and wait for its end."""
        with self.process:
            self.process.kill()


@pytest.fixture
def child() -> Iterator[Callable[[], Child]]:
    """Start children; they are ended after the test."""
    started: list[Child] = []

    def start() -> Child:
        started.append(Child())
        return started[-1]

    yield start
    for each in started:
        each.end()


def table(living: Callable[[], set[int]] = set) -> TaskTable:
    """Return a table whose init is this process."""
    return TaskTable(os.getpid(), living)


def test_a_command_is_known_by_its_session(child: Callable[[], Child]) -> None:
    """The first new session of a child of init is the starting step's; before it the process belongs to no step."""
    tasks, one = table(), child()
    assert tasks.get(one.pid) == Task(one.pid, 0)
    tasks.starting = 7
    assert tasks.new_session(one.pid)
    assert one.tell("session()") == str(one.pid)
    assert tasks.get(one.pid) == Task(one.pid, 7)
    assert tasks.starting == 0
    assert tasks.sessions_of(7) == [one.pid]
    assert tasks.sessions_of(8) == []


def test_a_session_is_found_by_its_number(child: Callable[[], Child]) -> None:
    """A session is found by its number inside, and a number that nobody has means no step."""
    tasks, one = table(), child()
    tasks.starting = 7
    tasks.new_session(one.pid)
    assert tasks.step_of_session(one.pid) == 7
    assert tasks.step_of_session(one.pid + 1) == 0


@pytest.mark.parametrize("ioctl", [tasks_module._PIDFD_GET_INFO, 0xDEAD])
def test_threads_have_the_family_of_their_process(
    child: Callable[[], Child], monkeypatch: pytest.MonkeyPatch, ioctl: int
) -> None:
    """A thread's process and parent are found by one ioctl, and on a kernel without it by the process's record."""
    monkeypatch.setattr(tasks_module, "_PIDFD_GET_INFO", ioctl)
    one = child()
    thread = int(one.tell("thread()"))
    assert family_of(one.pid) == family_of(thread) == (one.pid, os.getpid())


def test_what_a_process_starts_belongs_to_its_step(child: Callable[[], Child]) -> None:
    """Children, orphans of a double fork and threads are of the step, whatever they call themselves."""
    tasks, one = table(), child()
    tasks.starting = 3
    tasks.new_session(one.pid)
    one.tell("session()")
    thread = int(one.tell("thread()"))
    assert thread != one.pid
    assert tasks.get(thread) == Task(one.pid, 3)
    orphan = int(one.tell("fork(twice=True)"))
    assert tasks.get(orphan) == Task(orphan, 3)
    one.process.kill()
    one.process.wait(LONG_S)
    assert tasks.get(orphan) == Task(orphan, 3)
    os.kill(orphan, signal.SIGKILL)


def test_a_session_of_its_own_does_not_leave_the_step(child: Callable[[], Child]) -> None:
    """A process that makes a new session is entered before it exists, and both sessions are the step's."""
    tasks, one = table(), child()
    tasks.starting = 4
    tasks.new_session(one.pid)
    one.tell("session()")
    second = int(one.tell("fork()"))
    tasks.starting = 5
    assert tasks.new_session(second)
    os.kill(second, signal.SIGUSR1)
    assert one.hear() == "new session"
    assert os.getsid(second) == second
    assert tasks.get(second) == Task(second, 4)
    assert tasks.starting == 5, "only a process without a step takes the next one"
    assert sorted(tasks.sessions_of(4)) == sorted([one.pid, second])
    os.kill(second, signal.SIGKILL)


def test_a_doomed_step_makes_no_further_session(child: Callable[[], Child]) -> None:
    """While a step is being killed, its processes stay in sessions that are known."""
    tasks, one = table(), child()
    tasks.starting = 6
    assert tasks.new_session(one.pid)
    one.tell("session()")
    tasks.doomed.add(6)
    assert not tasks.new_session(one.pid)
    assert tasks.sessions_of(6) == [one.pid]


def test_only_a_child_of_init_starts_a_step(child: Callable[[], Child]) -> None:
    """A session made by a grandchild without a step gets none, and leaves the next step to its command."""
    tasks, one = table(), child()
    grandchild = int(one.tell("fork()"))
    tasks.starting = 9
    assert tasks.new_session(grandchild)
    assert tasks.starting == 9
    assert tasks.sessions_of(9) == []
    os.kill(grandchild, signal.SIGKILL)


def test_the_dead_are_gone(child: Callable[[], Child]) -> None:
    """A thread id that nobody has raises Gone everywhere."""
    one = child()
    one.end()
    for ask in (table().get, table().step_of, table().new_session, family_of):
        with pytest.raises(Gone):
            ask(one.pid)


def test_a_name_cannot_change_whose_child_it_is(child: Callable[[], Child]) -> None:
    """A process that calls itself after the fields of its own record has the parent and the group that it has."""
    tasks, one = table(), child()
    for name in (b") R 1 1 1 (", b"x) S 0", b"\nTgid:\t1\nPPid:"):
        assert one.tell(f"rename({name!r})") == "0"
        assert family_of(one.pid) == (one.pid, os.getpid())
        tasks.starting = 2
        tasks.new_session(one.pid)
        assert tasks.sessions_of(2) == [one.pid]


def test_sessions_that_have_ended_are_forgotten(monkeypatch: pytest.MonkeyPatch, child: Callable[[], Child]) -> None:
    """When many sessions have been made, those without members are dropped, and the living ones are kept."""
    one: Any = child()
    tasks = table(lambda: {one.pid})
    tasks.starting = 1
    tasks.new_session(one.pid)
    one.tell("session()")
    monkeypatch.setattr(tasks, "_look_again_at", 2)
    others = [child() for _ in range(3)]
    for number, other in enumerate(others, 2):
        tasks.starting = number
        tasks.new_session(other.pid)
        assert tasks.sessions_of(number) == [other.pid]  # let through, and not made yet
        other.end()
    assert tasks.get(one.pid) == Task(one.pid, 1)
    assert tasks.sessions_of(1) == [one.pid]
    assert tasks.sessions_of(2) == []


def test_a_process_that_ended_is_named_as_the_host_does(child: Callable[[], Child]) -> None:
    """A session's leader that was reaped has its host pid and its step; one that lives cannot have ended."""
    tasks, one = table(), child()
    tasks.starting = 7
    tasks.new_session(one.pid)
    assert tasks.ended(one.pid) == (0, 0)
    one.end()
    assert tasks.ended(one.pid) == (one.pid, 7)
