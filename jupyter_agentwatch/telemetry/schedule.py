"""When to sample. Pure: the clock is passed in, so that lateness can be tested without waiting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["MAX_HZ", "MIN_HZ", "Schedule", "Tick"]

MIN_HZ: Final = 0.1
"""Slowest rate, one sample in 10 s."""

MAX_HZ: Final = 50.0
"""Fastest rate: NVML's own measurements are not more frequent."""


@dataclass(frozen=True, slots=True)
class Tick:
    """One sample that is due.

    Attributes:
        seq: Number of the tick, from 0 without gaps.
        dropped: Ticks left out before it.
    """

    seq: int
    dropped: int


class Schedule:
    """Ticks on a grid of equal distances. What is missed is dropped and counted, never made up for.

    Args:
        hz: Ticks per second, 0.1 to 50.
        now_ns: Monotonic clock, nanoseconds: when the first tick is due.

    Raises:
        ValueError: `hz` is out of range.
    """

    def __init__(self, hz: float, now_ns: int) -> None:
        self._period_ns = _period_ns(hz)
        self._due_ns = now_ns
        self._seq = 0
        self.dropped = 0
        """Ticks left out since the beginning."""

    @property
    def hz(self) -> float:
        """Ticks per second."""
        return 1e9 / self._period_ns

    def set_rate(self, hz: float, now_ns: int) -> None:
        """Change the rate; the next tick is due one new period from now, or earlier where it was due earlier.

        Raises:
            ValueError: `hz` is out of range.
        """
        self._period_ns = _period_ns(hz)
        self._due_ns = min(self._due_ns, now_ns + self._period_ns)

    def wait_ns(self, now_ns: int) -> int:
        """Return nanoseconds until the next tick is due, 0 if it is."""
        return max(0, self._due_ns - now_ns)

    def take(self, now_ns: int) -> Tick | None:
        """Take the tick that is due, None where none is.

        A tick is good until the next one is due; those that are older are dropped.
        """
        late_ns = now_ns - self._due_ns
        if late_ns < 0:
            return None
        missed = late_ns // self._period_ns
        self._due_ns += (missed + 1) * self._period_ns
        self.dropped += missed
        tick = Tick(self._seq, missed)
        self._seq += 1
        return tick


def _period_ns(hz: float) -> int:
    if not MIN_HZ <= hz <= MAX_HZ:
        msg = f"telemetry rate: {hz} Hz is not between {MIN_HZ:g} and {MAX_HZ:g} Hz"
        raise ValueError(msg)
    return round(1e9 / hz)
