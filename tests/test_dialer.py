"""Joining callers' sockets to the gateway, and closing them, in this process: each gets its own flow, none waits."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import pytest

from jupyter_agentwatch.policy import Decision, Network
from jupyter_agentwatch.sandbox.flow import FlowSpec
from jupyter_agentwatch.sandbox.gateway import Gateway
from jupyter_agentwatch.supervisor.closer import Closer
from jupyter_agentwatch.supervisor.connecting import begin, connect_at_once
from jupyter_agentwatch.supervisor.dialer import Dial, Dialer
from tests.outside import LONG_S

if TYPE_CHECKING:
    from collections.abc import Iterator

MANY: Final = 300
MIN_TTL: Final = {socket.AF_INET: (socket.IPPROTO_IP, 21), socket.AF_INET6: (socket.IPPROTO_IPV6, 73)}
LOOPBACK: Final = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
OWN: Final = "127.77.0.1"
"""An address that no other program of this machine calls from: a port of it that was let go is nobody else's."""
FAMILIES: Final = [socket.AF_INET, socket.AF_INET6]


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    """Room for some thousand sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Unrecorded:
    """A recorder of flows that keeps nothing."""

    def named(self, *_: Any) -> None:
        """Take a name."""

    def closed(self, *_: Any) -> None:
        """Take an end."""


class Answers:
    """Stands in for the notification channel: keeps what each caller was told."""

    def __init__(self) -> None:
        self.given: dict[int, int] = {}

    def finish(self, ident: int, error: int = 0) -> bool:
        """Take an answer."""
        self.given[ident] = error
        return True


class Ground:
    """A dialer with a loop of its own in a thread, and a gateway behind it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.answers = Answers()
        self.closer = Closer()
        self.listening = [socket.create_server((LOOPBACK[f], 0), family=f, backlog=4096) for f in FAMILIES]
        self.parking = [socket.create_server((LOOPBACK[f], 0), family=f) for f in FAMILIES]
        self.gateway = Gateway(Network(), Unrecorded())
        answers: Any = self.answers
        self.dialer = Dialer(
            loop=self.loop,
            listener=answers,
            begin=lambda _spec, address: begin(address),
            gateway=self.gateway,
            listening=(self.listening[0], self.listening[1]),
            parking=(self.parking[0], self.parking[1]),
            more_sockets=self.no_sockets,
            timeout_s=LONG_S,
            failed=lambda _spec, _error: None,
            connected=lambda _sock: None,
            closer=self.closer,
        )
        self.thread = threading.Thread(target=self.loop.run_forever)

    async def no_sockets(self, _ipv6: bool, _count: int) -> list[socket.socket]:
        """Nothing is parked here."""
        return []

    def join(self, ident: int, caller: socket.socket, *, blocking: bool) -> socket.socket:
        """Join a caller's socket as the broker would, and return the far end of its flow."""
        outside, far = socket.socketpair()
        outside.setblocking(False)
        decision = Decision("allow", "network.rules[0]")
        spec = FlowSpec(ident, 1, 1, "198.51.100.7", 80, "", decision)
        self.dialer.join(Dial(ident, spec, caller.dup(), outside, blocking))
        return far


@pytest.fixture
def ground() -> Iterator[Ground]:
    """A dialer whose loop runs."""
    made = Ground()
    made.thread.start()
    yield made

    async def end() -> None:
        made.gateway.close_all("test")
        made.dialer.close()
        await made.gateway.wait_closed()

    asyncio.run_coroutine_threadsafe(end(), made.loop).result(LONG_S)
    made.loop.call_soon_threadsafe(made.loop.stop)
    made.thread.join(LONG_S)
    made.loop.close()
    made.closer.stop()
    for sock in (*made.listening, *made.parking):
        sock.close()


def said_across(ident: int, caller: socket.socket, far: socket.socket) -> bool:
    """Say a number on one end of a flow, and see whether the other end hears exactly that."""
    said = b"number %d\r\n" % ident
    caller.sendall(said)
    far.settimeout(LONG_S)
    heard = b""
    while len(heard) < len(said) and (piece := far.recv(64)):
        heard += piece
    return heard == said


@pytest.mark.parametrize("family", FAMILIES)
def test_each_caller_gets_its_own_flow_beside_strangers(ground: Ground, family: socket.AddressFamily) -> None:
    """Callers joined by eight threads at once, while strangers connect to the gateway's port: no two are mixed up."""
    where = ground.listening[FAMILIES.index(family)].getsockname()[:2]
    over = threading.Event()
    strangers: list[socket.socket] = []

    def intrude() -> None:
        while not over.is_set() and len(strangers) < 2000:
            stranger = socket.socket(family)
            strangers.append(stranger)
            stranger.settimeout(LONG_S)
            with contextlib.suppress(OSError):
                stranger.connect(where)

    def one(ident: int) -> bool:
        with socket.socket(family) as caller:
            caller.setblocking(ident % 2 == 0)
            with ground.join(ident, caller, blocking=ident % 2 == 0) as far:
                caller.settimeout(LONG_S)
                return said_across(ident, caller, far)

    intruder = threading.Thread(target=intrude)
    intruder.start()
    with ThreadPoolExecutor(8) as pool:
        right = list(pool.map(one, range(MANY)))
    over.set()
    intruder.join(LONG_S)
    for stranger in strangers:
        stranger.close()
    assert strangers
    assert right == [True] * MANY
    assert [ground.answers.given[k] for k in range(MANY)] == [0, errno.EINPROGRESS] * (MANY // 2)


def test_what_a_stranger_left_behind_is_not_taken_for_a_callers(ground: Ground) -> None:
    """A port that a stranger had and reset is now a caller's: the flow carries what the caller says, and only that."""
    where = ground.listening[0].getsockname()[:2]
    with socket.socket() as stranger, socket.socket() as witness:
        stranger.bind((OWN, 0))
        stranger.connect(where)
        stranger.sendall(b"a stranger's\r\n")
        port = stranger.getsockname()[1]
        with ground.join(1, witness, blocking=True) as far:  # the gateway has accepted both by now
            assert said_across(1, witness, far)
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with socket.socket() as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        caller.bind((OWN, port))
        with ground.join(2, caller, blocking=True) as far:
            assert said_across(2, caller, far)


def test_flows_that_say_nothing_are_seen_and_few_are_kept(ground: Ground) -> None:
    """Joined flows are listed before their first byte, what comes beyond 256 begins, and each can still speak."""
    with contextlib.ExitStack() as open_:
        callers = [open_.enter_context(socket.socket()) for _ in range(MANY)]
        fars = [open_.enter_context(ground.join(k, caller, blocking=True)) for k, caller in enumerate(callers)]
        kept = {state.spec.flow for state in ground.dialer.flows()}
        assert len(kept) == 256
        assert kept <= set(range(MANY))
        for ident in range(MANY):
            assert said_across(ident, callers[ident], fars[ident])
        assert ground.dialer.flows() == []
        assert {state.spec.flow for state in ground.gateway.flows()} == set(range(MANY))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_connect_at_once_does_what_connect_does(family: socket.AddressFamily) -> None:
    """It is in progress, then done, then in use; a port without a server refuses; O_NONBLOCK stays as it was."""
    with socket.create_server((LOOPBACK[family], 0), family=family) as listening, socket.socket(family) as caller:
        host, port = listening.getsockname()[:2]
        assert connect_at_once(caller, host, port) == errno.EINPROGRESS
        accepted, peer = listening.accept()
        accepted.close()
        assert peer == caller.getsockname()
        assert connect_at_once(caller, host, port) == 0
        assert connect_at_once(caller, host, port) == errno.EISCONN
        assert caller.connect_ex((host, port)) == errno.EISCONN
        assert os.get_blocking(caller.fileno())
    with socket.socket(family) as bound, socket.socket(family) as caller:
        bound.bind((LOOPBACK[family], 0))
        assert connect_at_once(caller, *bound.getsockname()[:2]) == errno.EINPROGRESS
        assert caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


@pytest.mark.parametrize("family", FAMILIES)
def test_a_connect_at_once_does_not_wait_for_an_answer(family: socket.AddressFamily) -> None:
    """A blocking socket that drops the peer's answer leaves the call in progress, and a second one is told so."""
    with socket.create_server((LOOPBACK[family], 0), family=family) as listening, socket.socket(family) as caller:
        caller.setsockopt(*MIN_TTL[family], 255)
        host, port = listening.getsockname()[:2]
        assert connect_at_once(caller, host, port) == errno.EINPROGRESS
        assert connect_at_once(caller, host, port) == errno.EALREADY


# Closing


def lingering() -> tuple[socket.socket, socket.socket]:
    """Return a socket whose close waits until its peer, the second one, reads."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
    ours.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(bytes(1 << 16))
    ours.setblocking(True)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3000))
    return ours, theirs


def test_a_close_that_waits_keeps_no_other_waiting() -> None:
    """Beside sockets whose close takes for ever, others are closed, and their peers see it."""
    closer = Closer()
    peers = []
    for _ in range(8):
        ours, theirs = lingering()
        closer.close(ours)
        peers.append(theirs)
    for _ in range(100):
        one, other = socket.socketpair()
        closer.close(one)
        other.settimeout(LONG_S)
        assert other.recv(1) == b""
        other.close()
    assert closer.progress() is None
    assert not closer.is_full
    for theirs in peers:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()  # resets, so that nobody waits any more
    closer.stop()


def test_closes_that_all_wait_are_seen_and_bounded() -> None:
    """With every thread held up, whoever looks sees it, more is refused, and it all goes on afterwards."""
    closer = Closer()
    peers = []
    while closer.progress() is None:
        ours, theirs = lingering()
        closer.close(ours)
        peers.append(theirs)
        assert len(peers) < 64
    before = closer.progress()
    far_ends = []
    while not closer.is_full:
        read, write = os.pipe()
        closer.close(write)
        far_ends.append(read)
        assert len(far_ends) < 4096
    assert closer.progress() == before
    for theirs in peers:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
    for read in far_ends:
        assert os.read(read, 1) == b""
        os.close(read)
    assert not closer.is_full
    closer.stop()
