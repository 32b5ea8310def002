"""Everything of a watch that concerns sockets, put together: what judges them, what relays, what answers for names."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from jupyter_agentwatch.policy import NetworkMatcher, Policy
from jupyter_agentwatch.sandbox.flow import FlowSpec, FlowState
from jupyter_agentwatch.sandbox.gateway import Gateway
from jupyter_agentwatch.sandbox.mounts import HOME
from jupyter_agentwatch.sandbox.notify import Listener
from jupyter_agentwatch.sandbox.paths import Root
from jupyter_agentwatch.sandbox.resolved import NameMemory
from jupyter_agentwatch.sandbox.sockaddr import Address
from jupyter_agentwatch.sandbox.standing import Sandbox
from jupyter_agentwatch.sandbox.tasks import TaskTable
from jupyter_agentwatch.supervisor.askers import DnsAskers
from jupyter_agentwatch.supervisor.asks import Asks
from jupyter_agentwatch.supervisor.closer import Closer
from jupyter_agentwatch.supervisor.connecting import begin
from jupyter_agentwatch.supervisor.descriptors import max_flows
from jupyter_agentwatch.supervisor.dialer import Dialer
from jupyter_agentwatch.supervisor.gate import Gate
from jupyter_agentwatch.supervisor.model_side import RULE, ModelSide
from jupyter_agentwatch.supervisor.name_service import serve_names
from jupyter_agentwatch.supervisor.network import NetworkBroker
from jupyter_agentwatch.supervisor.news import NetworkRecords
from jupyter_agentwatch.supervisor.reach import PrivateReach, Reach, SharedReach
from jupyter_agentwatch.supervisor.record import Recorder
from jupyter_agentwatch.supervisor.sockets import MadeSockets, SocketSource, TakenSockets
from jupyter_agentwatch.supervisor.unix_sockets import SharedUnixSockets, UnixSockets

__all__ = ["NetworkSide"]

_TIDY_S: Final = 1.0

AskInit = Callable[[dict[str, Any]], Awaitable[tuple[dict[str, Any], list[int]]]]


class NetworkSide:
    """The parts of one watch that concern sockets.

    `broker` judges calls, on descriptors that come from `sockets`; the rest belongs to the control thread.

    Args:
        loop: The control thread's loop.
        policy: The policy.
        sandbox: Its sockets and ports.
        listener: Where callers wait.
        tasks: Who they are.
        root: The sandbox's root, for names of UNIX sockets.
        recorder: Where records go.
        gate: Shut where a record has tripped the breaker.
        asks: Questions to a person.
        ask_init: Sends a request to init.
        models: The model proxy, where the policy has one.
    """

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        policy: Policy,
        sandbox: Sandbox,
        listener: Listener,
        tasks: TaskTable,
        root: Root,
        recorder: Recorder,
        gate: Gate,
        asks: Asks,
        ask_init: AskInit,
        models: ModelSide | None,
    ) -> None:
        self._models = models
        self._sandbox = sandbox
        self._asks = asks
        self._ask_init = ask_init
        self._names = NameMemory(time.monotonic)
        self._matcher = NetworkMatcher(policy.network)
        self.closer = Closer()
        askers = DnsAskers(sandbox.init_pid)
        self._records = NetworkRecords(recorder, askers)
        self._gateway = Gateway(policy.network, self._records, max_flows=max_flows())
        self.sockets: SocketSource = TakenSockets(self.closer)
        reach: Reach = PrivateReach()
        unix: UnixSockets
        if sandbox.shares_network:
            self.sockets = MadeSockets(listener, sandbox.pids, self.closer)
            reach = SharedReach(sandbox.dns_tcp.getsockname()[1])
            unix = SharedUnixSockets(root, policy.unix_sockets, self.closer)
        else:
            private = ("/tmp", "/dev/shm", HOME)  # noqa: S108 -- the sandbox's own
            unix = UnixSockets(root, policy.unix_sockets, private, self.closer)
        self._dialer = self._make_dialer(loop, listener, policy.network.connect_timeout_s)
        self.broker = NetworkBroker(
            listener=listener,
            tasks=tasks,
            recorder=recorder,
            gate=gate,
            matcher=self._matcher,
            names_for=self._names.names_for,
            unix=unix,
            sockets=self.sockets,
            reach=reach,
            dialer=self._dialer,
            closer=self.closer,
            askers=askers,
            ask=asks.put_from_thread,
            models=models,
        )

    def _make_dialer(self, loop: asyncio.AbstractEventLoop, listener: Listener, timeout_s: float) -> Dialer:
        return Dialer(
            loop=loop,
            listener=listener,
            begin=self._begin,
            gateway=self._gateway,
            listening=self._sandbox.gateway,
            parking=self._sandbox.parking,
            more_sockets=self._more_sockets,
            timeout_s=timeout_s,
            failed=self._records.failed,
            connected=self.sockets.connected,
            closer=self.closer,
        )

    def flows(self) -> list[FlowState]:
        """Return a snapshot of every live flow. Any thread."""
        return self._gateway.flows() + self._dialer.flows()

    def lately(self) -> list[FlowState]:
        """Return what the flows that have ended last looked like at their end. Any thread."""
        return self._gateway.lately()

    def pause(self) -> None:
        """Let no byte through until `resume`."""
        self._gateway.pause()

    def resume(self) -> None:
        """Go on with every flow."""
        self._gateway.resume()

    async def serve_names(self, open_gate: asyncio.Event) -> None:
        """Answer DNS queries until cancelled; no look-up leaves while the gate is not set."""
        await serve_names(
            self._sandbox.dns_udp,
            self._sandbox.dns_tcp,
            decide=self._matcher.decide_name,
            record=self._records.resolved,
            names=self._names,
            ask=self._asks.name,
            open_gate=open_gate,
        )

    async def tidy(self) -> None:
        """Keep no socket for long that nobody has any more, until cancelled."""
        while isinstance(self.sockets, MadeSockets):
            await asyncio.sleep(_TIDY_S)
            await asyncio.to_thread(self.sockets.let_go, _TIDY_S)

    async def close(self) -> None:
        """Reset every flow, drop every connect that is under way, and wait until all that is on record."""
        self._gateway.close_all("killed")
        self._dialer.begin_all()
        await asyncio.sleep(0)  # each is on record as closed, before dials that have come to nothing are cancelled
        self._dialer.close()
        self.broker.close()
        await self._gateway.wait_closed()

    def _begin(self, spec: FlowSpec, address: Address) -> tuple[socket.socket, int]:
        if self._models is not None and spec.decision.rule == RULE:
            return self._models.begin(spec)
        return begin(address)

    async def _more_sockets(self, ipv6: bool, count: int) -> list[socket.socket]:
        if self._sandbox.shares_network:
            return [socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET) for _ in range(count)]
        _, fds = await self._ask_init({"op": "sockets", "ipv6": ipv6, "count": count})
        return [socket.socket(fileno=fd) for fd in fds]
