"""Limits and an atomic kill by cgroup v2, where the system has delegated a subtree to us.

Only what was really tried counts as delegated. It changes no cgroup but the leaf that it made, and the kill of the
PID namespace never depends on it.
"""

from __future__ import annotations

import errno
import os
import re
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from jupyter_agentwatch.errors import RungError

__all__ = ["Delegation", "Leaf", "find_delegation", "limits_by"]

_WANTED: Final = frozenset({"memory", "pids"})
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


class Delegation(msgspec.Struct, frozen=True):
    """A cgroup in which we may make children and move our own processes into them.

    Attributes:
        path: Its folder.
        controllers: Those of "memory" and "pids" that a child of it has; empty: only the kill is to be had.
    """

    path: Path
    controllers: frozenset[str]


def find_delegation(
    *, proc_cgroup: Path = Path("/proc/self/cgroup"), mountinfo: Path = Path("/proc/self/mountinfo")
) -> Delegation | None:
    """Return the nearest cgroup above us whose children we may make and limit, else the nearest where we may make one.

    Only ancestors of our own cgroup come into question: to move a process, one must be allowed to write to the common
    ancestor of where it is and where it goes.

    Args:
        proc_cgroup: This process's cgroups, in the form of `/proc/<pid>/cgroup`.
        mountinfo: This process's mounts, in the form of `/proc/<pid>/mountinfo`.
    """
    try:
        own = _own_path(proc_cgroup.read_bytes())
        mounts = list(_cgroup2_mounts(mountinfo.read_bytes()))
    except OSError:
        return None
    kill_only: Delegation | None = None
    for root, point in mounts if own is not None else ():
        for folder in _upwards(root, point, own or ""):
            controllers = _delegated(folder)
            if controllers:
                return Delegation(folder, controllers)
            if controllers is not None and kill_only is None:
                kill_only = Delegation(folder, frozenset())
    return kill_only


def _own_path(cgroups: bytes) -> str | None:
    for line in cgroups.splitlines():
        if line.startswith(b"0::"):
            return os.fsdecode(line[3:])
    return None


def _cgroup2_mounts(mountinfo: bytes) -> Iterator[tuple[str, Path]]:
    """Yield (path of the cgroup that is mounted, mount point); on hybrid systems the latter is …/unified."""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(b" - ")
        fields = left.split(b" ")
        if right.startswith(b"cgroup2 ") and len(fields) >= 5:
            root, point = (os.fsdecode(_OCTAL.sub(lambda m: bytes([int(m[1], 8)]), f)) for f in fields[3:5])
            yield root, Path(point)


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
    child = folder / f"agentwatch-try-{os.urandom(8).hex()}"
    try:
        os.close(os.open(folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
        controllers = frozenset((folder / "cgroup.subtree_control").read_text("ascii").split())
        child.mkdir(mode=0o755)
        child.rmdir()
    except OSError:
        return None
    return controllers & _WANTED


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
    """One cgroup of ours without children: what is moved into it, and all that this forks, is limited together."""

    def __init__(self, path: Path, controllers: frozenset[str]) -> None:
        self.path = path
        self.controllers = controllers

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
        leaf = cls(delegation.path / name, delegation.controllers)
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

    def memory_current(self) -> int | None:
        """Return the bytes that all members use together, page cache included, or None where it is not counted."""
        word = _word(self.path / "memory.current") if "memory" in self.controllers else ""
        return int(word) if word.isdigit() else None

    def remove(self, patience_s: float = 5.0) -> bool:
        """Remove the leaf, once its last member is gone; False where members are left after `patience_s` seconds."""
        if not self._wait_until_empty(time.monotonic() + patience_s):
            return False
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


def limits_by(delegation: Delegation | None, uid: int) -> str:
    """Say in one line who holds which limit.

    Args:
        delegation: What `find_delegation` returned.
        uid: Our user id on the host; the kernel does not hold the host's root to RLIMIT_NPROC.
    """
    controllers = delegation.controllers if delegation else frozenset()
    if "memory" in controllers:
        memory = "memory: cgroup v2"
    else:
        memory = "memory: rlimit for each process, supervisor for the sum (sampled at 10 Hz)"
    if "pids" in controllers:
        processes = "processes: cgroup v2"
    elif uid == 0:
        processes = "processes: supervisor (tasks counted at clone)"
    else:
        processes = "processes: rlimit (RLIMIT_NPROC)"
    return f"{memory}; {processes}; CPU time, open files and file size: rlimits; wall time and output: supervisor"
