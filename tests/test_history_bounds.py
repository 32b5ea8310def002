"""What a history keeps is bounded, and what is not kept is said: sizes, depths, a full disk, descriptors."""

from __future__ import annotations

import os
import resource
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from jupyter_agentwatch.errors import UndoConflictError, WorkspaceError
from jupyter_agentwatch.sandbox import beneath, comparison, history, preimage
from jupyter_agentwatch.sandbox.history import WorkspaceHistory
from jupyter_agentwatch.sandbox.textdiff import unified_diff
from tests.history_agent import KIB, Agent, make, make_deep


def test_a_file_that_grows_while_it_is_read_is_not_kept(tmp_path: Path) -> None:
    """A content that is not the one that was looked at is refused rather than kept torn."""
    store = preimage.BlobStore(tmp_path / "store", file_bytes=KIB * KIB, total_bytes=KIB * KIB)
    for size in (10, 300 * KIB):
        path = tmp_path / "f"
        path.write_bytes(b"x" * size)
        with open(path, "ab") as file:
            info = os.fstat(file.fileno())
            file.write(b"more")
        with open(path, "rb") as file, pytest.raises(beneath.NotKeptError, match="changed while it was read"):
            store._put(file.fileno(), info)
    assert os.listdir(tmp_path / "store") == ["pack"]
    store.close()


def test_a_sparse_giant_is_told_and_not_read(agent: Agent) -> None:
    """A file over the limit, of a tebibyte even, is listed with the reason and makes undo refuse."""
    (agent.root / "f").touch()
    os.truncate(agent.root / "f", 1 << 40)
    agent.truncate("f", 5)
    (change,) = agent.told(1)
    assert (change.change, change.note) == ("modified", "pre-image not kept: larger than 1 MiB")
    with pytest.raises(UndoConflictError, match=r"f \(pre-image not kept: larger than 1 MiB\)"):
        agent.kept.undo(1)


@pytest.mark.parametrize(("settling_ns", "told"), [(-(1 << 62), {}), (1 << 62, {"f": "modified"})])
def test_a_file_that_was_not_kept_but_not_changed(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, settling_ns: int, told: dict
) -> None:
    """Opening a file over the limit without changing it is no change, unless its stamps are too fresh to tell."""
    monkeypatch.setattr(preimage, "_SETTLED_NS", settling_ns)
    (agent.root / "f").write_bytes(b"x" * (2048 * KIB))
    agent.kept.touch(1, agent.at("f"), op="openat")
    assert agent.changes() == told


def test_the_budget_of_the_watch_is_kept(tmp_path: Path) -> None:
    """When the bytes for a watch are used up, further contents are told as not kept; an undo gives room back."""
    agent = make(tmp_path, file_bytes=400 * KIB, total_bytes=500 * KIB)
    for name in ("a", "b"):
        (agent.root / name).write_bytes(b"x" * (300 * KIB))
    agent.write("a", "1")
    agent.step = 2
    agent.write("b", "1")
    assert agent.told(2)[0].note == "pre-image not kept: the 500 KiB that this watch may keep are used up"
    agent.kept.undo(1)
    agent.step = 3
    agent.write("a", "2")
    assert agent.told(3)[0].note == "larger than 256 KiB"
    agent.kept.undo(3)
    assert (agent.root / "a").stat().st_size == 300 * KIB
    agent.kept.close()


def test_a_tree_over_the_limit_is_told_and_not_undone(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """When more lies below a renamed directory than is kept, that is said, and undo refuses instead of losing it."""
    monkeypatch.setattr(history, "_TREE_PATHS", 5)
    (agent.root / "d").mkdir()
    for number in range(9):
        (agent.root / "d" / str(number)).touch()
    agent.rename("d", "e")
    told = {c.path: c for c in agent.told(1)}
    assert told["d"].note == "directory; not all pre-images below it were kept: more than 5 paths"
    assert set(told) >= {"d", "e", *(f"e/{n}" for n in range(9))}
    with pytest.raises(UndoConflictError, match="more than 5 paths"):
        agent.kept.undo(1)


def test_a_tree_deeper_than_any_path_is_bounded(tmp_path: Path) -> None:
    """A tree of 2,500 levels is kept and listed down to the limit, what is below is said, and undo refuses."""
    agent = make(tmp_path)
    (agent.root / "d").mkdir()
    make_deep(agent.root / "d", 2_499)
    agent.rename("d", "e")
    told = {c.path: c for c in agent.told(1)}
    assert told["d"].note.endswith("were kept: paths of more than 128 levels or 4000 bytes")
    assert told["e"].note.endswith("was read: paths of more than 128 levels or 4000 bytes")
    assert len(told) <= 256
    with pytest.raises(UndoConflictError, match="more than 128 levels"):
        agent.kept.undo(1)
    agent.kept.close()
    subprocess.run(["rm", "-rf", agent.at("e")], check=True)


@pytest.mark.parametrize("path", ["d/" * 200 + "f", "d/./" * 200 + "f", "/".join(["d" * 200] * 25), "d/" * 3_000 + "f"])
def test_a_change_too_deep_to_be_kept_is_told(agent: Agent, path: str) -> None:
    """A touch below the limit of depth marks the directory above it as not fully known."""
    top = path.split("/", maxsplit=1)[0]
    (agent.root / top).mkdir()
    fd = os.open(agent.root / top, os.O_PATH)
    for _ in range(200):
        os.mkdir(top, dir_fd=fd)
        inner = os.open(top, os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    agent.touch(agent.at(path), op="openat")
    told = agent.told(1)
    assert [c.note for c in told] == ["not known what it was: paths of more than 128 levels or 4000 bytes"]
    assert told[0].path.startswith(f"{top}/{top}")
    with pytest.raises(UndoConflictError, match="more than 128 levels"):
        agent.kept.undo(1)


def test_touches_beyond_the_index_are_told(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the memory for touched paths is used up, the step says that it is incomplete and is not undone."""
    agent.write("a", "1")
    agent.kept._room = 0
    agent.step = 2
    agent.write("b", "1")
    assert agent.changes() == {".": "modified"}
    assert "memory for touched paths" in agent.told(2)[0].note
    with pytest.raises(UndoConflictError, match="memory for touched paths"):
        agent.kept.undo(2)


def test_a_full_disk_costs_the_pre_image_and_is_said(agent: Agent) -> None:
    """When the store cannot be written, the touch goes through and the change says why nothing was kept."""
    (agent.root / "big").write_bytes(b"x" * (500 * KIB))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 * KIB, hard))
    try:
        agent.write("big", "small")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert agent.told(1)[0].note == "pre-image not kept: File too large"
    assert os.listdir(agent.root.parent / "store") == ["pack"]


def test_touch_does_not_wait_for_a_diff(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """While `changes` diffs, the notification thread's `touch` goes through."""
    agent.write("f", "x\n")
    waited = []

    def slow(*arguments: Any) -> str:
        thread = threading.Thread(
            target=agent.kept.touch, args=(2, agent.at("g")), kwargs={"op": "openat"}, daemon=True
        )
        thread.start()
        thread.join(30)
        waited.append(thread.is_alive())
        return unified_diff(*arguments)

    monkeypatch.setattr(comparison, "unified_diff", slow)
    assert agent.told(1)[0].diff.endswith("+x\n")
    assert waited == [False]
    assert agent.kept.steps() == [1, 2]


def test_an_answer_is_bounded(agent: Agent) -> None:
    """Diffs beyond the limit of one answer are left out with a note, and each change is still listed."""
    for number in range(30):
        agent.write(f"{number}", f"{number}\n" + "x" * 200 * KIB)
    told = agent.told(1)
    assert len(told) == 30
    assert sum(len(c.diff) for c in told) <= 4 << 20
    assert {c.note for c in told if not c.diff} == {"no diff: the answer would become too long"}


def test_close_leaves_nothing_and_later_calls_do_nothing(agent: Agent) -> None:
    """After `close` the store is gone and a late touch, diff or undo finds nothing."""
    (agent.root / "f").write_bytes(b"x" * (300 * KIB))
    agent.write("f", "1")
    agent.kept.close()
    agent.write("f", "2")
    assert (agent.told(1), agent.kept.undo(1), agent.kept.steps()) == ([], [], [])
    assert not (agent.root.parent / "store").exists()


def test_no_descriptor_is_left_open(agent: Agent) -> None:
    """However calls end, as many descriptors are open afterwards as before."""
    os.mkfifo(agent.root / "fifo")
    (agent.root / "d").mkdir()
    (agent.root / "d" / "big").write_bytes(b"x" * (300 * KIB))
    (agent.root / "l").symlink_to("loop/../d")
    before = len(os.listdir("/proc/self/fd"))
    for path in ("fifo", "d/big", "l/x", "l", "none/x", "d/big/x", "../ws/d/big", "d/./big", "d/" * 2500):
        for op in ("openat", "renameat"):
            agent.kept.touch(1, agent.at(path), op=op)
    agent.write("d/big", "x")
    agent.rename("d", "e")
    agent.told(1)
    with pytest.raises(UndoConflictError):
        agent.kept.undo(1)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("case", ["inside", "open", "full", "file", "link", "relative", "missing"])
def test_unsafe_folders_are_refused(tmp_path: Path, case: str) -> None:
    """A store that others could read or that lies inside, and a workspace that is no directory, are errors."""
    ws, store = tmp_path / "ws", tmp_path / "store"
    ws.mkdir()
    if case in {"open", "full"}:
        store.mkdir(mode=0o755 if case == "open" else 0o700)
        (store / "x").touch() if case == "full" else None
    workspaces = {"file": tmp_path / "f", "link": tmp_path / "l", "relative": Path("ws"), "missing": tmp_path / "no"}
    (tmp_path / "f").touch()
    (tmp_path / "l").symlink_to(ws)
    with pytest.raises(WorkspaceError, match=r"workspace|store"):
        WorkspaceHistory(
            workspaces.get(case, ws), ws / "store" if case == "inside" else store, file_bytes=1, total_bytes=1
        )
