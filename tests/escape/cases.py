"""The corpus: each way out that is tried, what runs inside for it, and what is said to be open without namespaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

__all__ = ["CASES", "GROUNDS", "Case", "Ground"]


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a corpus is run.

    Attributes:
        title: As the table shows it.
        rung: The rung that every watch must come to stand on.
        asked: The policy's `isolation`.
        is_user: An ordinary user, and not root.
        is_docker: Under a filter like Docker's.
    """

    title: str
    rung: str
    asked: str
    is_user: bool = False
    is_docker: bool = False


GROUNDS: Final[Mapping[str, Ground]] = MappingProxyType(
    {
        "A-root": Ground("A, root", "A", "required"),
        "A-user": Ground("A, user", "A", "required", is_user=True),
        "B-root": Ground("B, root", "B", "B"),
        "B-user": Ground("B, user", "B", "B", is_user=True),
        "docker-root": Ground("B, Docker, root", "B", "required", is_docker=True),
        "docker-user": Ground("B, Docker, user", "B", "required", is_user=True, is_docker=True),
        "bare": Ground("nothing", "none", "none", is_user=True),
    }
)
"""Every ground, by the name that the command line knows it by. The last one has no walls: what gets out there shows
that the witness sees it."""


@dataclass(frozen=True, slots=True)
class Case:
    """One way out.

    Attributes:
        title: What is tried.
        program: Module of `inside`.
        way: What it is told to do.
        policy: What the policy differs in; `{allowed}` stands for the port of the server that may be reached.
        races: It tries as often as it is told.
        names: It needs the witness's name server.
        ends: It has a watch of its own, which is killed afterwards: nothing of it may live on.
        check: What the runner looks at besides, by the name of a function of `looks`.
        open_on: Rungs that do not hold this, and why; said below the table.
    """

    title: str
    program: str
    way: str
    policy: Mapping[str, Any] = field(default_factory=dict)
    races: bool = False
    names: bool = False
    ends: bool = False
    check: str = ""
    open_on: Mapping[str, str] = field(default_factory=dict)

    @property
    def may_run_bare(self) -> bool:
        """It is no harm where nothing holds it: it uses nothing up, and nobody has to end it."""
        return not (self.ends or self.races or self.policy or self.program in {"limits", "execs"} or self.way == "odd")

    @property
    def name(self) -> str:
        """Short name, unique in the corpus."""
        return f"{self.program} {self.way}"


_MIB: Final = 1 << 20
_ALLOWED_PORT: Final = {"network": {"rules": [{"host": "host.loopback", "ports": ["{allowed}"]}]}}
_ALLOWED_NAMES: Final = {
    "network": {
        "rules": [{"host": "*.allowed.example", "ports": [80, "{tcp}"]}, {"host": "allowed.example", "ports": [80]}]
    }
}
_SEEN: Final = "names, sizes, times and link targets can be looked at (Landlock restricts opening, not stat)"

CASES: Final = (
    Case("write, create, remove, rename outside", "files", "write"),
    Case("read hidden files and folders", "files", "read"),
    Case("symlinks, `/proc/self/root`, `/proc/PID/{root,cwd,fd}`", "files", "links"),
    Case("hard links to files outside", "files", "hard"),
    Case("modes, owners, times, attributes of files outside", "files", "modes"),
    Case("a name that flips under chmod and utime", "files", "modes-race", races=True),
    Case("stat, readlink, extended attributes outside", "files", "look", open_on={"B": _SEEN}),
    Case("notices of what happens outside (inotify, fanotify, dnotify)", "files", "notices"),
    Case("the audit log, the control socket", "files", "log"),
    Case("the kernel's settings, `core_pattern`, `sysrq`", "files", "settings"),
    Case("setuid programs, found and made", "files", "setuid"),
    Case("device nodes, kernel memory", "files", "devices"),
    Case(
        "what /proc shows to root alone",
        "files",
        "kernel",
        open_on={"B": "where root runs the watch: a user id without rights still reads what is its own"},
    ),
    Case("environment, memory, descriptors of others", "processes", "memory"),
    Case(
        "command lines of others",
        "processes",
        "command-lines",
        open_on={"B": "what `ps` shows of other processes can be read: the PID namespace is shared"},
    ),
    Case("ptrace, process_vm_*, pidfd_getfd of init, parent, supervisor", "processes", "trace"),
    Case("signals to the outside, killing or stopping the supervisor", "processes", "signals"),
    Case("signals by owners of descriptors (F_SETOWN, FIOSETOWN), timers", "processes", "owners"),
    Case("prlimit, priorities, scheduling, affinity of others", "processes", "slow-down"),
    Case("terminals of others, TIOCSTI", "processes", "terminals"),
    Case("daemons that leave their session", "processes", "orphans", ends=True),
    Case("a fork bomb that hops between ids", "processes", "hopper", policy={"limits": {"processes": 64}}, ends=True),
    Case("a fork bomb", "processes", "bomb", policy={"limits": {"processes": 64}}, ends=True, check="few_processes"),
    Case("nested user namespace, setns", "kernel", "userns"),
    Case("mount, chroot, pivot_root", "kernel", "mounts"),
    Case("a nested seccomp listener", "kernel", "listener"),
    Case("int 0x80 and x32", "kernel", "foreign"),
    Case("io_uring, openat2, calls that are newer than the filter", "kernel", "uring"),
    Case("bpf, perf, userfaultfd, file handles, modules, clock", "kernel", "primitives"),
    Case("keyring", "kernel", "keyring"),
    Case("capabilities", "kernel", "capabilities"),
    Case("System V memory, queues, semaphores", "kernel", "system-v"),
    Case("POSIX queues, `/dev/shm`", "kernel", "queues"),
    Case("a program without a name (memfd)", "kernel", "memfd", check="nameless_is_recorded"),
    Case("a program run by `ld.so`", "kernel", "ld-so", check="loader_is_recorded"),
    Case("a Landlock domain of its own", "kernel", "landlock"),
    Case("inherited descriptors and variables", "kernel", "inherited"),
    Case("core dumps", "kernel", "core"),
    Case("pages of read-only files (splice, `/proc/self/mem`)", "kernel", "splices"),
    Case("a descriptor passed by SCM_RIGHTS", "kernel", "passes"),
    Case("the machine's addresses, in every spelling", "network", "direct"),
    Case("the user's own servers on loopback", "network", "listeners"),
    Case("datagrams, by every call that takes an address", "network", "datagrams"),
    Case("TCP Fast Open", "network", "fastopen"),
    Case("MPTCP, upper-layer protocols", "network", "mptcp"),
    Case("vsock, packet and SMC sockets", "network", "vsock"),
    Case("31 other kinds of sockets, netlink families", "network", "kinds"),
    Case("netlink: links, addresses, routes", "network", "netlink"),
    Case("interfaces by ioctl (SIOCSIFFLAGS …)", "network", "interface"),
    Case("TCP_REPAIR, marks, transparent sockets", "network", "options"),
    Case("docker.sock, abstract sockets, the control socket", "network", "unix"),
    Case("a socket taken apart and connected again", "network", "again"),
    Case("servers that others could reach", "network", "everywhere"),
    Case("ports that servers have (SO_REUSEPORT, SO_REUSEADDR)", "network", "hijack"),
    Case("addresses and descriptors that do not fit the call", "network", "odd"),
    Case(
        "free ports and abstract names that servers may want later",
        "network",
        "squat",
        open_on={"B": "loopback and abstract names are shared: who comes first has the name, and it is on record"},
    ),
    Case("connect race: address flip", "network", "address-race", policy=_ALLOWED_PORT, races=True),
    Case("connect race: descriptor flip", "network", "descriptor-race", policy=_ALLOWED_PORT, races=True),
    Case("bind race: path to port", "network", "bind-race", races=True),
    Case("exec race: path flip", "execs", "flip", races=True, check="truths_are_recorded"),
    Case("DNS: data in names", "network", "tunnel", policy=_ALLOWED_NAMES, names=True),
    Case("DNS: NUL and other odd bytes in names", "network", "nul", policy=_ALLOWED_NAMES, names=True),
    Case("DNS rebinding", "network", "rebinding", policy=_ALLOWED_NAMES, names=True),
    Case("memory", "limits", "memory", policy={"limits": {"memory_bytes": 256 * _MIB}}, check="memory_is_bounded"),
    Case(
        "memory in files without a name",
        "limits",
        "memory-file",
        policy={"limits": {"memory_bytes": 256 * _MIB}},
        check="memory_is_bounded",
    ),
    Case("one large file", "limits", "big-file", policy={"limits": {"file_bytes": 16 * _MIB}}),
    Case(
        "many small files: disk and inodes",
        "limits",
        "many-files",
        open_on=dict.fromkeys("AB", "no bound on the workspace's total: give it a quota or a file system of its own"),
    ),
    Case("output", "limits", "output", policy={"limits": {"output_bytes": _MIB}}, check="output_is_bounded"),
    Case("descriptors", "limits", "descriptors"),
    Case(
        "what the kernel counts for each user (descriptors in flight, inotify)",
        "limits",
        "in-flight",
        open_on=dict.fromkeys("AB", "the kernel counts these for each user, in every namespace and rung"),
    ),
)
"""All cases, in the order of the table."""
