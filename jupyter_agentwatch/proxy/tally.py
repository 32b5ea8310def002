"""What an answer of a model cost and what it asks to be done, read while it passes; pure, and bounded in memory.

An answer that cannot be understood is passed on all the same: then the count is a guess by size, and says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["Tally"]

_MAX_CALLS: Final = 32
_MAX_NAME: Final = 100
_MAX_ARGUMENTS: Final = 600
"""Together less than what one message to the supervisor holds, escapes included."""

_MAX_LINE: Final = 4 << 20
_BYTES_PER_TOKEN: Final = 4
"""How many bytes a token has, about, where nobody counts: English text has four or five."""


@dataclass(slots=True)
class _Call:
    name: str = ""
    arguments: str = ""

    def add(self, name: object, arguments: object) -> None:
        self.name += name[:_MAX_NAME] if isinstance(name, str) and len(self.name) < _MAX_NAME else ""
        room = _MAX_ARGUMENTS - len(self.arguments)
        self.arguments += arguments[:room] if isinstance(arguments, str) else ""


@dataclass(slots=True)
class Tally:
    """Counts one answer.

    Attributes:
        is_events: The answer is a stream of events, not one document.
        limit: Bytes of a document that are kept to be read.
        input_tokens: What the upstream counted in, 0 until it says so.
        output_tokens: What it counted out.
        is_counted: It has counted to the end, or to where the stream broke off.
    """

    is_events: bool
    limit: int
    input_tokens: int = 0
    output_tokens: int = 0
    is_counted: bool = False
    _held: bytearray = field(default_factory=bytearray)
    _calls: dict[str, _Call] = field(default_factory=dict)
    _is_lost: bool = False

    def feed(self, data: bytes) -> None:
        """Take in the next piece of the answer."""
        if self._is_lost:
            return
        self._held += data
        if not self.is_events:
            self._lose(len(self._held) > self.limit)
            return
        *lines, rest = bytes(self._held).split(b"\n")
        self._held = bytearray(rest)
        self._lose(len(rest) > _MAX_LINE)
        for line in lines:
            if line.startswith(b"data:"):
                self._read(line[5:])

    def finish(self, request_bytes: int, response_bytes: int) -> bool:
        """Read what is left; where the upstream has not counted, guess by size. Return whether it is a guess."""
        if not self.is_events and not self._is_lost:
            self._read(bytes(self._held))
        self._held.clear()
        if self.is_counted:
            return False
        self.input_tokens = self.input_tokens or -(-request_bytes // _BYTES_PER_TOKEN)
        self.output_tokens = max(self.output_tokens, -(-response_bytes // _BYTES_PER_TOKEN))
        return True

    @property
    def tool_calls(self) -> list[str]:
        """What the model asks to be called, each as "name arguments"; hostile text that can be encoded."""
        said = [f"{call.name} {call.arguments}" for call in self._calls.values()]
        return [text.encode("utf-8", "backslashreplace").decode() for text in said]

    def _lose(self, is_lost: bool) -> None:
        if is_lost:
            self._is_lost = True
            self._held.clear()

    def _read(self, text: bytes) -> None:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):  # "[DONE]", a line cut short, or no JSON at all
            return
        if isinstance(document, dict):
            self._document(document)

    def _document(self, document: dict[str, Any], *, is_begin: bool = False) -> None:
        for key in ("response", "message"):  # the end of a stream of responses, the begin of one of messages
            if isinstance(inner := document.get(key), dict):
                self._document(inner, is_begin=key == "message")
        self._usage(document.get("usage"), is_begin=is_begin)
        for choice in _dicts(document.get("choices")):
            for key in ("message", "delta"):
                if isinstance(said := choice.get(key), dict):
                    self._chat_calls(choice.get("index"), said)
        for item in _dicts(document.get("output")):
            if item.get("type") == "function_call":
                self._call(f"item {item.get('id')}").add(item.get("name"), item.get("arguments"))
        for place, block in enumerate(_dicts(document.get("content"))):
            if block.get("type") == "tool_use":
                self._call(f"block {place}").add(block.get("name"), json.dumps(block.get("input")))
        self._block_events(document)

    def _chat_calls(self, choice: object, said: dict[str, Any]) -> None:
        for place, call in enumerate(_dicts(said.get("tool_calls"))):
            function = call.get("function")
            if isinstance(function, dict):
                name = f"call {choice} {call.get('index', place)}"
                self._call(name).add(function.get("name"), function.get("arguments"))

    def _block_events(self, document: dict[str, Any]) -> None:
        block, delta = document.get("content_block"), document.get("delta")
        name = f"block {document.get('index')}"
        if isinstance(block, dict) and block.get("type") == "tool_use":
            self._call(name).add(block.get("name"), "")
        if isinstance(delta, dict) and delta.get("type") == "input_json_delta":
            self._call(name).add("", delta.get("partial_json"))

    def _call(self, name: str) -> _Call:
        if name not in self._calls and len(self._calls) >= _MAX_CALLS:
            return _Call()
        return self._calls.setdefault(name, _Call())

    def _usage(self, usage: object, *, is_begin: bool) -> None:
        if not isinstance(usage, dict):
            return
        cached = _count(usage, "cache_creation_input_tokens") + _count(usage, "cache_read_input_tokens")
        given = _count(usage, "prompt_tokens", "input_tokens") + cached
        # A stream tells the sums so far more than once; none of them is taken back.
        self.input_tokens = max(self.input_tokens, given)
        self.output_tokens = max(self.output_tokens, _count(usage, "completion_tokens", "output_tokens"))
        # At the begin of a stream nothing has been counted out: whoever hangs up before the end would pay for nothing.
        self.is_counted = self.is_counted or (not is_begin and self.input_tokens + self.output_tokens > 0)


def _dicts(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _count(usage: dict[str, Any], *names: str) -> int:
    for name in names:
        value = usage.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40:
            return value
    return 0
