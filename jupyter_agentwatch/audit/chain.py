"""The hash chain of an audit log, as pure functions on exact bytes; no file is opened here.

A log is JSON Lines. Each line is one event, as `events.encode_event` wrote it, with two members spliced in
before its last brace::

    {"kind":"exec","seq":7,…,"prev":"<hash of record 6>","hash":"<hash of record 7>"}

`hash` is the SHA-256 of the 64 hexadecimal digits of `prev`, in ASCII, followed by the bytes of the event
*without* the two members; both are written as 64 lower-case digits, and the first record's `prev` is
`GENESIS`. So each hash depends on every byte before it:

* an edited record no longer fits its own `hash`;
* a removed, repeated or displaced record fits its own hash but not its place (`prev`, `seq`);
* records cut off at the end leave a shorter chain that is still right. Only a hash kept elsewhere shows that:
  the anchor beside the log (`Anchor`), or the head printed in the notebook's output.

The chain has no secret. Who may write the log can write another one that is right in itself; again only a
head kept elsewhere shows it. This is why the log lies where the sandbox cannot see it.

Bytes are hashed as they stand and never encoded again: two encoders may differ in a space, and a log must
stay valid when a later version learns new fields. The two members have a fixed length, so sealing and
opening are slices.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final, NamedTuple

import msgspec

__all__ = [
    "FORMAT",
    "GENESIS",
    "MAX_LINE",
    "SEAL_END",
    "Anchor",
    "Sealed",
    "declared_format",
    "decode_anchor",
    "digest",
    "encode_anchor",
    "is_sealed",
    "looks_ours",
    "open_line",
    "seal",
]

FORMAT: Final = 1
"""Version of the log's form; stands in the first record's `format`."""

GENESIS: Final = b"0" * 64
"""What the first record has for `prev`."""

MAX_LINE: Final = 4 * 1024 * 1024
"""Longest line in bytes, its newline included; no longer one is written, and none is read."""

_OPENING: Final = b'{"kind":"session"'
_PREV: Final = b',"prev":"'
_HASH: Final = b'","hash":"'
_END: Final = b'"}\n'
_DIGITS: Final = len(GENESIS)

SEAL_END: Final = _DIGITS + len(_END)
"""Length in bytes of a line's end, from the first digit of its hash."""

_HASH_AT: Final = -SEAL_END
_HASH_MARK: Final = _HASH_AT - len(_HASH)
_PREV_AT: Final = _HASH_MARK - _DIGITS
_PREV_MARK: Final = _PREV_AT - len(_PREV)


class Sealed(NamedTuple):
    """A line taken apart.

    Attributes:
        body: The event's JSON, as `events.encode_event` wrote it.
        prev: What the line says is the hash of the record before, 64 bytes.
        hash: What the line says is its own hash, 64 bytes; compare it with `digest(prev, body)`.
    """

    body: bytes
    prev: bytes
    hash: bytes


class _Head(msgspec.Struct):
    """The first record of a log of any version, as far as it must never change."""

    kind: str = ""
    format: int = 0


class Anchor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of the side file: number and hash of a record that is safely in the log."""

    seq: int
    hash: str


def digest(prev: bytes, body: bytes) -> bytes:
    """Return the hash of a record as 64 lower-case hexadecimal digits.

    Args:
        prev: Hash of the record before, 64 hexadecimal digits; `GENESIS` for the first.
        body: The event's JSON.
    """
    return sha256(prev + body).hexdigest().encode()


def seal(body: bytes, prev: bytes) -> tuple[bytes, bytes]:
    """Make the line of one record.

    Args:
        body: The event's JSON, compact and without a newline (`events.encode_event`).
        prev: Hash of the record before; `GENESIS` for the first.

    Returns:
        The line with its newline, and the record's hash.
    """
    own = sha256(prev + body).hexdigest().encode()
    return body[:-1] + _PREV + prev + _HASH + own + _END, own


def is_sealed(line: bytes) -> bool:
    """Tell whether a line has the form that `seal` gives; says nothing about its hash."""
    return line.endswith(_END) and line[_HASH_MARK:_HASH_AT] == _HASH and line[_PREV_MARK:_PREV_AT] == _PREV


def open_line(line: bytes) -> Sealed:
    """Take a line apart; the exact inverse of `seal`. No hash is checked.

    Args:
        line: One line with its newline.

    Raises:
        ValueError: The line does not have the form that `seal` gives.
    """
    if not is_sealed(line):
        msg = 'the line does not end with "prev" and "hash"'
        raise ValueError(msg)
    return Sealed(line[:_PREV_MARK] + b"}", line[_PREV_AT:_HASH_MARK], line[_HASH_AT : -len(_END)])


def looks_ours(line: bytes) -> bool:
    """Tell whether a log's first line is one of ours, perhaps damaged: it begins or it ends as ours do."""
    return line.startswith(_OPENING) or is_sealed(line)


def declared_format(line: bytes) -> int | None:
    """Return the format that a session record of any version declares: 0 for none, None where it is not one."""
    try:
        head = msgspec.json.decode(line, type=_Head)
    except (ValueError, RecursionError):
        return None
    return head.format if head.kind == "session" else None


def encode_anchor(anchor: Anchor) -> bytes:
    """Return the side file's content."""
    return msgspec.json.encode(anchor) + b"\n"


def decode_anchor(data: bytes) -> Anchor:
    """Read the side file's content.

    Raises:
        ValueError: Not an anchor of ours.
    """
    anchor = msgspec.json.decode(data, type=Anchor)
    if anchor.seq < 0 or len(anchor.hash) != _DIGITS:
        msg = "seq must be 0 or more, and hash 64 hexadecimal digits"
        raise ValueError(msg)
    return anchor
