"""The probes of `doctor`: true where all works, and each failure told apart, with its fix, by making it happen."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

import msgspec
import pytest

from jupyter_agentwatch.sandbox.landlock import NEWEST_ABI, landlock_abi, missing_rights
from jupyter_agentwatch.sandbox.probe import probe, why_not
from jupyter_agentwatch.sandbox.probe_report import (
    RUNGS,
    Probe,
    Report,
    Rung,
    failed_probe,
    report_text,
)
from jupyter_agentwatch.sandbox.probe_shared import try_landlock
from jupyter_agentwatch.sandbox.probe_trials import LAUNCH_OPTIONS, Bench

pytestmark = pytest.mark.sandbox

ROOT: Final = Path(__file__).parent.parent
LIMIT_S: Final = 120
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
new = [(EQUAL, 0, 4, numbers["clone"]), (LOAD, 0, 0, 16), (BITS, 0, 1, 0x7E020000), (GIVE, 0, 0, 0x50001), ALLOW]
taken = ["unshare", "setns", "mount", "umount2", "pivot_root", "mount_setattr", "open_tree", "move_mount", "fsopen"]
taken += ["pidfd_getfd", "kcmp", "bpf", "userfaultfd", "perf_event_open", "keyctl", "add_key", "request_key"]
taken += ["io_uring_setup", "open_by_handle_at", "acct", "quotactl", "settimeofday", "init_module"]
denied = [step for call in taken for step in deny(call, 1)]
install([(LOAD, 0, 0, 0), *denied, *deny("clone3", errno.ENOSYS), *new, ALLOW])
"""
"""As the default profile of Docker: no namespaces, no `pidfd_getfd`, no `clone3`, and what else it takes away."""


def report_of(prelude: str = "", setup: str = "") -> Report:
    """Probe in a process of its own.

    Args:
        prelude: Python that this process runs first.
        setup: Shell commands that are run before it, as root of a user and mount namespace of their own.
    """
    argv = [sys.executable, "-c", prelude + PRINT_REPORT]
    if setup:
        argv = [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-ec",
            f'{setup}\nexec "$@"',
            "sh",
            *argv,
        ]
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


LABELS: Final = {
    "A": "isolated",
    "B": "confined, shared namespaces",
    "E": "no isolation: run refuses",
}


def first_missing(report: Report, rung: Rung, *, left: str) -> Probe:
    """Return the first required probe that failed, after checking that the report draws the conclusion.

    Args:
        report: What was found.
        rung: Which cannot be had.
        left: Which can.
    """
    assert "".join(report.available) == left
    best = left[0] if left and left != "C" else "E"
    assert (report.rung, report.label.startswith(LABELS[best])) == (best, True)
    failed = {letter: tuple(p.name for p in report.probes if letter in p.required_for and not p.ok) for letter in RUNGS}
    assert report.missing == failed
    return named(report, report.missing[rung][0])


SHARED_LEFT: Final = "BC" if landlock_abi() else "C"
"""Rungs that can be had here without namespaces."""


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

MOUNT_PROC: Final = "mount -t proc proc /proc"

AS_NOBODY: Final = """
mount -t tmpfs tmpfs /mnt
mkdir /mnt/python /mnt/repository /mnt/site
mount --rbind "$1" /mnt/python
mount --rbind "$2" /mnt/repository
mount --rbind "$3" /mnt/site
eval "$6"
cd /
exec setpriv --reuid 65533 --regid 65533 --clear-groups --bounding-set=-all \
    env -i PYTHONPATH=/mnt/repository:/mnt/site "/mnt/python/bin/$4" -c "$5"
"""


def as_ordinary_user(code: str, setup: str = "true") -> str:
    """Run Python as an ordinary user, in a mount and PID namespace of its own, and return what it prints.

    Args:
        code: The program.
        setup: Shell commands that are run before it, as root.
    """
    own = ["--mount", "--pid", "--fork", "--propagation", "private"]
    if os.getuid() == 0:
        # Root's interpreter may lie in a folder that no one else may enter, so it is shown elsewhere.
        program = f"python{sysconfig.get_python_version()}"
        shown = [
            sys.base_prefix,
            str(ROOT),
            sysconfig.get_path("purelib"),
            program,
            code,
            setup,
        ]
        argv = ["unshare", *own, "sh", "-ec", AS_NOBODY, "sh", *shown]
    else:
        shell = f'{setup}\nexec "$@"'
        argv = [
            "unshare",
            "--user",
            "--map-root-user",
            *own,
            "sh",
            "-ec",
            shell,
            "sh",
            sys.executable,
            "-c",
            code,
        ]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        argv,
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_for_an_ordinary_user_the_report_says_what_a_run_does() -> None:
    """As an ordinary user, a rung is reported exactly where a command runs, and the mechanisms are really tried."""
    said = as_ordinary_user(ORDINARY, MOUNT_PROC)
    assert set(said.split("\n")) >= {
        "machine",
        "bubblewrap",
        "seccomp notification",
        *SHARED,
    }


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


def test_where_proc_is_not_ours_that_is_the_one_thing_to_mend() -> None:
    """In a PID namespace that sees another one's /proc, doctor names that, and a watch refuses for it at once."""
    inside = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", sys.executable, "-c"]
    done = subprocess.run([*inside, PRINT_REPORT], cwd=ROOT, capture_output=True, timeout=LIMIT_S, check=False)
    report = msgspec.json.decode(done.stdout, type=Report)
    for rung in ("A", "B", "C"):
        assert first_missing(report, rung, left="").name == "own /proc"
    start = "from jupyter_agentwatch import Watch\nWatch().__enter__()"
    done = subprocess.run([*inside, start], cwd=ROOT, capture_output=True, timeout=LIMIT_S, check=False)
    assert b"probe 'own /proc' failed" in done.stderr.splitlines()[-1]


def test_without_bubblewrap_the_package_is_named() -> None:
    """Where no bwrap can be run, that is what is missing, and what depends on it is not blamed."""
    hidden = 'for each in $(which -a bwrap); do mount --bind /dev/null "$each"; done'
    report = report_of(setup=hidden)
    missing = first_missing(report, "A", left=SHARED_LEFT)
    assert (missing.name, missing.detail) == ("bubblewrap", "bwrap is not installed")
    assert "install bubblewrap" in missing.fix
    dependent = named(report, "user namespaces")
    assert (dependent.ok, dependent.detail) == (
        False,
        "not tried, because it needs 'bubblewrap'",
    )
    assert dependent.fix == ""
    assert named(report, "seccomp notification").ok


def test_under_dockers_profile_rung_b_is_had() -> None:
    """Under the default profile of Docker everything of rung B works, and rung A's fix is the container's options."""
    report = report_of(AS_DOCKER_DOES)
    missing = first_missing(report, "A", left=SHARED_LEFT)
    assert missing.name == "user namespaces"
    assert "unshare(CLONE_NEWUSER) gives EPERM: a seccomp filter" in missing.detail
    assert "--security-opt seccomp=unconfined" in missing.fix
    assert named(report, "seccomp notification").ok
    assert named(report, "network namespace").detail == "not tried, because it needs 'pid namespace'"


def test_under_dockers_profile_an_ordinary_user_has_rung_b() -> None:
    """The same without any right to begin with."""
    report = msgspec.json.decode(as_ordinary_user(AS_DOCKER_DOES + PRINT_REPORT, MOUNT_PROC), type=Report)
    assert first_missing(report, "A", left=SHARED_LEFT).name == "user namespaces"


def test_a_bound_of_no_user_namespaces_is_told_from_other_causes() -> None:
    """Where user.max_user_namespaces is 0, the fix raises it."""
    missing = first_missing(
        report_of(setup="echo 0 > /proc/sys/user/max_user_namespaces"),
        "A",
        left=SHARED_LEFT,
    )
    assert missing.name == "user namespaces"
    assert "gives ENOSPC: user.max_user_namespaces=0" in missing.detail
    assert "sudo sysctl -w user.max_user_namespaces=15000" in missing.fix


def test_debians_switch_is_told_from_other_causes() -> None:
    """Where kernel.unprivileged_userns_clone is 0 and namespaces are denied, the fix sets it."""
    report = report_of(AS_DOCKER_DOES, with_setting("kernel/unprivileged_userns_clone", 0))
    missing = first_missing(report, "A", left=SHARED_LEFT)
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
    missing = first_missing(report_of(setup=f"{shown}; {in_its_place}"), "A", left=SHARED_LEFT)
    assert missing.name == "user namespaces"
    assert missing.detail.startswith("bwrap: setting up uid map: denied; one can be made, but not used: AppArmor")
    assert "/etc/apparmor.d/bwrap" in missing.fix


def test_a_masked_proc_is_named() -> None:
    """Where parts of /proc are masked, as in containers, no new one can be mounted, and the fix unmasks it."""
    report = report_of(setup="mount -t tmpfs -o ro tmpfs /proc/tty")
    missing = first_missing(report, "A", left=SHARED_LEFT)
    assert named(report, "user namespaces").ok
    assert missing.name == "pid namespace"
    assert "proc" in missing.detail
    assert "masked" in missing.fix
    assert "systempaths=unconfined" in missing.fix


def test_another_listener_is_named() -> None:
    """Inside another sandbox that listens to our calls, the kernel's EBUSY is told from other failures."""
    report = report_of(f"{INSTALL}\nlistener = install([ALLOW], 1 << 3)\n")
    missing = first_missing(report, "B", left="")
    assert missing.name == "seccomp notification"
    assert missing.detail.startswith("EBUSY: this process is inside another sandbox")
    assert "one listener for each process" in missing.fix
    assert named(report, "network namespace").ok
    assert named(report, "socket broker").detail == "not tried, because it needs 'seccomp notification'"
    assert named(report, "made sockets").detail == "not tried, because it needs 'seccomp notification'"
    assert failed_probe(report).startswith("rungs A and B need seccomp notification: ")


WITHOUT: Final = {
    "pidfd_getfd": ("A", SHARED_LEFT, "socket broker", "EPERM", "seccomp=unconfined"),
    "process_vm_readv": (
        "B",
        "",
        "same user's memory",
        "EPERM",
        "process_vm_readv among processes of one user",
    ),
    "seccomp": ("B", "", "seccomp notification", "EPERM", "seccomp=unconfined"),
    # bubblewrap calls it, too, where root does not run it
    "capset": ("B", "" if os.geteuid() else "A", "rights given up", "EPERM", "allows capset"),
    "pidfd_send_signal": (
        "B",
        "A",
        "orphans",
        "could not be killed",
        "pidfd_send_signal",
    ),
}


@pytest.mark.parametrize("call", WITHOUT)
def test_a_call_that_the_supervisor_may_not_make_is_found(call: str) -> None:
    """Where a filter takes one of the broker's calls, exactly that probe fails, with the error and a fix."""
    rung, left, name, wrong, fix = WITHOUT[call]
    report = report_of(f"{INSTALL}\ninstall([(LOAD, 0, 0, 0), *deny({call!r}, errno.EPERM), ALLOW])\n")
    missing = first_missing(report, "A" if rung == "A" else "B", left=left)
    assert missing.name == name
    assert wrong in missing.detail.replace(os.strerror(errno.EPERM), "EPERM")
    assert fix in missing.fix


def without(call: str, index: int, value: int, number: int) -> str:
    """Return Python that takes one value of a call's argument away.

    Args:
        call: Name of the call.
        index: Of its argument.
        value: Of the argument's lower half.
        number: The errno that is given instead.
    """
    refuse = f"(LOAD, 0, 0, {16 + 8 * index}), (EQUAL, 0, 1, {value}), (GIVE, 0, 0, {0x50000 | number}), ALLOW"
    return f"{INSTALL}\ninstall([(LOAD, 0, 0, 0), (EQUAL, 0, 4, numbers[{call!r}]), {refuse}, ALLOW])\n"


@pytest.mark.parametrize(
    ("prelude", "name", "detail"),
    [
        (
            without("ioctl", 1, 0x40182103, errno.EPERM),
            "made sockets",
            "the caller's socket() gives EPERM",
        ),
        (without("prctl", 0, 36, errno.EINVAL), "orphans", "it went to process "),
    ],
    ids=["ADDFD", "PR_SET_CHILD_SUBREAPER"],
)
def test_a_piece_of_rung_b_that_is_missing_is_named(prelude: str, name: str, detail: str) -> None:
    """A kernel or profile without one of rung B's mechanisms is told by that mechanism; rung A does not need it."""
    report = report_of(prelude)
    missing = first_missing(report, "B", left="A")
    assert (missing.name, missing.detail.startswith(detail)) == (name, True)
    assert missing.fix
    assert failed_probe(report) == ""
    assert failed_probe(report, "B").startswith(f"rung B needs {name}: probe '{name}' failed: ")


def test_rights_that_are_only_said_to_be_gone_are_found() -> None:
    """Where the kernel takes a call and does nothing, what is left of root's rights is seen, and rung B is refused."""
    report = report_of(f"{INSTALL}\ninstall([(LOAD, 0, 0, 0), *deny('capset', 0), ALLOW])\n", AS_ROOT)
    assert named(report, "rights given up").detail == "the kernel agreed, but rights are left"
    assert {"B", "C"} & set(report.available) == set()


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


LANDLOCK: Final = [
    (errno.ENOSYS, "the kernel was built without it", "CONFIG_SECURITY_LANDLOCK"),
    (errno.EOPNOTSUPP, "it is switched off", "lsm="),
    (errno.EPERM, "a security profile forbids it", "allows the calls of Landlock"),
]


@pytest.mark.parametrize(("number", "why", "fix"), LANDLOCK, ids=["not built", "switched off", "forbidden"])
def test_without_landlock_only_rungs_a_and_c_are_left(number: int, why: str, fix: str) -> None:
    """Why there is no Landlock is told by the kernel's answer, each with its own fix."""
    report = report_of(f"{INSTALL}\ninstall([(LOAD, 0, 0, 0), *deny('landlock_create_ruleset', {number}), ALLOW])\n")
    missing = first_missing(report, "B", left="AC")
    assert (missing.name, report.missing["B"]) == ("landlock", ("landlock",))
    assert why in missing.detail
    assert fix in missing.fix


def test_rung_c_is_named_and_never_taken() -> None:
    """Where neither namespaces nor Landlock are, the answer is E, and that a policy may name C is said."""
    without_both = f"{AS_DOCKER_DOES}\ninstall([(LOAD, 0, 0, 0), *deny('landlock_create_ruleset', 95), ALLOW])\n"
    report = report_of(without_both)
    assert first_missing(report, "B", left="C").name == "landlock"
    assert "unless the policy says isolation: C" in report.label
    assert failed_probe(report, "C") == ""
    assert re.match(
        "rung A needs user namespaces: .*; rung B needs landlock: ",
        failed_probe(report),
    )


def test_an_older_landlock_says_what_it_lacks() -> None:
    """A child is really confined by each version up to this kernel's, and a missing right comes with its meaning."""
    for abi in range(1, min(NEWEST_ABI, landlock_abi()) + 1):
        found = try_landlock(Bench(abi=abi))
        assert found.detail == f"enforced, ABI {abi}"
        assert found.lacks == tuple(f"{right}: {meaning}" for right, meaning in missing_rights(abi))
    known = {abi: {right for right, _ in missing_rights(abi)} for abi in (1, 4, 6, 7)}
    assert known == {
        1: {"refer", "truncate", "network", "ioctl_dev", "scope"},
        4: {"ioctl_dev", "scope"},
        6: set(),
        7: set(),
    }


def test_a_whole_report_on_an_older_landlock() -> None:
    """With the oldest interface rung B is had, as far as there is any Landlock, and the text tells what it lacks."""
    report = probe(Bench(abi=1))
    text = report_text(report)
    assert ("B" in report.available) == (landlock_abi() > 0)
    assert [line in text for line in named(report, "landlock").lacks] == [True] * len(missing_rights(1)) * bool(
        landlock_abi()
    )


def test_on_another_machine_nothing_is_promised() -> None:
    """A machine without tables gets rung E's answer by its name, and what depends on them is not blamed."""
    person = "import ctypes\nassert ctypes.CDLL(None).personality(8) >= 0\n"  # PER_LINUX32: another `uname -m`
    report = report_of(person)
    missing = first_missing(report, "A", left="")
    assert (missing.name, report.label) == ("machine", "no isolation: run refuses")
    assert "x86_64 or aarch64" in missing.fix
    assert named(report, "seccomp notification").detail == "not tried, because it needs 'machine'"
    assert failed_probe(report).startswith("rungs A and B need machine: ")


HIDDEN: Final = ["hidepid=1", "hidepid=2", "hidepid=4"]


@pytest.mark.parametrize("option", HIDDEN)
def test_a_hidden_proc_forbids_rung_b(option: str) -> None:
    """Where /proc hides what makes itself unreadable, such a process would outlive rung B's kill: rung A is left."""
    printed = as_ordinary_user(PRINT_REPORT, f"{MOUNT_PROC} -o {option}")
    report = msgspec.json.decode(printed, type=Report)
    assert "B" not in report.available
    orphans = named(report, "orphans")
    assert orphans.detail == "a process that makes itself unreadable is not to be seen in /proc"
    assert "sudo mount -o remount,hidepid=0 /proc" in orphans.fix
    assert set(report.missing["C"]) == {"orphans"}


REFUSED: Final = """
import os, sys, tempfile
from pathlib import Path
from jupyter_agentwatch import Watch
from jupyter_agentwatch.errors import RungError
from jupyter_agentwatch.policy import Policy

with tempfile.TemporaryDirectory() as folder:
    workspace = Path(folder, "workspace")
    workspace.mkdir()
    os.environ |= {"HOME": folder, "AGENTWATCH_LOG_DIR": f"{folder}/log", "AGENTWATCH_RUNTIME_DIR": f"{folder}/run"}
    try:
        Watch(workspace=workspace, policy=Policy(isolation=ISOLATION)).close()
    except RungError as error:
        print(error)
"""


@pytest.mark.parametrize("option", HIDDEN)
def test_no_watch_stands_on_rung_b_where_proc_is_hidden(option: str) -> None:
    """What the report says is what a start does: the refusal names the probe and its fix."""
    said = as_ordinary_user(f"ISOLATION = 'B'\n{REFUSED}", f"{MOUNT_PROC} -o {option}")
    assert said.startswith("rung B needs orphans: probe 'orphans' failed: ")
    assert "hidepid=0" in said


def test_a_watch_that_cannot_stand_at_all_says_why_of_each_rung() -> None:
    """Inside another sandbox that listens to our calls, a start is refused for both rungs, with the fix."""
    code = f"{INSTALL}\nlistener = install([ALLOW], 1 << 3)\nISOLATION = 'required'\n{REFUSED}"
    said = as_ordinary_user(code, MOUNT_PROC)
    assert "B need" in said
    assert "seccomp notification: probe 'seccomp notification' failed: tried" in said
    assert "one listener for each process" in said


def test_a_read_only_cgroup_file_system_is_named() -> None:
    """As in a container: the limits go to others, and the fix bounds the container."""
    find = "awk '$3 ~ /^cgroup/ {print $2}' /proc/mounts"
    close = 'mount --bind "$held" "$held"; mount -o remount,bind,ro "$held"'
    report = report_of(setup=f"for held in $({find}); do {close}; done")
    probed = named(report, "cgroup delegation")
    assert (probed.ok, probed.detail) == (
        False,
        "the cgroup file system is mounted read-only",
    )
    assert "docker run --memory" in probed.fix
    assert "cgroup" not in report.limits_by


def test_without_cgroups_the_boot_option_is_named() -> None:
    """A machine that mounts no cgroup v2 is told how to have it."""
    probed = named(report_of(setup="mount -t tmpfs tmpfs /sys"), "cgroup delegation")
    assert (probed.ok, probed.detail) == (False, "no cgroup v2 is mounted")
    assert "systemd.unified_cgroup_hierarchy=1" in probed.fix


def test_a_loopback_that_is_down_is_named_once() -> None:
    """In a network namespace whose loopback is down, that is what is missing, and what depends on it is not blamed."""
    report = report_of(setup='exec unshare --net "$@"')
    missing = first_missing(report, "B", left="A")
    assert missing.name == "loopback"
    assert "ip link set lo up" in missing.fix
    assert named(report, "made sockets").detail == "not tried, because it needs 'loopback'"


def test_a_loopback_without_ipv6_is_stood_in_for() -> None:
    """Where there is no ::1, rung B works all the same, and what stands in for it is said."""
    off = "ip link set lo up; echo 1 > /proc/sys/net/ipv6/conf/lo/disable_ipv6"
    report = report_of(setup=f'exec unshare --net sh -ec \'{off}; exec "$@"\' sh "$@"')
    assert "C" in report.available
    (lacks,) = named(report, "loopback").lacks
    assert "::ffff:127.0.0.1" in lacks


@pytest.mark.parametrize(
    ("scope", "fix"),
    [(2, "sysctl -w kernel.yama.ptrace_scope=1"), (3, "/etc/sysctl.d, and boot")],
)
def test_yama_is_told_from_other_causes(scope: int, fix: str) -> None:
    """Where Yama forbids to look at one's own processes, its setting is named, with what can be done about it."""
    # Yama cannot be had everywhere: its answer is a filter's here, and its setting a file in its place.
    prelude = f"{INSTALL}\ninstall([(LOAD, 0, 0, 0), *deny('process_vm_readv', errno.EPERM), ALLOW])\n"
    report = report_of(
        prelude,
        f"{with_setting('kernel/overflowuid', 65534)}; mkdir /proc/sys/kernel/yama; "
        f"echo {scope} > /proc/sys/kernel/yama/ptrace_scope",
    )
    missing = named(report, "same user's memory")
    assert f"kernel.yama.ptrace_scope={scope}" in missing.detail
    assert fix in missing.fix


def test_root_without_rights_is_told_to_be_a_user() -> None:
    """Root that may not map itself into a user namespace gets that fix, and not a container's."""
    report = report_of(setup='exec setpriv --inh-caps=-all --bounding-set=-all "$@"')
    missing = first_missing(report, "A", left=SHARED_LEFT)
    assert missing.detail.endswith("root may not map itself without CAP_SETFCAP")
    assert "as an ordinary user" in missing.fix


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
