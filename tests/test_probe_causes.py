"""What keeps a machine from giving a rung is told apart, with its fix, by making it happen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from jupyter_agentwatch.sandbox.probe_report import (
    Report,
    failed_probe,
)
from tests.probes import (
    AS_DOCKER_DOES,
    INSTALL,
    LIMIT_S,
    PRINT_REPORT,
    ROOT,
    SHARED_LEFT,
    first_missing,
    named,
    report_of,
    with_setting,
)

pytestmark = pytest.mark.sandbox


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
