"""Reads what an exec names, and what really runs after it.

An exec cannot be mediated without a race: the kernel reads the name and the arguments again after we did. So the claim
is recorded before, the truth (`/proc/<pid>/exe` and `cmdline`) after, and where they differ the difference is the news.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from typing import Final

from jupyter_agentwatch.events import from_bytes
from jupyter_agentwatch.sandbox.notify import Gone, TargetMemory
from jupyter_agentwatch.sandbox.paths import AT_FDCWD, Root, base_folder

__all__ = [
    "Claim",
    "Program",
    "argument_texts",
    "claimed_exec",
    "claimed_path",
    "has_claimed_arguments",
    "is_immutable",
    "name_exists",
    "running_arguments",
    "running_name",
    "running_program",
    "words_before",
]

_MAX_ARGS: Final = 48
_MAX_ARG: Final = 1024
_MAX_SHEBANGS: Final = 4
_FIRST_LINE: Final = 256
"""Bytes of a script that the kernel reads to find its interpreter (BINPRM_BUF_SIZE)."""

_BLANKS: Final = re.compile(rb"[ \t]+")
_USUAL, _LARGE = 4096, 1 << 20
_SYSTEM: Final = re.compile(r"/(?:usr|s?bin|lib(?:32|64|x32)?)/")
_OWN: Final = re.compile(r"/(?:proc/(?:self|thread-self)|dev)/(exe|fd/[0-9]{1,9})")
"""Names that mean the caller's own program or descriptors, which nobody else can resolve."""


@dataclass(slots=True)
class Claim:
    """What an exec named, before the kernel read it again.

    Attributes:
        path: Absolute name inside, or "" for a descriptor without a name.
        name: The name as the kernel hands it to an interpreter, where it is a script's.
        args: Arguments, bounded in number and length.
        argv: The same as text.
        has_more: There are more arguments than were read.
        truncated: Arguments were left out or cut.
        before: What ran when the call was made, by name; the same later means that the exec failed.
        tgid: Process of the caller; 0 where the claim is made up.
        ppid: Parent of that process.
        seq: Its record, -1 while it has none.
        step: Step of the caller.
        made: Monotonic time of the call.
        due: Monotonic time after which it is looked up without waiting for a call.
        meant: Device and inode, where the name is one of the caller's own (/proc/self/exe, /dev/fd/3).
    """

    path: str
    name: bytes
    args: list[bytes]
    argv: list[str]
    has_more: bool
    truncated: bool
    before: str
    tgid: int = 0
    ppid: int = 0
    seq: int = -1
    step: int = 0
    made: float = 0.0
    due: float = 0.0
    meant: tuple[int, int] | None = None

    def line(self, before: bytes = b"") -> bytes | None:
        """Return the arguments as `running_arguments` gives them if the claim is true, None where they were cut.

        Args:
            before: What the kernel puts before a script's name, each word with a NUL behind it; empty for a program.
        """
        if self.truncated:
            return None
        if before:
            return before + b"\0".join((self.name, *self.args[1:], b""))
        return b"\0".join(self.args) + b"\0"  # without any argument Linux 5.18 and later give an empty one


def claimed_exec(memory: TargetMemory, tid: int, dirfd: int, path_at: int, argv_at: int) -> Claim:
    """Read the name and arguments of an exec.

    Raises:
        Gone: The caller is gone.
        OSError: An address is bad; the call itself will say so.
    """
    raw, pointers = _path_and_pointers(memory, tid, path_at, argv_at)
    path = _absolute(raw, tid, dirfd)
    args = memory.strings(tid, pointers[:_MAX_ARGS], _MAX_ARG) if pointers else []
    name = raw
    if dirfd != AT_FDCWD and raw[:1] != b"/":
        name = b"/dev/fd/%d/%s" % (dirfd, raw) if raw else b"/dev/fd/%d" % dirfd
    has_more = len(pointers) > _MAX_ARGS
    claim = Claim(
        path=path,
        name=name,
        args=args,
        argv=[from_bytes(arg) for arg in args],
        has_more=has_more,
        truncated=has_more or any(len(arg) >= _MAX_ARG for arg in args),
        before=running_name(tid),
    )
    own = _OWN.fullmatch(path)
    if own is not None:
        claim.meant = _identity(f"/proc/{tid}/{own[1]}")
    return claim


@dataclass(frozen=True, slots=True)
class Program:
    """What runs, as the kernel names it ("/usr/bin/dash", "/memfd:x (deleted)"), with its device and inode."""

    name: str
    identity: tuple[int, int]


def running_program(tid: int) -> Program:
    """Return what a process runs.

    Raises:
        Gone: The process is gone.
        PermissionError: We may not know.
    """
    name = running_name(tid)
    try:
        info = os.stat(f"/proc/{tid}/exe")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise Gone from error
    return Program(name, (info.st_dev, info.st_ino))


def running_name(tid: int) -> str:
    """Return what a process runs, by the kernel's name alone: half the cost.

    Raises:
        Gone: The process is gone.
        PermissionError: We may not know: it runs a file that its user may not read.
    """
    try:
        return os.readlink(f"/proc/{tid}/exe")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise Gone from error


def running_arguments(tid: int) -> bytes:
    """Return a process's arguments, each with a NUL behind it: what the exec gave it, until it writes over them.

    Empty while an exec is about to happen.

    Raises:
        Gone: The process is gone.
    """
    try:
        fd = os.open(f"/proc/{tid}/cmdline", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise Gone from error
    try:
        found = os.read(fd, _USUAL)
        if len(found) == _USUAL:
            while more := os.read(fd, _LARGE):  # the kernel bounds them at a few MiB
                found += more
    except ProcessLookupError as error:
        raise Gone from error
    finally:
        os.close(fd)
    return found


def argument_texts(line: bytes) -> tuple[list[str], bool]:
    """Return arguments as text, bounded like those of a claim, and whether any was left out or cut."""
    words = line.split(b"\0")[:-1]
    is_cut = len(words) > _MAX_ARGS or any(len(word) >= _MAX_ARG for word in words)
    return [from_bytes(word[:_MAX_ARG]) for word in words[:_MAX_ARGS]], is_cut


def words_before(root: Root, program: Program, claim: Claim) -> tuple[bytes, ...] | None:
    """Return the words that the kernel put before the claimed name; () where the program itself was claimed.

    A script's first line names its interpreter, which may be a script again. None where the running program is neither
    the claimed file nor such an interpreter.

    Raises:
        Gone: The process is gone.
    """
    if program.name == claim.path or program.identity == claim.meant:
        return ()
    path, words = claim.path, tuple[bytes, ...]()
    for _ in range(_MAX_SHEBANGS + 1):
        try:
            if root.identity(path) == program.identity:
                return words
        except OSError:
            return None
        interpreter = _interpreter(root.first_bytes(path, _FIRST_LINE))
        if not interpreter:
            return None
        words = (*interpreter, *words)
        path = os.fsdecode(interpreter[0])
        if not path.startswith("/"):  # as seen from the folder that the caller is still in
            path = f"{base_folder(claim.tgid, AT_FDCWD)}/{path}"
    return None


def _interpreter(start: bytes) -> tuple[bytes, ...]:
    """Read a script's first line as the kernel does: a name, and all that follows as one argument."""
    line, end, _ = start.partition(b"\n")
    if not line.startswith(b"#!"):
        return ()
    if not end:
        line = line[: _FIRST_LINE - 1]
    words = _BLANKS.split(line[2:].strip(b" \t"), maxsplit=1)
    return tuple(word.split(b"\0", 1)[0] for word in words if word)


def has_claimed_arguments(line: bytes, claim: Claim, before: tuple[bytes, ...]) -> bool:
    """Say whether a process was given the arguments of a claim.

    Args:
        line: What `running_arguments` returned.
        claim: The claim.
        before: What `words_before` returned.
    """
    if not claim.args and not before:
        return line in {b"", b"\0"}  # none, which Linux 5.18 and later turn into an empty one
    found = line.split(b"\0")[:-1]
    wanted = [*before, claim.name, *claim.args[1:]] if before else claim.args
    if len(found) <= len(wanted) if claim.has_more else len(found) != len(wanted):
        return False
    pairs = zip(found, wanted, strict=False)
    return all((got[:_MAX_ARG] if len(word) >= _MAX_ARG else got) == word for got, word in pairs)


def is_immutable(root: Root, path: str) -> bool:
    """Say whether a name lies in the system's folders, mounted read-only: it cannot come to mean another file.

    Only a name in normal form does: after ".." it may lie anywhere. A policy may grant a part of them writable.
    """
    if _SYSTEM.match(path) is None or os.path.normpath(path) != path:
        return False
    try:
        fd = root.open_path(path)
    except OSError:
        return False
    try:
        return os.fstatvfs(fd).f_flag & os.ST_RDONLY != 0
    finally:
        os.close(fd)


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
