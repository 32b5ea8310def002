"""Promises of the workspace history: what a step changed is told, as a diff too, and can be taken back."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_agentwatch.errors import UndoConflictError, WorkspaceError
from jupyter_agentwatch.sandbox import comparison
from jupyter_agentwatch.sandbox.textdiff import DiffBudget, unified_diff
from tests.history_agent import KIB, SECRET, Agent, make, snapshot


def expected(before: dict, after: dict) -> dict[str, str]:
    """What `changes` must say of two snapshots."""
    said = {}
    for path in before.keys() | after.keys():
        old, new = before.get(path), after.get(path)
        if old == new:
            continue
        if old is None or new is None:
            said[path] = "added" if old is None else "removed"
        elif old[0] != new[0]:
            said[path] = "type"
        else:
            said[path] = "modified" if old[2] != new[2] else "mode"
    return said


def patched(text: str, diff: str) -> str:
    """Apply a unified diff strictly: each context and removed line must be where the hunk says."""
    lines, out, at = text.split("\n"), [], 0
    lines = [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    rows = diff.split("\n")[2:-1]
    for index, row in enumerate(rows):
        if row.startswith("@@"):
            start, _, count = row.split()[1][1:].partition(",")
            first = int(start) - (count != "0")
            out += lines[at:first]
            at = first
        elif row[0] in " -+":
            bare = index + 1 < len(rows) and rows[index + 1].startswith("\\")
            line = row[1:] + ("" if bare else "\n")
            if row[0] != "+":
                assert lines[at] == line
                at += 1
            if row[0] != "-":
                out.append(line)
    return "".join(out + lines[at:])


NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
TEXT = st.sampled_from(["", "one\n", "one\ntwo\n", "\0binary", "no newline"])
TARGETS = st.sampled_from(
    ["a", "b", "../a", "b/c", ".", "..", "{ws}/a", "{ws}/b/c", "{outside}", "{outside}/a", "a/../b"]
)
OPS = st.one_of(
    st.tuples(st.just("write"), NAMES, TEXT),
    st.tuples(st.just("append"), NAMES, TEXT),
    st.tuples(st.just("unlink"), NAMES),
    st.tuples(st.just("mkdir"), NAMES),
    st.tuples(st.just("mkdir"), NAMES),
    st.tuples(st.just("rmdir"), NAMES),
    st.tuples(st.just("rename"), NAMES, NAMES),
    st.tuples(st.just("rename"), NAMES, NAMES),
    st.tuples(st.just("symlink"), TARGETS, NAMES),
    st.tuples(st.just("truncate"), NAMES, st.sampled_from([0, 2])),
    st.tuples(st.just("chmod"), NAMES, st.sampled_from([0o700, 0o755, 0o4750])),
)
STEP = st.lists(OPS, min_size=1, max_size=8)


@settings(max_examples=250, deadline=None)
@given(before=STEP, steps=st.lists(STEP, min_size=1, max_size=4))
def test_any_steps_are_told_exactly_and_undone_in_reverse(before: list, steps: list) -> None:
    """What each step changed is what two snapshots tell, at once and later; undone in reverse, all is as it was."""
    base = Path(tempfile.mkdtemp())
    try:
        (base / "outside").mkdir()
        (base / "outside" / "a").write_text(SECRET)
        agent = make(base)
        agent.step = 0
        places = {"ws": str(agent.root), "outside": str(base / "outside")}

        def run(number: int, ops: list) -> None:
            agent.step = number
            for name, *arguments in ops:
                getattr(agent, name)(*(a.format_map(places) if isinstance(a, str) else a for a in arguments))

        for folder in ("a", "a/a", "b", "b/c"):
            agent.mkdir(folder)
        for file in ("a/a/b", "a/b", "b/a", "b/c/c", "c"):
            agent.write(file, file)
        run(0, before)
        states = [snapshot(agent.root)]
        for number, ops in enumerate(steps, 1):
            run(number, ops)
            states.append(snapshot(agent.root))
            assert agent.changes() == expected(*states[-2:])
        outside = snapshot(base / "outside")
        for number in range(1, len(steps) + 1):
            agent.step = number
            old, new = states[number - 1 : number + 1]
            assert agent.changes() == expected(old, new)
            for change in agent.kept.changes(number):
                assert change.change != "unclaimed"
                if change.diff:
                    text = old.get(change.path, ("", 0, b""))
                    whole = patched(text[2].decode() if text[0] == "file" else "", change.diff)
                    assert whole == (new[change.path][2].decode() if new.get(change.path, "-")[0] == "file" else "")
        for number in range(len(steps), 0, -1):
            agent.kept.undo(number)
            assert snapshot(agent.root) == states[number - 1]
            assert agent.kept.changes(number) == []
        assert snapshot(base / "outside") == outside
        agent.kept.close()
    finally:
        shutil.rmtree(base)


@settings(max_examples=300, deadline=None)
@given(*[st.lists(st.sampled_from(["a", "b", "", "c\r", "d\x0be"]), max_size=12).map("\n".join)] * 2)
def test_a_diff_turns_the_old_text_into_the_new(old: str, new: str) -> None:
    """A unified diff applies strictly to the old text and gives the new one, also when the search may take no step."""
    for budget in (DiffBudget(), DiffBudget(steps=0)):
        diff = unified_diff(old, new, ("a", "b"), budget)
        assert (diff == "") == (old == new)
        assert not diff or patched(old, diff) == new


def test_a_diff_made_to_be_slow_is_cut_to_a_replacement() -> None:
    """Texts made to defeat the search cost at most the budget and still give a whole diff."""
    old = "".join(f"{i % 7}\n{i % 11}\n" for i in range(20_000))
    new = "".join(f"{i % 5}\n{i % 13}\n" for i in range(20_000))
    budget = DiffBudget(steps=10_000)
    diff = unified_diff(old, new, ("a", "b"), budget)
    assert -10_000 < budget.steps < 0
    assert patched(old, diff) == new


def test_a_changed_text_shows_its_lines(agent: Agent) -> None:
    """A modified text file is told with a unified diff, the rest of the file left out."""
    (agent.root / "f").write_text("".join(f"{i}\n" for i in range(50)))
    agent.append("f", "more\n")
    (change,) = agent.told(1)
    assert (change.path, change.change, change.note) == ("f", "modified", "")
    assert change.diff == "--- a/f\n+++ b/f\n@@ -48,3 +48,4 @@\n 47\n 48\n 49\n+more\n"


@pytest.mark.parametrize(
    ("content", "note"),
    [(b"\xff\xfe", "binary"), (b"a\0b", "binary"), (b"x" * (300 * KIB), "larger than 256 KiB")],
)
def test_what_is_no_short_text_has_a_note_for_a_diff(agent: Agent, content: bytes, note: str) -> None:
    """A binary or big content is told without a diff, with the reason, and can be undone."""
    (agent.root / "f").write_bytes(content)
    agent.write("f", content + b"!")
    (change,) = agent.told(1)
    assert (change.change, change.diff, change.note) == ("modified", "", note)
    agent.kept.undo(1)
    assert (agent.root / "f").read_bytes() == content


def test_what_leaves_no_effect_is_not_told(agent: Agent) -> None:
    """A file opened for writing but left the same, a passing temporary file and a failed call are no changes."""
    (agent.root / "f").write_text("same")
    agent.write("f", "same")
    agent.write("tmp", "x")
    agent.unlink("tmp")
    agent.write("missing/f", "x")
    agent.rmdir("f")
    assert agent.told(1) == []
    assert agent.kept.undo(1) == []
    assert agent.kept.steps() == []


def test_the_other_side_is_what_the_next_step_found(agent: Agent) -> None:
    """A step's diff ends where the next step that touched the file began."""
    for step, text in enumerate(["one\n", "two\n", "three\n"], 1):
        agent.step = step
        agent.write("f", text)
    assert agent.told(1)[0].diff.endswith("+one\n")
    assert agent.told(2)[0].diff.endswith("-one\n+two\n")
    assert agent.kept.steps() == [1, 2, 3]


def test_undo_refuses_when_a_later_step_touched_the_path(agent: Agent) -> None:
    """The refusal names the path and the later step, and leaves everything as it is."""
    agent.write("f", "one")
    agent.write("g", "one")
    agent.step = 2
    agent.write("f", "two")
    before = snapshot(agent.root)
    with pytest.raises(UndoConflictError, match=r"step 1 cannot be undone: f \(touched by step 2\)"):
        agent.kept.undo(1)
    assert snapshot(agent.root) == before
    assert {c.path for c in agent.kept.undo(2)} == {"f"}
    assert {c.path for c in agent.kept.undo(1)} == {"f", "g"}
    assert snapshot(agent.root) == {}


def test_undo_refuses_to_remove_a_directory_that_others_use(agent: Agent) -> None:
    """A directory that a step made stays, and the step with it, while a later step's file lies in it."""
    agent.mkdir("d")
    agent.step = 2
    agent.write("d/theirs", "x")
    with pytest.raises(UndoConflictError, match=r"d/theirs \(in the way, touched by step 2\)"):
        agent.kept.undo(1)
    assert (agent.root / "d" / "theirs").read_text() == "x"


def test_undo_refuses_when_steps_ran_side_by_side(agent: Agent) -> None:
    """Of two steps that wrote one file in turns, the later one cannot be undone past the earlier one's last write."""
    agent.write("f", "1")
    agent.step = 2
    agent.write("f", "2")
    agent.step = 1
    agent.write("f", "3")
    with pytest.raises(UndoConflictError, match=r"f \(touched by step 1\)"):
        agent.kept.undo(2)


def test_undo_refuses_when_the_directory_is_gone(agent: Agent) -> None:
    """A removed file whose directory a person has removed since is not put back to nowhere."""
    (agent.root / "d").mkdir()
    (agent.root / "d" / "f").write_text("x")
    agent.unlink("d/f")
    (agent.root / "d").rmdir()
    with pytest.raises(UndoConflictError, match="the directory that held it is gone"):
        agent.kept.undo(1)


def test_a_removed_tree_comes_back(agent: Agent) -> None:
    """A directory renamed over another, with all below, is put back with contents, links and modes."""
    deep = agent.root / "d" / "e" / "f"
    deep.mkdir(parents=True)
    (deep / "x").write_text("x")
    (deep / "x").chmod(0o640)
    (deep / "l").symlink_to("x")
    (agent.root / "d" / "e").chmod(0o2750)
    (agent.root / "new").mkdir()
    before = snapshot(agent.root)
    agent.rename("d", "new")
    agent.write("new/e/f/x", "other")
    agent.write("d", "a file now")
    assert agent.changes()["d"] == "type"
    assert agent.changes()["new/e/f/x"] == "added"
    agent.kept.undo(1)
    assert snapshot(agent.root) == before


def test_a_file_that_is_being_run_or_read_keeps_its_old_content(agent: Agent) -> None:
    """Undo replaces a file in one step: who has the changed one open goes on with it."""
    (agent.root / "f").write_text("before")
    agent.write("f", "after!")
    with open(agent.root / "f") as held:
        agent.kept.undo(1)
        assert held.read() == "after!"
    assert (agent.root / "f").read_text() == "before"


def test_a_failing_undo_says_where_and_goes_on_when_repeated(agent: Agent) -> None:
    """A system error half-way names the path, leaves no temporary file, and the same undo ends the work later."""
    (agent.root / "big").write_bytes(b"x" * (500 * KIB))
    agent.write("big", "small")
    agent.write("added", "x")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 * KIB, hard))
    try:
        with pytest.raises(WorkspaceError, match="undo stopped at big: File too large"):
            agent.kept.undo(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(agent.root) == ["big"]
    agent.kept.undo(1)
    assert (agent.root / "big").stat().st_size == 500 * KIB


def test_undo_refuses_what_is_touched_while_it_is_planned(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path touched between the plan and the writing of an undo stops it before anything is written."""
    agent.write("f", "x\n")

    def racing(*arguments: Any) -> str:
        agent.kept.touch(2, agent.at("f"), op="openat")
        return unified_diff(*arguments)

    monkeypatch.setattr(comparison, "unified_diff", racing)
    with pytest.raises(UndoConflictError, match=r"f \(touched by step 2 this very moment\)"):
        agent.kept.undo(1)
    assert (agent.root / "f").read_text() == "x\n"
