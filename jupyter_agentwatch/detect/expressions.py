"""Regular expressions that cost little: compiled at their first use, and parted at what they cannot do without."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, cast

__all__ = ["lazy_pattern", "needed_texts", "needed_words", "parted", "widened"]


class _Lazy:
    """Stands for a compiled pattern: the first use of a method compiles, and keeps what was used as its own."""

    __slots__ = (
        "_compiled",
        "_flags",
        "_pattern",
        "findall",
        "finditer",
        "fullmatch",
        "match",
        "search",
        "split",
        "sub",
    )

    def __init__(self, pattern: str, flags: int) -> None:
        self._pattern = pattern
        self._flags = flags

    def __getattr__(self, name: str) -> Any:
        # Asked only for what has not been set yet.
        if name == "_compiled":
            self._compiled = re.compile(self._pattern, self._flags)
            return self._compiled
        method = getattr(self._compiled, name)
        if name in _METHODS:
            setattr(self, name, method)
        return method


_METHODS: Final = frozenset(name for name in _Lazy.__slots__ if not name.startswith("_"))


def lazy_pattern(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """Return what behaves as `re.compile(pattern, flags)`; a mistake in the pattern shows at its first use.

    Args:
        pattern: Regular expression over text.
        flags: As for `re.compile`.
    """
    return cast("re.Pattern[str]", _Lazy(pattern, flags))


# What cannot be told apart without reading the whole: references back, and flags inside.
_WHOLE: Final = re.compile(r"\\[1-9]|\(\?[a-zA-Z(-]")
_PIECE: Final = re.compile(
    r"\\.|\[\^?\]?(?:[^\]\\]|\\.)*\]|\{\d*,?\d*\}\??|[*+?]\??|[()|.^$]|[^\\\[{*+?()|.^$]|.", re.DOTALL
)
_TELLING: Final = 3
"""Characters of a text that few others hold."""


def parted(expression: str) -> list[tuple[str, str]]:
    """Return the alternatives of an expression, each after the longest text that all its matches hold ("" for none).

    Looking for a text costs a tenth of looking for an expression.

    Args:
        expression: Regular expression; one with references back or flags inside is not parted.
    """
    return [part for each in _alternatives(expression) for part in _grouped(each, _needed(each))]


def needed_texts(expressions: Iterable[str], usual: Sequence[str] = ()) -> tuple[str, ...]:
    """Return texts of which one stands in every match of some expressions.

    Args:
        expressions: Regular expressions that respect case.
        usual: Short texts that are taken for longer ones that hold them, so that there are few.
    """
    needed = sorted({text for each in expressions for text, _ in parted(each)})
    return tuple({next((short for short in usual if short in text), text): None for text in needed})


def needed_words(expression: str) -> tuple[str, ...]:
    """Return texts without blanks, in lower case, of which one stands in every match of an expression.

    Args:
        expression: Regular expression, for any case.
    """
    words = {max(text.lower().split() or [""], key=len) for text, _ in parted(expression)}
    return tuple(sorted(words, key=len))


def widened(expression: str) -> str:
    """Return an expression that is found in a text without quotation marks wherever the given one is with them.

    What stands at an end of the text, at a boundary of words or at a quotation mark may stand anywhere, and counts of
    any character begin at none.

    Args:
        expression: Regular expression without references back.
    """
    kept: list[str] = []
    is_dropped = False
    for piece in _PIECE.findall(expression):
        is_count = piece[0] in "*+?" or (piece[0] == "{" and len(piece) > 1)
        if is_dropped and is_count:
            continue
        is_dropped = piece in ("^", "$", r"\b", r"\W") or (piece[0] == "[" and not piece.strip("[]\\\"'"))
        if not is_dropped:
            kept.append("*" if piece[0] == "{" and is_count and kept and kept[-1] == "." else piece)
    return "".join(kept)


def _needed(alternative: str) -> str:
    return max(_runs(alternative), key=len)


def _grouped(alternative: str, text: str) -> Iterator[tuple[str, str]]:
    """Part an alternative that needs only a short text at its first group of longer texts, if there is one."""
    for start, end in _groups(alternative) if len(text) < _TELLING else ():
        choices = [(_needed(each), each) for each in _alternatives(alternative[start + 3 : end - 1])]
        if min(len(needed) for needed, _ in choices) > len(text):
            for needed, each in choices:
                yield needed, f"{alternative[:start]}(?:{each}){alternative[end:]}"
            return
    yield text, alternative


def _groups(alternative: str) -> Iterator[tuple[int, int]]:
    """Yield where the groups begin and end that are in no other one, are there once, and are not captured."""
    if _WHOLE.search(alternative):
        return
    start, depth = 0, 0
    for match in _PIECE.finditer(alternative):
        piece = match[0]
        start = match.start() if piece == "(" and not depth else start
        depth += (piece == "(") - (piece == ")")
        if piece == ")" and not depth:
            is_repeated = alternative[match.end() : match.end() + 1] in ("*", "+", "?", "{")
            if alternative.startswith("(?:", start) and not is_repeated:
                yield start, match.end()


def _alternatives(expression: str) -> list[str]:
    """Part an expression at the bars that stand in no group."""
    if _WHOLE.search(expression):
        return [expression]
    found, depth = [""], 0
    for piece in _PIECE.findall(expression):
        depth += (piece == "(") - (piece == ")")
        if piece == "|" and not depth:
            found.append("")
        else:
            found[-1] += piece
    return found


def _runs(alternative: str) -> Iterator[str]:
    run, depth = "", 0
    for piece in _PIECE.findall(alternative):
        depth += (piece == "(") - (piece == ")")
        literal = piece[-1] if len(piece) == 1 or not (piece[0] != "\\" or piece[1].isalnum()) else ""
        if literal and not depth and (len(piece) == 2 or piece not in "()|.^$*+?"):
            run += literal
            continue
        optional = piece[0] in "*?" or (piece[0] == "{" and len(piece) > 1)
        yield run[:-1] if optional else run
        run = ""
    yield run
