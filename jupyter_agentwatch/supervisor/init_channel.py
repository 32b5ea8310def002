"""Requests to the sandbox's init and its news, on the control thread's loop."""

from __future__ import annotations

import array
import asyncio
import errno
import json
import marshal
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from jupyter_agentwatch.errors import SessionEndedError

__all__ = ["InitChannel"]

_MAX_MESSAGE: Final = 1 << 16
_MAX_FDS: Final = 64
_MAX_AT_ONCE: Final = 32
_PATIENCE_S: Final = 10.0

Reply = tuple[dict[str, Any], list[int]]


class InitChannel:
    """Init answers requests in the order in which they come, so replies are matched by order.

    Args:
        loop: The control thread's loop.
        control: SOCK_SEQPACKET socket to init.
        on_exit: Called with each process that init reaped.
        on_end: Called once when init is gone.
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
        self._waiting: deque[asyncio.Future[Reply]] = deque()
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
        self._waiting.append(future)
        # A future that was given up stays in the queue: a late answer must be matched with its own request.
        patience = self._loop.call_later(_PATIENCE_S, _give_up, future, request["op"])
        try:
            return await future
        finally:
            patience.cancel()

    def tell(self, request: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a request that init does not answer."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._control.sendmsg([marshal.dumps(request)], rights)

    def close(self) -> None:
        """Stop listening to init; whoever waits is told that the session ended."""
        if not self._is_over:
            self._is_over = True
            self._loop.remove_reader(self._control)
            for future in self._waiting:
                if not future.done():
                    future.set_exception(SessionEndedError("the sandbox has ended"))
                    future.exception()  # seen: nobody may be waiting any more

    def _readable(self) -> None:
        for _ in range(_MAX_AT_ONCE):  # then others have their turn: processes can end without pause
            if self._is_over:
                return
            try:
                data, ancillary, _, _ = self._control.recvmsg(
                    _MAX_MESSAGE, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ECONNRESET:
                    raise
                data, ancillary = b"", []
            if not data:
                self.close()
                self._on_end()
                return
            fds = array.array("i")
            for _, _, rights in ancillary:
                fds.frombytes(rights)
            self._dispatch(json.loads(data), list(fds))

    def _dispatch(self, message: dict[str, Any], fds: list[int]) -> None:
        if "exit" in message:
            self._on_exit(message["exit"])
            return
        future = self._waiting.popleft()
        if future.done():
            for fd in fds:
                os.close(fd)
        else:
            future.set_result((message, fds))


def _give_up(future: asyncio.Future[Reply], op: str) -> None:
    if not future.done():
        msg = f"the sandbox's init did not answer {op!r} in {_PATIENCE_S:.0f} s"
        future.set_exception(SessionEndedError(msg))
