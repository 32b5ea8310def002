"""The one place where events are made: stamps them, writes them to the log, counts them and passes them on.

A record is on disk before `record` returns, so whoever answers a call after that has logged it first. When the log
cannot be written, `record` raises, the caller denies, and the breaker trips; the number of lost records follows as a
`gap` as soon as the log can be written again.
"""

from __future__ import annotations

import errno
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn, Protocol

from jupyter_agentwatch.audit.log import AuditLog, LogWriteError
from jupyter_agentwatch.events import (
    BreakerChanged,
    Control,
    Event,
    Finding,
    Gap,
    LimitHit,
    Session,
    from_path,
    printable,
)

__all__ = ["Examiner", "Recorder", "open_log"]

_ALWAYS: Final = frozenset({BreakerChanged, Control, Finding, Session})
"""What a log of full size still takes: a suspended sandbox causes none of these, so they are few."""

_SYNCED: Final = frozenset({"high", "critical"})
"""Findings that are forced to the disk at once; lesser ones go with the next that is."""

_LATEST: Final = 20
_LONGEST_TOLD: Final = 400


def open_log(path: Any, **fields: Any) -> AuditLog:
    """Create the log with its `session` record; `fields` are those of `events.Session` but for the stamps."""
    stamps: dict[str, Any] = {"seq": 0, "t_mono_ns": time.monotonic_ns(), "t_wall_ns": time.time_ns()}
    return AuditLog.create(path, Session(op="open", verdict="allow", basis="verified", **stamps, **fields))


class Examiner(Protocol):
    """Looks at each record when it is in the log, before whoever recorded it goes on; under the recorder's lock."""

    def examine(self, event: Event) -> Sequence[tuple[type[Event], dict[str, Any]]]:
        """Return what is to be recorded on account of a record that is no finding: kind and fields."""

    def weigh(self, event: Event) -> bool:
        """Take a finding or a reached limit into account; return whether the watch is stopped for it."""


class Recorder:
    """Makes events. Thread-safe: the notification thread and the control thread both record.

    Args:
        log: Opened log.
        watch: Id of the watch.
        on_failure: Called once, from the recording thread, when the log cannot be written; again after `rearm`, or
            after a record that could be written.
        max_bytes: Size of the log, bytes, from which on only what ends the watch or a person does is recorded.
    """

    def __init__(self, log: AuditLog, watch: str, on_failure: Callable[[str], None], *, max_bytes: int) -> None:
        self._log = log
        self._watch = watch
        self._lock = threading.Lock()
        self._on_failure = on_failure
        self._lost = 0
        self._failing = False
        self._max_bytes = self._allowed = max_bytes
        self._warn_at = max_bytes - max_bytes // 10
        self._cells: dict[int, str] = {}
        self._counts: Counter[tuple[type[Event], str]] = Counter()
        self._examiner: Examiner | None = None
        self._unexamined: list[Event] | None = None
        self.findings: list[str] = []
        """The latest few, as "severity: title (rule)", the newest last; a title can hold what an agent chose."""
        self.listener: Callable[[bytes], None] | None = None
        """Gets every event's JSON after it is in the log, in order, under the lock: it must only queue."""

    @property
    def head(self) -> str:
        """Hash of the last record."""
        return self._log.head

    @property
    def lost(self) -> int:
        """Records that could not be written and are not yet on record as a gap."""
        return self._lost

    def rearm(self) -> None:
        """Tell of the next failure again: somebody let the watch go on, perhaps before there was room.

        A log of full size may grow by a tenth of its bound.
        """
        self._failing = False
        if self._log.size >= self._allowed:
            self._allowed = self._log.size + self._max_bytes // 10

    def expect_examiner(self) -> None:
        """Keep what is recorded until there is an examiner; soon, as it is kept in memory."""
        self._unexamined = []

    def examine_with(self, examiner: Examiner) -> None:
        """Show an examiner what was kept, and from now on every record.

        Raises:
            LogWriteError: What it found cannot be written.
        """
        with self._lock:
            self._examiner = examiner
            kept, self._unexamined = self._unexamined or [], None
            for event in kept:
                self._examine(event)

    def step_belongs_to(self, step: int, cell: str) -> None:
        """Make every record of a step bear the cell that started it."""
        self._cells[step] = cell

    def record(
        self,
        kind: type[Event],
        *,
        verdict: str = "allow",
        basis: str = "verified",
        step: int = 0,
        sync: bool = False,
        **fields: Any,
    ) -> int:
        """Write one event and return its sequence number.

        Args:
            kind: Event class.
            verdict: What is answered.
            basis: How far the record can be believed.
            step: Step that caused it, 0 for none.
            sync: Force it to the disk (findings, kills, closes).
            **fields: Fields of `kind`.

        Raises:
            LogWriteError: The log cannot be written; the call that this is about must be denied.
        """
        with self._lock:
            if self._log.size >= self._warn_at:
                self._warn()
            if self._log.size >= self._allowed and kind not in _ALWAYS and fields.get("op") != "end":
                self._refuse()
            if self._lost:
                gap = {"lost": self._lost, "reason": "the audit log could not be written"}
                self._append(Gap, "deny", {"basis": "verified", **gap}, sync=False)
                self._lost = 0
            fields["basis"] = basis
            if step:
                fields["step"] = step
                fields["cell"] = self._cells.get(step, "")
            return self._append(kind, verdict, fields, sync=sync)

    def _append(self, kind: type[Event], verdict: str, fields: dict[str, Any], *, sync: bool) -> int:
        log = self._log
        seq, mono, wall = log.next_seq, time.monotonic_ns(), time.time_ns()
        event = kind(seq=seq, t_mono_ns=mono, t_wall_ns=wall, watch=self._watch, verdict=verdict, **fields)  # type: ignore[arg-type]
        try:
            body = log.append(event)
        except LogWriteError as error:
            self._lost += log.next_seq == seq
            self._tell(error)
            raise
        self._counts[kind, verdict] += 1
        if isinstance(event, Finding):
            told = f"{event.severity}: {event.title} ({event.rule})"
            self.findings = [*self.findings[1 - _LATEST :], told[:_LONGEST_TOLD]]
        if self.listener is not None:
            self.listener(body)
        # First stop what has to be stopped: a disk takes longer than everything else. Whoever stops it syncs the log.
        if not self._examine(event) and sync:
            self._sync()
        self._failing = False
        return seq

    def _examine(self, event: Event) -> bool:
        """Have a record looked at, and record what was found; return whether the watch is stopped for it."""
        if self._examiner is None:
            if self._unexamined is not None:
                self._unexamined.append(event)
            return False
        if isinstance(event, Finding | LimitHit) and self._examiner.weigh(event):
            return True
        if isinstance(event, Finding):  # what is found of findings would never end
            return False
        for kind, fields in self._examiner.examine(event):
            step = int(fields.get("step", 0))
            more = {"basis": event.basis, "cell": self._cells.get(step, "") if step else "", **fields}
            self._append(kind, event.verdict, more, sync=fields.get("severity") in _SYNCED)
        return False

    def _sync(self) -> None:
        try:
            self._log.sync()
        except LogWriteError as error:
            self._tell(error)
            raise

    def _tell(self, error: LogWriteError) -> None:
        if not self._failing:
            self._failing = True
            self._on_failure(str(error))

    def _refuse(self) -> NoReturn:
        self._lost += 1
        path = printable(from_path(str(self._log.path)), 4096)
        msg = f"audit log {path} has reached audit.max_bytes ({self._max_bytes}); a resume lets it grow by a tenth"
        error = LogWriteError(msg, errno.EDQUOT)
        self._tell(error)
        raise error

    def _warn(self) -> None:
        """Say once, on record, that little room is left."""
        self._warn_at = sys.maxsize
        size, bound = float(self._log.size), float(self._max_bytes)
        fields = {"basis": "verified", "limit": "audit.max_bytes", "value": size, "maximum": bound, "action": "warn"}
        self._append(LimitHit, "allow", fields, sync=False)

    def counts(self) -> dict[str, int]:
        """Return how many records there are of each kind and verdict ("connect:deny")."""
        return {
            f"{kind.__struct_config__.tag}:{verdict}": count for (kind, verdict), count in self._counts.copy().items()
        }

    def sync(self) -> None:
        """Force all records to the disk."""
        with self._lock:
            self._log.sync()

    def close(self) -> None:
        """Close the log; nothing can be recorded afterwards."""
        with self._lock:
            self._log.close()
