"""Statuses, kills and records as JSON for a browser; every text that came out of a sandbox is made safe here.

Pure: what is not passed in is not known, and nothing is ever HTML.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from jupyter_agentwatch.errors import ControlError
from jupyter_agentwatch.events import printable
from jupyter_agentwatch.wire.messages import Killed, WatchStatus

__all__ = [
    "LONGEST_TEXT",
    "beginnings",
    "encode",
    "ended_json",
    "event_messages",
    "kill_command",
    "kill_json",
    "position",
    "safe",
    "status_json",
]

LONGEST_TEXT = 1000
"""Characters kept of any one text; what is cut off is counted in it."""

_MARKS = (b"\\", b"\x7f")  # an escape may hide anything, and DEL is the one control that JSON lets pass as it is

encode = msgspec.json.Encoder().encode
"""Encode what this module made, as compact UTF-8."""


class _Place(msgspec.Struct):
    seq: int


_PLACE: msgspec.json.Decoder[_Place] = msgspec.json.Decoder(_Place)
_NO_RECORD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


def safe(value: Any) -> Any:
    """Return plain data with every text in it, keys included, made safe to show and cut to `LONGEST_TEXT`."""
    if isinstance(value, str):
        return printable(value, LONGEST_TEXT)
    if isinstance(value, dict):
        return {printable(str(key), LONGEST_TEXT): safe(each) for key, each in value.items()}
    if isinstance(value, list):
        return [safe(each) for each in value]
    return value


def status_json(status: WatchStatus, kernel: str = "") -> dict[str, Any]:
    """Return a live watch as a browser gets it: the fields of `WatchStatus`, but `asks` as a list.

    Args:
        status: What its supervisor said.
        kernel: Id of the kernel that owns the watch; "" where it is none of this server's.
    """
    fields = {name: getattr(status, name) for name in status.__struct_fields__ if name not in {"id", "asks"}}
    asks = [{"ask": ask, "text": text} for ask, text in sorted(status.asks.items())]
    shown: dict[str, Any] = safe({**fields, "asks": asks, "kernel": kernel})
    return shown


def ended_json(watch: str, ended: Killed) -> dict[str, Any]:
    """Return a watch that has ended as a browser gets it; `survivors` null: nobody had counted."""
    survivors = ended.survivors if ended.survivors >= 0 else None
    return {"watch": watch, "state": "ended", "killed": ended.killed, "survivors": survivors, "note": safe(ended.note)}


def kill_command(watch: str) -> str:
    """Return what a person types to kill a watch without this server; "" as id means all watches."""
    return f"jupyter agentwatch kill {watch or '--all'}"


def kill_json(watch: str, result: Killed | str) -> dict[str, Any]:
    """Return what became of a kill.

    Args:
        watch: Id of the watch.
        result: What was counted, or why nothing was killed.

    Returns:
        `final` is True only where nothing of the watch goes on: then `killed` processes ended and `survivors` were
        left, in `ms` milliseconds (`survivors` null: it had ended, and nobody had counted). Else `command` kills from a
        shell, and `message` says why that is needed.
    """
    if isinstance(result, str):
        return {"watch": watch, "final": False, "message": safe(result), "command": kill_command(watch), "via": "http"}
    counted = result.survivors >= 0
    final = result.survivors <= 0
    found = {
        "watch": watch,
        "final": final,
        "killed": result.killed,
        "survivors": result.survivors if counted else None,
        "ms": round(result.latency_ms, 3),
        "via": "http",
        "note": safe(result.note),
        "head": safe(result.head),
    }
    left = {"message": f"{result.survivors} processes are left", "command": kill_command(watch)}
    return found if final else {**found, **left}


def beginnings(kinds: Collection[str] | None) -> bytes | tuple[bytes, ...]:
    """Return what the records of some kinds begin with, None for all, as `bytes.startswith` takes it."""
    return b"" if kinds is None else tuple(b'{"kind":"%s"' % kind.encode() for kind in kinds)


def event_messages(bodies: Sequence[bytes], last: int | None, *, some: bool = False) -> tuple[list[bytes], int | None]:
    """Turn records into messages for a browser: runs of events, and a `gap` wherever records are missing in between.

    Args:
        bodies: Records as JSON, in their order.
        last: `seq` of the record before them, or None.
        some: Only some kinds of records are wanted: what is missing in between tells nothing.

    Returns:
        The messages, and the `seq` of the last record.

    Raises:
        ControlError: A body is not a record.
    """
    messages: list[bytes] = []
    together: list[msgspec.Raw] = []
    for body in bodies:
        seq = position(body)
        if last is not None and seq > last + 1 and not some:
            messages += _together(together)
            together = []
            messages.append(encode({"type": "gap", "lost": seq - last - 1, "before": seq}))
        together.append(_safe_event(body))
        last = seq
    return messages + _together(together), last


def position(body: bytes) -> int:
    """Return the `seq` of a record.

    Raises:
        ControlError: It is not a record.
    """
    try:
        return _PLACE.decode(body).seq
    except _NO_RECORD as error:
        raise _refused(error) from error


def _refused(error: Exception) -> ControlError:
    return ControlError(f"the supervisor sent what is not a record: {error}")


def _safe_event(body: bytes) -> msgspec.Raw:
    # Most records are short plain ASCII: each text in them is safe as it is, and taking them apart costs 10 times more.
    if len(body) <= LONGEST_TEXT and body.isascii() and not any(mark in body for mark in _MARKS):
        return msgspec.Raw(body)
    try:
        return msgspec.Raw(encode(safe(_ANY.decode(body))))
    except _NO_RECORD as error:
        raise _refused(error) from error


def _together(events: list[msgspec.Raw]) -> list[bytes]:
    return [encode({"type": "events", "events": events})] if events else []
