"""What `probe` tries for machines without namespaces (rungs B and C): it asks processes that have given up all rights.

What they did is in `probe_stage`; here it becomes what came of each mechanism, and what to do about it.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from jupyter_agentwatch.sandbox import probe_child as child
from jupyter_agentwatch.sandbox.landlock import missing_rights
from jupyter_agentwatch.sandbox.probe_child import PATIENCE_S, FailedTrialError, Found, decoded, errno_name, started
from jupyter_agentwatch.sandbox.probe_trials import Bench, without_yama

__all__ = ["staged", "try_landlock", "try_loopback", "try_rights"]

_VERSION: Final = 1  # LANDLOCK_CREATE_RULESET_VERSION
_MAX_MESSAGE: Final = 1 << 16

_NO_LANDLOCK: Final = {
    errno.ENOSYS: (
        "the kernel was built without it, or a security profile hides it",
        "Use a kernel with CONFIG_SECURITY_LANDLOCK (Linux 5.13 or later) and a security profile that allows it.",
    ),
    errno.EOPNOTSUPP: (
        "the kernel has it, and it is switched off",
        "Boot with landlock first in lsm=… of the kernel's command line (what is there now: /sys/kernel/security/lsm).",
    ),
    errno.EPERM: (
        "a security profile forbids it",
        "Use a security profile that allows the calls of Landlock (in Docker, the default one does).",
    ),
}

_PARTIAL: Final = (
    "The kernel's Landlock does not do what its version says, as an incomplete back-port: update the kernel, or use "
    "rung A."
)


def try_rights(bench: Bench) -> str:
    """Start the process that tries rungs B and C, and say whether it could give up its rights."""
    bench.said = _ask("perform", bench)
    return staged("rights", "capabilities and new privileges are given up")(bench)


def staged(what: str, success: str) -> Callable[[Bench], str]:
    """Return the trial of one thing that the process without rights did.

    Args:
        what: A name that `probe_stage.perform` sends.
        success: What to say where it worked.
    """

    def attempt(bench: Bench) -> str:
        wrong = bench.said.get(what, "the process that was to try it has failed")
        if what == "memory" and wrong:
            raise without_yama(wrong)
        if wrong:
            raise FailedTrialError(wrong)
        return success

    return attempt


def try_loopback(bench: Bench) -> Found:
    """Say whether listeners of our own answer on loopback, by IPv4 and by IPv6."""
    detail = staged("loopback", "listeners of IPv4 and IPv6 sockets answer")(bench)
    no_ipv6 = bench.said["ipv6"]
    meaning = f"::1 ({no_ipv6}): an IPv6 socket reaches what listens inside, and the gateway, by ::ffff:127.0.0.1"
    return Found(detail, (meaning,) if no_ipv6 else ())


def try_landlock(bench: Bench) -> Found:
    """Confine a child by a ruleset, and see refused what the interface's version says that it refuses."""
    abi = bench.abi
    if abi == 0:
        number = _why_no_landlock(bench.table.numbers["landlock_create_ruleset"])
        why, fix = _NO_LANDLOCK.get(number, ("", ""))
        msg = f"landlock_create_ruleset gives {errno_name(number)}{why and f': {why}'}"
        raise FailedTrialError(msg, fix)
    wrong = {name: what for name, what in _ask("confine", bench).items() if what}
    if wrong:
        msg = f"ABI {abi}, but {', '.join(f'{name}: {what}' for name, what in wrong.items())}"
        raise FailedTrialError(msg, _PARTIAL)
    return Found(f"enforced, ABI {abi}", tuple(f"{right}: {meaning}" for right, meaning in missing_rights(abi)))


def _why_no_landlock(call: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.syscall(call, None, ctypes.c_size_t(0), _VERSION) < 0 else 0


def _ask(entry: str, bench: Bench) -> dict[str, str]:
    """Run one function of `probe_stage` in a process of its own, and return what it sends."""
    home, libraries = Path(__file__).resolve().parents[1], Path(msgspec.__file__).resolve().parents[1]
    arguments = (str(home), str(libraries), entry, str(bench.abi))
    with started(child.staged.__code__, *arguments) as (control, said):
        control.settimeout(4 * PATIENCE_S)  # it waits for children of its own
        return decoded(control.recv(_MAX_MESSAGE), said)
