"""The probes of rungs B and C: each piece that is missing is named, and nothing is promised without it."""

from __future__ import annotations

import errno
import os
import re
from typing import Final

import msgspec
import pytest

from jupyter_agentwatch.sandbox.landlock import NEWEST_ABI, landlock_abi, missing_rights
from jupyter_agentwatch.sandbox.probe import probe
from jupyter_agentwatch.sandbox.probe_report import (
    Report,
    failed_probe,
    report_text,
)
from jupyter_agentwatch.sandbox.probe_shared import try_landlock
from jupyter_agentwatch.sandbox.probe_trials import Bench
from tests.probes import (
    AS_DOCKER_DOES,
    AS_ROOT,
    INSTALL,
    MOUNT_PROC,
    PRINT_REPORT,
    SHARED_LEFT,
    as_ordinary_user,
    first_missing,
    named,
    report_of,
)

pytestmark = pytest.mark.sandbox


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
