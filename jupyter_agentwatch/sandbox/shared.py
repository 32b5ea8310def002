"""Starts a sandbox where no namespaces can be had, and ends it: rung B (Landlock) and rung C (no Landlock).

The supervisor becomes the last ancestor that asks for orphans, so everything that was started inside stays its
descendant, also when init has died. Fails closed, as `launch` does.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import json
import marshal
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from jupyter_agentwatch.errors import RungError
from jupyter_agentwatch.policy import Limits
from jupyter_agentwatch.sandbox.bpf import FilterOptions, compile_filter
from jupyter_agentwatch.sandbox.cgroup import Leaf
from jupyter_agentwatch.sandbox.descendants import descendants, kill_descendants, offspring
from jupyter_agentwatch.sandbox.landlock import make_ruleset
from jupyter_agentwatch.sandbox.launch import rlimits
from jupyter_agentwatch.sandbox.shared_filter import shared_blocks
from jupyter_agentwatch.sandbox.standing import Sandbox
from jupyter_agentwatch.sandbox.syscalls import MACHINES, Machine

__all__ = ["SharedSandbox", "SharedStarting", "give_up_rights", "open_listening", "open_parking"]

_START_TIMEOUT_S: Final = 20.0
_KILL_S: Final = 10.0
_BACKLOG: Final = 4096
_PR_SET_DUMPABLE: Final = 4
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38

_LOADER: Final = """import sys; sys.path.append(sys.argv[1])
from jupyter_agentwatch.sandbox.shared_init import main; main(int(sys.argv[2]))"""
"""Our package comes last on the path: nothing beside it can stand for a module of the standard library."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class SharedSandbox(Sandbox):
    """A sandbox whose processes are the supervisor's descendants, in the machine's own namespaces."""

    shares_network: ClassVar[bool] = True

    def survivors(self) -> int:
        """Count descendants that have not ended."""
        return sum(not each.is_over for each in descendants(os.getpid()))

    def _where(self) -> tuple[str, list[str]]:
        return "/proc", [str(pid) for pid in offspring(os.getpid()) if pid != self.init_pid]

    def destroy(self) -> None:
        """Kill every descendant, init last. Whoever calls has stopped answering trapped forks."""
        deadline = time.monotonic() + _KILL_S
        spare = frozenset({self.init_pid})
        while kill_descendants(os.getpid(), spare) and time.monotonic() < deadline:
            time.sleep(0.001)  # what has got the signal ends without our help
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.init_pidfd, signal.SIGKILL)
        self.process.wait()
        while kill_descendants(os.getpid()) and time.monotonic() < deadline:
            time.sleep(0.001)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


class SharedStarting:
    """A sandbox without namespaces on its way, as `launch.Starting` is one with them.

    Args:
        grants: Places and rights, as `plan_grants` returns them.
        limits: Bounds that become rlimits of every command.
        abi: Version of Landlock's interface; 0: files are not confined (rung C).
        stderr: Descriptor for what init says.

    Raises:
        RungError: The machine is none of ours, or Landlock refuses the ruleset.
    """

    def __init__(self, grants: Sequence[tuple[str, int]], limits: Limits, *, abi: int, stderr: int) -> None:
        machine = MACHINES.get(os.uname().machine)
        if machine is None:
            msg = f"probe 'machine' failed: {os.uname().machine} is not x86_64 or aarch64"
            raise RungError(msg)
        give_up_rights(machine)
        try:
            ruleset = make_ruleset(grants, abi) if abi else -1
        except OSError as error:
            msg = f"probe 'landlock' failed: the kernel refused the ruleset ({error})"
            raise RungError(msg) from error
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        keep = (theirs.fileno(), *((ruleset,) if ruleset >= 0 else ()))
        root = str(Path(__file__).resolve().parents[2])
        python = [os.path.realpath(sys.executable), "-I", "-S", "-W", "ignore"]
        try:
            self._process = subprocess.Popen(
                [*python, "-c", _LOADER, root, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=keep,
                start_new_session=True,
                env={},
            )
        finally:
            theirs.close()
            if ruleset >= 0:
                os.close(ruleset)
        self._setup = _setup(machine, limits, abi, ruleset)
        self._leaf: Leaf | None = None

    def belongs_to(self, cgroup: Leaf) -> None:
        """Say where init belongs, before `finish`."""
        self._leaf = cgroup

    def finish(self) -> Sandbox:
        """Return the standing sandbox.

        Raises:
            RungError: A step failed; what init said is on `stderr`.
        """
        try:
            sandbox = _handshake(self._process, self._control, self._setup)
            if self._leaf is not None and self._leaf.takes(sandbox.init_pid):  # it has no children yet
                sandbox.leaf = self._leaf
        except BaseException:
            self._process.kill()
            self._process.wait()
            self._control.close()
            raise
        return sandbox


def give_up_rights(machine: Machine) -> None:
    """Give up every right of root's: what is done for a caller must not be able to do more than the caller.

    A netlink socket that a privileged process opened and sends on would change the machine's interfaces, for one.

    Args:
        machine: Call numbers.

    Raises:
        RungError: The kernel refused.
    """
    # Else a program that root runs would begin with all rights again, and be hidden from us on account of them.
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    nothing = bytes(24)
    if _libc.syscall(machine.numbers["capset"], struct.pack("=Ii", 0x20080522, 0), nothing) != 0:
        msg = f"probe 'capabilities' failed: they cannot be given up ({os.strerror(ctypes.get_errno())})"
        raise RungError(msg)
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _setup(machine: Machine, limits: Limits, abi: int, ruleset: int) -> bytes:
    bounds = rlimits(limits)
    bounds.pop("RLIMIT_NPROC", None)  # would count the user's other processes; the supervisor counts ours
    numbers = {name: machine.numbers[name] for name in ("seccomp", "capset", "landlock_restrict_self")}
    return marshal.dumps(
        {
            "filter": compile_filter(
                machine, FilterOptions(count_tasks=True, memory_bytes=limits.memory_bytes), shared_blocks(abi)
            ),
            "numbers": numbers,
            "last_cap": int(Path("/proc/sys/kernel/cap_last_cap").read_text()),
            "rlimits": bounds,
            "ruleset": ruleset,
        }
    )


def _handshake(process: subprocess.Popen[bytes], ours: socket.socket, setup: bytes) -> Sandbox:
    ours.settimeout(_START_TIMEOUT_S)
    try:
        ours.send(setup)
        data, ancillary, _, _ = ours.recvmsg(4096, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        msg = f"probe 'seccomp notification' failed: init did not answer ({error})"
        raise RungError(msg) from error
    fds = array.array("i")
    for _, _, rights in ancillary:
        fds.frombytes(rights)
    if not data or len(fds) != 1:
        msg = "probe 'seccomp notification' failed: init ended while starting; its own words are in the .stderr file"
        raise RungError(msg)
    ours.settimeout(None)
    dns = socket.socket()
    dns.bind(("127.0.0.1", 0))
    dns.listen(64)
    return SharedSandbox(
        process=process,
        init_pid=process.pid,
        init_pidfd=os.pidfd_open(process.pid),
        control=ours,
        listener_fd=fds[0],
        dns_udp=None,
        dns_tcp=dns,
        gateway=(open_listening(socket.AF_INET, _BACKLOG), open_listening(socket.AF_INET6, _BACKLOG)),
        parking=(open_parking(socket.AF_INET), open_parking(socket.AF_INET6)),
        forker=int(json.loads(data)["forker"]),
        traps_forks=True,
    )


def open_listening(family: socket.AddressFamily, backlog: int, *, is_parking: bool = False) -> socket.socket:
    """Return a listener on loopback, at a port of the kernel's choice.

    Args:
        family: AF_INET or AF_INET6; the latter is bound to a mapped IPv4 address where there is no ::1.
        backlog: Connections that may wait in it.
        is_parking: Others may be bound to its port.

    Raises:
        OSError: The machine has no such sockets.
    """
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
    except OSError as error:
        if family == socket.AF_INET or error.errno != errno.EADDRNOTAVAIL:
            raise
        made.bind(("::ffff:127.0.0.1", 0))  # a container without IPv6
    if is_parking:
        # What meets a parked socket is bound to the same port. Only now: with them, the kernel may choose a port that
        # another watch parks on.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.listen(backlog)
    return made


def open_parking(family: socket.AddressFamily) -> socket.socket:
    """Return a listener that leaves every further SYN unanswered: its queue is full, and nobody takes from it.

    Args:
        family: AF_INET or AF_INET6.

    Raises:
        OSError: The machine has no such sockets.
    """
    parking = open_listening(family, 0, is_parking=True)
    filler = socket.socket(family, socket.SOCK_STREAM)
    filler.settimeout(_START_TIMEOUT_S)
    filler.connect(parking.getsockname())
    filler.detach()  # stays open as long as this process
    return parking
