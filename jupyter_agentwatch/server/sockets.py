"""The WebSocket face: authenticated, authorised, same origin only, and never listened to: browsers act by POST."""

from __future__ import annotations

import asyncio
from typing import Any

from jupyter_server.auth.decorator import authorized, ws_authenticated
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from tornado import web
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from jupyter_agentwatch.errors import AgentwatchError, SessionEndedError
from jupyter_agentwatch.server.curves import Packed
from jupyter_agentwatch.server.handlers import RESOURCE, SETTING, Relay, kinds_of
from jupyter_agentwatch.server.render import encode, safe
from jupyter_agentwatch.server.runs import UnknownRunError
from jupyter_agentwatch.server.viewers import pump
from jupyter_agentwatch.wire.runtime import is_watch_id

__all__ = ["RunSocket", "SummarySocket"]

_DONE = 1000
_FAILED = 1011
_TRY_AGAIN = 1013


class _Socket(WebSocketMixin, WebSocketHandler, JupyterHandler):
    """Base: relays in a task of its own, which ends with the connection."""

    auth_resource = RESOURCE
    write_error = APIHandler.write_error  # a refusal is JSON here, too
    _task: asyncio.Task[None] | None = None

    @property
    def relay(self) -> Relay:
        relay: Relay = self.settings[SETTING]
        return relay

    def set_default_headers(self) -> None:
        """No policy for documents: this is none."""
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")

    async def prepare(self, **kwargs: Any) -> None:
        """Look at the origin before anything else, or the kind of refusal would tell a foreign page what runs here."""
        await super().prepare(**kwargs)
        origin = self.request.headers.get("Origin")
        if origin is not None and not self.check_origin(origin):
            raise web.HTTPError(403)

    async def open(self, *args: Any, **kwargs: Any) -> None:
        super().open(*args, **kwargs)  # begins to ping
        self._task = asyncio.ensure_future(self._run())

    def get_compression_options(self) -> dict[str, Any]:
        """Offer the cheapest deflate: records are alike, and become a fifth; what comes from a page is never read."""
        return {"compression_level": 1, "mem_level": 5}

    def on_message(self, message: str | bytes) -> None:
        """Nothing is taken from browsers here."""

    def on_close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        super().on_close()

    async def _run(self) -> None:
        try:
            code = await self._stream()
        except WebSocketClosedError:  # the browser went away
            return
        except Exception:
            self.log.exception("agentwatch: a stream failed")
            code = _FAILED
        self.close(code)

    async def _stream(self) -> int:
        """Send messages until nothing more comes; return the code to close with."""
        raise NotImplementedError

    async def send(self, message: bytes) -> None:
        await self.write_message(message, binary=isinstance(message, Packed))


class RunSocket(_Socket):
    """`stream?run=ID`: first a `state`, then `state`, `lines`, `events`, `gap` as they come, last `ended` or `lost`.

    With `&kinds=A,B` only records of these kinds, and no `gap`. What is not text is points of the lines
    (`curves.Packed`).
    """

    @ws_authenticated
    @authorized
    async def get(self) -> None:
        """Begin the stream of a run that is or was; refuse any other."""
        self._watch = self.get_query_argument("run", "")
        if not is_watch_id(self._watch):
            raise web.HTTPError(400, "give ?run= with the id of a run: 8 hexadecimal characters")
        try:
            self._kinds = kinds_of(self.get_query_argument("kinds", ""))
        except AgentwatchError as error:
            raise web.HTTPError(400, str(error)) from error
        try:
            await self.relay.runs.check(self._watch)
        except UnknownRunError as error:
            raise web.HTTPError(404, str(error)) from error
        except AgentwatchError as error:
            raise web.HTTPError(502, str(error)) from error
        await super().get()

    async def _stream(self) -> int:
        feeds = self.relay.feeds
        try:
            viewer = await feeds.join(self._watch, self._kinds)
        except SessionEndedError as error:
            return await self._part(str(error))
        except AgentwatchError as error:
            return await self._lose(str(error))
        try:
            why = await pump(viewer, self.send, feeds.threads)
        except AgentwatchError as error:
            return await self._lose(str(error))
        finally:
            feeds.leave(self._watch, viewer)
        return await self._part(why)

    async def _part(self, why: str) -> int:
        """Say how the run ended, unless only its connection did."""
        try:
            found = await self.relay.runs.outcome(self._watch)
        except AgentwatchError as error:
            return await self._lose(f"{why}; {error}")
        await self.send(encode({"type": "ended", "run": found, "message": safe(why)}))
        return _DONE

    async def _lose(self, why: str) -> int:
        await self.send(encode({"type": "lost", "message": safe(why)}))
        return _TRY_AGAIN


class SummarySocket(_Socket):
    """`summary`: all runs, at once and whenever something about one of them changes."""

    @ws_authenticated
    @authorized
    async def get(self) -> None:
        """Begin the stream."""
        await super().get()

    async def _stream(self) -> int:
        viewer = self.relay.summary.join()
        try:
            while True:
                await viewer.wait()
                picture = viewer.take_picture()
                if picture is not None:
                    await self.send(encode({"type": "runs", **picture}))
        finally:
            self.relay.summary.leave(viewer)
