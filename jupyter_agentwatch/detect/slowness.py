"""Who was slow: when a detector of many parts took too long, its parts are tried one by one, and one loses its place.

A part is put out of service after several slow tries or a single absurd one, and only for time of its own: what a
scheduler, a first use or the reading of a long text took is nobody's fault.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from typing import Final, Generic, TypeVar

import msgspec

__all__ = ["Meter", "Slowness"]

P = TypeVar("P", bound=Hashable)

_ABSURD: Final = 8


class Meter(msgspec.Struct, frozen=True):
    """How slowness is measured.

    Attributes:
        clock: Nanoseconds of CPU time that the calling thread has spent.
        limit_ns: What one part may spend on one event.
        strikes: How many times it may spend more; eight times as much counts as all of them.
    """

    clock: Callable[[], int]
    limit_ns: int
    strikes: int


class Slowness(Generic[P]):
    """Strikes against the parts of one detector."""

    def __init__(self) -> None:
        self._taken: dict[P, int] = {}

    def first_slow(self, parts: Iterable[tuple[P, Callable[[], object]]], meter: Meter) -> tuple[P, int] | None:
        """Try parts until one is slow, and strike it; return it with its nanoseconds where it is to go, else None.

        What a part raises is not looked at here.

        Args:
            parts: Each part, and what it does with the event at hand.
            meter: How slowness is measured.
        """
        for part, act in parts:
            started = meter.clock()
            with suppress(Exception):  # who fails is told apart elsewhere
                act()
            spent = meter.clock() - started
            if spent > meter.limit_ns:
                taken = self._taken.get(part, 0) + (meter.strikes if spent > _ABSURD * meter.limit_ns else 1)
                self._taken[part] = taken
                return (part, spent) if taken >= meter.strikes else None
        return None
