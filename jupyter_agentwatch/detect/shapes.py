"""Which families' shapes a command can have: one pass over its text for all marks, then an expression for few of them.

RE2 is loaded when the first text comes, so that a watch does not wait for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Final

from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.rule import Check, Ruleset

if TYPE_CHECKING:
    from jupyter_agentwatch.detect.search import PatternSet

__all__ = ["Shape", "Shapes"]

# What cannot be told apart without reading the whole: references back, and flags inside.
_WHOLE: Final = lazy_pattern(r"\\[1-9]|\(\?[a-zA-Z(-]")
_PIECE: Final = lazy_pattern(
    r"\\.|\[\^?\]?(?:[^\]\\]|\\.)*\]|\{\d*,?\d*\}\??|[*+?]\??|[()|.^$]|[^\\\[{*+?()|.^$]|.", re.DOTALL
)


class Shape:
    """What one ruleset says of programs of any name.

    Args:
        rules: The ruleset.

    Attributes:
        marks: As in `Ruleset`.
        checks: As `Ruleset.shapes`.
    """

    def __init__(self, rules: Ruleset) -> None:
        self.marks = tuple(rules.marks)
        self.checks: Sequence[Check] = rules.shapes
        self._expression = rules.shape_pattern or "(?!)"
        self._pattern = lazy_pattern(self._expression, re.IGNORECASE)

    def fits(self, joined: str) -> bool:
        """Return whether the ruleset's expression is found in a program's arguments.

        Args:
            joined: The arguments, with blanks between them.
        """
        if not joined.isascii():  # other letters may be the same as one of ASCII's where case is ignored
            return self._pattern.search(joined) is not None
        lowered = joined.lower()
        for literal, pattern in self._parts:  # noqa: SIM110 - a generator would cost as much as the search
            if literal in lowered and pattern.search(joined):
                return True
        return False

    @cached_property
    def _parts(self) -> tuple[tuple[str, re.Pattern[str]], ...]:
        """The expression's alternatives, each behind a text that it cannot do without."""
        parts: dict[str, list[str]] = {}
        for alternative in _alternatives(self._expression):
            parts.setdefault(_needed(alternative), []).append(alternative)
        return tuple((text, lazy_pattern("|".join(each), re.IGNORECASE)) for text, each in parts.items())


class Shapes:
    """The shapes of several rulesets, in their order.

    Args:
        rulesets: What the families know. Their expressions are such that RE2 takes them.

    Attributes:
        all: Every shape.
    """

    def __init__(self, rulesets: Iterable[Ruleset]) -> None:
        self.all = tuple(map(Shape, rulesets))
        self._by_bits: dict[int, tuple[Shape, ...]] = {}
        self._owners: list[int] = []
        self._marks: PatternSet | None = None

    def marked(self, plain: str) -> tuple[Shape, ...]:
        """Return the shapes of which a mark stands in a text.

        Args:
            plain: The text without quotation marks, in lower case.
        """
        marks = self._marks or self._compile_marks()
        found = marks.find(plain)
        if found is None:  # RE2 has not memory enough
            return tuple(each for each in self.all if any(mark in plain for mark in each.marks))
        bits = 0
        for number in found:
            bits |= self._owners[number]
        shapes = self._by_bits.get(bits)
        if shapes is None:
            shapes = self._by_bits[bits] = tuple(each for at, each in enumerate(self.all) if bits >> at & 1)
        return shapes

    def _compile_marks(self) -> PatternSet:
        from jupyter_agentwatch.detect.search import PatternSet

        owners: dict[str, int] = {}
        for at, each in enumerate(self.all):
            for mark in each.marks:
                owners[mark] = owners.get(mark, 0) | 1 << at
        self._owners = list(owners.values())
        self._marks = PatternSet(owners, literal=True)
        return self._marks


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


def _needed(alternative: str) -> str:
    """Return the longest text, in lower case, that stands in each match of an expression without bars; "" for none."""
    return max(_runs(alternative), key=len).lower()


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
