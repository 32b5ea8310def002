"""Promises of the workspace history: what a step changed is told and can be taken back, whatever the agent swaps."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_agentwatch.errors import UndoConflictError, WorkspaceError
from jupyter_agentwatch.sandbox import beneath, comparison, history, preimage
from jupyter_agentwatch.sandbox.comparison import StepChange
from jupyter_agentwatch.sandbox.history import WorkspaceHistory
from jupyter_agentwatch.sandbox.paths import Root
from jupyter_agentwatch.sandbox.textdiff import DiffBudget, unified_diff
from jupyter_agentwatch.sandbox.truename import TrueNames

KIB = 1024
SECRET = "s3cret that lies outside"
HOST = Root(os.getpid())


class Agent:
    """Makes real changes in a workspace as the supervisor sees them: touched first, then done, failures ignored."""

    def __init__(self, root: Path, kept: WorkspaceHistory) -> None:
        self.root, self.kept, self.step = root, kept, 1
        self.names = TrueNames(HOST)

    def at(self, path: str) -> str:
        return os.path.join(self.root, path)

    def touch(self, path: str | bytes, *, op: str) -> None:
        """Keep a path as the supervisor does: what it leads to, as well, where it is no true name."""
        if not self.kept.touch(self.step, path, op=op):
            true = self.names.resolve(os.fsencode(path), os.getpid(), follow=history.follows(op)).path
            if true is not None:
                self.kept.touch(self.step, true, op=op)

    def _call(self, op: str, paths: list[str], action: Callable) -> None:
        for path in paths:
            self.touch(path, op=op)
        with suppress(OSError):
            action(*paths)

    def write(self, path: str, content: str | bytes = "") -> None:
        raw = content.encode() if isinstance(content, str) else content
        self._call("openat", [self.at(path)], lambda p: Path(p).write_bytes(raw))

    def append(self, path: str, content: str) -> None:
        def action(p: str) -> None:
            with open(p, "a") as file:
                file.write(content)

        self._call("openat", [self.at(path)], action)

    def unlink(self, path: str) -> None:
        self._call("unlinkat", [self.at(path)], os.unlink)

    def mkdir(self, path: str) -> None:
        self._call("mkdirat", [self.at(path)], os.mkdir)

    def rmdir(self, path: str) -> None:
        self._call("rmdir", [self.at(path)], os.rmdir)

    def rename(self, path: str, new: str) -> None:
        self._call("renameat2", [self.at(path), self.at(new)], os.rename)

    def link(self, path: str, new: str) -> None:
        self._call("linkat", [self.at(path), self.at(new)], os.link)

    def symlink(self, target: str, path: str) -> None:
        self._call("symlinkat", [self.at(path)], lambda p: os.symlink(target, p))

    def truncate(self, path: str, size: int) -> None:
        self._call("truncate", [self.at(path)], lambda p: os.truncate(p, size))

    def chmod(self, path: str, mode: int) -> None:
        self._call("fchmodat", [self.at(path)], lambda p: os.chmod(p, mode))

    def mkfifo(self, path: str) -> None:
        self._call("mknodat", [self.at(path)], os.mkfifo)

    def changes(self) -> dict[str, str]:
        return {change.path: change.change for change in self.told(self.step)}

    def told(self, step: int) -> list[StepChange]:
        """What is told of a step but for the unclaimed: a test's own preparations may fall into the same clock tick."""
        return [change for change in self.kept.changes(step) if change.change != "unclaimed"]


def make(base: Path, **limits: int) -> Agent:
    root = base / "ws"
    root.mkdir(exist_ok=True)
    sizes = {"file_bytes": 1024 * KIB, "total_bytes": 64 * 1024 * KIB, **limits}
    return Agent(root, WorkspaceHistory(root, base / "store", **sizes))


@pytest.fixture(params=["openat2", "stepwise"])
def agent(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """An agent in an empty workspace, on a kernel with openat2 and on one that answers ENOSYS."""
    if request.param == "stepwise":
        monkeypatch.setattr(beneath, "_OPENAT2", 100_000)
    made = make(tmp_path)
    yield made
    made.kept.close()


def snapshot(root: Path) -> dict[str, tuple[str, int, bytes]]:
    """Kind, mode and content of everything below a folder, following nothing."""
    found = {}
    for folder, names, files in os.walk(root):
        for name in names + files:
            path = os.path.join(folder, name)
            info = os.lstat(path)
            if stat.S_ISLNK(info.st_mode):
                entry = ("symlink", 0, os.fsencode(os.readlink(path)))
            elif stat.S_ISREG(info.st_mode):
                entry = ("file", stat.S_IMODE(info.st_mode), Path(path).read_bytes())
            else:
                entry = ("directory" if stat.S_ISDIR(info.st_mode) else "special", stat.S_IMODE(info.st_mode), b"")
            found[os.path.relpath(path, root)] = entry
    return found


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


def test_a_file_that_is_being_run_or_read_keeps_its_old_content(agent: Agent) -> None:
    """Undo replaces a file in one step: who has the changed one open goes on with it."""
    (agent.root / "f").write_text("before")
    agent.write("f", "after!")
    with open(agent.root / "f") as held:
        agent.kept.undo(1)
        assert held.read() == "after!"
    assert (agent.root / "f").read_text() == "before"


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
    fd = os.open(agent.root, os.O_PATH)
    for _ in range(2_500):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
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


UNPRIVILEGED = """
import os, pathlib, sys
from jupyter_agentwatch.errors import UndoConflictError
from jupyter_agentwatch.sandbox.history import WorkspaceHistory
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
base = pathlib.Path(sys.argv[1])
ws = base / "ws"
(ws / "d").mkdir(parents=True)
(ws / "f").write_text("x"); (ws / "f").chmod(0)
kept = WorkspaceHistory(ws, base / "store", file_bytes=100, total_bytes=1000)
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
    base = tempfile.mkdtemp()
    try:
        os.chmod(base, 0o777)  # noqa: S103 -- the child that writes here is another user
        root = Path(history.__file__).parents[2]
        command = [sys.executable, "-c", UNPRIVILEGED, base]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    finally:
        shutil.rmtree(base)
    denied = "Permission denied"
    assert done.stdout.splitlines() == [
        "d/x: modified: not known what it was: Permission denied",
        "f: modified: pre-image not kept: Permission denied; mode 0000 → 0600",
        f"step 1 cannot be undone: d/x (not known what it was: {denied}); f (pre-image not kept: {denied})",
    ]


CLOSED = """
import os, pathlib, sys
from jupyter_agentwatch.sandbox.history import WorkspaceHistory
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
base = pathlib.Path(sys.argv[1])
ws = base / "ws"
(ws / "d").mkdir(parents=True)
(ws / "d" / "f").write_text("before")
(ws / "d").chmod(0o750)
kept = WorkspaceHistory(ws, base / "store", file_bytes=100, total_bytes=1000)
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
    base = tempfile.mkdtemp()
    try:
        os.chmod(base, 0o777)  # noqa: S103 -- the child that writes here is another user
        root = Path(history.__file__).parents[2]
        command = [sys.executable, "-c", CLOSED, base]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    finally:
        shutil.rmtree(base)
    assert done.stdout == "before 0o40750 ['d']\n"


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
