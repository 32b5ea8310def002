"""A client of a supervisor's control socket, for threads.

One reader thread turns what arrives into replies and notices; whoever waits is woken once, and no thread ever
polls. What comes from the socket is checked: the peer's user, the protocol version, every message.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

import msgspec

from jupyter_agentwatch.errors import AgentwatchError, ControlError, SessionEndedError
from jupyter_agentwatch.wire.framing import FrameDecoder, encode_frame
from jupyter_agentwatch.wire.messages import (
    PROTOCOL,
    Ack,
    CommandEnded,
    EventNotice,
    Failed,
    FromSupervisor,
    Hello,
    Killed,
    Message,
    Output,
    Request,
    RunCommand,
    SampleNotice,
    Started,
    Subscribe,
    SubscribeSamples,
    WatchStatus,
    Welcome,
)
from jupyter_agentwatch.wire.peer import (
    GONE,
    RECEIVE_BYTES,
    answer_to,
    error_from,
    expect,
    open_socket,
    shake_hands,
    talk,
)

__all__ = ["Bell", "Client", "Sink", "ask"]

M = TypeVar("M", bound=Message)

# The kernel queues a frame up to this size in one piece or not at all (one socket buffer holds 48 KiB and more),
# so that a KeyboardInterrupt in `sendall` cannot leave half a frame behind.
_ATOMIC_BYTES = 16 * 1024

_log = logging.getLogger(__name__)


class Bell:
    """Wakes one waiting thread. Ringing twice wakes once; ringing is safe in a signal handler.

    A `threading.Event` is neither: its lock is not reentrant, and setting it costs three times as much.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        """Make a bell that has not rung."""
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        """Let the present or next `wait` return."""
        with contextlib.suppress(RuntimeError):
            self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Return True once the bell has rung, False after `timeout` seconds; a signal handler may raise from it."""
        return self._lock.acquire(timeout=-1 if timeout is None else max(timeout, 0.0))


class Sink(Protocol):
    """What becomes of one command. The reader thread calls it: it must neither block nor raise."""

    def began(self, step: int) -> None:
        """The supervisor gave the command its step number."""

    def output(self, stream: int, data: bytes) -> None:
        """A piece of output arrived; `stream` is 1 or 2."""

    def ended(self, message: CommandEnded) -> None:
        """The command ended; nothing follows."""

    def failed(self, error: AgentwatchError) -> None:
        """The command was refused, or the connection is gone; nothing follows."""


class _Reply:
    """The place where one request waits for its answer."""

    __slots__ = ("bell", "error", "message")

    def __init__(self) -> None:
        self.bell = Bell()
        self.message: Message | None = None
        self.error: AgentwatchError | None = None


class Client:
    """One connection to a supervisor; any number of threads may use it at once.

    Attributes:
        welcome: What the supervisor said at the beginning.
        head: The log's head hash, as far as this client has heard.
        describe_end: Called once when the supervisor is gone, in the reader thread; its text becomes the error's.
    """

    def __init__(self, sock: socket.socket, frames: FrameDecoder[FromSupervisor], welcome: Welcome) -> None:
        """Take over a connected socket after its handshake; use `connect`."""
        self.welcome = welcome
        self.head = welcome.head
        self.describe_end: Callable[[], str] | None = None
        self._socket = sock
        self._frames = frames
        self._ids = itertools.count(2)
        self._sending = threading.Lock()
        self._replies: dict[int, _Reply] = {}
        self._starting: dict[int, Sink] = {}
        self._sinks: dict[int, Sink] = {}
        self._receive: Callable[[bytes], None] | None = None
        self._receive_sample: Callable[[bytes, int], None] | None = None
        self._at_end: list[Callable[[], None]] = []
        self._end: tuple[type[AgentwatchError], str] | None = None
        self._reader = threading.Thread(target=self._read, name=f"agentwatch-{welcome.watch}", daemon=True)
        _CLIENTS.add(self)
        self._reader.start()

    @classmethod
    def connect(cls, path: str | Path, *, owner: bool = False, name: str = "", timeout: float = 5.0) -> Self:
        """Connect, check who listens, and say hello.

        Args:
            path: The control socket.
            owner: The end of this connection ends the watch (dead-man's switch).
            name: Who asks, for the audit log.
            timeout: Seconds that each step of the handshake may take.

        Raises:
            SessionEndedError: Nobody listens there.
            ControlError: Another user listens, or the supervisor speaks another version or refuses.
        """
        sock, frames = open_socket(path, timeout)
        try:
            welcome = shake_hands(sock, frames, Hello(id=1, protocol=PROTOCOL, owner=owner, client=name))
            sock.settimeout(None)
            return cls(sock, frames, welcome)
        except BaseException:
            sock.close()
            raise

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()

    @property
    def has_ended(self) -> bool:
        """The connection is gone, whoever closed it."""
        return self._end is not None

    def request(self, message: Request, expected: type[M], *, timeout: float | None = None) -> M:
        """Send a request and wait for its answer.

        Args:
            message: The request; its `id` is replaced.
            expected: The class of the answer.
            timeout: Seconds to wait; None waits as long as the connection stands.

        Raises:
            AgentwatchError: The class that the supervisor named in `Failed`.
            SessionEndedError: The supervisor is gone.
            ControlError: No answer in time, or not of the expected class.
        """
        number = next(self._ids)
        reply = self._replies[number] = _Reply()
        try:
            self._send(msgspec.structs.replace(message, id=number))
            if not reply.bell.wait(timeout):
                msg = f"the supervisor of watch {self.welcome.watch} did not answer within {timeout:g} s"
                raise ControlError(msg)
        finally:
            self._replies.pop(number, None)
        if reply.error is not None:
            raise reply.error
        return expect(reply.message, expected)

    def post(self, message: Request) -> None:
        """Send a request whose answer does not matter (a signal to a command that may just have ended).

        Raises:
            SessionEndedError: The supervisor is gone.
        """
        self._send(msgspec.structs.replace(message, id=next(self._ids)))

    def start(self, command: RunCommand, sink: Sink) -> None:
        """Start a command; all that follows goes to `sink`, in order.

        Raises:
            SessionEndedError: The supervisor is gone.
        """
        number = next(self._ids)
        self._starting[number] = sink
        try:
            self._send(msgspec.structs.replace(command, id=number))
        except AgentwatchError:
            self._starting.pop(number, None)
            raise

    def call_at_end(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have a function called when the connection is gone; at once where it is gone already.

        Args:
            listener: Called in the reader thread as a rule: it must neither block nor raise.

        Returns:
            A function that takes it back.
        """

        def forget() -> None:
            with contextlib.suppress(ValueError):
                self._at_end.remove(listener)

        self._at_end.append(listener)
        if self._end is not None:
            # The end may have swept the list just before; a listener must stand being called twice for that.
            listener()
        return forget

    def subscribe(self, receive: Callable[[bytes], None]) -> None:
        """Have every further event, as JSON, handed to `receive`.

        Args:
            receive: Called in the reader thread: it must return at once. If it raises, it is not called again.

        Raises:
            SessionEndedError: The supervisor is gone.
        """
        self._receive = receive
        self.request(Subscribe(), Ack)

    def subscribe_samples(self, receive: Callable[[bytes, int], None]) -> None:
        """Have every further telemetry sample handed to `receive`; does not wait for an answer.

        Args:
            receive: Called in the reader thread with the sample and the number of those left out before it: it must
                return at once, and must not raise.

        Raises:
            SessionEndedError: The supervisor is gone.
        """
        self._receive_sample = receive
        self.post(SubscribeSamples())

    def finish(self) -> None:
        """Say that nothing more will be sent; what is still on its way in is read."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the connection; whoever still waits gets `SessionEndedError`. Idempotent."""
        # Only shutdown wakes a thread that waits in recv; the reader closes the descriptor itself.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._reader is not threading.current_thread():
            self._reader.join(timeout=5.0)

    def _send(self, message: Request) -> None:
        if self._end is not None:
            raise self._ended()
        frame = encode_frame(message)
        if len(frame) > _ATOMIC_BYTES and threading.current_thread() is threading.main_thread():
            self._send_aside(frame)
        else:
            self._send_frame(frame)

    def _send_frame(self, frame: bytes) -> None:
        try:
            with self._sending:
                self._socket.sendall(frame)
        except OSError as error:
            raise (self._ended() if self._end else SessionEndedError(GONE.format(error.strerror))) from error

    def _send_aside(self, frame: bytes) -> None:
        """Send a large frame where no KeyboardInterrupt can cut it: only the main thread gets those."""
        failures: list[SessionEndedError] = []

        def send() -> None:
            try:
                self._send_frame(frame)
            except SessionEndedError as error:
                failures.append(error)

        thread = threading.Thread(target=send, name="agentwatch-send", daemon=True)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]

    def _read(self) -> None:
        end: tuple[type[AgentwatchError], str]
        try:
            # Begin with what came in one piece with the welcome.
            data = b""
            while True:
                for message in self._frames.feed(data):
                    self._dispatch(message)
                if not (data := self._socket.recv(RECEIVE_BYTES)):
                    break
            end = (SessionEndedError, GONE.format("end of stream"))
        except ControlError as error:
            end = (ControlError, f"{error}; the connection was closed")
        except OSError as error:
            end = (SessionEndedError, GONE.format(error.strerror))
        self._lose(end)

    def _dispatch(self, message: FromSupervisor) -> None:
        match message:
            case Output():
                if sink := self._sinks.get(message.step):
                    sink.output(message.stream, message.data)
                return
            case CommandEnded():
                self.head = message.head
                if sink := self._sinks.pop(message.step, None):
                    sink.ended(message)
                return
            case Started():
                if sink := self._starting.pop(message.id, None):
                    self._sinks[message.step] = sink
                    sink.began(message.step)
                return
            case EventNotice() | SampleNotice():
                self._notify(message)
                return
            case Killed() | WatchStatus():
                self.head = message.head
            case Failed() if sink := self._starting.pop(message.id, None):
                sink.failed(error_from(message))
                return
        if reply := self._replies.get(message.id):
            reply.message = message
            reply.bell.ring()

    def _notify(self, message: EventNotice | SampleNotice) -> None:
        if isinstance(message, SampleNotice):
            if self._receive_sample is not None:
                self._receive_sample(message.sample, message.left_out)
            return
        if self._receive is None:
            return
        try:
            self._receive(message.event)
        except Exception:  # noqa: BLE001 -- whatever it is, this thread must go on for everybody else
            self._receive = None
            _log.exception("the receiver of events raised; it is not called again")

    def _lose(self, end: tuple[type[AgentwatchError], str]) -> None:
        # First the mark, then the sweep: a request that comes in between is either swept or fails in `_send`.
        describe = self.describe_end
        if end[0] is SessionEndedError and describe is not None:
            end = (SessionEndedError, describe())
        self._end = end
        with self._sending:
            self._socket.close()
        for reply in tuple(self._replies.values()):
            reply.error = self._ended()
            reply.bell.ring()
        sinks = (*self._starting.values(), *self._sinks.values())
        self._starting.clear()
        self._sinks.clear()
        for sink in sinks:
            sink.failed(self._ended())
        for listener in tuple(self._at_end):
            listener()

    def _ended(self) -> AgentwatchError:
        kind, text = self._end or (SessionEndedError, GONE.format("closed"))
        return kind(text)

    def _forget(self) -> None:
        """In a forked child: drop the descriptor, or the supervisor would not see the owner's end."""
        self._end = (SessionEndedError, "this process was forked from the watch's owner and has no watch of its own")
        self._socket.close()


_CLIENTS: weakref.WeakSet[Client] = weakref.WeakSet()


def _forget_clients() -> None:
    for client in tuple(_CLIENTS):
        client._forget()  # noqa: SLF001 -- same module


os.register_at_fork(after_in_child=_forget_clients)


def ask(path: str | Path, message: Request, expected: type[M], *, name: str = "", timeout: float = 2.0) -> M:
    """Ask one thing over a connection of its own, without a thread.

    This is how a kill is sent: nothing that another connection waits for can delay it.

    Args:
        path: The control socket.
        message: The request; its `id` is replaced.
        expected: The class of the answer.
        name: Who asks, for the audit log.
        timeout: Seconds without a byte after which the supervisor counts as silent.

    Raises:
        AgentwatchError: The class that the supervisor named in `Failed`.
        SessionEndedError: Nobody listens there, or the supervisor went away.
        ControlError: No answer in time, another user listens, or the answer is not of the expected class.
    """
    sock, frames = open_socket(path, timeout)
    with sock:
        hello = Hello(id=1, protocol=PROTOCOL, client=name)
        answers = talk(sock, frames, hello, msgspec.structs.replace(message, id=2))
        expect(answer_to(answers, 1), Welcome)
        return expect(answer_to(answers, 2), expected)
