"""The end of an audit log, for a page that begins to look at a run later than it began; reads a bounded part of it."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import msgspec

from jupyter_agentwatch.audit.chain import open_line
from jupyter_agentwatch.audit.reader import open_log, read_header, read_line, shown
from jupyter_agentwatch.errors import LogError
from jupyter_agentwatch.server.render import beginnings, event_messages, position

__all__ = ["MOST_BYTES", "MOST_RECORDS", "recent_events"]

MOST_BYTES: Final = 8 * 1024 * 1024
"""Bytes read from the end of a log, however long it is."""

MOST_RECORDS: Final = 5000
"""Records in one answer."""


def recent_events(
    log: Path, after: int, most: int = MOST_RECORDS, *, kinds: Collection[str] | None = None
) -> list[Any]:
    """Return the newest records of a log as JSON that is safe to show, oldest first.

    Args:
        log: The audit log, which may still grow.
        after: Only records with a greater `seq`.
        most: Records returned at most, and never more than `MOST_RECORDS`.
        kinds: Only records of these kinds; None: all.

    Raises:
        LogError: The log cannot be opened, or is not ours.
        ControlError: A line is not a record.
    """
    begin = beginnings(kinds)
    bodies = [body for body in _bodies(log) if body.startswith(begin) and position(body) > after]
    kept = bodies[max(0, len(bodies) - min(max(0, most), MOST_RECORDS)) :]
    messages, _ = event_messages(kept, None)
    return [event for message in messages for event in msgspec.json.decode(message).get("events", ())]


def _bodies(log: Path) -> list[bytes]:
    with open_log(log) as file:
        read_header(read_line(file, log), log)
        size = os.fstat(file.fileno()).st_size
        start = max(0, size - MOST_BYTES)
        file.seek(start)
        lines = file.read(size - start).split(b"\n")
    whole = lines[1 if start else 0 : -1]  # a piece of a line at either end is no record
    try:
        return [open_line(line + b"\n").body for line in whole]
    except ValueError as error:
        msg = f"{shown(log)}: a line is not a record: {error}; verify the log"
        raise LogError(msg) from error
