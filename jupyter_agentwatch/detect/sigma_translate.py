"""pySigma's syntax trees into our plain form.

Only the kernel side and the command line import it, never the supervisor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

from sigma.conditions import (
    ConditionAND,
    ConditionFieldEqualsValueExpression,
    ConditionNOT,
    ConditionOR,
    ConditionValueExpression,
)
from sigma.types import (
    SigmaBool,
    SigmaCasedString,
    SigmaCIDRExpression,
    SigmaCompareExpression,
    SigmaExists,
    SigmaExpansion,
    SigmaFieldReference,
    SigmaNull,
    SigmaNumber,
    SigmaRegularExpression,
    SigmaRegularExpressionFlag,
    SigmaString,
    SigmaTimestampPart,
    SpecialChars,
)

from jupyter_agentwatch.detect.search import PatternError, checked_pattern
from jupyter_agentwatch.detect.sigma_form import (
    ANYWHERE,
    AllOf,
    AnyOf,
    Compare,
    Empty,
    Exists,
    InRange,
    Node,
    Not,
    Pattern,
    SameAs,
    Text,
)

__all__ = ["MissingFieldError", "MissingRecordError", "UnsupportedError", "check_reachable", "translated"]

_MAX_NODES: Final = 20_000
_MAX_DEPTH: Final = 64

_FLAGS: Final = {
    SigmaRegularExpressionFlag.IGNORECASE: "i",
    SigmaRegularExpressionFlag.MULTILINE: "m",
    SigmaRegularExpressionFlag.DOTALL: "s",
}
_OPERATORS: Final[dict[str, Literal["lt", "lte", "gt", "gte"]]] = {"LT": "lt", "LTE": "lte", "GT": "gt", "GTE": "gte"}


class UnsupportedError(ValueError):
    """The rule is right, but cannot be honoured here; the text says why."""


class MissingFieldError(ValueError):
    """The rule asks for a field that no event of its log source has.

    Attributes:
        field: The field.
    """

    def __init__(self, field: str) -> None:
        super().__init__(f"needs the field {field!r}, which our events of this log source do not have")
        self.field = field


class MissingRecordError(ValueError):
    """The rule asks for a kind of record that our log never holds: it would run, and never match.

    Attributes:
        fact: The fact that never has a value asked for.
        values: The values, in words.
    """

    def __init__(self, fact: str, values: Sequence[str]) -> None:
        self.fact = fact
        self.values = ", ".join(values[:8])
        super().__init__(f"asks for {fact} {self.values}")


def check_reachable(node: Node, values: Mapping[str, frozenset[str]]) -> None:
    """Refuse a condition that no event can meet.

    Args:
        node: The condition.
        values: Facts that never have another value than these, in lower case.

    Raises:
        MissingRecordError: It asks for another one.
    """
    unmet = _unmet(node, values)
    if unmet is not None:
        raise MissingRecordError(unmet.fact, unmet.values)


def _unmet(node: Node, values: Mapping[str, frozenset[str]]) -> Text | None:
    """Return a part for want of which a condition never holds, or None where it can hold."""
    match node:
        case Text(fact, "equals", wanted) if fact in values:
            return None if values[fact].intersection(text.lower() for text in wanted) or "" in wanted else node
        case AllOf(parts):
            return next((unmet for part in parts if (unmet := _unmet(part, values)) is not None), None)
        case AnyOf(parts):
            each = [_unmet(part, values) for part in parts]
            return each[0] if None not in each else None
        case _:
            return None


def translated(tree: object, fact_of: Callable[[str], str | None]) -> Node:
    """Translate a parsed condition.

    Args:
        tree: What pySigma's `SigmaCondition.parsed` returns.
        fact_of: The fact that a field means, or None where there is none.

    Raises:
        UnsupportedError: Something in it cannot be evaluated here.
        MissingFieldError: A field has no fact.
    """
    return _Translator(fact_of).node(tree, 0)


class _Translator:
    def __init__(self, fact_of: Callable[[str], str | None]) -> None:
        self._fact_of = fact_of
        self._nodes = 0

    def node(self, tree: object, depth: int) -> Node:
        self._nodes += 1
        if self._nodes > _MAX_NODES or depth > _MAX_DEPTH:
            msg = f"the condition has more than {_MAX_NODES} parts or is nested deeper than {_MAX_DEPTH}"
            raise UnsupportedError(msg)
        match tree:
            case ConditionAND():
                return _all_of([self.node(part, depth + 1) for part in tree.args])
            case ConditionOR():
                return _any_of([self.node(part, depth + 1) for part in tree.args])
            case ConditionNOT():
                return Not(self.node(tree.args[0], depth + 1))
            case ConditionFieldEqualsValueExpression():
                return self._value(self._fact(tree.field), tree.value)
            case ConditionValueExpression():
                return self._keyword(tree.value)
        raise UnsupportedError(_refusal(tree))

    def _fact(self, field: str) -> str:
        fact = self._fact_of(field)
        if fact is None:
            raise MissingFieldError(field)
        return fact

    def _value(self, fact: str, value: object) -> Node:
        match value:
            case SigmaExpansion():
                return _any_of([self._value(fact, each) for each in value.values])
            case SigmaString():
                return _string(fact, value)
            case SigmaRegularExpression():
                return _expression(fact, value)
            case SigmaFieldReference():
                return SameAs(fact, self._fact(value.field), starts=value.starts_with, ends=value.ends_with)
            case _:
                return _scalar(fact, value)

    def _keyword(self, value: object) -> Node:
        match value:
            case SigmaExpansion():
                return _any_of([self._keyword(each) for each in value.values])
            case SigmaString():
                parts = list(value.s)
                while parts and parts[0] == SpecialChars.WILDCARD_MULTI:
                    parts.pop(0)
                while parts and parts[-1] == SpecialChars.WILDCARD_MULTI:
                    parts.pop()
                anywhere = [SpecialChars.WILDCARD_MULTI, *parts, SpecialChars.WILDCARD_MULTI]
                return _wildcards(ANYWHERE, anywhere, cased=isinstance(value, SigmaCasedString))
            case SigmaRegularExpression():
                return _expression(ANYWHERE, value)
            case SigmaNumber() | SigmaBool():
                return Text(ANYWHERE, "contains", (str(value).lower(),))
        raise UnsupportedError(_refusal(value))


def _scalar(fact: str, value: object) -> Node:
    match value:
        case SigmaTimestampPart():
            msg = "parts of times (minute, hour, day, week, month, year) cannot be compared"
            raise UnsupportedError(msg)
        case SigmaNumber() | SigmaBool():
            return Text(fact, "equals", (str(value).lower(),))
        case SigmaNull():
            return Empty(fact)
        case SigmaExists():
            return Exists(fact, value.exists)
        case SigmaCIDRExpression():
            return InRange(fact, (str(value.network),))
        case SigmaCompareExpression() if value.op.name in _OPERATORS:
            return Compare(fact, _OPERATORS[value.op.name], float(value.number.number))
    raise UnsupportedError(_refusal(value))


def _refusal(thing: object) -> str:
    return f"{type(thing).__name__} cannot be evaluated"


def _string(fact: str, value: SigmaString) -> Node:
    return _wildcards(fact, list(value.s), cased=isinstance(value, SigmaCasedString))


def _wildcards(fact: str, parts: Sequence[object], *, cased: bool) -> Node:
    """Translate a text with wildcards: the four plain forms as such, everything else as a pattern."""
    many = SpecialChars.WILDCARD_MULTI
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) + sum(part in (many, SpecialChars.WILDCARD_SINGLE) for part in parts) != len(parts):
        msg = "placeholders (%name%) are not filled in: write the values into the rule"
        raise UnsupportedError(msg)
    text = texts[0] if texts else ""
    values = (text if cased else text.lower(),)
    match ["*" if part is many else "?" if part is SpecialChars.WILDCARD_SINGLE else "" for part in parts]:
        case [] | [""]:
            return Text(fact, "equals", values, cased)
        case ["*"] | ["*", "*"]:
            return Exists(fact, wanted=True)
        case ["", "*"]:
            return Text(fact, "startswith", values, cased)
        case ["*", ""]:
            return Text(fact, "endswith", values, cased)
        case ["*", "", "*"]:
            return Text(fact, "contains", values, cased)
    return _glob(fact, parts, cased=cased)


def _glob(fact: str, parts: Sequence[object], *, cased: bool) -> Pattern:
    def expression(part: object) -> str:
        if isinstance(part, str):
            return _quoted(part if cased else part.lower())
        return ".*" if part is SpecialChars.WILDCARD_MULTI else "."

    # A wildcard stands for a line feed, too; `\A` and `\z` are the ends of the text and nothing else.
    pattern = r"(?s)\A" + "".join(map(expression, parts)) + r"\z"
    _check(pattern)
    hint = max((part for part in parts if isinstance(part, str)), key=len, default="").lower()
    return Pattern(fact, pattern, lowered=not cased, hint=hint)


def _quoted(text: str) -> str:
    return "".join(char if char.isalnum() or ord(char) > 127 else f"\\x{ord(char):02x}" for char in text)


def _expression(fact: str, value: SigmaRegularExpression) -> Pattern:
    flags = "".join(sorted(_FLAGS[flag] for flag in value.flags))
    pattern = (f"(?{flags})" if flags else "") + value.to_plain()
    _check(pattern)
    return Pattern(fact, pattern)


def _check(pattern: str) -> None:
    try:
        checked_pattern(pattern)
    except PatternError as error:
        msg = f"the regular expression {pattern[:200]!r} cannot be matched in linear time: {error}"
        raise UnsupportedError(msg) from error


def _all_of(parts: Sequence[Node]) -> Node:
    return parts[0] if len(parts) == 1 else AllOf(tuple(parts))


def _any_of(parts: Sequence[Node]) -> Node:
    """Join parts; texts and ranges of the same fact become one test."""
    fused: dict[object, list[Node]] = {}
    for part in parts:
        match part:
            case Text(fact, op, _, cased):
                key: object = (fact, op, cased)
            case InRange(fact):
                key = (fact,)
            case _:
                key = id(part)
        fused.setdefault(key, []).append(part)
    joined = tuple(_fused(each) for each in fused.values())
    return joined[0] if len(joined) == 1 else AnyOf(joined)


def _fused(parts: list[Node]) -> Node:
    match parts[0]:
        case Text(fact, op, _, cased):
            values = [value for part in parts if isinstance(part, Text) for value in part.values]
            return Text(fact, op, tuple(dict.fromkeys(values)), cased)
        case InRange(fact):
            return InRange(fact, tuple(text for part in parts if isinstance(part, InRange) for text in part.ranges))
        case single:
            return single
