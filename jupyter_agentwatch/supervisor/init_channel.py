"""Requests to the sandbox's init and its news, on the control thread's loop.

Init runs inside: what it says is taken for what it should be or not at all, and a word out of place counts as its end.
"""

from __future__ import annotations

import array
import asyncio
import errno
import marshal
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, TypedDict

import msgspec

from jupyter_agentwatch.errors import SessionEndedError

__all__ = ["InitChannel"]

_MAX_MESSAGE: Final = 1 << 16
_MAX_SENT: Final = 1 << 17
"""A longer request goes in a file: Linux's default bound of a message is 208 KiB, and of arguments 2 MiB."""
_MAX_FDS: Final = 64
_MAX_AT_ONCE: Final = 32
_PATIENCE_S: Final = 10.0

Reply = tuple[dict[str, Any], list[int]]

_Number = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
_Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class _Ended(TypedDict):
    pid: _Number
    status: _Number
    step: _Number
    user: _Seconds
    system: _Seconds
    rss: _Bytes


class _News(TypedDict):
    exit: _Ended


class _Spawned(TypedDict):
    spawned: _Number
    errno: _Number


class _Frozen(TypedDict):
    frozen: list[_Number]


class _Thawed(TypedDict):
    thawed: bool


class _Killed(TypedDict):
    killed: _Number


class _Sockets(TypedDict):
    sockets: _Number
    ipv6: bool


_NEWS: Final = msgspec.json.Decoder(_News)
_REPLIES: Final[dict[str, msgspec.json.Decoder[Any]]] = {
    "spawn": msgspec.json.Decoder(_Spawned),
    "freeze": msgspec.json.Decoder(_Frozen),
    "thaw": msgspec.json.Decoder(_Thawed),
    "kill_sessions": msgspec.json.Decoder(_Killed),
    "sockets": msgspec.json.Decoder(_Sockets),
}
"""Request → what answers it."""


class InitChannel:
    """Init answers requests in the order in which they come, so replies are matched by order.

    Args:
        loop: The control thread's loop.
        control: SOCK_SEQPACKET socket to init.
        on_exit: Called with each process that init reaped.
        on_end: Called once when init is gone, or says what it never should.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        control: socket.socket,
        on_exit: Callable[[dict[str, Any]], None],
        on_end: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._control = control
        self._on_exit = on_exit
        self._on_end = on_end
        self._waiting: deque[tuple[str, asyncio.Future[Reply]]] = deque()
        self._is_over = False
        control.setblocking(False)
        loop.add_reader(control, self._readable)

    async def ask(self, request: dict[str, Any], fds: Sequence[int] = ()) -> Reply:
        """Send a request that init answers, and return the answer with the descriptors that came with it.

        Raises:
            SessionEndedError: Init is gone, or did not answer in 10 seconds.
            OSError: The request is too long for a message (EMSGSIZE).
        """
        if self._is_over:
            msg = "the sandbox has ended"
            raise SessionEndedError(msg)
        self.tell(request, fds)
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._waiting.append((request["op"], future))
        # A future that was given up stays in the queue: a late answer must be matched with its own request.
        patience = self._loop.call_later(_PATIENCE_S, _give_up, future, request["op"])
        try:
            return await future
        finally:
            patience.cancel()

    def tell(self, request: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a request that init does not answer."""
        message = marshal.dumps(request)
        if len(message) <= _MAX_SENT:
            self._send(message, fds)
            return
        with open(os.memfd_create("request"), "w+b") as file:
            file.write(message)
            file.seek(0)  # flushes, too; init reads from where this descriptor stands
            self._send(marshal.dumps({"op": "in_file"}), [*fds, file.fileno()])

    def _send(self, message: bytes, fds: Sequence[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._control.sendmsg([message], rights)

    def close(self) -> None:
        """Stop listening to init; whoever waits is told that the session ended."""
        if not self._is_over:
            self._is_over = True
            self._loop.remove_reader(self._control)
            for _, future in self._waiting:
                if not future.done():
                    future.set_exception(SessionEndedError("the sandbox has ended"))
                    future.exception()  # seen: nobody may be waiting any more

    def _readable(self) -> None:
        for _ in range(_MAX_AT_ONCE):  # then others have their turn: processes can end without pause
            if self._is_over:
                return
            try:
                data, ancillary, flags, _ = self._control.recvmsg(
                    _MAX_MESSAGE, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ECONNRESET:
                    raise
                data, ancillary, flags = b"", [], 0
            fds = array.array("i")
            for _, _, rights in ancillary:
                fds.frombytes(rights)
            is_whole = data and not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
            if not is_whole or not self._dispatch(data, list(fds)):
                for fd in fds:
                    os.close(fd)
                self.close()
                self._on_end()
                return

    def _dispatch(self, data: bytes, fds: list[int]) -> bool:
        """Pass a message on; return False, having passed on nothing, where it is none that may come now."""
        try:
            if data.startswith(b'{"exit"'):
                news = _NEWS.decode(data)["exit"]
                if fds or not (os.WIFEXITED(news["status"]) or os.WIFSIGNALED(news["status"])):
                    return False
                self._on_exit(dict(news))
                return True
            if not self._waiting:
                return False
            op, future = self._waiting[0]
            reply = _REPLIES[op].decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False
        self._waiting.popleft()
        if future.done():
            for fd in fds:
                os.close(fd)
        else:
            future.set_result((reply, fds))
        return True


def _give_up(future: asyncio.Future[Reply], op: str) -> None:
    if not future.done():
        msg = f"the sandbox's init did not answer {op!r} in {_PATIENCE_S:.0f} s"
        future.set_exception(SessionEndedError(msg))
