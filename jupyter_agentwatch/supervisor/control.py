"""The control socket: every client is one connection, checked by SO_PEERCRED, and every request gets one reply."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from jupyter_agentwatch.errors import AgentwatchError, ControlError
from jupyter_agentwatch.wire.framing import FrameDecoder, encode_frame
from jupyter_agentwatch.wire.messages import PROTOCOL, EventNotice, Failed, FromSupervisor, Hello, ToSupervisor

__all__ = ["Connection", "serve"]

_SLOW_BYTES: Final = 1 << 20
_TOO_SLOW_BYTES: Final = 64 << 20
_EVENT_BACKLOG: Final = 8 << 20

Handle = Callable[[ToSupervisor, "Connection"], Awaitable[FromSupervisor | None]]


class Connection(asyncio.Protocol):
    """One client. `is_slow` while more than 1 MiB waits to be taken by it.

    Args:
        handle: Answers a request; may return None when it has sent the reply itself.
        lost: Called when the client has gone.
        caught_up: Called when a slow client has taken what waited.
    """

    def __init__(
        self, handle: Handle, lost: Callable[[Connection], None], caught_up: Callable[[Connection], None]
    ) -> None:
        self._handle = handle
        self._lost = lost
        self._caught_up = caught_up
        self._frames: FrameDecoder[ToSupervisor] = FrameDecoder(msgspec.msgpack.Decoder(ToSupervisor))
        self._transport: asyncio.Transport | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._left_out = 0
        self.is_slow = False
        self.is_greeted = False
        self.is_owner = False
        self.is_subscribed = False
        self.pid = 0
        self.client = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Refuse whoever is not this user or root."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 -- a stream server makes no other
        self._transport = transport
        sock = transport.get_extra_info("socket")
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        self.pid, uid, _gid = struct.unpack("3i", credentials)
        transport.set_write_buffer_limits(high=_SLOW_BYTES, low=_SLOW_BYTES // 4)
        if uid not in {os.getuid(), 0}:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take the requests that `data` completes; a client that speaks otherwise is dropped."""
        try:
            for request in self._frames.feed(data):
                self._accept(request)
        except ControlError as error:
            self.send(Failed(error="ControlError", text=str(error)))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's signature
        """Tell the supervisor: an owner's end is the watch's."""
        self._transport = None
        self._lost(self)

    def pause_writing(self) -> None:
        """Called by asyncio when too much waits."""
        self.is_slow = True

    def resume_writing(self) -> None:
        """Called by asyncio when the client has caught up."""
        self.is_slow = False
        self._caught_up(self)

    def send(self, message: Any) -> None:
        """Queue a message; nothing happens when the client has gone. One that takes nothing is dropped at 64 MiB."""
        if self._transport is None or self._transport.is_closing():
            return  # what is written to a connection that broke is a warning of asyncio's, from the fifth on
        self._transport.write(encode_frame(message))
        if self._transport.get_write_buffer_size() > _TOO_SLOW_BYTES:
            self._transport.abort()

    def send_events(self, bodies: list[bytes]) -> None:
        """Queue events for a subscriber; one that is too slow is told how many were left out."""
        for body in bodies:
            if self._transport is None or self._transport.is_closing():
                return
            if self._transport.get_write_buffer_size() > _EVENT_BACKLOG:
                self._left_out += 1
                continue
            self._transport.write(encode_frame(EventNotice(event=body, left_out=self._left_out)))
            self._left_out = 0

    def close(self) -> None:
        """Hang up after what is queued."""
        if self._transport is not None:
            self._transport.close()

    def _accept(self, request: ToSupervisor) -> None:
        if not self.is_greeted:
            if not isinstance(request, Hello) or request.protocol != PROTOCOL:
                msg = f"this supervisor speaks protocol {PROTOCOL}, hello first; use the version that started it"
                raise ControlError(msg)
            self.is_greeted = True
            self.is_owner = request.owner
            self.client = request.client
        # In order as they come: a request runs up to its first wait before the next one is looked at.
        task = asyncio.get_running_loop().create_task(self._answer(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: ToSupervisor) -> None:
        try:
            reply = await self._handle(request, self)
        except AgentwatchError as error:
            reply = Failed(error=type(error).__name__, text=str(error))
        except Exception as error:  # noqa: BLE001 -- the client must hear of it, and the supervisor must go on
            reply = Failed(error="ControlError", text=f"the supervisor failed: {type(error).__name__}: {error}")
        if reply is not None:
            self.send(msgspec.structs.replace(reply, id=request.id))


async def serve(path: str, make: Callable[[], Connection]) -> asyncio.Server:
    """Listen on the control socket (mode 0600 in the private runtime folder)."""
    loop = asyncio.get_running_loop()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    try:
        listening.bind(path)
    finally:
        os.umask(before)
    listening.listen(64)
    listening.setblocking(False)
    return await loop.create_unix_server(make, sock=listening)
