"""What a test sees of a real sandbox from outside, by the kernel's records alone, and how it puts programs into it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psutil
import pytest

from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.audit.verify import verify_log
from jupyter_agentwatch.events import Connect, Event, Flow, Session
from jupyter_agentwatch.sandbox.unclaimed import stamp_now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jupyter_agentwatch import Watch

LONG_S: Final = 20.0
"""Upper bound of every wait: reached only when a test fails."""

IDLE: Final = "while :; do sleep 0.05; done"
"""Shell text that goes on for ever. A shell runs a trap between two commands only, so none of them may be long."""

NEVER_STOPPED: Final = {"breaker": {"freeze_at": "never", "two_families_at": "never"}}
"""A policy whose watch records what is found and goes on, for tests that attack again and again."""

PROGRAMS: Final = Path(__file__).parent / "programs"

E = TypeVar("E", bound=Event)


def put(watch: Watch, name: str) -> str:
    """Copy a program of `tests/programs` into the workspace and return its name there."""
    shutil.copy(PROGRAMS / name, watch.workspace / name)
    return name


def answer_of(watch: Watch, name: str, *arguments: object, timeout: float = LONG_S) -> Any:
    """Run a program of `tests/programs` inside and return the JSON that it printed last."""
    texts = [each if isinstance(each, str) else json.dumps(each) for each in arguments]
    result = watch.run(["python3", put(watch, name), *texts], timeout=timeout)
    assert result.ok, (result, result.stderr[-2000:])
    return json.loads(result.stdout.splitlines()[-1])


def recorded(watch: Watch, kind: type[E], step: int | None = None) -> list[E]:
    """Return the events of a kind that are on record, of one step or of all."""
    tag = str(kind.__struct_config__.tag)
    return [event for event in read_events(watch.log, kinds={tag}, step=step) if isinstance(event, kind)]


def last_step(watch: Watch) -> int:
    """Return the number of the command that ended last."""
    assert watch.last_result is not None
    return watch.last_result.step


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


@dataclass(frozen=True)
class Inside:
    """A sandbox's processes as somebody outside can tell them, also when the supervisor has gone.

    Attributes:
        namespace: Inode of its PID namespace; 0: it has none of its own.
        init: Its first process.
        home: Without a namespace, what every command of it has in its environment.
    """

    namespace: int
    init: psutil.Process
    home: bytes


def inside_of(watch: Watch) -> Inside:
    """Return how to tell a watch's processes from all others."""
    own = os.stat("/proc/self/ns/pid").st_ino
    supervisor = psutil.Process(watch.status().pid)
    for child in supervisor.children(recursive=True):
        with contextlib.suppress(OSError):
            inode = os.stat(f"/proc/{child.pid}/ns/pid").st_ino
            if inode != own:
                return Inside(inode, child, b"")
    (init, *_) = supervisor.children()
    return Inside(0, init, watch.run('printf %s "$HOME"', check=True).stdout.encode())


def members(inside: Inside) -> list[int]:
    """Return the processes of this machine that are inside, init included."""
    if inside.namespace:
        return _pids(lambda folder: os.stat(f"{folder}/ns/pid").st_ino == inside.namespace)
    init = [inside.init.pid] if inside.init.is_running() and not _is_dead(str(inside.init.pid)) else []
    return init + _pids(lambda folder: inside.home in Path(folder, "environ").read_bytes())


def marked(marker: str) -> list[int]:
    """Return the processes of this machine whose command line holds a text."""
    wanted = marker.encode()
    return [pid for pid in _pids(lambda f: wanted in Path(f, "cmdline").read_bytes()) if pid != os.getpid()]


def _pids(is_wanted: Callable[[str], bool]) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if is_wanted(f"/proc/{name}") and not _is_dead(name):
                    found.append(int(name))
    return found


def _is_dead(name: str) -> bool:
    return state_of(int(name)) in {"Z", "X"}


def hold(pids: Iterable[int]) -> list[int]:
    """Open pidfds of processes; those that have ended meanwhile are left out."""
    found = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            found.append(os.pidfd_open(pid))
    return found


def wait_all_ended(pidfds: list[int], seconds: float = LONG_S) -> None:
    """Wait until all processes behind pidfds have ended, and close the pidfds; fail after `seconds` for each."""
    for pidfd in pidfds:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        ended = poll.poll(seconds * 1000)
        os.close(pidfd)
        assert ended, "a process lives on"


def stop(pid: int) -> None:
    """Stop a process, and wait until each of its threads stands still: one may be in the middle of an answer."""
    os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + LONG_S
    while {state_of(int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()} != {"T"}:
        assert time.monotonic() < end, f"process {pid} does not stop"
        os.sched_yield()


def state_of(pid: int) -> str:
    """Return the kernel's letter for what a process or thread does."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_for_end(pid: int) -> None:
    """Wait until a process has ended, or fail."""
    wait_all_ended(hold([pid]))


def wait_for_line(running: Any, line: bytes) -> bytes:
    """Read a running command's output until it holds a text; return all that came so far."""
    seen = b""
    for _, piece in running:
        seen += piece
        if line in seen:
            return seen
    return pytest.fail(f"the command ended without {line!r}: {seen[-2000:]!r}")


def wait_for_file_clock() -> None:
    """Wait until the coarse clock that files are stamped with has come to what the precise one says now."""
    now = time.time_ns()
    while stamp_now() <= now:
        os.sched_yield()


def closing(log: Path) -> Session:
    """Return the last record of a log, after checking that the whole log is right and closed."""
    found = verify_log(log)
    assert found.ok, found.message
    last = list(read_events(log))[-1]
    assert isinstance(last, Session)
    assert last.op == "close"
    return last


def closing_reason(log: Path) -> str:
    """Return why a log was closed, after checking that the whole log is right."""
    return closing(log).reason
