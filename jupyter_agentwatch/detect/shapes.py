"""Which families' shapes a command can have: one pass over its text for all marks, then an expression for few of them.

RE2 is loaded when the first text comes, so that a watch does not wait for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Final

from jupyter_agentwatch.detect.expressions import lazy_pattern, needed_words, parted, widened
from jupyter_agentwatch.detect.rule import Check, Ruleset

if TYPE_CHECKING:
    from jupyter_agentwatch.detect.search import PatternSet

__all__ = ["Shape", "Shapes"]

_NEVER: Final = "(?!)"


@cache
def _parts(expression: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Return an expression's alternatives, each behind a text in lower case that it cannot do without."""
    parts: dict[str, list[str]] = {}
    for text, alternative in parted(expression):
        parts.setdefault(text.lower(), []).append(alternative)
    return tuple((text, lazy_pattern("|".join(each), re.IGNORECASE)) for text, each in parts.items())


@cache
def _widened(expression: str) -> str:
    return widened(expression)


@cache
def _words(expression: str) -> tuple[str, ...]:
    return () if expression == _NEVER else needed_words(expression)


class Shape:
    """What one ruleset says of programs of any name.

    Args:
        rules: The ruleset.
        place: Its place among the rulesets.

    Attributes:
        place: As given.
        marks: As in `Ruleset`.
        checks: As `Ruleset.shapes`.
    """

    def __init__(self, rules: Ruleset, place: int = 0) -> None:
        self.place = place
        self.marks = tuple(rules.marks)
        self.checks: Sequence[Check] = rules.shapes
        self._expression = rules.shape_pattern or _NEVER
        self._pattern = lazy_pattern(self._expression, re.IGNORECASE)

    def fits(self, joined: str) -> bool:
        """Return whether the ruleset's expression is found in a program's arguments.

        Args:
            joined: The arguments, with blanks between them.
        """
        if not joined.isascii():  # other letters may be the same as one of ASCII's where case is ignored
            return self._pattern.search(joined) is not None
        lowered = joined.lower()
        for literal, pattern in _parts(self._expression):  # noqa: SIM110 - a generator would cost as much as the search
            if literal in lowered and pattern.search(joined):
                return True
        return False

    def may_fit_in(self, whole: str) -> bool:
        """Return whether `fits` can hold for a program of a text of which no word comes from elsewhere.

        Args:
            whole: The text in lower case, with and without its quotation marks.
        """
        for literal, pattern in _parts(_widened(self._expression)):
            if literal in whole and pattern.search(whole):
                return True
        return False

    def is_named_in(self, plain: str) -> bool:
        """Return whether a text holds what the expression cannot do without.

        Args:
            plain: The text without quotation marks, in lower case.
        """
        return any(word in plain for word in _words(self._expression))


class Shapes:
    """The shapes of several rulesets, in their order.

    Args:
        rulesets: What the families know. Their expressions are such that RE2 takes them.

    Attributes:
        all: Every shape.
    """

    def __init__(self, rulesets: Iterable[Ruleset]) -> None:
        self.all = tuple(Shape(each, place) for place, each in enumerate(rulesets))
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
