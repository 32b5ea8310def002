"""Delegated cgroups of both versions: found by trying, limited, killed at once, and never left behind."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from jupyter_agentwatch.errors import RungError
from jupyter_agentwatch.sandbox.cgroup import (
    Delegation,
    Leaf,
    can_be_left,
    clear_leaves,
    find_delegation,
    leaf_name,
    limits_by,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

BOTH = frozenset({"memory", "pids"})
WAIT_S = 30
FORKS = "for i in 1 2 3 4 5; do (setsid sh -c 'echo up; exec sleep 600' &); done; echo up; exec sleep 600"


class FakeTree:
    """A cgroup2 mount made of ordinary files: everything but the kernel's own reactions."""

    def __init__(self, folder: Path) -> None:
        self.mount = folder / "cgroup two"
        self.mountinfo = folder / "mountinfo"
        self.proc_cgroup = folder / "cgroup"
        self.mounted("/", self.mount)
        self.mount.mkdir()

    def mounted(self, root: str, point: Path, kind: str = "cgroup2") -> None:
        """Write the table of mounts, with the kernel's escape for a space."""
        escaped = str(point).replace(" ", "\\040")
        first = "22 1 8:1 / / rw - ext4 /dev/sda rw\n31 22 0:9 / /cg rw - cgroup cgroup rw,memory\n"
        self.mountinfo.write_text(f"{first}41 31 0:38 {root} {escaped} rw,nosuid shared:3 - {kind} {kind} rw\n")

    def runs_in(self, own: str) -> None:
        """Say where this process is."""
        self.proc_cgroup.write_text(f"4:memory:/elsewhere\n0::{own}\n")

    def cgroup(self, path: str, *, controllers: str = "", kind: str | None = "domain") -> Path:
        """Make a cgroup that passes `controllers` on to its children."""
        folder = self.mount / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.procs").touch()
        (folder / "cgroup.subtree_control").write_text(f"{controllers}\n")
        if kind is not None:
            (folder / "cgroup.type").write_text(f"{kind}\n")
        return folder

    def find(self) -> Delegation | None:
        """Look for a delegation in this tree."""
        return find_delegation(proc_cgroup=self.proc_cgroup, mountinfo=self.mountinfo)


@pytest.fixture
def tree(tmp_path: Path) -> FakeTree:
    """Return an empty fake tree."""
    return FakeTree(tmp_path)


def really(folder: Path, kind: str) -> Delegation | None:
    """Return what this machine really delegates by one kind of mount."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    only = folder / f"mountinfo of {kind}"
    only.write_text("".join(f"{line}\n" for line in mounts if f" - {kind} " in line))
    return find_delegation(mountinfo=only)


@pytest.fixture
def delegation(tmp_path: Path) -> Delegation:
    """Return what this machine really delegates by version 2."""
    found = really(tmp_path, "cgroup2")
    if found is None:
        pytest.skip("no cgroup v2 in which this user may make a child")
    return found


@pytest.fixture
def older(tmp_path: Path) -> Iterator[Leaf]:
    """Yield a real leaf of version 1 for three processes."""
    found = really(tmp_path, "cgroup")
    if found is None:
        pytest.skip("no pids controller of cgroup v1 in which this user may make a child")
    made = Leaf.create(found, f"agentwatch-test-{os.getpid()}", memory_bytes=1 << 28, processes=3)
    yield made
    assert made.remove(WAIT_S)


@pytest.fixture
def leaf(delegation: Delegation) -> Iterator[Leaf]:
    """Yield a real leaf with generous limits."""
    made = Leaf.create(delegation, f"agentwatch-test-{os.getpid()}", memory_bytes=1 << 28, processes=64)
    yield made
    made.kill()
    assert made.remove(WAIT_S)


def test_the_nearest_ancestor_with_controllers_is_found(tree: FakeTree) -> None:
    """Of several ancestors that pass controllers on, the nearest is taken, with those that we use only."""
    tree.cgroup("", controllers="cpu memory pids", kind=None)
    near = tree.cgroup("user.slice/app.slice", controllers="cpu memory io pids")
    tree.cgroup("user.slice/app.slice/lab.scope")
    tree.runs_in("/user.slice/app.slice/lab.scope")
    assert tree.find() == Delegation(near, BOTH)
    assert {path.name for path in near.iterdir() if path.is_dir()} == {"lab.scope"}


def test_controllers_are_preferred_to_nearness(tree: FakeTree) -> None:
    """A nearer cgroup that passes nothing on is left for a farther one that does."""
    far = tree.cgroup("", controllers="pids", kind=None)
    tree.cgroup("a/b")
    tree.cgroup("a")
    tree.runs_in("/a/b")
    assert tree.find() == Delegation(far, frozenset({"pids"}))


def test_without_controllers_the_nearest_is_for_killing_only(tree: FakeTree) -> None:
    """On hybrid systems nothing is passed on; then the nearest cgroup serves without limits."""
    tree.cgroup("", kind=None)
    own = tree.cgroup("a")
    tree.runs_in("/a")
    assert tree.find() == Delegation(own, frozenset())


@pytest.mark.parametrize("kind", ["threaded", "domain threaded", "domain invalid"])
def test_a_threaded_cgroup_is_no_delegation(tree: FakeTree, kind: str) -> None:
    """Children of a threaded cgroup cannot be limited by memory, so it is passed over."""
    top = tree.cgroup("", controllers="memory", kind=None)
    tree.cgroup("a", controllers="memory pids", kind=kind)
    tree.runs_in("/a")
    assert tree.find() == Delegation(top, frozenset({"memory"}))


def test_a_cgroup_whose_member_list_is_closed_to_us_is_no_delegation(tree: FakeTree) -> None:
    """To move a process, one must be able to write the common ancestor's list of members."""
    tree.cgroup("a", controllers="memory pids")
    (tree.mount / "a/cgroup.procs").unlink()
    tree.runs_in("/a")
    assert tree.find() is None


def test_a_mount_of_a_part_of_the_hierarchy_is_read_from_its_root(tree: FakeTree) -> None:
    """Where only our container's cgroup is mounted, our path is taken relative to it."""
    own = tree.cgroup("lab", controllers="memory pids")
    tree.mounted("/docker/abc", tree.mount)
    tree.runs_in("/docker/abc/lab")
    assert tree.find() == Delegation(own, BOTH)


@pytest.mark.parametrize("own", ["/../other", "/docker/abcd", "/"])
def test_a_cgroup_outside_of_what_is_mounted_is_not_looked_for(tree: FakeTree, own: str) -> None:
    """A path beyond the mounted part never leads out of it."""
    tree.cgroup("", controllers="memory pids", kind=None)
    tree.mounted("/docker/abc", tree.mount)
    tree.runs_in(own)
    assert tree.find() is None


def test_without_cgroup2_there_is_no_delegation(tree: FakeTree, tmp_path: Path) -> None:
    """Neither a v1 mount, nor a process without a v2 path, nor missing tables give a delegation or an error."""
    tree.cgroup("", controllers="memory pids", kind=None)
    tree.runs_in("/")
    tree.mounted("/", tree.mount, kind="cgroup")
    assert tree.find() is None
    tree.mounted("/", tree.mount)
    tree.proc_cgroup.write_text("4:memory:/\n")
    assert tree.find() is None
    assert find_delegation(proc_cgroup=tmp_path / "none", mountinfo=tree.mountinfo) is None


def test_pids_of_version_1_are_found_where_version_2_has_no_controllers(tree: FakeTree, tmp_path: Path) -> None:
    """The nearest cgroup of the pids hierarchy; one of version 2 with controllers is preferred to it."""
    top = tree.cgroup("", kind=None)
    older = tmp_path / "older"
    (older / "lab").mkdir(parents=True)
    (older / "lab/cgroup.procs").touch()
    tree.proc_cgroup.write_text("8:cpu:/x\n7:cpuset,pids:/box/lab\n4:memory:/y\n0::/\n")
    line = f"50 31 0:39 /box {older} rw,nosuid shared:3 - cgroup cgroup rw,cpuset,pids\n"
    tree.mountinfo.write_text(tree.mountinfo.read_text() + line)
    assert tree.find() == Delegation(older / "lab", frozenset({"pids"}), 1)
    assert list((older / "lab").iterdir()) == [older / "lab/cgroup.procs"]
    (top / "cgroup.subtree_control").write_text("memory\n")
    assert tree.find() == Delegation(top, frozenset({"memory"}))
    (top / "cgroup.subtree_control").write_text("\n")
    (older / "lab/cgroup.procs").unlink()
    assert tree.find() == Delegation(top, frozenset())


def test_a_place_above_or_in_a_mounted_cgroup_is_a_way_out_of_it(tree: FakeTree, tmp_path: Path) -> None:
    """Whoever may write to a hierarchy's files, or to a folder that contains them, could leave."""
    tree.runs_in("/")
    for place in (Path("/"), tmp_path, tree.mount, tree.mount / "a/cgroup.procs", Path("/cg")):
        assert can_be_left([Path("/elsewhere"), place], mountinfo=tree.mountinfo), place
    for place in (Path("/sys/kernel"), tmp_path / "cgroup", Path("/cgroup")):
        assert not can_be_left([place], mountinfo=tree.mountinfo), place


def test_what_dead_watches_left_is_removed_and_nothing_else(tree: FakeTree, tmp_path: Path) -> None:
    """Named watches' leaves at once; others only when they are old, and never what is not ours."""
    tree.runs_in("/a")
    names = ("agentwatch-dead", "agentwatch-other", "system")
    for folder in (tree.mount, tree.mount / "a"):
        for name in names:
            (folder / name).mkdir(parents=True)
    clear_leaves("dead", proc_cgroup=tree.proc_cgroup, mountinfo=tree.mountinfo)
    for folder in (tree.mount, tree.mount / "a"):
        assert {path.name for path in folder.iterdir()} - {"a"} == {"agentwatch-other", "system"}
    for name in ("agentwatch-other", "system"):
        os.utime(tree.mount / name, (0, 0))
    clear_leaves(proc_cgroup=tmp_path / "none", mountinfo=tree.mountinfo)
    assert (tree.mount / leaf_name("other")).is_dir()
    clear_leaves(proc_cgroup=tree.proc_cgroup, mountinfo=tree.mountinfo)
    assert {path.name for path in tree.mount.iterdir()} == {"a", "system"}
    assert (tree.mount / "a" / leaf_name("other")).is_dir()


def test_limits_are_written_as_the_kernel_reads_them(tree: FakeTree) -> None:
    """Memory is bounded without swap and without killing the group, processes by their number."""
    leaf = Leaf.create(Delegation(tree.mount, BOTH), "watch-1", memory_bytes=1 << 30, processes=77)
    assert {path.name: path.read_text() for path in leaf.path.iterdir()} == {
        "memory.max": "1073741824\n",
        "memory.swap.max": "0\n",
        "memory.oom.group": "0\n",
        "pids.max": "77\n",
    }


@pytest.mark.parametrize(("controllers", "files"), [({"pids"}, {"pids.max"}), (set(), set())])
def test_a_limit_without_its_controller_is_left_to_others(
    tree: FakeTree, controllers: set[str], files: set[str]
) -> None:
    """Nothing is written for a controller that is not delegated."""
    leaf = Leaf.create(Delegation(tree.mount, frozenset(controllers)), "w", memory_bytes=1, processes=2)
    assert {path.name for path in leaf.path.iterdir()} == files


def test_no_bound_writes_nothing(tree: FakeTree) -> None:
    """None leaves the kernel's own "max"."""
    assert list(Leaf.create(Delegation(tree.mount, BOTH), "w").path.iterdir()) == []


def test_counters_are_read(tree: FakeTree) -> None:
    """Kills for want of memory, refused forks and the memory in use are read from the leaf."""
    leaf = Leaf.create(Delegation(tree.mount, BOTH), "w")
    assert (leaf.events(), leaf.oom_kills(), leaf.memory_current()) == ({}, 0, None)
    (leaf.path / "memory.events").write_text("low 0\noom 4\noom_kill 3\n")
    (leaf.path / "pids.events").write_text("max 9\n")
    (leaf.path / "memory.current").write_text("8192\n")
    assert leaf.events() == {"memory.low": 0, "memory.oom": 4, "memory.oom_kill": 3, "pids.max": 9}
    assert (leaf.oom_kills(), leaf.memory_current()) == (3, 8192)


@pytest.mark.parametrize("name", ["", "..", "a/b", "memory.max", "-x", "a\n", "x" * 101, "ä"])
def test_a_name_cannot_leave_the_delegation(tree: FakeTree, name: str) -> None:
    """Only plain names are taken, so that a leaf is a child, and no file of the kernel's."""
    with pytest.raises(ValueError, match="use letters, digits"):
        Leaf.create(Delegation(tree.mount, BOTH), name)
    assert list(tree.mount.iterdir()) == []


def test_a_limit_that_the_kernel_refuses_is_an_error_and_leaves_nothing(delegation: Delegation) -> None:
    """A cgroup that cannot hold the limit that was asked for is an error with a fix, and is removed."""
    impossible = Delegation(delegation.path, delegation.controllers | {"memory"})
    with pytest.raises(RungError, match=r"probe 'cgroup delegation' failed: .*agentwatch-refused.*Delegate=yes"):
        Leaf.create(impossible, "agentwatch-refused", memory_bytes=-7)
    assert not (delegation.path / "agentwatch-refused").exists()


def test_a_leaf_that_exists_is_not_taken_over(leaf: Leaf, delegation: Delegation) -> None:
    """Two watches cannot share a leaf."""
    with pytest.raises(RungError, match="File exists"):
        Leaf.create(delegation, leaf.path.name)
    assert leaf.path.is_dir()


def test_the_kernel_holds_the_limits_of_a_real_leaf(leaf: Leaf) -> None:
    """What a real leaf bounds is exactly what was asked for, by the controllers that are delegated."""
    read = {name: (leaf.path / name).read_text() for name in ("memory.max", "pids.max") if (leaf.path / name).exists()}
    wanted = {"memory": ("memory.max", f"{1 << 28}\n"), "pids": ("pids.max", "64\n")}
    assert read == dict(wanted[controller] for controller in leaf.controllers)


def test_a_kill_reaches_all_members_and_what_they_forked(leaf: Leaf) -> None:
    """Orphans in sessions of their own die with the member that forked them, and the leaf is then removed."""
    with subprocess.Popen(
        ["sh", "-c", f"read go; {FORKS}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as member:
        assert member.stdin is not None
        assert member.stdout is not None
        leaf.add(member.pid)
        member.stdin.write("go\n")
        member.stdin.flush()
        assert [member.stdout.readline() for _ in range(6)] == ["up\n"] * 6
        pids = [int(pid) for pid in (leaf.path / "cgroup.procs").read_text().split()]
        descriptors = [os.pidfd_open(pid) for pid in pids]
        try:
            assert len(pids) == 6
            assert leaf.is_populated()
            assert not leaf.remove(0)
            assert leaf.kill()
            assert member.wait(WAIT_S) == -9
            assert [select.select([fd], [], [], WAIT_S)[0] for fd in descriptors] == [[fd] for fd in descriptors]
        finally:
            for fd in descriptors:
                os.close(fd)
    assert leaf.remove(WAIT_S)
    assert not leaf.path.exists()
    assert leaf.remove()


FULL = """
import os, signal
input()
for _ in range(3):
    try:
        if os.fork() == 0:
            signal.pause()
    except OSError as error:
        print(error.errno, flush=True)
signal.pause()
"""


def test_version_1_bounds_counts_and_is_removed_when_empty(older: Leaf) -> None:
    """Three processes are in, the fourth is refused and counted; there is no kill, and a member keeps it there."""
    argv = [sys.executable, "-I", "-S", "-c", FULL]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as member:
        assert member.stdin is not None
        assert member.stdout is not None
        try:
            assert older.takes(member.pid)
            assert (older.holds_processes, older.refused_forks()) == (True, 0)
            member.stdin.write("go\n")
            member.stdin.flush()
            assert member.stdout.readline() == f"{errno.EAGAIN}\n"
            assert older.refused_forks() == 1
            assert len((older.path / "cgroup.procs").read_text().split()) == 3
            assert older.is_populated()
            assert not older.remove(0)
            assert not older.kill()
        finally:
            member.kill()
            for pid in map(int, (older.path / "cgroup.procs").read_text().split()):
                os.kill(pid, 9)
    assert older.remove(WAIT_S)
    assert not older.path.exists()


def test_a_process_that_is_gone_is_not_taken(leaf: Leaf) -> None:
    """Whether a process is in is asked of the kernel; none that has ended is."""
    with subprocess.Popen(["true"]) as gone:
        gone.wait(WAIT_S)
        assert not leaf.takes(gone.pid)


def test_a_process_moves_itself_in_by_the_descriptor(leaf: Leaf) -> None:
    """Who writes "0" to the descriptor of `procs_fd` becomes a member, without being able to name another."""
    fd = leaf.procs_fd()
    try:
        argv = ["sh", "-c", "echo 0 >&2; exec cat"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=fd) as cat:
            assert cat.stdin is not None
            assert cat.stdout is not None
            cat.stdin.write(b"moved\n")
            cat.stdin.flush()
            assert cat.stdout.readline() == b"moved\n"
            assert (leaf.path / "cgroup.procs").read_text() == f"{cat.pid}\n"
            leaf.kill()
            assert cat.wait(WAIT_S) == -9
    finally:
        os.close(fd)


def test_a_real_delegation_is_ours(delegation: Delegation) -> None:
    """The delegation is an ancestor of our own cgroup, and passes on what it says."""
    passed = (delegation.path / "cgroup.subtree_control").read_text().split()
    assert delegation.controllers == BOTH & set(passed)
    members = {int(pid) for procs in delegation.path.rglob("cgroup.procs") for pid in procs.read_text().split()}
    assert os.getpid() in members


SUM = "rlimit for each process, supervisor for the sum (sampled at 10 Hz)"
COUNTED = "supervisor (tasks counted at clone)"


@pytest.mark.parametrize(
    ("controllers", "version", "uid", "memory", "processes"),
    [
        (None, 2, 0, SUM, COUNTED),
        (None, 2, 1000, SUM, "rlimit (RLIMIT_NPROC)"),
        (set(), 2, 1000, SUM, "rlimit (RLIMIT_NPROC)"),
        ({"pids"}, 2, 0, SUM, "cgroup v2"),
        ({"pids"}, 1, 0, SUM, "cgroup v1"),
        ({"memory"}, 2, 1000, "cgroup v2", "rlimit (RLIMIT_NPROC)"),
        ({"memory"}, 2, 0, "cgroup v2", COUNTED),
        ({"memory", "pids"}, 2, 1000, "cgroup v2", "cgroup v2"),
    ],
)
def test_people_are_told_who_holds_which_limit(
    controllers: set[str] | None, version: Literal[1, 2], uid: int, memory: str, processes: str
) -> None:
    """One line names the holder of each limit, as it differs with the delegation, the user and the rung."""
    path = Path("/sys/fs/cgroup")
    delegation = None if controllers is None else Delegation(path, frozenset(controllers), version)
    everywhere = processes if processes == COUNTED else f"{processes} on rung A, {COUNTED} on B and C"
    for traps_forks, by in ((False, processes), (True, COUNTED), (None, everywhere)):
        text = limits_by(delegation, uid, traps_forks=traps_forks)
        assert text.startswith(f"memory: {memory}; processes: {by}; CPU time,")
        assert "\n" not in text
