"""What exists for a command: an allow list of places on the host. Pure but for looking at what exists.

Nothing is hidden by a deny list: what is not named here is not there. How a place comes to exist, by a mount or by a
right, is the matter of `mounts` and `grants`; both begin from this list.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final, Literal

from jupyter_agentwatch.errors import PolicyError, WorkspaceError
from jupyter_agentwatch.policy import Policy

__all__ = ["ETC", "SYSTEM", "Mode", "check_workspace", "clean_environment", "gpu_nodes", "plan_places"]

SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store")
"""Folders of the system, read-only."""

ETC: Final = (
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
"""Of /etc only what programs need to run: no shadow, no keys, no credentials of package clients."""

Mode = Literal["ro", "rw", "hide", "socket"]
"""How a place exists: read-only, read-write, in name only, or as a UNIX socket that the policy names."""


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


def plan_places(policy: Policy, workspace: Path, python: tuple[Path, ...], package: Path) -> dict[Path, Mode]:
    """Return what exists besides the system and the fresh folders: absolute path → how.

    Args:
        policy: What may exist.
        workspace: Absolute, checked.
        python: Folders of the active Python environment.
        package: Our own package: read-only wherever it is visible, so that a command cannot change the monitor.

    Raises:
        PolicyError: A path of the policy does not exist.
    """
    fs = policy.filesystem
    places: dict[Path, Mode] = {}
    for each in python:
        if each.is_dir() and not each.is_relative_to("/usr"):
            places[each] = "ro"
    places[workspace] = "rw" if fs.workspace == "write" else "ro"
    if package.is_relative_to(workspace):
        places[package] = "ro"
    granted: tuple[tuple[Mode, str, list[str]], ...] = (("ro", "read", fs.read), ("rw", "write", fs.write))
    for mode, key, names in granted:
        for name in names:
            places[_existing(name, workspace, f"filesystem.{key}")] = mode
    for name in policy.unix_sockets:
        if not name.startswith("@"):
            places[_existing(name, workspace, "unix_sockets")] = "socket"
    for name in fs.hide:
        places[_absolute(name, workspace)] = "hide"
    return places


def clean_environment(
    policy: Policy, passed: dict[str, str], python: tuple[Path, ...], home: str, temporary: str
) -> dict[str, str]:
    """Return the environment of every command: short, and without anything that the policy does not name.

    Args:
        policy: What is passed on, and what is set.
        passed: Variables of the owner's environment.
        python: Folders of the active Python environment, whose programs come first.
        home: The fresh home folder as commands name it.
        temporary: The fresh folder for temporary files.
    """
    bins = dict.fromkeys(str(p / "bin") for p in python if (p / "bin").is_dir())
    system = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
    env = {
        "PATH": ":".join([*bins, *(p for p in system if p not in bins)]),
        "HOME": home,
        "USER": "agent",
        "LOGNAME": "agent",
        "SHELL": "/bin/sh",
        "TMPDIR": temporary,
        "LANG": "C.UTF-8",
    }
    env |= {name: value for name, value in passed.items() if name in policy.environment.passed}
    return env | policy.environment.set


def gpu_nodes(policy: Policy) -> tuple[list[str], list[str]]:
    """Return the device nodes of the policy's GPUs: those of the driver, which may be missing, and one for each GPU.

    There are none where a simulation or a trace stands for the machine's GPUs.

    Raises:
        PolicyError: A GPU does not exist.
    """
    if not policy.gpus or policy.telemetry.stands_in:
        return [], []
    nodes = []
    for index, gpu in enumerate(policy.gpus):
        minor = gpu.device if isinstance(gpu.device, int) else _gpu_minor(gpu.device)
        node = f"/dev/nvidia{minor}"
        if minor is None or not Path(node).exists():
            msg = f"gpus[{index}].device: no GPU {gpu.device!r} on this machine"
            raise PolicyError(msg)
        nodes.append(node)
    return ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"], nodes


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


def _gpu_minor(uuid: str) -> int | None:
    for info in Path("/proc/driver/nvidia/gpus").glob("*/information"):
        rows = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        if rows.get("GPU UUID", "").strip() == uuid:
            return int(rows["Device Minor"])
    return None
