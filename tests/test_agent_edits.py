"""Edits and patches: what they make of texts, and that inside the sandbox they change what they say or nothing."""

from __future__ import annotations

import difflib
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_agentwatch.agents import Action, Edit, Observation, Outcome, Patch, Shell
from jupyter_agentwatch.agents.edit_inside import EditError, apply_patch, replace_once, shown_diff
from tests.actors import Doing

if TYPE_CHECKING:
    from jupyter_agentwatch import Watch

PATIENCE_S = 60.0

LINES = st.lists(
    st.sampled_from(["a\n", "b\n", "\n", "-- x\n", "++ y\n", "@@ z\n", " c\n", "\\ d\n", "é\r\n"]), max_size=12
)


@given(LINES, LINES, st.integers(0, 3))
def test_a_diff_makes_of_one_text_the_other(before: list[str], after: list[str], context: int) -> None:
    """Whatever difflib says of two texts, applied to the first gives the second; lines that look like headers, too."""
    diff = "".join(difflib.unified_diff(before, after, "a/f", "b/f", n=context))
    if diff:
        assert apply_patch(diff, {"f": "".join(before)}) == {"f": "".join(after)}


@given(LINES, LINES)
def test_the_diff_that_is_shown_can_be_applied(before: list[str], after: list[str]) -> None:
    """What an agent sees of its edit is a diff with which it could have made it."""
    texts = ["".join(line.replace("\r", "") for line in lines) for lines in (before, after)]
    diff = shown_diff({"f": texts[0]}, {"f": texts[1]})
    if diff:
        assert apply_patch(diff + "\n", {"f": texts[0]}) == {"f": texts[1]}


BODY = "one\ntwo\nthree\ntwo\nfour\n"


@pytest.mark.parametrize(
    ("hunk", "becomes"),
    [
        ("@@ -99,2 +99,2 @@\n three\n-two\n+2\n", "one\ntwo\nthree\n2\nfour\n"),
        ("@@ @@\n-four\n+4\n", "one\ntwo\nthree\ntwo\n4\n"),
        ("@@ -2 +2 @@\n-two\n+2\n", "one\n2\nthree\ntwo\nfour\n"),
        ("@@ -4 +4 @@\n-two\n+2\n", "one\ntwo\nthree\n2\nfour\n"),
        ("@@ -0,0 +1 @@\n+zero\n", f"zero\n{BODY}"),
        ("@@ -5 +5 @@\n-four\n+4\n\\ No newline at end of file\n", "one\ntwo\nthree\ntwo\n4"),
        ("@@ -1 +1 @@\n-one\n+1\n@@ -5 +5,2 @@\n-four\n+4\n+5\n", "1\ntwo\nthree\ntwo\n4\n5\n"),
    ],
)
def test_a_hunk_finds_its_place(hunk: str, becomes: str) -> None:
    """A right line number counts; with a wrong one, or none, the one place that reads as the hunk says."""
    assert apply_patch(f"--- a/f\n+++ b/f\n{hunk}", {"f": BODY}) == {"f": becomes}


@pytest.mark.parametrize(
    ("diff", "says"),
    [
        ("", "no unified diff"),
        ("hello\n", "no unified diff"),
        ("--- a/f\n+++ b/f\n", "no unified diff"),
        ("--- a/f\n+++ b/f\n@@ -9 +9 @@\n-two\n+2\n", "hunk 1 fits in 2 places"),
        ("--- a/f\n+++ b/f\n@@ -1 +1 @@\n-nine\n+9\n", "hunk 1 fits in 0 places"),
        ("--- a/g\n+++ b/g\n@@ -1 +1 @@\n-one\n+1\n", "g: there is no such file"),
        ("--- /dev/null\n+++ b/f\n@@ -0,0 +1 @@\n+x\n", "f: the diff makes this file, and it exists"),
        ("--- a/f\n+++ /dev/null\n@@ -1 +0,0 @@\n-one\n", "would be left"),
        ("--- /dev/null\n+++ /dev/null\n@@ -1 +1 @@\n-one\n", "both sides"),
        ("--- a/f\n+++ b/f\n@@ -1 +1 @@\n-one\n*two\n", "begins with none of space"),
    ],
)
def test_a_diff_that_does_not_fit_changes_nothing(diff: str, says: str) -> None:
    """The refusal says which file, which hunk and why."""
    with pytest.raises(EditError, match=says):
        apply_patch(diff, {"f": BODY, "g": None})


def test_files_are_made_renamed_and_removed() -> None:
    """A diff may make a file, give one another name, and remove one, in one go."""
    diff = (
        "--- /dev/null\n+++ b/new\n@@ -0,0 +1 @@\n+n\n"
        "--- a/old\n+++ b/renamed\n@@ -1 +1 @@\n-o\n+p\n"
        "--- a/gone\n+++ /dev/null\n@@ -1 +0,0 @@\n-g\n"
    )
    found = apply_patch(diff, {"new": None, "old": "o\n", "renamed": None, "gone": "g\n"})
    assert found == {"new": "n\n", "old": None, "renamed": "p\n", "gone": None}


@pytest.mark.parametrize(
    ("old", "says"), [("x", "0 times"), ("two", "2 times"), ("fourr", "nearest to its first line is line 5")]
)
def test_a_passage_stands_there_once_or_nothing_is_replaced(old: str, says: str) -> None:
    """None and several are refused, and a near miss is shown."""
    with pytest.raises(EditError, match=says):
        replace_once(BODY, old, "y")


def told(watch: Watch, *actions: Action) -> list[Observation]:
    """Return what an agent is told of each of its actions."""
    agent = Doing(*actions)
    run = watch.run_agent(agent, "edit")
    assert run.wait(PATIENCE_S) is Outcome.FINISHED, run.reason
    return agent.seen[1:]


@pytest.mark.sandbox
@pytest.mark.rungs("A", "B")
def test_no_edit_leaves_the_workspace_or_harms_a_file(closed: Watch) -> None:
    """Links that lead out, pipes, folders, other encodings and texts that are none are refused; nothing changes."""
    prepared = Shell(
        "echo kept > kept; mkdir d; mkfifo pipe; ln -s /etc/passwd out; ln -s /etc there; ln -s ../../x up; "
        "printf '\\377' > latin; ln -s kept within; chmod 750 kept"
    )
    refused: list[Action] = [
        *(Edit(path, "", "x") for path in ("out", "there/new", "up", "../x", "/etc/x", "d", "pipe", "", ".", "a\0b")),
        Edit("latin", "a", "b"),
        Edit("kept", "", "x"),
        Edit("none", "a", "b"),
        Edit("kept", "kept", "\ud800"),
        Edit("\ud800", "", "x"),
        Patch("--- a/kept\n+++ b/kept\n@@ -1 +1 @@\n-kept\n+x\n--- a/none\n+++ b/none\n@@ -1 +1 @@\n-a\n+b\n"),
        Patch("--- a/kept\n+++ b/../../y\n@@ -1 +1 @@\n-kept\n+x\n"),
    ]
    seen = told(closed, prepared, *refused)
    assert seen[0].ok, seen[0].text
    assert [each.exit_code for each in seen[1:]] == [1] * len(refused), [each.text for each in seen[1:]]
    assert all("nothing was changed: " in each.text and "Traceback" not in each.text for each in seen[1:])
    assert (closed.workspace / "kept").read_text() == "kept\n"
    assert sorted(os.listdir(closed.workspace)) == ["d", "kept", "latin", "out", "pipe", "there", "up", "within"]
    (seen_within,) = told(closed, Edit("within", "kept", "changed"))
    assert seen_within.ok
    assert (closed.workspace / "kept").read_text() == "changed\n"
    assert (closed.workspace / "kept").stat().st_mode & 0o777 == 0o750
    assert (closed.workspace / "within").is_symlink()
