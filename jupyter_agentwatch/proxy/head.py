"""The head of an HTTP request, read so strictly that no two readers could understand it differently; no socket here.

What clients of models send is narrow: a method, a path, a JSON body whose length is told. All else is refused, which
leaves no room for smuggling one request inside another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["MAX_HEAD", "Head", "Refusal", "parse_head"]

MAX_HEAD: Final = 32 * 1024
"""Bytes of a request line with all header fields."""

_REQUEST: Final = re.compile(rb"(GET|POST) (/[!-~]*) HTTP/1\.[01]")
_FIELD: Final = re.compile(rb"([A-Za-z0-9!#$%&'*+.^_`|~-]+):[ \t]*([\x20-\x7e\t]*)")
_LENGTH: Final = re.compile(r"[0-9]{1,10}")
_ONCE: Final = frozenset(
    ("authorization", "content-length", "content-type", "host", "x-api-key", "anthropic-version", "expect")
)
_NEVER: Final = {"transfer-encoding": 411, "content-encoding": 415, "expect": 417, "upgrade": 400, "trailer": 400}


class Refusal(Exception):  # noqa: N818 -- not an error of ours: it becomes the answer
    """A request is refused.

    Attributes:
        status: HTTP status of the answer.
        reason: Why: for the record, and for whoever sent it.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Head:
    """A request without its body. Names of `fields` are in lower case; `length` counts the body's bytes."""

    method: str
    path: str
    fields: dict[str, str]
    length: int


def parse_head(raw: bytes, *, max_body: int) -> Head:
    """Read a request line and header fields, without the empty line that ends them.

    Raises:
        Refusal: It is malformed, ambiguous, or asks for what is not done here.
    """
    line, *rest = raw.split(b"\r\n")
    request = _REQUEST.fullmatch(line)
    if request is None:
        raise Refusal(400, "malformed request line")
    fields: dict[str, str] = {}
    for each in rest:
        field = _FIELD.fullmatch(each)
        if field is None:
            raise Refusal(400, "malformed header field")
        name = field[1].decode("ascii").lower()
        if name in fields and name in _ONCE:
            raise Refusal(400, f"header field {name} given twice")
        fields[name] = field[2].decode("ascii").strip()
    for name, status in _NEVER.items():
        if name in fields:
            raise Refusal(status, f"header field {name} is not supported")
    method = request[1].decode("ascii")
    return Head(method, request[2].decode("ascii"), fields, _length(method, fields, max_body))


def _length(method: str, fields: dict[str, str], max_body: int) -> int:
    text = fields.get("content-length")
    if text is None:
        if method == "POST":
            raise Refusal(411, "content-length is missing")
        return 0
    if _LENGTH.fullmatch(text) is None:
        raise Refusal(400, "content-length is no number")
    length = int(text)
    if length > max_body or (method == "GET" and length):
        raise Refusal(413, f"a body may have {max_body} bytes" if method == "POST" else "a GET has no body")
    return length
