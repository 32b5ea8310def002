"""Events and time for tests: plausible values where a test does not care, none that move on their own."""

from __future__ import annotations

from typing import Any, get_args

from jupyter_agentwatch.events import AnyEvent

__all__ = ["ManualClock", "event"]

_KINDS: dict[str, type[AnyEvent]] = {kind.__struct_config__.tag: kind for kind in get_args(AnyEvent)}
_REQUIRED: dict[str, dict[str, Any]] = {
    "session": {"op": "open"},
    "step": {"op": "start"},
    "connect": {"transport": "tcp", "addr": "192.0.2.1", "port": 443},
    "listen": {"op": "bind", "transport": "tcp"},
    "dns": {"qname": "example.org", "qtype": "A", "rcode": "NOERROR"},
    "flow": {"op": "named", "flow": 1, "addr": "192.0.2.1", "port": 443},
    "file": {"op": "open", "path": "/project/file.txt"},
    "gpu": {"op": "device", "device": "GPU-1", "index": 0},
    "limit": {"limit": "processes", "value": 1025.0, "maximum": 1024.0, "action": "refused"},
    "agent": {"op": "turn", "run": "1", "turn": 1, "action": "shell"},
    "reward": {"run": "1", "turn": 1, "total": 1.0, "terms": {"task": 1.0}},
    "finding": {"rule": "example", "title": "An example", "severity": "low"},
    "breaker": {"before": "closed", "after": "frozen", "cause": "example"},
    "control": {"op": "kill"},
    "gap": {"lost": 1, "reason": "example"},
}


def event(kind: str, **fields: Any) -> AnyEvent:
    """Build an event; what is not given has a plausible value ("allow", "verified", times and `seq` 0).

    Args:
        kind: Kind as in the log: "exec", "connect" …
        **fields: Fields of the event.

    Raises:
        ValueError: There is no such kind.
        TypeError: The kind has no such field.
    """
    if kind not in _KINDS:
        msg = f"{kind!r} is not a kind of event; known: {', '.join(sorted(_KINDS))}"
        raise ValueError(msg)
    base = {"seq": 0, "t_mono_ns": 0, "t_wall_ns": 0, "watch": "fa4e0000", "verdict": "allow", "basis": "verified"}
    return _KINDS[kind](**{**base, **_REQUIRED.get(kind, {}), **fields})


class ManualClock:
    """A clock that stands still until a test moves it; wall and monotonic time move apart where that is asked for."""

    def __init__(self, wall_ns: int = 1_700_000_000_000_000_000, monotonic_ns: int = 0) -> None:
        """Set both clocks, in nanoseconds."""
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns

    def monotonic_ns(self) -> int:
        """Monotonic time in nanoseconds, as `time.monotonic_ns`."""
        return self._monotonic_ns

    def wall_ns(self) -> int:
        """Unix time in nanoseconds, as `time.time_ns`."""
        return self._wall_ns

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks.

        Raises:
            ValueError: `seconds` is negative; only the wall clock can step back (`step_wall`).
        """
        if seconds < 0:
            msg = f"monotonic time cannot go back by {-seconds} s"
            raise ValueError(msg)
        self._monotonic_ns += round(seconds * 1e9)
        self._wall_ns += round(seconds * 1e9)

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward or, with a negative number, back."""
        self._wall_ns += round(seconds * 1e9)
