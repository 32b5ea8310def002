"""Who is in the sandbox, as the host numbers processes, and whose use of a GPU is whose.

Membership is the kernel's own record, the inode of the PID namespace or descent; nothing that a process can write takes
part.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from jupyter_agentwatch.telemetry.model import Attribution, GpuProcess, GpuSample

__all__ = ["NVIDIA_MAJOR", "Owner", "SandboxMembers", "attributed"]

NVIDIA_MAJOR: Final = 195
"""Major number of /dev/nvidia0 … and /dev/nvidiactl, fixed by the driver since its first release."""

_INITIAL_PID_NAMESPACE: Final = 0xEFFFFFFC  # PROC_PID_INIT_INO, linux/proc_ns.h
_LISTED_EVERY_NS: Final = 400_000_000
_LISTED_IN_FULL: Final = 5
"""Of so many looks one lists /proc: a call for each process of the machine, most of which are not new."""

_FEW: Final = 32
_MAX_FDS: Final = 1024
_REMEMBERED_NS: Final = 2_000_000_000
_MANY: Final = 4096


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom a process id of the driver belongs to.

    Attributes:
        member: Whether it is in the sandbox; None where that cannot be known.
        attribution: How surely.
        sandbox_pid: As the sandbox numbers it, 0 if unknown or no member.
        start_ticks: Start after boot in clock ticks, 0 if unknown.
    """

    member: bool | None
    attribution: Attribution
    sandbox_pid: int = 0
    start_ticks: int = 0


_UNKNOWN: Final = Owner(None, "none")


class SandboxMembers:
    """Finds the members of one sandbox: of init's PID namespace, or its own kind of belonging. One thread at a time.

    Args:
        init_pid: The sandbox's init as this process sees it.
        same_numbers: Whether the driver's process ids are ours. None: they are where this process is in the machine's
            initial PID namespace; in a container the driver still gives the machine's numbers, which here may be
            nobody's or somebody else's.
        device_major: Major number of the GPUs' device nodes.
        belonging: Where the sandbox has no PID namespace of its own: lists its members, init included, and says whether
            a process is one of them. What is put down to such a member is put down weakly.

    Raises:
        OSError: There is no such process.
    """

    def __init__(
        self,
        init_pid: int,
        *,
        same_numbers: bool | None = None,
        device_major: int = NVIDIA_MAJOR,
        belonging: tuple[Callable[[], Iterable[int]], Callable[[int], bool]] | None = None,
    ) -> None:
        self.namespace = _namespace(init_pid)
        self._belonging = belonging
        if same_numbers is None:
            same_numbers = _namespace("self") == _INITIAL_PID_NAMESPACE
        self._same_numbers = same_numbers
        self._major = device_major
        self._known: dict[int, bool] = {}
        self._members: list[int] = []
        self._listed_ns = 0
        self._looks = 0
        self._newest: tuple[int | None, int | None] = (None, None)
        self._proc_device = os.stat("/proc").st_dev
        self._seen: dict[int, tuple[int, Owner]] = {}

    def pids(self) -> list[int]:
        """Return the process ids of all members, init included, as this process sees them.

        Those that are new are looked for every 0.4 s, by the numbers that the kernel has given away since; those that
        have ended may be among them for 2 s.
        """
        now_ns = time.monotonic_ns()
        if not self._members or now_ns - self._listed_ns >= _LISTED_EVERY_NS:
            self._listed_ns = now_ns
            self._list()
            self._members = [pid for pid, is_member in self._known.items() if is_member]
        return self._members

    def owner(self, pid: int, now_ns: int) -> Owner:
        """Say whom a process id that the driver gave belongs to.

        Args:
            pid: As the driver numbers it.
            now_ns: Monotonic clock, nanoseconds.
        """
        if pid <= 0:
            return _UNKNOWN
        found = self._look_up(pid)
        if found is not None:
            if len(self._seen) >= _MANY:
                self._seen.clear()
            self._seen[pid] = now_ns, found
            return found
        # It ended after the driver had measured it. Its number is not given away again within the moment.
        seen_ns, before = self._seen.get(pid, (0, _UNKNOWN))
        if before.member is None or now_ns - seen_ns > _REMEMBERED_NS:
            return _UNKNOWN
        return Owner(before.member, "weak", before.sandbox_pid, before.start_ticks)

    def _list(self) -> None:
        if self._belonging is not None:
            self._known = dict.fromkeys(self._belonging[0](), True)
            return
        given = self._given()
        self._looks += 1
        if given is not None and len(given) <= _FEW and self._looks % _LISTED_IN_FULL:
            self._known |= {pid: self._is_member(pid) for pid in given}
            return
        known = self._known
        listed = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        # Who is none is asked again: it may have forbidden to be looked at, for a moment.
        self._known = {
            pid: (known.get(pid, False) and given is not None and pid not in given) or self._is_member(pid)
            for pid in listed
        }

    def _given(self) -> range | None:
        """Return the numbers that processes may have got since the look before; None where it may be any.

        The kernel gives numbers away one after the other, up to the largest and then anew from the smallest that are
        free; a process that is being forked has its number before it is there to be looked at, so that the numbers of
        the time between two looks are asked about in both.
        """
        older, newer = self._newest
        newest = self._newest_number()
        self._newest = newer, newest
        if older is None or newer is None or newest is None or not older <= newer <= newest:
            return None
        return range(older + 1, newest + 1)

    def _newest_number(self) -> int | None:
        """Return the number that was given away last, None where the kernel does not say it."""
        try:
            fd = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)
            try:
                # In some containers it is a file of somebody else's, which is seconds old.
                is_kernels = os.fstat(fd).st_dev == self._proc_device
                return (int(os.read(fd, 128).split()[4]) or None) if is_kernels else None
            finally:
                os.close(fd)
        except (OSError, ValueError, IndexError):
            return None

    def _look_up(self, pid: int) -> Owner | None:
        """Return the owner of a number that is somebody's here, None where it is nobody's."""
        try:
            start = _start_ticks(pid)
            inside = _namespace(pid) == self.namespace if self._belonging is None else self._belonging[1](pid)
            numbers = _status(pid, b"NSpid:")
            # Read again: the files above must all have been the same process's.
            if _start_ticks(pid) != start:
                return None
        except PermissionError:
            return _UNKNOWN
        except (OSError, ValueError, IndexError):
            return None
        if self._same_numbers:
            sure: Attribution = "exact" if self._belonging is None else "weak"
            return Owner(inside, sure, numbers[-1] if inside else 0, start)
        if not self._has_device_open(pid):
            return _UNKNOWN
        return Owner(inside, "weak", numbers[-1] if inside else 0, start)

    def _is_member(self, pid: int) -> bool:
        try:
            # A thread has a number, too, under which /proc shows its process.
            return _namespace(pid) == self.namespace and _status(pid, b"Tgid:") == [pid]
        except (OSError, ValueError):
            return False  # ended, or another user's: not one of ours

    def _has_device_open(self, pid: int) -> bool:
        folder = f"/proc/{pid}/fd"
        try:
            names = os.listdir(folder)[:_MAX_FDS]
        except OSError:
            return False
        return any(_is_device(f"{folder}/{name}", self._major) for name in names)


def attributed(sample: GpuSample, owner: Callable[[int], Owner], step_of: Callable[[int], int]) -> GpuSample:
    """Return a sample of the real driver with each of its processes put down to whom it belongs to.

    Args:
        sample: As the backend made it.
        owner: Says whom a driver's process id belongs to.
        step_of: Says which step a member, by its host pid, belongs to; 0 where it is unknown.
    """
    processes: list[GpuProcess] = []
    for process in sample.processes:
        found = owner(process.pid)
        processes.append(
            msgspec.structs.replace(
                process,
                member=found.member,
                attribution=found.attribution,
                sandbox_pid=found.sandbox_pid,
                start_ticks=found.start_ticks,
                step=step_of(process.pid) if found.member else 0,
            )
        )
    return msgspec.structs.replace(sample, processes=processes)


def _namespace(pid: int | str) -> int:
    return os.stat(f"/proc/{pid}/ns/pid").st_ino


def _status(pid: int, name: bytes) -> list[int]:
    """Return the numbers of one line of a process's status. `NSpid:` is its id in each PID namespace, ours first."""
    for line in _text(f"/proc/{pid}/status").splitlines():
        if line.startswith(name):
            return [int(number) for number in line.split()[1:]]
    raise ValueError(pid)


def _start_ticks(pid: int) -> int:
    text = _text(f"/proc/{pid}/stat")
    return int(text[text.rindex(b")") + 2 :].split(b" ", 20)[19])


def _text(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def _is_device(path: str, major: int) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) == major
