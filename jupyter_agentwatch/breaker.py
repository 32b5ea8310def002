"""The circuit breaker as one table, and what makes findings trip it. It does not know how processes are stopped.

Every transition is in `TRANSITIONS`; a pair that is not there is refused. `killed` is final, and nothing leaves
`throttled` or `frozen` for `closed` without a person or the time limit that the policy sets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, get_args

from jupyter_agentwatch.errors import ControlError
from jupyter_agentwatch.events import Severity

__all__ = ["TRANSITIONS", "BreakerState", "Cause", "Judge", "Signal", "Thresholds", "Trip", "after"]

BreakerState = Literal["closed", "throttled", "frozen", "killed"]
"""closed: everything runs. throttled: no new connection, no flow, no new command; processes run. frozen: every process
is stopped, too, and every call waits. killed: nothing is left."""

Cause = Literal[
    "person-suspends",
    "person-resumes",
    "person-kills",
    "throttle",
    "trip",
    "expiry-kills",
    "expiry-resumes",
    "ended",
]
"""What moves the breaker; "throttle" and "trip" are the monitor's own, "ended" is the end of the owner, the sandbox or
the session."""

TRANSITIONS: Final = MappingProxyType[tuple[BreakerState, Cause], BreakerState](
    {
        ("closed", "throttle"): "throttled",
        ("closed", "person-suspends"): "frozen",
        ("closed", "trip"): "frozen",
        ("closed", "person-kills"): "killed",
        ("closed", "ended"): "killed",
        ("throttled", "person-suspends"): "frozen",
        ("throttled", "trip"): "frozen",
        ("throttled", "person-resumes"): "closed",
        ("throttled", "person-kills"): "killed",
        ("throttled", "ended"): "killed",
        ("frozen", "person-resumes"): "closed",
        ("frozen", "person-kills"): "killed",
        ("frozen", "expiry-kills"): "killed",
        ("frozen", "expiry-resumes"): "closed",
        ("frozen", "ended"): "killed",
    }
)
"""(state, cause) → next state."""


def after(state: BreakerState, cause: Cause) -> BreakerState:
    """Return the state that follows.

    Raises:
        ControlError: That cannot happen in this state; the text says what state it is in.
    """
    following = TRANSITIONS.get((state, cause))
    if following is None:
        msg = f"cannot {cause.removeprefix('person-').rstrip('s')}: the watch is {state}"
        raise ControlError(msg)
    return following


_RANK: Final = MappingProxyType({severity: rank for rank, severity in enumerate(get_args(Severity))})
_NEVER: Final = len(_RANK)
_KEPT: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """From which severity on findings do what; "never" for not at all.

    Attributes:
        freeze_at: One finding freezes.
        throttle_at: One finding throttles.
        two_families_at: Findings of two families, resting on different records, freeze together.
        two_families_ns: Within so many nanoseconds.
    """

    freeze_at: str = "critical"
    throttle_at: str = "never"
    two_families_at: str = "high"
    two_families_ns: int = 300_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """What the judge looks at of a finding.

    Attributes:
        seq: Position of the finding in the log.
        t_ns: Monotonic time, nanoseconds.
        rule: Id of the rule.
        title: What was seen.
        severity: How much it matters.
        family: What it is a sign of; "" counts as no witness.
        evidence: `seq` of the records that it rests on.
        step: Command that it is about, 0 where none is.
    """

    seq: int
    t_ns: int
    rule: str
    title: str
    severity: Severity
    family: str = ""
    evidence: Collection[int] = ()
    step: int = 0


@dataclass(frozen=True, slots=True)
class Trip:
    """What is to be done about findings.

    Attributes:
        cause: "trip" freezes, "throttle" throttles.
        why: In words, with the agent's own in them.
        evidence: `seq` of the findings.
        step: Command that the last of them is about, 0 where none is.
    """

    cause: Literal["trip", "throttle"]
    why: str
    evidence: tuple[int, ...]
    step: int = 0


class Judge:
    """Says which finding trips the breaker: one that is unambiguous, or two of different kinds inside a window.

    Two families over the same record are one witness, not two: both have read the same words.

    Args:
        thresholds: From which severity on.
    """

    def __init__(self, thresholds: Thresholds) -> None:
        self._freeze = _rank(thresholds.freeze_at)
        self._throttle = _rank(thresholds.throttle_at)
        self._pair = _rank(thresholds.two_families_at)
        self._window_ns = thresholds.two_families_ns
        # By family: whoever floods the record with one kind of finding pushes out none of another.
        self._recent: dict[str, deque[Signal]] = {}

    def weigh(self, signal: Signal) -> Trip | None:
        """Take the next finding into account; return what is to be done, or None where a warning is enough."""
        rank = _RANK[signal.severity]
        if rank >= self._freeze:
            return Trip("trip", _told(signal), (signal.seq,), signal.step)
        if rank >= self._pair and signal.family:
            witness = self._witness(signal)
            self._recent.setdefault(signal.family, deque(maxlen=_KEPT)).append(signal)
            if witness is not None:
                return Trip("trip", f"{_told(witness)}; {_told(signal)}", (witness.seq, signal.seq), signal.step)
        if rank >= self._throttle:
            return Trip("throttle", _told(signal), (signal.seq,), signal.step)
        return None

    def acquit(self) -> None:
        """Forget what has been seen: a person has judged it. Every rule stays armed."""
        self._recent.clear()

    def _witness(self, signal: Signal) -> Signal | None:
        """Return the newest finding of another family inside the window that rests on other records."""
        records = set(signal.evidence)
        others = (each for family, seen in self._recent.items() if family != signal.family for each in seen)
        fitting = [
            each for each in others if signal.t_ns - each.t_ns <= self._window_ns and records.isdisjoint(each.evidence)
        ]
        return max(fitting, key=lambda each: each.seq, default=None)


def _rank(severity: str) -> int:
    return _RANK.get(severity, _NEVER)


def _told(signal: Signal) -> str:
    return f"{signal.severity}: {signal.title} [{signal.rule}]"
