"""Starts bubblewrap with our init as PID 1, and receives the sandbox's sockets and the seccomp listener.

Fails closed: any step that does not happen exactly as expected ends what was started and raises.
"""

from __future__ import annotations

import array
import errno
import json
import marshal
import os
import resource
import select
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jupyter_agentwatch.errors import RungError
from jupyter_agentwatch.policy import Limits
from jupyter_agentwatch.sandbox.bpf import FilterOptions, compile_filter
from jupyter_agentwatch.sandbox.mounts import HOST_NAME, Layout, inner_gid, inner_uid
from jupyter_agentwatch.sandbox.syscalls import MACHINES

if TYPE_CHECKING:
    from jupyter_agentwatch.sandbox.cgroup import Leaf
    from jupyter_agentwatch.sandbox.standing import Sandbox

__all__ = ["Starting", "find_bwrap", "rlimits"]

_START_TIMEOUT_S: Final = 20.0
_MAX_MESSAGE: Final = 1 << 20
_SOCKETS: Final = 6


def find_bwrap() -> str:
    """Return the path of bubblewrap.

    Raises:
        RungError: It is not installed.
    """
    # Ubuntu's AppArmor profile is tied to this path.
    found = "/usr/bin/bwrap" if os.access("/usr/bin/bwrap", os.X_OK) else _on_path()
    if found is None:
        msg = "probe 'bubblewrap' failed: bwrap is not installed; install the package bubblewrap"
        raise RungError(msg)
    return found


def _on_path() -> str | None:
    import shutil  # loads four ways of compression, and is not needed where distributions put bubblewrap

    return shutil.which("bwrap")


class Starting:
    """A sandbox on its way: bubblewrap and init start while the caller imports and prepares; `finish` meets them.

    Args:
        layout: Mounts and made-up files.
        limits: Bounds that become rlimits of init and hence of every command.
        stderr: Descriptor for what bubblewrap and init say.

    Raises:
        RungError: The machine is none of ours, or bubblewrap is not installed.
    """

    def __init__(self, layout: Layout, limits: Limits, *, stderr: int) -> None:
        machine = MACHINES.get(os.uname().machine)
        if machine is None:
            msg = f"probe 'machine' failed: {os.uname().machine} is not x86_64 or aarch64"
            raise RungError(msg)
        self._machine = machine
        self._limits = limits
        self._mover: threading.Thread | None = None
        self._init_pid = 0
        self._leaf: Leaf | None = None
        self._setup = {
            "numbers": {name: machine.numbers[name] for name in ("seccomp", "capset", "unshare")},
            "last_cap": int(Path("/proc/sys/kernel/cap_last_cap").read_text()),
            "rlimits": rlimits(limits),
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

    def belongs_to(self, cgroup: Leaf) -> None:
        """Say where init belongs, once and before `finish`: it is moved there as soon as bubblewrap has made it.

        On a thread, because the kernel takes 15 ms to move a process, and before init has any children (bubblewrap
        itself would have forked already).

        Args:
            cgroup: Where it does not bound processes, or does not take init, forks are trapped if the kernel bounds
                them in no other way.
        """
        self._mover = threading.Thread(target=self._move, args=(cgroup,), name="cgroup", daemon=True)
        self._mover.start()

    def _move(self, cgroup: Leaf) -> None:
        try:
            self._init_pid = _await_init(self._status)
            self._leaf = cgroup if self._init_pid != 0 and cgroup.takes(self._init_pid) else None
        except (OSError, ValueError, KeyError):  # `finish` says what has become of init
            self._leaf = None

    def finish(self) -> Sandbox:
        """Return the standing sandbox.

        Raises:
            RungError: A step failed; what bubblewrap said is on `stderr`.
        """
        try:
            if self._mover is not None:
                self._mover.join()
            else:
                self._init_pid = _await_init(self._status)
            is_bounded = self._leaf is not None and self._leaf.holds_processes
            # RLIMIT_NPROC does not bind the host's root, whatever user namespace it is in.
            traps_forks = self._limits.processes is not None and os.getuid() == 0 and not is_bounded
            options = FilterOptions(count_tasks=traps_forks, memory_bytes=self._limits.memory_bytes)
            setup = self._setup | {"filter": compile_filter(self._machine, options)}
            sandbox = _handshake(self._process, self._control, self._init_pid, setup)
            sandbox.leaf, sandbox.traps_forks = self._leaf, traps_forks
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


def rlimits(limits: Limits) -> dict[str, int]:
    """Return the bounds of a policy that the kernel holds for each process, by resource."""
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
        # Counted for each user id in the user namespace that init makes (Linux 5.14): nothing outside takes part, and
        # init does. Before that, the user's processes everywhere counted.
        bounds["RLIMIT_NPROC"] = limits.processes + 1
    return bounds


def _await_init(status: int) -> int:
    """Wait until bubblewrap has made init; return its process id, or 0 where bubblewrap ends before."""
    ready = select.poll()
    ready.register(status, select.POLLIN)
    said = b""
    while b"\n" not in said:  # it writes its lines piece by piece
        piece = os.read(status, 4096) if ready.poll(_START_TIMEOUT_S * 1000) else b""
        if not piece:
            return 0
        said += piece
    return int(json.loads(said.split(b"\n")[0])["child-pid"])


def _await_answer(process: subprocess.Popen[bytes], ours: socket.socket) -> None:
    """Wait until init says something. When bubblewrap ends before, what it has made can hang on and say nothing.

    Raises:
        ConnectionResetError: bubblewrap has ended.
    """
    ended = os.pidfd_open(process.pid)
    try:
        poller = select.poll()
        poller.register(ours, select.POLLIN)
        poller.register(ended, select.POLLIN)
        if [fd for fd, _ in poller.poll(_START_TIMEOUT_S * 1000)] == [ended]:
            raise ConnectionResetError(errno.ECONNRESET, "bubblewrap ended while starting")
    finally:
        os.close(ended)


def _handshake(process: subprocess.Popen[bytes], ours: socket.socket, init_pid: int, setup: dict[str, Any]) -> Sandbox:
    ours.settimeout(_START_TIMEOUT_S)
    try:
        ours.send(marshal.dumps(setup))
        _await_answer(process, ours)
        data, ancillary, _, _ = ours.recvmsg(
            _MAX_MESSAGE, socket.CMSG_SPACE((_SOCKETS + 1) * 4), socket.MSG_CMSG_CLOEXEC
        )
    except OSError as error:
        msg = f"probe 'sandbox' failed: init did not answer ({error})"
        raise RungError(msg) from error
    # Init ends with bubblewrap from the moment before it answers; had that one ended earlier, init would live on.
    if not data or process.poll() is not None:
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
    dns_udp, dns_tcp, gateway4, gateway6, parking4, parking6 = sockets
    from jupyter_agentwatch.sandbox.standing import Sandbox  # now, while nobody waits for bubblewrap to be started

    return Sandbox(
        process=process,
        init_pid=init_pid,
        init_pidfd=os.pidfd_open(init_pid),
        control=ours,
        listener_fd=fds[0],
        dns_udp=dns_udp,
        dns_tcp=dns_tcp,
        gateway=(gateway4, gateway6),
        parking=(parking4, parking6),
    )
