"""Reports of `doctor` under circumstances that a test makes, and what they must say when a rung cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

import msgspec

from jupyter_agentwatch.sandbox.landlock import landlock_abi
from jupyter_agentwatch.sandbox.probe_report import (
    RUNGS,
    Probe,
    Report,
    Rung,
)

ROOT: Final = Path(__file__).parent.parent
LIMIT_S: Final = 120

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
