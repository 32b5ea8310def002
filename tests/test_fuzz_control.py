"""Whatever a client says on the control socket: it is answered or hung up on, and the watch goes on."""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jupyter_agentwatch.errors import AgentwatchError, ControlError
from jupyter_agentwatch.events import Finding
from jupyter_agentwatch.wire.framing import MAX_FRAME, FrameDecoder, encode_frame
from jupyter_agentwatch.wire.messages import PROTOCOL, FromSupervisor, Hello, Kill, Status, ToSupervisor
from jupyter_agentwatch.wire.runtime import control_socket
from tests.outside import LONG_S, recorded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jupyter_agentwatch import Watch

_TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(["", "true", "sleep", "\0", "/", "..", "PATH", "\udcff".encode("utf-8", "replace").decode()]),
)
_NUMBER = st.one_of(st.integers(-2, 3), st.sampled_from([9, 15, 64, 65, 70_000, 2**31, 2**63 - 1, -(2**63)]))
_VALUES: Final[dict[Any, st.SearchStrategy[Any]]] = {
    str: _TEXT,
    bool: st.booleans(),
    int: _NUMBER,
    float: st.one_of(st.floats(), st.sampled_from([0.0, 0.01, 1e300])),
    bytes: st.binary(max_size=20),
    type(None): st.none(),
}
_NOT_SENT: Final = (Kill,)
"""What would end the watch, as it should."""


def value(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a message's field."""
    if annotation in _VALUES:
        return _VALUES[annotation]
    arguments = [value(each) for each in get_args(annotation)]
    if getattr(annotation, "__origin__", None) is list:
        return st.lists(arguments[0], max_size=3)
    if getattr(annotation, "__origin__", None) is dict:
        return st.dictionaries(*arguments, max_size=2)
    return st.one_of(arguments)


MESSAGES: Final = st.one_of(
    [
        st.builds(kind, **{field.name: value(field.type) for field in msgspec.structs.fields(kind)})
        for kind in get_args(ToSupervisor)
        if kind not in _NOT_SENT
    ]
)
HELLO: Final = encode_frame(Hello(protocol=PROTOCOL, client="fuzz"))


@st.composite
def bent(draw: st.DrawFn) -> bytes:
    """A frame with a few bytes changed, or cut."""
    data = bytearray(encode_frame(draw(MESSAGES)))
    for at, changed in draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=3)):
        data[at % len(data)] = changed
    return bytes(data[: draw(st.integers(1, len(data)))])


# The codec alone


@settings(deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=40), bent(), MESSAGES.map(encode_frame)), max_size=4), st.data())
def test_no_bytes_break_the_decoder(pieces: list[bytes], draw: st.DataObject) -> None:
    """Any bytes in any pieces give messages or a ControlError, and never more memory than one frame."""
    decoder: FrameDecoder[ToSupervisor] = FrameDecoder(msgspec.msgpack.Decoder(ToSupervisor))
    data = b"".join(pieces)
    with contextlib.suppress(ControlError):
        while data:
            size = draw.draw(st.integers(1, len(data)))
            for message in decoder.feed(data[:size]):
                assert isinstance(message, get_args(ToSupervisor))
            data = data[size:]
    assert len(decoder._buffer) <= MAX_FRAME


def test_a_frame_that_announces_too_much_is_refused_at_once() -> None:
    """The length alone decides: nothing is kept for a frame over the limit."""
    decoder: FrameDecoder[ToSupervisor] = FrameDecoder(msgspec.msgpack.Decoder(ToSupervisor))
    with pytest.raises(ControlError, match=str(MAX_FRAME)):
        list(decoder.feed(struct.pack(">I", MAX_FRAME + 1)))


# A real watch


@pytest.fixture(scope="module")
def clients(closed: Watch) -> Iterator[Watch]:
    """A watch that hostile clients speak to; after them, it has said nothing on standard error."""
    yield closed
    assert said_by(closed) == ""


def said_by(watch: Watch) -> str:
    """What a watch's supervisor has said on standard error."""
    said = Path(f"{watch.log}.stderr")
    return said.read_text() if said.exists() else ""


def tell(watch: Watch, data: bytes, *, answer: int = 0) -> list[Any]:
    """Send bytes as a client, and return what came back until an answer, or until the supervisor hung up.

    Args:
        watch: Whose socket.
        data: What to send.
        answer: The request whose answer is waited for; 0: hang up at once.
    """
    decoder: FrameDecoder[Any] = FrameDecoder(msgspec.msgpack.Decoder(FromSupervisor))
    came: list[Any] = []
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(LONG_S)
        client.connect(str(control_socket(watch.id)))
        with contextlib.suppress(ConnectionError):  # it may hang up before all is said
            client.sendall(data)
            if not answer:
                client.shutdown(socket.SHUT_WR)
            while piece := client.recv(1 << 16):
                came += decoder.feed(piece)
                if answer in [message.id for message in came if message.id]:
                    break
    return came


def still_works(watch: Watch) -> bool:
    """Say whether a watch runs commands, after it was resumed where a client has suspended it."""
    if watch.status().state != "closed":
        with contextlib.suppress(AgentwatchError):
            watch.resume()
    return watch.run(["true"], timeout=LONG_S).ok


@pytest.mark.sandbox
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(MESSAGES.map(encode_frame), bent(), st.binary(max_size=30)), min_size=1, max_size=6))
def test_no_client_breaks_a_watch(clients: Watch, frames: list[bytes]) -> None:
    """Valid requests with any values, frames with bytes changed, and noise: the watch runs commands afterwards."""
    tell(clients, HELLO + b"".join(frames))
    assert still_works(clients)
    assert [finding for finding in recorded(clients, Finding) if finding.rule.startswith("agentwatch.monitor")] == []


@pytest.mark.sandbox
def test_a_client_that_hangs_up_at_once_is_no_matter(clients: Watch) -> None:
    """Many requests whose answers nobody takes: the supervisor says nothing on standard error, and goes on."""
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(control_socket(clients.id)))
            with contextlib.suppress(ConnectionError):
                client.sendall(HELLO + b"".join(encode_frame(Status(id=number)) for number in range(1, 50)))
    assert still_works(clients)
    assert said_by(clients) == ""


@pytest.mark.sandbox
@pytest.mark.parametrize(
    "message",
    [
        {"type": "signal", "step": 1, "signal": 65},
        {"type": "signal", "step": 1, "signal": 2**40},
        {"type": "resize", "step": 1, "rows": 70_000, "columns": 80},
        {"type": "run", "argv": ["sh"], "pty": True, "rows": 70_000, "columns": -1},
        {"type": "run", "argv": ["true"], "timeout_s": float("nan")},
        {"type": "run", "argv": ["true"], "timeout_s": float("inf")},
        {"type": "run", "argv": ["true"], "timeout_s": -1.0},
        {"type": "run", "argv": ["x" * (1 << 20)]},
        {"type": "run", "argv": ["true"], "env": {"a=b": "c"}},
        {"type": "run", "argv": ["true"], "env": {"": "c"}},
        {"type": "undo", "step": 2**62},
        {"type": "answer", "ask": -1, "allow": True},
        {"type": "lease", "gpu": -1, "purpose": "\0"},
    ],
    ids=lambda message: str(message)[:70],
)
def test_values_that_no_call_takes_are_refused(clients: Watch, message: dict[str, Any]) -> None:
    """A signal, a size, a time or a text that cannot be: the client hears of it, and nothing else changes."""
    running = clients.start(["sleep", "1000"])
    message = {"id": 5, **message} | ({"step": running.step} if "step" in message else {})
    body = msgspec.msgpack.encode(message)
    came = tell(clients, HELLO + struct.pack(">I", len(body)) + body, answer=5)
    assert came[-1].id == 5
    assert still_works(clients)
    assert running.step in clients.status().running_steps
    running.kill()
    running.wait(LONG_S)
