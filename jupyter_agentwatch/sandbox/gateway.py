"""Relays allowed connections between the sandbox and the outside, and lets nothing through that it could not name.

A flow's first bytes are held in both directions until they are named, judged and on record. Must never block its event
loop or hold the GIL for long: the thread beside it answers the sandbox's system calls.

Bytes are copied with `recv_into` and `send` from readiness callbacks through one buffer of 1 MiB. Share of native
loopback throughput in prototypes (1 GiB on two cores): callbacks with 1 MiB 0.53-0.62, with 256 KiB 0.36-0.42; a
blocking thread a direction 0.58-0.69; splice through a pipe of 1 MiB 0.45-0.48, of 64 KiB 0.34.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Final

from jupyter_agentwatch.policy import Decision, NetworkMatcher, decide_protocol
from jupyter_agentwatch.policy.names import normal_address, normal_name
from jupyter_agentwatch.sandbox.flow import LAST_BYTES, FlowRecorder, FlowSpec, FlowState
from jupyter_agentwatch.sandbox.protocol import UNKNOWN, Naming, name_protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from jupyter_agentwatch.policy import Network

__all__ = ["Gateway"]

_CHUNK: Final = 1 << 20
_SMALL_CHUNK: Final = 1 << 16
_MAX_BACKLOG: Final = 8 << 20
"""Bytes that wait for slow readers, all flows together, above which a flow is read in small chunks."""

_WATCHED: Final = 4096
"""Bytes of a direction that are still looked at after its flow was let through without its name being certain."""

_ENDED: Final = 8
_PADDING: Final = b" \t\r\n\0"
_PADDED: Final = 1 << 16  # within reason
_RESET: Final = struct.pack("ii", 1, 0)
_OPTIONS: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),  # a peer that vanished ends the flow after 4 minutes
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 120),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)


class Gateway:
    """All flows of one watch. Belongs to one event loop; only `flows` may be called from other threads.

    Args:
        network: The policy: rules for server names, and the limits of naming.
        record: Told of each flow when it is named or refused, *before* its first byte is let through, and when it
            has ended. Where it raises, the flow is reset, nothing more passes, and `relay` raises the same.
        max_flows: Flows at a time; what comes beyond is reset.
    """

    def __init__(self, network: Network, record: FlowRecorder, *, max_flows: int = 4096) -> None:
        self.first_bytes = network.first_bytes
        self.record = record
        self.buffer = memoryview(bytearray(_CHUNK))
        self.backlog = 0
        self.is_paused = False
        self._matcher = NetworkMatcher(network)
        self._max_flows = max_flows
        self._flows: dict[_Flow, None] = {}  # in the order of their begin
        self._ended: deque[FlowState] = deque(maxlen=_ENDED)
        self._closed_because = ""
        self._idle = asyncio.Event()
        self._idle.set()

    async def relay(self, spec: FlowSpec, inside: socket.socket, outside: socket.socket) -> None:
        """Hold, name, judge and then relay one flow until it has ended. Takes both sockets over, and closes them.

        Either side may close its direction; the other goes on. A reset on one side is passed on as a reset. A denied
        flow is reset on both sides without a byte of it having left. Nothing is urgent behind the gateway: a byte
        sent with MSG_OOB is dropped, or held and watched as any other where a later one has taken its place.

        Args:
            spec: The connection.
            inside: Accepted inside the sandbox's namespace; non-blocking.
            outside: Connected to the destination; non-blocking.

        Raises:
            Exception: What the recorder raised.
        """
        flow = _Flow(self, spec, inside, outside)
        self._flows[flow] = None
        self._idle.clear()
        try:
            if refusal := self._closed_because or ("too-many-flows" if len(self._flows) > self._max_flows else ""):
                flow.end(refusal, reset=True)
            else:
                flow.guarded(flow.start)
            await flow.ended
        finally:
            flow.end("cancelled", reset=True)
            del self._flows[flow]
            flow.let_go()
            if not self._flows:
                self._idle.set()

    def flows(self) -> list[FlowState]:
        """Return a snapshot of every live flow; may be called from any thread."""
        return [flow.state() for flow in list(self._flows)]

    def lately(self) -> list[FlowState]:
        """Return what the flows that have ended last looked like then; may be called from any thread."""
        return list(self._ended)

    def bury(self, state: FlowState) -> None:
        """Keep what a flow looked like at its end."""
        self._ended.append(state)

    def pause(self) -> None:
        """Let no byte through until `resume`; connections stay open, and what peers send waits in the kernel."""
        self.is_paused = True
        for flow in self._flows:
            flow.arm()

    def resume(self) -> None:
        """Go on with every flow."""
        self.is_paused = False
        for flow in list(self._flows):
            flow.resume()

    def close_all(self, reason: str) -> None:
        """Reset every flow, and from now on each new one."""
        self._closed_because = f"closed:{reason}"
        for flow in list(self._flows):
            flow.end(self._closed_because, reset=True)

    async def wait_closed(self) -> None:
        """Wait until no flow is left."""
        await self._idle.wait()

    def decide(self, spec: FlowSpec, naming: Naming) -> Decision:
        """Judge a flow by its first bytes.

        Where a rule allowed the destination by host, a server name that is visible has to be that host, the address
        itself, or another name of the address that the policy allows on this port, else an allowed host would be the
        front of any other one behind the same address: "server-name-mismatch". A head that hides its server name is
        "server-name-hidden". No server name at all passes.
        """
        decision = decide_protocol(spec.decision, naming.protocol)
        if decision.verdict != "allow" or not spec.decision.host:
            return decision
        if naming.obscured:
            return Decision.refuse("server-name-hidden", spec.decision.host)
        name = naming.server_name
        is_address = normal_address(name) is not None and normal_address(name) == normal_address(spec.addr)
        if not name or is_address or name in (spec.decision.host, normal_name(spec.host)):
            return decision
        if name in map(normal_name, spec.names):
            other = self._matcher.decide_connect(spec.addr, spec.port, [name])
            if other.verdict == "allow":
                return decide_protocol(other, naming.protocol)
        return Decision.refuse("server-name-mismatch", spec.decision.host)


class _Pump:
    """One direction: holds its first bytes, then copies from `source` to `sink` and keeps what that cannot take yet."""

    def __init__(self, flow: _Flow, source: socket.socket, sink: socket.socket, side: str) -> None:
        self.flow = flow
        self.source = source
        self.sink = sink
        self.side = side
        self.held = bytearray()
        self.watched: bytes | None = None
        self.passed = 0
        self.last = b""
        self.is_at_eof = self.is_done = False
        self._waiting = memoryview(b"")
        self._reads = self._writes = False

    @property
    def wants(self) -> bool:
        """Whether it would read, were the flow not paused."""
        has_room = self.flow.phase == "open" or len(self.held) < self.flow.gateway.first_bytes.limit_bytes
        return has_room and not self.is_at_eof and not self._waiting

    def arm(self, *, is_running: bool) -> None:
        """Ask the event loop for exactly the readiness that can be used now."""
        loop = self.flow.loop
        reads, writes = is_running and self.wants, is_running and bool(self._waiting)
        if reads and not self._reads:
            loop.add_reader(self.source, self.flow.guarded, self._readable)
        elif self._reads and not reads:
            loop.remove_reader(self.source)
        if writes and not self._writes:
            loop.add_writer(self.sink, self.flow.guarded, self._writable)
        elif self._writes and not writes:
            loop.remove_writer(self.sink)
        self._reads, self._writes = reads, writes

    def release(self) -> None:
        """Pass on what was held; from now on everything."""
        held, self.held = bytes(self.held), bytearray()
        self._pass_on(memoryview(held))

    def drop(self) -> None:
        """Forget what waits and want nothing more."""
        self.flow.gateway.backlog -= len(self._waiting)
        self._waiting = memoryview(b"")
        self.arm(is_running=False)

    def _readable(self) -> None:
        gateway = self.flow.gateway
        size = _CHUNK if gateway.backlog < _MAX_BACKLOG else _SMALL_CHUNK
        if self.flow.phase == "held":
            size = gateway.first_bytes.limit_bytes - len(self.held)
        try:
            count = self.source.recv_into(gateway.buffer, size)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.flow.fail(self.side, error)
            return
        data = gateway.buffer[:count]
        self.is_at_eof = not count
        if self.flow.phase == "held":
            self.held += data
            self.flow.judge()
        elif self.watched is None or self.flow.is_still_fine(self, data):
            self._pass_on(data)

    def _pass_on(self, data: memoryview) -> None:
        # A recorder may have paused the gateway while it was told of the flow.
        sent = self._send(data) if data and not self.flow.gateway.is_paused else 0
        if sent < len(data) and self.flow.phase == "open":
            self._waiting = memoryview(bytes(data[sent:]))
            self.flow.gateway.backlog += len(self._waiting)
        self._settle()

    def _writable(self) -> None:
        sent = self._send(self._waiting)
        self._waiting = self._waiting[sent:]
        self.flow.gateway.backlog -= sent
        self._settle()

    def _send(self, data: memoryview) -> int:
        try:
            sent = self.sink.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self.flow.fail("outside" if self.side == "inside" else "inside", error)
            return 0
        self.passed += sent
        self.last = (self.last + bytes(data[max(0, sent - LAST_BYTES) : sent]))[-LAST_BYTES:]
        return sent

    def _settle(self) -> None:
        if self.flow.phase == "open" and self.is_at_eof and not self._waiting and not self.is_done:
            self.is_done = True
            with contextlib.suppress(OSError):  # the peer has gone: its reset ends the flow
                self.sink.shutdown(socket.SHUT_WR)
        self.flow.arm()


class _Flow:
    """One connection through the gateway: held, then open, then ended."""

    def __init__(self, gateway: Gateway, spec: FlowSpec, inside: socket.socket, outside: socket.socket) -> None:
        self.gateway = gateway
        self.spec = spec
        self.loop = loop = asyncio.get_running_loop()
        self.phase = "held"
        self.naming = Naming("")
        self.ended: asyncio.Future[None] = loop.create_future()
        self._out = _Pump(self, inside, outside, "inside")
        self._in = _Pump(self, outside, inside, "outside")
        self._began = loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._is_due = False

    def let_go(self) -> None:
        """Undo the cycle with both directions: memory is free without a search. The last that is asked of it."""
        del self._out.flow, self._in.flow

    def start(self) -> None:
        """Begin to hold first bytes."""
        for one in (self._out.source, self._in.source):
            one.setblocking(False)
            if one.family in (socket.AF_INET, socket.AF_INET6):
                for level, option, value in _OPTIONS:
                    one.setsockopt(level, option, value)
        self.arm()

    def state(self) -> FlowState:
        """Return a snapshot."""
        last = [bytes(pump.held[-LAST_BYTES:]) or pump.last for pump in (self._out, self._in)]
        return FlowState(self.spec, self.phase, self.naming.protocol, self.naming.server_name, *self._counts(), *last)

    def guarded(self, callback: Callable[[], None]) -> None:
        """Run a callback of the event loop; whatever goes wrong in it ends the flow."""
        try:
            callback()
        except Exception as error:  # noqa: BLE001 -- fail closed: the error is handed to whoever awaits the flow
            self.end("internal-error", reset=True, error=error)

    def arm(self) -> None:
        """Ask for the readiness that fits the flow's state; end it when both directions are done."""
        if self.phase == "open" and self._out.is_done and self._in.is_done:
            self.end("eof")
        is_running = self.phase != "ended" and not self.gateway.is_paused
        self._out.arm(is_running=is_running)
        self._in.arm(is_running=is_running)

    def resume(self) -> None:
        """Go on after a pause; a wait that ran out meanwhile is judged now."""
        self.arm()
        if self._is_due:
            self.guarded(self._time_out)

    def judge(self) -> None:
        """Look at what is held; let the flow through or reset it once it has a name."""
        out, in_ = bytes(self._out.held), bytes(self._in.held)
        has_ended = self._out.is_at_eof and self._in.is_at_eof
        limits = self.gateway.first_bytes
        is_full = max(len(out), len(in_)) >= limits.limit_bytes
        is_final = self._is_due or is_full or has_ended or (self._out.is_at_eof and bool(out))
        naming = name_protocol(out, in_, final=is_final)
        if has_ended and not out and not in_:
            self.end("eof")
        elif naming is None:
            self._timer = self._timer or self.loop.call_later(limits.wait_s, self.guarded, self._time_out)
            self.arm()
        elif self._is_recorded(naming):
            self._open(out, in_, is_certain=naming.protocol != UNKNOWN and bool(out))

    def is_still_fine(self, pump: _Pump, data: memoryview) -> bool:
        """Look at the bytes of a flow that was let through unnamed, or named by its server alone, before they pass.

        A client could otherwise outwait the hold, or let an accomplice speak first, and log in to its pool then.
        """
        watched = ((pump.watched or b"") + bytes(data[:_PADDED])).lstrip(_PADDING)[:_WATCHED]  # padding is free
        pump.watched = watched if len(watched) < _WATCHED and pump.passed < _PADDED else None
        naming = name_protocol(watched, b"", final=len(watched) >= _WATCHED)
        if naming is None or naming in (Naming(UNKNOWN), self.naming):
            return True
        if pump is self._in:
            return naming.protocol != "stratum" or self._is_recorded(naming)
        pump.watched = None
        return self._is_recorded(naming)

    def fail(self, side: str, error: OSError) -> None:
        """End the flow because one side's connection failed; the other side sees a reset, too."""
        self.end(f"{side}:{errno.errorcode.get(error.errno or 0, 'error')}", reset=True)

    def end(self, reason: str, *, reset: bool = False, error: Exception | None = None) -> None:
        """End the flow once: stop, close both sockets (`reset`: with RST), record; `relay` raises `error`."""
        if self.phase == "ended":
            return
        self.phase = "ended"
        self.gateway.bury(self.state())
        if self._timer is not None:
            self._timer.cancel()
        for pump in (self._out, self._in):
            pump.drop()
            if reset:
                with contextlib.suppress(OSError):
                    pump.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            pump.source.close()
        try:
            self.gateway.record.closed(self.spec, self.naming.protocol, *self._counts(), reason)
        except Exception as record_error:  # noqa: BLE001 -- handed to whoever awaits the flow
            error = error or record_error
        if not self.ended.done() and error is None:
            self.ended.set_result(None)
        elif not self.ended.done() and error is not None:
            self.ended.set_exception(error)

    def _counts(self) -> tuple[int, int, float]:
        return self._out.passed, self._in.passed, self.loop.time() - self._began

    def _time_out(self) -> None:
        self._is_due = True
        if self.phase == "held" and not self.gateway.is_paused:
            self.judge()

    def _is_recorded(self, naming: Naming) -> bool:
        """Judge, put on record, and say whether the flow may go on; if not, it has ended."""
        self.naming = naming
        decision = self.gateway.decide(self.spec, naming)
        held = len(self._out.held), len(self._in.held)
        try:
            self.gateway.record.named(self.spec, naming, decision, *held)
        except Exception as error:  # noqa: BLE001 -- what is not on record does not pass
            self.end("record-failed", reset=True, error=error)
            return False
        if decision.verdict != "allow":
            self.end(f"denied:{decision.rule}", reset=True)
        return self.phase != "ended"  # the recorder may have closed the gateway, too

    def _open(self, out: bytes, in_: bytes, *, is_certain: bool) -> None:
        self.phase = "open"
        if self._timer is not None:
            self._timer.cancel()
        if not is_certain:
            self._out.watched, self._in.watched = out.lstrip(_PADDING)[:_WATCHED], in_.lstrip(_PADDING)[:_WATCHED]
        self._out.release()
        if self.phase == "open":
            self._in.release()
