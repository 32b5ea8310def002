"""Commands of a framework that knows no breaker: what it asks for waits while the watch is stopped.

An agent that learns why it was stopped can learn how not to be noticed, so nothing here gives a reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from jupyter_agentwatch.errors import ControlError, SessionEndedError
from jupyter_agentwatch.watch import Watch

__all__ = ["ENDED", "LOOK_S", "when_closed"]

LOOK_S: Final = 0.5
"""Seconds between two looks at a watch that is stopped."""

ENDED: Final = "the sandbox is gone"
"""All that a framework is told of a watch that was killed."""

T = TypeVar("T")


def when_closed(watch: Watch, act: Callable[[], T], *, wait: Callable[[float], object] = time.sleep) -> T:
    """Do something as soon as the watch's breaker lets commands begin.

    Args:
        watch: The watch.
        act: What begins a command: it is tried again while the breaker refuses it.
        wait: Waits for so many seconds between two tries.

    Raises:
        SessionEndedError: The watch was killed while it was stopped, or before.
        ControlError: The supervisor refused for another reason.
    """
    was_closed = False
    while True:
        try:
            return act()
        except SessionEndedError:
            raise
        except ControlError:
            # Once more where it is closed by now: somebody may have resumed it since the refusal.
            if was_closed:
                raise
            was_closed = watch.status().state == "closed"
        if not was_closed:
            wait(LOOK_S)
