"""Looks whether the threads of the supervisor go on, and ends what does not: a monitor that hangs protects nobody.

It is a thread of its own, takes no lock, and does nothing but look, count and kill, so that nothing can hold it up.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

__all__ = ["EXIT_FORCED", "Progress", "Watchdog"]

EXIT_FORCED: Final = 124
"""Exit status of a supervisor whose threads did not end by themselves."""

_LOOK_S: Final = 1.0
_LOOKS: Final = 5
"""Looks in a row, after the first one, at the same piece of work before it counts as stuck.

Looks are counted, not seconds: while the whole process is stopped, or the machine sleeps, nobody looks.
"""

_KILL_LOOKS: Final = 30
"""Looks that a kill may take, until the log is closed."""

_GRACE_S: Final = 5.0
"""Seconds that the threads have to end by themselves when the watch has ended."""

_SPIN_S: Final = 5.0
"""Seconds of processor time in user mode between two looks after which the kernel ends it.

A call that computes without ever letting go of the interpreter holds up this thread as well. Time that the process is
stopped, or waits for the machine, does not count, nor does what the kernel does for it: many relays may be at work.
"""

Progress = Callable[[], int | None]
"""Returns a number that changes as work goes on, or None where there is nothing to do."""


class Watchdog:
    """Looks every second.

    Args:
        watched: Work that must go on, by name.
        stuck: Told the name of work that does not, once, on the watchdog's thread; it must not wait.
        beat: Has the control thread call what it is given; raises RuntimeError where that one has ended.
        destroy: Kills the sandbox without the control thread.
    """

    def __init__(
        self,
        *,
        watched: Mapping[str, Progress],
        stuck: Callable[[str], None],
        beat: Callable[[Callable[[], None]], object],
        destroy: Callable[[], None],
    ) -> None:
        self._watched = dict(watched)
        self._stuck = stuck
        self._beat = beat
        self._destroy = destroy
        self._seen: dict[str, tuple[int, int]] = {}
        self._asked = self._answered = 0
        self._over = threading.Event()
        self._left = math.inf

    def start(self) -> None:
        """Begin to look."""
        signal.setitimer(signal.ITIMER_VIRTUAL, _SPIN_S)  # the look that winds it up again may never come
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def kill_began(self) -> None:
        """Take note that the sandbox is being killed: whatever holds it up, this process ends in half a minute."""
        self._left = _KILL_LOOKS

    def watch_ended(self) -> None:
        """Take note that the log is closed: the process must be gone soon, whatever its threads do."""
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(_LOOK_S):
            signal.setitimer(signal.ITIMER_VIRTUAL, _SPIN_S)
            self._left -= 1
            if self._left < 0:
                self._leave()
            for name, progress in list(self._watched.items()):
                if self._is_stuck(name, progress()):
                    del self._watched[name]
                    self._stuck(name)
            if not self._has_control():
                # Nobody could end the sandbox any more. Its end may take away what holds the control thread up.
                threading.Thread(target=self._destroy, name="destroyer", daemon=True).start()
                if not self._over.wait(_GRACE_S):
                    self._leave()
        time.sleep(_GRACE_S)
        self._leave()

    def _leave(self) -> None:
        os.write(2, b"agentwatch: the supervisor's threads did not end by themselves\n")
        os._exit(EXIT_FORCED)

    def _has_control(self) -> bool:
        if self._answered == self._asked:
            self._asked += 1
            try:
                self._beat(self._answer)
            except RuntimeError:
                return False
            return True
        return not self._is_stuck("control", self._asked)

    def _answer(self) -> None:
        self._answered = self._asked

    def _is_stuck(self, name: str, progress: int | None) -> bool:
        before, looks = self._seen.get(name, (None, 0))
        looks = looks + 1 if progress is not None and progress == before else 0
        self._seen[name] = (-1 if progress is None else progress, looks)
        return looks >= _LOOKS
