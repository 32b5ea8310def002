"""Keeps beside a dashboard what a notebook shows without any kernel: drawn anew as the record grows.

An output of its own, because a page draws the dashboard anew whenever its own output changes.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from typing import Any, Final

from IPython.display import DisplayHandle

from jupyter_agentwatch.audit.chain import open_line
from jupyter_agentwatch.audit.reader import LogTail, decode_line
from jupyter_agentwatch.errors import AgentwatchError
from jupyter_agentwatch.events import printable
from jupyter_agentwatch.watch.picture import saved_html
from jupyter_agentwatch.watch.story import Story
from jupyter_agentwatch.wire.runtime import audit_log

__all__ = ["Saved"]

_LOOK_S: Final = 1.0
_DRAW_S: Final = 5.0
_FIRST: Final = 2000  # the cell waits for these
_BATCH: Final = 20_000


class Saved:
    """A thread that redraws one output of a notebook until the run ends or it is closed.

    Args:
        run: Id of the watch.
    """

    def __init__(self, run: str) -> None:
        self._tail = LogTail(audit_log(run))
        self._story = Story(run)
        self._head = ""
        self._id = f"{run}-{secrets.token_hex(4)}"
        self._handle = DisplayHandle()  # type: ignore[no-untyped-call]
        self._stop = threading.Event()
        with contextlib.suppress(AgentwatchError):  # no record yet, or none any more: the thread tries again, once
            self._read(_FIRST)
        self._handle.display(self._content(), raw=True)  # type: ignore[no-untyped-call]
        self._thread = threading.Thread(target=self._follow, name=f"agentwatch-saved-{run}", daemon=True)
        if not self._story.has_ended:
            self._thread.start()

    def close(self) -> None:
        """Redraw no more; does not wait."""
        self._stop.set()

    def _follow(self) -> None:
        since_s = 0.0
        has_news = False
        while not self._stop.wait(_LOOK_S):
            since_s += _LOOK_S
            try:
                has_news |= self._read()
            except AgentwatchError:
                return  # what is there stays: it says until when it holds
            if has_news and (since_s >= _DRAW_S or self._story.has_ended):
                self._handle.update(self._content(), raw=True)  # type: ignore[no-untyped-call]
                since_s, has_news = 0.0, False
            if self._story.has_ended:
                return

    def _read(self, most: int = _BATCH) -> bool:
        """Take so many new records of the log at most; return whether there was any."""
        lines = self._tail.read_lines(most)
        for line in lines:
            self._story.feed(decode_line(line, self._tail.path, "a line"))
            self._head = open_line(line).hash.decode()
        return bool(lines)

    def _content(self) -> dict[str, Any]:
        log = str(audit_log(self._story.watch))
        text = f"agent run {self._story.watch}: {self._story.state}, log {printable(log, 4096)}, head {self._head}"
        return {"text/html": saved_html(self._story, self._head, log, self._id), "text/plain": text}
