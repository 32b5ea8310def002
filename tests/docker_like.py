"""Runs a program as in a container: in namespaces of its own, as any user, and under a filter like Docker's.

`python -m tests.docker_like [--uid N] [--docker] [--name-server] -- PROGRAM ARGUMENT…`

Root gets the program namespaces of its own (processes, mounts, network, IPC, host name), so that what a hole lets out
reaches nothing of this machine, and ends with it. Anybody else gets what needs no rights: the filter. The exit status
is the program's.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jupyter_agentwatch.sandbox.bpf import ALLOW, Block, any_bits, equal_any, errno_of, ret
from jupyter_agentwatch.sandbox.syscalls import MACHINES, Machine

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["NOBODY", "OTHER_ADDRESS", "command", "docker_filter", "main"]

ROOT: Final = Path(__file__).parent.parent

NOBODY: Final = 54321
"""A user id that nobody on this machine has."""

OTHER_ADDRESS: Final = "198.51.100.1"
"""A second address of the machine, besides loopback's, in a network namespace of the program's own."""

_NEW_NS, _NEW_UTS, _NEW_IPC, _NEW_PID, _NEW_NET = 0x00020000, 0x04000000, 0x08000000, 0x20000000, 0x40000000
_NEW_ANY: Final = 0x7E020000 | 0x02000000
_RDONLY, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
_NO_NEW_PRIVS, _CAPBSET_DROP, _SET_SECCOMP, _FILTER = 38, 24, 22, 2
_SIOCSIFADDR, _SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8916, 0x8913, 0x8914, 1

_MASKED: Final = ("asound", "acpi", "interrupts", "kcore", "keys", "latency_stats", "sched_debug", "scsi", "timer_list")
_READ_ONLY: Final = ("bus", "fs", "irq", "sys", "sysrq-trigger")
"""Names below /proc that container runtimes hide, and that they make read-only."""

_KEPT_CAPABILITIES: Final = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31})
"""What root has in a default container (capabilities(7)): CHOWN to SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, …"""

_REFUSED: Final = (
    *("acct", "add_key", "bpf", "clock_adjtime", "clock_settime", "delete_module", "finit_module", "fsconfig"),
    *("fsmount", "fsopen", "fspick", "init_module", "io_uring_enter", "io_uring_register", "io_uring_setup", "ioperm"),
    *("iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "mount", "mount_setattr"),
    *("move_mount", "move_pages", "name_to_handle_at", "nfsservctl", "open_by_handle_at", "open_tree"),
    *("open_tree_attr", "perf_event_open", "pidfd_getfd", "pivot_root", "process_madvise", "quotactl", "quotactl_fd"),
    *("reboot", "request_key", "setdomainname", "sethostname", "setns", "settimeofday", "swapoff", "swapon", "syslog"),
    *("sysfs", "_sysctl", "umount2", "unshare", "uselib", "userfaultfd", "ustat", "vhangup", "fanotify_init"),
)
_QUIET_PERSONALITIES: Final = (0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

_libc = ctypes.CDLL(None, use_errno=True)


def command(
    argv: Sequence[str], *, uid: int | None = None, docker: bool = False, name_server: bool = False
) -> list[str]:
    """Return the command line that runs a program so; it must be started in the repository's root.

    Args:
        argv: The program.
        uid: User id to take on, where we are root.
        docker: Under the filter, with what a container hides of /proc hidden.
        name_server: The program finds its name server at 127.0.0.1, and may open port 53 (root only).
    """
    options = ["--uid", str(uid)] if uid is not None else []
    options += ["--docker"] * docker + ["--name-server"] * name_server
    return [sys.executable, "-m", "tests.docker_like", *options, "--", *argv]


def docker_filter(machine: Machine) -> bytes:
    """Return a filter whose effect is that of Docker's default profile for a process without CAP_SYS_ADMIN.

    The profile is an allow list; calls that it leaves out and that could matter here are refused by name.
    """
    eperm = errno_of(errno.EPERM)
    blocks: dict[str, Block] = {name: ret(eperm) for name in _REFUSED}
    blocks["clone3"] = ret(errno_of(errno.ENOSYS))  # so that the C library uses clone, whose flags a filter can see
    blocks["clone"] = any_bits(0, _NEW_ANY, eperm, ALLOW)
    blocks["personality"] = equal_any(0, _QUIET_PERSONALITIES, ALLOW, eperm)
    # AF_VSOCK is left out by the profile, AF_ALG by its later versions; packets need CAP_NET_RAW, which users lack.
    blocks["socket"] = equal_any(0, (17, 38, 40), eperm, ALLOW)
    program: Block = [(0x20, 0, 0, 4), (0x15, 1, 0, machine.audit_arch), *ret(eperm), (0x20, 0, 0, 0)]
    for name, block in blocks.items():
        if name in machine.numbers:
            program += [(0x15, 0, len(block), machine.numbers[name]), *block]
    program += ret(ALLOW)
    return b"".join(struct.pack("=HBBI", *step) for step in program)


def main(arguments: Sequence[str]) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.docker_like")
    parser.add_argument("--uid", type=int)
    parser.add_argument("--docker", action="store_true")
    parser.add_argument("--name-server", action="store_true")
    parser.add_argument("argv", nargs="+")
    asked = parser.parse_args(arguments)
    is_root = os.geteuid() == 0
    if is_root:
        _checked(_libc.unshare(_NEW_NS | _NEW_UTS | _NEW_IPC | _NEW_PID | _NEW_NET))
        _mount(None, "/", None, _REC | _PRIVATE)
        _bring_network_up()
        if asked.name_server:
            _name_server_at_home()
        if asked.uid:
            _open_the_way([Path(sys.base_prefix), Path(sys.prefix), ROOT, *map(Path, sys.path[1:])], asked.uid)
    child = os.fork()
    if child == 0:
        _first_process(asked, is_root=is_root)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) % 256


def _first_process(asked: argparse.Namespace, *, is_root: bool) -> None:
    """Reap orphans until the program has ended; where namespaces are ours, what is left of it ends with us."""
    program = None
    try:
        if is_root:
            _mount("proc", "/proc", "proc", 0)
            if asked.docker:
                _mask()
        program = os.fork()
        if program == 0:
            _become(asked, is_root=is_root)
        while True:
            pid, status = os.wait()
            if pid == program:
                os._exit(os.waitstatus_to_exitcode(status) % 256)
    finally:
        os._exit(127)


def _become(asked: argparse.Namespace, *, is_root: bool) -> None:
    try:
        if is_root and (asked.docker or asked.uid):
            for capability in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
                if asked.uid or capability not in _KEPT_CAPABILITIES:
                    _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0)
        if asked.docker:
            _take_filter_on()
        if is_root and asked.uid:
            os.setgroups([])
            os.setresgid(asked.uid, asked.uid, asked.uid)
            os.setresuid(asked.uid, asked.uid, asked.uid)
        os.execvp(asked.argv[0], asked.argv)  # noqa: S606 -- that is what it is for
    finally:
        os._exit(127)


def _take_filter_on() -> None:
    code = docker_filter(MACHINES[os.uname().machine])
    held = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("@HP", len(code) // 8, ctypes.addressof(held))
    if os.geteuid() != 0:
        _checked(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked(_libc.prctl(_SET_SECCOMP, _FILTER, head, 0, 0))


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = (None if text is None else text.encode() for text in (source, target, kind))
    one, two, three = texts
    if _libc.mount(one, two, three, ctypes.c_ulong(flags), None if data is None else data.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _bring_network_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        address = struct.pack("=H2s4s8x", socket.AF_INET, b"", socket.inet_aton(OTHER_ADDRESS))
        request = struct.pack("=16s16s", b"lo", b"")
        (flags,) = struct.unpack_from("=H", fcntl.ioctl(asked, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(asked, _SIOCSIFFLAGS, struct.pack("=16sH14x", b"lo", flags | _IFF_UP))
        fcntl.ioctl(asked, _SIOCSIFADDR, struct.pack("=16s16s", b"lo:1", address))


def _name_server_at_home() -> None:
    Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("53")
    _mount("tmpfs", "/mnt", "tmpfs", 0)
    Path("/mnt/resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    _mount("/mnt/resolv.conf", os.path.realpath("/etc/resolv.conf"), None, _BIND)


def _open_the_way(needed: Iterable[Path], uid: int) -> None:
    """Let a user reach folders that lie in one that is closed to them, by the same names, and nothing beside them."""
    closed: dict[Path, list[Path]] = {}
    for path in dict.fromkeys(Path(os.path.abspath(each)) for each in needed if each.exists()):
        barred = next((parent for parent in reversed(path.parents) if not _may_pass(parent, uid)), None)
        if barred is not None:
            closed.setdefault(barred, []).append(path)
    for barred, paths in closed.items():
        held = [(path, os.open(path, os.O_PATH)) for path in paths]
        _mount("tmpfs", str(barred), "tmpfs", 0, "mode=0755")
        for path, fd in held:
            if not path.is_dir():
                path.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # it lies in one that is there already
                _mount(f"/proc/self/fd/{fd}", str(path), None, _BIND | _REC)
            os.close(fd)


def _may_pass(folder: Path, uid: int) -> bool:
    info = folder.stat()
    return bool(info.st_mode & (0o100 if info.st_uid == uid else 0o001))


def _mask() -> None:
    for name in _MASKED:
        path = f"/proc/{name}"
        if os.path.isdir(path):
            _mount("tmpfs", path, "tmpfs", _RDONLY)
        elif os.path.exists(path):
            _mount("/dev/null", path, None, _BIND)
    for name in _READ_ONLY:
        _read_only(f"/proc/{name}")
    _read_only("/sys")


def _read_only(path: str) -> None:
    if os.path.exists(path):
        _mount(path, path, None, _BIND | _REC)
        _mount(None, path, None, _BIND | _REMOUNT | _RDONLY)
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            below = line.split()[4]
            if below.startswith(f"{path}/"):
                _mount(None, below, None, _BIND | _REMOUNT | _RDONLY)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
