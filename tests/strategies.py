"""Hypothesis strategies for events and whole logs, and plain ones to write out by hand.

The strategies are made from the vocabulary itself, so that a new field or kind is covered without a change here.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, get_args

import msgspec
from hypothesis import strategies as st

from jupyter_agentwatch.audit.chain import FORMAT, GENESIS, seal
from jupyter_agentwatch.audit.log import AuditLog
from jupyter_agentwatch.events import AnyEvent, Event, Exec, Session, encode_event

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["KINDS", "WATCH", "a_close", "a_run", "an_exec", "an_open", "events", "log_events", "sealed", "written"]

KINDS = get_args(AnyEvent)
"""Every event type."""

WATCH = "0badcafe"
"""Watch id of the plain events."""

_TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(["", '"}\n', '","hash":"', "\\u0000\x00", "\u202e\u2028", "\x1b[2J", "pool.example", "é" * 200]),
)
_NUMBER = st.integers(min_value=-(2**63), max_value=2**63 - 1)
_SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    str: _TEXT,
    bool: st.booleans(),
    int: _NUMBER,
    float: st.floats(allow_nan=False, allow_infinity=False),
    type(None): st.none(),
}


def events(*kinds: type[Event]) -> st.SearchStrategy[AnyEvent]:
    """Valid events of the given types, by default of every type, with texts as hostile as Unicode allows."""
    return st.one_of([_build(kind) for kind in kinds or KINDS])


@st.composite
def log_events(draw: st.DrawFn, *, min_size: int = 1, max_size: int = 5) -> list[AnyEvent]:
    """Events as one log holds them: numbered from 0, one watch, opened, perhaps closed."""
    watch = draw(st.text("0123456789abcdef", min_size=8, max_size=8))
    first = msgspec.structs.replace(draw(_SESSIONS), op="open", format=FORMAT)
    drawn = [first, *draw(st.lists(_OTHERS, min_size=min_size - 1, max_size=max_size - 1))]
    if len(drawn) > 1 and draw(st.booleans()):
        drawn[-1] = msgspec.structs.replace(draw(_SESSIONS), op="close")
    return [msgspec.structs.replace(event, seq=seq, watch=watch) for seq, event in enumerate(drawn)]


def sealed(records: Sequence[Event]) -> list[bytes]:
    """The lines of a log that holds these events."""
    lines: list[bytes] = []
    head = GENESIS
    for event in records:
        line, head = seal(encode_event(event), head)
        lines.append(line)
    return lines


def an_open(**changes: Any) -> Session:
    """A session-open record."""
    first = Session(
        seq=0,
        t_mono_ns=1,
        t_wall_ns=1_700_000_000_000_000_000,
        watch=WATCH,
        verdict="allow",
        basis="verified",
        op="open",
        format=FORMAT,
        workspace="/home/ada/project",
        rung="A",
    )
    return msgspec.structs.replace(first, **changes)


def an_exec(seq: int, **changes: Any) -> Exec:
    """A record of about 300 bytes."""
    event = Exec(
        seq=seq,
        t_mono_ns=123_456_789_012_345 + seq,
        t_wall_ns=1_700_000_000_000_000_000 + seq,
        watch=WATCH,
        verdict="allow",
        basis="claimed",
        cell="c0ffee00-1111-2222",
        step=1,
        pid=43210,
        path="/usr/bin/python3.11",
        argv=["python3", "-c", "import sys; print(sys.version)"],
        ppid=4321,
    )
    return msgspec.structs.replace(event, **changes)


def a_close(seq: int, **changes: Any) -> Session:
    """A session-close record."""
    event = Session(seq=seq, t_mono_ns=9, t_wall_ns=9, watch=WATCH, verdict="kill", basis="verified", op="close")
    return msgspec.structs.replace(event, **changes)


def a_run(records: int) -> list[AnyEvent]:
    """The events of a closed log with this many records, 2 or more."""
    return [an_open(), *(an_exec(seq) for seq in range(1, records - 1)), a_close(records - 1)]


def written(path: Path, records: Sequence[Event]) -> Path:
    """Write a log through the one writer there is, sync it, and return its path."""
    log = AuditLog.create(path, records[0])  # type: ignore[arg-type]
    for event in records[1:]:
        log.append(event)
    log.sync()
    log.close()
    return path


@cache
def _build(kind: type[Event]) -> st.SearchStrategy[Any]:
    fields = {field.name: _value(field.type) for field in msgspec.structs.fields(kind)}
    return st.builds(kind, **fields)


def _value(annotation: Any) -> st.SearchStrategy[Any]:
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    arguments = get_args(annotation)
    if getattr(annotation, "__origin__", None) is list:
        return st.lists(_value(arguments[0]), max_size=3)
    if getattr(annotation, "__origin__", None) is dict:
        return st.dictionaries(_value(arguments[0]), _value(arguments[1]), max_size=3)
    if all(isinstance(word, str) for word in arguments):
        return st.sampled_from(arguments)
    return st.one_of([_value(part) for part in arguments])


_SESSIONS = events(Session)
_OTHERS = events(*(kind for kind in KINDS if kind is not Session))
