"""Questions that wait for a person: a call with the verdict `ask` is held until an answer, or until a time limit."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from jupyter_agentwatch.errors import ControlError

__all__ = ["Asks"]

Answered = Callable[[bool, str], None]


class Asks:
    """Open questions by number. Belongs to the loop, but for `put_from_thread`.

    Args:
        loop: The control thread's loop.
        timeout_s: Seconds after which an unanswered question is denied.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self._loop = loop
        self._timeout_s = timeout_s
        self._open: dict[int, tuple[str, Answered, asyncio.TimerHandle]] = {}
        self._ids = itertools.count(1)

    def texts(self) -> dict[int, str]:
        """Return what is asked, by number."""
        return {ident: text for ident, (text, _, _) in self._open.items()}

    def left_s(self) -> dict[int, float]:
        """Return the seconds until each question counts as denied, by number."""
        now = self._loop.time()
        return {ident: round(max(0.0, timer.when() - now), 3) for ident, (_, _, timer) in self._open.items()}

    def put(self, text: str, answered: Answered) -> None:
        """Ask; `answered` gets the answer and who gave it, on the loop."""
        ident = next(self._ids)
        nobody = f"nobody answered in {self._timeout_s:g} s"
        timer = self._loop.call_later(self._timeout_s, self._resolve, ident, False, nobody)
        self._open[ident] = (text, answered, timer)

    def put_from_thread(self, text: str, step: int, answered: Answered) -> None:
        """Ask from another thread."""
        self._loop.call_soon_threadsafe(self.put, f"step {step}: {text}", answered)

    async def name(self, name: str) -> bool:
        """Ask whether a name may be resolved."""
        future: asyncio.Future[bool] = self._loop.create_future()

        def answered(allow: bool, _by: str) -> None:
            if not future.done():
                future.set_result(allow)

        self.put(f"resolve {name}", answered)
        return await future

    def answer(self, ident: int, by: str, *, allow: bool) -> None:
        """Take a person's word.

        Raises:
            ControlError: There is no such open question.
        """
        if ident not in self._open:
            known = ", ".join(map(str, self._open)) or "none"
            msg = f"no open question {ident} (it may have timed out); open: {known}"
            raise ControlError(msg)
        self._resolve(ident, allow, by)

    def _resolve(self, ident: int, allow: bool, by: str) -> None:
        _, answered, timer = self._open.pop(ident)
        timer.cancel()
        answered(allow, by)
