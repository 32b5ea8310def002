"""Memory that forgets: the agent decides how many processes, hosts and names there are, so what is kept is bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Recent", "Said"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The values of the keys that were used last; the one that was used longest ago is forgotten first.

    Args:
        make: Makes the value of a new key.
        limit: How many keys are kept.
    """

    def __init__(self, make: Callable[[], V], limit: int = 1024) -> None:
        self._make = make
        self._limit = limit
        self._kept: OrderedDict[K, V] = OrderedDict()

    def __getitem__(self, key: K) -> V:
        value = self._kept.get(key)
        if value is None:
            value = self._kept[key] = self._make()
            if len(self._kept) > self._limit:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        return value

    def __contains__(self, key: K) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def forget(self, key: K) -> None:
        """Drop a key; one that is not kept is no error."""
        self._kept.pop(key, None)


class Said:
    """What has been said already, so that one cause gives one finding."""

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._keys: OrderedDict[Hashable, None] = OrderedDict()

    def first(self, *key: Hashable) -> bool:
        """Return whether this is said for the first time, and remember it."""
        if key in self._keys:
            return False
        self._keys[key] = None
        if len(self._keys) > self._limit:
            self._keys.popitem(last=False)
        return True
