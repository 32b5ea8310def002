"""What processes use, measured on real ones: dead first threads, the unwaited-for dead, files without a name."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest

from jupyter_agentwatch.sandbox.usage import bytes_in_folders, bytes_in_memory_files, measure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB: Final = 1 << 20

HOLD: Final = f"""
import sys, threading
held = bytearray(64 * {MIB})
def wait(say):
    if say:
        print("up", flush=True)
    sys.stdin.read()
"""
LEADERLESS: Final = """
import ctypes, os
ready = threading.Event()
def last():
    ready.wait()
    while open("/proc/self/stat").read().rpartition(")")[2].split()[0] != "Z":
        pass
    wait(True)
threading.Thread(target=last).start()
ready.set()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)
"""
MANY: Final = """
import os
for _ in range(3):
    threading.Thread(target=wait, args=(False,), daemon=True).start()
if os.fork() == 0:
    os._exit(0)
os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
wait(True)
"""


@contextmanager
def program(text: str) -> Iterator[int]:
    """Run a program in a session of its own until it is up; yields its process id."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD + text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"up\n"
            yield process.pid
        finally:
            process.kill()


def children(pid: int) -> list[str]:
    """Return a process and its children as `/proc` names them."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [str(pid), *file.read().split()]


def test_memory_of_a_process_whose_first_thread_has_ended_counts() -> None:
    """The first thread's record says 0 then; what its others hold is found all the same."""
    with program(LEADERLESS) as pid:
        found = measure("/proc", [str(pid)])
    assert found.processes == 1
    assert 64 * MIB < found.resident_bytes < 128 * MIB


def test_the_dead_are_tasks_and_no_processes() -> None:
    """A child that has ended and was not waited for takes a place among the tasks, and does not live."""
    with program(MANY) as pid:
        found = measure("/proc", children(pid))
    assert found.processes == 1
    assert found.tasks == {pid: 1 + 3 + 1}
    assert 64 * MIB < found.resident_bytes < 128 * MIB


def test_who_has_most_is_known_by_its_session() -> None:
    """The most open files and the most memory of one process are those of the one that has them."""
    larger = f"more = bytearray(32 * {MIB})\nheld_open = [open('/dev/null') for _ in range(200)]\nwait(True)"
    with program("wait(True)") as small, program(larger) as large:
        found = measure("/proc", [str(small), str(large)])
    assert found.open_files.session == found.data_bytes.session == large
    assert 203 <= found.open_files.amount < 260
    assert 96 * MIB < found.data_bytes.amount < 256 * MIB


def test_who_is_gone_counts_nothing() -> None:
    """Names that nobody has any more are passed over."""
    with program("wait(True)") as pid:
        pass
    found = measure("/proc", [str(pid)])
    assert (found.processes, dict(found.tasks), found.resident_bytes) == (0, {}, 0)
    assert bytes_in_memory_files("/proc", [str(pid)]) == 0


def test_memory_files_count_once_however_they_are_held() -> None:
    """What is written to a memory file and not mapped is found, once for all descriptors of it and all processes."""
    own = [str(os.getpid())]
    before = bytes_in_memory_files("/proc", own)
    fd = os.memfd_create("file", os.MFD_CLOEXEC)
    copy = os.dup(fd)
    try:
        os.write(fd, bytes(8 * MIB))
        assert bytes_in_memory_files("/proc", own + own) - before == 8 * MIB
        os.close(fd)
        assert bytes_in_memory_files("/proc", own) - before == 8 * MIB
    finally:
        os.close(copy)
    assert bytes_in_memory_files("/proc", own) == before


def test_a_file_that_is_called_like_a_memory_file_is_none(tmp_path: Path) -> None:
    """Only the kernel's own memory files count, whatever a file's name is."""
    own = [str(os.getpid())]
    before = bytes_in_memory_files("/proc", own)
    with open(tmp_path / "memfd:x (deleted)", "wb") as file:
        file.write(bytes(MIB))
        file.flush()
        assert bytes_in_memory_files("/proc", own) == before


def test_a_file_system_counts_once(tmp_path: Path) -> None:
    """Folders of one file system count together once, and one that is not there counts nothing."""
    one = bytes_in_folders(["/"])
    assert one > 0
    assert bytes_in_folders(["/", "/", str(tmp_path / "missing")]) == pytest.approx(one, rel=0.1)
    assert bytes_in_folders([]) == 0
