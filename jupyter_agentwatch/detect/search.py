"""Many texts or expressions looked for in one pass of RE2, in time linear in the text whatever they are.

The agent chooses the text, so an engine that backtracks could be made to stall; only RE2 is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import re2  # type: ignore[import-untyped]

__all__ = ["PatternError", "PatternSet", "checked_pattern"]

_MEMORY_BYTES: Final = 64 << 20


class PatternError(ValueError):
    """RE2 does not take a regular expression; the text says why, and what to do."""


class PatternSet:
    """Texts or expressions, each with a number from 0 in the order in which they are given.

    Args:
        patterns: What to look for. Expressions have to have passed `checked_pattern`.
        literal: They are texts and not expressions.
    """

    def __init__(self, patterns: Iterable[str], *, literal: bool = False) -> None:
        options = _options()
        if literal:
            options.literal = True
            # Bytes are compared, not characters: the same for whole texts in UTF-8, and a much smaller machine.
            options.encoding = re2.Options.Encoding.LATIN1
        found = re2.Set.SearchSet(options)
        self._count = 0
        for pattern in patterns:
            found.Add(pattern.encode("utf-8", "replace"))
            self._count += 1
        # The empty pattern is found in every text. RE2 reports nothing at all where it runs out of memory, and this
        # tells that apart from "nothing found".
        found.Add(b"")
        self._set: Any = found
        try:
            found.Compile()
        except re2.error:  # more than the memory that a set may take
            self._set = None

    def find(self, text: str) -> list[int] | None:
        """Return the numbers of what is found in a text, or None where RE2 had not memory enough to tell."""
        if self._set is None:
            return None
        numbers: list[int] = self._set.Match(text.encode("utf-8", "replace"))
        try:
            numbers.remove(self._count)
        except ValueError:
            return None
        return numbers


def checked_pattern(pattern: str) -> Any:
    """Return an expression compiled by RE2.

    Raises:
        PatternError: RE2 does not take it.
    """
    try:
        return re2.compile(pattern, _options())
    except re2.error as error:
        reason = error.args[0] if error.args else b""
        told = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        msg = f"{told or 'too large'}; Sigma allows neither look-around nor references back, write it without them"
        raise PatternError(msg) from error


def _options() -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY_BYTES
    return options
