"""Conditions as closures over a view: exact, and linear in the length of the text whatever a rule's author wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from math import isfinite
from typing import Any, cast

from jupyter_agentwatch.detect.search import PatternSet, checked_pattern
from jupyter_agentwatch.detect.sigma_form import (
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
from jupyter_agentwatch.detect.sigma_view import View

__all__ = ["Bank", "PatternBanks", "Test", "compiled"]

Test = Callable[[View], bool]
"""Whether one event meets a condition."""


class Bank:
    """Every pattern that is looked for in one fact, in one pass."""

    def __init__(self, fact: str, *, lowered: bool) -> None:
        self._fact = fact
        self._lowered = lowered
        self._patterns: list[str] = []
        self._set = PatternSet(())

    def add(self, pattern: str) -> int:
        """Add a pattern and return its number."""
        if pattern not in self._patterns:
            self._patterns.append(pattern)
        return self._patterns.index(pattern)

    def freeze(self) -> None:
        """Compile what was added."""
        self._set = PatternSet(self._patterns)

    def found_in(self, view: View) -> frozenset[int]:
        """Return the numbers of the patterns that are found in the fact."""
        found = view.found.get(self)
        if found is None:
            texts = view.lowered(self._fact) if self._lowered else view.texts(self._fact)
            found = view.found[self] = frozenset([number for text in texts for number in self._match(text)])
        return cast("frozenset[int]", found)

    def _match(self, text: str) -> list[int]:
        numbers = self._search(text)
        # `$` stands before a final line feed too, as in PCRE; RE2 knows it only at the very end.
        return numbers + self._search(text[:-1]) if text.endswith("\n") else numbers

    def _search(self, text: str) -> list[int]:
        numbers = self._set.find(text)
        if numbers is not None:
            return numbers
        raw = text.encode("utf-8", "replace")
        return [number for number, pattern in enumerate(self._patterns) if checked_pattern(pattern).search(raw)]


class PatternBanks:
    """The patterns of all rules, by fact. `freeze` comes after the last `place` and before the first evaluation."""

    def __init__(self) -> None:
        self._banks: dict[tuple[str, bool], Bank] = {}

    def place(self, node: Pattern) -> tuple[Bank, int]:
        """Return the bank of a pattern, and its number there."""
        key = (node.fact, node.lowered)
        bank = self._banks.get(key)
        if bank is None:
            bank = self._banks[key] = Bank(node.fact, lowered=node.lowered)
        return bank, bank.add(node.pattern)

    def freeze(self) -> None:
        """Compile every bank."""
        for bank in self._banks.values():
            bank.freeze()


def compiled(node: Node, banks: PatternBanks) -> Test:
    """Return the closure of a condition.

    Args:
        node: The condition.
        banks: Takes up its patterns.
    """
    match node:
        case AllOf(parts):
            return _all_of([compiled(part, banks) for part in _flattened(parts)])
        case AnyOf(parts):
            return _any_of([compiled(part, banks) for part in parts])
        case Not(part):
            test = compiled(part, banks)
            return lambda view: not test(view)
        case Pattern():
            bank, number = banks.place(node)
            return lambda view: number in bank.found_in(view)
        case _:
            return _leaf(node)


def _flattened(parts: Iterable[Node]) -> Iterator[Node]:
    """Yield the parts of a conjunction, those of conjunctions in it in their place."""
    for part in parts:
        if isinstance(part, AllOf):
            yield from _flattened(part.parts)
        else:
            yield part


def _leaf(node: Text | InRange | Empty | Exists | Compare | SameAs) -> Test:
    match node:
        case Text():
            return _text(node)
        case InRange(fact, ranges):
            return _in_range(fact, ranges)
        case Empty(fact):
            return lambda view: not any(view.texts(fact))
        case Exists(fact, wanted):
            return lambda view: bool(view.texts(fact)) is wanted
        case Compare():
            return _compare(node)
        case SameAs():
            return _same_as(node)


def _all_of(tests: Iterable[Test]) -> Test:
    parts = tuple(tests)

    def test(view: View) -> bool:
        for part in parts:  # noqa: SIM110 - a generator would cost as much as the test itself
            if not part(view):
                return False
        return True

    return test


def _any_of(tests: Iterable[Test]) -> Test:
    parts = tuple(tests)

    def test(view: View) -> bool:
        for part in parts:  # noqa: SIM110 - as above
            if part(view):
                return True
        return False

    return test


def _text(node: Text) -> Test:
    fact, values, cased = node.fact, node.values, node.cased
    match node.op:
        case "equals":
            return _equals(fact, frozenset(values), cased=cased)
        case "startswith":
            return _holding(fact, values, str.startswith, cased=cased)
        case "endswith":
            return _holding(fact, values, str.endswith, cased=cased)
        case "contains":
            return _contains(fact, values, cased=cased)


def _reader(*, cased: bool) -> Callable[[View, str], tuple[str, ...]]:
    return View.texts if cased else View.lowered


def _equals(fact: str, values: frozenset[str], *, cased: bool) -> Test:
    read = _reader(cased=cased)
    may_be_empty = "" in values

    def test(view: View) -> bool:
        texts = read(view, fact)
        for text in texts:
            if text in values:
                return True
        return may_be_empty and not texts

    return test


def _holding(fact: str, wanted: str | tuple[str, ...], holds: Callable[[str, Any], bool], *, cased: bool) -> Test:
    read = _reader(cased=cased)

    def test(view: View) -> bool:
        for text in read(view, fact):  # noqa: SIM110 - as above
            if holds(text, wanted):
                return True
        return False

    return test


def _contains(fact: str, values: tuple[str, ...], *, cased: bool) -> Test:
    read = _reader(cased=cased)
    if len(values) == 1:
        return _holding(fact, values[0], str.__contains__, cased=cased)

    def test(view: View) -> bool:
        for text in read(view, fact):
            for value in values:
                if value in text:
                    return True
        return False

    return test


def _in_range(fact: str, ranges: tuple[str, ...]) -> Test:
    networks = tuple(ip_network(text) for text in ranges)

    def test(view: View) -> bool:
        return any(address in network for address in _addresses(view, fact) for network in networks)

    return test


def _addresses(view: View, fact: str) -> tuple[IPv4Address | IPv6Address, ...]:
    key = ("addresses", fact)
    addresses = view.found.get(key)
    if addresses is None:
        read = [_address(text) for text in view.texts(fact)]
        addresses = view.found[key] = tuple([address for address in read if address is not None])
    return cast("tuple[IPv4Address | IPv6Address, ...]", addresses)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # An IPv4 address does not escape a rule by being written as IPv6.
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def _compare(node: Compare) -> Test:
    fact, number = node.fact, node.number
    operators: dict[str, Callable[[float], bool]] = {
        "lt": lambda value: value < number,
        "lte": lambda value: value <= number,
        "gt": lambda value: value > number,
        "gte": lambda value: value >= number,
    }
    holds = operators[node.op]

    def test(view: View) -> bool:
        values = [_number(text) for text in view.texts(fact)]
        return any(holds(value) for value in values if value is not None)

    return test


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


def _same_as(node: SameAs) -> Test:
    fact, other = node.fact, node.other
    if node.starts and node.ends:
        fits: Callable[[str, str], bool] = str.__contains__
    elif node.starts:
        fits = str.startswith
    elif node.ends:
        fits = str.endswith
    else:
        fits = str.__eq__
    return lambda view: any(fits(a, b) for a in view.lowered(fact) for b in view.lowered(other))
