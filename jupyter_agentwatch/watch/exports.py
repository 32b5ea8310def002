"""A log in the forms that other systems read, line by line."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, get_args

import msgspec

from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.watch.ocsf import to_ocsf
from jupyter_agentwatch.watch.otel import otlp_lines

__all__ = ["ExportForm", "export_lines", "write_whole"]

ExportForm = Literal["ocsf", "otel"]
"""ocsf: the Open Cybersecurity Schema Framework; otel: OpenTelemetry's OTLP."""


def export_lines(log: Path, form: ExportForm) -> Iterator[bytes]:
    """Return the lines of a log in another form, each with its line feed.

    Args:
        log: Path of the audit log.
        form: Which.

    Raises:
        LogError: The log cannot be read; also while iterating.
        ValueError: There is no such form.
    """
    if form not in get_args(ExportForm):
        msg = f"form: {form!r} is none; known: {', '.join(get_args(ExportForm))}"
        raise ValueError(msg)
    events = read_events(log)
    lines = map(msgspec.json.encode, to_ocsf(events)) if form == "ocsf" else otlp_lines(events)
    return (line + b"\n" for line in lines)


def write_whole(path: Path, pieces: Iterable[bytes]) -> Path:
    """Write a file in one move, readable by its owner alone: whoever looks finds the former one or all of this.

    Args:
        path: The file; one that is there is replaced.
        pieces: What it is to hold.

    Raises:
        OSError: It cannot be written.
    """
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(pieces)
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    return path
