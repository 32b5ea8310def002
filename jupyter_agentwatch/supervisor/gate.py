"""Which trapped calls wait. Any thread shuts it at once, before anybody else has heard of the reason.

Init must stay able to act while a trip is under way: it waits for the exec of the command that it starts, and could not
stop anything if that call were held.
"""

from __future__ import annotations

import threading
from typing import Literal

__all__ = ["Gate", "Held", "Reason"]

Reason = Literal["frozen", "undo", "tripped", "throttled"]
"""frozen and undo: every call waits. tripped: every call of a command does, until the freeze has come about. throttled:
connects to the outside do."""


class Held(Exception):  # noqa: N818 -- not an error: the call is to stay unanswered
    """The call waits, and is served anew when the watch goes on."""


class Gate:
    """Why calls wait.

    Attributes:
        starting: Thread that init has just forked and that has not made its exec, 0 for none.
    """

    def __init__(self) -> None:
        self._reasons: frozenset[Reason] = frozenset()
        self._lock = threading.Lock()
        self.starting = 0

    def shut(self, reason: Reason) -> None:
        """Have calls wait."""
        with self._lock:
            self._reasons |= {reason}

    def open(self, *reasons: Reason) -> None:
        """Take reasons away; calls that have waited must be served by whoever holds them."""
        with self._lock:
            self._reasons -= set(reasons)

    @property
    def is_shut(self) -> bool:
        """Every call waits."""
        return not self._reasons.isdisjoint(("frozen", "undo"))

    @property
    def is_tripped(self) -> bool:
        """Every call of a command waits."""
        return "tripped" in self._reasons

    def check(self) -> None:
        """Ask once more, after a call was recorded, before it is let through.

        Raises:
            Held: What was recorded has tripped the breaker.
        """
        if self.is_tripped:
            raise Held

    def check_leaving(self) -> None:
        """Ask before a connect to the outside is judged.

        Raises:
            Held: No new connections now.
        """
        if not self._reasons.isdisjoint(("throttled", "tripped")):
            raise Held
