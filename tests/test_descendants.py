"""Who stems from a process, by real trees of processes: hostile names, threads, orphans, the dead, strangers."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

from jupyter_agentwatch.sandbox.descendants import descendants, is_descendant, kill_descendants, offspring
from tests.outside import LONG_S

if TYPE_CHECKING:
    from collections.abc import Iterator

TREE: Final = """
import ctypes, json, os, signal, sys, threading

hostile = "a) R 1 1 (b"
ready, tell = os.pipe()
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER

def live(**more):
    os.write(tell, (json.dumps({"pid": os.getpid()} | more) + "\\n").encode())
    while True:
        signal.pause()

def fork(job):
    pid = os.fork()
    if pid == 0:
        job()
        os._exit(0)
    return pid

def grandparent():
    fork(live)
    live()

def named():
    with open("/proc/self/comm", "w") as file:
        file.write(hostile)
    live()

def threaded():
    thread = threading.Thread(target=signal.pause, daemon=True)
    thread.start()
    live(thread=thread.native_id)

def orphaned():
    watched = os.pidfd_open(os.getpid())
    def orphan():
        import select
        os.setsid()
        select.select([watched], [], [])
        live(parent=os.getppid())
    fork(orphan)

pids = {"grandparent": fork(grandparent), "named": fork(named), "threaded": fork(threaded)}
left = fork(orphaned)
dead = fork(lambda: None)
os.waitid(os.P_PID, dead, os.WEXITED | os.WNOWAIT)
os.waitpid(left, 0)
heard = os.fdopen(ready)
told = [json.loads(heard.readline()) for _ in range(5)]
print(json.dumps(pids | {"dead": dead, "told": told}), flush=True)
sys.stdin.read()
for each in told:
    try:
        os.kill(each["pid"], signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


@contextmanager
def tree() -> Iterator[tuple[int, dict[str, Any]]]:
    """Start a process with children of several kinds; yield its id and what it says of them."""
    argv = [sys.executable, "-I", "-S", "-c", TREE]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.pid, json.loads(process.stdout.readline())
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(LONG_S)


@pytest.fixture(scope="module")
def grown() -> Iterator[tuple[int, dict[str, Any]]]:
    """A tree for tests that leave it as it is."""
    with tree() as found:
        yield found


def test_all_that_stems_from_a_process_is_found(grown: tuple[int, dict[str, Any]]) -> None:
    """Children, grandchildren, orphans in other sessions and the dead are there; parents come before children."""
    root, made = grown
    found = descendants(root)
    order = [each.pid for each in found]
    assert set(order) == {each["pid"] for each in made["told"]} | {made["dead"]}
    assert len(order) == len(set(order)) == 6
    for each in found:
        assert each.parent == root or order.index(each.parent) < order.index(each.pid)
    (orphan,) = [each for each in made["told"] if "parent" in each]
    assert orphan["parent"] == root
    assert next(each for each in found if each.pid == orphan["pid"]).session == orphan["pid"]


def test_the_cheap_way_finds_the_same_in_a_tree_that_stands_still(grown: tuple[int, dict[str, Any]]) -> None:
    """The kernel's lists of children name the same processes."""
    root, _ = grown
    assert sorted(offspring(root)) == sorted(each.pid for each in descendants(root))


def test_a_name_cannot_make_up_other_fields(grown: tuple[int, dict[str, Any]]) -> None:
    """A process may call itself anything, also what looks like the fields that follow."""
    root, made = grown
    (named,) = [each for each in descendants(root) if each.pid == made["named"]]
    assert (named.parent, named.state in "SRD", named.threads) == (root, True, 1)


def test_only_what_has_ended_is_over(grown: tuple[int, dict[str, Any]]) -> None:
    """A zombie is over, and nobody else."""
    root, made = grown
    assert [each.pid for each in descendants(root) if each.is_over] == [made["dead"]]
    (threaded,) = [each for each in descendants(root) if each.pid == made["threaded"]]
    assert threaded.threads == 2


def test_a_single_process_is_judged_without_all_the_others(grown: tuple[int, dict[str, Any]]) -> None:
    """Threads and grandchildren belong to the root; strangers, its parent and the root itself do not."""
    root, made = grown
    assert all(is_descendant(each["pid"], root) for each in made["told"])
    (threaded,) = [each["thread"] for each in made["told"] if "thread" in each]
    assert is_descendant(threaded, root)
    assert is_descendant(made["dead"], root)
    for stranger in (root, os.getpid(), 1, 2, 1 << 22, 0, -1):
        assert not is_descendant(stranger, root)


def test_a_root_that_is_gone_has_nobody() -> None:
    """Of a process that has ended nothing stems, and that is no error."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(LONG_S)
    assert (descendants(process.pid), offspring(process.pid)) == ([], [])
    assert kill_descendants(process.pid) == 0


def test_a_kill_reaches_all_but_the_spared_and_no_stranger() -> None:
    """Everything below the root gets the signal once; what is spared, the root and others live on."""
    with tree() as (root, made):
        spared = made["named"]
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
            assert kill_descendants(root, frozenset({spared})) == 4
            others = {each["pid"] for each in made["told"]} - {spared}
            for pid in others:
                wait_over(pid)
            living = [each.pid for each in descendants(root) if not each.is_over]
            assert living == [spared]
            assert kill_descendants(root) == 1
            assert stranger.poll() is None
            stranger.communicate(b"\n", LONG_S)
            assert stranger.returncode == 0


def wait_over(pid: int) -> None:
    """Wait until a process of the tree has ended, or is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], LONG_S)[0]
    finally:
        os.close(pidfd)
