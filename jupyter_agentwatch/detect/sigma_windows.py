"""Correlations: how many matches, distinct values or distinct rules there were in a span of time, for each group.

The agent chooses how many groups and values there are, so that everything kept is bounded; what had to be forgotten
is said, because a flood is a way to hide.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import msgspec

from jupyter_agentwatch.detect.sigma_form import Member, Window
from jupyter_agentwatch.detect.sigma_view import View

__all__ = ["MAX_COUNT", "Fired", "Windows"]

MAX_COUNT: Final = 10_000
"""The highest threshold that a window may have."""

_MAX_KEPT: Final = 100_000
_EVIDENCE: Final = 16

_Group = tuple[tuple[str, ...], ...]


class Fired(msgspec.Struct, frozen=True):
    """A window whose condition came true.

    Attributes:
        window: Which one.
        evidence: `seq` of the first and the latest records that it rests on.
        forgot: The window has begun to forget groups because there were too many; its condition is not met.
    """

    window: Window
    evidence: tuple[int, ...]
    forgot: bool = False


class _State(Protocol):
    """What is kept for one group."""

    def add(self, place: int, value: str, t_ns: int, seq: int) -> tuple[int, ...] | None:
        """Count a match; return the evidence where the condition has come true, which starts the count anew."""

    def __len__(self) -> int: ...


class Windows:
    """All correlations of a rule set.

    Args:
        windows: The correlations, each behind those that it counts.
    """

    def __init__(self, windows: Sequence[Window]) -> None:
        self._books = [_Book(window) for window in windows]
        self._counting: dict[str, list[tuple[_Book, int]]] = {}
        for book in self._books:
            for place, member in enumerate(book.window.members):
                self._counting.setdefault(member.rule, []).append((book, place))

    def feed(self, rule: str, view: View) -> Iterator[Fired]:
        """Count a match of a rule, and whatever comes true because of it.

        Args:
            rule: Id of the rule that matched.
            view: The event.
        """
        # A temporal rule may name one rule at several places: the last is counted first, or one match would be two.
        for book, place in reversed(self._counting.get(rule, ())):
            for fired in book.add(place, view):
                yield fired
                if not fired.forgot:
                    yield from self.feed(fired.window.id, view)


class _Book:
    """The groups of one correlation, the least recently used first."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self._groups: OrderedDict[_Group, _State] = OrderedDict()
        self._kept = 0
        self._has_forgotten = False

    def add(self, place: int, view: View) -> list[Fired]:
        member = self.window.members[place]
        values = view.texts(member.value) if member.value else ("",)
        return [fired for value in values for fired in self._add(_group(member, view), place, value, view)]

    def _add(self, group: _Group, place: int, value: str, view: View) -> list[Fired]:
        state = self._groups.get(group)
        if state is None:
            state = self._groups[group] = _STATES[self.window.type](self.window)
        self._groups.move_to_end(group)
        before = len(state)
        evidence = state.add(place, value, view.event.t_mono_ns, view.event.seq)
        self._kept += len(state) - before
        if not len(state):
            del self._groups[group]
        fired = [Fired(self.window, evidence)] if evidence is not None else []
        while self._kept > _MAX_KEPT:
            _, dropped = self._groups.popitem(last=False)
            self._kept -= len(dropped)
            if not self._has_forgotten:
                self._has_forgotten = True
                fired.append(Fired(self.window, (view.event.seq,), forgot=True))
        return fired


def _group(member: Member, view: View) -> _Group:
    return tuple([view.lowered(fact) for fact in member.group])


def _shortened(evidence: Sequence[int]) -> tuple[int, ...]:
    half = _EVIDENCE // 2
    if len(evidence) <= _EVIDENCE:
        return tuple(evidence)
    return (*evidence[:half], *evidence[-half:])


class _Count:
    """event_count: the latest matches, as many as are needed."""

    def __init__(self, window: Window) -> None:
        self._needed = window.count
        self._span_ns = window.span_ns
        self._seen: deque[tuple[int, int]] = deque()

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, _place: int, _value: str, t_ns: int, seq: int) -> tuple[int, ...] | None:
        seen = self._seen
        seen.append((t_ns, seq))
        while seen[0][0] < t_ns - self._span_ns:
            seen.popleft()
        if len(seen) < self._needed:
            return None
        evidence = _shortened([each for _, each in seen])
        seen.clear()
        return evidence


class _Distinct:
    """value_count and temporal: when each value, or each member, was last seen."""

    def __init__(self, window: Window) -> None:
        self._needed = window.count
        self._span_ns = window.span_ns
        self._by_value = window.type == "value_count"
        self._seen: OrderedDict[str | int, tuple[int, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, place: int, value: str, t_ns: int, seq: int) -> tuple[int, ...] | None:
        seen = self._seen
        key = value.lower() if self._by_value else place
        seen[key] = (t_ns, seq)
        seen.move_to_end(key)
        while next(iter(seen.values()))[0] < t_ns - self._span_ns:
            seen.popitem(last=False)
        if len(seen) < self._needed:
            return None
        evidence = _shortened(sorted({each for _, each in seen.values()}))
        seen.clear()
        return evidence


class _Ordered:
    """temporal_ordered: for each length, the chain of that length which began last."""

    def __init__(self, window: Window) -> None:
        self._length = len(window.members)
        self._span_ns = window.span_ns
        self._chains: dict[int, tuple[int, tuple[int, ...]]] = {}

    def __len__(self) -> int:
        return len(self._chains)

    def add(self, place: int, _value: str, t_ns: int, seq: int) -> tuple[int, ...] | None:
        began, before = (t_ns, ()) if place == 0 else self._chains.get(place - 1, (-1, ()))
        if place and (not before or began < t_ns - self._span_ns):
            return None
        chain = (*before, seq)
        if place < self._length - 1:
            self._chains[place] = (began, chain)
            return None
        self._chains.clear()
        return _shortened(chain)


_STATES: Final[dict[str, type[_Count | _Distinct | _Ordered]]] = {
    "event_count": _Count,
    "value_count": _Distinct,
    "temporal": _Distinct,
    "temporal_ordered": _Ordered,
}
