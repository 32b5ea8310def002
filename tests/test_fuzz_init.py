"""Whatever init says: a message is what it should be, or the sandbox counts as ended. No descriptor is forgotten."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import signal
import socket
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_agentwatch.errors import SessionEndedError
from jupyter_agentwatch.supervisor.endings import how_ended
from jupyter_agentwatch.supervisor.init_channel import InitChannel
from tests.outside import LONG_S

if TYPE_CHECKING:
    from collections.abc import Iterator

ENDED: Final[dict[str, Any]] = {"pid": 7, "status": 9, "step": 1, "user": 0.01, "system": 0.0, "rss": 4096}
GOOD: Final[list[dict[str, Any]]] = [
    {"exit": ENDED},
    {"spawned": 7, "errno": 0},
    {"frozen": [7, 8]},
    {"thawed": True},
    {"killed": 3},
    {"sockets": 16, "ipv6": False},
]
OPS: Final = ["spawn", "freeze", "thaw", "kill_sessions", "sockets"]

_SCALAR = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8))
_KEYS = st.sampled_from(sorted({key for each in (*GOOD, ENDED) for key in each}))
_JSON = st.recursive(
    _SCALAR, lambda below: st.lists(below, max_size=3) | st.dictionaries(_KEYS, below, max_size=4), max_leaves=8
)


@st.composite
def bent(draw: st.DrawFn) -> bytes:
    """A message of init's with one value changed, or bytes changed, or cut."""
    message: Any = json.loads(json.dumps(draw(st.sampled_from(GOOD))))
    inner = message["exit"] if "exit" in message and draw(st.booleans()) else message
    inner[draw(st.sampled_from(sorted(inner)))] = draw(_JSON)
    data = bytearray(json.dumps(message).encode())
    for at, value in draw(st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=2)):
        data[at % len(data)] = value
    return bytes(data[: draw(st.integers(1, len(data)))] if draw(st.booleans()) else data)


MESSAGES = st.one_of(st.binary(min_size=1, max_size=200), _JSON.map(lambda it: json.dumps(it).encode()), bent())


class Talk:
    """A channel with a hostile init at its other end, in a loop of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        ours, self.init = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ended = asyncio.Event()
        self.exits: list[dict[str, Any]] = []
        self.problems: list[Any] = []
        self.loop.set_exception_handler(lambda _, context: self.problems.append(context))
        self.channel = InitChannel(self.loop, ours, self.exits.append, self.ended.set)
        self._ours = ours

    def say(self, message: bytes, fds: list[int]) -> None:
        """Send a message as init."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.init.sendmsg([message], rights)

    def turns(self, count: int = 5) -> None:
        """Let the loop go round."""

        async def rest() -> None:
            for _ in range(count):
                await asyncio.sleep(0)

        self.loop.run_until_complete(rest())

    def close(self) -> None:
        """Close both ends."""
        self.channel.close()
        self.loop.close()
        self._ours.close()
        self.init.close()


@contextlib.contextmanager
def talking() -> Iterator[Talk]:
    """A channel, closed afterwards."""
    talk = Talk()
    try:
        yield talk
    finally:
        talk.close()


def open_files() -> int:
    """Count this process's descriptors."""
    return len(os.listdir("/proc/self/fd"))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(MESSAGES, st.integers(0, 3)), min_size=1, max_size=4),
    st.lists(st.sampled_from(OPS), max_size=3),
)
def test_no_message_of_init_breaks_the_channel(messages: list[tuple[bytes, int]], ops: list[str]) -> None:
    """Any messages, with descriptors or without: nothing is raised; what is passed on can be used; none stays open."""
    before = open_files()
    with talking() as talk:
        asked = [talk.loop.create_task(talk.channel.ask({"op": op})) for op in ops]
        talk.turns(1)
        for message, count in messages:
            talk.say(message, [talk.init.fileno()] * count)
        talk.turns()
        for each in talk.exits:
            assert set(each) >= set(ENDED)
            how_ended(each["status"])
            assert each["rss"] + each["pid"] + each["step"] >= 0
        for op, task in zip(ops, asked, strict=True):
            if task.done() and task.exception() is None:
                reply, fds = task.result()
                assert set(reply) >= set(GOOD[OPS.index(op) + 1])
                for fd in fds:
                    os.close(fd)
            elif task.done():
                assert isinstance(task.exception(), SessionEndedError)
            else:
                task.cancel()
        assert talk.problems == []
        assert talk.ended.is_set() or all(not task.done() or not task.exception() for task in asked)
        talk.turns()
    assert open_files() == before


@pytest.mark.parametrize(
    ("message", "fds"),
    [
        (b"{}", 0),
        (b"nonsense", 0),
        (b'{"spawned": 7, "errno": 0}', 0),
        (json.dumps({"exit": ENDED | {"status": 0x137F}}).encode(), 0),
        (json.dumps({"exit": ENDED | {"status": -1}}).encode(), 0),
        (json.dumps({"exit": ENDED | {"rss": 2**80}}).encode(), 0),
        (json.dumps({"exit": ENDED}).encode(), 1),
        (b"[" * 5000, 0),
        (b'{"frozen": [' + b"1," * 40_000 + b"1]}", 0),
        (json.dumps({"killed": 1}).encode(), 100),
    ],
)
def test_a_word_out_of_place_is_the_end(message: bytes, fds: int) -> None:
    """Nobody asked, a process that ended by being stopped, too long, too many descriptors: the sandbox is given up."""
    before = open_files()
    with talking() as talk:
        talk.say(message, [talk.init.fileno()] * fds)
        talk.turns()
        assert talk.ended.is_set()
        assert (talk.exits, talk.problems) == ([], [])
    assert open_files() == before


def test_who_waits_learns_of_the_end() -> None:
    """An answer to another question ends the channel, and who asked is told so."""
    with talking() as talk:
        asked = talk.loop.create_task(talk.channel.ask({"op": "freeze"}))
        talk.turns(1)
        talk.say(b'{"killed": 1}', [])
        with pytest.raises(SessionEndedError):
            talk.loop.run_until_complete(asyncio.wait_for(asked, LONG_S))
        with pytest.raises(SessionEndedError):
            talk.loop.run_until_complete(talk.channel.ask({"op": "thaw"}))


def test_what_init_should_say_is_passed_on() -> None:
    """News and answers come through in their order, descriptors with them."""
    with talking() as talk:
        asked = [talk.loop.create_task(talk.channel.ask({"op": op})) for op in OPS]
        talk.turns(1)
        talk.say(json.dumps({"exit": ENDED | {"status": int(signal.SIGTERM)}}).encode(), [])
        for message in GOOD[1:]:
            talk.say(json.dumps(message).encode(), [talk.init.fileno()])
        answers = talk.loop.run_until_complete(asyncio.wait_for(asyncio.gather(*asked), LONG_S))
        assert [reply for reply, _ in answers] == GOOD[1:]
        assert [len(fds) for _, fds in answers] == [1] * len(OPS)
        for _, fds in answers:
            os.close(fds[0])
        assert talk.exits == [ENDED | {"status": 15}]
