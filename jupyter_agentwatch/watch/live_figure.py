"""Live plotly widgets: one thread of the kernel updates all of them, twice a second, with what has changed.

It is a thread and not the kernel's event loop, because that stands still while a cell runs, which is when there is
most to see. Loads plotly and ipywidgets, hence only when a live figure is asked for.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go  # type: ignore[import-untyped]

from jupyter_agentwatch.watch.sources import Source

__all__ = ["PERIOD_S", "LiveFigure"]

PERIOD_S: Final = 0.5
"""Seconds between two updates."""

_CHANGING: Final[tuple[str, ...]] = ("x", "y", "text")

_log = logging.getLogger(__name__)


class LiveFigure(go.FigureWidget):  # type: ignore[misc] # plotly is untyped here
    """A `plotly.graph_objects.FigureWidget` that follows a watch until it is closed or the watch has ended.

    It goes into any ipywidgets box. Layout, size and colours are the user's: only data and title are updated.

    Args:
        source: What is shown; used by one thread at a time.
        has_ended: Whether there will be nothing more to show.
    """

    data: Any

    def __init__(self, source: Source, has_ended: Callable[[], bool]) -> None:
        self._busy = threading.Lock()
        self._is_closed = False
        source.update()
        traces, layout = source.spec()
        prepared = [_prepared(each) for each in traces]
        super().__init__(data=prepared, layout=layout)
        self._sent = prepared
        self._title = layout["title"]["text"]
        self._source = source
        self._has_ended = has_ended
        _UPDATER.add(self)

    @property
    def is_live(self) -> bool:
        """It is still updated."""
        return not self._is_closed

    def close(self) -> None:
        """Take the figure away, and update it no more."""
        self.stop()
        with self._busy:  # not in the middle of an update
            super().close()

    def stop(self) -> None:
        """Leave the figure as it is now."""
        self._is_closed = True
        _UPDATER.remove(self)

    def refresh(self) -> bool:
        """Show what is new now, without waiting for the next turn; returns whether anything was."""
        with self._busy:
            if self._is_closed:
                return False
            is_last = self._has_ended()
            changed = self._source.update() and self._show(*self._source.spec())
        if is_last:
            self.stop()
        return changed

    def _show(self, traces: list[dict[str, Any]], layout: dict[str, Any]) -> bool:
        prepared = [_prepared(each) for each in traces]
        if [each["name"] for each in prepared] != [each["name"] for each in self._sent]:
            self._replace(prepared, layout)
            return True
        pairs = zip(self._sent, prepared, strict=True)
        changes = [(place, _differences(old, new)) for place, (old, new) in enumerate(pairs)]
        title = layout["title"]["text"]
        if title == self._title and not any(found for _, found in changes):
            return False
        with self.batch_update():
            for place, found in changes:
                for name, value in found.items():
                    self.data[place][name] = value
            if title != self._title:
                self.layout.title.text = title
        self._sent, self._title = prepared, title
        return True

    def _replace(self, prepared: list[dict[str, Any]], layout: dict[str, Any]) -> None:
        """Begin anew: there are other lines than before, such as those of a GPU that has appeared."""
        self.data = ()
        self.add_traces(prepared)
        self.update_layout(title=layout["title"], annotations=layout.get("annotations", []))
        self._sent, self._title = prepared, layout["title"]["text"]


class _Updater:
    """The one thread that updates live figures; it ends with the last of them."""

    def __init__(self) -> None:
        self._figures: list[LiveFigure] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, figure: LiveFigure) -> None:
        with self._lock:
            self._figures.append(figure)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="agentwatch-figures", daemon=True)
                self._thread.start()

    def remove(self, figure: LiveFigure) -> None:
        with self._lock:
            # By identity: two figures that show the same count as equal to plotly.
            self._figures = [each for each in self._figures if each is not figure]

    def _run(self) -> None:
        while True:
            time.sleep(PERIOD_S)
            with self._lock:
                figures = list(self._figures)
                if not figures:
                    self._thread = None
                    return
            for figure in figures:
                try:
                    figure.refresh()
                except Exception:  # noqa: BLE001 -- whatever it is, the other figures must go on
                    _log.exception("a live figure failed; it is updated no more")
                    with contextlib.suppress(Exception):
                        figure.stop()


_UPDATER: Final = _Updater()


def _prepared(trace: dict[str, Any]) -> dict[str, Any]:
    """Return a trace whose numbers are arrays: these travel as bytes, lists as text. Dates are milliseconds."""
    found = dict(trace)
    if found["mode"] == "lines" and found["x"] and isinstance(found["x"][0], int):
        found["x"] = np.asarray(found["x"], dtype=np.float64) / 1e6
    for name in ("x", "y"):
        found[name] = np.asarray(found[name], dtype=np.float64)  # None becomes NaN: a gap
    return found


def _differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    found = {name: new[name] for name in _CHANGING if name in new and not _same(old.get(name), new[name])}
    if old.get("marker") != new.get("marker"):
        found["marker"] = new["marker"]
    return found


def _same(old: Any, new: Any) -> bool:
    if isinstance(new, np.ndarray):
        return isinstance(old, np.ndarray) and np.array_equal(old, new, equal_nan=True)
    return bool(old == new)
