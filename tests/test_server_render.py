"""What browsers get to read: every text safe, every gap counted, never more certain than what was counted."""

from __future__ import annotations

import json
import unicodedata
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_agentwatch.errors import ControlError
from jupyter_agentwatch.events import encode_event
from jupyter_agentwatch.server.render import LONGEST_TEXT, ended_json, event_messages, kill_json, safe, status_json
from jupyter_agentwatch.testing import event
from jupyter_agentwatch.wire.messages import Killed, WatchStatus
from tests.strategies import events

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def texts(value: Any) -> list[str]:
    """Return every text in plain data, keys included."""
    if isinstance(value, dict):
        return [*value, *(text for each in value.values() for text in texts(each))]
    if isinstance(value, list):
        return [text for each in value for text in texts(each)]
    return [value] if isinstance(value, str) else []


def seen(messages: list[bytes]) -> list[Any]:
    """Return each message as (type, seqs or lost)."""
    decoded = [json.loads(message) for message in messages]
    return [(m["type"], m["lost"] if m["type"] == "gap" else [e["seq"] for e in m["events"]]) for m in decoded]


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_no_text_keeps_what_could_deceive(value: Any) -> None:
    """Keys and values, however deep, hold no control, bidirectional or invisible character, and are short."""
    for text in texts(safe(value)):
        assert not any(unicodedata.category(char) in HIDDEN for char in text)
    assert len(safe("x" * 10_000)) < LONGEST_TEXT + 50


@given(events())
def test_a_record_reaches_the_browser_whole_and_safe(item: Any) -> None:
    """Whichever way a record takes, the browser gets its every field, each text as `safe` gives it."""
    body = encode_event(item)
    (message,), last = event_messages([body], None)
    (shown,) = json.loads(message)["events"]
    assert shown == safe(json.loads(body))
    assert last == item.seq


@pytest.mark.parametrize("char", ["\x7f", "\x1b", "\u202e", "\u2028", "\\", '"', "\x00", "\u00ad"])
def test_short_ascii_is_no_way_around_it(char: str) -> None:
    """One odd character in an otherwise plain record is enough to have it taken apart."""
    (message,), _ = event_messages([encode_event(event("file", op="open", path=f"a{char}b"))], None)
    (shown,) = json.loads(message)["events"]
    assert shown["path"] == safe(f"a{char}b")
    assert "\x7f" not in message.decode()


@given(st.sets(st.integers(0, 40), min_size=1), st.none() | st.integers(-1, 40))
def test_what_is_missing_is_counted(present: set[int], before: int | None) -> None:
    """Records and gaps together make up every number from the first to the last."""
    numbers = [number for number in sorted(present) if before is None or number > before]
    messages, last = event_messages([encode_event(event("gap", seq=n, lost=1, reason="x")) for n in numbers], before)
    found = seen(messages)
    assert [n for kind, ns in found if kind == "events" for n in ns] == numbers
    start = numbers[0] if before is None and numbers else (before if before is not None else 0) + 1
    lost = sum(n for kind, n in found if kind == "gap")
    assert lost == (numbers[-1] - start + 1 - len(numbers) if numbers else 0)
    assert last == (numbers[-1] if numbers else before)
    assert all((a[0], b[0]) != ("events", "events") for a, b in pairwise(found))


@pytest.mark.parametrize("body", [b"", b"{}", b'{"seq": "1"}', b'{"seq": 1', b"[" * 9999, b'{"seq":1,"x":"\xff"}'])
def test_what_is_no_record_is_an_error(body: bytes) -> None:
    """A supervisor that sends anything else is not relayed further."""
    with pytest.raises(ControlError, match="not a record"):
        event_messages([body], None)


@pytest.mark.parametrize(
    ("result", "final", "survivors"),
    [
        (Killed(killed=3, survivors=0, latency_ms=1.0, head=""), True, 0),
        (Killed(killed=3, survivors=2, latency_ms=1.0, head=""), False, 2),
        (Killed(killed=0, survivors=-1, latency_ms=0.0, head=""), True, None),
        ("no answer", False, None),
    ],
)
def test_a_kill_is_final_only_where_nothing_goes_on(result: Killed | str, final: bool, survivors: int | None) -> None:
    """Zero survivors are said only where zero were counted; whatever is not final comes with the command that kills."""
    content = kill_json("0badcafe", result)
    assert (content["final"], content.get("survivors"), content["via"]) == (final, survivors, "http")
    assert ("command" in content) == (not final)
    assert content.get("command", "jupyter agentwatch kill 0badcafe") == "jupyter agentwatch kill 0badcafe"


def test_notes_of_an_end_are_safe() -> None:
    """A reason that came out of a log is text of somebody else."""
    ended = Killed(killed=0, survivors=-1, latency_ms=0.0, head="", note="\x1b[2J")
    assert ended_json("0badcafe", ended)["note"] == "\\x1b[2J"
    assert kill_json("0badcafe", ended)["note"] == "\\x1b[2J"


def test_a_status_is_shown_with_safe_texts() -> None:
    """Questions, workspace and notes of a run are the agent's and the user's words."""
    values: dict[type, Any] = {str: "\u202ex", int: 1, float: 1.0}
    fields = {f.name: values.get(f.type, []) for f in msgspec.structs.fields(WatchStatus) if f.name != "id"}
    status = WatchStatus(**{**fields, "counts": {"exec:\x1b": 1}, "asks": {7: "connect to \x1b[2J"}})
    shown = status_json(status, "kernel-id")
    assert shown["workspace"] == "\\u202ex"
    assert shown["asks"] == [{"ask": 7, "text": "connect to \\x1b[2J"}]
    assert shown["counts"] == {"exec:\\x1b": 1}
    assert shown["kernel"] == "kernel-id"
    assert "id" not in shown
