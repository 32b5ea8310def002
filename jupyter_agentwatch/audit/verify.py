"""Says whether a log is whole, and if not, which record is the first bad one and what was done to it.

It trusts nothing in the file, needs bounded memory for a log of any size, and never repairs anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from jupyter_agentwatch.audit.chain import (
    FORMAT,
    GENESIS,
    MAX_LINE,
    Anchor,
    Sealed,
    declared_format,
    digest,
    is_sealed,
    looks_ours,
    open_line,
)
from jupyter_agentwatch.audit.reader import open_log, read_anchor, read_header, read_line, shown
from jupyter_agentwatch.errors import LogError
from jupyter_agentwatch.events import AnyEvent, Session, decode_event, printable

__all__ = ["BadRecord", "Problem", "Verification", "verify_log"]

Problem = Literal["edited", "removed", "reordered", "truncated", "not-ours", "partial-line", "version"]
"""What is wrong at the first bad record.

`edited`: its bytes do not fit its hash, or the log does not fit a hash kept in the anchor; `removed`: the record that
belongs here is missing; `reordered`: it stands further down, or a former one stands here again; `truncated`: the log
ends before a record that is known to have been there; `not-ours`: a record of another watch or after the session's
close; `partial-line`: the log ends inside it; `version`: its hash fits, but this version does not know such a record.
"""

_HEAD: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class BadRecord:
    """The first bad record.

    Attributes:
        seq: The number of the record that should stand there; the first missing one where some were removed.
        line: Its line in the file, from 1.
        reason: What is wrong with it, for people.
    """

    seq: int
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify_log` found.

    Attributes:
        ok: Nothing is known to be wrong. A log without a close record is ok only if an anchor or a given head agrees.
        records: Good records from the start of the log.
        head: Hash of the last good record, 64 hexadecimal digits.
        closed: The last good record is the session's close record.
        anchored: `seq` that the anchor vouches for; -1 where there was none or it was not asked.
        first_bad: The first bad record, or None.
        problem: What is wrong there, or None.
        message: All of this in a sentence or two, safe to show.
    """

    ok: bool
    records: int
    head: str
    closed: bool
    anchored: int
    first_bad: BadRecord | None
    problem: Problem | None
    message: str


def verify_log(path: str | Path, *, head: str | None = None, anchor: bool = True) -> Verification:
    """Check a log from its first byte to its last.

    Args:
        path: The log.
        head: A hash that is known to belong to the log, such as the one in the notebook's output; 64 hexadecimal
            digits. A log that does not contain it was cut off or rewritten.
        anchor: Compare with the side file, where there is one.

    Raises:
        LogError: The file cannot be read, is not one of our logs or has an unknown format, its anchor is not ours, or
            `head` is not a hash. Damage inside a log of ours is a result, not an error.
    """
    path = Path(path)
    wanted = _parsed_head(head)
    # Before the log: a watch that still runs moves the anchor on, and the records that we read must be newer.
    known = read_anchor(path) if anchor else None
    walk = _Walk(known, wanted)
    with open_log(path) as file:
        lines = iter(lambda: read_line(file, path), b"")
        fault = _walk_lines(walk, lines, path) or walk.end()
    return _result(walk, fault, path)


class _Fault(Exception):  # noqa: N818 -- never leaves this module
    """The record at hand is bad."""

    def __init__(self, problem: Problem, reason: str) -> None:
        super().__init__(reason)
        self.problem = problem
        self.reason = reason


class _Displaced(_Fault):
    """The record is good in itself but not the one that belongs here; the rest of the log tells why."""


class _Walk:
    """What is known after the good records so far."""

    def __init__(self, anchor: Anchor | None, wanted: bytes | None) -> None:
        self.anchor = anchor
        self.wanted = wanted
        self.wanted_found = False
        self.records = 0
        self.head = GENESIS
        self.watch = ""
        self.closed = False

    def take(self, line: bytes) -> None:
        """Count one line as the next good record.

        Raises:
            _Fault: It is not.
        """
        sealed, event = _opened(line)
        if self.records and event.watch != self.watch:
            raise _Fault("not-ours", f"it belongs to watch {printable(event.watch)}, not to {printable(self.watch)}")
        if sealed.prev != self.head or event.seq != self.records:
            raise self._displaced(event)
        self._check_session(event)
        self._check_anchor(sealed)
        self.records += 1
        self.head = sealed.hash
        self.closed = isinstance(event, Session) and event.op == "close"
        self.wanted_found = self.wanted_found or sealed.hash == self.wanted

    def end(self) -> _Fault | None:
        """Return what is wrong with the log ending here, if anything."""
        if self.anchor is not None and self.anchor.seq >= self.records:
            return _Fault("truncated", f"the log ends, but the anchor knows records up to {self.anchor.seq}")
        if self.wanted is not None and not self.wanted_found:
            reason = "no record has the given head: the log was cut off or rewritten, or the head is another log's"
            return _Fault("truncated", reason)
        if self.closed or self.anchor is not None or self.wanted is not None:
            return None
        reason = "open or cut off: there is no close record, and neither an anchor nor a head to compare with"
        return _Fault("truncated", reason)

    def _displaced(self, event: AnyEvent) -> _Fault:
        if event.seq > self.records:
            return _Displaced("removed", f"record {self.records} is missing: record {event.seq} stands in its place")
        if event.seq < self.records:
            reason = f"record {event.seq} stands again, or late, where record {self.records} belongs"
            return _Fault("reordered", reason)
        return _Fault("edited", "it is whole, but does not follow from the record before it: one of both was replaced")

    def _check_session(self, event: AnyEvent) -> None:
        if self.records == 0:
            self.watch = event.watch
        elif self.closed:
            raise _Fault("not-ours", "it stands after the session's close record")
        elif isinstance(event, Session) and event.op == "open":
            raise _Fault("not-ours", "it opens a session a second time")

    def _check_anchor(self, sealed: Sealed) -> None:
        anchor = self.anchor
        if anchor is not None and anchor.seq == self.records and anchor.hash.encode() != sealed.hash:
            raise _Fault("edited", "its hash is not the one in the anchor: the log was rewritten up to here")


def _opened(line: bytes) -> tuple[Sealed, AnyEvent]:
    """Take a line apart and hold it against its own hash."""
    if len(line) > MAX_LINE:
        raise _Fault("edited", f"its line is longer than {MAX_LINE} bytes")
    if not line.endswith(b"\n"):
        raise _Fault("partial-line", "the log ends inside it")
    if not is_sealed(line):
        raise _Fault("edited", "its line does not end with the chain's members")
    sealed = open_line(line)
    if digest(sealed.prev, sealed.body) != sealed.hash:
        raise _Fault("edited", "its bytes do not fit its hash")
    try:
        return sealed, decode_event(sealed.body)
    except (ValueError, RecursionError) as error:
        raise _Fault("version", f"this version does not know such a record: {printable(str(error))}") from error


def _walk_lines(walk: _Walk, lines: Iterator[bytes], path: Path) -> _Fault | None:
    first = next(lines, b"")
    _refuse_foreign(first, path)
    line = first
    while line:
        try:
            walk.take(line)
        except _Displaced as fault:
            # The true successor names our head as its predecessor: no JSON has to be read to find it.
            if any(is_sealed(later) and open_line(later).prev == walk.head for later in lines):
                return _Fault("reordered", f"record {walk.records} stands further down")
            return fault
        except _Fault as fault:
            return fault
        line = next(lines, b"")
    return None


def _refuse_foreign(line: bytes, path: Path) -> None:
    """Raise LogError unless the first line is a record of ours, perhaps a damaged or displaced one."""
    try:
        _, event = _opened(line)
    except _Fault as fault:
        damaged = looks_ours(line) and len(line) <= MAX_LINE and fault.problem != "version"
        if damaged and (is_sealed(line) or declared_format(line) in {None, FORMAT}):
            return
    else:
        if event.seq > 0:
            return
    read_header(line, path)


def _parsed_head(head: str | None) -> bytes | None:
    if head is None:
        return None
    text = head.strip().lower()
    if not _HEAD.fullmatch(text):
        msg = f"head: {printable(head, 80)} is not a hash; give all 64 hexadecimal digits"
        raise LogError(msg)
    return text.encode()


def _result(walk: _Walk, fault: _Fault | None, path: Path) -> Verification:
    bad = None if fault is None else BadRecord(walk.records, walk.records + 1, fault.reason)
    text = _praise(walk) if fault is None else _blame(walk, fault)
    return Verification(
        ok=fault is None,
        records=walk.records,
        head=walk.head.decode(),
        closed=walk.closed,
        anchored=-1 if walk.anchor is None else walk.anchor.seq,
        first_bad=bad,
        problem=None if fault is None else fault.problem,
        message=f"{shown(path)}: {text}",
    )


def _praise(walk: _Walk) -> str:
    text = f"{walk.records} records, none edited, removed or displaced; head {walk.head.decode()}"
    if walk.closed:
        return f"{text}; closed"
    since = "" if walk.anchor is None else f" after record {walk.anchor.seq}, the last that the anchor vouches for,"
    return f"{text}; no close record: the watch still runs, or what came{since} could have been cut off without a trace"


def _blame(walk: _Walk, fault: _Fault) -> str:
    where = f"record {walk.records} (line {walk.records + 1})"
    return f"{fault.problem} at {where}: {fault.reason}; {walk.records} good records stand before it"
