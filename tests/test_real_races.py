"""Programs that change what a call points to while it is judged: what was decided is what happens, or it is flagged."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from jupyter_agentwatch import Policy, Watch
from jupyter_agentwatch.events import Connect, Exec, Finding
from jupyter_agentwatch.policy import Network, NetworkRule
from tests.outside import answer_of, last_step, recorded

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.sandbox

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
    assert len(good) > 50, outcomes
    assert outcomes.get("EACCES", 0) > 50, outcomes  # the flip did happen
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
    with Watch(workspace=tmp_path) as watch:
        ran = run_execs(watch, 300, way)
        mismatches = check_truths(watch, ran)
        findings = [event for event in recorded(watch, Finding) if event.rule == "agentwatch.exec_mismatch"]
    assert mismatches > 0
    assert len(findings) == mismatches
    assert {(event.severity, event.basis) for event in findings} == {("critical", "post")}


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
