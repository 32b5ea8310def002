"""What the command line prints of hostile text, and what it counts of a log."""

from __future__ import annotations

import os
import pty
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_agentwatch.cli.output import ByteSink
from jupyter_agentwatch.cli.tally import tally
from jupyter_agentwatch.cli.terminal import RESET, SafeText
from jupyter_agentwatch.cli.words import event_line
from jupyter_agentwatch.testing import event

HOSTILE = "\x1b]0;owned\x07\u202ex"


@given(
    st.lists(
        st.sampled_from([b"\x1b[31m", b"\x1b", b"[", b"3", b"1m", b"\xc3", b"\xa9", b"\r\n", b"\t", b"\x07", b"x"])
    )
)
def test_safe_text_does_not_depend_on_where_the_stream_is_cut(pieces: list[bytes]) -> None:
    """Characters and colours cut in two come out as if the bytes had come at once."""
    one, many = SafeText(), SafeText()
    whole = one.feed(b"".join(pieces)) + one.finish()
    assert "".join(many.feed(piece) for piece in pieces) + many.finish() == whole


@given(st.binary(max_size=64) | st.text(max_size=32).map(lambda text: text.encode("utf-8", "replace")))
def test_safe_text_lets_only_colours_and_white_space_through(data: bytes) -> None:
    """No control, bidirectional or invisible character of the sandbox reaches a person."""
    safe = SafeText()
    shown = safe.feed(data) + safe.finish()
    assert re.sub(r"\x1b\[[0-9;:]*m|[\n\t\r]| |[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]", "", shown).isprintable()


def test_a_colour_left_on_ends_with_the_output() -> None:
    """A program cannot colour what is shown after it."""
    safe = SafeText()
    assert safe.feed(b"\x1b[31mred") + safe.finish() == f"\x1b[31mred{RESET}"


def test_bytes_are_made_safe_on_a_terminal_only(tmp_path: Path) -> None:
    """A terminal gets no escape of the sandbox's but colours; a file gets every byte as it came."""
    data = b"\x1b]0;owned\x07\x1b[31mred\xff"
    controller, terminal = pty.openpty()
    with open(terminal, "wb", buffering=0) as stream, open(tmp_path / "out", "wb") as file:
        for each in (stream, file):
            sink = ByteSink(each)
            sink.write(data)
            sink.finish()
        shown = os.read(controller, 4096)
    os.close(controller)
    assert shown == "\\x1b]0;owned\\x07\x1b[31mred\ufffd\x1b[0m".encode()
    assert (tmp_path / "out").read_bytes() == data


def test_tally_counts_calls_once_and_by_what_became_of_them() -> None:
    """A flow that its first bytes got refused counts as denied, a held call only by its answer, a device as no file."""
    found = tally(
        [
            event("step", step=1),
            event("exec", pid=7, seq=1),
            event("exec", pid=7, seq=2, basis="post"),
            event("exit", pid=8, seq=3),
            event("connect", seq=4, flow=1, host="pool.example", errno=-1),
            event("connect", seq=5, flow=1, host="pool.example"),
            event("flow", seq=6, flow=1, addr="192.0.2.1", port=443, verdict="deny", rule="protocol:stratum"),
            event("connect", seq=7, verdict="ask", rule="network.rules[0]"),
            event("connect", seq=8, rule="network.rules[0]"),
            event("connect", seq=9, verdict="deny", rule="no-rule", addr="198.51.100.9"),
            event("connect", seq=10, verdict="deny", rule="no-rule", addr="198.51.100.9"),
            event("dns", seq=11, verdict="deny", qname="evil.example", rcode="REFUSED", rule="no-rule"),
            event("file", seq=12, path="/p/a"),
            event("file", seq=13, path="/p/a"),
            event("file", seq=14, op="rename", path="/p/a", path2="/p/b"),
            event("file", seq=15, path="/dev/null"),
            event("file", seq=16, path="/p/c", verdict="deny"),
            event("connect", seq=19, rule="inside", addr="127.0.0.1", port=53, transport="udp"),
            event("file", seq=20, op="mkdir", path="/p/folder"),
            event("file", seq=17, op="unlink", path="/p/b"),
            event("gap", seq=18, lost=3),
        ]
    )
    assert (found.steps, found.processes, found.allowed, found.denied, found.names_refused) == (1, 2, 1, 3, 1)
    assert found.files == ("/p/a", "/p/b")
    assert (found.removed, found.lost) == (1, 3)
    assert [(each.verdict, each.where, each.count) for each in found.destinations] == [
        ("deny", "198.51.100.9:443", 2),
        ("deny", "192.0.2.1:443", 1),
        ("deny", "name evil.example", 1),
        ("allow", "192.0.2.1:443", 1),
    ]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("session", {"workspace": HOSTILE}),
        ("session", {"op": "close", "reason": HOSTILE}),
        ("step", {"argv": [HOSTILE]}),
        ("step", {"op": "end", "outcome": HOSTILE}),
        ("exec", {"path": HOSTILE, "argv": [HOSTILE]}),
        ("exec", {"exe": HOSTILE}),
        ("exit", {"exit_code": 0}),
        ("connect", {"addr": HOSTILE, "host": HOSTILE, "rule": HOSTILE}),
        ("connect", {"transport": "unix", "addr": HOSTILE}),
        ("listen", {"addr": HOSTILE}),
        ("dns", {"qname": HOSTILE, "answers": [HOSTILE]}),
        ("flow", {"protocol": HOSTILE, "server_name": HOSTILE, "host": HOSTILE}),
        ("flow", {"op": "closed", "addr": HOSTILE}),
        ("file", {"path": HOSTILE, "path2": HOSTILE}),
        ("limit", {"limit": HOSTILE, "action": HOSTILE}),
        ("agent", {"op": "begin", "agent": HOSTILE, "text": HOSTILE, "outcome": HOSTILE, "tokens_out": 1}),
        ("reward", {"terms": {HOSTILE: 1.0}}),
        ("finding", {"title": HOSTILE, "rule": HOSTILE}),
        ("breaker", {"cause": HOSTILE}),
        ("control", {"by": HOSTILE, "detail": HOSTILE}),
        ("gap", {"reason": HOSTILE}),
    ],
)
def test_every_kind_of_record_becomes_one_safe_line(kind: str, fields: dict[str, Any]) -> None:
    """No record can move the cursor, set a title, turn the text round or break its line, whatever it holds."""
    line = event_line(event(kind, t_wall_ns=1 << 62, **fields))
    assert line.isprintable()
    assert kind in line
