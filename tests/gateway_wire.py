"""Real sockets round a gateway, for tests that play both ends of a flow and keep its records."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jupyter_agentwatch.policy import Decision, Network
from jupyter_agentwatch.policy.model import FirstBytes
from jupyter_agentwatch.sandbox.flow import FlowSpec, FlowState
from jupyter_agentwatch.sandbox.gateway import Gateway
from jupyter_agentwatch.sandbox.protocol import Naming

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_S = 20

LOGIN = b'{"id":1,"method":"mining.subscribe","params":[]}\n'
REQUEST = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
ANY = Decision("allow", "network.rules[0]")
BY_HOST = Decision("allow", "network.rules[0]", host="a.example")
SPEC = FlowSpec(flow=1, step=1, pid=0, addr="198.51.100.7", port=443, host="", decision=ANY)
QUICK = Network(first_bytes=FirstBytes(wait_s=0.02))
PATIENT = Network(first_bytes=FirstBytes(wait_s=10))


@dataclass
class Journal:
    """A recorder that keeps what it was told; `fail` makes it refuse."""

    entries: list[tuple] = field(default_factory=list)
    fail: str = ""
    on_named: Callable[[], None] = lambda: None

    def named(self, spec: FlowSpec, naming: Naming, decision: Decision, bytes_out: int, bytes_in: int) -> None:
        """Keep a naming."""
        if self.fail == "named":
            raise OSError(28, "the log is full")
        self.entries.append(("named", naming.protocol, naming.server_name, decision.verdict, decision.rule))
        self.on_named()

    def closed(
        self, spec: FlowSpec, protocol: str, bytes_out: int, bytes_in: int, duration_s: float, reason: str
    ) -> None:
        """Keep an end."""
        if self.fail == "closed":
            raise OSError(28, "the log is full")
        self.entries.append(("closed", protocol, bytes_out, bytes_in, reason))

    @property
    def names(self) -> list[tuple]:
        """What was named: protocol, verdict, rule."""
        return [(e[1], e[3], e[4]) for e in self.entries if e[0] == "named"]


class Peer:
    """One end of a connection, driven by the test."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    async def send(self, data: bytes) -> None:
        """Send everything."""
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self, count: int) -> bytes:
        """Return exactly `count` bytes, fewer at the end."""
        loop, data = asyncio.get_running_loop(), bytearray()
        while len(data) < count and (part := await loop.sock_recv(self.sock, min(count - len(data), 1 << 18))):
            data += part
        return bytes(data)

    async def rest(self) -> bytes:
        """Return everything up to the end."""
        return await self.receive(1 << 40)

    def finish(self) -> None:
        """Close the sending direction."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    async def is_reset_without_a_byte(self) -> bool:
        """Wait for the connection to be reset; say whether nothing had come before that."""
        try:
            await self.receive(1)
        except ConnectionResetError:
            return True
        return False


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return two ends of a real TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return near, far


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something holds; the fixture's patience bounds it."""
    while not condition():
        await turns(1)


async def turns(count: int) -> None:
    """Let the loop turn a number of times."""
    for _ in range(count):
        await asyncio.sleep(0)


@dataclass
class Wire:
    """A flow in the gateway: `client` is the program in the sandbox, `server` the destination."""

    gateway: Gateway
    journal: Journal
    client: Peer
    server: Peer
    relay: asyncio.Task[None]
    inside: socket.socket

    async def is_read(self) -> None:
        """Wait until the gateway has taken everything that the client sent."""
        await until(lambda: fcntl.ioctl(self.inside, termios.FIONREAD, bytes(4)) == bytes(4))

    @property
    def state(self) -> FlowState:
        """The one live flow."""
        (state,) = self.gateway.flows()
        return state
