"""The client of the control socket against a fake supervisor that speaks the real protocol over a real socket."""

from __future__ import annotations

import os
import signal
import socket
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_agentwatch.errors import (
    AgentwatchError,
    ControlError,
    RefusedError,
    SessionEndedError,
    UndoConflictError,
    WorkspaceError,
)
from jupyter_agentwatch.events import decode_event
from jupyter_agentwatch.testing import FakeSupervisor, event
from jupyter_agentwatch.watch.output import Cursor, Output
from jupyter_agentwatch.wire.client import Bell, Client, ask
from jupyter_agentwatch.wire.framing import MAX_FRAME, FrameDecoder, encode_frame
from jupyter_agentwatch.wire.messages import (
    Ack,
    Answer,
    CommandEnded,
    DiffStep,
    Failed,
    Hello,
    Kill,
    Killed,
    Message,
    Request,
    RunCommand,
    Status,
    StdinData,
    Suspend,
    ToSupervisor,
    UndoStep,
    WatchStatus,
    Welcome,
)
from jupyter_agentwatch.wire.runtime import control_socket, runtime_dir
from tests.outside import LONG_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Recorder:
    """A sink that remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []
        self.over = Bell()

    def began(self, step: int) -> None:
        self.said.append(("began", step))

    def output(self, stream: int, data: bytes) -> None:
        self.said.append(("output", (stream, data)))

    def ended(self, message: CommandEnded) -> None:
        self.said.append(("ended", message))
        self.over.ring()

    def failed(self, error: AgentwatchError) -> None:
        self.said.append(("failed", error))
        self.over.ring()


@pytest.fixture
def path() -> Iterator[Path]:
    """Where a control socket may lie."""
    path = runtime_dir() / f"{os.urandom(4).hex()}.sock"
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def fake(path: Path) -> Iterator[FakeSupervisor]:
    """A fake supervisor that listens."""
    with FakeSupervisor(path) as fake:
        yield fake


@pytest.fixture
def client(fake: FakeSupervisor) -> Iterator[Client]:
    """A client of the fake."""
    with Client.connect(fake.path, name="test") as client:
        yield client


def answer_once(path: Path, reply: bytes) -> threading.Thread:
    """Listen, read one message, write `reply`, close."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)

    def serve() -> None:
        with listener, listener.accept()[0] as sock:
            sock.recv(65536)
            sock.sendall(reply)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


def test_hello_names_the_client_and_welcome_is_kept(client: Client, fake: FakeSupervisor) -> None:
    """The handshake says who asks, and what the supervisor answers can be read later."""
    hello = fake.received[0]
    assert isinstance(hello, Hello)
    assert (hello.client, hello.owner) == ("test", False)
    assert client.welcome.watch == "fa4e0000"
    assert client.head == fake.head


def test_each_thread_gets_its_own_answer(client: Client, fake: FakeSupervisor) -> None:
    """Answers find the request they belong to, in whatever order many threads ask and the supervisor answers."""
    threads, wrong = 16, []
    gate = threading.Barrier(threads)
    fake.answers[DiffStep] = lambda request: Failed(error="WorkspaceError", text=str(request.step))

    def ask_many(number: int) -> None:
        gate.wait(LONG_S)
        for turn in range(50):
            step = number * 1000 + turn
            try:
                client.request(DiffStep(step=step), Ack, timeout=LONG_S)
            except WorkspaceError as error:
                if str(error) != str(step):
                    wrong.append((step, str(error)))
            else:
                wrong.append((step, "no error"))

    workers = [threading.Thread(target=ask_many, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(LONG_S)
    assert wrong == []
    assert sum(isinstance(request, DiffStep) for request in fake.received) == threads * 50


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("UndoConflictError", UndoConflictError),
        ("AgentwatchError", AgentwatchError),
        ("ControlError", RefusedError),
        ("NoSuchError", RefusedError),
        ("Any", RefusedError),
        ("annotations", RefusedError),
        ("", RefusedError),
    ],
)
def test_a_refusal_raises_the_error_that_it_names(
    client: Client, fake: FakeSupervisor, name: str, kind: type[AgentwatchError]
) -> None:
    """A name of one of our errors becomes that error; any other name becomes RefusedError with the name in it."""
    fake.answers[UndoStep] = lambda _: Failed(error=name, text="step 3 changed it, too")
    with pytest.raises(kind, match="step 3 changed it, too") as caught:
        client.request(UndoStep(step=2), Ack)
    assert type(caught.value) is kind


def test_an_answer_of_another_class_is_an_error(client: Client, fake: FakeSupervisor) -> None:
    """What is not the answer that was due is refused, with both names."""
    with pytest.raises(ControlError, match="Ack where WatchStatus was due"):
        client.request(Suspend(), WatchStatus)


def test_a_silent_supervisor_costs_only_the_time_limit(client: Client, fake: FakeSupervisor) -> None:
    """After a request that nobody answered the connection works as before."""
    fake.answers[Answer] = lambda _: None
    with pytest.raises(ControlError, match=r"did not answer within 0\.01 s"):
        client.request(Answer(ask=1, allow=True), Ack, timeout=0.01)
    assert client.request(Status(), WatchStatus).watch == "fa4e0000"


def test_everybody_who_waits_learns_of_the_end(client: Client, fake: FakeSupervisor) -> None:
    """When the supervisor dies, every waiting thread and every running command gets SessionEndedError at once."""
    asked, errors = threading.Semaphore(0), []
    fake.answers[Answer] = lambda _: asked.release()

    def wait(number: int) -> None:
        try:
            client.request(Answer(ask=number, allow=True), Ack)
        except SessionEndedError as error:
            errors.append(error)

    sink = Recorder()
    fake.answers[RunCommand] = lambda _: None
    client.start(RunCommand(argv=["true"]), sink)
    waiters = [threading.Thread(target=wait, args=(number,)) for number in range(4)]
    for waiter in waiters:
        waiter.start()
    for _ in waiters:
        assert asked.acquire(timeout=LONG_S)
    fake.drop()
    for waiter in waiters:
        waiter.join(LONG_S)
    assert sink.over.wait(LONG_S)
    assert len(errors) == len(set(map(id, errors))) == 4
    assert isinstance(sink.said[-1][1], SessionEndedError)
    with pytest.raises(SessionEndedError, match="is gone"):
        client.request(Status(), WatchStatus)
    with pytest.raises(SessionEndedError, match="is gone"):
        client.start(RunCommand(argv=["true"]), Recorder())


def test_a_command_is_told_in_order(client: Client) -> None:
    """A sink hears of the beginning, then of the output in order, then of the end, and of nothing after it."""
    sink = Recorder()
    client.start(RunCommand(argv=["sh", "-c", "echo one; echo two >&2; exit 5"]), sink)
    assert sink.over.wait(LONG_S)
    names = [name for name, _ in sink.said]
    assert names[0] == "began"
    assert names[1:-1] == ["output"] * (len(names) - 2)
    assert sorted(value for name, value in sink.said if name == "output") == [(1, b"one\n"), (2, b"two\n")]
    assert sink.said[-1][1].exit_code == 5
    assert client.head == sink.said[-1][1].head


@pytest.mark.parametrize(
    ("reply", "match"),
    [
        (b"\x00\x00\x00\x03abc", "not a control message"),
        ((MAX_FRAME + 1).to_bytes(4, "big"), "the limit is"),
        (encode_frame(Welcome(id=1, protocol=99, watch="w", rung="A", log="l", head="h")), "speaks version 99"),
        (encode_frame(Failed(id=1, error="ControlError", text="too many clients")), "too many clients"),
        (encode_frame(Ack(id=1)), "Ack where Welcome was due"),
    ],
)
def test_what_is_not_ours_is_refused_at_the_handshake(path: Path, reply: bytes, match: str) -> None:
    """Garbage, an oversized frame, another version and a refusal all end in ControlError that says which it was."""
    thread = answer_once(path, reply)
    with pytest.raises(ControlError, match=match):
        Client.connect(path)
    thread.join(LONG_S)


def test_garbage_later_closes_the_connection(path: Path) -> None:
    """A message that is not ours in the middle of a session is an error for everybody, and nothing more is read."""
    welcome = Welcome(id=1, protocol=1, watch="w", rung="A", log="l", head="h")
    thread = answer_once(path, encode_frame(welcome) + b"\x00\x00\x00\x01\xc1")
    client = Client.connect(path)
    with pytest.raises(ControlError, match="not a control message of this version"):
        client.request(Status(), WatchStatus, timeout=LONG_S)
    assert client.has_ended
    client.close()
    thread.join(LONG_S)


@pytest.mark.parametrize("connect", [Client.connect, lambda path: ask(path, Status(), WatchStatus)])
def test_nobody_listening_means_the_session_is_over(path: Path, connect: Callable[[Path], object]) -> None:
    """A missing socket and one that nobody listens on are SessionEndedError with the path."""
    with pytest.raises(SessionEndedError, match=f"no supervisor listens at {path}"):
        connect(path)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(path))
        with pytest.raises(SessionEndedError, match="Connection refused"):
            connect(path)


def test_another_users_supervisor_is_not_trusted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who listens is asked of the kernel: a socket of a user who is neither this one nor root is refused."""
    here, there = os.pipe(), os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(path))
            if os.getuid() == 0:
                os.setuid(65534)
            listener.listen(1)
            os.write(here[1], b"1")
            os.read(there[0], 1)
        finally:
            os._exit(0)
    try:
        assert os.read(here[0], 1) == b"1"
        if os.getuid() != 0:
            # Without root there is no second user: then this process is the stranger.
            mine = os.getuid()
            monkeypatch.setattr(os, "getuid", lambda: mine + 1)
        with pytest.raises(ControlError, match="not yours"):
            Client.connect(path)
        with pytest.raises(ControlError, match="not yours"):
            ask(path, Kill(), Killed)
    finally:
        os.write(there[1], b"1")
        os.waitpid(child, 0)
        for descriptor in (*here, *there):
            os.close(descriptor)


def test_ask_needs_no_other_connection(client: Client, fake: FakeSupervisor) -> None:
    """A single question works beside a connection on which an answer is outstanding."""
    asked = threading.Event()
    fake.answers[Answer] = lambda _: asked.set()
    ended = threading.Event()

    def wait() -> None:
        with pytest.raises(SessionEndedError):
            client.request(Answer(ask=1, allow=True), Ack)
        ended.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert asked.wait(LONG_S)
    assert ask(fake.path, Kill(reason="enough"), Killed, name="other").survivors == 0
    assert ended.wait(LONG_S)
    waiter.join(LONG_S)


def test_ask_gives_up_on_silence(fake: FakeSupervisor) -> None:
    """A supervisor that takes the connection and says nothing is ControlError after the time limit."""
    fake.answers[Kill] = lambda _: None
    with pytest.raises(ControlError, match=r"did not answer within 0\.05 s"):
        ask(fake.path, Kill(), Killed, timeout=0.05)


def test_events_arrive_as_they_stand_in_the_log(client: Client, fake: FakeSupervisor) -> None:
    """A subscriber gets each event's JSON, in order."""
    got: list[bytes] = []
    done = threading.Event()

    def receive(data: bytes) -> None:
        got.append(data)
        if len(got) == 3:
            done.set()

    client.subscribe(receive)
    sent = [event("exec", seq=seq, path=f"/bin/{seq}") for seq in range(3)]
    for each in sent:
        fake.emit(each)
    assert done.wait(LONG_S)
    assert [decode_event(data) for data in got] == sent


def test_a_receiver_that_raises_harms_only_itself(client: Client, fake: FakeSupervisor) -> None:
    """An error in a subscriber is reported, the subscriber is not called again, and requests go on."""
    calls = []

    def receive(data: bytes) -> None:
        calls.append(data)
        raise RuntimeError

    client.subscribe(receive)
    fake.emit(event("gap"))
    fake.emit(event("gap"))
    assert client.request(Status(), WatchStatus).watch == "fa4e0000"
    assert len(calls) == 1


def test_an_interrupt_never_cuts_a_large_message(path: Path) -> None:
    """A KeyboardInterrupt while a long message is being sent leaves the whole message on the wire."""
    decoder = FrameDecoder(msgspec.msgpack.Decoder(ToSupervisor))
    welcome = encode_frame(Welcome(id=1, protocol=1, watch="w", rung="A", log="l", head="h"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    got: list[Request] = []

    def serve() -> None:
        with listener, listener.accept()[0] as sock:
            got.extend(decoder.feed(sock.recv(65536)))
            sock.sendall(welcome)
            # Some of it has come and the rest does not fit the socket's buffer: the sender is in the middle.
            first = sock.recv(65536)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            interrupted.wait(LONG_S)
            got.extend(decoder.feed(first))
            while data := sock.recv(1 << 20):
                got.extend(decoder.feed(data))

    interrupted = threading.Event()
    server = threading.Thread(target=serve, daemon=True)
    server.start()
    client = Client.connect(path)
    data = os.urandom(8 << 20)
    with pytest.raises(KeyboardInterrupt):
        client.post(StdinData(step=1, data=data))
    interrupted.set()
    client.post(StdinData(step=2, data=b"after"))
    client.finish()
    server.join(LONG_S)
    assert [getattr(request, "data", None) for request in got] == [None, data, b"after"]
    client.close()


def test_a_forked_child_does_not_keep_the_watch_alive(fake: FakeSupervisor) -> None:
    """The owner's end is seen although a child that it had forked lives on; the child has no watch."""
    client = Client.connect(fake.path, owner=True)
    here, there = os.pipe(), os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            try:
                client.request(Status(), WatchStatus)
            except SessionEndedError:
                os.write(here[1], b"1")
            os.read(there[0], 1)
        finally:
            os._exit(0)
    try:
        assert os.read(here[0], 1) == b"1"
        assert client.request(Status(), WatchStatus).watch == "fa4e0000"
        client.close()
        assert fake.done.wait(LONG_S)
    finally:
        os.write(there[1], b"1")
        os.waitpid(child, 0)
        for descriptor in (*here, *there):
            os.close(descriptor)


def test_closing_twice_is_harmless(fake: FakeSupervisor) -> None:
    """`close` can be called again and frees the descriptor."""
    client = Client.connect(fake.path)
    client.close()
    client.close()
    assert client.has_ended
    with pytest.raises(SessionEndedError):
        client.post(Status())


def test_a_path_that_no_socket_can_have_is_refused_early(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A runtime folder with a long name is an error that says which variable to set."""
    folder = tmp_path / ("d" * 100)
    monkeypatch.setenv("AGENTWATCH_RUNTIME_DIR", str(folder))
    with pytest.raises(ControlError, match="set AGENTWATCH_RUNTIME_DIR to a shorter folder"):
        control_socket("0" * 8)


def test_a_bell_rings_in_a_signal_handler_and_once() -> None:
    """Rung twice it wakes once, and ringing it from a signal handler wakes the thread that was interrupted."""
    bell = Bell()
    bell.ring()
    bell.ring()
    assert bell.wait(0)
    assert not bell.wait(0)
    before = signal.signal(signal.SIGUSR1, lambda *_: bell.ring())
    try:
        threading.Timer(0, signal.pthread_kill, (threading.get_ident(), signal.SIGUSR1)).start()
        assert bell.wait(LONG_S)
    finally:
        signal.signal(signal.SIGUSR1, before)


@given(
    st.lists(st.builds(StdinData, id=st.integers(0, 1 << 40), step=st.integers(0, 9), data=st.binary(max_size=300))),
    st.lists(st.integers(1, 50), min_size=1),
)
def test_messages_survive_any_cut(sent: list[StdinData], cuts: list[int]) -> None:
    """However the bytes are cut on their way, the same messages come out in the same order."""
    decoder = FrameDecoder(msgspec.msgpack.Decoder(ToSupervisor))
    stream = b"".join(map(encode_frame, sent))
    got: list[Message | Request] = []
    at = turn = 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        got.extend(decoder.feed(stream[at : at + size]))
        at, turn = at + size, turn + 1
    assert got == sent


@given(st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.binary(max_size=40), st.booleans())), st.integers(0, 60))
def test_output_is_kept_once_and_in_order(pieces: list[tuple[int, bytes, bool]], limit: int) -> None:
    """Whoever reads, whenever, gets the pieces in order; no stream keeps more than its limit."""
    output, early = Output(limit), Cursor()
    kept = {1: b"", 2: b""}
    seen: list[tuple[int, bytes]] = []
    order: list[int] = []
    for stream, data, read in pieces:
        output.add(stream, data)
        if stream in kept:
            room = data[: limit - len(kept[stream])]
            kept[stream] += room
            order += [stream] * len(room)
        while read and (piece := output.read(early)):
            seen.append(piece)
    while piece := output.read(early):
        seen.append(piece)
    late = Cursor()
    again = list(iter(lambda: output.read(late), None))
    for found in (seen, again):
        assert [stream for stream, data in found for _ in data] == order
        assert all(b"".join(d for s, d in found if s == stream) == kept[stream] for stream in kept)
    assert [output.kept(1), output.kept(2)] == [kept[1], kept[2]]
    assert [output.is_full(s) for s in (1, 2)] == [len(kept[s]) >= limit for s in (1, 2)]
