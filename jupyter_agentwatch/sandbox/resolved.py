"""Which names led to an address. Apart from the DNS stub, so that a session that asks for no name does not load it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from jupyter_agentwatch.policy.names import normal_address

__all__ = ["NameMemory"]

_REMEMBERED_S: Final = 600.0
_MAX_NAMES: Final = 64


class NameMemory:
    """Which names led to an address, so that a connection is judged by its name. May be used from several threads.

    Args:
        clock: Monotonic seconds.
        max_addresses: Addresses kept; the one that was answered longest ago is forgotten first.
    """

    def __init__(self, clock: Callable[[], float], *, max_addresses: int = 4096) -> None:
        self._clock = clock
        self._max_addresses = max_addresses
        self._expiries: OrderedDict[str, dict[str, float]] = OrderedDict()
        self._lock = threading.Lock()

    def remember(self, name: str, addresses: Sequence[str], ttl_s: float) -> None:
        """Note that a name was answered with addresses, until ten minutes after the answer's time to live."""
        now = self._clock()
        with self._lock:
            for address in map(_canonical, addresses):
                names = self._expiries.setdefault(address, {})
                names.pop(name, None)
                names[name] = now + ttl_s + _REMEMBERED_S
                if len(names) > _MAX_NAMES:
                    del names[next(iter(names))]
                self._expiries.move_to_end(address)
            while len(self._expiries) > self._max_addresses:
                self._expiries.popitem(last=False)

    def names_for(self, address: str) -> list[str]:
        """Return the names that an address was answered for, the latest first."""
        now = self._clock()
        key = _canonical(address)
        with self._lock:
            names = self._expiries.get(key, {})
            for name in [name for name, expiry in names.items() if expiry <= now]:
                del names[name]
            if not names:
                self._expiries.pop(key, None)
            return list(reversed(names))


def _canonical(address: str) -> str:
    return str(normal_address(address) or address)
