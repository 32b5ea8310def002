"""The DNS stub: hostile messages, what each kind of name gets, what is on record when, and both transports."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_agentwatch.policy import HOST_LOOPBACK, Decision, Network, NetworkMatcher, NetworkRule
from jupyter_agentwatch.sandbox.dns import TTL_S, Client, DnsStub, HostResolver, Resolution
from jupyter_agentwatch.sandbox.resolved import NameMemory

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

PATIENCE_S = 20
"""Ends a test that hangs; no assertion rests on it."""

NETWORK = Network(
    rules=[
        NetworkRule(host="bad.example.org", ports=[443], verdict="deny"),
        NetworkRule(host="*.example.org", ports=[443]),
        NetworkRule(host="host.loopback", ports=[8000]),
        NetworkRule(host="asked.example", ports=[443], verdict="ask"),
    ]
)
FOUND = {
    "api.example.org": Resolution("NOERROR", ("192.0.2.7", "192.0.2.8", "2001:db8::7")),
    "four.example.org": Resolution("NOERROR", ("192.0.2.9",)),
    "many.example.org": Resolution("NOERROR", tuple(f"192.0.2.{n}" for n in range(1, 61))),
    "slow.example.org": Resolution("SERVFAIL"),
    "asked.example": Resolution("NOERROR", ("192.0.2.10",)),
}


@dataclass
class Bench:
    """A stub with a resolver and a recorder that keep what they were asked, in one order."""

    done: list[tuple] = field(default_factory=list)
    memory: NameMemory = field(default_factory=lambda: NameMemory(lambda: 0.0))
    is_full: bool = False

    def record(
        self, qname: str, qtype: str, rcode: str, answers: Sequence[str], decision: Decision, client: Client
    ) -> None:
        """Keep a record, or refuse."""
        if self.is_full:
            raise OSError(28, "the log is full")
        self.done.append((qname, qtype, rcode, tuple(answers), decision.verdict, decision.rule))

    async def resolve(self, name: str) -> Resolution:
        """Find what the table says."""
        self.done.append(("resolve", name))
        return FOUND.get(name, Resolution("NXDOMAIN"))

    def stub(self, ask: Callable[[str], Awaitable[bool]] | None = None) -> DnsStub:
        """Return a stub over the policy of these tests."""
        return DnsStub(NetworkMatcher(NETWORK).decide_name, self.resolve, self.record, self.memory, ask=ask)

    async def ask(self, name: str, qtype: str = "A", **options: Any) -> dns.message.Message:
        """Send one query through a new stub."""
        query = dns.message.make_query(name, qtype, **options)
        reply = await self.stub().answer(query.to_wire())
        assert reply is not None
        message = dns.message.from_wire(reply)
        assert query.is_response(message)
        return message


def addresses(message: dns.message.Message) -> list[str]:
    """Return the addresses of an answer in order; their own order is left to chance."""
    return sorted(item.to_text() for rrset in message.answer for item in rrset)


async def test_an_allowed_name_is_looked_up_and_answered() -> None:
    """The lookup is on record before it is made, and its result before it is told; the addresses are remembered."""
    bench = Bench()
    message = await bench.ask("API.example.org.", "A")
    assert addresses(message) == ["192.0.2.7", "192.0.2.8"]
    assert message.answer[0].ttl == TTL_S <= 60
    assert message.flags & dns.flags.RA
    assert bench.done == [
        ("API.example.org", "A", "PENDING", (), "allow", "network.rules[1]"),
        ("resolve", "api.example.org"),
        ("API.example.org", "A", "NOERROR", ("192.0.2.7", "192.0.2.8"), "allow", "network.rules[1]"),
    ]
    assert bench.memory.names_for("192.0.2.8") == ["api.example.org"]
    assert bench.memory.names_for("2001:db8::7") == []
    assert addresses(await bench.ask("api.example.org", "AAAA")) == ["2001:db8::7"]


@pytest.mark.parametrize("name", ["bad.example.org", "other.example", "example.org", "a\\000b.example.org", "."])
async def test_a_denied_name_is_refused_and_nothing_leaves(name: str) -> None:
    """A denied or hostile name is REFUSED, put on record, and never looked up."""
    bench = Bench()
    message = await bench.ask(name)
    assert (message.rcode(), addresses(message)) == (dns.rcode.REFUSED, [])
    ((qname, _, rcode, _, verdict, _),) = bench.done
    assert (qname, rcode, verdict) == (name, "REFUSED", "deny")


@pytest.mark.parametrize(
    ("name", "qtype", "rcode"),
    [
        ("four.example.org", "AAAA", "NOERROR"),
        ("gone.example.org", "A", "NXDOMAIN"),
        ("slow.example.org", "A", "SERVFAIL"),
    ],
)
async def test_no_such_name_no_such_address_and_failure_are_told_apart(name: str, qtype: str, rcode: str) -> None:
    """A name without addresses of a family, one that does not exist and a failed lookup get different answers."""
    bench = Bench()
    message = await bench.ask(name, qtype)
    assert (dns.rcode.to_text(message.rcode()), addresses(message)) == (rcode, [])
    assert bench.done[-1][2] == rcode


@pytest.mark.parametrize("qtype", ["TXT", "MX", "HTTPS", "SVCB", "NS", "ANY", "AXFR", "NULL", "TYPE65280"])
async def test_an_allowed_name_has_no_other_data(qtype: str) -> None:
    """Any type but A and AAAA is answered empty without a lookup, so that no tunnel can use it."""
    bench = Bench()
    message = await bench.ask("data.example.org", qtype)
    assert (message.rcode(), message.answer) == (dns.rcode.NOERROR, [])
    assert bench.done == [("data.example.org", qtype, "NOERROR", (), "allow", "network.rules[1]")]


@pytest.mark.parametrize(
    ("name", "qtype", "rcode", "expected"),
    [
        ("localhost", "A", "NOERROR", ["127.0.0.1"]),
        ("LOCALHOST", "AAAA", "NOERROR", ["::1"]),
        ("x.localhost", "A", "NOERROR", ["127.0.0.1"]),
        ("localhost", "MX", "NOERROR", []),
        ("host.loopback", "A", "NOERROR", [HOST_LOOPBACK]),
        ("host.loopback", "AAAA", "NOERROR", []),
        ("1.0.0.127.in-addr.arpa", "PTR", "NXDOMAIN", []),
        ("8.0.0.192.in-addr.arpa", "PTR", "NXDOMAIN", []),
        ("1.2.168.192.in-addr.arpa", "PTR", "NXDOMAIN", []),
        ("1." + "0." * 31 + "ip6.arpa", "PTR", "NXDOMAIN", []),
        ("8.8.8.8.in-addr.arpa", "PTR", "REFUSED", []),
        ("168.192.in-addr.arpa", "PTR", "REFUSED", []),
    ],
)
async def test_names_that_are_answered_here_are_never_looked_up(
    name: str, qtype: str, rcode: str, expected: list[str]
) -> None:
    """Loopback, the host's loopback and reverse names of inner addresses are answered without a lookup, on record."""
    bench = Bench()
    message = await bench.ask(name, qtype)
    assert (dns.rcode.to_text(message.rcode()), addresses(message)) == (rcode, expected)
    assert [entry[2] for entry in bench.done] == [rcode]
    assert bench.memory.names_for("127.0.0.1") == []
    assert bench.memory.names_for(HOST_LOOPBACK) == (["host.loopback"] if HOST_LOOPBACK in expected else [])


async def test_without_a_record_there_is_no_lookup_and_no_answer() -> None:
    """Where the log is full a query fails, allowed or not, and nothing leaves."""
    bench = Bench(is_full=True)
    for name in ("api.example.org", "localhost", "other.example"):
        message = await bench.ask(name)
        assert (message.rcode(), addresses(message)) == (dns.rcode.SERVFAIL, [])
    assert bench.done == []
    assert bench.memory.names_for("192.0.2.7") == []


@pytest.mark.parametrize(("granted", "rcode"), [(True, "NOERROR"), (False, "REFUSED"), (None, "REFUSED")])
async def test_a_name_that_a_person_must_grant(granted: bool | None, rcode: str) -> None:
    """A name with the verdict `ask` is looked up once a person has agreed; without anybody to ask it is refused."""
    bench = Bench()

    async def ask(name: str) -> bool:
        bench.done.append(("ask", name))
        return bool(granted)

    stub = bench.stub(None if granted is None else ask)
    reply = await stub.answer(dns.message.make_query("asked.example", "A").to_wire())
    assert reply is not None
    assert dns.rcode.to_text(dns.message.from_wire(reply).rcode()) == rcode
    asked = (
        []
        if granted is None
        else [("asked.example", "A", "PENDING", (), "ask", "network.rules[3]"), ("ask", "asked.example")]
    )
    assert bench.done[: len(asked)] == asked
    assert bench.done[-1][2:5:2] == (rcode, "allow" if granted else "deny")
    assert (("resolve", "asked.example") in bench.done) is bool(granted)


def with_bytes(wire: bytes, at: int, new: bytes) -> bytes:
    """Return a message with some bytes replaced."""
    return wire[:at] + new + wire[at + len(new) :]


QUERY = dns.message.make_query("api.example.org", "A", id=7, use_edns=False).to_wire()
EDNS = dns.message.make_query("api.example.org", "A", id=8, use_edns=0, payload=1232).to_wire()


@pytest.mark.parametrize(
    ("wire", "rcode"),
    [
        (QUERY[:-1], "FORMERR"),
        (QUERY[:12], "FORMERR"),
        (with_bytes(QUERY, 4, b"\0\2"), "FORMERR"),
        (with_bytes(QUERY, 4, b"\0\0"), "FORMERR"),
        (with_bytes(QUERY, 6, b"\0\1"), "FORMERR"),
        (with_bytes(QUERY, 10, b"\0\1"), "FORMERR"),
        (with_bytes(EDNS, 10, b"\0\2"), "FORMERR"),
        (with_bytes(QUERY, 12, b"\xc0\x0c"), "FORMERR"),
        (with_bytes(EDNS, len(QUERY), b"\0\0\xfa"), "FORMERR"),
        (with_bytes(QUERY, 2, b"\x28"), "NOTIMP"),
        (with_bytes(QUERY, len(QUERY) - 2, b"\0\3"), "REFUSED"),
    ],
)
async def test_messages_that_are_no_plain_query_are_turned_down(wire: bytes, rcode: str) -> None:
    """Broken, double, non-query and foreign-class messages get an error with their id, on record, without a lookup."""
    bench = Bench()
    reply = await bench.stub().answer(wire)
    assert reply is not None
    assert reply[:2] == wire[:2]
    assert dns.rcode.to_text(dns.rcode.Rcode(reply[3] & 15)) == rcode
    assert [(entry[2], entry[4]) for entry in bench.done] == [(rcode, "deny")]


async def test_what_is_no_query_gets_no_reply() -> None:
    """A message without a header, and a response, are dropped: two servers must not answer each other for ever."""
    stub = Bench().stub()
    assert await stub.answer(b"") is None
    assert await stub.answer(QUERY[:11]) is None
    assert await stub.answer(with_bytes(QUERY, 2, b"\x81")) is None


async def test_an_edns_version_from_the_future_is_turned_down() -> None:
    """EDNS 1 gets BADVERS in an EDNS reply, as RFC 6891 has it."""
    reply = await Bench().stub().answer(with_bytes(EDNS, len(QUERY) + 6, b"\x01"))
    assert reply is not None
    assert dns.message.from_wire(reply).rcode() == dns.rcode.BADVERS


@pytest.mark.parametrize(
    ("payload", "is_udp", "limit", "is_cut"),
    [(None, True, 512, True), (600, True, 600, True), (4096, True, 4096, False), (None, False, 65535, False)],
)
async def test_answers_fit_the_transport(payload: int | None, is_udp: bool, limit: int, is_cut: bool) -> None:
    """A datagram holds what the client takes, and says when it was cut; TCP carries everything."""
    edns = {"use_edns": False} if payload is None else {"use_edns": 0, "payload": payload}
    query = dns.message.make_query("many.example.org", "A", **edns)
    bench = Bench()
    reply = await bench.stub().answer(query.to_wire(), Client(is_udp=is_udp))
    assert reply is not None
    message = dns.message.from_wire(reply)
    assert len(reply) <= limit
    assert bool(message.flags & dns.flags.TC) is is_cut
    assert (len(addresses(message)) == 60) is not is_cut
    assert bench.memory.names_for("192.0.2.60") == ["many.example.org"]


@given(st.binary(max_size=600), st.booleans())
def test_no_bytes_raise(wire: bytes, is_udp: bool) -> None:
    """Random bytes are dropped or answered with their id."""
    reply = asyncio.run(Bench().stub().answer(wire, Client(is_udp=is_udp)))
    assert reply is None or reply[:2] == wire[:2]


@given(
    st.sampled_from([QUERY, EDNS]),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4),
    st.integers(0, 60),
    st.binary(max_size=20),
)
def test_no_mutation_of_a_query_raises_or_goes_unrecorded(
    wire: bytes, changes: list[tuple[int, int]], cut: int, tail: bytes
) -> None:
    """Changed, cut and extended queries are answered only with a record, and with a message that parses."""
    data = bytearray(wire)
    for at, value in changes:
        data[at % len(data)] = value
    bench = Bench()
    reply = asyncio.run(bench.stub().answer(bytes(data[: len(data) - cut]) + tail))
    assert (reply is None) == (not bench.done)
    if reply is not None:
        dns.message.from_wire(reply)


def test_names_are_forgotten_ten_minutes_after_their_time_to_live() -> None:
    """A remembered name lasts for its TTL and ten minutes more, counted from its latest answer."""
    now = 0.0
    memory = NameMemory(lambda: now)
    memory.remember("a.example", ["192.0.2.7"], 60)
    now = 300.0
    memory.remember("b.example", ["192.0.2.7", "2001:DB8::7"], 60)
    assert memory.names_for("192.0.2.7") == ["b.example", "a.example"]
    assert memory.names_for("::ffff:192.0.2.7") == ["b.example", "a.example"]
    assert memory.names_for("2001:db8:0::7") == ["b.example"]
    now = 660.0
    assert memory.names_for("192.0.2.7") == ["b.example"]
    memory.remember("b.example", ["192.0.2.7"], 60)
    now = 1319.0
    assert memory.names_for("192.0.2.7") == ["b.example"]
    now = 1320.0
    assert memory.names_for("192.0.2.7") == []
    assert memory.names_for("not an address") == []


def test_memory_is_bounded() -> None:
    """Addresses and names beyond the bounds push out those that were answered longest ago."""
    memory = NameMemory(lambda: 0.0, max_addresses=3)
    for number in range(10):
        memory.remember("a.example", [f"192.0.2.{number}"], 60)
    assert [n for n in range(10) if memory.names_for(f"192.0.2.{n}")] == [7, 8, 9]
    for number in range(100):
        memory.remember(f"n{number}.example", ["192.0.2.9"], 60)
    names = memory.names_for("192.0.2.9")
    assert (names[0], names[-1], len(names)) == ("n99.example", "n36.example", 64)


def entries(*found: str) -> list[tuple]:
    """Return what getaddrinfo returns for addresses."""
    return [(0, 0, 0, "", (address, 0)) for address in found]


async def test_the_host_resolver_looks_up_once_for_all_who_ask() -> None:
    """Questions for the same name that come during its lookup share it, and both families come from it."""
    go = threading.Event()
    asked: list[bytes] = []

    def lookup(name: bytes, port: None, **options: int) -> list[tuple]:
        asked.append(name)
        go.wait(PATIENCE_S)
        return entries("192.0.2.7", "192.0.2.7", "2001:db8::7")

    resolve = HostResolver(lookup=lookup)
    tasks = [asyncio.create_task(resolve("a.example")) for _ in range(5)]
    await asyncio.sleep(0)  # one turn of the loop: all five have asked
    go.set()
    assert await asyncio.gather(*tasks) == [Resolution("NOERROR", ("192.0.2.7", "2001:db8::7"))] * 5
    assert asked == [b"a.example"]


@pytest.mark.parametrize(
    ("error", "rcode"),
    [
        (socket.gaierror(socket.EAI_NONAME, ""), "NXDOMAIN"),
        (socket.gaierror(socket.EAI_NODATA, ""), "NOERROR"),
        (socket.gaierror(socket.EAI_AGAIN, ""), "SERVFAIL"),
        (socket.gaierror(socket.EAI_SYSTEM, ""), "SERVFAIL"),
        (OSError(24, "too many open files"), "SERVFAIL"),
    ],
)
async def test_the_host_resolver_tells_no_name_from_no_answer(error: OSError, rcode: str) -> None:
    """What the host's resolver says becomes the rcode; its failures are not the name's."""

    def lookup(name: bytes, port: None, **options: int) -> list[tuple]:
        raise error

    assert await HostResolver(lookup=lookup)("a.example") == Resolution(rcode)  # type: ignore[arg-type]


async def test_a_lookup_that_hangs_fails_in_time_and_keeps_its_place() -> None:
    """A hung lookup is SERVFAIL for who asked and for who finds no free thread; afterwards all is well."""
    go = threading.Event()
    running = 0

    def lookup(name: bytes, port: None, **options: int) -> list[tuple]:
        nonlocal running
        running += 1
        go.wait(PATIENCE_S)
        return entries("192.0.2.7")

    resolve = HostResolver(threads=1, timeout_s=0.05, lookup=lookup)
    assert list(await asyncio.gather(resolve("a.example"), resolve("b.example"))) == [Resolution("SERVFAIL")] * 2
    assert running == 1
    go.set()
    found = Resolution("SERVFAIL")
    async with asyncio.timeout(PATIENCE_S):
        while found.rcode != "NOERROR":
            found = await resolve("b.example")
    assert found.addresses == ("192.0.2.7",)


async def test_the_host_resolver_knows_this_machine() -> None:
    """The real resolver finds localhost."""
    found = await HostResolver()("localhost")
    assert found.rcode == "NOERROR"
    assert {"127.0.0.1", "::1"} & set(found.addresses)


@pytest.fixture
async def served() -> AsyncGenerator[tuple[Bench, tuple[str, int]]]:
    """Serve a stub over UDP and TCP on one loopback port."""
    bench = Bench()
    stub = bench.stub()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        address = listener.getsockname()
        datagrams.bind(address)
        tasks = [asyncio.create_task(stub.serve_udp(datagrams)), asyncio.create_task(stub.serve_tcp(listener))]
        async with asyncio.timeout(PATIENCE_S):
            yield bench, address
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def test_datagrams_are_answered(served: tuple[Bench, tuple[str, int]]) -> None:
    """A hundred queries over one UDP socket, garbage among them, get each their own answer."""
    _, address = served
    loop = asyncio.get_running_loop()
    queries = [dns.message.make_query("api.example.org", "A", id=number) for number in range(100)]
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(address)
        for query in queries:
            await loop.sock_sendall(sock, b"\0\1garbage")
            await loop.sock_sendall(sock, query.to_wire())
        replies = [dns.message.from_wire(await loop.sock_recv(sock, 4096)) for _ in queries]
    assert sorted(reply.id for reply in replies) == list(range(100))
    assert all(addresses(reply) == ["192.0.2.7", "192.0.2.8"] for reply in replies)


async def test_tcp_is_answered_in_any_pieces(served: tuple[Bench, tuple[str, int]]) -> None:
    """Several queries over one connection, cut anywhere, are answered in order behind their length."""
    _, (host, port) = served
    reader, writer = await asyncio.open_connection(host, port)
    framed = b"".join(
        struct.pack("!H", len(wire)) + wire
        for wire in (dns.message.make_query("many.example.org", "A", id=number).to_wire() for number in range(3))
    )
    for at in range(0, len(framed), 5):
        writer.write(framed[at : at + 5])
        await writer.drain()
    for number in range(3):
        (size,) = struct.unpack("!H", await reader.readexactly(2))
        reply = dns.message.from_wire(await reader.readexactly(size))
        assert (reply.id, len(addresses(reply))) == (number, 60)
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    "data", [b"\0\3abc", b"\xff\xff", struct.pack("!H", len(QUERY)) + with_bytes(QUERY, 2, b"\x80")]
)
async def test_tcp_that_makes_no_sense_is_closed(served: tuple[Bench, tuple[str, int]], data: bytes) -> None:
    """A length that no query has, and what is no query, end the connection; the next one is served."""
    _, (host, port) = served
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(data)
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    await test_tcp_is_answered_in_any_pieces(served)


async def test_more_connections_than_are_served_wait(served: tuple[Bench, tuple[str, int]]) -> None:
    """Idle connections beyond the bound do not stop the stub once some of them have gone."""
    _, (host, port) = served
    idle = [await asyncio.open_connection(host, port) for _ in range(40)]
    for _, writer in idle:
        writer.close()
        await writer.wait_closed()
    await test_tcp_is_answered_in_any_pieces(served)
