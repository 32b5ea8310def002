"""What a file has besides its content comes back with it: mode, owner, times, attributes; also for an ordinary user."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_agentwatch.sandbox import history
from tests.history_agent import Agent, make


def test_mode_and_owner_come_back(agent: Agent) -> None:
    """Permission bits with setuid, and the owner where we may set it, are those of the pre-image."""
    owner = 12345 if os.geteuid() == 0 else os.geteuid()
    for name in ("rewritten", "removed", "mode"):
        path = agent.root / name
        path.write_text("x")
        os.chown(path, owner, -1)
        path.chmod(0o4751)
    agent.write("new", "y")
    agent.rename("new", "rewritten")
    agent.unlink("removed")
    agent.chmod("mode", 0o600)
    assert {c.path: c.note for c in agent.told(1)} == {
        "rewritten": f"mode 4751 → {stat.S_IMODE((agent.root / 'rewritten').stat().st_mode):04o}",
        "removed": "",
        "mode": "mode 4751 → 0600",
    }
    agent.kept.undo(1)
    for name in ("rewritten", "removed", "mode"):
        info = (agent.root / name).lstat()
        assert (stat.S_IMODE(info.st_mode), info.st_uid) == (0o4751, owner)


def test_times_that_a_step_set_are_told_and_come_back(agent: Agent) -> None:
    """A time that a call sets is told, of a link as of a file; with or without a new content it comes back."""
    names = ("set", "behind", "rewritten", "both")
    for name in names:
        (agent.root / name).write_text(name)
        os.utime(agent.root / name, (1_000, 1_000))
    (agent.root / "link").symlink_to("behind")
    os.utime(agent.root / "link", (1_000, 1_000), follow_symlinks=False)
    agent.utime("set", 86_400)
    agent.utime("link", 2_000)
    agent.lutime("link", 3_000)
    agent.write("rewritten", "new")
    agent.utime("both", 4_000)
    agent.write("both", "new")
    told = {change.path: change for change in agent.told(1)}
    assert {path: change.change for path, change in told.items()} == {
        "set": "times",
        "behind": "times",
        "link": "times",
        "rewritten": "modified",
        "both": "modified",
    }
    assert told["set"].note == "modified 1970-01-01 00:16:40.000+00:00 → 1970-01-02 00:00:00.000+00:00"
    agent.kept.undo(1)
    for name in names:
        assert ((agent.root / name).read_text(), (agent.root / name).stat().st_mtime) == (name, 1_000)
    assert (agent.root / "link").lstat().st_mtime == 1_000
    assert agent.told(1) == []


def test_a_time_that_nobody_set_is_no_change(agent: Agent) -> None:
    """The same content written again, a time set to what it was, and the times of folders are not told."""
    (agent.root / "same").write_text("content")
    os.utime(agent.root / "same", (1_000, 1_000))
    (agent.root / "kept").write_text("")
    os.utime(agent.root / "kept", (1_000, 1_000))
    (agent.root / "d").mkdir()
    agent.write("same", "content")
    agent.utime("kept", 1_000)
    agent.utime("d", 1_000)
    assert agent.told(1) == []


def test_a_time_of_any_year_is_told(agent: Agent) -> None:
    """A file system takes times that no calendar here has."""
    (agent.root / "f").write_text("")
    agent.utime("f", 1 << 33)
    (agent.root / "g").write_text("")
    os.utime(agent.root / "g", (1_000, 1_000))
    agent.utime("g", -(1 << 31))
    assert {change.path: change.change for change in agent.told(1)} == {"f": "times", "g": "times"}
    agent.kept.undo(1)
    assert (agent.root / "g").stat().st_mtime == 1_000


def _takes_attributes(folder: str) -> bool:
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        try:
            os.setxattr(file.name, "user.origin", b"")
        except OSError:
            return False
    return True


@pytest.fixture
def marked() -> Iterator[Agent]:
    """An agent on the first file system that takes attributes: that of temporary files may be one that does not."""
    folders = [tempfile.gettempdir(), "/var/tmp", "/dev/shm", os.getcwd()]
    base = tempfile.mkdtemp(dir=next(filter(_takes_attributes, folders)))
    made = make(Path(base))
    yield made
    made.kept.close()
    shutil.rmtree(base)


def test_attributes_come_back(marked: Agent) -> None:
    """What a file or folder bears besides its content stands again on what undo has to make anew."""
    (marked.root / "d").mkdir()
    (marked.root / "d" / "f").write_text("before")
    (marked.root / "g").write_text("before")
    for name in ("d", "d/f", "g"):
        os.setxattr(marked.root / name, "user.origin", name.encode())
    marked.unlink("d/f")
    marked.rmdir("d")
    marked.write("new", "after")
    marked.rename("new", "g")
    marked.kept.undo(1)
    for name in ("d", "d/f", "g"):
        assert os.getxattr(marked.root / name, "user.origin") == name.encode()


ORDINARY = """
import os, pathlib, sys
from jupyter_agentwatch.errors import UndoConflictError
from jupyter_agentwatch.sandbox.history import WorkspaceHistory
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
base = pathlib.Path(sys.argv[1])
ws = base / "ws"
(ws / "d").mkdir(parents=True)
kept = WorkspaceHistory(ws, base / "store", file_bytes=100, total_bytes=1000)
"""


def _said_by_an_ordinary_user(program: str) -> str:
    base = tempfile.mkdtemp()
    try:
        os.chmod(base, 0o777)  # noqa: S103 -- the child that writes here is another user
        root = Path(history.__file__).parents[2]
        command = [sys.executable, "-c", ORDINARY + program, base]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout
    finally:
        shutil.rmtree(base)


UNREADABLE = """
(ws / "f").write_text("x"); (ws / "f").chmod(0)
(ws / "d").chmod(0)
for name in ("d/x", "f"):
    kept.touch(1, str(ws / name), op="openat")
(ws / "d").chmod(0o700)
(ws / "d" / "x").write_text("1")
(ws / "f").chmod(0o600); (ws / "f").write_text("longer")
for change in kept.changes(1):
    print(change.path, change.change, change.note, sep=": ")
try:
    kept.undo(1)
except UndoConflictError as error:
    print(error)
"""


def test_what_may_not_be_read_is_told() -> None:
    """What an ordinary user's supervisor may not search or read is told as unknown, and undo refuses."""
    denied = "Permission denied"
    assert _said_by_an_ordinary_user(UNREADABLE).splitlines() == [
        "d/x: modified: not known what it was: Permission denied",
        "f: modified: pre-image not kept: Permission denied; mode 0000 → 0600",
        f"step 1 cannot be undone: d/x (not known what it was: {denied}); f (pre-image not kept: {denied})",
    ]


CLOSED = """
(ws / "d" / "f").write_text("before")
(ws / "d").chmod(0o750)
for name, op in (("d/f", "openat"), ("d", "chmod"), ("new", "mkdir"), ("new/g", "openat"), ("new", "chmod")):
    kept.touch(1, str(ws / name), op=op)
(ws / "d" / "f").write_text("after")
(ws / "new").mkdir()
(ws / "new" / "g").touch()
for name in ("d", "new"):
    (ws / name).chmod(0o555)
kept.undo(1)
print((ws / "d" / "f").read_text(), oct((ws / "d").stat().st_mode), os.listdir(ws))
"""


def test_undo_gets_into_folders_that_the_step_closed() -> None:
    """Folders that an ordinary user's step made read-only stop no undo, and get back the mode that they had."""
    assert _said_by_an_ordinary_user(CLOSED) == "before 0o40750 ['d']\n"
