"""Reads what an exec names, and what really runs after it.

An exec cannot be mediated without a race: the kernel reads the name again after we did. So the claim is recorded
before, the truth (`/proc/<pid>/exe`) after, and where they differ the difference itself is the news.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from typing import Final

from jupyter_agentwatch.events import from_bytes
from jupyter_agentwatch.sandbox.notify import Gone, TargetMemory
from jupyter_agentwatch.sandbox.paths import Root, base_folder

__all__ = [
    "Claim",
    "Program",
    "claimed_exec",
    "claimed_path",
    "is_immutable",
    "is_what_was_claimed",
    "name_exists",
    "running_name",
    "running_program",
]

_MAX_ARGS: Final = 48
_MAX_ARG: Final = 1024
_MAX_SHEBANGS: Final = 4
_OWN: Final = re.compile(r"/(?:proc/(?:self|thread-self)|dev)/(exe|fd/[0-9]{1,9})")
"""Names that mean the caller's own program or descriptors, which nobody else can resolve."""


@dataclass(slots=True)
class Claim:
    """What an exec named, before the kernel read it again.

    Attributes:
        path: Absolute name inside, or "" for a descriptor without a name.
        argv: Arguments as text, bounded.
        truncated: Arguments were cut.
        before: What ran when the call was made, by name; the same later means that the exec failed.
        seq: Its record, -1 while it has none.
        step: Step of the caller.
        made: Monotonic time of the call.
        due: Monotonic time after which it is looked up without waiting for a call.
        meant: Device and inode, where the name is one of the caller's own (/proc/self/exe, /dev/fd/3).
    """

    path: str
    argv: list[str]
    truncated: bool
    before: str
    seq: int = -1
    step: int = 0
    made: float = 0.0
    due: float = 0.0
    meant: tuple[int, int] | None = None


def claimed_exec(memory: TargetMemory, tid: int, dirfd: int, path_at: int, argv_at: int) -> Claim:
    """Read the name and arguments of an exec.

    Raises:
        Gone: The caller is gone.
        OSError: An address is bad; the call itself will say so.
    """
    raw, pointers = _path_and_pointers(memory, tid, path_at, argv_at)
    path = _absolute(raw, tid, dirfd)
    truncated = len(pointers) > _MAX_ARGS
    raw_args = memory.strings(tid, pointers[:_MAX_ARGS], _MAX_ARG) if pointers else []
    truncated = truncated or any(len(arg) >= _MAX_ARG for arg in raw_args)
    claim = Claim(path, [from_bytes(arg) for arg in raw_args], truncated, running_name(tid))
    own = _OWN.fullmatch(path)
    if own is not None:
        claim.meant = _identity(f"/proc/{tid}/{own[1]}")
    return claim


def _running_identity(tid: int) -> tuple[int, int]:
    try:
        info = os.stat(f"/proc/{tid}/exe")
    except OSError as error:
        raise Gone from error
    return info.st_dev, info.st_ino


@dataclass(frozen=True, slots=True)
class Program:
    """What runs, as the kernel names it ("/usr/bin/dash", "/memfd:x (deleted)"), with its device and inode."""

    name: str
    identity: tuple[int, int]


def running_program(tid: int) -> Program:
    """Return what a process runs.

    Raises:
        Gone: The process is gone.
    """
    return Program(running_name(tid), _running_identity(tid))


def running_name(tid: int) -> str:
    """Return what a process runs, by the kernel's name alone: half the cost.

    Raises:
        Gone: The process is gone.
    """
    try:
        return os.readlink(f"/proc/{tid}/exe")
    except OSError as error:
        raise Gone from error


def is_what_was_claimed(root: Root, program: Program, claim: Claim) -> bool:
    """Say whether a running program is the claimed file, or an interpreter that its first line names."""
    if program.name == claim.path or program.identity == claim.meant:
        return True
    running, path = program.identity, claim.path
    for _ in range(_MAX_SHEBANGS):
        try:
            if root.identity(path) == running:
                return True
        except OSError:
            return False
        first = root.first_bytes(path, 256)
        if not first.startswith(b"#!"):
            return False
        words = first[2:].split(b"\n", 1)[0].split()
        if not words:
            return False
        path = os.fsdecode(words[0])
    return False


def is_immutable(path: str) -> bool:
    """Say whether a name lies in the system's folders, which are mounted read-only: it cannot come to mean another."""
    return path.startswith(("/usr/", "/bin/", "/sbin/", "/lib"))


def _pointers(memory: TargetMemory, tid: int, at: int) -> list[int]:
    if at == 0:
        return []
    found: list[int] = []
    while len(found) <= _MAX_ARGS:
        # Up to the page's end: what lies beyond may not be mapped.
        count = min(_MAX_ARGS + 1 - len(found), max(1, (4096 - at % 4096) // 8))
        values = struct.unpack(f"={count}Q", memory.read(tid, at, count * 8))
        if 0 in values:
            return [*found, *values[: values.index(0)]]
        found += values
        at += count * 8
    return found


def _identity(path: str) -> tuple[int, int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino


def name_exists(tid: int, path: str) -> bool:
    """Say whether an absolute name exists inside; links in its folders are followed as the host would."""
    try:
        os.lstat(f"/proc/{tid}/root{path}")
    except (OSError, ValueError):
        return False
    return True


def claimed_path(memory: TargetMemory, tid: int, dirfd: int, path_at: int) -> str:
    """Read a path argument and make it absolute as it is named inside.

    Raises:
        Gone: The caller is gone.
        OSError: The address is bad.
    """
    return _absolute(memory.string(tid, path_at, 4096), tid, dirfd)


def _absolute(raw: bytes, tid: int, dirfd: int) -> str:
    path = os.fsdecode(raw)
    if path.startswith("/"):
        return path
    base = base_folder(tid, dirfd)
    return f"{base}/{path}" if path else base


def _path_and_pointers(memory: TargetMemory, tid: int, path_at: int, argv_at: int) -> tuple[bytes, list[int]]:
    """Read the name and the argument pointers with one call where neither crosses a page, as nearly always."""
    room = min(_MAX_ARGS + 1, (4096 - argv_at % 4096) // 8) * 8
    name_room = min(512, 4096 - path_at % 4096)
    if argv_at and room:
        both = memory.gather(tid, ((path_at, name_room), (argv_at, room)))
        end = both.find(0, 0, name_room)
        values = struct.unpack_from(f"={room // 8}Q", both, name_room)
        if end >= 0 and 0 in values:
            return bytes(both[:end]), list(values[: values.index(0)])
    return memory.string(tid, path_at, 4096), _pointers(memory, tid, argv_at)
