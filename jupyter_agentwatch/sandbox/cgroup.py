"""Limits and an atomic kill by cgroup v2, where the system has delegated a subtree to us; else the bound of v1's pids.

Only what was really tried counts as delegated. It changes no cgroup but the leaf that it made, and the kill of the
PID namespace never depends on it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from jupyter_agentwatch.errors import RungError

__all__ = ["Delegation", "Leaf", "can_be_left", "clear_leaves", "find_delegation", "leaf_name", "limits_by"]

_WANTED: Final = frozenset({"memory", "pids"})
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")
_OWN_CGROUPS: Final = Path("/proc/self/cgroup")
_OWN_MOUNTS: Final = Path("/proc/self/mountinfo")
_PREFIX: Final = "agentwatch-"
_STALE_S: Final = 60.0
"""A group of ours that is empty after so long is nobody's: whoever makes one fills it within his start."""

_END_S: Final = 1.0
_LOOK_AGAIN_S: Final = 0.002


class Delegation(msgspec.Struct, frozen=True):
    """A cgroup in which we may make children and move our own processes into them.

    Attributes:
        path: Its folder.
        controllers: Those of "memory" and "pids" that a child of it has; empty: only the kill is to be had.
        version: Of the hierarchy. That of version 1 has "pids" alone, and no kill.
    """

    path: Path
    controllers: frozenset[str]
    version: Literal[1, 2] = 2


def find_delegation(*, proc_cgroup: Path = _OWN_CGROUPS, mountinfo: Path = _OWN_MOUNTS) -> Delegation | None:
    """Return the nearest cgroup above us whose children we may make and limit, else the nearest where we may make one.

    Only ancestors of our own cgroup come into question: to move a process, one must be allowed to write to the common
    ancestor of where it is and where it goes. Version 2 with controllers comes first, then the pids controller of
    version 1, then version 2 without any.

    Args:
        proc_cgroup: This process's cgroups, in the form of `/proc/<pid>/cgroup`.
        mountinfo: This process's mounts, in the form of `/proc/<pid>/mountinfo`.
    """
    try:
        cgroups, mounts = proc_cgroup.read_bytes(), mountinfo.read_bytes()
    except OSError:
        return None
    kill_only: Delegation | None = None
    for folder in _ancestors(cgroups, mounts, 2):
        controllers = _delegated(folder)
        if controllers:
            return Delegation(folder, controllers)
        if controllers is not None and kill_only is None:
            kill_only = Delegation(folder, frozenset())
    for folder in _ancestors(cgroups, mounts, 1):
        if _can_have_child(folder):
            return Delegation(folder, frozenset({"pids"}), 1)
    return kill_only


def can_be_left(places: Iterable[Path], *, mountinfo: Path = _OWN_MOUNTS) -> bool:
    """Say whether a program that owns a cgroup's files and may write to these places could move itself out of it.

    Args:
        places: Absolute, without symbolic links.
        mountinfo: This process's mounts, in the form of `/proc/<pid>/mountinfo`.
    """
    points = [point for kind, _, point, _ in _mounted(mountinfo.read_bytes()) if kind in {b"cgroup", b"cgroup2"}]
    return any(point.is_relative_to(place) or place.is_relative_to(point) for place in places for point in points)


def _ancestors(cgroups: bytes, mounts: bytes, version: Literal[1, 2]) -> Iterator[Path]:
    """Yield our own cgroup and what is above it, nearest first, as far as it is mounted; of version 1 that of pids."""
    own = _own_path(cgroups, b"" if version == 2 else b"pids")
    for kind, root, point, options in _mounted(mounts) if own is not None else ():
        if kind == b"cgroup2" if version == 2 else kind == b"cgroup" and b"pids" in options:
            yield from _upwards(root, point, own or "")


def _own_path(cgroups: bytes, controller: bytes) -> str | None:
    for line in cgroups.splitlines():
        number, _, rest = line.partition(b":")
        names, _, path = rest.partition(b":")
        if controller in names.split(b",") and (controller or number == b"0"):
            return os.fsdecode(path)
    return None


def _mounted(mountinfo: bytes) -> Iterator[tuple[bytes, str, Path, list[bytes]]]:
    """Yield (kind, what is mounted, mount point, options of the file system) of each mount."""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(b" - ")
        fields, (kind, *others) = left.split(b" "), right.split(b" ")
        if len(fields) >= 5:
            root, point = (os.fsdecode(_OCTAL.sub(lambda m: bytes([int(m[1], 8)]), f)) for f in fields[3:5])
            yield kind, root, Path(point), others[-1].split(b",") if others else []


def _upwards(root: str, point: Path, own: str) -> Iterator[Path]:
    # "/.." at the start means that our cgroup lies outside the cgroup namespace: nothing of it is mounted here.
    relative = os.path.relpath(own, root)
    if relative == ".." or relative.startswith("../") or ".." in Path(own).parts:
        return
    folder = point / relative
    yield folder
    while folder != point:
        folder = folder.parent
        yield folder


def _delegated(folder: Path) -> frozenset[str] | None:
    """Return the controllers that a child of `folder` gets, or None where no usable child can be made."""
    if _word(folder / "cgroup.type") not in {"", "domain"}:  # children of a threaded cgroup cannot be limited
        return None
    try:
        controllers = frozenset((folder / "cgroup.subtree_control").read_text("ascii").split())
    except OSError:
        return None
    return controllers & _WANTED if _can_have_child(folder) else None


def _can_have_child(folder: Path) -> bool:
    child = folder / f"{_PREFIX}try-{os.urandom(8).hex()}"
    try:
        os.close(os.open(folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
        child.mkdir(mode=0o755)
        child.rmdir()
    except OSError:
        return False
    return True


def _word(file: Path) -> str:
    """Return what a file of one line says, or "" where there is no such file (the root cgroup lacks most)."""
    try:
        return file.read_text("ascii").strip()
    except OSError:
        return ""


def _counters(file: Path) -> dict[str, int]:
    pairs = (line.split() for line in _word(file).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


class Leaf:
    """One cgroup of ours without children: what is moved into it, and all that this forks, is limited together.

    Attributes:
        path: Its folder.
        controllers: Those of "memory" and "pids" that it has.
        holds_processes: It was given a bound on processes.
    """

    def __init__(self, delegation: Delegation, name: str) -> None:
        self.path = delegation.path / name
        self.controllers = delegation.controllers
        self._version = delegation.version
        self.holds_processes = False
        self._pids_events = -1

    @classmethod
    def create(
        cls, delegation: Delegation, name: str, *, memory_bytes: int | None = None, processes: int | None = None
    ) -> Leaf:
        """Make the leaf and set its limits; a limit whose controller is not delegated is left to others.

        Args:
            delegation: Where.
            name: Folder name: letters, digits, "-" and "_".
            memory_bytes: Memory of all members together, bytes, swap excluded and forbidden; None: no bound.
            processes: Processes and threads alive together, the sandbox's own (bubblewrap and init) included; None: no
                bound.

        Raises:
            ValueError: The name is not one.
            RungError: The leaf cannot be made, or the kernel refuses a limit; then nothing is left behind.
        """
        if not _NAME.fullmatch(name):
            msg = f"cgroup name {name!r}: use letters, digits, '-' and '_'"
            raise ValueError(msg)
        leaf = cls(delegation, name)
        try:
            leaf.path.mkdir(mode=0o755)
        except OSError as error:
            raise _refused(leaf.path, error) from error
        try:
            leaf._limit(memory_bytes, processes)
        except OSError as error:
            leaf.path.rmdir()
            raise _refused(leaf.path, error) from error
        return leaf

    def _limit(self, memory_bytes: int | None, processes: int | None) -> None:
        if "memory" in self.controllers and memory_bytes is not None:
            (self.path / "memory.max").write_text(f"{memory_bytes}\n", "ascii")
            # Kernels without swap accounting lack the first, older ones the second; the bound above holds all the same.
            for file, value in (("memory.swap.max", "0\n"), ("memory.oom.group", "0\n")):
                try:
                    (self.path / file).write_text(value, "ascii")
                except OSError as error:
                    if error.errno not in {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EOPNOTSUPP}:
                        raise
        if "pids" in self.controllers and processes is not None:
            (self.path / "pids.max").write_text(f"{processes}\n", "ascii")
            self.holds_processes = True
            with contextlib.suppress(FileNotFoundError):  # Linux before 4.8 does not count
                self._pids_events = os.open(self.path / "pids.events", os.O_RDONLY | os.O_CLOEXEC)

    def procs_fd(self) -> int:
        """Return a new descriptor of `cgroup.procs`: who writes "0" to it moves itself in. The caller closes it."""
        return os.open(self.path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)

    def add(self, pid: int) -> None:
        """Move a process in, with all its threads; children that it already has stay where they are.

        Raises:
            OSError: ESRCH where it is gone, EACCES where we may not.
        """
        fd = self.procs_fd()
        try:
            os.write(fd, str(pid).encode())
        finally:
            os.close(fd)

    def takes(self, pid: int) -> bool:
        """Move a process in, and say whether the kernel shows it there."""
        try:
            self.add(pid)
        except OSError:
            return False
        return str(pid) in _word(self.path / "cgroup.procs").split()

    def kill(self) -> bool:
        """Kill all members at once, also what they fork meanwhile; False where the kernel cannot (before 5.14)."""
        try:
            fd = os.open(self.path / "cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)
        return True

    def is_populated(self) -> bool:
        """Say whether a member lives."""
        if self._version == 1:
            return _word(self.path / "cgroup.procs") != ""
        return _counters(self.path / "cgroup.events").get("populated", 0) != 0

    def events(self) -> dict[str, int]:
        """Return the kernel's counters: memory.events as "memory.…", pids.events as "pids.…"; empty without them."""
        return {
            f"{controller}.{key}": value
            for controller in sorted(self.controllers)
            for key, value in _counters(self.path / f"{controller}.events").items()
        }

    def oom_kills(self) -> int:
        """Return how many members the kernel killed for want of memory; 0 without the memory controller."""
        return self.events().get("memory.oom_kill", 0)

    def refused_forks(self) -> int:
        """Return how many forks the kernel has refused; 0 without a bound on processes. Made to be asked often."""
        if self._pids_events < 0:
            return 0
        try:
            counted = os.pread(self._pids_events, 64, 0).split()  # "max 3"
        except OSError:  # the group is gone
            return 0
        return int(counted[1]) if len(counted) > 1 else 0

    def memory_current(self) -> int | None:
        """Return the bytes that all members use together, page cache included, or None where it is not counted."""
        word = _word(self.path / "memory.current") if "memory" in self.controllers else ""
        return int(word) if word.isdigit() else None

    def remove(self, patience_s: float = 5.0) -> bool:
        """Remove the leaf, once its last member is gone; False where members are left after `patience_s` seconds."""
        if not self._wait_until_empty(time.monotonic() + patience_s):
            return False
        if self._pids_events >= 0:
            os.close(self._pids_events)
            self._pids_events = -1
        try:
            self.path.rmdir()
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    def _wait_until_empty(self, deadline: float) -> bool:
        if self._version == 1:  # which tells nobody when its last member ends
            while self.is_populated():
                if time.monotonic() >= deadline:
                    return False
                time.sleep(_LOOK_AGAIN_S)
            return True
        try:
            fd = os.open(self.path / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            changed = select.poll()
            changed.register(fd, select.POLLPRI)
            while b"populated 1" in os.pread(fd, 4096, 0):
                left = deadline - time.monotonic()
                if left <= 0 or not changed.poll(left * 1000):
                    return False
        finally:
            os.close(fd)
        return True


def _refused(path: Path, error: OSError) -> RungError:
    return RungError(
        f"probe 'cgroup delegation' failed: {path}: {error.strerror}; remove the limit from the policy, or delegate "
        "the controllers memory and pids to this user (systemd: Delegate=yes)"
    )


def leaf_name(watch: str) -> str:
    """Return the name of a watch's leaf.

    Args:
        watch: Its id.
    """
    return f"{_PREFIX}{watch}"


def clear_leaves(*watches: str, proc_cgroup: Path = _OWN_CGROUPS, mountinfo: Path = _OWN_MOUNTS) -> None:
    """Remove the leaves of watches that are over, and empty ones that were left behind a minute ago or longer.

    The kernel removes none that has a member.

    Args:
        watches: Their ids.
        proc_cgroup: This process's cgroups, in the form of `/proc/<pid>/cgroup`.
        mountinfo: This process's mounts, in the form of `/proc/<pid>/mountinfo`.
    """
    dead, now = {leaf_name(watch) for watch in watches}, time.time()
    with contextlib.suppress(OSError):
        cgroups, mounts = proc_cgroup.read_bytes(), mountinfo.read_bytes()
        for folder in (*_ancestors(cgroups, mounts, 1), *_ancestors(cgroups, mounts, 2)):
            for left in folder.glob(f"{_PREFIX}*"):
                with contextlib.suppress(OSError):
                    if left.name in dead:
                        _remove(left, time.monotonic() + _END_S)  # its last members may be ending just now
                    elif now - left.stat().st_mtime > _STALE_S:
                        left.rmdir()


def _remove(folder: Path, deadline: float) -> None:
    while True:
        try:
            return folder.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                raise
        time.sleep(_LOOK_AGAIN_S)


def limits_by(delegation: Delegation | None, uid: int, *, traps_forks: bool | None = None) -> str:
    """Say in one line who holds which limit.

    Args:
        delegation: What `find_delegation` returned.
        uid: Our user id on the host; the kernel does not hold the host's root to RLIMIT_NPROC.
        traps_forks: Whether a watch traps forks, so that the supervisor holds the bound on processes; None: say what
            a watch on this machine would do on each rung.
    """
    controllers = delegation.controllers if delegation else frozenset()
    if "memory" in controllers:
        memory = "memory: cgroup v2"
    else:
        memory = "memory: rlimit for each process, supervisor for the sum (sampled at 10 Hz)"
    by_supervisor = "supervisor (tasks counted at clone)"
    if delegation is not None and "pids" in controllers:
        by_kernel = f"cgroup v{delegation.version}"
    else:
        by_kernel = by_supervisor if uid == 0 else "rlimit (RLIMIT_NPROC)"
    if traps_forks is None and by_kernel != by_supervisor:
        processes = f"{by_kernel} on rung A, {by_supervisor} on B and C"
    else:
        processes = by_supervisor if traps_forks else by_kernel
    rest = "CPU time, open files and file size: rlimits; wall time and output: supervisor"
    return f"{memory}; processes: {processes}; {rest}"
