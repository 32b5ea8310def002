"""The circuit breaker as one table. It does not know who trips it, or how processes are stopped.

Every transition is in `TRANSITIONS`; a pair that is not there is refused. `killed` is final, and nothing leaves
`frozen` without a person or the time limit that the policy sets.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, Literal

from jupyter_agentwatch.errors import ControlError

__all__ = ["TRANSITIONS", "BreakerState", "Cause", "after"]

BreakerState = Literal["closed", "frozen", "killed"]
"""closed: everything runs. frozen: every process is stopped and every call waits. killed: nothing is left."""

Cause = Literal["person-suspends", "person-resumes", "person-kills", "trip", "expiry-kills", "expiry-resumes", "ended"]
"""What moves the breaker; "trip" is the monitor itself, "ended" the end of the owner, the sandbox or the session."""

TRANSITIONS: Final = MappingProxyType(
    {
        ("closed", "person-suspends"): "frozen",
        ("closed", "trip"): "frozen",
        ("closed", "person-kills"): "killed",
        ("closed", "ended"): "killed",
        ("frozen", "person-resumes"): "closed",
        ("frozen", "person-kills"): "killed",
        ("frozen", "expiry-kills"): "killed",
        ("frozen", "expiry-resumes"): "closed",
        ("frozen", "ended"): "killed",
    }
)
"""(state, cause) → next state. "ended" is the end of the owner, of the sandbox or of the session's time."""


def after(state: BreakerState, cause: Cause) -> BreakerState:
    """Return the state that follows.

    Raises:
        ControlError: That cannot happen in this state; the text says what state it is in.
    """
    following = TRANSITIONS.get((state, cause))
    if following is None:
        msg = f"cannot {cause.removeprefix('person-').rstrip('s')}: the watch is {state}"
        raise ControlError(msg)
    return following  # type: ignore[return-value]
