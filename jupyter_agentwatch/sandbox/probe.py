"""Finds out what this machine can enforce, by doing each thing in a child process with a time limit.

A version number proves nothing: back-ports, containers and security modules change what works. Nothing here may leave
a trace, or judge what it did not try.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from jupyter_agentwatch.events import printable
from jupyter_agentwatch.sandbox import probe_shared as shared
from jupyter_agentwatch.sandbox import probe_trials as trials
from jupyter_agentwatch.sandbox.cgroup import limits_by
from jupyter_agentwatch.sandbox.probe_child import FailedTrialError, Found
from jupyter_agentwatch.sandbox.probe_report import RUNGS, Probe, Report, Rung, conclude, refusals

__all__ = ["probe", "why_not"]

_SHARED: Final[tuple[Rung, ...]] = ("B", "C")
_SHOW_PROC: Final = "Run: sudo mount -o remount,hidepid=0 /proc (in a container, mount it so)."
_ALLOW_CALLS: Final = "Use a security profile that allows {} (in Docker, the default one does)."


@dataclass(frozen=True, slots=True)
class _Plan:
    name: str
    tried: str
    attempt: Callable[[trials.Bench], str | Found]
    fix: str
    required_for: tuple[Rung, ...]
    needs: tuple[str, ...] = ()


_PLANS: Final = (
    _Plan(
        "machine",
        "what Python runs on",
        trials.try_machine,
        "Use a 64-bit Python on Linux on x86_64 or aarch64; on macOS and Windows, run Jupyter in a Linux VM (WSL 2).",
        required_for=RUNGS,
    ),
    _Plan(
        "own /proc",
        "find this process in /proc",
        trials.try_own_proc,
        "Mount this PID namespace's own: mount -t proc proc /proc (where unshare made it: unshare --mount-proc).",
        required_for=RUNGS,
        needs=("machine",),
    ),
    _Plan(
        "bubblewrap",
        "bwrap --version",
        trials.try_bwrap,
        "Install the package bubblewrap: sudo apt-get install bubblewrap (or dnf, zypper, pacman -S).",
        required_for=("A",),
    ),
    _Plan(
        "user namespaces",
        "bwrap --unshare-user --ro-bind / / true",
        trials.try_user_namespace,
        f"Allow unprivileged user namespaces, and do not start Jupyter in a chroot. {trials.LEAVE_CONTAINER}",
        required_for=("A",),
        needs=("bubblewrap",),
    ),
    _Plan(
        "pid namespace",
        "bwrap --unshare-pid --as-pid-1 --proc /proc",
        trials.try_pid_namespace,
        f"A /proc of which parts are masked forbids a new one. {trials.LEAVE_CONTAINER}",
        required_for=("A",),
        needs=("user namespaces",),
    ),
    _Plan(
        "seccomp notification",
        "trap a child's connect with the sandbox's filter, and answer it with an errno",
        trials.try_notification,
        "Use a kernel with CONFIG_SECCOMP_FILTER (Linux 5.14 or later), and a security profile that allows it.",
        required_for=RUNGS,
        needs=("machine",),
    ),
    _Plan(
        "network namespace",
        "as a launch does: bind port 53; connect over loopback, to a parked listener, outside; map root to a user",
        trials.try_network,
        "Where ::1 fails, boot without ipv6.disable=1. Where port 53 or mapping root is denied, unload AppArmor's "
        "profile that takes capabilities away: sudo apparmor_parser -R /etc/apparmor.d/bwrap-userns-restrict",
        required_for=("A",),
        needs=("own /proc", "pid namespace"),
    ),
    _Plan(
        "socket broker",
        "pidfd_getfd of the socket of a trapped connect in the sandbox",
        trials.looked_at("socket", "we hold the caller's own socket"),
        trials.LEAVE_CONTAINER,
        required_for=("A",),
        needs=("seccomp notification", "network namespace"),
    ),
    _Plan(
        "caller's memory",
        "process_vm_readv of the address of a trapped connect in the sandbox",
        trials.looked_at("memory", "we read the address that the caller gave"),
        trials.LEAVE_CONTAINER,
        required_for=("A",),
        needs=("seccomp notification", "network namespace"),
    ),
    _Plan(
        "caller's /proc",
        "read /proc/<tid>/status, exe and root of the caller in the sandbox",
        trials.looked_at("proc", "we see the caller's group, program and root"),
        _SHOW_PROC,
        required_for=("A",),
        needs=("seccomp notification", "network namespace"),
    ),
    _Plan(
        "rights given up",
        "give up capabilities and new privileges, in a process of its own, which tries what follows",
        shared.try_rights,
        _ALLOW_CALLS.format("capset and prctl"),
        _SHARED,
        needs=("own /proc",),
    ),
    _Plan(
        "loopback",
        "listen on loopback by IPv4 and IPv6, and connect to it",
        shared.try_loopback,
        "Switch loopback on: sudo ip link set lo up. Where IPv6 sockets fail, boot without ipv6.disable=1.",
        _SHARED,
        needs=("rights given up",),
    ),
    _Plan(
        "made sockets",
        "trap a child's socket, put one of ours into it (ADDFD), perform its connect, and hear what it writes",
        shared.staged("socket", "the child used a socket that we made, and pidfd_getfd was not needed"),
        "Use Linux 5.14 or later.",
        _SHARED,
        needs=("seccomp notification", "loopback"),
    ),
    _Plan(
        "same user's memory",
        "process_vm_readv of the address of that connect, without any right",
        shared.staged("memory", "we read the address that the caller gave"),
        _ALLOW_CALLS.format("process_vm_readv among processes of one user"),
        _SHARED,
        needs=("seccomp notification", "loopback"),
    ),
    _Plan(
        "same user's /proc",
        "read /proc/<tid>/status, exe, cwd and fd of that caller, without any right",
        shared.staged("proc", "we see the caller's group, program, folder and sockets"),
        _SHOW_PROC,
        _SHARED,
        needs=("seccomp notification", "loopback"),
    ),
    _Plan(
        "orphans",
        "be given a process that lost its parent and made itself unreadable; find it in /proc, kill it by its pidfd",
        shared.staged("orphans", "it came to us, was seen, and was killed"),
        f"{_SHOW_PROC} {_ALLOW_CALLS.format('PR_SET_CHILD_SUBREAPER, pidfd_open and pidfd_send_signal')}",
        _SHARED,
        needs=("rights given up",),
    ),
    _Plan(
        "parked connections",
        "connect to listeners whose queue is full, by IPv4 and IPv6",
        shared.staged("parking", "the connections wait"),
        "Use Linux's own network stack: gVisor and others answer where it waits.",
        _SHARED,
        needs=("loopback",),
    ),
    _Plan(
        "landlock",
        "let a child read one folder, and see refused: other folders, writing, and all else that its version restricts",
        shared.try_landlock,
        "Rung A does without it.",
        ("B",),
        needs=("machine",),
    ),
    _Plan(
        "socket tables",
        "find listeners and an abstract name of our own in /proc/net",
        shared.staged("tables", "each is there"),
        f"Without it, programs on rung B cannot reach servers that they started themselves. {_SHOW_PROC}",
        (),
        needs=("rights given up",),
    ),
    _Plan(
        "unix sockets' files",
        "ask the kernel which files UNIX sockets are bound to (sock_diag)",
        shared.staged("unix", "it answers"),
        "Without it, programs on rung B cannot reach UNIX sockets that they bound to a file themselves. Run: sudo "
        "modprobe unix_diag, and use a security profile that allows NETLINK_SOCK_DIAG.",
        (),
        needs=("rights given up",),
    ),
    _Plan(
        "wait killable",
        "the trapped connect again, with WAIT_KILLABLE_RECV",
        trials.try_killable,
        "Use Linux 5.19 or later: without the flag, signals make programs repeat calls that wait for a verdict.",
        required_for=(),
        needs=("seccomp notification",),
    ),
    _Plan(
        "cgroup delegation",
        "make a cgroup with limits, move a process into it, and kill it",
        trials.try_cgroup,
        "Start Jupyter with: systemd-run --user --scope -p Delegate=yes jupyter lab",
        required_for=(),
    ),
    _Plan(
        "parent death signal",
        "let a process die whose child asked for PR_SET_PDEATHSIG",
        trials.try_parent_death,
        "Use a security profile that allows prctl(PR_SET_PDEATHSIG).",
        required_for=(),
    ),
    _Plan(
        "nvidia gpus",
        "list /dev/nvidia[0-9]*, open /dev/nvidiactl",
        trials.try_gpus,
        "",
        required_for=(),
    ),
    _Plan(
        "jupyter",
        "the installed versions of jupyterlab and ipykernel",
        trials.try_jupyter,
        "Run: python -m pip install jupyterlab 'ipykernel!=7.0.*'",
        required_for=(),
    ),
)


def probe(bench: trials.Bench | None = None) -> Report:
    """Try everything; it takes a second or two, changes nothing, and never raises.

    Args:
        bench: What to try on, where that is not simply this machine.
    """
    bench = bench or trials.Bench()
    found = list(_carried_out(_PLANS, bench))
    return conclude(found, limits_by(bench.delegation, os.getuid()))


def why_not(*rungs: Rung) -> str:
    """Return why none of these rungs can be had: for each the first mechanism that fails, with its fix.

    What comes after the last of these failures, and what other rungs need, is not tried. Like `probe`, it never raises.

    Args:
        rungs: One rung or more.

    Returns:
        The text, or "" where all that one of them requires works.
    """
    failed: dict[Rung, Probe] = {}
    for each in _carried_out([plan for plan in _PLANS if set(plan.required_for) & set(rungs)], trials.Bench()):
        for rung in rungs:
            if rung in each.required_for and not each.ok:
                failed.setdefault(rung, each)
        if len(failed) == len(rungs):
            return refusals(failed)
    return ""


def _carried_out(plans: Sequence[_Plan], bench: trials.Bench) -> Iterator[Probe]:
    found: dict[str, Probe] = {}
    for plan in plans:
        found[plan.name] = _carry_out(plan, bench, found)
        yield found[plan.name]


def _carry_out(plan: _Plan, bench: trials.Bench, found: dict[str, Probe]) -> Probe:
    ok, fix = False, ""
    lacks: tuple[str, ...] = ()
    blocked = [name for name in plan.needs if not found[name].ok]
    if blocked:
        detail = f"not tried, because it needs '{blocked[0]}'"
    else:
        try:
            came = plan.attempt(bench)
            detail, lacks = came if isinstance(came, Found) else (came, ())
            ok = True
        except FailedTrialError as failed:
            detail, fix = str(failed), failed.fix or plan.fix
        except Exception as error:  # noqa: BLE001 -- a probe that breaks has failed, and must not hide the others
            detail, fix = f"{type(error).__name__}: {error}", plan.fix
    return Probe(
        name=plan.name,
        ok=ok,
        tried=plan.tried,
        detail=printable(detail),
        fix=fix,
        required_for=plan.required_for,
        lacks=lacks,
    )
