"""The probes of `doctor` where all works: what is tried, what the report says, and that nothing is left behind."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Final

import msgspec
import pytest

from jupyter_agentwatch.sandbox import probe_child
from jupyter_agentwatch.sandbox.landlock import landlock_abi
from jupyter_agentwatch.sandbox.probe import probe, why_not
from jupyter_agentwatch.sandbox.probe_report import (
    RUNGS,
    Probe,
    Report,
    failed_probe,
)
from jupyter_agentwatch.sandbox.probe_trials import LAUNCH_OPTIONS
from tests.outside import hold, marked, wait_all_ended
from tests.probes import AS_DOCKER_DOES, AS_ROOT, MOUNT_PROC, ROOT, as_ordinary_user, first_missing, named, report_of

pytestmark = pytest.mark.sandbox
NAMESPACES: Final = (
    "bubblewrap",
    "user namespaces",
    "pid namespace",
    "network namespace",
    "socket broker",
)
SHARED: Final = (
    *(
        "rights given up",
        "loopback",
        "made sockets",
        "same user's memory",
        "same user's /proc",
        "orphans",
    ),
    "parked connections",
)
REQUIRED: Final = {
    "A": {
        "machine",
        "own /proc",
        "seccomp notification",
        *NAMESPACES,
        "caller's memory",
        "caller's /proc",
    },
    "B": {"machine", "own /proc", "seccomp notification", *SHARED, "landlock"},
    "C": {"machine", "own /proc", "seccomp notification", *SHARED},
}


@pytest.fixture(scope="module")
def here() -> Report:
    """Return this machine's report."""
    return probe()


@pytest.mark.parametrize("setup", ["", AS_ROOT], ids=["as this user", "as root of a user namespace"])
def test_all_that_rung_a_needs_works_here(setup: str) -> None:
    """Where sandbox tests run, every probe that rung A requires is ok, within a user namespace too."""
    report = report_of(setup=setup)
    assert {p.name: p.detail for p in report.probes if "A" in p.required_for and not p.ok} == {}
    assert (report.rung, report.label, report.missing["A"]) == ("A", "isolated", ())


def test_what_rung_b_needs_but_landlock_works_here(here: Report) -> None:
    """Each mechanism of rungs B and C was really used; only Landlock is not on every machine with namespaces."""
    assert {p.name: p.detail for p in here.probes if "C" in p.required_for and not p.ok} == {}
    assert named(here, "landlock").ok == ("B" in here.available) == (landlock_abi() > 0)
    assert named(here, "socket tables").ok


def test_the_required_probes_are_known(here: Report) -> None:
    """No probe becomes optional by accident; names are unique, each says what it tried, and a failed one its fix."""
    assert {rung: {p.name for p in here.probes if rung in p.required_for} for rung in RUNGS} == REQUIRED
    assert len({p.name for p in here.probes}) == len(here.probes)
    assert [p.name for p in here.probes if not (p.tried and p.detail)] == []
    assert [p.name for p in here.probes if p.ok and p.fix] == []


def test_what_is_tried_is_what_a_launch_does() -> None:
    """Each namespace and capability that `launch` names is in the options under which the sandbox is tried."""
    source = (ROOT / "jupyter_agentwatch/sandbox/launch.py").read_text("utf-8")
    wanted = set(
        re.findall(
            r'"(--(?:unshare|cap|as-pid|die|new|disable|userns|uid|gid)[a-z0-9-]*|CAP_[A-Z_]+)"',
            source,
        )
    )
    assert len(wanted) > 5
    assert wanted - set(LAUNCH_OPTIONS) == set()


ORDINARY: Final = """
import os, subprocess, sys, tempfile
from pathlib import Path
from jupyter_agentwatch.sandbox.probe import probe
from jupyter_agentwatch.sandbox.probe_report import failed_probe

report = probe()
stands = report.rung != "E"
with tempfile.TemporaryDirectory() as folder:
    workspace = Path(folder, "workspace")
    workspace.mkdir()
    own = {"HOME": folder, "AGENTWATCH_LOG_DIR": f"{folder}/log", "AGENTWATCH_RUNTIME_DIR": f"{folder}/run"}
    argv = [sys.executable, "-m", "jupyter_agentwatch.cli", "run", f"--workspace={workspace}", "--", "echo", "inside"]
    done = subprocess.run(argv, cwd="/", env=os.environ | own, capture_output=True, text=True)
assert stands == (done.returncode == 0), (failed_probe(report), done.stderr)
assert stands == ("inside" in done.stdout)
print(*[p.name for p in report.probes if p.ok], sep="\\n")
"""


def test_for_an_ordinary_user_the_report_says_what_a_run_does() -> None:
    """As an ordinary user, a rung is reported exactly where a command runs, and the mechanisms are really tried."""
    said = as_ordinary_user(ORDINARY, MOUNT_PROC)
    assert set(said.split("\n")) >= {
        "machine",
        "bubblewrap",
        "seccomp notification",
        *SHARED,
    }


def test_a_trial_that_takes_too_long_is_ended_as_a_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a program that is tried has started ends with it."""
    monkeypatch.setattr(probe_child, "PATIENCE_S", 0.5)
    with pytest.raises(subprocess.TimeoutExpired):
        probe_child.run(["/bin/sh", "-c", f"sh -c 'sleep 1000; : {tmp_path}' & wait"])
    wait_all_ended(hold(marked(str(tmp_path))))


def test_probing_leaves_nothing_behind() -> None:
    """After probing there is no child, no open file and no cgroup that was not there before."""
    report_of(
        """
import os
from pathlib import Path
from jupyter_agentwatch.sandbox.cgroup import find_delegation
from jupyter_agentwatch.sandbox.probe import probe
probe()  # loads what is loaded once
before = sorted(os.listdir("/proc/self/fd"))
probe()
assert sorted(os.listdir("/proc/self/fd")) == before
try:
    os.waitpid(-1, os.WNOHANG)
    raise SystemExit("a child is left")
except ChildProcessError:
    pass
delegation = find_delegation()
left = [] if delegation is None else list(delegation.path.glob(f"agentwatch-probe-{os.getpid()}-*"))
assert left == []
"""
    )


def test_a_probe_that_breaks_has_failed() -> None:
    """An unforeseen exception is the failure of that probe, with its text; the others are still tried."""
    report = report_of('import sys\nsys.executable = "/nonexistent/python"\n')
    missing = first_missing(report, "A", left="")
    assert (missing.name, named(report, "user namespaces").ok) == (
        "pid namespace",
        True,
    )
    broken = named(report, "seccomp notification")
    assert broken.detail.startswith("FileNotFoundError: ")
    assert "/nonexistent/python" in broken.detail
    assert broken.fix
    assert "/nonexistent/python" in named(report, "rights given up").detail


def test_on_another_machine_nothing_is_promised() -> None:
    """A machine without tables gets rung E's answer by its name, and what depends on them is not blamed."""
    person = "import ctypes\nassert ctypes.CDLL(None).personality(8) >= 0\n"  # PER_LINUX32: another `uname -m`
    report = report_of(person)
    missing = first_missing(report, "A", left="")
    assert (missing.name, report.label) == ("machine", "no isolation: run refuses")
    assert "x86_64 or aarch64" in missing.fix
    assert named(report, "seccomp notification").detail == "not tried, because it needs 'machine'"
    assert failed_probe(report).startswith("rungs A and B need machine: ")


def test_the_reason_is_found_without_trying_all() -> None:
    """Why a rung cannot be had is the first failure of the whole report; nothing is said where it can be had."""
    assert [why_not("A"), why_not("C"), why_not("A", "B")] == ["", "", ""]
    ask = "from jupyter_agentwatch.sandbox.probe import probe, why_not\n"
    ask += "from jupyter_agentwatch.sandbox.probe_report import failed_probe\n"
    ask += "report = probe()\n"
    ask += "assert why_not('A') == failed_probe(report, 'A') != '', why_not('A')\n"
    ask += "assert why_not('A', 'B') == failed_probe(report) == '', why_not('A', 'B')\n" * bool(landlock_abi())
    report_of(AS_DOCKER_DOES + ask)


def test_the_json_has_the_names_that_are_documented(here: Report) -> None:
    """Machines read these names: a renamed field is a broken script."""
    decoded = msgspec.json.decode(msgspec.json.encode(here))
    assert list(decoded) == [
        "rung",
        "label",
        "available",
        "limits_by",
        "probes",
        "missing",
    ]
    assert list(decoded["missing"]) == ["A", "B", "C"]
    fields = ["name", "ok", "tried", "detail", "fix", "required_for", "lacks"]
    assert all(list(each) == fields for each in decoded["probes"])
    assert all(f"{field}:" in f"{Report.__doc__}{Probe.__doc__}" for field in (*decoded, *fields))
