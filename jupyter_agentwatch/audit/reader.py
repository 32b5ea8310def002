"""Reading logs: whole, as they grow, and as a list of what lies in a folder.

Readers take only complete lines of the known form and refuse the rest with its line number; they do not check
the hash chain, which is `verify`'s work, and never write.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final, get_args

from jupyter_agentwatch.audit.chain import (
    FORMAT,
    MAX_LINE,
    Anchor,
    declared_format,
    decode_anchor,
    looks_ours,
    open_line,
)
from jupyter_agentwatch.audit.log import anchor_path
from jupyter_agentwatch.errors import LogError
from jupyter_agentwatch.events import AnyEvent, Session, decode_event, from_bytes, printable

__all__ = [
    "KINDS",
    "LogInfo",
    "LogTail",
    "check_among",
    "decode_line",
    "kind_of",
    "list_logs",
    "open_log",
    "read_anchor",
    "read_events",
    "read_header",
    "read_last",
    "read_line",
    "shown",
]

_BUFFER: Final = 256 * 1024
_MAX_ANCHOR: Final = 4096

KINDS: Final = frozenset(str(kind.__struct_config__.tag) for kind in get_args(AnyEvent))
"""Every kind of event, as it stands in the log."""


@dataclass(frozen=True, slots=True)
class LogInfo:
    """What the first and the last line of a log say.

    Attributes:
        path: Where the log lies.
        watch: Id of the watch; "" where the first line cannot be read.
        opened_wall_ns: Unix time of the first record in nanoseconds.
        workspace: The watch's workspace; hostile text.
        rung: Rung of the isolation ladder.
        closed: The last record is the session's close record.
        records: Number of records, by the last complete line's `seq`.
        size_bytes: Size of the file.
        problem: Why the log could not be read, or "".
    """

    path: Path
    watch: str = ""
    opened_wall_ns: int = 0
    workspace: str = ""
    rung: str = ""
    closed: bool = False
    records: int = 0
    size_bytes: int = 0
    problem: str = ""


class LogTail:
    """Reads what a log has gained since the last call; holds no file open in between.

    A line that is still being written is left for the next call.
    """

    def __init__(self, path: str | Path) -> None:
        """Begin at the start of the log at `path`, which may not have its first record yet."""
        self.path = Path(path)
        self._offset = 0
        self._lines = 0
        self._inode: tuple[int, int] | None = None

    def read_lines(self, limit: int | None = None) -> list[bytes]:
        """Return the new complete lines as they stand in the file, each with its newline.

        Args:
            limit: Most lines to return; None for all.

        Raises:
            LogError: The file is missing, was replaced or shortened, is not ours, or holds a line that is too long.
        """
        with open_log(self.path) as file:
            self._check_file(file)
            file.seek(self._offset)
            found: list[bytes] = []
            while limit is None or len(found) < limit:
                line = read_line(file, self.path)
                if not line.endswith(b"\n"):
                    _check_length(line, self.path, f"line {self._lines + len(found) + 1}")
                    break
                if self._lines + len(found) == 0:
                    read_header(line, self.path)
                found.append(line)
        self._lines += len(found)
        self._offset += sum(map(len, found))
        return found

    def read_new(self, limit: int | None = None) -> list[AnyEvent]:
        """Return the events of the new complete lines, in the order of the log.

        Events before a line that cannot be read are returned first; the next call raises.

        Args:
            limit: Most events to return; None for all.

        Raises:
            LogError: As `read_lines`, or the next line is not a record of this version.
        """
        before = self._lines
        lines = self.read_lines(limit)
        found: list[AnyEvent] = []
        for number, line in enumerate(lines, before + 1):
            try:
                found.append(decode_line(line, self.path, f"line {number}"))
            except LogError:
                rest = lines[len(found) :]
                self._lines -= len(rest)
                self._offset -= sum(map(len, rest))
                if not found:
                    raise
                break
        return found

    def _check_file(self, file: BinaryIO) -> None:
        info = os.fstat(file.fileno())
        inode = (info.st_dev, info.st_ino)
        if self._inode not in {None, inode} or info.st_size < self._offset:
            msg = f"{shown(self.path)}: the log was replaced or shortened while it was read; verify it"
            raise LogError(msg)
        self._inode = inode


def read_events(
    path: str | Path,
    *,
    kinds: Collection[str] | None = None,
    step: int | None = None,
    after_seq: int = -1,
) -> Iterator[AnyEvent]:
    """Iterate over a log's events in their order, in bounded memory; stops before a line that is incomplete.

    Args:
        path: The log.
        kinds: Only these kinds ("exec", "connect", …); empty means none, None means all.
        step: Only events of this step; 0 for those that no command caused.
        after_seq: Only events with a greater `seq`.

    Raises:
        ValueError: An unknown kind.
        LogError: The log cannot be opened, is not ours, or (while iterating) a line is not a record.
    """
    wanted = check_among("kinds", kinds, KINDS)
    path = Path(path)
    with open_log(path) as file:
        read_header(read_line(file, path), path)
    return _iterate(path, wanted, step, after_seq)


def list_logs(folder: str | Path) -> list[LogInfo]:
    """List the logs in a folder by their opening time, reading only first and last lines.

    Other files are passed over; a log of ours that is damaged is listed with its `problem`.

    Raises:
        LogError: The folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            paths = [Path(entry.path) for entry in entries if entry.is_file()]
    except OSError as error:
        msg = f"{shown(Path(folder))}: cannot list the logs: {error.strerror}"
        raise LogError(msg) from error
    names = {path.name for path in paths}
    found = (_describe(path, has_anchor=anchor_path(path).name in names) for path in paths)
    return sorted((info for info in found if info is not None), key=lambda info: (info.opened_wall_ns, info.path))


def open_log(path: Path) -> BinaryIO:
    """Open a regular file for reading; a named pipe or a folder is refused, and never waited for.

    Raises:
        LogError: It cannot be opened, or is no regular file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        msg = f"{shown(path)}: cannot open the log: {reason}"
        raise LogError(msg) from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        msg = f"{shown(path)}: not an audit log: it is {what}"
        raise LogError(msg)
    return os.fdopen(fd, "rb", buffering=_BUFFER)


def read_header(line: bytes, path: Path) -> Session:
    """Return the session-open record that a log's first line holds.

    Args:
        line: The first line as far as it was read.
        path: Named in errors.

    Raises:
        LogError: The file is empty, is not ours, or has a format that this version does not read.
    """
    if not looks_ours(line):
        reason = "it is empty" if not line else "its first line is no session-open record"
        msg = f"{shown(path)}: not an audit log: {reason}"
        raise LogError(msg)
    declared = declared_format(line)
    if declared not in {None, FORMAT}:
        msg = f"{shown(path)}: the log declares format {declared or 'none'}; this version reads format {FORMAT}"
        raise LogError(msg)
    first = decode_line(line, path, "line 1")
    if not isinstance(first, Session) or (first.op, first.format, first.seq) != ("open", FORMAT, 0):
        msg = f"{shown(path)}: not an audit log: its first line is no session-open record of format {FORMAT}"
        raise LogError(msg)
    return first


def read_last(path: str | Path) -> AnyEvent:
    """Return the last complete record of a log, however long the log is: only its two ends are read.

    Raises:
        LogError: The log cannot be opened, is not ours, or its last complete line is not a record.
    """
    path = Path(path)
    with open_log(path) as file:
        read_header(read_line(file, path), path)
        return decode_line(_last_line(file, os.fstat(file.fileno()).st_size), path, "the last complete line")


def read_anchor(log: Path) -> Anchor | None:
    """Return the anchor beside a log; None where there is none (an empty file, as a power cut leaves, counts as none).

    Raises:
        LogError: There is one that cannot be read or is not ours.
    """
    path = anchor_path(log)
    if not os.path.lexists(path):
        return None
    with open_log(path) as file:
        data = file.read(_MAX_ANCHOR + 1)
    if not data:
        return None
    try:
        return decode_anchor(data)
    except ValueError as error:
        msg = f"{shown(path)}: not an anchor of ours ({printable(str(error))}); verify the log without it"
        raise LogError(msg) from error


def read_line(file: BinaryIO, path: Path) -> bytes:
    """Return the next line, or b"" at the end.

    A line without its newline is incomplete (the end of the file) or, where it is longer than `MAX_LINE`, cut here.

    Raises:
        LogError: The file cannot be read.
    """
    try:
        line = file.readline(MAX_LINE + 1)
        if line and not line.endswith(b"\n"):
            # A live log: the size grows page by page while the writer's one call is under way.
            line += file.readline(MAX_LINE + 1 - len(line))
    except OSError as error:
        msg = f"{shown(path)}: cannot read the log: {error.strerror}"
        raise LogError(msg) from error
    return line


def decode_line(line: bytes, path: Path, where: str) -> AnyEvent:
    """Return the event of a line.

    Args:
        line: One line with its newline.
        path: The log, for errors.
        where: Which line, for errors, such as "line 7".

    Raises:
        LogError: The line is too long, incomplete, or not a record of this version.
    """
    _check_length(line, path, where)
    try:
        return decode_event(open_line(line).body)
    except (ValueError, RecursionError) as error:
        msg = f"{shown(path)}: {where} is not a record: {printable(str(error))}; verify the log"
        raise LogError(msg) from error


def kind_of(event: AnyEvent) -> str:
    """Return the kind of an event as it stands in the log, such as "exec"."""
    return str(event.__struct_config__.tag)


def check_among(name: str, given: Collection[str] | None, known: Collection[str]) -> frozenset[str] | None:
    """Return the words of a filter as a set; None stays None.

    Args:
        name: The parameter, for errors.
        given: What the caller asked for.
        known: Every word there is.

    Raises:
        ValueError: A word is unknown, or a single text was given instead of a collection.
    """
    if given is None:
        return None
    unknown = [given] if isinstance(given, str) else sorted({*given}.difference(known))
    if unknown:
        msg = f"{name}: {unknown[0]!r} does not fit; give a collection of: {', '.join(sorted(known))}"
        raise ValueError(msg)
    return frozenset(given)


def shown(path: Path) -> str:
    """Return a path as text that is safe to show."""
    return printable(from_bytes(os.fsencode(path)))


def _iterate(path: Path, kinds: frozenset[str] | None, step: int | None, after_seq: int) -> Iterator[AnyEvent]:
    with open_log(path) as file:
        number = 0
        while True:
            number += 1
            line = read_line(file, path)
            if len(line) <= MAX_LINE and not line.endswith(b"\n"):
                return
            event = decode_line(line, path, f"line {number}")
            if (
                event.seq > after_seq
                and (step is None or event.step == step)
                and (kinds is None or kind_of(event) in kinds)
            ):
                yield event


def _check_length(line: bytes, path: Path, where: str) -> None:
    if len(line) > MAX_LINE:
        msg = f"{shown(path)}: {where} is longer than {MAX_LINE} bytes: not a record of ours"
        raise LogError(msg)


def _describe(path: Path, *, has_anchor: bool) -> LogInfo | None:
    try:
        with open_log(path) as file:
            first = read_line(file, path)
            if not (has_anchor or looks_ours(first)):
                return None
            return _summary(file, first, path)
    except LogError as error:
        return LogInfo(path=path, problem=str(error)) if has_anchor else None


def _summary(file: BinaryIO, first: bytes, path: Path) -> LogInfo:
    size = os.fstat(file.fileno()).st_size
    try:
        header = read_header(first, path)
    except LogError as error:
        return LogInfo(path=path, size_bytes=size, problem=str(error))
    info = LogInfo(
        path=path,
        watch=header.watch,
        opened_wall_ns=header.t_wall_ns,
        workspace=header.workspace,
        rung=header.rung,
        records=1,
        size_bytes=size,
    )
    try:
        last = decode_line(_last_line(file, size), path, "the last complete line")
    except LogError as error:
        return replace(info, problem=str(error))
    return replace(info, records=last.seq + 1, closed=isinstance(last, Session) and last.op == "close")


def _last_line(file: BinaryIO, size: int) -> bytes:
    """Return the last complete line, or what stands there when that is longer than `MAX_LINE`."""
    span = 8192
    while True:
        start = max(0, size - span)
        file.seek(start)
        data = file.read(size - start)
        end = data.rfind(b"\n") + 1
        begin = data.rfind(b"\n", 0, max(0, end - 1)) + 1
        if begin or not start or span > 2 * MAX_LINE:
            return data[begin:end]
        span *= 8
