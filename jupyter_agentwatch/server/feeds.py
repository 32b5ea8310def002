"""Connections to supervisors on behalf of browsers: one for each run that somebody looks at, however many they are.

A feed always takes what its supervisor sends, so that no browser slows a supervisor down.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Final

from jupyter_agentwatch.errors import ControlError
from jupyter_agentwatch.server.curves import Curves, News
from jupyter_agentwatch.server.runs import Runs
from jupyter_agentwatch.server.viewers import Viewer
from jupyter_agentwatch.wire.framing import FrameDecoder, encode_frame
from jupyter_agentwatch.wire.messages import (
    PROTOCOL,
    Ack,
    EventNotice,
    FromSupervisor,
    Hello,
    SampleNotice,
    Status,
    Subscribe,
    SubscribeSamples,
    WatchStatus,
)
from jupyter_agentwatch.wire.peer import GONE, answer_to, expect, open_socket, shake_hands, talk
from jupyter_agentwatch.wire.runtime import control_socket
from jupyter_agentwatch.wire.watches import ANSWER_S

__all__ = ["Feed", "Feeds"]

_NAME = "jupyter server"
_EVERY_S = 1.0
_SOON_S = 0.05
_DRAW_S = 0.3
_SAMPLES = 256
_CHANGES_THE_PICTURE: Final = (b'{"kind":"breaker"', b'{"kind":"control"', b'{"kind":"step"', b'{"kind":"finding"')
_VOLATILE: Final = frozenset({"elapsed_s", "head", "asks_left_s", "frozen_left_s"})


class Feed(asyncio.Protocol):
    """One connection to a supervisor that has been greeted and has been asked for every event and sample.

    Args:
        frames: The decoder, which may hold events already.
        picture: Turns a status into what browsers get.
        threads: Where samples are turned into what browsers draw.
        ended: Called when the connection has gone.
    """

    def __init__(
        self,
        frames: FrameDecoder[FromSupervisor],
        picture: Callable[[WatchStatus], dict[str, Any]],
        threads: Executor,
        ended: Callable[[], None],
    ) -> None:
        self.has_ended = False
        self._frames = frames
        self._picture = picture
        self._threads = threads
        self._ended = ended
        self._curves = Curves()
        self._samples: deque[bytes] = deque(maxlen=_SAMPLES)
        self._newcomers: set[Viewer] = set()
        self._drawing: asyncio.TimerHandle | asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._viewers: set[Viewer] = set()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._latest: dict[str, Any] | None = None
        self._asked_at: float | None = None
        self._asks_soon = False
        self._why = ""

    @property
    def is_watched(self) -> bool:
        """Somebody still looks at this run."""
        return bool(self._viewers)

    def add(self, viewer: Viewer) -> None:
        """Give a browser every further event, beginning with a picture, and the lines that were drawn so far."""
        self._viewers.add(viewer)
        self._newcomers.add(viewer)
        self._draw_soon(0)
        if self._latest is not None:
            viewer.show(self._latest)
            self._ask()

    def remove(self, viewer: Viewer) -> None:
        """Forget a browser."""
        self._viewers.discard(viewer)
        self._newcomers.discard(viewer)

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take what came with the answer to the greeting, and keep asking how the run is."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 -- a stream connection has no other
        self._transport = transport
        self.data_received(b"")
        self._tick()

    def data_received(self, data: bytes) -> None:
        """Pass on what the supervisor says; one that says anything else is left."""
        try:
            for message in self._frames.feed(data):
                if isinstance(message, EventNotice):
                    self._pass_on(message.event)
                elif isinstance(message, SampleNotice):
                    self._samples.append(message.sample)
                    self._draw_soon(_DRAW_S)
                elif isinstance(message, WatchStatus):
                    self._asked_at = None
                    self._show(self._picture(message))
        except ControlError as error:
            self._why = str(error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every browser."""
        self.has_ended = True
        self._transport = None
        for waiting in (self._timer, self._drawing):
            if waiting is not None:
                waiting.cancel()
        why = self._why or GONE.format(exc or "end of stream")
        for viewer in self._viewers:
            viewer.finish(why)
        self._ended()

    def _pass_on(self, body: bytes) -> None:
        for viewer in self._viewers:
            viewer.put(body)
        if not self._asks_soon and (body.startswith(_CHANGES_THE_PICTURE) or b'"verdict":"ask"' in body):
            self._asks_soon = True
            self._loop.call_later(_SOON_S, self._ask)

    def _draw_soon(self, after_s: float) -> None:
        if self._drawing is None and not self.has_ended:
            self._drawing = self._loop.call_later(after_s, self._begin_drawing)

    def _begin_drawing(self) -> None:
        self._drawing = self._loop.create_task(self._draw())

    async def _draw(self) -> None:
        """Turn the samples that came into what browsers draw, once for all of them, and never on the loop."""
        samples, newcomers = list(self._samples), self._newcomers
        self._samples.clear()
        self._newcomers = set()
        try:
            new, whole = await self._loop.run_in_executor(self._threads, _news, self._curves, samples, bool(newcomers))
        except ControlError as error:
            self._why = str(error)
            self.close()
            return
        for viewer in self._viewers - self._newcomers:  # who came meanwhile gets all of it next time
            viewer.draw((whole if viewer in newcomers else new).messages)
        self._drawing = None
        if self._samples or self._newcomers:
            self._draw_soon(_DRAW_S)

    def _tick(self) -> None:
        if self._asked_at is not None and self._latest is not None and self._loop.time() - self._asked_at > ANSWER_S:
            self._show({**self._latest, "state": "silent"})
        self._ask()
        self._timer = self._loop.call_later(_EVERY_S, self._tick)

    def _ask(self) -> None:
        self._asks_soon = False
        if self._asked_at is None and self._transport is not None:
            self._asked_at = self._loop.time()
            self._transport.write(encode_frame(Status(id=3)))

    def _show(self, picture: dict[str, Any]) -> None:
        before, self._latest = self._latest, picture
        if before is None or any(picture[name] != before[name] for name in picture.keys() - _VOLATILE):
            for viewer in self._viewers:
                viewer.show(picture)


class Feeds:
    """The feeds of all runs that somebody looks at.

    Args:
        runs: How a run is described, and where blocking work is done.
    """

    def __init__(self, runs: Runs) -> None:
        self.threads = ThreadPoolExecutor(2, "agentwatch-safe")
        self._runs = runs
        self._feeds: dict[str, asyncio.Task[Feed]] = {}

    async def join(self, watch: str, kinds: Collection[str] | None = None) -> Viewer:
        """Begin to look at a run.

        Args:
            watch: Id of a watch that `Runs.check` has accepted.
            kinds: Only records of these kinds; None: all.

        Raises:
            SessionEndedError: Nobody listens on its socket.
            ControlError: Its supervisor does not answer, or is another user's.
        """
        viewer = Viewer(kinds)
        while True:
            task = self._feeds.get(watch)
            if task is None:
                task = self._feeds[watch] = asyncio.ensure_future(self._open(watch))
            try:
                feed = await asyncio.shield(task)
            except BaseException:
                if task.done():
                    self._forget(watch, task)
                else:  # this browser left meanwhile; was it the only one?
                    task.add_done_callback(lambda done: done.get_loop().call_later(_EVERY_S, self.leave, watch, viewer))
                raise
            if not feed.has_ended:
                feed.add(viewer)
                return viewer
            self._forget(watch, task)

    def leave(self, watch: str, viewer: Viewer) -> None:
        """Look no longer; with the last one the connection ends."""
        task = self._feeds.get(watch)
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return
        feed = task.result()
        feed.remove(viewer)
        if not feed.is_watched:
            self._forget(watch, task)
            feed.close()

    async def _open(self, watch: str) -> Feed:
        task = asyncio.current_task()
        sock, frames = await self._runs.in_thread(_subscribe, watch)
        loop = asyncio.get_running_loop()

        def make() -> Feed:
            return Feed(frames, self._runs.picture, self.threads, lambda: self._forget(watch, task))

        try:
            _, feed = await loop.create_unix_connection(make, sock=sock)
        except BaseException:
            sock.close()
            raise
        return feed

    def _forget(self, watch: str, task: asyncio.Task[Any] | None) -> None:
        if self._feeds.get(watch) is task:
            del self._feeds[watch]


def _news(curves: Curves, samples: list[bytes], with_all: bool) -> tuple[News, News]:
    new = curves.take(samples)
    return new, curves.whole() if with_all else new


def _subscribe(watch: str) -> tuple[socket.socket, FrameDecoder[FromSupervisor]]:
    sock, frames = open_socket(control_socket(watch), ANSWER_S)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(sock.close)
        shake_hands(sock, frames, Hello(id=1, protocol=PROTOCOL, client=_NAME))
        expect(answer_to(talk(sock, frames, Subscribe(id=2)), 2), Ack)
        sock.sendall(encode_frame(SubscribeSamples(id=4)))
        sock.setblocking(False)
        on_failure.pop_all()
    return sock, frames
