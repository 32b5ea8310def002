"""What waits for one browser: the newest picture, and a bounded backlog of records.

Nobody who puts something here ever waits: what a slow browser does not take in time is dropped, oldest first, and
counted by the gap in `seq` that it leaves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable
from concurrent.futures import Executor
from functools import partial
from typing import Any

from jupyter_agentwatch.server.render import beginnings, encode, event_messages, position

__all__ = ["Backlog", "Viewer", "pump"]

_TAKEN = 256
_TAKEN_BYTES = 256 * 1024
_PACE_S = 0.05
_SHARE = 4
_DRAWINGS = 64


class Backlog:
    """A queue of records, bounded in number and bytes.

    Args:
        most: Records kept.
        most_bytes: Bytes kept.

    Attributes:
        first: The record that came first of all, whether it was kept or not; None before it.
    """

    def __init__(self, most: int = 2000, most_bytes: int = 4 << 20) -> None:
        self.first: bytes | None = None
        self._most = most
        self._most_bytes = most_bytes
        self._bodies: deque[bytes] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._bodies)

    def put(self, body: bytes) -> None:
        """Append a record; the oldest ones go where there is no room."""
        if self.first is None:
            self.first = body
        self._bodies.append(body)
        self._bytes += len(body)
        while len(self._bodies) > self._most or self._bytes > self._most_bytes:
            self._bytes -= len(self._bodies.popleft())

    def take(self) -> list[bytes]:
        """Remove and return the oldest records, as many as make one message."""
        taken: list[bytes] = []
        size = 0
        while self._bodies and len(taken) < _TAKEN and size < _TAKEN_BYTES:
            taken.append(self._bodies.popleft())
            size += len(taken[-1])
        self._bytes -= size
        return taken


class Viewer:
    """One browser's share of a stream. Belongs to the loop.

    Args:
        kinds: Only records of these kinds; None: all.

    Attributes:
        backlog: Records that were not sent yet.
        has_all: It gets records of every kind.
        end: Why nothing more comes, or None.
    """

    def __init__(self, kinds: Collection[str] | None = None) -> None:
        self.backlog = Backlog()
        self.has_all = kinds is None
        self._begin = beginnings(kinds)
        self.end: str | None = None
        self._picture: Any = None
        self._drawings: deque[bytes] = deque(maxlen=_DRAWINGS)
        self._news = asyncio.Event()

    def show(self, picture: Any) -> None:
        """Leave a picture of how things are; it replaces one that was not taken yet."""
        self._picture = picture
        self._news.set()

    def draw(self, messages: Iterable[bytes]) -> None:
        """Leave messages about telemetry, as they are to be sent; the oldest ones go where there are too many."""
        self._drawings.extend(messages)
        if self._drawings:
            self._news.set()

    def put(self, body: bytes) -> None:
        """Leave a record; one of a kind that is not wanted is passed over."""
        if body.startswith(self._begin):
            self.backlog.put(body)
            self._news.set()

    def finish(self, why: str) -> None:
        """Say that nothing more comes."""
        self.end = why
        self._news.set()

    async def wait(self) -> None:
        """Wait until there is something to take."""
        await self._news.wait()
        self._news.clear()
        if self.backlog or self.end is not None:
            self._news.set()  # what is not taken now can be taken at once

    def take_picture(self) -> Any:
        """Remove and return the newest picture, or None."""
        picture, self._picture = self._picture, None
        return picture

    def take_drawings(self) -> list[bytes]:
        """Remove and return the messages about telemetry."""
        taken = list(self._drawings)
        self._drawings.clear()
        return taken


async def pump(viewer: Viewer, send: Callable[[bytes], Awaitable[None]], threads: Executor) -> str:
    """Send a browser what comes: first a picture, then pictures, telemetry and records, until nothing more comes.

    Making records safe takes time, which hostile texts can stretch: a thread does it, for a fifth of the time at most.

    Args:
        viewer: The browser's share.
        send: Takes one message, and returns when the browser's connection has room for the next one.
        threads: Where records are made safe.

    Returns:
        Why nothing more comes.

    Raises:
        ControlError: The supervisor sent what is not a record.
    """
    loop = asyncio.get_running_loop()
    last: int | None = None
    has_begun = False
    while True:
        await viewer.wait()
        picture = viewer.take_picture()
        if picture is not None:
            has_begun = True
            await send(encode({"type": "state", "run": picture}))
        elif not has_begun and viewer.end is None:
            await asyncio.sleep(_PACE_S)
            continue
        for drawing in viewer.take_drawings():
            await send(drawing)
        bodies = viewer.backlog.take()
        if bodies:
            if last is None:
                last = position(viewer.backlog.first or bodies[0]) - 1  # what was dropped since then is a gap, too
            before = loop.time()
            make = partial(event_messages, bodies, last, some=not viewer.has_all)
            messages, last = await loop.run_in_executor(threads, make)
            pause = max(_PACE_S, _SHARE * (loop.time() - before))
            for message in messages:
                await send(message)
            await asyncio.sleep(pause)
        elif viewer.end is not None:
            return viewer.end
