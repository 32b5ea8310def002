"""A supervisor without a sandbox, for tests of everything that talks to one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import msgspec

from jupyter_agentwatch.audit.chain import FORMAT, GENESIS
from jupyter_agentwatch.audit.log import AuditLog
from jupyter_agentwatch.errors import ControlError
from jupyter_agentwatch.events import AnyEvent, Session, encode_event
from jupyter_agentwatch.testing.builders import event
from jupyter_agentwatch.testing.command import FakeCommand
from jupyter_agentwatch.watch.process import supervisor_command
from jupyter_agentwatch.wire.framing import FrameDecoder, encode_frame
from jupyter_agentwatch.wire.messages import (
    PROTOCOL,
    Ack,
    Change,
    Changes,
    DiffStep,
    EventNotice,
    Failed,
    Hello,
    Kill,
    Killed,
    Message,
    Request,
    Resize,
    Resume,
    RunCommand,
    SignalStep,
    Started,
    Status,
    StdinData,
    Subscribe,
    Suspend,
    ToSupervisor,
    UndoStep,
    WatchStatus,
    Welcome,
)

__all__ = ["FakeSupervisor", "fake_supervisor"]

_PIECE_BYTES = 64 * 1024
_PATIENCE_S = 10.0
_RUNG = "A (fake: nothing is confined)"


class FakeSupervisor:
    """A supervisor without a sandbox, in threads of this process: the real protocol over a real AF_UNIX socket.

    Commands run on this host. Suspend, resume and kill act on their process groups, and the end of the owner's
    connection kills them, as with the real one.

    Attributes:
        path: The control socket.
        received: Every request, in order of arrival.
        answers: Answers of the test's own, by class of request: a function of the request; None means silence.
        changes: What `DiffStep` and `UndoStep` answer, by step.
        done: Set when it has stopped: by `stop`, by `Kill`, or because its owner is gone.

    Example:
        >>> with FakeSupervisor(folder / "control.sock") as fake:  # doctest: +SKIP
        ...     client = Client.connect(fake.path)
    """

    def __init__(
        self,
        path: str | Path,
        *,
        watch: str = "fa4e0000",
        workspace: str | Path = "/",
        log: str | Path | None = None,
        output_bytes: int = 16 * 1024 * 1024,
        answers: Mapping[type[Request], Callable[[Any], Message | None]] | None = None,
    ) -> None:
        """Prepare a fake; `start` or `with` opens its socket.

        Args:
            path: Where the control socket is made.
            watch: Id of the watch.
            workspace: Folder that commands start in.
            log: Where an audit log is written; None: none.
            output_bytes: Output of one command and stream that is passed on.
            answers: See the attribute.
        """
        self.path = Path(path)
        self.received: list[Request] = []
        self.answers = dict(answers or {})
        self.changes: dict[int, list[Change]] = {}
        self.done = threading.Event()
        self.output_bytes = output_bytes
        self.workspace = str(workspace)
        self._watch = watch
        self._log_path = Path(log) if log else None
        self._log: AuditLog | None = None
        self._lock = threading.RLock()
        self._going = threading.Event()
        self._going.set()
        self._commands: dict[int, FakeCommand] = {}
        self._closed = False
        self._killing = False
        self._killed: Killed | None = None
        self._kill_lock = threading.Lock()
        self._steps = 0
        self._connections: list[_Connection] = []
        self._subscribers: list[_Connection] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._started_ns = time.time_ns()

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()

    @property
    def head(self) -> str:
        """Head hash of the log; zeros where none is written."""
        return self._log.head if self._log else GENESIS.decode()

    def start(self) -> None:
        """Open the socket and answer in threads from now on."""
        if self._log_path is not None:
            opening = Session(
                **self._place(), verdict="allow", basis="verified", op="open", format=FORMAT, workspace=self.workspace
            )
            self._log = AuditLog.create(self._log_path, opening)
        self._listener.bind(str(self.path))
        self._listener.listen(16)
        threading.Thread(target=self._accept, name="fake-supervisor", daemon=True).start()

    def stop(self) -> None:
        """Kill what runs, cut every connection, remove the socket and set `done`; idempotent."""
        self.kill("stopped")
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()
        self.path.unlink(missing_ok=True)
        self.done.set()

    def drop(self) -> None:
        """Cut every connection, as the death of a supervisor does."""
        for connection in tuple(self._connections):
            connection.close()

    def emit(self, item: AnyEvent) -> None:
        """Send an event to every subscriber, as it stands; it is not written to the log."""
        for connection in tuple(self._subscribers):
            connection.send(EventNotice(event=encode_event(item)))

    def kill(self, reason: str) -> Killed:
        """End every command and close the log; a further call returns what the first one did."""
        with self._kill_lock:
            if self._killed is None:
                self._killed = self._kill(reason)
            return self._killed

    def record(self, kind: str, **fields: Any) -> None:
        """Write an event to the log, where there is one, with its place and the time now."""
        with self._lock:
            if self._log and not self._closed:
                self._log.append(event(kind, **self._place(), **fields))

    def handle(self, connection: _Connection, request: Request) -> Message | None:
        """Return the answer to a request; None leaves it without one."""
        self.received.append(request)
        if own := self.answers.get(type(request)):
            return own(request)
        match request:
            case Hello():
                connection.is_owner = request.owner
                log = str(self._log_path or "")
                return Welcome(protocol=PROTOCOL, watch=self._watch, rung=_RUNG, log=log, head=self.head)
            case RunCommand():
                self._run(connection, request)
                return None
            case Status():
                return self._status()
            case Kill():
                return self.kill(request.reason)
            case DiffStep() | UndoStep():
                return self._changes(request)
            case Subscribe():
                self._subscribers.append(connection)
            case Suspend() | Resume():
                self._suspend(isinstance(request, Suspend), request.by)
            case StdinData() | SignalStep() | Resize():
                command = self._commands.get(request.step)
                if command is None:
                    return Failed(error="ControlError", text=f"step {request.step} does not run")
                command.take(request)
        return Ack()

    def disconnected(self, connection: _Connection) -> None:
        """Forget a connection; the owner's end ends the watch."""
        for each in (self._connections, self._subscribers):
            if connection in each:
                each.remove(connection)
        if connection.is_owner:
            self.kill("owner is gone")
            self.stop()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                connection = _Connection(self, sock)
                self._connections.append(connection)
                threading.Thread(target=connection.serve, name="fake-connection", daemon=True).start()

    def _place(self) -> dict[str, Any]:
        seq = self._log.next_seq if self._log else 0
        times = {"t_mono_ns": time.monotonic_ns(), "t_wall_ns": time.time_ns()}
        return {"seq": seq, "watch": self._watch, **times}

    def _run(self, connection: _Connection, request: RunCommand) -> None:
        with self._lock:
            if self._killing:
                connection.send(Failed(id=request.id, error="SessionEndedError", text="the watch was killed"))
                return
            self._steps += 1
            command = FakeCommand(
                request, self._steps, folder=self.workspace, limit=self.output_bytes, send=connection.send
            )
            self._commands[command.step] = command
        self.record("step", op="start", step=command.step, cell=request.cell, argv=request.argv)
        connection.send(Started(id=request.id, step=command.step))
        threading.Thread(target=self._attend, args=(command,), name="fake-command", daemon=True).start()

    def _attend(self, command: FakeCommand) -> None:
        self._going.wait()
        ended = command.run()
        known = {"outcome": ended.outcome, "exit_code": ended.exit_code, "signal": ended.signal}
        self.record("step", op="end", step=command.step, cell=command.request.cell, argv=command.request.argv, **known)
        with self._lock:
            del self._commands[command.step]
        command.send(msgspec.structs.replace(ended, head=self.head))
        command.ended.set()

    def _kill(self, reason: str) -> Killed:
        start = time.monotonic()
        with self._lock:
            self._killing = True
            running = list(self._commands.values())
            self._going.set()
            for command in running:
                command.kill()
        survivors = sum(not command.ended.wait(_PATIENCE_S) for command in running)
        with self._lock:
            self.record("session", op="close", reason=reason, killed=len(running) - survivors, survivors=survivors)
            if self._log and not self._closed:
                self._log.sync()
                self._log.close()
            self._closed = True
        latency = (time.monotonic() - start) * 1000
        return Killed(killed=len(running) - survivors, survivors=survivors, latency_ms=latency, head=self.head)

    def _suspend(self, frozen: bool, by: str) -> None:
        with self._lock:
            self._going.clear() if frozen else self._going.set()
            for command in self._commands.values():
                command.signal(signal.SIGSTOP if frozen else signal.SIGCONT)
        self.record("control", op="suspend" if frozen else "resume", by=by)

    def _changes(self, request: DiffStep | UndoStep) -> Message:
        if not 0 < request.step <= self._steps:
            return Failed(error="ControlError", text=f"there is no step {request.step}")
        return Changes(step=request.step, changes=self.changes.get(request.step, []))

    def _status(self) -> WatchStatus:
        with self._lock:
            running = sorted(self._commands)
        return WatchStatus(
            watch=self._watch,
            rung=_RUNG,
            state="killed" if self._closed else "running" if self._going.is_set() else "frozen",
            workspace=self.workspace,
            log=str(self._log_path or ""),
            head=self.head,
            pid=os.getpid(),
            owner_pid=os.getpid(),
            started_wall_ns=self._started_ns,
            elapsed_s=(time.time_ns() - self._started_ns) / 1e9,
            processes=len(running),
            running_steps=running,
            steps=self._steps,
            counts={},
            asks={},
            limits_by="nothing",
            notes=[],
        )


class _Connection:
    """One client of a fake."""

    def __init__(self, fake: FakeSupervisor, sock: socket.socket) -> None:
        self.is_owner = False
        self._fake = fake
        self._socket = sock
        self._sending = threading.Lock()

    def serve(self) -> None:
        frames = FrameDecoder(msgspec.msgpack.Decoder(ToSupervisor))
        with contextlib.suppress(OSError, ControlError):
            while data := self._socket.recv(_PIECE_BYTES):
                for request in frames.feed(data):
                    self._answer(request)
        self._fake.disconnected(self)
        with self._sending:
            self._socket.close()

    def send(self, message: Message) -> None:
        with self._sending, contextlib.suppress(OSError):
            self._socket.sendall(encode_frame(message))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _answer(self, request: Request) -> None:
        answer = self._fake.handle(self, request)
        if answer is not None:
            self.send(msgspec.structs.replace(answer, id=request.id))
        if isinstance(answer, Killed):
            self._fake.stop()


def fake_supervisor(*options: str) -> tuple[str, ...]:
    """Return the command that `Watch(supervisor=...)` starts a fake with, in a process of its own.

    Args:
        *options: "--report JSON" (write this line and exit with 125), "--die TEXT" (write this to standard error and
            exit with 3), "--deaf" (never answer a kill).
    """
    return (*supervisor_command("jupyter_agentwatch.testing"), *options)
