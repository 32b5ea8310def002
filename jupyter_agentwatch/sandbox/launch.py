"""Starts bubblewrap with our init as PID 1, and receives the sandbox's sockets and the seccomp listener.

Fails closed: any step that does not happen exactly as expected ends what was started and raises.
"""

from __future__ import annotations

import array
import contextlib
import json
import marshal
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jupyter_agentwatch.errors import RungError
from jupyter_agentwatch.policy import Limits
from jupyter_agentwatch.sandbox.bpf import FilterOptions, compile_filter
from jupyter_agentwatch.sandbox.mounts import HOST_NAME, Layout, inner_gid, inner_uid
from jupyter_agentwatch.sandbox.syscalls import MACHINES

if TYPE_CHECKING:
    from jupyter_agentwatch.sandbox.cgroup import Leaf

__all__ = ["Sandbox", "Starting", "find_bwrap"]

_START_TIMEOUT_S: Final = 20.0
_MAX_MESSAGE: Final = 1 << 20
_SOCKETS: Final = 6


@dataclass(slots=True)
class Sandbox:
    """A running sandbox as the supervisor holds it.

    Attributes:
        bwrap: The outer bubblewrap process, our child; it ends when init has ended and all members are gone.
        init_pid: Init as the host sees it.
        init_pidfd: Signals init without a race.
        control: SOCK_SEQPACKET channel to init.
        listener_fd: The seccomp notification descriptor.
        dns_udp, dns_tcp: Sockets of port 53 inside.
        gateway: Listening sockets inside: IPv4, IPv6.
        parking: Ports of the parking listeners inside: IPv4, IPv6.
        parking_sockets: Kept open so that the ports stay parked.
    """

    bwrap: subprocess.Popen[bytes]
    init_pid: int
    init_pidfd: int
    control: socket.socket
    listener_fd: int
    dns_udp: socket.socket
    dns_tcp: socket.socket
    gateway: tuple[socket.socket, socket.socket]
    parking: tuple[int, int]
    parking_sockets: tuple[socket.socket, socket.socket]

    def members(self) -> int:
        """Count processes inside, without init (0 when the sandbox is gone)."""
        try:
            names = os.listdir(f"/proc/{self.init_pid}/root/proc")
        except OSError:
            return 0
        return max(0, sum(name.isdigit() for name in names) - 1)

    def tasks(self) -> int:
        """Count threads inside, without init's."""
        folder = f"/proc/{self.init_pid}/root/proc"
        total = -1
        try:
            names = os.listdir(folder)
        except OSError:
            return 0
        for name in names:
            if name.isdigit():
                with contextlib.suppress(OSError):
                    # procfs counts a link for each thread's folder beside "." and ".."
                    total += os.stat(f"{folder}/{name}/task").st_nlink - 2
        return max(0, total)

    def states(self) -> str:
        """Return the state letter of every thread inside but init's (see proc_pid_stat(5))."""
        return "".join(fields[0] for fields in self._stats(each_thread=True))

    def living_sessions(self) -> set[int]:
        """Return the session ids that have members, as init numbers them."""
        return {int(fields[3]) for fields in self._stats()}

    def resident_bytes(self) -> int:
        """Return the resident memory of all processes inside; shared pages count for each."""
        return sum(int(fields[21]) for fields in self._stats()) * resource.getpagesize()

    def _stats(self, *, each_thread: bool = False) -> Iterator[list[str]]:
        """Yield the fields after the name of each process's stat file; the name is the process's own choice."""
        folder = f"/proc/{self.init_pid}/root/proc"
        try:
            names = os.listdir(folder)
        except OSError:
            return
        for name in names:
            if name.isdigit() and name != "1":
                with contextlib.suppress(OSError):
                    for thread in os.listdir(f"{folder}/{name}/task") if each_thread else ("",):
                        task = f"{name}/task/{thread}" if thread else name
                        yield Path(f"{folder}/{task}/stat").read_bytes().rpartition(b")")[2].decode().split()

    def destroy(self) -> None:
        """Kill init, hence every member of its PID namespace, and wait until all are gone."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.init_pidfd, signal.SIGKILL)
        self.bwrap.wait()


def find_bwrap() -> str:
    """Return the path of bubblewrap.

    Raises:
        RungError: It is not installed.
    """
    # Ubuntu's AppArmor profile is tied to this path.
    found = "/usr/bin/bwrap" if os.access("/usr/bin/bwrap", os.X_OK) else shutil.which("bwrap")
    if found is None:
        msg = "probe 'bubblewrap' failed: bwrap is not installed; install the package bubblewrap"
        raise RungError(msg)
    return found


class Starting:
    """A sandbox on its way: bubblewrap and init start while the caller imports and prepares; `finish` meets them.

    Args:
        layout: Mounts and made-up files.
        limits: Bounds that become rlimits of init and hence of every command.
        count_tasks: Trap clone (see `FilterOptions`).
        stderr: Descriptor for what bubblewrap and init say.

    Raises:
        RungError: The machine is none of ours, or bubblewrap is not installed.
    """

    def __init__(self, layout: Layout, limits: Limits, *, count_tasks: bool, stderr: int) -> None:
        machine = MACHINES.get(os.uname().machine)
        if machine is None:
            msg = f"probe 'machine' failed: {os.uname().machine} is not x86_64 or aarch64"
            raise RungError(msg)
        self._setup = {
            "filter": compile_filter(machine, FilterOptions(count_tasks=count_tasks)),
            "numbers": {name: machine.numbers[name] for name in ("seccomp", "capset", "unshare")},
            "last_cap": int(Path("/proc/sys/kernel/cap_last_cap").read_text()),
            "rlimits": _rlimits(limits),
            "uid": inner_uid(),
            "gid": inner_gid(),
        }
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._status, status_write = os.pipe()
        code_fd = _memfd(marshal.dumps(_init_code()))
        files = {path: _memfd(content) for path, content in layout.files.items()}
        covers = {path: _memfd(b"") for path in layout.hidden}
        keep = (theirs.fileno(), status_write, code_fd, *files.values(), *covers.values())
        try:
            command = _command(layout, files, covers, (code_fd, theirs.fileno(), status_write))
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, pass_fds=keep, env={}
            )
        finally:
            for fd in (status_write, code_fd, *files.values(), *covers.values()):
                os.close(fd)
            theirs.close()

    def finish(self, cgroup: Leaf | None) -> Sandbox:
        """Return the standing sandbox.

        Args:
            cgroup: Where init belongs, before it has any children (bubblewrap itself would have forked already).

        Raises:
            RungError: A step failed; what bubblewrap said is on `stderr`.
        """
        try:
            sandbox = _handshake(self._process, self._control, self._status, self._setup)
            if cgroup is not None:
                cgroup.add(sandbox.init_pid)
        except BaseException:
            self._process.kill()
            self._process.wait()
            self._control.close()
            raise
        finally:
            os.close(self._status)
        return sandbox


def _command(layout: Layout, files: dict[str, int], covers: dict[str, int], fds: tuple[int, int, int]) -> list[str]:
    code_fd, control_fd, status_fd = fds
    python = os.path.realpath(sys.executable)
    loader = f"import marshal,os;exec(marshal.loads(os.pread({code_fd},1<<20,0)))"
    # Copies into the root's own tmpfs, which becomes read-only: a mount for each of them would cost far more.
    made_up = [argument for path, fd in files.items() for argument in ("--perms", "0444", "--file", str(fd), path)]
    # Never a copy here: it would overwrite the host's own file.
    made_up += [argument for path, fd in covers.items() for argument in ("--ro-bind-data", str(fd), path)]
    return [
        find_bwrap(),
        *("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
        # Root until init has mapped itself to an ordinary user: see `_become_ordinary` there.
        *(
            "--uid",
            "0",
            "--gid",
            "0",
            "--unshare-cgroup-try",
            "--as-pid-1",
            "--die-with-parent",
            "--new-session",
            "--hostname",
            HOST_NAME,
        ),
        # Only until init has bound port 53, put a filter on its parking listeners, made device nodes read-only and
        # mapped root to an ordinary user (Linux 5.12 asks for CAP_SETFCAP then); it drops all of them before the
        # first command.
        *("--cap-drop", "ALL", "--cap-add", "CAP_NET_BIND_SERVICE"),
        *("--cap-add", "CAP_NET_ADMIN", "--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SETFCAP"),
        *("--json-status-fd", str(status_fd)),
        *_before_root_is_read_only(layout.arguments, made_up),
        *("--chdir", "/", "--"),
        *(python, "-I", "-S", "-c", loader, str(control_fd)),
    ]


def _before_root_is_read_only(arguments: tuple[str, ...], made_up: list[str]) -> list[str]:
    cut = len(arguments) - 4  # the two --remount-ro at the end
    return [*arguments[:cut], *made_up, *arguments[cut:]]


def _init_code() -> Any:
    source = Path(__file__).with_name("init.py").read_text("utf-8")
    return compile(source, "<agentwatch init>", "exec", optimize=2)


def _memfd(content: bytes) -> int:
    fd = os.memfd_create("agentwatch", os.MFD_CLOEXEC)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _rlimits(limits: Limits) -> dict[str, int]:
    hard_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    bounds = {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": min(limits.open_files, hard_files)}
    if limits.memory_bytes is not None:
        # Private writable memory of one process; the sum over all is held by cgroup or by the supervisor.
        bounds["RLIMIT_DATA"] = limits.memory_bytes
    if limits.file_bytes is not None:
        bounds["RLIMIT_FSIZE"] = limits.file_bytes
    if limits.cpu_s is not None:
        bounds["RLIMIT_CPU"] = limits.cpu_s
    if limits.processes is not None:
        bounds["RLIMIT_NPROC"] = limits.processes
    return bounds


def _handshake(
    process: subprocess.Popen[bytes], ours: socket.socket, status_read: int, setup: dict[str, Any]
) -> Sandbox:
    ours.settimeout(_START_TIMEOUT_S)
    try:
        ours.send(marshal.dumps(setup))
        data, ancillary, _, _ = ours.recvmsg(
            _MAX_MESSAGE, socket.CMSG_SPACE((_SOCKETS + 1) * 4), socket.MSG_CMSG_CLOEXEC
        )
    except OSError as error:
        msg = f"probe 'sandbox' failed: init did not answer ({error})"
        raise RungError(msg) from error
    if not data:
        msg = "probe 'sandbox' failed: bubblewrap or init ended while starting; its own words are in the .stderr file"
        raise RungError(msg)
    ours.settimeout(None)
    fds = array.array("i")
    for _, _, rights in ancillary:
        fds.frombytes(rights)
    reply = json.loads(data)
    sockets = [socket.socket(fileno=fd) for fd in fds[1:]]
    if reply.get("ready") != 1 or len(sockets) != _SOCKETS:
        msg = f"probe 'pid namespace' failed: init is process {reply.get('ready')} and sent {len(sockets)} sockets"
        raise RungError(msg)
    init_pid = int(json.loads(os.read(status_read, 4096).split(b"\n")[0])["child-pid"])
    dns_udp, dns_tcp, gateway4, gateway6, parking4, parking6 = sockets
    ports = reply["ports"]
    return Sandbox(
        bwrap=process,
        init_pid=init_pid,
        init_pidfd=os.pidfd_open(init_pid),
        control=ours,
        listener_fd=fds[0],
        dns_udp=dns_udp,
        dns_tcp=dns_tcp,
        gateway=(gateway4, gateway6),
        parking=(ports[2], ports[3]),
        parking_sockets=(parking4, parking6),
    )
