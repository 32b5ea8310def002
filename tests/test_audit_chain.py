"""The hash chain on exact bytes, and the codec under it."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_agentwatch.audit.chain import (
    GENESIS,
    Anchor,
    declared_format,
    decode_anchor,
    digest,
    encode_anchor,
    is_sealed,
    open_line,
    seal,
)
from jupyter_agentwatch.events import Event, decode_event, encode_event
from tests.strategies import KINDS, an_exec, an_open, events

relaxed = settings(deadline=None, max_examples=80)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_event_survives_its_encoding(kind: type[Event]) -> None:
    """Whatever an event of any kind holds, decoding its JSON gives the same event and the same JSON again."""

    @settings(deadline=None, max_examples=30)
    @given(events(kind))
    def check(event: Event) -> None:
        data = encode_event(event)
        assert decode_event(data) == event
        assert encode_event(decode_event(data)) == data
        assert b"\n" not in data

    check()


@relaxed
@given(events(), st.binary(min_size=32, max_size=32))
def test_opening_is_the_exact_inverse_of_sealing(event: Event, before: bytes) -> None:
    """A sealed line gives back the very bytes of the event, the hash before and its own hash."""
    body, prev = encode_event(event), before.hex().encode()
    line, own = seal(body, prev)
    assert open_line(line) == (body, prev, own)
    assert own == digest(prev, body)


def test_a_line_is_json_whose_hash_anyone_can_compute() -> None:
    """The form is as documented: SHA-256 over the digits of `prev` and the event's JSON; no code of ours is needed."""
    line, own = seal(b'{"kind":"gap","seq":0}', GENESIS)
    assert msgspec.json.decode(line) == {"kind": "gap", "seq": 0, "prev": "0" * 64, "hash": own.decode()}
    assert own.decode() == hashlib.sha256(b"0" * 64 + b'{"kind":"gap","seq":0}').hexdigest()
    assert line.endswith(b'"}\n')


@relaxed
@given(st.binary(max_size=400))
def test_bytes_that_are_no_sealed_line_are_a_value_error(data: bytes) -> None:
    """Arbitrary bytes never raise anything but ValueError."""
    if not is_sealed(data):
        with pytest.raises(ValueError, match="does not end with"):
            open_line(data)


def test_an_anchor_survives_its_encoding_and_others_are_refused() -> None:
    """Only an object with a number and a hash, and nothing else, is an anchor."""
    anchor = Anchor(seq=7, hash="a" * 64)
    assert decode_anchor(encode_anchor(anchor)) == anchor
    for bad in (b"", b"{}", b"[1]", b'{"seq":1,"hash":"ab"}', b'{"seq":-1,"hash":"%b"}' % (b"a" * 64), b"\xff"):
        with pytest.raises(ValueError):  # noqa: PT011 -- the texts are msgspec's
            decode_anchor(bad)


def test_the_declared_format_is_readable_in_a_later_version_of_the_log() -> None:
    """A first record of another format tells its format, also when everything else about it is unknown."""
    assert declared_format(encode_event(an_open())) == 1
    assert declared_format(b'{"kind":"session","format":2,"sha3":"\xc3\xa9"}\n') == 2
    assert declared_format(b'{"kind":"session"}') == 0
    assert declared_format(encode_event(an_exec(1))) is None
    assert declared_format(b"\x7fELF") is None
