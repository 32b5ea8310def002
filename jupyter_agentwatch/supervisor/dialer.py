"""Outside connections: dials, and joins a target's socket to the gateway without a blocking call or a false success.

Runs on the control thread's loop. Two ways in, because a connect has two kinds of callers:

* A caller that blocks stays in its notification until the dial ends; then its socket is connected to the gateway's
  listener inside, which answers at once, and the accepted end is found by its port.
* A caller that does not block must get EINPROGRESS from a socket that truly is in progress, or epoll would report it
  as connected. If the dial does not end within `GRACE_S`, its socket is connected to a parking port, where a packet
  filter drops the SYN. When the dial has ended, a socket of ours, bound to the parking port, connects to the caller's
  port: both ends have sent a SYN, and TCP makes one connection of them (simultaneous open, RFC 9293 §3.5). It needs no
  raw socket and no wait for a retransmission. A dial that fails resets the parked socket: the caller sees ECONNRESET
  and not the dial's own errno, which stands in the flow's record.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from jupyter_agentwatch.audit.log import LogWriteError
from jupyter_agentwatch.policy import HOST_LOOPBACK
from jupyter_agentwatch.sandbox.gateway import FlowSpec, Gateway
from jupyter_agentwatch.sandbox.notify import Listener
from jupyter_agentwatch.sandbox.sockaddr import Address, connect_raw

__all__ = ["Dial", "Dialer", "begin"]

GRACE_S: Final = 0.005
"""How long a connect that does not block may take before its socket is parked."""

_POOL: Final = 16
_UNPAIRED_S: Final = 10.0
_MAX_UNPAIRED: Final = 512
_ACCEPT_AGAIN_S: Final = 0.1

_MAX_PENDING: Final = 512
"""Dials at a time that have not ended. Each holds two descriptors of ours, also after its caller has closed its own."""


@dataclass(slots=True)
class Dial:
    """One allowed connect on its way.

    Attributes:
        ident: The caller's notification.
        spec: The flow it becomes.
        target: Our descriptor of the caller's socket; closed when the dial ends, or the peer would never see its FIN.
        outside: Our socket to the destination, connecting.
        blocking: The caller blocks until the end.
    """

    ident: int
    spec: FlowSpec
    target: socket.socket
    outside: socket.socket
    blocking: bool

    def drop(self) -> None:
        """Close both sockets."""
        self.target.close()
        self.outside.close()


def begin(address: Address) -> tuple[socket.socket, int]:
    """Begin to connect to an address outside; return our socket, and EINPROGRESS or how it has ended already."""
    destination: tuple[str, int] | tuple[str, int, int, int] = (address.host, address.port)
    if ":" in address.host:
        destination = (address.host, address.port, 0, address.scope)
    elif address.host == HOST_LOOPBACK:
        destination = ("127.0.0.1", address.port)
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    outside = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    error = outside.connect_ex(destination)
    if error != errno.EINPROGRESS:
        return outside, error
    try:
        outside.getpeername()  # on loopback a connect has ended when it returns
    except OSError:
        return outside, outside.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.EINPROGRESS
    return outside, 0


def _raw_address(listening: socket.socket) -> bytes:
    host, port = str(listening.getsockname()[0]), int(listening.getsockname()[1])
    packed = struct.pack("=H", listening.family) + port.to_bytes(2, "big")
    if listening.family == socket.AF_INET6:
        return packed + bytes(4) + socket.inet_pton(listening.family, host) + bytes(4)
    return packed + socket.inet_pton(listening.family, host) + bytes(8)


class Dialer:
    """Ends dials. All methods but `hand_over` belong to the loop's thread.

    Args:
        loop: The control thread's loop.
        listener: Where callers wait.
        gateway: Relays what is joined.
        listening: The gateway's listening sockets inside, IPv4 and IPv6.
        parking: Sockets inside that leave every SYN to them unanswered, IPv4 and IPv6.
        more_sockets: Asks init for fresh TCP sockets of the sandbox's network namespace (IPv6 or not, how many).
        timeout_s: Seconds that a dial may take.
        failed: Records that a dial failed, with the errno.
        connected: Told of each caller's socket that has a peer from now on.
    """

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        listener: Listener,
        gateway: Gateway,
        listening: tuple[socket.socket, socket.socket],
        parking: tuple[socket.socket, socket.socket],
        more_sockets: Callable[[bool, int], Awaitable[list[socket.socket]]],
        timeout_s: float,
        failed: Callable[[FlowSpec, int], None],
        connected: Callable[[socket.socket], None],
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._gateway = gateway
        self._places = tuple(sock.getsockname()[:2] for sock in (*listening, *parking))
        self._gates = (_raw_address(listening[0]), _raw_address(listening[1]))
        self._parkings = (_raw_address(parking[0]), _raw_address(parking[1]))
        self._more_sockets = more_sockets
        self._timeout_s = timeout_s
        self._failed = failed
        self._connected = connected
        self._pools: tuple[deque[socket.socket], deque[socket.socket]] = (deque(), deque())
        # By the caller's own address inside: a port alone may be bound once on each of 127.0.0.0/8.
        self._expected: dict[_Key, Dial] = {}
        self._accepted: dict[_Key, socket.socket] = {}
        self._pending = threading.BoundedSemaphore(_MAX_PENDING)
        self._tasks: set[asyncio.Task[None]] = set()
        for sock in listening:
            sock.setblocking(False)
            loop.add_reader(sock, self._accept, sock)

    @property
    def own_ports(self) -> frozenset[int]:
        """Ports inside that belong to the gateway: a direct connect to them is refused."""
        return frozenset(port for _, port in self._places)

    def joined(self, dial: Dial) -> int:
        """Connect the caller's socket to the gateway; return the errno to answer with. Any thread."""
        v6 = dial.target.family == socket.AF_INET6
        error = connect_raw(dial.target.fileno(), self._gates[v6])
        if error in {0, errno.EINPROGRESS}:
            self._connected(dial.target)
            self._loop.call_soon_threadsafe(self._expect, dial, dial.target.getsockname()[:2])
            dial.target.close()
        else:
            dial.drop()
        return error

    def hand_over(self, dial: Dial) -> None:
        """Let the loop wait for a dial that did not end at once. Any thread."""
        if not self._pending.acquire(blocking=False):
            self.refuse(dial, errno.EAGAIN)
            return
        self._loop.call_soon_threadsafe(self._start, dial)

    def refuse(self, dial: Dial, error: int) -> None:
        """End a dial that failed: record it, and give the caller its errno. Any thread."""
        try:
            self._failed(dial.spec, error)
        finally:
            self._listener.finish(dial.ident, error)
            dial.drop()

    def close(self) -> None:
        """Cancel every dial and drop what is not joined."""
        for task in self._tasks:
            task.cancel()
        for sock in (*self._accepted.values(), *self._pools[0], *self._pools[1]):
            sock.close()
        for dial in self._expected.values():
            dial.drop()

    # -- joining by the listener ---------------------------------------------------------------------------------

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(64):
            try:
                sock, peer = listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # no descriptors or no memory left: the listener stays readable, so look away for a while
                self._loop.remove_reader(listening)
                self._loop.call_later(_ACCEPT_AGAIN_S, self._loop.add_reader, listening, self._accept, listening)
                return
            sock.setblocking(False)
            key = peer[:2]
            dial = self._expected.pop(key, None)
            if dial is not None:
                self._relay(dial, sock)
            elif len(self._accepted) >= _MAX_UNPAIRED:
                sock.close()
            else:
                self._accepted[key] = sock
                self._loop.call_later(_UNPAIRED_S, self._forget_accepted, key, sock)

    def _expect(self, dial: Dial, key: _Key) -> None:
        sock = self._accepted.pop(key, None)
        if sock is not None:
            self._relay(dial, sock)
        else:
            self._expected[key] = dial
            self._loop.call_later(_UNPAIRED_S, self._forget_expected, key, dial)

    def _forget_accepted(self, key: _Key, sock: socket.socket) -> None:
        if self._accepted.get(key) is sock:
            del self._accepted[key]
            sock.close()

    def _forget_expected(self, key: _Key, dial: Dial) -> None:
        if self._expected.get(key) is dial:
            del self._expected[key]
            dial.drop()

    def _relay(self, dial: Dial, inside: socket.socket) -> None:
        self._spawn(self._gateway.relay(dial.spec, inside, dial.outside))

    # -- dials that take their time ------------------------------------------------------------------------------

    def _start(self, dial: Dial) -> None:
        self._spawn(self._finish(dial))

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work, loop=self._loop)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, LogWriteError):  # that one has tripped the breaker already
            self._loop.call_exception_handler({"message": "a connection failed unforeseen", "exception": error})

    async def _finish(self, dial: Dial) -> None:
        try:
            await (self._finish_blocking(dial) if dial.blocking else self._finish_polling(dial))
        except BaseException:
            dial.drop()
            raise
        finally:
            self._pending.release()

    async def _finish_blocking(self, dial: Dial) -> None:
        error = await self._outcome(dial.outside, self._timeout_s)
        if error:
            self.refuse(dial, error)
        else:
            self._listener.finish(dial.ident, self.joined(dial))

    async def _finish_polling(self, dial: Dial) -> None:
        outcome = asyncio.ensure_future(self._outcome(dial.outside, self._timeout_s))
        done, _ = await asyncio.wait({outcome}, timeout=GRACE_S)
        if done:
            error = outcome.result()
            if error:
                self.refuse(dial, error)
            else:
                self._listener.finish(dial.ident, self.joined(dial))
            return
        v6 = dial.target.family == socket.AF_INET6
        parked = connect_raw(dial.target.fileno(), self._parkings[v6])
        if parked == errno.EINPROGRESS:
            self._connected(dial.target)
        self._listener.finish(dial.ident, parked)
        if parked != errno.EINPROGRESS:
            outcome.cancel()
            dial.drop()
            return
        error = await outcome or await self._meet(dial, v6=v6)
        try:
            if error:
                self._failed(dial.spec, error)
        finally:
            if error:
                dial.outside.close()
                with contextlib.suppress(OSError):  # the caller has reset it itself
                    dial.target.shutdown(socket.SHUT_RDWR)  # resets a socket that has only sent its SYN
            dial.target.close()

    async def _meet(self, dial: Dial, *, v6: bool) -> int:
        """Make one connection of the parked socket and ours, and relay it; return 0 or the errno."""
        ours = await self._fresh_socket(v6=v6)
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            ours.bind(self._places[2 + v6])
            error = ours.connect_ex(dial.target.getsockname())
            if error == errno.EINPROGRESS:
                error = await self._outcome(ours, self._timeout_s)
        except OSError as problem:
            error = problem.errno or errno.EIO
        if error:
            ours.close()
        else:
            self._relay(dial, ours)
        return error

    async def _fresh_socket(self, *, v6: bool) -> socket.socket:
        pool = self._pools[v6]
        if not pool:
            pool.extend(await self._more_sockets(v6, _POOL))
        return pool.popleft()

    async def _outcome(self, sock: socket.socket, timeout_s: float) -> int:
        """Wait until a connecting socket is writable; return its errno (ETIMEDOUT after `timeout_s`)."""
        ready: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_writer(sock, _resolve, ready)
        try:
            await asyncio.wait_for(ready, timeout_s)
        except TimeoutError:
            return errno.ETIMEDOUT
        finally:
            self._loop.remove_writer(sock)
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


_Key = tuple[str, int]


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
