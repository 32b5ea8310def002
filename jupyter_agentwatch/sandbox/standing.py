"""A running sandbox as the supervisor holds it: its sockets, who is in it, and how it is ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from jupyter_agentwatch.sandbox.census import count_in_namespace, namespace_of
from jupyter_agentwatch.sandbox.usage import Usage, bytes_in_memory_files, measure

if TYPE_CHECKING:
    from jupyter_agentwatch.sandbox.cgroup import Leaf

__all__ = ["Sandbox"]


@dataclass(slots=True)
class Sandbox:
    """A running sandbox as the supervisor holds it.

    Attributes:
        process: Our child: bubblewrap, which ends when init has ended and all members are gone; or init itself.
        init_pid: Init as the host sees it.
        init_pidfd: Signals init without a race.
        control: SOCK_SEQPACKET channel to init.
        listener_fd: The seccomp notification descriptor.
        dns_udp, dns_tcp: Sockets of port 53 inside; without a network namespace there is no first one, and the second
            has a port of the machine's loopback.
        gateway: Listening sockets inside: IPv4, IPv6.
        parking: Sockets inside that leave every SYN to them unanswered: IPv4, IPv6.
        forker: Thread of init that forks commands, where that is not its first one.
        traps_forks: Forks inside are trapped, and wait for the supervisor.
        leaf: The cgroup that init is in, hence all that it forks, if it has one of its own.
    """

    process: subprocess.Popen[bytes]
    init_pid: int
    init_pidfd: int
    control: socket.socket
    listener_fd: int
    dns_udp: socket.socket | None
    dns_tcp: socket.socket
    gateway: tuple[socket.socket, socket.socket]
    parking: tuple[socket.socket, socket.socket]
    forker: int = 0
    traps_forks: bool = False
    leaf: Leaf | None = None
    shares_network: ClassVar[bool] = False
    _namespace: int = 0

    def __post_init__(self) -> None:
        """Remember the PID namespace while init lives."""
        self._namespace = namespace_of(self.init_pid)

    def members(self) -> int:
        """Count processes inside, without init (0 when the sandbox is gone)."""
        return len(self._where()[1])

    def pids(self) -> list[int]:
        """Return the processes inside, without init, as the folder of `/proc` that shows them numbers them."""
        return [int(name) for name in self._where()[1]]

    def survivors(self) -> int:
        """Count who is left after `destroy`, from outside and by the kernel's own records."""
        return count_in_namespace(self._namespace)

    def tasks(self) -> int:
        """Count threads inside, without init's."""
        folder, names = self._where()
        total = 0
        for name in names:
            with contextlib.suppress(OSError):
                # procfs counts a link for each thread's folder beside "." and ".."
                total += os.stat(f"{folder}/{name}/task").st_nlink - 2
        return total

    def states(self) -> str:
        """Return the state letter of every thread inside but init's (see proc_pid_stat(5))."""
        return "".join(fields[0] for fields in self._stats(each_thread=True))

    def living_sessions(self) -> set[int]:
        """Return the session ids that have members, as init numbers them."""
        return {int(fields[3]) for fields in self._stats()}

    def usage(self) -> Usage:
        """Return what all processes inside, without init, use."""
        return measure(*self._where())

    def bytes_in_memory_files(self) -> int:
        """Return the bytes in memory files that processes inside hold open."""
        return bytes_in_memory_files(*self._where())

    def _where(self) -> tuple[str, list[str]]:
        """Return the folder that shows the processes inside, and their names there."""
        folder = f"/proc/{self.init_pid}/root/proc"
        try:
            return folder, [name for name in os.listdir(folder) if name.isdigit() and name != "1"]
        except OSError:
            return folder, []

    def _stats(self, *, each_thread: bool = False) -> Iterator[list[str]]:
        """Yield the fields after the name of each process's stat file; the name is the process's own choice."""
        folder, names = self._where()
        for name in names:
            with contextlib.suppress(OSError):
                for thread in os.listdir(f"{folder}/{name}/task") if each_thread else ("",):
                    task = f"{name}/task/{thread}" if thread else name
                    yield Path(f"{folder}/{task}/stat").read_bytes().rpartition(b")")[2].decode().split()

    def destroy(self) -> None:
        """Kill init, hence every member of its PID namespace, and wait until all are gone."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.init_pidfd, signal.SIGKILL)
        self.process.wait()
