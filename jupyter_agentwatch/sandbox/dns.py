"""The only name server that the sandbox has: it answers from the policy and the host's own resolver, and records.

No packet of the sandbox is passed on. An allowed host name is looked up by the host for its addresses alone, so
queries of any other type (a TXT tunnel) go nowhere; labels below an allowed wildcard can still carry data to the
name servers of that domain, which is why a lookup is on record before it leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from jupyter_agentwatch.policy import HOST_LOOPBACK, Decision
from jupyter_agentwatch.policy.names import LOOPBACK_NAME, is_public, normal_address, normal_name
from jupyter_agentwatch.sandbox.resolved import NameMemory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["TTL_S", "Client", "DnsRecorder", "DnsStub", "HostResolver", "Resolution", "Resolver"]

TTL_S: Final = 60
"""Seconds that the sandbox may keep an answer; the host's resolver does not say how long its own holds."""

_MAX_ADDRESSES: Final = 64
_UDP_BYTES: Final = 512
_EDNS_BYTES: Final = 1232
_QUERY_BYTES: Final = 4096
_MAX_QUERIES: Final = 64
_MAX_CONNECTIONS: Final = 32
_IDLE_S: Final = 10.0
_OPT_START: Final = b"\0\0\x29"
_BACKOFF_S: Final = 0.1
_PASSING: Final = {errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_VERSIONS: Final = {"A": 4, "AAAA": 6}
_GAI_RCODES: Final[dict[int, Literal["NOERROR", "NXDOMAIN"]]] = {
    socket.EAI_NONAME: "NXDOMAIN",
    socket.EAI_NODATA: "NOERROR",
    socket.EAI_ADDRFAMILY: "NOERROR",
}
"""What the host's resolver says as an rcode; all else is a failure of the lookup, not of the name."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a lookup gave: "NOERROR" with every address of both families, "NXDOMAIN" or "SERVFAIL"."""

    rcode: Literal["NOERROR", "NXDOMAIN", "SERVFAIL"]
    addresses: tuple[str, ...] = ()


class Resolver(Protocol):
    """Looks up the addresses of a valid, lower-case host name outside; raises nothing."""

    async def __call__(self, name: str) -> Resolution: ...  # noqa: D102 -- the class says it


@dataclass(frozen=True, slots=True)
class Client:
    """Where a query came from: a source port of the sandbox's loopback, 0 where it is not known."""

    port: int = 0
    is_udp: bool = True


class DnsRecorder(Protocol):
    """Puts a query on record. Called in the stub's thread; where it raises, nothing is looked up or answered.

    `qname` is hostile text, "" where no name could be read; `rcode` is "PENDING" for the record before a lookup;
    `client` is where the query came from.
    """

    def __call__(  # noqa: D102 -- the class says it
        self, qname: str, qtype: str, rcode: str, answers: Sequence[str], decision: Decision, client: Client
    ) -> None: ...


class HostResolver:
    """The host's own resolver (`getaddrinfo`, hence its hosts file and search list), bounded in threads and time.

    Args:
        threads: Lookups at a time. Their threads exist only meanwhile, and do not hold up the end of the process.
        timeout_s: Seconds until "SERVFAIL", those spent waiting for a thread included.
        lookup: Stands in for `socket.getaddrinfo`.
        open_gate: No lookup leaves while it is not set.
    """

    def __init__(
        self,
        *,
        threads: int = 8,
        timeout_s: float = 5.0,
        lookup: Callable[..., list[Any]] = socket.getaddrinfo,
        open_gate: asyncio.Event | None = None,
    ) -> None:
        self._open_gate = open_gate
        self._free = asyncio.Semaphore(threads)
        self._timeout_s = timeout_s
        self._lookup = lookup
        self._running: dict[str, asyncio.Task[Resolution]] = {}

    async def __call__(self, name: str) -> Resolution:
        """Look a name up, once for all who ask meanwhile: programs ask for A and AAAA at the same time."""
        task = self._running.get(name)
        if task is None:
            if len(self._running) >= _MAX_QUERIES:
                return Resolution("SERVFAIL")
            task = self._running[name] = asyncio.create_task(self._one(name))
            task.add_done_callback(lambda _: self._running.pop(name))
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.shield(task)
        except TimeoutError:
            return Resolution("SERVFAIL")

    async def _one(self, name: str) -> Resolution:
        # The place of a lookup that hangs is not given away: getaddrinfo cannot be stopped.
        async with self._free:
            if self._open_gate is not None:
                await self._open_gate.wait()
            loop = asyncio.get_running_loop()
            future: asyncio.Future[Resolution] = loop.create_future()

            def deliver(resolution: Resolution) -> None:
                if not future.done():
                    future.set_result(resolution)

            def run() -> None:
                resolution = self._look_up(name)
                with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                    loop.call_soon_threadsafe(deliver, resolution)

            threading.Thread(target=run, name="agentwatch-lookup", daemon=True).start()
            return await future

    def _look_up(self, name: str) -> Resolution:
        try:
            # Bytes, since text would load Python's IDNA codec and be mapped by it.
            found = self._lookup(name.encode("ascii"), None, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            return Resolution(_GAI_RCODES.get(error.errno or 0, "SERVFAIL"))
        except (OSError, ValueError):
            return Resolution("SERVFAIL")
        return Resolution("NOERROR", tuple(dict.fromkeys(entry[4][0] for entry in found)))


@dataclass(frozen=True, slots=True)
class _Query:
    """A question as it was read; `fault` is the rcode of a message that holds none which could be answered."""

    wire: bytes
    fault: str = ""
    message: dns.message.Message | None = None
    qname: str = ""
    qtype: str = ""
    edns_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Outcome:
    rcode: str
    decision: Decision
    addresses: tuple[str, ...] = ()


class DnsStub:
    """Answers the sandbox's queries. Which process asked is not known here: the recorder is told the source port.

    "localhost" is the sandbox's own; `host.loopback` gets a stand-in address that only the egress broker knows; the
    names of addresses that are not public do not exist. A denied name is REFUSED. Of an allowed name only addresses
    are told; for every other type it has no data, and nothing is asked outside.

    Args:
        decide_name: What the policy says about a name.
        resolve: Looks allowed names up.
        record: Told of each query before anything leaves and before its answer is given: once, or once with the
            rcode "PENDING" and then again with the result where a lookup or a person is waited for.
        memory: Told of each address that is answered, before it is.
        ask: Asks a person about a name with the verdict "ask"; without it, such names are refused.
    """

    def __init__(
        self,
        decide_name: Callable[[str], Decision],
        resolve: Resolver,
        record: DnsRecorder,
        memory: NameMemory,
        *,
        ask: Callable[[str], Awaitable[bool]] | None = None,
    ) -> None:
        self._decide_name = decide_name
        self._resolve = resolve
        self._record = record
        self._memory = memory
        self._ask = ask
        self._slots = asyncio.Semaphore(_MAX_QUERIES)

    async def answer(self, wire: bytes, client: Client = Client()) -> bytes | None:
        """Answer one message.

        Args:
            wire: Hostile bytes.
            client: Where they came from. Over UDP the answer is cut to what it takes in a datagram; it then asks again
                over TCP.

        Returns:
            The reply, or None where there is nobody to reply to: no header, or not a query.
        """
        query = _parse(wire)
        if query is None:
            return None
        try:
            outcome = await self._outcome(query, client)
            self._record(query.qname, query.qtype, outcome.rcode, outcome.addresses, outcome.decision, client)
        except Exception:  # noqa: BLE001 -- what cannot be put on record is not answered; the recorder has raised the alarm
            outcome = _Outcome("SERVFAIL", Decision.refuse("record-failed"))
        if outcome.addresses and outcome.decision.rule != "localhost":
            self._memory.remember(outcome.decision.host, outcome.addresses, TTL_S)
        return _reply(query, outcome, is_udp=client.is_udp)

    async def serve_udp(self, sock: socket.socket) -> None:
        """Answer datagrams until cancelled; the socket stays the caller's.

        Raises:
            OSError: The socket cannot be read any more.
        """
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        async with asyncio.TaskGroup() as children:
            while True:
                # Beyond so many open queries, the rest waits in the socket's buffer, or is lost there.
                await self._slots.acquire()
                try:
                    wire, peer = await loop.sock_recvfrom(sock, _QUERY_BYTES)
                except BaseException:
                    self._slots.release()
                    raise
                children.create_task(self._answer_datagram(sock, wire, peer))

    async def serve_tcp(self, listener: socket.socket) -> None:
        """Answer queries over TCP until cancelled; the listener stays the caller's.

        Raises:
            OSError: The listener cannot accept any more.
        """
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        free = asyncio.Semaphore(_MAX_CONNECTIONS)
        async with asyncio.TaskGroup() as children:
            while True:
                await free.acquire()
                try:
                    connection, peer = await loop.sock_accept(listener)
                except OSError as error:
                    free.release()
                    if error.errno not in _PASSING:
                        raise
                    await asyncio.sleep(_BACKOFF_S)
                    continue
                children.create_task(self._answer_connection(connection, Client(peer[1], is_udp=False), free))

    async def _answer_datagram(self, sock: socket.socket, wire: bytes, peer: Any) -> None:
        try:
            reply = await self.answer(wire, Client(peer[1]))
            if reply is not None:
                with contextlib.suppress(OSError):  # the client has gone
                    await asyncio.get_running_loop().sock_sendto(sock, reply, peer)
        finally:
            self._slots.release()

    async def _answer_connection(self, connection: socket.socket, client: Client, free: asyncio.Semaphore) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection.setblocking(False)
            while True:
                async with asyncio.timeout(_IDLE_S):
                    size = int.from_bytes(await _receive(connection, 2), "big")
                    wire = await _receive(connection, size) if size <= _QUERY_BYTES else b""
                reply = await self.answer(wire, client)
                if reply is None:
                    return
                async with asyncio.timeout(_IDLE_S):
                    await loop.sock_sendall(connection, len(reply).to_bytes(2, "big") + reply)
        except (OSError, EOFError, TimeoutError):
            return
        finally:
            connection.close()
            free.release()

    async def _outcome(self, query: _Query, client: Client) -> _Outcome:
        if query.fault:
            return _Outcome(query.fault, Decision.refuse("malformed"))
        name = normal_name(query.qname) or ""
        if name == "localhost" or name.endswith(".localhost"):
            addresses = _of_type(("127.0.0.1", "::1"), query.qtype)
            return _Outcome("NOERROR", Decision("allow", "localhost", host=name), addresses)
        if query.qtype == "PTR" and _is_inner_reverse(name):
            return _Outcome("NXDOMAIN", Decision("allow", "private-reverse", host=name))
        decision = self._decide_name(query.qname) if name else Decision.refuse("invalid-name")
        if decision.verdict == "ask" and self._ask is not None:
            self._record(query.qname, query.qtype, "PENDING", (), decision, client)
            decision = replace(decision, verdict="allow" if await self._ask(name) else "deny")
        if decision.verdict != "allow":
            return _Outcome("REFUSED", replace(decision, verdict="deny"))
        if query.qtype not in _VERSIONS:
            return _Outcome("NOERROR", decision)
        if name == LOOPBACK_NAME:
            return _Outcome("NOERROR", decision, _of_type((HOST_LOOPBACK,), query.qtype))
        self._record(query.qname, query.qtype, "PENDING", (), decision, client)
        found = await self._resolve(name)
        return _Outcome(found.rcode, replace(decision, host=name), _of_type(found.addresses, query.qtype))


async def _receive(connection: socket.socket, count: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < count:
        part = await loop.sock_recv(connection, count - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def _of_type(addresses: Sequence[str], qtype: str) -> tuple[str, ...]:
    known = (normal_address(address) for address in addresses)
    matching = (str(address) for address in known if address is not None and address.version == _VERSIONS.get(qtype))
    return tuple(matching)[:_MAX_ADDRESSES]


def _is_inner_reverse(name: str) -> bool:
    """Say whether a name below in-addr.arpa or ip6.arpa stands for an address that is not public."""
    labels = name.split(".")[-3::-1]
    if name.endswith(".in-addr.arpa"):
        address = normal_address(".".join(labels))
    else:
        digits = "".join(labels)
        is_whole = name.endswith(".ip6.arpa") and len(labels) == len(digits) == 32
        address = normal_address(":".join(digits[at : at + 4] for at in range(0, 32, 4))) if is_whole else None
    return address is not None and not is_public(address)


def _parse(wire: bytes) -> _Query | None:
    """Read a message as a query; None where it is none at all (RFC 1035 §4.1.1)."""
    if len(wire) < 12 or wire[2] & 0x80:
        return None
    if wire[2] >> 3 & 0x0F:
        return _Query(wire, "NOTIMP")
    # Only what a query needs is let near the parser: a record of any other type would make it load that type's code.
    if wire[4:10] != b"\0\1\0\0\0\0" or wire[10:12] > b"\0\1":
        return _Query(wire, "FORMERR")
    try:
        message = dns.message.from_wire(wire, question_only=True, ignore_trailing=True)
        question = message.question[0]
        end = 12 + len(question.name.to_wire() or b"") + 4
        qname, qtype = question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype)
    except Exception:  # noqa: BLE001 -- a parser that is fed by an attacker may fail in any way
        return _Query(wire, "FORMERR")
    options = wire[end : end + 11]
    if wire[11] and (len(options) < 11 or not options.startswith(_OPT_START)):
        return _Query(wire, "FORMERR", None, qname, qtype)
    if wire[11] and options[6]:
        return _Query(wire, "BADVERS", message, qname, qtype, _UDP_BYTES)
    fault = "" if question.rdclass == dns.rdataclass.IN else "REFUSED"
    edns_bytes = max(_UDP_BYTES, int.from_bytes(options[3:5], "big")) if wire[11] else 0
    return _Query(wire, fault, message, qname, qtype, edns_bytes)


def _reply(query: _Query, outcome: _Outcome, *, is_udp: bool) -> bytes:
    rcode = dns.rcode.from_text(outcome.rcode)
    if query.message is None:
        return query.wire[:2] + bytes([0x80 | (query.wire[2] & 0x79), 0x80 | rcode]) + bytes(8)
    reply = dns.message.make_response(query.message, recursion_available=True)
    if query.edns_bytes:
        reply.use_edns(0, payload=_EDNS_BYTES)
    reply.set_rcode(rcode)
    if outcome.addresses:
        name = query.message.question[0].name
        reply.answer.append(dns.rrset.from_text(name, TTL_S, "IN", query.qtype, *outcome.addresses))
    limit = min(query.edns_bytes or _UDP_BYTES, _QUERY_BYTES) if is_udp else 65535
    return reply.to_wire(max_size=limit, prefer_truncation=is_udp)
