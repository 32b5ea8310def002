"""What exists inside: an allow list of mounts, as arguments for bubblewrap. Pure but for looking at what exists.

Nothing is hidden by a deny list: what is not named here is not there. Mounts are ordered by depth, so that a read-only
place inside the workspace (a `.venv`, our own package) stays read-only.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from jupyter_agentwatch.errors import PolicyError, WorkspaceError
from jupyter_agentwatch.policy import Policy

__all__ = ["HOME", "Layout", "check_workspace", "clean_environment", "inner_gid", "inner_uid", "plan_layout"]

HOME: Final = "/home/agent"
"""The fresh home folder inside."""

HOST_NAME: Final = "agentwatch"

_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store")

# Of /etc only what programs need to run: no shadow, no keys, no credentials of package clients.
_ETC: Final = (
    *("alternatives", "ca-certificates", "ca-certificates.conf", "crypto-policies", "fonts", "java", "java-17-openjdk"),
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "timezone", "magic", "mime.types", "protocols"),
    *(
        "services",
        "ssl/certs",
        "ssl/openssl.cnf",
        "pki/tls/certs",
        "pki/ca-trust",
        "terminfo",
        "inputrc",
        "bash.bashrc",
    ),
    *("debian_version", "os-release", "lsb-release", "gai.conf", "host.conf", "locale.alias", "python3", "perl"),
)

Mode = Literal["ro", "rw", "hide"]


@dataclass(frozen=True, slots=True)
class Layout:
    """What bubblewrap is told to build.

    Attributes:
        arguments: Mount arguments, in order.
        files: Small files below /etc: path inside → content; each becomes a read-only copy.
        hidden: Files of the host that are covered by an empty one.
        writable: Host paths that can be written inside.
    """

    arguments: tuple[str, ...]
    files: dict[str, bytes] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()


def check_workspace(workspace: Path, private: tuple[Path, ...]) -> Path:
    """Return the absolute workspace, or say why it cannot be one.

    Args:
        workspace: Folder as the user named it.
        private: Folders that must not become visible (home, logs, control sockets).

    Raises:
        WorkspaceError: Missing, not a folder, a symbolic link, or it contains a private folder.
    """
    path = Path(os.path.abspath(workspace))
    try:
        info = path.lstat()
    except OSError as error:
        msg = f"workspace {path}: {error.strerror}; make the folder first"
        raise WorkspaceError(msg) from error
    if stat.S_ISLNK(info.st_mode):
        msg = f"workspace {path} is a symbolic link to {os.path.realpath(path)}; name that folder itself"
        raise WorkspaceError(msg)
    if not stat.S_ISDIR(info.st_mode):
        msg = f"workspace {path} is not a folder"
        raise WorkspaceError(msg)
    path = Path(os.path.realpath(path))
    for secret in private:
        real = Path(os.path.realpath(secret))
        if real == path or real.is_relative_to(path):
            msg = f"workspace {path} contains {real}, which must not be visible inside; choose a project folder"
            raise WorkspaceError(msg)
    for taken in ("/proc", "/dev", "/sys", "/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64", "/run"):
        if path == Path(taken) or path.is_relative_to(taken):
            msg = f"workspace {path} lies in the system's {taken}; choose a project folder"
            raise WorkspaceError(msg)
    return path


def inner_uid() -> int:
    """Return the user id that commands see: the user's own, or 1000 for root."""
    return os.getuid() or 1000


def inner_gid() -> int:
    """Return the group id that commands see: the user's own, or 1000 for root."""
    return os.getgid() or 1000


def plan_layout(policy: Policy, workspace: Path, python: tuple[Path, ...], package: Path) -> Layout:
    """Plan the mounts of a watch.

    Args:
        policy: What may exist.
        workspace: Absolute, checked.
        python: Folders of the active Python environment.
        package: Our own package: read-only inside wherever it is visible, so that a command cannot change the monitor.

    Raises:
        PolicyError: A path of the policy does not exist, or a GPU does not.
    """
    fs = policy.filesystem
    places: dict[Path, Mode] = {}
    for each in python:
        if each.is_dir() and not each.is_relative_to("/usr"):
            places[each] = "ro"
    places[workspace] = "rw" if fs.workspace == "write" else "ro"
    if package.is_relative_to(workspace):
        places[package] = "ro"
    for mode, names in (("ro", fs.read), ("rw", fs.write)):
        for name in names:
            places[_existing(name, workspace, f"filesystem.{'read' if mode == 'ro' else 'write'}")] = mode  # type: ignore[assignment]
    for name in policy.unix_sockets:
        if not name.startswith("@"):
            places[_existing(name, workspace, "unix_sockets")] = "rw"
    for name in fs.hide:
        places[_absolute(name, workspace)] = "hide"
    hidden: list[str] = []
    arguments = [*_base(fs.tmp_bytes)]
    for path, mode in sorted((places | _pinned(places)).items(), key=lambda item: len(item[0].parts)):
        if mode == "hide" and path.is_file():
            hidden.append(str(path))
        elif mode != "hide" or path.is_dir():
            arguments += _mount(path, mode)
    arguments += _gpus(policy)
    arguments += ["--remount-ro", "/dev", "--remount-ro", "/"]
    writable = tuple(str(path) for path, mode in places.items() if mode == "rw")
    return Layout(tuple(arguments), _copied_files() | _made_up_files(), tuple(hidden), writable)


def clean_environment(policy: Policy, passed: dict[str, str], python: tuple[Path, ...]) -> dict[str, str]:
    """Return the environment of every command: short, and without anything that the policy does not name."""
    bins = dict.fromkeys(str(p / "bin") for p in python if (p / "bin").is_dir())
    system = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
    env = {
        "PATH": ":".join([*bins, *(p for p in system if p not in bins)]),
        "HOME": HOME,
        "USER": "agent",
        "LOGNAME": "agent",
        "SHELL": "/bin/sh",
        "TMPDIR": "/tmp",  # noqa: S108 -- the sandbox's own
        "LANG": "C.UTF-8",
    }
    env |= {name: value for name, value in passed.items() if name in policy.environment.passed}
    return env | policy.environment.set


def _base(tmp_bytes: int) -> list[str]:
    arguments: list[str] = []
    for name in _SYSTEM:
        path = Path(name)
        if path.is_symlink():
            arguments += ["--symlink", os.readlink(path), name]
        elif path.is_dir():
            arguments += ["--ro-bind", name, name]
    for name in _ETC:
        if os.path.isdir(f"/etc/{name}"):
            arguments += ["--ro-bind", f"/etc/{name}", f"/etc/{name}"]
    size = ("--size", str(tmp_bytes), "--tmpfs")
    # Where root runs us, its user id owns the machine's settings inside, too, and could set the core_pattern.
    proc = ("--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys")
    return [*arguments, *proc, "--dev", "/dev", *size, "/dev/shm", *size, "/tmp", *size, HOME]  # noqa: S108


def _pinned(places: dict[Path, Mode]) -> dict[Path, Mode]:
    """Return the folders between a writable place and one inside it: as mounts, nobody can move them away."""
    found: dict[Path, Mode] = {}
    for path in places:
        between = list(itertools.takewhile(lambda folder: folder not in places, path.parents))
        if path.exists() and len(between) < len(path.parents) and places[path.parents[len(between)]] == "rw":
            found |= dict.fromkeys(between, "rw")
    return found


def _mount(path: Path, mode: Mode) -> list[str]:
    name = str(path)
    if mode == "ro":
        return ["--ro-bind", name, name]
    if mode == "rw":
        return ["--bind", name, name]
    return ["--tmpfs", name, "--remount-ro", name]


def _named(name: str, workspace: Path) -> Path:
    home = str(Path.home())
    expanded = home + name[1:] if name == "~" or name.startswith("~/") else name.replace("$HOME", home)
    return Path(os.path.normpath(workspace / expanded))


def _absolute(name: str, workspace: Path) -> Path:
    return Path(os.path.realpath(_named(name, workspace)))


def _existing(name: str, workspace: Path, what: str) -> Path:
    path = _absolute(name, workspace)
    if _named(name, workspace).is_relative_to(workspace) and not path.is_relative_to(workspace):
        # The agent may have made that link in an earlier watch, to have what it leads to mounted in this one.
        msg = f"{what}: {name!r} leads out of the workspace, to {path}; name that path itself"
        raise PolicyError(msg)
    if not path.exists():
        msg = f"{what}: {name!r} does not exist (looked for {path})"
        raise PolicyError(msg)
    return path


def _gpus(policy: Policy) -> list[str]:
    if not policy.gpus:
        return []
    nodes = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"]
    arguments = [argument for node in nodes for argument in ("--dev-bind-try", node, node)]
    for index, gpu in enumerate(policy.gpus):
        minor = gpu.device if isinstance(gpu.device, int) else _gpu_minor(gpu.device)
        node = f"/dev/nvidia{minor}"
        if minor is None or not Path(node).exists():
            msg = f"gpus[{index}].device: no GPU {gpu.device!r} on this machine"
            raise PolicyError(msg)
        arguments += ["--dev-bind", node, node]
    return arguments


def _gpu_minor(uuid: str) -> int | None:
    for info in Path("/proc/driver/nvidia/gpus").glob("*/information"):
        rows = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        if rows.get("GPU UUID", "").strip() == uuid:
            return int(rows["Device Minor"])
    return None


def _copied_files() -> dict[str, bytes]:
    """Return the system's small files of `_ETC`: a copy costs a tenth of a mount."""
    copies: dict[str, bytes] = {}
    for name in _ETC:
        path = f"/etc/{name}"
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.stat(path).st_mode):
                copies[path] = Path(path).read_bytes()
    return copies


def _made_up_files() -> dict[str, bytes]:
    uid, gid = inner_uid(), inner_gid()
    users = f"agent:x:{uid}:{gid}:agent:{HOME}:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    hosts = f"127.0.0.1 localhost {HOST_NAME}\n::1 localhost ip6-localhost\n"
    return {
        "/etc/passwd": users.encode(),
        "/etc/group": f"agent:x:{gid}:\nnogroup:x:65534:\n".encode(),
        "/etc/hosts": hosts.encode(),
        "/etc/hostname": f"{HOST_NAME}\n".encode(),
        "/etc/nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
        "/etc/resolv.conf": b"nameserver 127.0.0.1\noptions timeout:10 attempts:2\n",
    }
