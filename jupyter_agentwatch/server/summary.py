"""All runs at a glance, for a status bar: asked once a second, only while somebody looks, and once for everybody."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from jupyter_agentwatch.errors import AgentwatchError
from jupyter_agentwatch.server.render import safe
from jupyter_agentwatch.server.runs import Runs
from jupyter_agentwatch.server.viewers import Viewer

__all__ = ["Summary"]

_EVERY_S: Final = 1.0
_PATIENCE_S: Final = 0.5
_VOLATILE: Final = frozenset({"elapsed_s", "head", "asks_left_s", "frozen_left_s"})


class Summary:
    """Watches the list of runs on behalf of any number of browsers.

    Args:
        runs: What is looked at.
    """

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._viewers: set[Viewer] = set()
        self._latest: dict[str, Any] | None = None
        self._rows: dict[str, dict[str, Any]] = {}
        self._asked: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self._hurry = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None

    def join(self) -> Viewer:
        """Begin to look."""
        viewer = Viewer()
        self._viewers.add(viewer)
        if self._latest is not None:
            viewer.show(self._latest)
        if self._poller is None:
            self._poller = asyncio.ensure_future(self._poll())
        self.hurry()
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """Look no longer; with the last one the polling ends."""
        self._viewers.discard(viewer)
        if not self._viewers and self._poller is not None:
            self._poller.cancel()
            self._poller = self._latest = None

    def hurry(self) -> None:
        """Look again now: something has just been done."""
        self._hurry.set()

    async def _poll(self) -> None:
        while True:
            self._hurry.clear()
            try:
                self._show({"runs": await self._look()})
            except AgentwatchError as error:
                self._show({"runs": [], "error": safe(str(error))})
            try:
                await asyncio.wait_for(self._hurry.wait(), _EVERY_S)
            except TimeoutError:
                continue

    async def _look(self) -> list[dict[str, Any]]:
        """Return a row for each live watch; one that has not answered yet is silent, and is not asked twice."""
        ids = await self._runs.live()
        for watch in ids:
            if watch not in self._asked:
                self._asked[watch] = asyncio.ensure_future(self._runs.describe(watch))
        if self._asked:
            await asyncio.wait(self._asked.values(), timeout=_PATIENCE_S)
        for watch in [name for name, task in self._asked.items() if task.done()]:
            self._rows[watch] = self._asked.pop(watch).result()
        self._rows = {name: self._rows[name] for name in ids if name in self._rows}
        late = {"state": "silent", "error": "no answer yet"}
        return [{**self._rows.get(name, {"watch": name}), **(late if name in self._asked else {})} for name in ids]

    def _show(self, picture: dict[str, Any]) -> None:
        before, self._latest = self._latest, picture
        if before is None or _steady(before) != _steady(picture):
            for viewer in self._viewers:
                viewer.show(picture)


def _steady(picture: dict[str, Any]) -> dict[str, Any]:
    """Return a picture without what changes all the time."""
    return {**picture, "runs": [{k: v for k, v in row.items() if k not in _VOLATILE} for row in picture["runs"]]}
