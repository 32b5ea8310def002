"""The probes of `doctor`: true where all works, and each failure told apart, with its fix, by making it happen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

import msgspec
import pytest

from jupyter_agentwatch.sandbox.probe import Probe, Report, failed_probe, probe, report_text
from jupyter_agentwatch.sandbox.probe_trials import LAUNCH_OPTIONS

pytestmark = pytest.mark.sandbox

ROOT: Final = Path(__file__).parent.parent
LIMIT_S: Final = 120
REQUIRED: Final = (
    *("machine", "bubblewrap", "user namespaces", "pid namespace", "seccomp notification", "network namespace"),
    *("socket broker", "caller's memory", "caller's /proc"),
)

AS_ROOT: Final = ":"
"""Setup of a process that is root of its own user namespace, and else as any."""

PRINT_REPORT: Final = """
import msgspec, sys
from jupyter_agentwatch.sandbox.probe import probe
sys.stdout.buffer.write(msgspec.json.encode(probe()))
"""

INSTALL: Final = """
import ctypes, errno, os, struct
from jupyter_agentwatch.sandbox.syscalls import MACHINES
numbers = MACHINES[os.uname().machine].numbers
LOAD, EQUAL, BITS, GIVE, ALLOW = 0x20, 0x15, 0x45, 0x06, (0x06, 0, 0, 0x7FFF0000)

def deny(call, number):
    return [(EQUAL, 0, 1, numbers[call]), (GIVE, 0, 0, 0x50000 | number)]

def install(program, flags=0):
    libc = ctypes.CDLL(None, use_errno=True)
    code = b"".join(struct.pack("=HBBI", *step) for step in program)
    held = ctypes.create_string_buffer(code, len(code))
    filt = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(held)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    fd = libc.syscall(numbers["seccomp"], 1, flags, filt)
    assert fd >= 0, ctypes.get_errno()
    return fd
"""

AS_DOCKER_DOES: Final = f"""{INSTALL}
new_user = [(EQUAL, 0, 4, numbers["clone"]), (LOAD, 0, 0, 16), (BITS, 0, 1, 0x10000000), (GIVE, 0, 0, 0x50001), ALLOW]
install([(LOAD, 0, 0, 0), *deny("unshare", 1), *deny("clone3", errno.ENOSYS), *new_user, ALLOW])
"""


def report_of(prelude: str = "", setup: str = "") -> Report:
    """Probe in a process of its own.

    Args:
        prelude: Python that this process runs first.
        setup: Shell commands that are run before it, as root of a user and mount namespace of their own.
    """
    argv = [sys.executable, "-c", prelude + PRINT_REPORT]
    if setup:
        argv = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", f'{setup}\nexec "$@"', "sh", *argv]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return msgspec.json.decode(done.stdout, type=Report)


def with_setting(name: str, value: int) -> str:
    """Return shell commands that show a system setting, among those that bubblewrap itself reads."""
    shown = {"kernel/overflowuid": 65534, "kernel/overflowgid": 65534, name: value}
    writes = [f"echo {value} > /proc/sys/{name}" for name, value in shown.items()]
    return "; ".join(["mount -t tmpfs tmpfs /proc/sys", "mkdir /proc/sys/kernel", *writes])


def named(report: Report, name: str) -> Probe:
    """Return one probe of a report."""
    return next(p for p in report.probes if p.name == name)


def first_missing(report: Report) -> Probe:
    """Return the first required probe that failed, after checking that the report draws the conclusion."""
    assert report.rung == "E"
    assert report.label.startswith("no isolation")
    assert "not available yet" in report.label
    assert report.missing == tuple(p.name for p in report.probes if p.required and not p.ok)
    return named(report, report.missing[0])


@pytest.fixture(scope="module")
def here() -> Report:
    """Return this machine's report."""
    return probe()


@pytest.mark.parametrize("setup", ["", AS_ROOT], ids=["as this user", "as root of a user namespace"])
def test_all_that_rung_a_needs_works_here(setup: str) -> None:
    """Where sandbox tests run, every required probe is ok, within a user namespace too, and rung A is had."""
    report = report_of(setup=setup)
    assert {p.name: p.detail for p in report.probes if p.required and not p.ok} == {}
    assert (report.rung, report.label, report.missing) == ("A", "isolated", ())


def test_the_required_probes_are_known(here: Report) -> None:
    """No probe becomes optional by accident; names are unique, each says what it tried, and a failed one its fix."""
    assert tuple(p.name for p in here.probes if p.required) == REQUIRED
    assert len({p.name for p in here.probes}) == len(here.probes)
    assert [p.name for p in here.probes if not (p.tried and p.detail)] == []
    assert [p.name for p in here.probes if p.ok and p.fix] == []


def test_what_is_tried_is_what_a_launch_does() -> None:
    """Each namespace and capability that `launch` names is in the options under which the sandbox is tried."""
    source = (ROOT / "jupyter_agentwatch/sandbox/launch.py").read_text("utf-8")
    wanted = set(
        re.findall(r'"(--(?:unshare|cap|as-pid|die|new|disable|userns|uid|gid)[a-z0-9-]*|CAP_[A-Z_]+)"', source)
    )
    assert len(wanted) > 5
    assert wanted - set(LAUNCH_OPTIONS) == set()


ORDINARY: Final = """
import os, subprocess, sys, tempfile
from pathlib import Path
from jupyter_agentwatch.sandbox.probe import failed_probe, probe

report = probe()
with tempfile.TemporaryDirectory() as folder:
    workspace = Path(folder, "workspace")
    workspace.mkdir()
    own = {"HOME": folder, "AGENTWATCH_LOG_DIR": f"{folder}/log", "AGENTWATCH_RUNTIME_DIR": f"{folder}/run"}
    argv = [sys.executable, "-m", "jupyter_agentwatch.cli", "run", "--", "echo", "inside"]
    done = subprocess.run(argv, cwd=workspace, env=os.environ | own, capture_output=True, text=True)
assert (report.rung == "A") == (done.returncode == 0), (failed_probe(report), done.stderr)
assert (report.rung == "A") == ("inside" in done.stdout)
print(*[p.name for p in report.probes if p.ok], sep="\\n")
"""

AS_NOBODY: Final = """
mount -t tmpfs tmpfs /mnt
mkdir /mnt/python /mnt/repository /mnt/site
mount --rbind "$1" /mnt/python
mount --rbind "$2" /mnt/repository
mount --rbind "$3" /mnt/site
cd /
exec setpriv --reuid 65533 --regid 65533 --clear-groups --bounding-set=-all \
    env -i PYTHONPATH=/mnt/repository:/mnt/site "/mnt/python/bin/$4" -c "$5"
"""


def test_for_an_ordinary_user_the_report_says_what_a_run_does() -> None:
    """As an ordinary user, rung A is reported exactly where a command runs, and the mechanisms are really tried."""
    argv = [sys.executable, "-c", ORDINARY]
    if os.getuid() == 0:
        # Root's interpreter may lie in a folder that no one else may enter, so it is shown elsewhere.
        program = f"python{sysconfig.get_python_version()}"
        shown = [sys.base_prefix, str(ROOT), sysconfig.get_path("purelib"), program, ORDINARY]
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", AS_NOBODY, "sh", *shown]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split("\n")) >= {"machine", "bubblewrap", "seccomp notification"}


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


def test_without_bubblewrap_the_package_is_named() -> None:
    """Where no bwrap can be run, that is what is missing, and what depends on it is not blamed."""
    hidden = 'for each in $(which -a bwrap); do mount --bind /dev/null "$each"; done'
    report = report_of(setup=hidden)
    missing = first_missing(report)
    assert (missing.name, missing.detail) == ("bubblewrap", "bwrap is not installed")
    assert "install bubblewrap" in missing.fix
    dependent = named(report, "user namespaces")
    assert (dependent.ok, dependent.detail) == (False, "not tried, because it needs 'bubblewrap'")
    assert dependent.fix == ""
    assert named(report, "seccomp notification").ok


def test_a_filter_as_dockers_is_told_from_other_causes() -> None:
    """Where a seccomp filter forbids user namespaces, the fix is the container's security options."""
    report = report_of(AS_DOCKER_DOES)
    missing = first_missing(report)
    assert missing.name == "user namespaces"
    assert "unshare(CLONE_NEWUSER) gives EPERM: a seccomp filter" in missing.detail
    assert "--security-opt seccomp=unconfined" in missing.fix
    assert named(report, "seccomp notification").ok
    assert named(report, "network namespace").detail == "not tried, because it needs 'pid namespace'"


def test_a_bound_of_no_user_namespaces_is_told_from_other_causes() -> None:
    """Where user.max_user_namespaces is 0, the fix raises it."""
    missing = first_missing(report_of(setup="echo 0 > /proc/sys/user/max_user_namespaces"))
    assert missing.name == "user namespaces"
    assert "gives ENOSPC: user.max_user_namespaces=0" in missing.detail
    assert "sudo sysctl -w user.max_user_namespaces=15000" in missing.fix


def test_debians_switch_is_told_from_other_causes() -> None:
    """Where kernel.unprivileged_userns_clone is 0 and namespaces are denied, the fix sets it."""
    missing = first_missing(report_of(AS_DOCKER_DOES, with_setting("kernel/unprivileged_userns_clone", 0)))
    assert missing.name == "user namespaces"
    assert missing.detail.endswith("gives EPERM: kernel.unprivileged_userns_clone=0")
    assert "sudo sysctl -w kernel.unprivileged_userns_clone=1" in missing.fix


def test_ubuntus_restriction_is_told_from_other_causes(tmp_path: Path) -> None:
    """Where a namespace can be made, but AppArmor takes its capabilities, the fix is a profile for bwrap."""
    denied = tmp_path / "bwrap"  # AppArmor cannot be had everywhere: this says what bwrap says under it
    denied.write_text('#!/bin/sh\n[ "$1" = --version ] && exit\necho "bwrap: setting up uid map: denied" >&2; exit 1\n')
    denied.chmod(0o755)
    shown = with_setting("kernel/apparmor_restrict_unprivileged_userns", 1)
    in_its_place = f'mount --bind "{denied}" "$(command -v bwrap)"'
    missing = first_missing(report_of(setup=f"{shown}; {in_its_place}"))
    assert missing.name == "user namespaces"
    assert missing.detail.startswith("bwrap: setting up uid map: denied; one can be made, but not used: AppArmor")
    assert "/etc/apparmor.d/bwrap" in missing.fix


def test_a_masked_proc_is_named() -> None:
    """Where parts of /proc are masked, as in containers, no new one can be mounted, and the fix unmasks it."""
    report = report_of(setup="mount -t tmpfs -o ro tmpfs /proc/tty")
    missing = first_missing(report)
    assert named(report, "user namespaces").ok
    assert missing.name == "pid namespace"
    assert "proc" in missing.detail
    assert "masked" in missing.fix
    assert "systempaths=unconfined" in missing.fix


def test_another_listener_is_named() -> None:
    """Inside another sandbox that listens to our calls, the kernel's EBUSY is told from other failures."""
    report = report_of(f"{INSTALL}\nlistener = install([ALLOW], 1 << 3)\n")
    missing = first_missing(report)
    assert missing.name == "seccomp notification"
    assert missing.detail.startswith("EBUSY: this process is inside another sandbox")
    assert "one listener for each process" in missing.fix
    assert named(report, "network namespace").ok
    assert named(report, "socket broker").detail == "not tried, because it needs 'seccomp notification'"


@pytest.mark.parametrize(
    ("call", "name"),
    [("pidfd_getfd", "socket broker"), ("process_vm_readv", "caller's memory"), ("seccomp", "seccomp notification")],
)
def test_a_call_that_the_supervisor_may_not_make_is_found(call: str, name: str) -> None:
    """Where a filter takes one of the broker's calls, exactly that probe fails, with the error and a fix."""
    prelude = f"{INSTALL}\ninstall([(LOAD, 0, 0, 0), *deny({call!r}, errno.EPERM), ALLOW])\n"
    missing = first_missing(report_of(prelude))
    assert missing.name == name
    assert "EPERM" in missing.detail or "Operation not permitted" in missing.detail
    assert "seccomp=unconfined" in missing.fix


def test_a_probe_that_breaks_has_failed() -> None:
    """An unforeseen exception is the failure of that probe, with its text; the others are still tried."""
    report = report_of('import sys\nsys.executable = "/nonexistent/python"\n')
    missing = first_missing(report)
    assert (missing.name, named(report, "user namespaces").ok) == ("pid namespace", True)
    broken = named(report, "seccomp notification")
    assert broken.detail.startswith("FileNotFoundError: ")
    assert "/nonexistent/python" in broken.detail
    assert broken.fix


def example(*, ok: bool, required: bool = True, name: str = "one", fix: str = "do this") -> Probe:
    """Return a probe."""
    return Probe(name=name, ok=ok, tried="a thing", detail="a result", fix="" if ok else fix, required=required)


def test_the_text_shows_each_probe_and_the_fixes_of_the_failed() -> None:
    """People get a line for each probe, in columns, and the fixes below, the optional ones marked."""
    probes = (
        example(ok=True),
        example(ok=False, name="second", fix="run that"),
        example(ok=False, required=False, name="third"),
    )
    report = Report(rung="E", label="no isolation", limits_by="nobody", probes=probes, missing=("second",))
    assert report_text(report).splitlines() == [
        "rung E: no isolation",
        "limits: nobody",
        "",
        "ok      one     a thing: a result",
        "FAILED  second  a thing: a result",
        "absent  third   a thing: a result",
        "",
        "To fix:",
        "  second: run that",
        "  third (optional): do this",
    ]


def test_the_error_names_the_first_failed_probe_and_its_fix() -> None:
    """The text of the error names what was tried, what came of it, how to mend it, and what else is missing."""
    probes = (
        example(ok=False, required=False),
        example(ok=False, name="second"),
        example(ok=False, name="third"),
    )
    report = Report(rung="E", label="no isolation", limits_by="", probes=probes, missing=("second", "third"))
    assert failed_probe(report) == (
        "rung A needs second (also missing: third): probe 'second' failed: tried a thing: a result; fix: do this"
    )
    fine = Report(rung="A", label="isolated", limits_by="", probes=probes[:1], missing=())
    assert failed_probe(fine) == ""
