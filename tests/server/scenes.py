"""How a test plays a browser against the Jupyter server that runs in its own loop."""

from __future__ import annotations

import asyncio
import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from jupyter_core.utils import ensure_event_loop
from tornado.httpclient import HTTPClientError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from tornado.websocket import WebSocketClientConnection

LONG_S: Final = 20.0
"""Upper bound of every wait: reached only when a test fails."""


def scene(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a coroutine a test that runs in the server's own loop, where pytest-jupyter's fixtures live."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        loop = ensure_event_loop(prefer_selector_loop=True)
        loop.run_until_complete(asyncio.wait_for(test(**fixtures), 6 * LONG_S))

    return run


@dataclass(frozen=True)
class Answer:
    """A response: status, headers, and the JSON of its body."""

    status: int
    headers: Any
    content: Any


class Stream:
    """One end of a WebSocket: messages as they come."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self.connection = connection

    async def next(self) -> Any:
        """Return the next message, or None when the server has closed; one that is not text has the type "points"."""
        text = await asyncio.wait_for(self.connection.read_message(), LONG_S)
        if text is None:
            self.connection.close()  # tornado wants to hear it from both sides
            return None
        return {"type": "points", "data": text} if isinstance(text, bytes) else json.loads(text)

    async def until(self, kind: str, fits: Callable[[Any], bool] = lambda _: True) -> Any:
        """Return the next message of a type that fits; others before it are passed over."""
        async for message in self:
            if message["type"] == kind and fits(message):
                return message
        raise AssertionError(f"the stream ended before {kind}")  # noqa: TRY003 -- this is its only use

    async def rest(self) -> list[Any]:
        """Return all messages up to the end."""
        return [message async for message in self]

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self.next()) is not None:
            yield message


class Browser:
    """Speaks to the server under test, with its token unless told otherwise."""

    def __init__(self, fetch: Any, connect: Any) -> None:
        self._fetch = fetch
        self._connect = connect

    async def get(self, *parts: str, **options: Any) -> Answer:
        """GET below `agentwatch/`."""
        return await self.send("GET", *parts, **options)

    async def post(self, *parts: str, body: Any = None, **options: Any) -> Answer:
        """POST below `agentwatch/`; bytes go as they are, anything else as JSON, None as no body at all."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        return await self.send("POST", *parts, body=data, **options)

    async def send(self, method: str, *parts: str, **options: Any) -> Answer:
        """Send any request."""
        response = await self._fetch("agentwatch", *parts, method=method, raise_error=False, **options)
        is_json = response.headers.get("Content-Type", "").startswith("application/json")
        return Answer(response.code, response.headers, json.loads(response.body) if is_json else None)

    async def stream(self, *parts: str, **options: Any) -> Stream:
        """Open a WebSocket below `agentwatch/`."""
        return Stream(await self._connect("agentwatch", *parts, **options))

    async def refused_stream(self, *parts: str, **options: Any) -> int:
        """Open a WebSocket that must be refused; return the status."""
        try:
            await self._connect("agentwatch", *parts, **options)
        except HTTPClientError as error:
            return int(error.code)
        raise AssertionError("the stream was not refused")  # noqa: TRY003 -- this is its only use
