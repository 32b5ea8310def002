"""What exists inside: an allow list of mounts, as arguments for bubblewrap. Pure but for looking at what exists.

Nothing is hidden by a deny list: what is not named here is not there. Mounts are ordered by depth, so that a read-only
place inside the workspace (a `.venv`, our own package) stays read-only.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from pathlib import Path
from typing import Final

import msgspec

from jupyter_agentwatch.policy import Policy
from jupyter_agentwatch.sandbox.places import ETC, SYSTEM, Mode, gpu_nodes, plan_places

__all__ = ["HOME", "Layout", "inner_gid", "inner_uid", "plan_layout"]

HOME: Final = "/home/agent"
"""The fresh home folder inside."""

HOST_NAME: Final = "agentwatch"

_ROOT_ONLY: Final = (
    *("kcore", "kmsg", "kpagecgroup", "kpagecount", "kpageflags", "pagetypeinfo", "slabinfo", "timer_list"),
    *("tty/driver/serial", "vmallocinfo"),
)
"""Entries of /proc that are closed to everybody but root."""


class Layout(msgspec.Struct, frozen=True):
    """What bubblewrap is told to build.

    Attributes:
        arguments: Mount arguments, in order.
        files: Small files below /etc: path inside → content; each becomes a read-only copy.
        hidden: Files of the host that are covered by an empty one.
    """

    arguments: tuple[str, ...]
    files: dict[str, bytes] = {}
    hidden: tuple[str, ...] = ()


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
    places = plan_places(policy, workspace, python, package)
    hidden: list[str] = []
    arguments = [*_base(policy.filesystem.tmp_bytes)]
    for path, mode in sorted((places | _pinned(places)).items(), key=lambda item: len(item[0].parts)):
        if mode == "hide" and path.is_file():
            hidden.append(str(path))
        elif mode != "hide" or path.is_dir():
            arguments += _mount(path, mode)
    driver, gpus = gpu_nodes(policy)
    arguments += [argument for node in driver for argument in ("--dev-bind-try", node, node)]
    arguments += [argument for node in gpus for argument in ("--dev-bind", node, node)]
    arguments += ["--remount-ro", "/dev", "--remount-ro", "/"]
    return Layout(tuple(arguments), _copied_files() | _made_up_files(), tuple(hidden))


def _base(tmp_bytes: int) -> list[str]:
    arguments: list[str] = []
    for name in SYSTEM:
        path = Path(name)
        if path.is_symlink():
            arguments += ["--symlink", os.readlink(path), name]
        elif path.is_dir():
            arguments += ["--ro-bind", name, name]
    for name in ETC:
        if os.path.isdir(f"/etc/{name}"):
            arguments += ["--ro-bind", f"/etc/{name}", f"/etc/{name}"]
    size = ("--size", str(tmp_bytes), "--tmpfs")
    # Where root runs us, its user id owns the machine's settings inside, too, and could set the core_pattern.
    proc = ("--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", *_covered())
    return [*arguments, *proc, "--dev", "/dev", *size, "/dev/shm", *size, "/tmp", *size, HOME]  # noqa: S108


def _covered() -> list[str]:
    """Cover what /proc shows to root's user id alone, rights or none: where pages of memory lie, and whose they are."""
    if os.getuid() != 0:
        return []
    there = [f"/proc/{name}" for name in _ROOT_ONLY if os.path.exists(f"/proc/{name}")]
    return [argument for path in there for argument in ("--ro-bind", "/dev/null", path)]


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
    if mode in {"rw", "socket"}:
        return ["--bind", name, name]
    return ["--tmpfs", name, "--remount-ro", name]


def _copied_files() -> dict[str, bytes]:
    """Return the system's small files of `ETC`: a copy costs a tenth of a mount."""
    copies: dict[str, bytes] = {}
    for name in ETC:
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
