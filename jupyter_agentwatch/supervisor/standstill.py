"""Whether a suspended sandbox stands still, and stays so: what goes on all the same has to be killed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

from jupyter_agentwatch.errors import SessionEndedError

__all__ = ["Standstill"]

_PATIENCE_S: Final = 2.0
_LOOK_AGAIN_S: Final = 0.25
_SEEN_RUNNING: Final = 3
"""Looks at a suspended watch, not all in a row, that see a process run before the watch is killed."""


class Standstill:
    """Looks at the states of a suspended watch's processes.

    Args:
        states: Returns the state letter of every thread inside.
        end: Kills the watch, with a reason.
    """

    def __init__(self, states: Callable[[], str], end: Callable[[str], None]) -> None:
        self._states = states
        self._end = end

    async def wait(self) -> None:
        """Wait until every process is stopped or stands in a held call; it takes about a millisecond.

        Raises:
            SessionEndedError: Not all of them did; the watch is being killed.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            if self._is_reached():
                return
            await asyncio.sleep(0.001)
        self._end("processes went on after they were stopped")
        msg = "not every process stopped; the watch is killed"
        raise SessionEndedError(msg)

    async def keep(self) -> None:
        """Kill what goes on: a timer, a descriptor or a terminal's end can send SIGCONT to a stopped process.

        Once does not count: a process that is being killed runs for a moment.
        """
        seen = 0
        with contextlib.suppress(SessionEndedError):
            await self.wait()
            while seen < _SEEN_RUNNING:
                await asyncio.sleep(_LOOK_AGAIN_S)
                seen += not self._is_reached()
            self._end("processes went on after they were stopped")

    def _is_reached(self) -> bool:
        return all(state in "TtDZX" for state in self._states())
