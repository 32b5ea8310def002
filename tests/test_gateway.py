"""The egress gateway over real loopback connections: nothing passes before it is named, allowed and on record."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jupyter_agentwatch.policy import Decision, Network, NetworkRule
from jupyter_agentwatch.sandbox.flow import FlowSpec
from jupyter_agentwatch.sandbox.gateway import Gateway
from jupyter_agentwatch.sandbox.protocol import Naming
from tests.gateway_wire import (
    ANY,
    BY_HOST,
    LOGIN,
    PATIENCE_S,
    PATIENT,
    QUICK,
    REQUEST,
    SPEC,
    Journal,
    Peer,
    Wire,
    tcp_pair,
    turns,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
"""Ends a test that hangs; no assertion rests on it."""


@pytest.fixture
async def wire() -> AsyncGenerator[Callable[..., Wire]]:
    """Give a function that puts a new flow through a gateway; everything is closed afterwards."""
    wires: list[Wire] = []

    def start(spec: FlowSpec = SPEC, network: Network = PATIENT, *, on: Wire | None = None, **journal: object) -> Wire:
        notes = on.journal if on else Journal(**journal)  # type: ignore[arg-type]
        gateway = on.gateway if on else Gateway(network, notes)
        client, inside = tcp_pair()
        outside, server = tcp_pair()
        relay = asyncio.create_task(gateway.relay(spec, inside, outside))
        made = Wire(gateway, notes, Peer(client), Peer(server), relay, inside)
        wires.append(made)
        return made

    async with asyncio.timeout(PATIENCE_S):
        yield start
        for made in wires:
            made.gateway.close_all("test")
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await made.relay
            made.client.sock.close()
            made.server.sock.close()
            await made.gateway.wait_closed()


async def test_a_named_flow_passes_both_ways(wire: Callable[..., Wire]) -> None:
    """An HTTP exchange passes unchanged, is named before it does, counted, and closed once."""
    w = wire()
    await w.client.send(REQUEST)
    assert await w.server.receive(len(REQUEST)) == REQUEST
    await w.server.send(b"HTTP/1.1 200 OK\r\n\r\n")
    assert await w.client.receive(19) == b"HTTP/1.1 200 OK\r\n\r\n"
    assert (w.state.phase, w.state.protocol, w.state.server_name) == ("open", "http", "a.example")
    assert (w.state.bytes_out, w.state.bytes_in) == (len(REQUEST), 19)
    w.client.finish()
    assert await w.server.rest() == b""
    w.server.finish()
    assert await w.client.rest() == b""
    await w.relay
    assert w.journal.entries == [
        ("named", "http", "a.example", "allow", "network.rules[0]"),
        ("closed", "http", len(REQUEST), 19, "eof"),
    ]
    assert w.gateway.flows() == []


@pytest.mark.parametrize("pieces", [[LOGIN], [LOGIN[:9], LOGIN[9:]], [b"\n" * 50, LOGIN]])
async def test_a_pool_login_never_leaves(wire: Callable[..., Wire], pieces: list[bytes]) -> None:
    """A Stratum login to an allowed destination is reset on both sides with not a byte passed on."""
    w = wire()
    for piece in pieces:
        await w.client.send(piece)
        await w.is_read() if piece is not pieces[-1] else None
    assert await w.server.is_reset_without_a_byte()
    assert await w.client.is_reset_without_a_byte()
    await w.relay
    assert w.journal.names == [("stratum", "deny", "protocol:stratum")]
    assert w.journal.entries[-1] == ("closed", "stratum", 0, 0, "denied:protocol:stratum")


async def test_nothing_passes_before_it_is_on_record(wire: Callable[..., Wire]) -> None:
    """Where the record cannot be written, the flow is reset, nothing has passed, and `relay` says why."""
    w = wire(fail="named")
    await w.client.send(REQUEST)
    assert await w.server.is_reset_without_a_byte()
    assert await w.client.is_reset_without_a_byte()
    with pytest.raises(OSError, match="the log is full"):
        await w.relay
    assert w.journal.entries == [("closed", "http", 0, 0, "record-failed")]


async def test_a_failed_record_of_the_end_is_not_swallowed(wire: Callable[..., Wire]) -> None:
    """`relay` raises what the recorder raised when it was told of the end; the flow is gone all the same."""
    w = wire(fail="closed")
    w.client.finish()
    w.server.finish()
    with pytest.raises(OSError, match="the log is full"):
        await w.relay
    assert w.gateway.flows() == []


async def test_the_server_may_speak_first(wire: Callable[..., Wire]) -> None:
    """An SSH banner from the server names the flow, and reaches a client that has not spoken."""
    w = wire(replace(SPEC, decision=Decision("allow", "network.rules[0]", "ssh")))
    await w.server.send(b"SSH-2.0-x\r\n")
    assert await w.client.receive(11) == b"SSH-2.0-x\r\n"
    await w.client.send(b"SSH-2.0-y\r\n")
    assert await w.server.receive(11) == b"SSH-2.0-y\r\n"
    assert w.journal.names == [("ssh", "allow", "network.rules[0]")]


@pytest.mark.parametrize("banner", [b"SSH-2.0-x\r\n", b"220 x ESMTP\r\n", b"\x4a\x00\x00\x00\x0a8.0\x00"])
async def test_a_server_that_speaks_first_does_not_vouch_for_its_client(
    wire: Callable[..., Wire], banner: bytes
) -> None:
    """After an accomplice's banner a pool login is stopped all the same."""
    w = wire()
    await w.server.send(banner)
    assert await w.client.receive(len(banner)) == banner
    await w.client.send(LOGIN)
    assert await w.server.is_reset_without_a_byte()
    await w.relay
    assert w.journal.names[-1] == ("stratum", "deny", "protocol:stratum")


async def test_a_login_cannot_outwait_the_hold(wire: Callable[..., Wire]) -> None:
    """A client whose first bytes passed as unknown is stopped before its login is whole."""
    w = wire(network=QUICK)
    await w.client.send(b"\n" + LOGIN[:9])
    assert await w.server.receive(10) == b"\n" + LOGIN[:9]
    await w.client.send(LOGIN[9:])
    assert await w.server.is_reset_without_a_byte()
    await w.relay
    assert [name[:2] for name in w.journal.names] == [("unknown", "allow"), ("stratum", "deny")]


async def test_padding_beyond_the_limit_does_not_hide_a_login(wire: Callable[..., Wire]) -> None:
    """Any amount of white space in front of a login is passed on, and the login is not."""
    w = wire()
    await w.client.send(b" " * 20_000)
    assert len(await w.server.receive(20_000)) == 20_000
    await w.client.send(LOGIN)
    assert await w.server.is_reset_without_a_byte()


async def test_a_front_cannot_outwait_the_hold(wire: Callable[..., Wire]) -> None:
    """A request that begins slowly is judged by its host when that comes, before it passes."""
    w = wire(replace(SPEC, host="a.example", decision=BY_HOST), QUICK)
    await w.client.send(b"GET")
    assert await w.server.receive(3) == b"GET"
    await w.client.send(b" / HTTP/1.1\r\nHost: b.example\r\n\r\n")
    assert await w.server.is_reset_without_a_byte()
    await w.relay
    assert w.journal.names[-1] == ("http", "deny", "server-name-mismatch")


@pytest.mark.parametrize(("protocol", "passes"), [("any", True), ("tls", False)])
async def test_what_cannot_be_named_passes_only_where_no_protocol_is_asked_for(
    wire: Callable[..., Wire], protocol: str, passes: bool
) -> None:
    """An unknown flow passes a rule for any protocol after the wait, and is refused by a rule that names one."""
    w = wire(replace(SPEC, decision=Decision("allow", "network.rules[0]", protocol)), QUICK)  # type: ignore[arg-type]
    await w.client.send(b"hello")
    if passes:
        assert await w.server.receive(5) == b"hello"
    else:
        assert await w.server.is_reset_without_a_byte()
    assert w.journal.names == [
        ("unknown", "allow", "network.rules[0]") if passes else ("unknown", "deny", "protocol:unknown")
    ]


@pytest.mark.parametrize("verdict", ["ask", "deny"])
async def test_only_an_allowed_decision_lets_bytes_through(wire: Callable[..., Wire], verdict: str) -> None:
    """A flow whose question is still open, or that was denied, is reset."""
    w = wire(replace(SPEC, decision=Decision(verdict, "network.rules[0]")))  # type: ignore[arg-type]
    await w.client.send(REQUEST)
    assert await w.server.is_reset_without_a_byte()


SHARED = Network(
    rules=[
        NetworkRule(host="a.example", ports=[443]),
        NetworkRule(host="b.example", ports=[443], protocol="tls"),
        NetworkRule(host="c.example", ports=[80]),
        NetworkRule(host="d.example", ports=[443]),
    ]
)


@pytest.mark.parametrize(
    ("naming", "verdict", "rule"),
    [
        (Naming("tls", "a.example"), "allow", "network.rules[0]"),
        (Naming("tls", ""), "allow", "network.rules[0]"),
        (Naming("http", "93.184.215.14"), "allow", "network.rules[0]"),
        (Naming("unknown"), "allow", "network.rules[0]"),
        (Naming("tls", "b.example"), "allow", "network.rules[1]"),
        (Naming("http", "b.example"), "deny", "protocol:http"),
        (Naming("tls", "c.example"), "deny", "server-name-mismatch"),
        (Naming("tls", "d.example"), "deny", "server-name-mismatch"),
        (Naming("tls", "z.example"), "deny", "server-name-mismatch"),
        (Naming("http", "93.184.215.15"), "deny", "server-name-mismatch"),
        (Naming("tls", "a.example", obscured=True), "deny", "server-name-hidden"),
        (Naming("stratum"), "deny", "protocol:stratum"),
    ],
)
async def test_a_rule_by_host_holds_for_the_server_name(naming: Naming, verdict: str, rule: str) -> None:
    """The server name is the rule's host, or another name of the same address that the policy allows on the port."""
    names = ("a.example", "B.example.", "c.example")
    spec = replace(SPEC, addr="93.184.215.14", host="a.example", decision=BY_HOST, names=names)
    decision = Gateway(SHARED, Journal()).decide(spec, naming)
    assert (decision.verdict, decision.rule) == (verdict, rule)


async def test_a_rule_by_address_leaves_the_server_name_alone() -> None:
    """Where the address itself was allowed, any server name passes and is only recorded."""
    decision = Gateway(SHARED, Journal()).decide(SPEC, Naming("tls", "z.example", obscured=True))
    assert decision == ANY


async def test_a_half_closed_flow_goes_on_in_the_other_direction(wire: Callable[..., Wire]) -> None:
    """A client that has said everything still gets the whole answer."""
    w = wire()
    await w.client.send(REQUEST)
    w.client.finish()
    assert await w.server.rest() == REQUEST
    await w.server.send(b"x" * 100_000)
    w.server.finish()
    assert await w.client.rest() == b"x" * 100_000
    await w.relay
    assert w.journal.entries[-1] == ("closed", "http", len(REQUEST), 100_000, "eof")


async def test_an_end_counts_as_the_end_of_first_bytes(wire: Callable[..., Wire]) -> None:
    """A client that sends a little and closes its direction is not waited for."""
    w = wire()
    await w.client.send(b"hi")
    w.client.finish()
    assert await w.server.rest() == b"hi"
    assert w.journal.names == [("unknown", "allow", "network.rules[0]")]


async def test_a_client_that_only_listens_gets_its_answer(wire: Callable[..., Wire]) -> None:
    """A client that closes its direction without a word has that passed on, and hears what the server says then."""
    w = wire(network=QUICK)
    w.client.finish()
    assert await w.server.rest() == b""
    await w.server.send(b"the time is now\n")
    w.server.finish()
    assert await w.client.rest() == b"the time is now\n"


async def test_a_flow_without_a_byte_ends_without_a_name(wire: Callable[..., Wire]) -> None:
    """A connection that both sides close unused is recorded as closed only."""
    w = wire()
    w.client.finish()
    w.server.finish()
    await w.relay
    assert w.journal.entries == [("closed", "", 0, 0, "eof")]


@pytest.mark.parametrize("side", ["inside", "outside"])
@pytest.mark.parametrize("is_open", [True, False])
async def test_a_reset_is_passed_on_as_a_reset(wire: Callable[..., Wire], side: str, is_open: bool) -> None:
    """What one side takes for a failure is not shown to the other as a regular end."""
    w = wire()
    if is_open:
        await w.client.send(REQUEST)
        await w.server.receive(len(REQUEST))
    gone, left = (w.client, w.server) if side == "inside" else (w.server, w.client)
    gone.reset()
    assert await left.is_reset_without_a_byte()
    await w.relay
    assert w.journal.entries[-1][4] == f"{side}:ECONNRESET"


async def test_a_slow_reader_slows_its_sender_down(wire: Callable[..., Wire]) -> None:
    """While nobody reads, the gateway takes no more than one chunk beyond what the kernel holds; all of it arrives."""
    w = wire()
    w.server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    data = REQUEST + os.urandom(1 << 20) * 24
    sending = asyncio.create_task(w.client.send(data))
    await until(lambda: w.gateway.backlog > 0)
    assert w.gateway.backlog <= 1 << 20
    assert not sending.done()
    digest = hashlib.sha256(await w.server.receive(len(data))).digest()
    await sending
    assert digest == hashlib.sha256(data).digest()
    assert w.gateway.backlog == 0


async def test_what_waits_for_a_slow_reader_is_forgotten_with_its_flow(wire: Callable[..., Wire]) -> None:
    """A flow that ends while its reader is slow gives its share of the backlog back."""
    w = wire()
    w.server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    sending = asyncio.create_task(w.client.send(REQUEST + bytes(24 << 20)))
    await until(lambda: w.gateway.backlog > 0)
    w.gateway.close_all("test")
    assert w.gateway.backlog == 0
    with pytest.raises(ConnectionError):
        await sending


async def test_a_paused_gateway_lets_nothing_through_and_loses_nothing(wire: Callable[..., Wire]) -> None:
    """What is sent during a pause arrives after it, in flows that were open and in new ones."""
    w = wire()
    await w.client.send(REQUEST)
    await w.server.receive(len(REQUEST))
    w.gateway.pause()
    new = wire(on=w)
    await w.client.send(b"more")
    await new.client.send(REQUEST)
    reading = [asyncio.create_task(w.server.receive(4)), asyncio.create_task(new.server.receive(len(REQUEST)))]
    await turns(50)
    assert [task.done() for task in reading] == [False, False]
    assert [state.bytes_out for state in w.gateway.flows()] == [len(REQUEST), 0]
    w.gateway.resume()
    assert await asyncio.gather(*reading) == [b"more", REQUEST]


async def test_a_wait_that_runs_out_during_a_pause_is_judged_after_it(wire: Callable[..., Wire]) -> None:
    """A pause neither lets held bytes through nor forgets that they have waited long enough."""
    w = wire(network=QUICK)
    await w.client.send(b"hello")
    await w.is_read()
    w.gateway.pause()
    due = asyncio.Event()
    asyncio.get_running_loop().call_later(0.03, due.set)  # set up after the wait's own timer, and longer
    await due.wait()
    assert w.journal.entries == []
    w.gateway.resume()
    assert await w.server.receive(5) == b"hello"


async def test_a_recorder_may_pause_or_close_the_gateway(wire: Callable[..., Wire]) -> None:
    """What trips the breaker while it is told of a flow stops that very flow."""
    w = wire()
    w.journal.on_named = w.gateway.pause
    await w.client.send(REQUEST)
    await until(lambda: bool(w.journal.entries))
    assert (w.state.phase, w.state.bytes_out) == ("open", 0)
    w.gateway.resume()
    assert await w.server.receive(len(REQUEST)) == REQUEST
    other = wire()
    other.journal.on_named = lambda: other.gateway.close_all("tripped")
    await other.client.send(REQUEST)
    assert await other.server.is_reset_without_a_byte()
    assert other.journal.entries[-1] == ("closed", "http", 0, 0, "closed:tripped")


async def test_closing_resets_what_is_there_and_what_comes(wire: Callable[..., Wire]) -> None:
    """After `close_all` no flow is left, and none begins."""
    w = wire()
    held = wire(on=w)
    await w.client.send(REQUEST)
    await w.server.receive(len(REQUEST))
    w.gateway.close_all("killed")
    await w.gateway.wait_closed()
    late = wire(on=w)
    for one in (w, held, late):
        assert await one.client.is_reset_without_a_byte()
        assert await one.server.is_reset_without_a_byte()
    assert [entry[4] for entry in w.journal.entries if entry[0] == "closed"] == ["closed:killed"] * 3


async def test_a_cancelled_relay_leaves_nothing_open(wire: Callable[..., Wire]) -> None:
    """Cancelling a relay resets its flow and records that."""
    w = wire()
    await w.client.send(REQUEST)
    await w.server.receive(len(REQUEST))
    w.relay.cancel()
    assert await w.client.is_reset_without_a_byte()
    assert w.journal.entries[-1][4] == "cancelled"
    assert w.gateway.flows() == []


async def test_urgent_data_does_not_get_past_the_gateway(wire: Callable[..., Wire]) -> None:
    """A byte sent out of band is dropped, and the rest of the stream is whole."""
    w = wire()
    await w.client.send(REQUEST)
    await w.server.receive(len(REQUEST))
    w.client.sock.send(b"!", socket.MSG_OOB)
    await w.client.send(b"after")
    w.client.finish()
    assert await w.server.rest() == b"after"


async def test_too_many_flows_are_refused(wire: Callable[..., Wire]) -> None:
    """Beyond the limit a flow is reset and recorded; those before it go on."""
    journal = Journal()
    gateway = Gateway(PATIENT, journal, max_flows=1)
    near = [tcp_pair() for _ in range(4)]
    tasks = [
        asyncio.create_task(gateway.relay(SPEC, near[0][1], near[1][0])),
        asyncio.create_task(gateway.relay(SPEC, near[2][1], near[3][0])),
    ]
    await tasks[1]
    assert journal.entries == [("closed", "", 0, 0, "too-many-flows")]
    assert len(gateway.flows()) == 1
    gateway.close_all("test")
    await tasks[0]
    for pair in near:
        for sock in pair:
            sock.close()


async def test_many_flows_at_once_do_not_mix(wire: Callable[..., Wire]) -> None:
    """Two hundred flows on one loop each carry their own bytes and are each recorded twice."""
    first = wire()
    wires = [first, *(wire(on=first) for _ in range(199))]

    async def exchange(w: Wire, number: int) -> tuple[bytes, bytes]:
        out, back = REQUEST + b"out %d" % number, b"in %d" % number
        await w.client.send(out)
        w.client.finish()
        got = await w.server.rest()
        await w.server.send(back)
        w.server.finish()
        return got, await w.client.rest()

    answers = await asyncio.gather(*(exchange(w, number) for number, w in enumerate(wires)))
    assert answers == [(REQUEST + b"out %d" % n, b"in %d" % n) for n in range(200)]
    await first.gateway.wait_closed()
    assert len(first.journal.entries) == 400


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 200_000), min_size=1, max_size=4),
    back=st.integers(0, 200_000),
    random_start=st.booleans(),
)
def test_streams_arrive_as_they_were_sent(sizes: list[int], back: int, random_start: bool) -> None:
    """Whatever sizes are written, both streams arrive whole and in order, and are counted exactly."""
    out = [os.urandom(size) for size in sizes]
    out[0] = (b"\x00" if random_start else REQUEST) + out[0]

    async def run() -> Journal:
        journal = Journal()
        gateway = Gateway(QUICK, journal)
        (client, inside), (outside, server) = tcp_pair(), tcp_pair()
        near, far = Peer(client), Peer(server)
        relay = asyncio.create_task(gateway.relay(SPEC, inside, outside))

        async def send(peer: Peer, pieces: list[bytes]) -> None:
            for piece in pieces:
                await peer.send(piece)
            peer.finish()

        async with asyncio.timeout(PATIENCE_S):
            answer = bytes(back)
            _, _, got, got_back = await asyncio.gather(send(near, out), send(far, [answer]), far.rest(), near.rest())
            await relay
        client.close()
        server.close()
        assert got == b"".join(out)
        assert got_back == answer
        return journal

    journal = asyncio.run(run())
    assert journal.entries[-1][2:] == (sum(map(len, out)), back, "eof")
