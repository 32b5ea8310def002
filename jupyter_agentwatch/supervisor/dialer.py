"""Outside connections: dials, and joins a target's socket to the gateway without a blocking call or a false success.

Two ways in, because a connect has two kinds of callers:

* A caller that blocks stays in its notification until the dial ends; then its socket is connected to the gateway's
  listener inside, which answers at once, and the accepted end is found by the caller's own address.
* A caller that does not block must get EINPROGRESS from a socket that truly is in progress, or epoll would report it
  as connected. If the dial does not end within `GRACE_S`, its socket is connected to a parking port, where a packet
  filter drops the SYN. When the dial has ended, a socket of ours, bound to the parking port, connects to the caller's
  port: both ends have sent a SYN, and TCP makes one connection of them (simultaneous open, RFC 9293 §3.5). It needs no
  raw socket and no wait for a retransmission. A dial that fails resets the parked socket: the caller sees ECONNRESET
  and not the dial's own errno, which stands in the flow's record.

A dial that ends at once, as on loopback, is joined by the thread that began it; others end on the control thread's
loop. Neither may wait, whatever the caller has done to its socket: see `connecting`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from jupyter_agentwatch.audit.log import LogWriteError
from jupyter_agentwatch.sandbox.flow import FlowSpec, FlowState
from jupyter_agentwatch.sandbox.gateway import Gateway
from jupyter_agentwatch.sandbox.notify import Listener
from jupyter_agentwatch.sandbox.sockaddr import Address
from jupyter_agentwatch.supervisor.closer import Closer
from jupyter_agentwatch.supervisor.connecting import Connects, connect_at_once, outcome_of, resolve
from jupyter_agentwatch.supervisor.pairing import Name, Pairing
from jupyter_agentwatch.supervisor.quiet_flows import QuietFlows

__all__ = ["Dial", "Dialer"]

GRACE_S: Final = 0.005
"""How long a connect that does not block may take before its socket is parked.

Only the first one of a process has it: an event loop that begins two hundred at a time would stand still for a second.
"""

_POOL: Final = 16

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
        is_answered: The caller has been told how its call ended, or will be by the thread that joins.
    """

    ident: int
    spec: FlowSpec
    target: socket.socket
    outside: socket.socket
    blocking: bool
    is_answered: bool = False


class Dialer:
    """Begins and ends dials. All but `close`, which is for the loop's thread, may be called from any thread.

    Args:
        loop: The control thread's loop.
        listener: Where callers wait.
        begin: Begins to connect to where a flow leads; gives our socket, and EINPROGRESS or how it has ended already.
        gateway: Relays what is joined.
        listening: The gateway's listening sockets inside, IPv4 and IPv6.
        parking: Sockets inside that leave every SYN to them unanswered, IPv4 and IPv6.
        more_sockets: Asks init for fresh TCP sockets of the sandbox's network namespace (IPv6 or not, how many).
        timeout_s: Seconds that a dial may take.
        failed: Records that a dial failed, with the errno.
        connected: Told of each caller's socket that has a peer from now on.
        closer: Closes callers' sockets.
    """

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        listener: Listener,
        begin: Callable[[FlowSpec, Address], tuple[socket.socket, int]],
        gateway: Gateway,
        listening: tuple[socket.socket, socket.socket],
        parking: tuple[socket.socket, socket.socket],
        more_sockets: Callable[[bool, int], Awaitable[list[socket.socket]]],
        timeout_s: float,
        failed: Callable[[FlowSpec, int], None],
        connected: Callable[[socket.socket], None],
        closer: Closer,
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._begin = begin
        self._gateway = gateway
        self._listening = listening
        self._gates = tuple(_name(sock) for sock in listening)
        self._parkings = tuple(_name(sock) for sock in parking)
        self._more_sockets = more_sockets
        self._timeout_s = timeout_s
        self._failed = failed
        self._connected = connected
        self._closer = closer
        self._connects = Connects()
        self._pools: tuple[deque[socket.socket], deque[socket.socket]] = (deque(), deque())
        self._pairing = Pairing(loop, self._found_late, self._lost)
        self._quiet = QuietFlows(loop, self._relay)
        self._pending = threading.BoundedSemaphore(_MAX_PENDING)
        self._under_way: Counter[int] = Counter()
        self._counting = threading.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        for sock in listening:
            sock.setblocking(False)

    @property
    def own_ports(self) -> frozenset[int]:
        """Ports inside that belong to the gateway: a direct connect to them is refused."""
        return frozenset(port for _, port in (*self._gates, *self._parkings))

    def dial(self, ident: int, spec: FlowSpec, target: socket.socket, address: Address) -> None:
        """Begin to connect outside for a caller, and see to the end of it. Any thread; never waits.

        Args:
            ident: The caller's notification.
            spec: The flow it becomes.
            target: Our descriptor of the caller's socket; taken over.
            address: Where to.
        """
        outside, error = self._begin(spec, address)
        blocking = not fcntl.fcntl(target, fcntl.F_GETFL) & os.O_NONBLOCK
        dial = Dial(ident, spec, target, outside, blocking)
        if error == errno.EINPROGRESS:
            self.hand_over(dial)
        elif error:
            self.refuse(dial, error)
        else:
            self.join(dial)

    def join(self, dial: Dial) -> None:
        """Connect the caller's socket to the gateway, answer the caller, and let the flow begin. Never waits."""
        v6 = dial.target.family == socket.AF_INET6
        self._connects.begin(dial.target, self._gates[v6], partial(self._joined, dial))

    def hand_over(self, dial: Dial) -> None:
        """Let the loop wait for a dial that did not end at once. Any thread."""
        if not self._pending.acquire(blocking=False):
            self.refuse(dial, errno.EAGAIN)
            return
        with self._counting:
            self._under_way[dial.spec.pid] += 1
            is_first = self._under_way[dial.spec.pid] == 1
        if dial.blocking or is_first:
            self._loop.call_soon_threadsafe(self._start, dial)
        else:
            v6 = dial.target.family == socket.AF_INET6
            self._connects.begin(dial.target, self._parkings[v6], partial(self._parked, dial))

    def refuse(self, dial: Dial, error: int) -> None:
        """End a dial that failed: record it, and give the caller its errno. Any thread."""
        try:
            self._failed(dial.spec, error)
        finally:
            self._answer(dial, error)
            self._drop(dial)

    def flows(self) -> list[FlowState]:
        """Return a snapshot of the flows that the gateway does not know yet. Any thread."""
        return self._quiet.states()

    def begin_all(self) -> None:
        """Hand every flow to the gateway, which has been closed. For the loop's thread."""
        self._quiet.begin_all()

    def close(self) -> None:
        """Cancel every dial and drop what is not joined."""
        for task in self._tasks:
            task.cancel()
        self._connects.close()
        self._pairing.close()
        self._quiet.close()
        for sock in (*self._pools[0], *self._pools[1]):
            sock.close()

    def _joined(self, dial: Dial, error: int) -> None:
        try:
            self._answer_and_pair(dial, error)
        except BaseException:
            self._answer(dial, errno.EPERM)
            self._drop(dial)
            raise

    def _answer_and_pair(self, dial: Dial, error: int) -> None:
        target = dial.target
        v6 = target.family == socket.AF_INET6
        key = target.getsockname()[:2]
        if error == errno.EINPROGRESS and dial.blocking:
            # On loopback, the peer has answered by now, nearly always. Without fast open, it is the caller itself that
            # has taken the wait away meanwhile.
            again = connect_at_once(target, *self._gates[v6])
            error = error if again == errno.EOPNOTSUPP else again
        if error not in {0, errno.EINPROGRESS, errno.EALREADY}:
            self._answer(dial, error)
            self._drop(dial)
            return
        self._connected(target)
        # Before the answer: the caller's first byte finds all in place, and nothing is left that it would wait for on
        # the processor that both share.
        dial.is_answered = error != errno.EALREADY
        found = self._pairing.pair(dial, key, self._listening[v6])
        for one, sock in found:
            if one.is_answered:
                self._keep(one, sock)
            else:
                self._loop.call_soon_threadsafe(self._found_late, one, sock)
        if dial.is_answered:
            self._answer(dial, error)

    def _answer(self, dial: Dial, error: int) -> None:
        dial.is_answered = True
        self._listener.finish(dial.ident, error)

    def _drop(self, dial: Dial) -> None:
        self._closer.close(dial.target)
        dial.outside.close()

    def _keep(self, dial: Dial, inside: socket.socket) -> None:
        self._closer.close(dial.target)
        self._quiet.add(dial.spec, inside, dial.outside)

    def _found_late(self, dial: Dial, inside: socket.socket) -> None:
        if not dial.is_answered:
            v6 = dial.target.family == socket.AF_INET6
            error = connect_at_once(dial.target, *self._gates[v6])
            self._answer(dial, 0 if error == errno.EOPNOTSUPP else error)
        self._keep(dial, inside)

    def _lost(self, dial: Dial) -> None:
        if not dial.is_answered:
            with contextlib.suppress(OSError):
                dial.target.shutdown(socket.SHUT_RDWR)
            self._answer(dial, errno.ETIMEDOUT)
        self._drop(dial)

    def _relay(self, spec: FlowSpec, inside: socket.socket, outside: socket.socket) -> None:
        self._spawn(self._gateway.relay(spec, inside, outside))

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

    def _parked(self, dial: Dial, error: int) -> None:
        self._answer(dial, error)
        if error == errno.EINPROGRESS:
            self._loop.call_soon_threadsafe(self._start, dial)
        else:
            self._drop(dial)
            self._ended(dial)

    def _ended(self, dial: Dial) -> None:
        self._pending.release()
        with self._counting:
            self._under_way[dial.spec.pid] -= 1
            if not self._under_way[dial.spec.pid]:
                del self._under_way[dial.spec.pid]

    async def _finish(self, dial: Dial) -> None:
        try:
            await (self._finish_blocking(dial) if dial.blocking else self._finish_polling(dial))
        except BaseException:
            self._drop(dial)
            raise
        finally:
            self._ended(dial)

    async def _finish_blocking(self, dial: Dial) -> None:
        error = await outcome_of(self._loop, dial.outside, self._timeout_s)
        if error:
            self.refuse(dial, error)
        else:
            self.join(dial)

    async def _finish_polling(self, dial: Dial) -> None:
        outcome = asyncio.ensure_future(outcome_of(self._loop, dial.outside, self._timeout_s))
        v6 = dial.target.family == socket.AF_INET6
        if not dial.is_answered:
            done, _ = await asyncio.wait({outcome}, timeout=GRACE_S)
            if done:
                error = outcome.result()
                if error:
                    self.refuse(dial, error)
                else:
                    self.join(dial)
                return
            parked = await self._begun(dial.target, self._parkings[v6])
            self._answer(dial, parked)
            if parked != errno.EINPROGRESS:
                outcome.cancel()
                self._drop(dial)
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
            self._closer.close(dial.target)

    async def _begun(self, sock: socket.socket, name: Name) -> int:
        begun: asyncio.Future[int] = self._loop.create_future()

        def tell(error: int) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the watch has ended
                self._loop.call_soon_threadsafe(resolve, begun, error)

        self._connects.begin(sock, name, tell)
        return await begun

    async def _meet(self, dial: Dial, *, v6: bool) -> int:
        """Make one connection of the parked socket and ours, and relay it; return 0 or the errno."""
        ours = await self._fresh_socket(v6=v6)
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            ours.bind(self._parkings[v6])
            error = ours.connect_ex(dial.target.getsockname())
            if error == errno.EINPROGRESS:
                error = await outcome_of(self._loop, ours, self._timeout_s)
        except OSError as problem:
            error = problem.errno or errno.EIO
        if error:
            ours.close()
        else:
            self._connected(dial.target)
            self._relay(dial.spec, ours, dial.outside)
        return error

    async def _fresh_socket(self, *, v6: bool) -> socket.socket:
        pool = self._pools[v6]
        if not pool:
            pool.extend(await self._more_sockets(v6, _POOL))
        return pool.popleft()


def _name(sock: socket.socket) -> Name:
    host, port = sock.getsockname()[:2]
    return str(host), int(port)
