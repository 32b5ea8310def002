"""Programs that change what a call points to while it is judged: what was decided is what happens, or it is flagged."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from jupyter_agentwatch import Policy, Watch
from jupyter_agentwatch.events import Connect, Exec, FileOp, Finding
from jupyter_agentwatch.policy import Network, NetworkRule
from tests.outside import NEVER_STOPPED, answer_of, last_step, recorded

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]

RACE_S: Final = 2.5
HOST_LOOPBACK: Final = "192.0.0.8"


@contextlib.contextmanager
def counting() -> Iterator[tuple[int, list[int]]]:
    """Listen on the host's loopback; yields the port, and a list that gets one entry for each connection."""
    arrivals: list[int] = []
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listening:

        def serve() -> None:
            while True:
                try:
                    caller, _ = listening.accept()
                except OSError:
                    return
                arrivals.append(1)
                caller.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1], arrivals
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("way", ["address", "descriptor"])
def test_no_connect_reaches_what_was_not_judged(tmp_path: Path, way: str) -> None:
    """Address or socket flip under the call: the forbidden server sees nobody, the allowed one many."""
    with counting() as (allowed, good), counting() as (forbidden, bad):
        policy = Policy(network=Network(rules=[NetworkRule(host="host.loopback", ports=[allowed])]))
        with Watch(policy, tmp_path) as watch:
            asked = {"host": HOST_LOOPBACK, "allowed": allowed, "forbidden": forbidden, "seconds": RACE_S}
            outcomes = answer_of(watch, "race_connect.py", way, asked, timeout=30)
            events = recorded(watch, Connect, last_step(watch))
    assert bad == []
    assert len(good) > 20, outcomes
    assert outcomes.get("EACCES", 0) > 20, outcomes  # the flip did happen
    assert {(event.port, event.verdict) for event in events} == {(allowed, "allow"), (forbidden, "deny")}
    assert {event.basis for event in events} == {"verified"}
    assert sum(event.verdict == "deny" for event in events) >= outcomes["EACCES"]


def run_execs(watch: Watch, times: int, way: str) -> list[int]:
    """Race execs of two programs and return what ran, by exit code: 0 for prog-a, 1 for prog-b."""
    shutil.copy("/usr/bin/true", watch.workspace / "prog-a")
    shutil.copy("/usr/bin/false", watch.workspace / "prog-b")
    codes: list[int] = answer_of(watch, "race_exec.py", times, way, timeout=60)
    assert set(codes) == {0, 1}
    return codes


def check_truths(watch: Watch, ran: list[int]) -> int:
    """Compare the record with what ran, one by one; return the number of mismatches."""
    events = recorded(watch, Exec, last_step(watch))
    claims = {event.seq: Path(event.path).name for event in events if event.basis == "claimed"}
    truths = [event for event in events if event.basis == "post" and "/prog-" in event.exe]
    assert [Path(event.exe).name for event in truths] == ["prog-ab"[:5] + "ab"[code] for code in ran]
    for event in truths:
        assert event.mismatch == (claims.get(event.claim_seq) != Path(event.exe).name)
    return sum(event.mismatch for event in truths)


@pytest.mark.parametrize("way", ["plain", "noisy"])
def test_the_program_that_really_ran_is_on_record(tmp_path: Path, way: str) -> None:
    """A path that flips under exec: each process has the truth on record, and each difference is a critical finding."""
    with Watch(NEVER_STOPPED, tmp_path) as watch:
        ran = run_execs(watch, 300, way)
        mismatches = check_truths(watch, ran)
        findings = [event for event in recorded(watch, Finding) if event.rule == "agentwatch.exec_mismatch"]
    assert mismatches > 0
    assert len(findings) == mismatches
    assert {(event.severity, event.basis) for event in findings} == {("critical", "post")}


@pytest.mark.parametrize("way", ["arguments", "script"])
def test_the_arguments_that_a_program_really_got_are_on_record(tmp_path: Path, way: str) -> None:
    """An argument that flips under exec: what the program saw is on record, and each difference is a finding."""
    (tmp_path / "script").write_text('#!/bin/sh -u\nexec /usr/bin/test "$@"\n')
    (tmp_path / "script").chmod(0o755)
    with Watch(NEVER_STOPPED, tmp_path) as watch:
        ran: list[int] = answer_of(watch, "race_exec.py", 300, way, timeout=60)
        events = recorded(watch, Exec, last_step(watch))
        findings = [event for event in recorded(watch, Finding) if event.rule == "agentwatch.exec_mismatch"]
    claims = {event.seq: event.argv for event in events if event.path.endswith(("/test", "/script"))}
    started = ["test", "a", "="] if way == "arguments" else ["/bin/sh", "-u", "./script", "a", "="]
    truths = [event for event in events if event.basis == "post" and event.argv[:-1] == started]
    assert [event.argv[-1] for event in truths] == ["ab"[code] for code in ran]
    assert {*ran} == {0, 1}
    for event in truths:
        assert event.mismatch == (claims[event.claim_seq][-1] != event.argv[-1])
    mismatches = [event.seq for event in truths if event.mismatch]
    assert len(mismatches) > 0
    assert [event.evidence[-1] for event in findings] == mismatches
    assert {(event.severity, event.basis) for event in findings} == {("critical", "post")}


UNREADABLE = """
import ctypes, errno, json, mmap, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.open.argtypes = libc.execv.argtypes = libc.unlink.argtypes = None
at = libc.mmap(None, 4096, mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
ctypes.memmove(at, b"unseen\\0", 7)
ctypes.memmove(at + 64, b"/usr/bin/true\\0", 14)
ctypes.memmove(at + 128, struct.pack("=2Q", at + 64, 0), 16)
def told(done):
    return errno.errorcode[ctypes.get_errno()] if done < 0 else "ok"
found = [told(libc.open(ctypes.c_void_p(at), os.O_WRONLY | os.O_CREAT, 0o644))]
found.append(told(libc.unlink(ctypes.c_void_p(at))))
found.append(told(libc.execv(ctypes.c_void_p(at + 64), ctypes.c_void_p(at + 128))))
print(json.dumps(found))
"""


def test_what_the_monitor_cannot_read_does_not_run(tmp_path: Path) -> None:
    """Arguments in memory that can be written and not read, from outside, open and run nothing unrecorded."""
    with Watch(workspace=tmp_path) as watch:
        result = watch.run(["python3", "-c", UNREADABLE])
        assert result.ok, result.stderr
        # On a machine where such memory can be read from outside as well, the calls are on record instead.
        if json.loads(result.stdout) != ["EFAULT"] * 3:
            assert {"unseen"} <= {Path(event.path).name for event in recorded(watch, FileOp, result.step)}
        else:
            assert not (tmp_path / "unseen").exists()


def briefest_program() -> bytes:
    """Return a static program that does nothing but end with exit code 7."""
    x86 = bytes.fromhex("b8e7000000bf070000000f05")
    arm = struct.pack("<3I", 0xD2800BC8, 0xD28000E0, 0xD4000001)
    machine, code = {"x86_64": (62, x86), "aarch64": (183, arm)}[os.uname().machine]
    start = 0x400000
    head = b"\x7fELF\2\1\1" + bytes(9)
    head += struct.pack("<2HI3QI6H", 2, machine, 1, start + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return head + struct.pack("<2I6Q", 1, 5, 0, start, start, 120 + len(code), 120 + len(code), 4096) + code


def test_a_program_that_ends_at_once_is_on_record(tmp_path: Path) -> None:
    """A program that makes no other call leaves its claim, whatever detour its name takes."""
    program = """
import json, os, shutil
deep, way = os.environ["HOME"] + "/deep", os.environ["TMPDIR"] + "/way"
os.mkdir(deep)
shutil.copy("brief", deep + "/brief")
os.symlink(deep, way)
for name in ("./brief", "/proc/self/cwd/brief", way + "/brief"):
    child = os.fork()
    if child == 0:
        os.execv(name, [name])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    (tmp_path / "brief").write_bytes(briefest_program())
    (tmp_path / "brief").chmod(0o755)
    with Watch(workspace=tmp_path) as watch:
        result = watch.run(["python3", "-c", program])
        assert result.ok, result.stderr

        def names() -> list[str]:
            return [e.argv[0] for e in recorded(watch, Exec, result.step) if e.basis == "claimed" and "brief" in e.path]

        for _ in range(3000):  # each is a round of the supervisor's loop, and the last claims are settled in seconds
            if len(names()) == 3:
                break
            watch.run(["true"])
    (detour,) = set(names()) - {"./brief", "/proc/self/cwd/brief"}
    assert detour.endswith("/way/brief")


@pytest.mark.parametrize("what", ["link", "socket"])
def test_a_bound_name_cannot_be_swapped_for_something_outside(tmp_path: Path, what: str) -> None:
    """A name that changes between bind and chmod: nothing outside gets a new mode, no socket of the host is let in."""
    workspace, beyond = tmp_path / "project", tmp_path / "outside"
    workspace.mkdir()
    beyond.touch(mode=0o600)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as host, Watch(workspace=workspace) as watch:
        host.bind(str(workspace / "docker.sock"))
        host.listen()
        (workspace / "docker.sock").chmod(0o600)
        target = str(beyond) if what == "link" else "docker.sock"
        assert answer_of(watch, "race_bind.py", what, target, RACE_S, timeout=30) > 10
        names = [name for name in ("docker.sock", "bound.sock") if (workspace / name).exists()]
        seen = {
            os.stat(workspace / name).st_ino: name for name in names if stat.S_ISSOCK(os.stat(workspace / name).st_mode)
        }
        host.settimeout(0)
        for name in seen.values():
            answer_of(watch, "unix.py", "connect", [name])
        with pytest.raises(BlockingIOError):
            host.accept()
    assert stat.S_IMODE(beyond.stat().st_mode) == 0o600
