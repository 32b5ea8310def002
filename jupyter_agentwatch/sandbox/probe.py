"""Finds out what this machine can enforce, by doing each thing in a child process with a time limit.

A version number proves nothing: back-ports, containers and security modules change what works. Nothing here may leave
a trace, or judge what it did not try.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from jupyter_agentwatch.events import printable
from jupyter_agentwatch.sandbox import probe_trials as trials
from jupyter_agentwatch.sandbox.cgroup import limits_by
from jupyter_agentwatch.sandbox.probe_child import FailedTrialError

__all__ = ["Probe", "Report", "failed_probe", "probe", "report_text"]


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """One mechanism, as it was found by trying.

    Attributes:
        name: What is probed.
        ok: It works.
        tried: The action that was really tried.
        detail: What came of it.
        fix: What to run or to change where it failed, else "".
        required: Rung A cannot be had without it.
    """

    name: str
    ok: bool
    tried: str
    detail: str
    fix: str
    required: bool


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What this machine can enforce.

    Attributes:
        rung: "A" where every required probe is ok, else "E".
        label: The rung in words.
        limits_by: Who holds which limit, one line.
        probes: All of them, in the order in which they were tried.
        missing: Names of the required probes that failed.
    """

    rung: Literal["A", "E"]
    label: str
    limits_by: str
    probes: tuple[Probe, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    name: str
    tried: str
    attempt: Callable[[trials.Bench], str]
    fix: str
    required: bool = True
    needs: tuple[str, ...] = ()


_PLANS: Final = (
    _Plan(
        "machine",
        "what Python runs on",
        trials.try_machine,
        "Use a 64-bit Python on Linux on x86_64 or aarch64; on macOS and Windows, run Jupyter in a Linux VM (WSL 2).",
    ),
    _Plan(
        "bubblewrap",
        "bwrap --version",
        trials.try_bwrap,
        "Install the package bubblewrap: sudo apt-get install bubblewrap (or dnf, zypper, pacman -S).",
    ),
    _Plan(
        "user namespaces",
        "bwrap --unshare-user --ro-bind / / true",
        trials.try_user_namespace,
        f"Allow unprivileged user namespaces, and do not start Jupyter in a chroot. {trials.LEAVE_CONTAINER}",
        needs=("bubblewrap",),
    ),
    _Plan(
        "pid namespace",
        "bwrap --unshare-pid --as-pid-1 --proc /proc",
        trials.try_pid_namespace,
        f"A /proc of which parts are masked forbids a new one. {trials.LEAVE_CONTAINER}",
        needs=("user namespaces",),
    ),
    _Plan(
        "seccomp notification",
        "trap a child's connect with the sandbox's filter, and answer it with an errno",
        trials.try_notification,
        "Use a kernel with CONFIG_SECCOMP_FILTER (Linux 5.14 or later), and a security profile that allows it.",
    ),
    _Plan(
        "network namespace",
        "as a launch does: bind port 53; connect over loopback, to a parked listener, outside; map root to a user",
        trials.try_network,
        "Where ::1 fails, boot without ipv6.disable=1. Where port 53 or mapping root is denied, unload AppArmor's "
        "profile that takes capabilities away: sudo apparmor_parser -R /etc/apparmor.d/bwrap-userns-restrict",
        needs=("pid namespace",),
    ),
    _Plan(
        "socket broker",
        "pidfd_getfd of the socket of a trapped connect in the sandbox",
        trials.looked_at("socket", "we hold the caller's own socket"),
        trials.LEAVE_CONTAINER,
        needs=("seccomp notification", "network namespace"),
    ),
    _Plan(
        "caller's memory",
        "process_vm_readv of the address of a trapped connect in the sandbox",
        trials.looked_at("memory", "we read the address that the caller gave"),
        trials.LEAVE_CONTAINER,
        needs=("seccomp notification", "network namespace"),
    ),
    _Plan(
        "caller's /proc",
        "read /proc/<tid>/status, exe and root of the caller in the sandbox",
        trials.looked_at("proc", "we see the caller's group, program and root"),
        "Run: sudo mount -o remount,hidepid=0 /proc",
        needs=("seccomp notification", "network namespace"),
    ),
    _Plan(
        "wait killable",
        "the trapped connect again, with WAIT_KILLABLE_RECV",
        trials.try_killable,
        "Use Linux 5.19 or later: without the flag, signals make programs repeat calls that wait for a verdict.",
        required=False,
        needs=("seccomp notification",),
    ),
    _Plan(
        "landlock",
        "forbid a child to list folders",
        trials.try_landlock,
        "Rung A does without it. To have it, boot with lsm=landlock,… in the kernel's command line.",
        required=False,
    ),
    _Plan(
        "cgroup delegation",
        "make a cgroup with limits, move a process into it, and kill it",
        trials.try_cgroup,
        "Start Jupyter with: systemd-run --user --scope -p Delegate=yes jupyter lab",
        required=False,
    ),
    _Plan(
        "parent death signal",
        "let a process die whose child asked for PR_SET_PDEATHSIG",
        trials.try_parent_death,
        "Use a security profile that allows prctl(PR_SET_PDEATHSIG).",
        required=False,
    ),
    _Plan(
        "nvidia gpus",
        "list /dev/nvidia[0-9]*, open /dev/nvidiactl",
        trials.try_gpus,
        "",
        required=False,
    ),
    _Plan(
        "jupyter",
        "the installed versions of jupyterlab and ipykernel",
        trials.try_jupyter,
        "Run: python -m pip install jupyterlab 'ipykernel!=7.0.*'",
        required=False,
    ),
)


def probe() -> Report:
    """Try everything; it takes well under a second where all of it works, changes nothing, and never raises."""
    bench = trials.Bench()
    found: dict[str, Probe] = {}
    for plan in _PLANS:
        found[plan.name] = _carry_out(plan, bench, found)
    missing = tuple(p.name for p in found.values() if p.required and not p.ok)
    refused = "no isolation: run refuses (rungs B and C, for machines without namespaces, are not available yet)"
    return Report(
        rung="E" if missing else "A",
        label=refused if missing else "isolated",
        limits_by=limits_by(bench.delegation, os.getuid()),
        probes=tuple(found.values()),
        missing=missing,
    )


def _carry_out(plan: _Plan, bench: trials.Bench, found: dict[str, Probe]) -> Probe:
    ok, fix = False, ""
    blocked = [name for name in plan.needs if not found[name].ok]
    if blocked:
        detail = f"not tried, because it needs '{blocked[0]}'"
    else:
        try:
            detail, ok = plan.attempt(bench), True
        except FailedTrialError as failed:
            detail, fix = str(failed), failed.fix or plan.fix
        except Exception as error:  # noqa: BLE001 -- a probe that breaks has failed, and must not hide the others
            detail, fix = f"{type(error).__name__}: {error}", plan.fix
    return Probe(name=plan.name, ok=ok, tried=plan.tried, detail=printable(detail), fix=fix, required=plan.required)


def failed_probe(report: Report) -> str:
    """Return the text of the `RungError` where rung A cannot be had: the first probe that failed, and its fix.

    Args:
        report: What `probe` returned. The text is "" where nothing that is required is missing.
    """
    failed = [p for p in report.probes if p.required and not p.ok]
    if not failed:
        return ""
    first, others = failed[0], ", ".join(p.name for p in failed[1:])
    also = f" (also missing: {others})" if others else ""
    what = f"probe '{first.name}' failed: tried {first.tried}: {first.detail}"
    return f"rung A needs {first.name}{also}: {what}; fix: {first.fix}"


def report_text(report: Report) -> str:
    """Return the report as plain text for people: a line for each probe, then the fixes.

    Args:
        report: What `probe` returned.
    """
    width = max((len(p.name) for p in report.probes), default=0)
    lines = [f"rung {report.rung}: {report.label}", f"limits: {report.limits_by}", ""]
    lines += [f"{_state(p):<6}  {p.name:<{width}}  {p.tried}: {p.detail}" for p in report.probes]
    fixes = [f"  {p.name}{'' if p.required else ' (optional)'}: {p.fix}" for p in report.probes if p.fix]
    return "\n".join([*lines, *(["", "To fix:", *fixes] if fixes else [])])


def _state(result: Probe) -> str:
    return "ok" if result.ok else "FAILED" if result.required else "absent"
