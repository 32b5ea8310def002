"""The cgroup of a watch: it bounds processes without a trap, is there for its watch only, and is done without."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import jupyter_agentwatch
from jupyter_agentwatch import Policy, Watch
from jupyter_agentwatch.events import LimitHit
from jupyter_agentwatch.policy import Limits
from jupyter_agentwatch.sandbox.cgroup import Delegation, Leaf, find_delegation, leaf_name
from jupyter_agentwatch.supervisor.ground import Site, begin
from tests.outside import LONG_S, hold, recorded, wait_all_ended, wait_for_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jupyter_agentwatch.sandbox.standing import Sandbox

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A")]

TRAPPED: Final = "processes: supervisor (tasks counted at clone)"
BY_RLIMIT: Final = "processes: rlimit (RLIMIT_NPROC)"


@pytest.fixture
def delegation() -> Delegation | None:
    """Return where watches make their cgroups, None where the kernel bounds no processes for us."""
    found = find_delegation()
    return found if found is not None and "pids" in found.controllers else None


def without() -> str:
    """Return who holds the bound on processes where no cgroup does."""
    return TRAPPED if os.getuid() == 0 else BY_RLIMIT


def test_a_watch_says_whether_its_cgroup_bounds_processes(tmp_path: Path, delegation: Delegation | None) -> None:
    """The group that is said to hold the bound is there, with init and what the command has started in it."""
    with Watch(Policy(), tmp_path) as watch:
        text = watch.status().limits_by
        assert text.split("; ")[1] == (f"processes: cgroup v{delegation.version}" if delegation else without())
        running = watch.start(["sh", "-c", "setsid sleep 600 & echo up; read end"], stdin=True)
        wait_for_line(running, b"up")
        if delegation:
            group = delegation.path / leaf_name(watch.id)
            assert (group / "pids.max").read_text() == "1025\n"  # the policy's 1,024, and init
            assert len((group / "cgroup.procs").read_text().split()) == 3
            assert not list(watch.workspace.iterdir())
    assert delegation is None or not (delegation.path / leaf_name(watch.id)).exists()


def test_who_may_write_to_cgroups_is_not_bounded_by_one(tmp_path: Path) -> None:
    """A policy that lets programs move themselves out of a group has its forks counted by the supervisor."""
    place = next(
        line.split()[4]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if " - cgroup" in line and "," not in line.split()[4]
    )
    with Watch({"filesystem": {"write": [place]}, "isolation": "A"}, tmp_path) as watch:
        assert watch.status().limits_by.split("; ")[1] == without()
        assert watch.run(["true"]).ok


def test_the_cgroup_of_a_killed_supervisor_goes_with_the_next_start(
    tmp_path: Path, delegation: Delegation | None
) -> None:
    """Nobody is left to remove it, so the next watch does, whoever lives keeping theirs."""
    for name in ("dead", "alive", "next"):
        (tmp_path / name).mkdir()
    with Watch(Policy(), tmp_path / "alive") as alive:
        with Watch(Policy(), tmp_path / "dead") as dead:
            held = hold([dead.status().pid])
            os.kill(dead.status().pid, signal.SIGKILL)
            wait_all_ended(held)
        groups = [delegation.path / leaf_name(each.id) for each in (dead, alive)] if delegation else []
        assert all(group.is_dir() for group in groups)
        with Watch(Policy(), tmp_path / "next") as following:
            assert following.run(["true"]).ok
            assert [group.is_dir() for group in groups] == ([False, True] if groups else [])


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[list[Sandbox]]:
    """Yield a list of sandboxes that are ended after the test."""
    made: list[Sandbox] = []
    yield made
    for sandbox in made:
        sandbox.destroy()
        for fd in (sandbox.listener_fd, sandbox.init_pidfd):
            os.close(fd)
        for each in (sandbox.control, sandbox.dns_udp, sandbox.dns_tcp, *sandbox.gateway, *sandbox.parking):
            if each is not None:
                each.close()


@pytest.mark.parametrize("processes", [None, 40])
def test_forks_are_trapped_where_init_cannot_be_moved(
    tmp_path: Path, ground: list[Sandbox], processes: int | None
) -> None:
    """A group that is gone when init is to enter it: root's forks are trapped, if there is a bound on them."""
    site = Site(
        policy=Policy(isolation="A", limits=Limits(processes=processes)),
        workspace=tmp_path,
        python=(Path(os.path.realpath(sys.base_prefix)),),
        package=Path(jupyter_agentwatch.__file__).parent,
        passed={},
        fresh=tmp_path / "fresh",
    )
    on = begin(site)[0]
    on.starting.belongs_to(Leaf(Delegation(tmp_path, frozenset({"pids"}), 1), "gone"))
    sandbox = on.finish()
    ground.append(sandbox)
    assert sandbox.leaf is None
    assert sandbox.traps_forks == (os.getuid() == 0 and processes is not None)


TOO_MANY: Final = """
import os, signal
children = []
try:
    while True:
        children.append(os.fork())
        if children[-1] == 0:
            signal.pause()
except OSError as error:
    print(error.errno, len(children))
for child in children:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@pytest.mark.rungs("A", "B")
def test_a_bound_that_was_reached_for_a_moment_is_on_record(tmp_path: Path) -> None:
    """Who counts what is refused misses nothing: the record of a short command is there with its end."""
    with Watch({"limits": {"processes": 40}}, tmp_path) as watch:
        assert watch.run(["true"]).ok
        result = watch.run(["python3", "-c", TOO_MANY], timeout=LONG_S)
        error, count = map(int, result.stdout.split())
        assert (result.outcome, error) == ("exited", 11)  # EAGAIN
        assert 30 <= count < 40
        hits = [(hit.limit, hit.maximum, hit.verdict, hit.step) for hit in recorded(watch, LimitHit)]
        is_counted = BY_RLIMIT not in watch.status().limits_by  # else it is seen only when it lasts
        assert hits == [("processes", 40.0, "deny", result.step)][: is_counted or len(hits)]
