"""What `probe` tries, one function for each mechanism: it returns what came of it, or raises why it did not work.

The sandbox is tried with the very filter and options of the real launch, because a mechanism that works alone may not
work in the combination that counts.
"""

from __future__ import annotations

import errno
import marshal
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from secrets import token_hex
from typing import Final

from jupyter_agentwatch.errors import RungError
from jupyter_agentwatch.sandbox import probe_child as child
from jupyter_agentwatch.sandbox.bpf import compile_filter
from jupyter_agentwatch.sandbox.census import is_proc_ours
from jupyter_agentwatch.sandbox.cgroup import Delegation, Leaf, find_delegation
from jupyter_agentwatch.sandbox.landlock import NEWEST_ABI, landlock_abi
from jupyter_agentwatch.sandbox.launch import find_bwrap
from jupyter_agentwatch.sandbox.mounts import HOST_NAME
from jupyter_agentwatch.sandbox.notify import Listener, Notification, TargetMemory, duplicate_socket
from jupyter_agentwatch.sandbox.probe_child import (
    PATIENCE_S,
    FailedTrialError,
    await_call,
    bare_python,
    decoded,
    errno_name,
    run,
    started,
)
from jupyter_agentwatch.sandbox.syscalls import MACHINES, Machine

__all__ = [
    "LAUNCH_OPTIONS",
    "LEAVE_CONTAINER",
    "Bench",
    "looked_at",
    "try_bwrap",
    "try_cgroup",
    "try_gpus",
    "try_jupyter",
    "try_killable",
    "try_machine",
    "try_network",
    "try_notification",
    "try_own_proc",
    "try_parent_death",
    "try_pid_namespace",
    "try_user_namespace",
    "without_yama",
]

LEAVE_CONTAINER: Final = (
    "In Docker, start the container with --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
    "--security-opt systempaths=unconfined (Podman: unmask=ALL; Kubernetes: seccompProfile Unconfined and procMount "
    "Unmasked; a systemd service: RestrictNamespaces=no), or start Jupyter outside of it."
)
"""What to change where a container or a service manager took away what the sandbox is made of."""

LAUNCH_OPTIONS: Final = (
    *("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
    *("--uid", "0", "--gid", "0", "--as-pid-1", "--die-with-parent", "--new-session", "--hostname", HOST_NAME),
    *("--cap-drop", "ALL", "--cap-add", "CAP_NET_BIND_SERVICE", "--cap-add", "CAP_NET_ADMIN"),
    *("--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SETFCAP"),
    *("--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--size", "65536", "--tmpfs", "/dev/shm"),  # noqa: S108
    *("--remount-ro", "/", "--chdir", "/", "--"),
)
"""Bubblewrap's options as `launch` gives them, with the whole system read-only in the place of a watch's layout."""

_ALLOW_BWRAP: Final = (
    r"Run: printf 'abi <abi/4.0>,\nprofile bwrap /usr/bin/bwrap flags=(unconfined) { userns, }\n' | sudo tee "
    "/etc/apparmor.d/bwrap && sudo apparmor_parser -r /etc/apparmor.d/bwrap (or, for all programs: sudo sysctl -w "
    "kernel.apparmor_restrict_unprivileged_userns=0)."
)
_LEAVE_SANDBOX: Final = (
    "Start Jupyter outside of that sandbox (system call interception of LXD or Incus, sandbox-runtime, sandlock, syd): "
    "the kernel allows one listener for each process."
)

_BE_A_USER: Final = "Start Jupyter as an ordinary user, or give root CAP_SETFCAP (in Docker: --cap-add SETFCAP)."
_CAP_SETFCAP: Final = 1 << 31
_BOUND_CONTAINER: Final = (
    "In a container, bound the container as a whole (docker run --memory … --pids-limit …; Kubernetes: "
    "resources.limits). Without a cgroup of its own, a watch's bounds are held as the line 'limits' says."
)
_MOUNT_CGROUPS: Final = "Boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1 in the kernel's command line)."

_ODD_ERRNO: Final = errno.EUCLEAN  # no kernel answers `connect` so: the child can have it from us only
_DESTINATION: Final = ("127.0.0.9", 9)


@dataclass(slots=True)
class _Trial:
    killable: bool = False
    wrong: dict[str, str] = field(default_factory=dict)


class Bench:
    """What earlier trials hand on to later ones.

    Attributes:
        bwrap: Path of bubblewrap.
        machine: Call numbers; None: not a machine of ours.
        delegation: A cgroup in which a child was really made, filled and killed.
        plain: What came of a filtered child.
        sandboxed: The same of one in a sandbox.
        abi: Version of Landlock's interface that is used, 0 for none.
        said: By name, what went wrong for a process without rights, "" for nothing.

    Args:
        abi: An older version of Landlock's interface, to see what a kernel that has no other could do.
    """

    def __init__(self, *, abi: int = NEWEST_ABI) -> None:
        self.bwrap = ""
        self.machine = MACHINES.get(os.uname().machine)
        self.abi = min(abi, landlock_abi())
        self.said: dict[str, str] = {}
        self.delegation: Delegation | None = None
        self.plain = _Trial()
        self.sandboxed = _Trial()

    @property
    def table(self) -> Machine:
        """Call numbers.

        Raises:
            FailedTrialError: It is not a machine of ours.
        """
        if self.machine is None:
            msg = "there is no table of system calls for this machine"
            raise FailedTrialError(msg)
        return self.machine


def try_machine(bench: Bench) -> str:
    """Look at what Python itself runs on."""
    bits = struct.calcsize("P") * 8
    found = f"{sys.platform}, {os.uname().machine}, {bits}-bit Python"
    if sys.platform != "linux" or bench.machine is None or bits != 64:
        raise FailedTrialError(found)
    return found


def try_own_proc(_: Bench) -> str:
    """See whether `/proc` shows the processes of this PID namespace."""
    if not is_proc_ours():
        msg = "/proc shows another PID namespace than this process's, or nothing"
        raise FailedTrialError(msg)
    return f"/proc/self is process {os.getpid()}"


def try_bwrap(bench: Bench) -> str:
    """Find bubblewrap and run it."""
    try:
        bench.bwrap = find_bwrap()
    except RungError as error:
        msg = "bwrap is not installed"
        raise FailedTrialError(msg) from error
    return f"{bench.bwrap}: {run([bench.bwrap, '--version'])}"


def try_user_namespace(bench: Bench) -> str:
    """Run a program in a user namespace; where that fails, find out what forbids it."""
    try:
        run([bench.bwrap, "--unshare-user", "--ro-bind", "/", "/", shutil.which("true") or "true"])
    except FailedTrialError as failed:
        with started(child.unshared.__code__) as (control, said):
            number = int(decoded(control.recv(4096), said)["errno"])
        why, fix = _why_no_user_namespace(number)
        msg = f"{failed}; {why}"
        raise FailedTrialError(msg, fix) from failed
    return "a program ran in one"


def _why_no_user_namespace(number: int) -> tuple[str, str]:
    """Return the reason and the fix, from the errno of `unshare(CLONE_NEWUSER)` and the system's settings."""
    came = f"unshare(CLONE_NEWUSER) gives {errno_name(number)}" if number else "one can be made, but not used"
    if number in {errno.ENOSPC, errno.EUSERS}:
        bound = _setting("user/max_user_namespaces")
        return f"{came}: user.max_user_namespaces={bound}", _set("user.max_user_namespaces=15000")
    if number and _setting("kernel/unprivileged_userns_clone") == "0":
        return f"{came}: kernel.unprivileged_userns_clone=0", _set("kernel.unprivileged_userns_clone=1")
    if number and _is_filtered():
        return f"{came}: a seccomp filter such as Docker's forbids it", LEAVE_CONTAINER
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return f"{came}: AppArmor forbids it (kernel.apparmor_restrict_unprivileged_userns=1)", _ALLOW_BWRAP
    if not number and os.getuid() == 0 and not _capabilities() & _CAP_SETFCAP:
        return f"{came}: root may not map itself without CAP_SETFCAP", _BE_A_USER
    return came, ""


def _set(setting: str) -> str:
    return f"Run: sudo sysctl -w {setting} (and write {setting} to a file in /etc/sysctl.d, to keep it)."


def _setting(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text("ascii").strip()
    except OSError:
        return ""


def _capabilities() -> int:
    status = Path("/proc/self/status").read_text("ascii", "replace")
    return int(status.partition("\nCapEff:\t")[2].partition("\n")[0], 16)


def _is_filtered() -> bool:
    return b"\nSeccomp:\t2" in Path("/proc/self/status").read_bytes()


def try_pid_namespace(bench: Bench) -> str:
    """Be process 1 in a PID namespace with its own /proc."""
    options = ("--unshare-user", "--unshare-pid", "--as-pid-1", "--die-with-parent", "--ro-bind", "/", "/")
    look = "import os;print(os.getpid(),os.readlink('/proc/self'))"
    seen = run([bench.bwrap, *options, "--proc", "/proc", *bare_python(), look])
    if seen != "1 1":
        msg = f"the program is process {seen!r} (by itself and by /proc), not '1 1'"
        raise FailedTrialError(msg)
    return "a program is process 1 there, by its own /proc too"


def try_notification(bench: Bench) -> str:
    """Filter a child with the sandbox's filter, receive a call of it, and answer."""
    bench.plain = _converse(bench.table, (), "")
    wrong = bench.plain.wrong.get("listener")
    if wrong == "EBUSY":
        msg = "EBUSY: this process is inside another sandbox, which listens to its calls"
        raise FailedTrialError(msg, _LEAVE_SANDBOX)
    if wrong:
        raise FailedTrialError(wrong, LEAVE_CONTAINER if _is_filtered() else "")
    return "the child got exactly the errno that we chose"


def try_killable(bench: Bench) -> str:
    """Say whether the filter was taken with WAIT_KILLABLE_RECV, and the call was answered under it."""
    if not bench.plain.killable:
        msg = "the kernel does not take the flag"
        raise FailedTrialError(msg)
    return "the call was answered under it"


def try_network(bench: Bench) -> str:
    """Start a child as the sandbox's init is started; it tries the network, then its calls are looked at."""
    bench.sandboxed = _converse(
        bench.table, (bench.bwrap, *LAUNCH_OPTIONS), marshal.dumps(child.networked.__code__).hex()
    )
    wrong = bench.sandboxed.wrong.get("network")
    if wrong:
        raise FailedTrialError(wrong)
    return "loopback works, port 53 is ours, nothing else can be reached, and a program there is no root"


def looked_at(what: str, success: str) -> Callable[[Bench], str]:
    """Return the trial of one way of looking at the caller of a trapped call in the sandbox.

    Args:
        what: "socket" (pidfd_getfd), "memory" (process_vm_readv) or "proc" (/proc/<tid>).
        success: What to say where it worked.
    """

    def attempt(bench: Bench) -> str:
        wrong = bench.sandboxed.wrong.get("listener") or bench.sandboxed.wrong.get(what)
        if wrong:
            raise without_yama(wrong)
        return success

    return attempt


def without_yama(wrong: str) -> FailedTrialError:
    """Return the failure of looking at another process, with the fix where it is Yama that forbids it.

    Args:
        wrong: What went wrong.
    """
    scope = _setting("kernel/yama/ptrace_scope")
    fixes = {
        "2": _set("kernel.yama.ptrace_scope=1"),
        "3": "Write kernel.yama.ptrace_scope=1 to a file in /etc/sysctl.d, and boot: 3 stays until then.",
    }
    if scope not in fixes:
        return FailedTrialError(wrong)
    return FailedTrialError(f"{wrong}; kernel.yama.ptrace_scope={scope}", fixes[scope])


def _converse(machine: Machine, prefix: tuple[str, ...], network: str) -> _Trial:
    """Receive one call of a filtered child, look at the caller as the broker does, and answer with an odd errno."""
    host, port = _DESTINATION
    arguments = (str(machine.numbers["seccomp"]), compile_filter(machine).hex(), network, host, str(port))
    with started(child.filtered.__code__, *arguments, prefix=prefix) as (control, said):
        message, fds, _, _ = socket.recv_fds(control, 4096, 1, socket.MSG_CMSG_CLOEXEC)
        hello = decoded(message, said)
        trial = _Trial(killable=hello["killable"], wrong={"network": hello["network"]})
        if not fds:
            trial.wrong["listener"] = errno_name(hello["errno"])
            return trial
        listener = Listener(fds[0])
        try:
            call = await_call(listener, machine.numbers["connect"])
            trial.wrong |= _look_at(call, hello["inode"])
            listener.finish(call.id, _ODD_ERRNO)
            seen = int(decoded(control.recv(4096), said)["errno"])
        finally:
            listener.close()
        if seen != _ODD_ERRNO:
            trial.wrong["listener"] = (
                f"the child got {errno_name(seen)}, not the {errno_name(_ODD_ERRNO)} of our answer"
            )
        return trial


def _look_at(call: Notification, inode: int) -> dict[str, str]:
    wrong = {}
    for what, look in (("socket", _is_same_socket), ("memory", _is_our_address), ("proc", _is_visible)):
        try:
            wrong[what] = "" if look(call, inode) else "what was found is not the caller's own"
        except Exception as error:  # noqa: BLE001 -- each way of looking fails for itself
            wrong[what] = f"{type(error).__name__}: {error}"
    return wrong


def _is_same_socket(call: Notification, inode: int) -> bool:
    with duplicate_socket(call.tid, call.args[0]) as copy:
        return os.fstat(copy.fileno()).st_ino == inode


def _is_our_address(call: Notification, _inode: int) -> bool:
    host, port = _DESTINATION
    wanted = struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host)
    return TargetMemory().read(call.tid, call.args[1], call.args[2])[:8] == wanted


def _is_visible(call: Notification, _inode: int) -> bool:
    folder = Path(f"/proc/{call.tid}")
    has_status = b"\nTgid:" in (folder / "status").read_bytes()
    return has_status and os.readlink(folder / "exe") == bare_python()[0] and "1" in os.listdir(folder / "root/proc")


def try_cgroup(bench: Bench) -> str:
    """Make a limited cgroup, move a process into it, and kill it by the cgroup."""
    delegation = find_delegation()
    if delegation is None:
        raise _no_cgroup()
    name = f"agentwatch-probe-{os.getpid()}-{token_hex(8)}"
    leaf = Leaf.create(delegation, name, memory_bytes=1 << 26, processes=16)
    waits = [*bare_python(), "import sys;sys.stdin.read()"]
    try:
        with subprocess.Popen(waits, stdin=subprocess.PIPE, env={}) as member:
            try:
                leaf.add(member.pid)
                kills = leaf.kill() and member.wait(PATIENCE_S) == -9
            finally:
                member.kill()
    finally:
        leaf.remove()
    bench.delegation = delegation
    controllers = "with " + " and ".join(sorted(delegation.controllers)) if delegation.controllers else "no controllers"
    can_kill = "kills all members at once" if kills else "no cgroup.kill"
    return f"{delegation.path} (cgroup v{delegation.version}), {controllers}; {can_kill}"


def _no_cgroup() -> FailedTrialError:
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text("utf-8", "replace").splitlines())
    points = [point for _, point, kind, *_ in mounts if kind == "cgroup2" and Path(point, "cgroup.procs").exists()]
    if not points:
        return FailedTrialError("no cgroup v2 is mounted", _MOUNT_CGROUPS)
    if all(os.statvfs(point).f_flag & os.ST_RDONLY for point in points):
        return FailedTrialError("the cgroup file system is mounted read-only", _BOUND_CONTAINER)
    return FailedTrialError("there is no cgroup v2 in which we may make one")


def try_parent_death(_bench: Bench) -> str:
    """Let a process die whose child asked to be killed with it."""
    with started(child.orphaned.__code__) as (control, _said):
        try:
            control.recv(1)
        except TimeoutError as error:
            msg = "the child lives on"
            raise FailedTrialError(msg) from error
    return "the child was killed with its parent"


def try_gpus(_bench: Bench) -> str:
    """List the nodes of NVIDIA's GPUs and open the driver's own; opening a GPU's would wake it, which takes seconds."""
    nodes = sorted(str(path) for path in Path("/dev").glob("nvidia[0-9]*"))
    if not nodes:
        msg = "there is none"
        raise FailedTrialError(msg)
    try:
        os.close(os.open("/dev/nvidiactl", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        msg = f"/dev/nvidiactl: {error.strerror}"
        raise FailedTrialError(msg, "Give this user access to /dev/nvidia* (in a container: --gpus all).") from error
    return ", ".join(nodes)


def try_jupyter(_bench: Bench) -> str:
    """Read which JupyterLab and ipykernel are installed, without importing them."""
    lab, kernel = metadata.version("jupyterlab"), metadata.version("ipykernel")
    found = f"jupyterlab {lab}, ipykernel {kernel}"
    if kernel.split(".")[:2] == ["7", "0"]:
        msg = f"{found}, which breaks updates from threads"
        raise FailedTrialError(msg)
    return found
