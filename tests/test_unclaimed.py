"""Promises of the net below the claims: a change that no call on record explains is told, and nothing else is."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jupyter_agentwatch.sandbox import history
from jupyter_agentwatch.sandbox.history import WorkspaceHistory
from tests.history_agent import make_deep
from tests.outside import wait_for_file_clock

if TYPE_CHECKING:
    from collections.abc import Iterator


class Ground:
    """A workspace in which step 1 has begun, after everything in it was long done."""

    def __init__(self, base: Path) -> None:
        self.root = base / "ws"
        (self.root / "d" / "e").mkdir(parents=True)
        for name in ("f", "g", "d/h", "d/e/i"):
            (self.root / name).write_text("before")
        os.link(self.root / "g", self.root / "d" / "g2")
        wait_for_file_clock()
        self.kept = WorkspaceHistory(self.root, base / "store", file_bytes=1 << 20, total_bytes=1 << 20)
        self.claim("/tmp/elsewhere", 1)

    def claim(self, path: str, step: int = 1, op: str = "openat") -> None:
        self.kept.touch(step, os.path.join(self.root, path), op=op)

    def told(self, step: int = 1) -> dict[str, str]:
        return {change.path: change.change for change in self.kept.changes(step)}


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    """See `Ground`."""
    made = Ground(tmp_path)
    yield made
    made.kept.close()


def test_a_file_that_changes_without_a_claim_is_told_and_left(ground: Ground) -> None:
    """A write, a new file and a new link that nothing on record names are told, by diff and by undo, and stay."""
    ground.claim("g")
    (ground.root / "g").write_text("after")
    (ground.root / "f").write_text("flipped")
    (ground.root / "d" / "new").touch()
    (ground.root / "d" / "link").symlink_to("new")
    expected = {"f": "unclaimed", "d/new": "unclaimed", "d/link": "unclaimed", "d/g2": "unclaimed", "g": "modified"}
    assert ground.told() == expected
    notes = {change.path: change.note for change in ground.kept.changes(1)}
    assert "by no call on record" in notes["f"]
    assert notes["d/g2"].startswith("another name (hard link) of a file that is on record")
    assert {change.path: change.change for change in ground.kept.undo(1)} == expected
    assert (ground.root / "f").read_text() == "flipped"
    assert (ground.root / "g").read_text() == "before"
    assert ground.told() == {path: "unclaimed" for path, change in expected.items() if change != "modified"} | {
        "d/g2": "unclaimed"
    }


def test_a_claimed_name_that_was_not_meant_does_not_hide_the_true_one(ground: Ground) -> None:
    """A claim of one file, where another one was changed, tells the other and not the claimed one."""
    ground.claim("d/h")
    (ground.root / "f").write_text("flipped")
    assert ground.told() == {"f": "unclaimed"}


@pytest.mark.parametrize("name", ["d/h", "d/e/i"])
def test_an_entry_that_goes_without_a_claim_is_told_by_its_folder(ground: Ground, name: str) -> None:
    """Where something has gone and no entry of the folder is on record, the folder is told."""
    (ground.root / name).unlink()
    assert ground.told() == {os.path.dirname(name): "unclaimed"}


def test_a_rename_without_a_claim_is_told(ground: Ground) -> None:
    """A folder that moved is told where it is now, and so are the folders that it left and came to."""
    (ground.root / "d" / "e").rename(ground.root / "moved")
    assert ground.told() == {"moved": "unclaimed", "d": "unclaimed", ".": "unclaimed"}


@pytest.mark.parametrize("change", ["owner", "times", "mode"])
def test_what_is_not_followed_shows_here(ground: Ground, change: str) -> None:
    """A change of owner, times or mode that nothing on record names is told as well."""
    path = ground.root / "f"
    if change == "owner":
        os.chown(path, os.geteuid(), os.getegid())
    elif change == "times":
        os.utime(path, (1, 1))
    else:
        path.chmod(0o600)
    assert ground.told() == {"f": "unclaimed"}


def test_what_changes_while_nothing_runs_is_no_steps(ground: Ground) -> None:
    """What a person changes before the step, or after its last process ended, is not told of it."""
    (ground.root / "f").write_text("in time")
    wait_for_file_clock()
    ground.kept.quiet(time.time_ns())
    wait_for_file_clock()
    (ground.root / "d" / "h").write_text("a person's")
    assert ground.told() == {"f": "unclaimed"}
    wait_for_file_clock()
    ground.claim("/tmp/elsewhere", 2)
    (ground.root / "d" / "e" / "i").write_text("late")
    assert ground.told(2) == {"d/e/i": "unclaimed"}
    assert ground.told(1) == {"f": "unclaimed"}


def test_a_step_that_goes_on_is_not_cut_off(ground: Ground) -> None:
    """A moment of quiet that lies before a step began ends nothing of it."""
    before = time.time_ns()
    wait_for_file_clock()
    ground.claim("/tmp/elsewhere", 2)
    ground.kept.quiet(before)
    wait_for_file_clock()
    (ground.root / "f").write_text("late")
    assert ground.told(2) == {"f": "unclaimed"}


def test_what_another_step_claims_is_told_of_that_step(ground: Ground) -> None:
    """A path that another step has on record is that step's, also while both run."""
    ground.claim("f", 2)
    (ground.root / "f").write_text("after")
    assert ground.told(1) == {}
    assert ground.told(2) == {"f": "modified"}


def test_an_undo_leaves_no_trace_of_its_own(ground: Ground) -> None:
    """What undo writes while the step may still run is not told as a change afterwards."""
    for path, op in (("f", "openat"), ("d/h", "unlink"), ("d/new", "mkdir")):
        ground.claim(path, op=op)
    (ground.root / "f").write_text("after")
    (ground.root / "d" / "h").unlink()
    (ground.root / "d" / "new").mkdir()
    wait_for_file_clock()
    assert set(ground.told()) == {"f", "d/h", "d/new"}
    ground.kept.undo(1)
    assert ground.told() == {}
    (ground.root / "f").write_text("again")
    assert ground.told() == {"f": "unclaimed"}


def test_a_workspace_too_large_to_look_at_is_said(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the number of paths that are looked at, one row says that there may be more."""
    monkeypatch.setattr(history, "_LOOKED_AT", 3)
    (last,) = ground.kept.changes(1)
    assert (last.path, last.change) == (".", "unclaimed")
    assert last.note.startswith("more than 3 paths")


def test_what_cannot_be_read_does_not_hide_the_rest(ground: Ground) -> None:
    """A tree deeper than any path that is looked at ends the look at that tree only."""
    make_deep(ground.root / "d", 150)
    (ground.root / "f").write_text("flipped")
    told = ground.told()
    assert told["f"] == "unclaimed"
    assert 100 < len(told) < 140
