"""A command while it runs: its output as it comes, its end, its signals; for threads and for asyncio.

The reader thread of `wire.client` only stores and rings here; whatever a caller wants done (callbacks, results)
happens in the caller's own thread, where Jupyter attributes what is printed to the right cell.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Self

from jupyter_agentwatch.errors import AgentwatchError, ControlError
from jupyter_agentwatch.watch.command import CommandResult, make_result
from jupyter_agentwatch.watch.output import Cursor, Output
from jupyter_agentwatch.wire.client import Bell, Client
from jupyter_agentwatch.wire.messages import Ack, CommandEnded, RunCommand, SignalStep, StdinData

if TYPE_CHECKING:
    import asyncio

__all__ = ["Interrupts", "OnOutput", "Running"]

OnOutput = Callable[[int, bytes], None]
"""Receives (stream, piece): stream 1 is standard output, 2 is standard error."""

_GLANCE_S = 0.2
"""A signal that comes just before a lock is waited for is not seen until the wait ends: so no wait lasts longer."""
_PIECE_BYTES = 64 * 1024
_POSTED_BYTES = 8 * 1024
_ANSWER_S = 10.0
_ESCAPE = 3


class Interrupts:
    """Counts ■ (SIGINT) instead of raising it, so that none can fall between two instructions and lose a command.

    Only the main thread ever gets a KeyboardInterrupt; in other threads, and where SIGINT is ignored, this does
    nothing. The third one raises where it falls: the way out when even a kill is not answered.
    """

    def __init__(self) -> None:
        """Make a counter that stands at 0."""
        self.count = 0
        self.bell = Bell()
        self._former: Callable[[int, FrameType | None], object] | None = None

    def __enter__(self) -> Self:
        """Begin to count."""
        if threading.current_thread() is threading.main_thread():
            former = signal.getsignal(signal.SIGINT)
            if callable(former):
                self._former = former
                signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the handler that was there."""
        if self._former is not None:
            signal.signal(signal.SIGINT, self._former)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        self.bell.ring()
        if self.count >= _ESCAPE:
            raise KeyboardInterrupt


class Running:
    """A command in a watch; `Watch.start` makes it.

    Iterate over it for `(stream, bytes)` pieces as they come (every iterator begins at the beginning), `wait` or
    `await` it for its `CommandResult`. It keeps its watch alive until it has ended.
    """

    def __init__(
        self,
        client: Client,
        request: RunCommand,
        *,
        limit: int,
        stdin: bytes | None = None,
        on_result: Callable[[CommandResult], None],
    ) -> None:
        """Prepare a command without starting it; use `Watch.start`.

        Args:
            client: The watch's connection.
            request: The command.
            limit: Bytes kept of each stream.
            stdin: What the command reads; sent once it has begun.
            on_result: Called once with the result, by the first thread that asks for it.
        """
        self._client = client
        self._request = request
        self._stdin = stdin
        self._on_result = on_result
        self._output = Output(limit)
        self._step = 0
        self._ended: CommandEnded | None = None
        self._error: AgentwatchError | None = None
        self._result: CommandResult | None = None
        self._result_lock = threading.Lock()
        self._at_begin: list[Callable[[], None]] = []
        self._at_output: list[Callable[[], None]] = []
        self._at_end: list[Callable[[], None]] = []

    @property
    def step(self) -> int:
        """Number of the command in its watch, from 1; 0 until the supervisor has given it."""
        return self._step

    @property
    def argv(self) -> list[str]:
        """What is executed."""
        return list(self._request.argv)

    @property
    def has_ended(self) -> bool:
        """The command ended, was refused, or lost its watch."""
        return self._ended is not None or self._error is not None

    def wait(self, timeout: float | None = None) -> CommandResult:
        """Wait for the end.

        Args:
            timeout: Seconds to wait; the command runs on when they are over.

        Raises:
            TimeoutError: It still runs.
            SessionEndedError: The watch ended first.
            ControlError: The supervisor refused to start it.
        """
        self._wait_until(lambda: self.has_ended, timeout)
        return self._take_result()

    def write(self, data: bytes | str) -> None:
        """Write to the command's standard input; blocks while the supervisor does not take it.

        Raises:
            BrokenPipeError: The command has ended.
            ValueError: It was started without `stdin=True`.
        """
        self._check_stdin()
        raw = data.encode() if isinstance(data, str) else data
        for start in range(0, len(raw), _PIECE_BYTES):
            self._send_stdin(StdinData(step=self._step, data=raw[start : start + _PIECE_BYTES]))

    def close_stdin(self) -> None:
        """End the command's standard input.

        Raises:
            BrokenPipeError: The command has ended.
            ValueError: It was started without `stdin=True`.
        """
        self._check_stdin()
        self._send_stdin(StdinData(step=self._step, eof=True))

    def interrupt(self) -> None:
        """Send SIGINT to the command's process group, as Ctrl-C does; nothing happens if it has ended."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """Kill every process of the command; nothing happens if it has ended."""
        self._signal(signal.SIGKILL)

    def read(self, cursor: Cursor) -> tuple[int, bytes] | None:
        """Return the next piece of output after `cursor`, without waiting; None where there is none yet."""
        return self._output.read(cursor)

    def is_full(self, stream: int) -> bool:
        """No more output of this stream is kept: the policy's `limits.output_bytes` is reached."""
        return self._output.is_full(stream)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Yield `(stream, bytes)` until the command has ended."""
        cursor, bell = Cursor(), Bell()
        with self.listening(bell.ring, output=True):
            while True:
                over = self.has_ended
                while piece := self._output.read(cursor):
                    yield piece
                if over:
                    break
                bell.wait()
        self._take_result()

    def __await__(self) -> Generator[object, None, CommandResult]:
        """Wait for the end without blocking the event loop."""
        return self._wait_async().__await__()

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield `(stream, bytes)` until the command has ended, without blocking the event loop."""
        cursor = Cursor()
        with self._listening_async(output=True) as changed:
            while True:
                changed.clear()
                over = self.has_ended
                while piece := self._output.read(cursor):
                    yield piece
                if over:
                    break
                await changed.wait()
        self._take_result()

    def __repr__(self) -> str:
        state = "ended" if self.has_ended else "running"
        return f"<Running step={self._step} {state}>"

    @contextmanager
    def listening(self, ring: Callable[[], None], *, begin: bool = False, output: bool = False) -> Iterator[None]:
        """Have `ring` called at the command's end, with `begin` when it has begun, with `output` at each piece.

        It is called in the reader thread, and must not block. Look at the state after entering, then wait. Ask only
        for what is needed: a thread that is woken for nothing takes the interpreter from the reader.
        """
        chosen = ((self._at_begin, begin), (self._at_output, output), (self._at_end, True))
        listeners = [each for each, wanted in chosen if wanted]
        for each in listeners:
            each.append(ring)
        try:
            yield
        finally:
            for each in listeners:
                each.remove(ring)

    # What `Watch` calls.

    def launch(self) -> None:
        """Ask the supervisor to start the command; it goes on without waiting for the answer."""
        self._client.start(self._request, self)

    def launch_and_wait(self) -> None:
        """Start the command, wait until it has its step number, and give it its standard input."""
        try:
            self.launch()
            self._wait_until(lambda: self._step > 0 or self.has_ended, None)
            self._feed()
        except BaseException:
            self.abandon()
            raise
        self._raise_error()

    async def launch_async(self) -> None:
        """As `launch_and_wait`, without blocking the event loop."""
        try:
            with self._listening_async(begin=True) as changed:
                self.launch()
                while True:
                    changed.clear()
                    if self._step or self.has_ended:
                        break
                    await changed.wait()
            self._feed()
        except BaseException:
            self.abandon()
            raise
        self._raise_error()

    def attend(self, interrupts: Interrupts, on_output: OnOutput | None = None) -> CommandResult:
        """Start the command and stay with it to its end, as `Watch.run` does.

        Args:
            interrupts: The first makes SIGINT of the command, the second kills it.
            on_output: Called here, in this thread, with each piece.
        """
        cursor, handled, fed = Cursor(), 0, False
        try:
            begin, output = self._stdin is not None, on_output is not None
            with self.listening(interrupts.bell.ring, begin=begin, output=output):
                self.launch()
                while True:
                    over = self.has_ended
                    if self._step and not fed:
                        self._feed()
                        fed = True
                    if self._step and not over and interrupts.count > handled:
                        handled += 1
                        self.post_signal(signal.SIGINT if handled == 1 else signal.SIGKILL)
                    while on_output and (piece := self._output.read(cursor)):
                        on_output(*piece)
                    if over:
                        return self._take_result()
                    if interrupts.count > handled:
                        self._await_step(interrupts.bell)
                    else:
                        interrupts.bell.wait(_GLANCE_S)
        except BaseException:
            self.abandon()
            raise

    def post_signal(self, number: int) -> None:
        """Send a signal without waiting for the answer."""
        self._client.post(SignalStep(step=self._step, signal=number))

    def abandon(self) -> None:
        """Kill the command as soon as that is possible, in the background: its caller is gone."""
        if not self.has_ended:
            threading.Thread(target=self._kill_quietly, name="agentwatch-abandon", daemon=True).start()

    # What the reader thread calls (`wire.client.Sink`).

    def began(self, step: int) -> None:
        """The supervisor gave the command its step number."""
        self._step = step
        self._ring(self._at_begin)

    def output(self, stream: int, data: bytes) -> None:
        """A piece of output arrived."""
        self._output.add(stream, data)
        self._ring(self._at_output)

    def ended(self, message: CommandEnded) -> None:
        """The command ended."""
        self._ended = message
        self._ring(self._at_end)

    def failed(self, error: AgentwatchError) -> None:
        """The command was refused, or the watch ended."""
        self._error = error
        self._ring(self._at_end)

    def _ring(self, listeners: list[Callable[[], None]]) -> None:
        # A copy in one step: another thread may remove its own entry at any time, and none must be left out.
        for ring in tuple(listeners):
            ring()

    def _await_step(self, bell: Bell) -> None:
        with self.listening(bell.ring, begin=True):
            if not self._step:
                bell.wait()

    def _wait_until(self, condition: Callable[[], bool], timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        bell = Bell()
        with self.listening(bell.ring, begin=not self._step):
            while not condition():
                left = _GLANCE_S if deadline is None else deadline - time.monotonic()
                bell.wait(min(left, _GLANCE_S))
                if left <= 0 and not condition():
                    msg = f"command {self._step} still runs after {timeout:g} s"
                    raise TimeoutError(msg)

    async def _wait_async(self) -> CommandResult:
        with self._listening_async() as changed:
            while not self.has_ended:
                await changed.wait()
                changed.clear()
        return self._take_result()

    @contextmanager
    def _listening_async(self, *, begin: bool = False, output: bool = False) -> Iterator[asyncio.Event]:
        # Imported here: a command line without an event loop should not pay for one.
        import asyncio

        changed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def ring() -> None:
            # A closed loop has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(changed.set)

        with self.listening(ring, begin=begin, output=output):
            yield changed

    def _take_result(self) -> CommandResult:
        self._raise_error()
        with self._result_lock:
            if self._result is None and self._ended is not None:
                kept = (self._output.kept(1), self._output.kept(2))
                self._result = make_result(self._request.argv, self._ended, *kept)
                self._on_result(self._result)
        if self._result is None:
            msg = f"command {self._step} has not ended"
            raise ControlError(msg)
        return self._result

    def _raise_error(self) -> None:
        if self._error is not None:
            # A new one each time: several threads may raise it, and each adds its own traceback.
            raise type(self._error)(str(self._error))

    def _feed(self) -> None:
        data, self._stdin = self._stdin, None
        if data is None or not self._step or self.has_ended:
            return
        if len(data) <= _POSTED_BYTES:
            self._client.post(StdinData(step=self._step, data=data, eof=True))
            return
        feeder = threading.Thread(target=self._feed_all, args=(data,), name="agentwatch-stdin", daemon=True)
        feeder.start()

    def _feed_all(self, data: bytes) -> None:
        # A command need not read what it is given; that it ended first is not an error.
        with contextlib.suppress(AgentwatchError, BrokenPipeError):
            self.write(data)
            self.close_stdin()

    def _send_stdin(self, message: StdinData) -> None:
        try:
            if not self.has_ended:
                self._client.request(message, Ack)
                return
        except ControlError:
            if not self.has_ended:
                raise
        msg = f"command {self._step} has ended and reads no more"
        raise BrokenPipeError(msg)

    def _check_stdin(self) -> None:
        if not self._request.stdin:
            msg = "the command has no standard input: start it with stdin=True"
            raise ValueError(msg)

    def _signal(self, number: int) -> None:
        if self.has_ended:
            return
        try:
            self._client.request(SignalStep(step=self._step, signal=number), Ack, timeout=_ANSWER_S)
        except AgentwatchError:
            # It may have ended on its own in between; then there is nothing left to signal.
            if not self.has_ended:
                raise

    def _kill_quietly(self) -> None:
        with contextlib.suppress(AgentwatchError):
            self._wait_until(lambda: self._step > 0 or self.has_ended, None)
            self._signal(signal.SIGKILL)
