"""What real programs do to files, by every name and in every way: diff shows it and undo takes it back."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from jupyter_agentwatch import Watch
from jupyter_agentwatch.events import FileOp, Finding
from tests.outside import LONG_S, answer_of, put, recorded, wait_for_file_clock

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]

BEFORE: Final = "before\n" * 20
RACES: Final = 400
ROUNDS: Final = 40

NAMES: Final = (
    "/proc/self/cwd/f",
    "/proc/thread-self/cwd/f",
    "/proc/{pid}/cwd/f",
    "/proc/{pid}/task/{tid}/cwd/./f",
    "/proc/{child}/cwd/f",
    "/proc/self/root{ws}/f",
    "/proc/self/fd/{file}",
    "/proc/self/fd/{folder}/f",
    "/proc/{pid}/fd/{folder}/../{base}/f",
    "/dev/fd/{file}",
    "{tmp}/l",
    "{tmp}/d/f",
    "{tmp}/d//./f",
    "{tmp}/back",
    "{tmp}/p/cwd/f",
    "/usr/../{ws}/f",
    "{ws}/../{base}/f",
    "{ws}/out",
)

WAYS: Final = {
    "f=modified": "pwrite ftruncate truncate sparse punch allocate copy_range sendfile splice mapped rename_over",
    "f=modified source=modified": "exchange",
    "d/e=removed d/e/g=removed moved=added moved/e=added moved/e/g=added": "folder",
    "f=modified second=added": "second_name name_of_descriptor",
    "named=added": "from_nowhere",
    "f=type source=modified": "link_instead",
    "f=mode": "chmod fchmod",
    "f=times": "utime utime_now futimes utime_through old_utimes",
    "link=times": "utime_link",
    "": "attributes",
    "d=mode d/e=mode": "chmod_folder",
    "f=mode l=added": "chmod_link",
}
"""What diff must tell → the ways of `programs/changes.py` of which it must tell it."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, rung: str) -> Iterator[Watch]:
    """A watch whose workspace is as it was after each undo."""
    with Watch(workspace=tmp_path_factory.mktemp("project")) as watch:
        put(watch, "changes.py")
        (watch.workspace / "f").write_text(BEFORE)
        (watch.workspace / "source").write_bytes(b"source" * 100)
        (watch.workspace / "d" / "e").mkdir(parents=True)
        (watch.workspace / "d" / "e" / "g").write_text("g")
        (watch.workspace / "link").symlink_to("f")
        tmp = watch.run('printf %s "$TMPDIR"', check=True).stdout
        (watch.workspace / "out").symlink_to(f"{tmp}/back")
        for path in ("f", "d", "d/e"):
            (watch.workspace / path).chmod(0o755)
        yield watch


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes | str]]:
    """Return mode, time and content, or target, of everything below a folder; of folders the mode alone."""
    found: dict[str, tuple[int, int, bytes | str]] = {}
    for path in sorted(folder.rglob("*")):
        mode, modified = path.lstat().st_mode, path.lstat().st_mtime_ns
        content = os.readlink(path) if stat.S_ISLNK(mode) else path.read_bytes() if stat.S_ISREG(mode) else b""
        found[str(path.relative_to(folder))] = (mode, 0 if stat.S_ISDIR(mode) else modified, content)
    return found


def changed(watch: Watch, step: int) -> dict[str, str]:
    """Return what `diff` tells, path by path."""
    return {change.path: change.change for change in watch.diff(step)}


@pytest.mark.parametrize("name", NAMES)
def test_a_change_is_seen_under_whatever_name(shared: Watch, name: str) -> None:
    """A file written by way of /proc, of descriptors, or of links outside is on record by its true name, and undone."""
    before = snapshot(shared.workspace)
    result = shared.run(["python3", "changes.py", "name", name.replace("{base}", shared.workspace.name)])
    assert (result.stdout, result.stderr) == ("done\n", "")
    assert (shared.workspace / "f").read_bytes().startswith(b"after")
    assert changed(shared, result.step) == {"f": "modified"}
    (opened,) = [e for e in recorded(shared, FileOp, result.step) if e.resolved == f"{shared.workspace}/f"]
    assert (opened.op, opened.basis, opened.verdict) == ("openat", "claimed", "allow")
    assert opened.path != opened.resolved
    shared.undo(result.step)
    assert snapshot(shared.workspace) == before


@pytest.mark.parametrize(("way", "told"), [(way, told) for told, ways in WAYS.items() for way in ways.split()])
def test_a_change_is_seen_whatever_makes_it(shared: Watch, way: str, told: str) -> None:
    """Each way to change a file, a folder or a mode is told by diff, and undo leaves the workspace as it was."""
    before = snapshot(shared.workspace)
    result = shared.run(["python3", "changes.py", "way", way])
    assert (result.stdout, result.stderr) == ("done\n", "")
    assert changed(shared, result.step) == dict(each.split("=") for each in told.split())
    shared.undo(result.step)
    assert snapshot(shared.workspace) == before
    assert shared.diff(result.step) == []


def test_a_change_of_mode_is_on_record(shared: Watch, rung: str) -> None:
    """Each form of chmod is on record with the mode that it asked for, and diff tells both."""
    result = shared.run(["python3", "changes.py", "way", "fchmod"])
    (mode,) = [event for event in recorded(shared, FileOp, result.step) if event.mode is not None]
    assert (mode.op, mode.path, mode.mode) == ("fchmod", f"{shared.workspace}/f", 0o711)
    assert mode.basis == ("verified" if rung == "B" else "claimed")
    assert [change.note for change in shared.diff(result.step)] == ["mode 0755 → 0711"]
    shared.undo(result.step)


def test_a_change_of_times_is_on_record(shared: Watch, rung: str) -> None:
    """Each call that sets times is on record, with what its name leads to; on rung B the supervisor makes it."""
    result = shared.run(["python3", "changes.py", "way", "utime_through"])
    (timed,) = [event for event in recorded(shared, FileOp, result.step) if event.op == "utimensat"]
    assert (timed.path, timed.resolved) == (f"{shared.workspace}/link", f"{shared.workspace}/f")
    assert timed.basis == ("verified" if rung == "B" else "claimed")
    shared.undo(result.step)


SETGID = """
import os
def told(call, *args):
    try:
        call(*args)
    except OSError as error:
        return error.strerror
    return "ok"
fd = os.open("f", os.O_RDONLY)
print(told(os.fchmod, 99, 0o2755), told(os.fchmod, -100, 0o2755))
print(told(os.chmod, "f", 0o2755), told(os.fchmod, fd, 0o2644), told(os.chmod, f"/proc/self/fd/{fd}", 0o2755))
print(told(os.open, "new", os.O_CREAT | os.O_WRONLY, 0o2755), told(os.mknod, "node", 0o102755))
print(told(os.chmod, "d", 0o2755), told(os.fchmod, os.open("d/e", os.O_RDONLY), 0o2755), told(os.chmod, "/usr", 0o2755))
print(told(os.chmod, "/proc/self", 0o2755), told(os.chmod, "missing", 0o2755))
"""


def test_a_folder_may_be_setgid_and_a_file_may_not(shared: Watch) -> None:
    """Setgid is refused on files, by every way to set it; folders of the workspace get it, and lose it by undo."""
    no, ok = "Operation not permitted", "ok"
    result = shared.run(["python3", "-c", SETGID])
    lines = result.stdout.splitlines()
    assert lines[:3] == ["Bad file descriptor Bad file descriptor", f"{no} {no} {no}", f"{no} {no}"], result
    assert lines[3] in {f"{ok} {ok} {no}", f"{ok} {ok} Read-only file system", f"{ok} {ok} Permission denied"}
    assert lines[4] in {f"{no} {no}", f"{no} No such file or directory", "Permission denied No such file or directory"}
    assert [stat.S_IMODE((shared.workspace / each).stat().st_mode) for each in ("d", "d/e", "f")] == [
        0o2755,
        0o2755,
        0o755,
    ]
    modes = [event for event in recorded(shared, FileOp, result.step) if event.mode is not None]
    assert {event.basis for event in modes} == {"verified"}
    assert {event.path for event in modes if event.verdict == "allow"} == {
        f"{shared.workspace}/{d}" for d in ("d", "d/e")
    }
    assert changed(shared, result.step) == {"d": "mode", "d/e": "mode"}
    shared.undo(result.step)
    assert stat.S_IMODE((shared.workspace / "d").stat().st_mode) == 0o755


HOLDER = """
import mmap, os
fd = os.open("f", os.O_RDWR)
memory = mmap.mmap(fd, 0)
os.chdir(os.environ["TMPDIR"])
os.mkfifo("go"); os.mkfifo("done")
if os.fork() == 0:
    os.setsid()
    for number in range(2):
        with open("go") as gate:
            gate.read()
        memory[:3] = b"map"
        os.pwrite(fd, b"late", 10)
        with open("done", "w") as gate:
            gate.write("x")
"""


def test_a_descriptor_from_an_earlier_step_writes_for_that_step(shared: Watch) -> None:
    """What a process that outlives its step writes later is told of that step, and undo takes it out of its reach."""
    before = snapshot(shared.workspace)
    holder = shared.run(["python3", "-c", HOLDER])
    assert holder.ok, holder.stderr
    let_go = 'cd "$TMPDIR"; echo >go; cat done'
    later = shared.run(let_go, timeout=LONG_S)
    assert later.stdout == "x", later
    assert changed(shared, holder.step) == {"f": "modified"}
    assert changed(shared, later.step) == {}
    assert (shared.workspace / "f").read_text() == "map" + BEFORE[3:10] + "late" + BEFORE[14:]
    shared.undo(holder.step)
    assert shared.run(let_go, timeout=LONG_S).stdout == "x"
    assert snapshot(shared.workspace) == before


OUTLIVES: Final = """
echo >begun
mkfifo "$TMPDIR/gate"
(setsid sh -c 'echo $$ >"$TMPDIR/pid"; exec cat "$TMPDIR/gate"' >/dev/null 2>&1 &)
"""
"""Its first process ends at once, the step does not."""

ENDS_IT: Final = """
until [ -s "$TMPDIR/pid" ]; do :; done
read pid <"$TMPDIR/pid"
echo >"$TMPDIR/gate"
while [ -e "/proc/$pid" ]; do :; done
"""


def test_only_what_changes_while_a_step_lives_is_its(tmp_path: Path) -> None:
    """What a person writes while a step runs is told as unclaimed; before, and after its last process, it is not."""
    (tmp_path / "notes").write_text("before")
    with Watch(workspace=tmp_path) as watch:
        (tmp_path / "earlier").touch()
        wait_for_file_clock()
        step = watch.run(OUTLIVES, check=True).step
        (tmp_path / "meanwhile").touch()
        assert watch.run(ENDS_IT, timeout=LONG_S).ok
        late: dict[str, str] = {}  # written before the supervisor has looked who is left
        for number in range(1000):
            wait_for_file_clock()
            (tmp_path / f"late{number}").touch()
            if f"late{number}" not in changed(watch, step):
                break
            late[f"late{number}"] = "unclaimed"
        (tmp_path / "notes").write_text("a person's")
        assert changed(watch, step) == {"begun": "added", "meanwhile": "unclaimed", **late}
        unclaimed = {change.path: change.note for change in watch.undo(step) if change.change == "unclaimed"}
        assert unclaimed.keys() == {"meanwhile", *late}
        assert "by no call on record" in unclaimed["meanwhile"]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"earlier", "meanwhile", "notes", f"late{len(late)}", *late}


def test_a_name_too_long_to_be_looked_up_is_denied(shared: Watch) -> None:
    """A name of a thousand components, which could hold up all others, opens nothing and is on record as denied."""
    program = "import os; os.open('d/../' * 600 + 'f', os.O_WRONLY | os.O_TRUNC)"
    result = shared.run(["python3", "-c", program])
    assert "Too many levels of symbolic links" in result.stderr
    (denied,) = [event for event in recorded(shared, FileOp, result.step) if event.verdict == "deny"]
    assert denied.path.endswith("d/../f")
    assert shared.diff(result.step) == []
    assert (shared.workspace / "f").read_text() == BEFORE


def test_a_race_of_names_leaves_no_change_that_diff_hides(tmp_path: Path) -> None:
    """Of names that flip between our look and the kernel's, diff tells each file that changed, claimed or not.

    How often a flip falls between the two is the scheduler's choice: rounds are played until one has.
    """
    left: set[str] = set()
    with Watch(workspace=tmp_path) as watch:
        for _round in range(ROUNDS):
            for number in range(RACES):
                (tmp_path / f"v{number}").write_bytes(b"")
            watch.run(["true"])
            hit = {f"v{number}" for number in answer_of(watch, "race_name.py", RACES, timeout=60)}
            assert watch.last_result is not None
            told = changed(watch, watch.last_result.step)
            assert hit
            assert hit <= set(told)
            left = {path for path, change in told.items() if change == "unclaimed"} & hit
            undone = watch.undo(watch.last_result.step)
            assert {change.path for change in undone if change.change == "unclaimed"} >= left
            for name in hit:
                assert (tmp_path / name).read_bytes() == (b"changed" if name in left else b"")
            assert left <= set(changed(watch, watch.last_result.step))
            if left:
                break
        assert left, f"no flip fell between the two looks in {ROUNDS} rounds of {RACES}"
        assert recorded(watch, Finding) == []
