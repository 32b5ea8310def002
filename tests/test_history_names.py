"""Whatever name a file has, and whatever the agent puts in its place: no link out is followed, nothing waits."""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from jupyter_agentwatch.errors import UndoConflictError, WorkspaceError
from jupyter_agentwatch.sandbox import beneath
from tests.history_agent import SECRET, Agent, snapshot


@pytest.mark.parametrize(
    "path",
    [
        "sub/f",
        "./sub/f",
        "sub//f",
        "sub/../sub/f",
        "in/f",
        "abs/f",
        "in/../sub/f",
        "../ws/sub/f",
        "in/./f",
        "final",
        "loop/../f",
    ],
)
def test_every_name_of_a_file_leads_to_its_one_record(agent: Agent, path: str) -> None:
    """Dots, doubled slashes and symbolic links within the workspace hide no change."""
    (agent.root / "sub").mkdir()
    (agent.root / "sub" / "f").write_text("before")
    (agent.root / "in").symlink_to("sub")
    (agent.root / "abs").symlink_to(agent.root / "sub")
    (agent.root / "final").symlink_to("abs/f")
    (agent.root / "loop").symlink_to("loop")
    agent.write(path, "after")
    assert agent.changes() == ({} if "loop" in path else {"sub/f": "modified"})


@pytest.mark.parametrize(
    "path", ["/etc/hosts", "/", "relative", "", "{ws}", "{ws}/", "{ws}x/f", "{ws}/../f", "{ws}/a\0b", "\ud800"]
)
def test_paths_that_are_not_ours_are_ignored(agent: Agent, path: str) -> None:
    """A path outside the workspace, or one that cannot exist, is neither kept nor an error."""
    agent.kept.touch(1, path.format(ws=agent.root), op="openat")
    agent.kept.touch(1, path.format(ws=agent.root).encode("utf-8", "surrogatepass"), op="renameat")
    assert agent.kept.steps() == []


def test_a_call_that_acts_on_a_link_keeps_the_link_only(agent: Agent) -> None:
    """Unlinking a symbolic link is a change of the link, writing through it one of its target."""
    (agent.root / "f").write_text("before")
    (agent.root / "l").symlink_to("f")
    agent.write("l", "after")
    assert agent.changes() == {"f": "modified"}
    agent.step = 2
    agent.unlink("l")
    (change,) = agent.told(2)
    assert (change.path, change.change, change.note) == ("l", "removed", "symbolic link to f")
    agent.kept.undo(2)
    assert os.readlink(agent.root / "l") == "f"


def test_names_that_are_not_utf8_and_names_that_forge_a_diff(agent: Agent) -> None:
    """Hostile names are kept byte by byte, and told so that they cannot pass for lines of the diff."""
    agent.write(os.fsdecode(b"\xff"), "x\n")
    agent.write("a\n+++ b", "x\n")
    raw, forged = sorted(agent.told(1), key=lambda c: len(c.path))
    assert raw.path == "\\xff"
    assert forged.diff.split("\n")[:2] == ["--- /dev/null", "+++ b/a\\x0a+++ b"]
    agent.kept.undo(1)
    assert snapshot(agent.root) == {}


def outside(agent: Agent) -> Path:
    folder = agent.root.parent / "outside"
    folder.mkdir()
    (folder / "f").write_text(SECRET)
    return folder


def test_a_directory_swapped_for_a_link_outwards_is_not_followed(agent: Agent) -> None:
    """Nothing is read or written through a link in the place of a directory, and undo puts the directory back."""
    away = outside(agent)
    (agent.root / "d").mkdir()
    (agent.root / "d" / "f").write_text("ours")
    agent.write("d/f", "changed")
    agent.rename("d", "moved")
    agent.symlink(str(away), "d")
    agent.write("d/f", "the sandbox would refuse this")
    agent.write("d/new", "and this")
    (away / "f").write_text(SECRET)
    told = agent.told(1)
    assert {c.path: c.change for c in told}["d"] == "type"
    assert all(SECRET not in c.diff for c in told)
    agent.kept.undo(1)
    assert (agent.root / "d" / "f").read_text() == "ours"
    assert (away / "f").read_text() == SECRET


def test_a_link_outwards_made_after_the_step_stops_undo(agent: Agent) -> None:
    """Undo through a parent that has become a link outwards refuses; the outside stays untouched."""
    away = outside(agent)
    (agent.root / "d").mkdir()
    (agent.root / "d" / "f").write_text("ours")
    agent.unlink("d/f")
    (agent.root / "d").rmdir()
    (agent.root / "d").symlink_to(away)
    with pytest.raises(UndoConflictError, match="the directory that held it is gone"):
        agent.kept.undo(1)
    assert (away / "f").read_text() == SECRET
    assert os.listdir(away) == ["f"]


def test_a_file_replaced_by_a_link_outwards_is_replaced_again(agent: Agent) -> None:
    """Where a link outwards took the place of a file, undo replaces the link and writes nothing through it."""
    away = outside(agent)
    (agent.root / "f").write_text("ours")
    agent.unlink("f")
    agent.symlink(str(away / "f"), "f")
    (change,) = agent.told(1)
    assert change.change == "type"
    assert SECRET not in change.diff
    agent.kept.undo(1)
    assert not (agent.root / "f").is_symlink()
    assert (away / "f").read_text() == SECRET


def test_swapping_all_the_time_gains_nothing(agent: Agent) -> None:
    """While a thread swaps a directory for a link outwards, no secret is read and no byte written outside."""
    away = outside(agent)
    inner, link = agent.root / "d", agent.root / "link"
    inner.mkdir()
    link.symlink_to(away)
    exchange = ctypes.CDLL(None).renameat2
    swaps, done = [0], threading.Event()

    def swap() -> None:
        while not done.is_set():
            swaps[0] += exchange(-100, os.fsencode(inner), -100, os.fsencode(link), 2) == 0

    held = os.open(inner, os.O_PATH)
    thread = threading.Thread(target=swap)
    thread.start()
    told = []
    try:
        for step in range(150):
            os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=held))
            agent.kept.touch(step, agent.at("d/f"), op="openat")
            agent.kept.touch(-step - 1, agent.at("d"), op="rename")
            os.unlink("f", dir_fd=held)
            told += agent.told(step) + agent.told(-step - 1)
            with suppress(UndoConflictError, WorkspaceError):
                agent.kept.undo(step)
    finally:
        done.set()
        thread.join()
        os.close(held)
    assert swaps[0] > 0
    assert all(SECRET not in change.diff for change in told)
    assert (away / "f").read_text() == SECRET
    assert os.listdir(away) == ["f"]


def test_fifos_and_sockets_are_never_opened(agent: Agent) -> None:
    """A FIFO or socket neither hangs the history nor is read; its removal is told and cannot be undone."""
    os.mkfifo(agent.root / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(agent.at("sock"))
    agent.write("file", "x")
    agent.kept.touch(1, agent.at("fifo"), op="openat")
    agent.unlink("fifo")
    agent.unlink("sock")
    agent.step = 2
    agent.unlink("file")
    agent.mkfifo("file")
    assert agent.changes() == {"file": "type"}
    agent.kept.undo(2)
    assert (agent.root / "file").read_text() == "x"
    assert {c.path: c.note for c in agent.told(1) if c.change == "removed"} == {
        "fifo": "special",
        "sock": "special",
    }
    with pytest.raises(UndoConflictError, match="cannot be made again"):
        agent.kept.undo(1)


def test_a_fifo_swapped_in_before_the_open_is_not_opened(tmp_path: Path) -> None:
    """What is not a regular file at the moment of opening is refused, without waiting for a writer."""
    os.mkfifo(tmp_path / "f")
    folder = os.open(tmp_path, os.O_PATH)
    try:
        with pytest.raises(beneath.NotKeptError, match="became something else"), beneath.open_regular(folder, b"f"):
            pass
    finally:
        os.close(folder)


LEASE = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lease_does_not_hold_up_the_supervisor(agent: Agent) -> None:
    """A write lease, which makes an ordinary open wait for up to 45 s, costs the pre-image and no time."""
    (agent.root / "f").write_text("x")
    command = [sys.executable, "-c", LEASE, agent.at("f")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        agent.kept.touch(1, agent.at("f"), op="openat")
        holder.communicate()
    agent.write("f", "y!")
    (change,) = agent.told(1)
    assert change.note == "pre-image not kept: Resource temporarily unavailable"


@pytest.mark.parametrize("mode", [0o640, 0o440])
def test_hard_links_are_told_and_undone_together(agent: Agent, mode: int) -> None:
    """A content shared with other names comes back under all of them, also where they are not known or lie outside."""
    beyond = outside(agent)
    (agent.root / "f").write_text("before")
    os.link(agent.root / "f", agent.root / "g")
    os.link(agent.root / "f", beyond / "h")
    agent.chmod("g", 0o600)
    agent.write("f", "after")
    agent.append("g", "wards")
    os.chmod(agent.root / "f", mode)
    (first, second) = agent.told(1)
    assert first.diff.splitlines()[-4:] == second.diff.splitlines()[-4:]
    assert first.note.endswith("3 names (hard links) share this content")
    agent.kept.undo(1)
    names = (agent.root / "f", agent.root / "g", beyond / "h")
    assert {(path.read_text(), path.stat().st_ino) for path in names} == {("before", names[0].stat().st_ino)}
    assert stat.S_IMODE(names[0].stat().st_mode) == 0o644


def test_a_second_name_made_by_the_step_is_undone_with_the_first(agent: Agent) -> None:
    """A file that got a second name, and was written through it, has its content back and one name only."""
    (agent.root / "f").write_text("before")
    agent.link("f", "g")
    agent.append("g", "after")
    assert agent.changes() == {"f": "modified", "g": "added"}
    agent.kept.undo(1)
    assert (agent.root / "f").read_text() == "before"
    assert os.listdir(agent.root) == ["f"]


def test_undo_does_not_rewrite_another_file_with_the_inode(agent: Agent) -> None:
    """What took the place of a file with several names is replaced, and not written into."""
    beyond = outside(agent)
    (agent.root / "f").write_text("before")
    os.link(agent.root / "f", agent.root / "g")
    agent.unlink("f")
    agent.symlink(str(beyond / "f"), "f")
    agent.kept.undo(1)
    assert (agent.root / "f").read_text() == "before"
    assert (beyond / "f").read_text() == SECRET
