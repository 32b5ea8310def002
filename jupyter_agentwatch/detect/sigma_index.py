"""Which rules an event could match at all, so that it is shown to a handful instead of to all.

Each rule gives what every match of it must hold, once or twice over: the name of a program, or a text. A rule that
gives nothing is always a candidate. The choice is only ever too wide; the rule itself decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from jupyter_agentwatch.detect.search import PatternSet
from jupyter_agentwatch.detect.sigma_evaluate import Bank, PatternBanks, Test, compiled
from jupyter_agentwatch.detect.sigma_fields import KEYWORD_FACTS
from jupyter_agentwatch.detect.sigma_form import ANYWHERE, AllOf, AnyOf, Node, Pattern, Text
from jupyter_agentwatch.detect.sigma_view import View

__all__ = ["Index", "facts_of"]

_IMAGE: Final = "image"

_Masks = list[int]
"""Rules as bits of two numbers: those of which an anchor is the first that they need, and those of the second."""

_NOBODY: Final = (0, 0)

_USUAL: Final = frozenset(
    {
        *("initiated", "is_ipv6", "transport", "op", "verdict", "basis", "audit_type", "user", "qtype"),
        *("syscall", "action", "blocked", "rejected"),
    }
)
"""Facts that have few values: to know one says little."""

_Anchor = tuple[Literal["program", "value", "text"], str, str] | Pattern
"""The name of a program, a fact's whole value, or a text that a fact must hold, as (which, fact, text) in lower case.

Or a pattern that must be found.
"""


class Index:
    """Rules over the events of one kind.

    Args:
        nodes: The rules' conditions; a rule's number is its place among them.
        kind: The kind of events.
    """

    def __init__(self, nodes: Sequence[Node], kind: str) -> None:
        banks = PatternBanks()
        self._tests: list[Test | None] = [compiled(node, banks) for node in nodes]
        self._slow: dict[int, Test | None] = {}
        banks.freeze()
        self._everywhere = self._single = 0
        self._by_program: dict[str, _Masks] = {}
        self._by_value: dict[str, dict[str, _Masks]] = {}
        self._by_pattern: dict[Bank, dict[int, _Masks]] = {}
        by_text: dict[str, _Masks] = {}
        facts: set[str] = set()
        for number, node in enumerate(nodes):
            first, second = _two_anchors(node)
            if first is None:
                self._everywhere |= 1 << number
            if second is None:
                self._single |= 1 << number
            for which, anchors in enumerate((first, second)):
                for anchor in anchors or ():
                    self._place(anchor, banks, by_text, facts)[which] |= 1 << number
        if ANYWHERE in facts:
            facts.difference_update(KEYWORD_FACTS.get(kind, ()))
        self._facts = tuple(sorted(facts))
        self._owners = tuple(by_text.values())
        self._texts = PatternSet(by_text, literal=True)

    def _place(self, anchor: _Anchor, banks: PatternBanks, by_text: dict[str, _Masks], facts: set[str]) -> _Masks:
        """Return the rules of an anchor."""
        match anchor:
            case Pattern():
                bank, place = banks.place(anchor)
                return self._by_pattern.setdefault(bank, {}).setdefault(place, [0, 0])
            case ("program", _, name):
                return self._by_program.setdefault(name, [0, 0])
            case ("value", fact, value):
                return self._by_value.setdefault(fact, {}).setdefault(value, [0, 0])
            case (_, fact, text):
                facts.add(fact)
                return by_text.setdefault(text, [0, 0])

    def matches(self, view: View) -> list[int]:
        """Return the numbers of the rules that match, in order."""
        return [number for number, test in self.tests(view) if test(view)]

    def failing(self, view: View) -> list[tuple[int, Exception]]:
        """Disable and return the rules that raise on an event, each with what it raised."""
        failed = []
        for number, test in enumerate(self._tests):
            try:
                if test is not None:
                    test(view)
            except Exception as error:  # noqa: BLE001 - whatever it is, the others have to run
                failed.append((number, error))
                self._tests[number] = None
        return failed

    def tests(self, view: View) -> list[tuple[int, Test]]:
        """Return the rules that an event is shown to: their numbers, and what tells whether they match."""
        tests = self._tests
        return [(number, test) for number in _numbers(self._candidates(view)) if (test := tests[number])]

    def disable(self, number: int) -> None:
        """Put a rule out of service until `restore`."""
        self._slow[number], self._tests[number] = self._tests[number], None

    def restore(self) -> None:
        """Take the rules that `disable` put out of service into it again; what raises stays out."""
        for number, test in self._slow.items():
            self._tests[number] = test
        self._slow.clear()

    def _candidates(self, view: View) -> int:
        first, second = self._everywhere, self._single
        if self._by_program:
            for image in view.lowered(_IMAGE):
                a, b = self._by_program.get(image.rpartition("/")[2], _NOBODY)
                first |= a
                second |= b
        for fact, values in self._by_value.items():
            for value in view.lowered(fact):
                a, b = values.get(value, _NOBODY)
                first |= a
                second |= b
        for bank, numbers in self._by_pattern.items():
            for place in bank.found_in(view):
                a, b = numbers.get(place, _NOBODY)
                first |= a
                second |= b
        if self._owners:
            text = "\n".join([text for fact in self._facts for text in view.lowered(fact)])
            places = self._texts.find(text)
            owners = self._owners
            for place in range(len(owners)) if places is None else places:
                a, b = owners[place]
                first |= a
                second |= b
        return first & second


def _numbers(mask: int) -> list[int]:
    found = []
    while mask:
        lowest = mask & -mask
        found.append(lowest.bit_length() - 1)
        mask ^= lowest
    return found


def facts_of(node: Node) -> frozenset[str]:
    """Return every fact that a condition asks for."""
    if isinstance(node, AllOf | AnyOf):
        return frozenset().union(*map(facts_of, node.parts))
    found = {getattr(node, name) for name in ("fact", "other") if hasattr(node, name)}
    return frozenset(found) | (facts_of(node.part) if hasattr(node, "part") else frozenset())


def _two_anchors(node: Node) -> tuple[frozenset[_Anchor] | None, frozenset[_Anchor] | None]:
    """Return two sets of anchors of which every match has at least one each; None where nothing can be said.

    The second costs no expression of its own: a shell's name alone would let too many rules through.
    """
    known = [anchors for anchors in map(_anchors, _conjuncts(node)) if anchors is not None]
    known.sort(key=_cost)
    others = [each for each in known[1:] if not any(isinstance(anchor, Pattern) for anchor in each)]
    return (known[0] if known else None), (others[0] if others else None)


def _conjuncts(node: Node) -> list[Node]:
    return [each for part in node.parts for each in _conjuncts(part)] if isinstance(node, AllOf) else [node]


def _anchors(node: Node) -> frozenset[_Anchor] | None:
    """Return anchors of which every match has at least one, or None where nothing can be said."""
    match node:
        case AllOf(parts):
            known = [anchors for anchors in map(_anchors, parts) if anchors is not None]
            return min(known, key=_cost, default=None)
        case AnyOf(parts):
            each = [_anchors(part) for part in parts]
            if any(anchors is None for anchors in each):
                return None
            return frozenset().union(*(anchors for anchors in each if anchors is not None))
        case Text(values=values):
            return _text_anchors(node) if all(values) else None
        case Pattern():
            return frozenset({("text", node.fact, node.hint)} if node.hint else {node})
        case _:
            return None


def _text_anchors(node: Text) -> frozenset[_Anchor]:
    lowered = [value.lower() for value in node.values]
    names = [value.rpartition("/")[2] for value in lowered]
    ends = node.op in ("equals", "endswith")
    if node.fact == _IMAGE and ends and all(names) and all("/" in value for value in lowered):
        return frozenset(("program", _IMAGE, name) for name in names)
    which: Literal["value", "text"] = "value" if node.op == "equals" else "text"
    return frozenset((which, node.fact, value) for value in lowered)


def _cost(anchors: frozenset[_Anchor]) -> float:
    """Guess how often an event has one of these anchors: names of programs are rare, short texts are common."""
    return sum(map(_frequency, anchors))


def _frequency(anchor: _Anchor) -> float:
    if isinstance(anchor, Pattern):
        return 0.1
    which, fact, text = anchor
    if fact in _USUAL:
        return 0.5
    return min(1.0, 4.0 * 0.6 ** len(text)) if which == "text" else 0.005
