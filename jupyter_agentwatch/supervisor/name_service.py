"""Serves DNS to the sandbox, from the first query on: the stub and its parser cost 25 ms to load."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from jupyter_agentwatch.policy import Decision
from jupyter_agentwatch.sandbox.resolved import NameMemory

if TYPE_CHECKING:
    from jupyter_agentwatch.sandbox.dns import DnsRecorder

__all__ = ["serve_names"]


async def serve_names(
    udp: socket.socket | None,
    tcp: socket.socket,
    *,
    decide: Callable[[str], Decision],
    record: DnsRecorder,
    names: NameMemory,
    ask: Callable[[str], Awaitable[bool]],
    open_gate: asyncio.Event,
) -> None:
    """Answer queries until cancelled.

    Args:
        udp: Bound inside; without a network namespace there is none.
        tcp: Listens inside.
        decide: The policy's word on a name.
        record: Told of each query.
        names: Remembers which addresses a name was answered with.
        ask: Asks a person.
        open_gate: No look-up leaves while it is not set.
    """
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    sockets = [sock for sock in (udp, tcp) if sock is not None]
    for sock in sockets:
        sock.setblocking(False)
        loop.add_reader(sock, asked.set)
    await asked.wait()
    for sock in sockets:
        loop.remove_reader(sock)
    from jupyter_agentwatch.sandbox.dns import DnsStub, HostResolver

    stub = DnsStub(decide, HostResolver(open_gate=open_gate), record, names, ask=ask)
    serving = [stub.serve_tcp(tcp)]
    if udp is not None:
        serving.append(stub.serve_udp(udp))
    await asyncio.gather(*serving)
