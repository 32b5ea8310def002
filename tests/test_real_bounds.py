"""Bounds that the supervisor watches by looking: memory wherever it is held, and how many tasks there are."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest

from jupyter_agentwatch import Policy, Watch
from jupyter_agentwatch.events import LimitHit
from jupyter_agentwatch.policy import Limits
from tests.outside import LONG_S, recorded, wait_for_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]

MIB: Final = 1 << 20
ROUNDS: Final = 20_000
"""Most rounds of the supervisor's loop that a test waits for something."""


@pytest.fixture
def limited(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Watch]:
    """Make watches with limits; they are closed after the test."""

    def make(**limits: Any) -> Watch:
        watch = Watch(Policy(limits=Limits(**limits)), tmp_path)
        request.addfinalizer(watch.close)
        return watch

    return make


IN_A_FILE: Final = """
import os, signal
fd = {open}
for _ in range(300):
    os.write(fd, bytes(1 << 20))
print("has it", flush=True)
signal.pause()
"""
BY_THREADS: Final = """
import ctypes, os, threading
held = []
def hold():
    held.append(bytearray(80 << 20))
    threading.Event().wait()
if os.fork() == 0 or os.fork() == 0 or os.fork() == 0:
    pass
threading.Thread(target=hold).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)
"""


@pytest.mark.rungs("B")
@pytest.mark.parametrize("folder", ["TMPDIR", "HOME"])
def test_fresh_folders_are_bounded_where_they_are_plain_folders(tmp_path: Path, folder: str) -> None:
    """What fills the fresh home or the folder for temporary files is ended, and the limit is on record."""
    program = IN_A_FILE.format(open=f'os.open(os.environ["{folder}"] + "/held", os.O_RDWR | os.O_CREAT)')
    with Watch({"filesystem": {"tmp_bytes": 50 * MIB}}, tmp_path) as watch:
        assert watch.run(["python3", "-c", program], timeout=LONG_S).outcome == "limit:tmp_bytes"
        (event,) = recorded(watch, LimitHit)
        assert (event.limit, event.maximum, event.verdict) == ("tmp_bytes", float(50 * MIB), "kill")
        assert event.value > event.maximum
        assert watch.run(["true"]).ok


@pytest.mark.parametrize(
    "program",
    [
        IN_A_FILE.format(open='os.memfd_create("held")'),
        BY_THREADS,
    ],
    ids=["memfd", "leaderless"],
)
def test_memory_counts_wherever_it_is_held(limited: Callable[..., Watch], program: str) -> None:
    """In files that have no folder, and in processes whose first thread has ended."""
    watch = limited(memory_bytes=200 * MIB)
    result = watch.run(["sh", "-c", 'python3 -c "$1"; sleep 100', "sh", program], timeout=LONG_S)
    assert result.outcome == "limit:memory_bytes"
    (event, *_) = recorded(watch, LimitHit)
    assert (event.limit, event.maximum, event.verdict) == ("memory_bytes", float(200 * MIB), "kill")
    assert event.value > event.maximum


@pytest.mark.rungs("A")  # on rung B these are files of the disk
@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
def test_files_in_folders_in_memory_are_memory(limited: Callable[..., Watch], folder: str) -> None:
    """What lies in a folder that is in memory counts as memory."""
    program = IN_A_FILE.format(open=f'os.open("{folder}/held", os.O_RDWR | os.O_CREAT)')
    watch = limited(memory_bytes=200 * MIB)
    assert watch.run(["python3", "-c", program], timeout=LONG_S).outcome == "limit:memory_bytes"


def first_hits(watch: Watch, step: int) -> list[LimitHit]:
    """Wait until a step has run into a limit, and return the records of it."""
    for _ in range(ROUNDS):
        if hits := recorded(watch, LimitHit, step):
            return hits
        watch.status()
    return pytest.fail("no limit is on record")


FILL: Final = """
import os, signal
count = denied = 0
while count < 30 or not denied:
    try:
        child = os.fork()
        count += 1
    except OSError as error:  # for a moment the dead of another step may still take the room
        denied = error.errno
        continue
    if child == 0:
        signal.pause()
print(denied, count, flush=True)
signal.pause()
"""


def test_a_step_that_reaches_the_bound_on_tasks_is_on_record_once(limited: Callable[..., Watch]) -> None:
    """Whoever holds the bound, each step that fills it up leaves one record; others leave none."""
    watch = limited(processes=40)
    watch.run(["true"])
    for _ in range(2):
        running = watch.start(["python3", "-c", FILL])
        error, count = wait_for_line(running, b"\n").split()
        assert int(error) == 11  # EAGAIN
        # The dead of the step before may take some places, and the supervisor counts a fork that is under way as well.
        assert 30 <= int(count) < 40
        (hit,) = first_hits(watch, running.step)
        assert (hit.limit, hit.maximum, hit.verdict) == ("processes", 40.0, "deny")
        running.kill()
        running.wait(LONG_S)
        for _ in range(ROUNDS):
            if watch.status().processes == 0:
                break
    assert len(recorded(watch, LimitHit)) == 2


AT_THE_BOUND: Final = {
    "open_files": """
import os, signal
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    os.write(1, b"denied %d\\n" % error.errno)
signal.pause()
""",
    "memory_bytes": """
import mmap, signal
held = []
try:
    while True:
        held.append(mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE))
except OSError as error:
    print("denied", error.errno, flush=True)
signal.pause()
""",
}


@pytest.mark.parametrize(("limit", "bound", "error"), [("open_files", 64, 24), ("memory_bytes", 200 * MIB, 12)])
def test_a_process_that_stands_at_a_bound_of_the_kernels_is_on_record_once(
    limited: Callable[..., Watch], limit: str, bound: int, error: int
) -> None:
    """What one process may hold the kernel bounds, and tells nobody: who stands there is found, and told once."""
    watch = limited(**{limit: bound})
    running = watch.start(["python3", "-c", AT_THE_BOUND[limit]])
    assert wait_for_line(running, b"denied") == b"denied %d\n" % error
    (hit,) = first_hits(watch, running.step)
    assert (hit.limit, hit.maximum, hit.verdict) == (limit, float(bound), "deny")
    assert bound * 0.95 <= hit.value <= bound * 1.05  # the stack, which the kernel does not bound so, is counted in
    assert watch.run(["true"]).ok
    assert len(recorded(watch, LimitHit)) == 1


def test_processes_outside_take_no_place_inside(limited: Callable[..., Watch]) -> None:
    """As many processes of the same user as the bound allows, outside: inside there is room as before."""
    outside = [subprocess.Popen(["sleep", "100"]) for _ in range(40)]
    try:
        running = limited(processes=40).start(["python3", "-c", FILL])
        _, count = wait_for_line(running, b"\n").split()
    finally:
        for process in outside:
            process.kill()
            process.wait()
    assert int(count) >= 30


def test_the_dead_do_not_live(limited: Callable[..., Watch]) -> None:
    """Children that have ended and were not waited for are not among a watch's processes."""
    program = """
import os, signal
for _ in range(5):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
print("up", flush=True)
signal.pause()
"""
    watch = limited()
    running = watch.start(["python3", "-c", program])
    wait_for_line(running, b"up")
    assert watch.status().processes == 1
