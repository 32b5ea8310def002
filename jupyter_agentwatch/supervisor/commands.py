"""Commands of the watch: starts them through init, pumps their output, and tells how they ended.

Output is never kept here: it goes on to the client that asked, and where that client is slow, the pipe is left alone,
so that memory stays bounded whatever a command writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import struct
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from jupyter_agentwatch.errors import AgentwatchError, ControlError, SessionEndedError
from jupyter_agentwatch.events import Step, from_path
from jupyter_agentwatch.policy import Limits
from jupyter_agentwatch.sandbox.tasks import TaskTable
from jupyter_agentwatch.supervisor.endings import Ending, note_exit, note_limit, tell_end
from jupyter_agentwatch.supervisor.init_channel import InitChannel
from jupyter_agentwatch.supervisor.leftovers import Leftovers
from jupyter_agentwatch.supervisor.record import Recorder
from jupyter_agentwatch.wire.messages import Output, RunCommand, Started

__all__ = ["Commands", "Subscriber"]

_CHUNK: Final = 256 * 1024
_PIPE: Final = 1024 * 1024
_RECORDED_ARGS: Final = 64
_RECORDED_ARG: Final = 4096


class Subscriber(Protocol):
    """A client that gets a command's output: `send` queues, `is_slow` says that the queue is long."""

    is_slow: bool

    def send(self, message: Any) -> None: ...  # noqa: D102 -- the class says it


@dataclass(slots=True)
class _Stream:
    fd: int
    number: int
    total: int = 0
    is_open: bool = True


@dataclass(slots=True)
class _Command:
    """One running command. `ended_by` is set by whoever ends it: "timeout", "killed", "limit:…"."""

    step: int
    client: Subscriber
    started: float
    streams: list[_Stream]
    stdin_fd: int = -1
    is_pty: bool = False
    pid: int = 0
    ended_by: str = ""
    news: dict[str, Any] | None = None
    timer: asyncio.TimerHandle | None = None
    unsent: list[bytes] = field(default_factory=list)
    size: tuple[int, int] | None = None


class Commands:
    """All commands of a watch, by step. Belongs to the control thread's loop.

    Args:
        loop: The loop.
        init: Channel to init.
        tasks: Told which step starts next, so that its session is known from the first.
        recorder: Where records go.
        limits: Bounds of the policy.
        environment: Environment of every command.
        workspace: Working directory where none is given.
    """

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        init: InitChannel,
        tasks: TaskTable,
        recorder: Recorder,
        limits: Limits,
        environment: dict[str, str],
        workspace: str,
    ) -> None:
        self._loop = loop
        self._init = init
        self._tasks = tasks
        self._recorder = recorder
        self._limits = limits
        self._environment = environment
        self._workspace = workspace
        self._running: dict[int, _Command] = {}
        self._leftovers = Leftovers(loop)
        self._spawning = asyncio.Lock()
        self._is_paused = False
        self.steps = 0
        self.on_end: Callable[[int], None] = lambda _step: None

    @property
    def running(self) -> list[int]:
        """Steps whose first process lives."""
        return list(self._running)

    def with_processes(self) -> list[int]:
        """Return the steps that run, or may have left processes behind."""
        return sorted({*self._running, *self._tasks.steps()})

    def step_of_session(self, session: int) -> int:
        """Return the step of a session id as init numbers it, 0 where it is none that we know."""
        return self._tasks.step_of_session(session)

    async def start(self, request: RunCommand, client: Subscriber) -> None:
        """Start a command; `Started`, `Output` and `CommandEnded` go to the client.

        Raises:
            ControlError: The request cannot be a command (empty, NUL).
            LogWriteError: It cannot be recorded, hence not run.
        """
        if not request.argv or not request.argv[0]:
            msg = "a command needs a program: argv is empty"
            raise ControlError(msg)
        if any("\0" in text for text in (*request.argv, *request.env, *request.env.values(), request.cwd)):
            msg = "a command's arguments, environment and folder cannot hold NUL"
            raise ControlError(msg)
        self.steps += 1
        step = self.steps
        cwd = os.path.join(self._workspace, request.cwd)
        argv = [from_path(arg)[:_RECORDED_ARG] for arg in request.argv[:_RECORDED_ARGS]]
        self._recorder.step_belongs_to(step, request.cell)
        asked: dict[str, Any] = {"argv": argv, "cwd": from_path(cwd), "run": request.run, "turn": request.turn}
        self._recorder.record(Step, op="start", step=step, **asked)
        command, theirs = self._prepare(step, request, client)
        client.send(Started(id=request.id, step=step))
        spawn = {
            "op": "spawn",
            "step": step,
            "argv": request.argv,
            "env": self._environment | request.env,
            "cwd": cwd,
            "pty": request.pty,
            "rows": request.rows,
            "columns": request.columns,
        }
        try:
            async with self._spawning:
                if command.ended_by:  # while it waited for its turn
                    raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))  # noqa: TRY301 -- one way out
                # One at a time: the next new session of a child of init is this step's.
                self._tasks.starting = step
                reply, fds = await self._init.ask(spawn, theirs)
                self._tasks.starting = 0
        except (OSError, SessionEndedError) as error:
            number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
            reply, fds = {"spawned": 0, "errno": errno.E2BIG if number == errno.EMSGSIZE else number}, []
        finally:
            for fd in theirs:
                os.close(fd)
        if fds:
            self._attach_terminal(command, fds[0])
        if not reply["spawned"]:
            self._not_started(command, request, reply["errno"])
            return
        command.pid = reply["spawned"]
        timeouts = [t for t in (request.timeout_s or None, self._limits.command_s) if t is not None]
        if command.news is not None:
            self._finish(command)
        elif timeouts:
            command.timer = self._loop.call_later(min(timeouts), self._time_out, command, min(timeouts))

    def write(self, step: int, data: bytes, *, eof: bool) -> None:
        """Pass bytes to a command's standard input.

        Raises:
            ControlError: The command has none, or does not run.
        """
        command = self._get(step)
        is_coming = command.is_pty and not command.pid  # init has not sent the terminal yet: `start` passes it on
        if command.stdin_fd < 0 and not is_coming:
            msg = f"step {step} was started without standard input, or it was closed"
            raise ControlError(msg)
        if data:
            command.unsent.append(data)
        if eof:
            command.unsent.append(b"")
        if not is_coming:
            self._feed(command)

    def resize(self, step: int, rows: int, columns: int) -> None:
        """Tell a command's terminal its new size.

        Raises:
            ControlError: It has no terminal, or does not run.
        """
        command = self._get(step)
        if command.is_pty and not command.pid:
            command.size = (rows, columns)  # for when init has sent the terminal
            return
        if not command.is_pty or command.stdin_fd < 0:
            msg = f"step {step} has no terminal"
            raise ControlError(msg)
        fcntl.ioctl(command.stdin_fd, termios.TIOCSWINSZ, struct.pack("=HHHH", rows, columns, 0, 0))

    def interrupt(self, step: int, number: int) -> None:
        """Send a signal to a command's process group.

        Raises:
            ControlError: It does not run.
        """
        self._get(step)
        self._init.tell({"op": "signal", "step": step, "signal": number})

    async def kill(self, step: int, because: str) -> int:
        """End every process of a step, whatever session it moved to; return how many were ended."""
        command = self._running.get(step)
        if command is not None and not command.ended_by:
            command.ended_by = because
        self._tasks.doomed.add(step)
        if command is not None:
            self._init.tell({"op": "signal", "step": step, "signal": int(signal.SIGKILL)})
        killed, known, sessions = 0, set[int](), set(self._tasks.sessions_of(step))
        while not sessions <= known:  # one may have been let through while the step was doomed
            known = sessions
            reply, _ = await self._init.ask({"op": "kill_sessions", "sessions": sorted(known)})
            killed += int(reply["killed"])
            sessions = set(self._tasks.sessions_of(step))
        return killed

    async def pause(self) -> None:
        """Start no command until `go_on`; the one that is just being started is waited for."""
        await self._spawning.acquire()
        self._is_paused = True

    def go_on(self) -> None:
        """Start what has waited, and go on."""
        if self._is_paused:
            self._is_paused = False
            self._spawning.release()

    def exited(self, news: dict[str, Any]) -> None:
        """Take init's news of a process that ended."""
        command = self._running.get(news["step"])
        note_exit(news, self._tasks.ended(news["pid"]), self._recorder, is_orphan=command is None)
        if command is not None:
            command.news = news
            if command.pid:  # else `start` has not yet got its descriptors, and finishes it
                self._finish(command)

    def will_be_killed(self) -> None:
        """Everything is about to be killed: what ends from now on ends on account of that."""
        for command in self._running.values():
            command.ended_by = command.ended_by or "killed"

    def end_all(self) -> None:
        """The sandbox is gone: end what still counts as running."""
        for command in list(self._running.values()):
            command.ended_by = command.ended_by or "killed"
            command.news = command.news or {"status": int(signal.SIGKILL), "user": 0.0, "system": 0.0, "rss": 0}
            self._finish(command)
        self._leftovers.close()

    def resume_output(self, client: Subscriber) -> None:
        """The client has caught up: read its commands' pipes again."""
        for command in self._running.values():
            if command.client is client:
                for stream in command.streams:
                    if stream.is_open:
                        self._loop.add_reader(stream.fd, self._readable, command, stream)

    # -- start ---------------------------------------------------------------------------------------------------

    def _prepare(self, step: int, request: RunCommand, client: Subscriber) -> tuple[_Command, list[int]]:
        command = _Command(step, client, time.monotonic(), [], is_pty=request.pty)
        theirs: list[int] = []
        if not request.pty:
            if request.stdin:
                inner, command.stdin_fd = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(command.stdin_fd, False)
                theirs.append(inner)
            else:
                theirs.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            for number in (1, 2):
                ours, inner = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(ours, False)
                _widen(ours)
                theirs.append(inner)
                self._listen(command, _Stream(ours, number))
        self._running[step] = command
        return command, theirs

    def _attach_terminal(self, command: _Command, master: int) -> None:
        os.set_blocking(master, False)
        command.stdin_fd = os.dup(master)
        if command.size is not None:
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("=HHHH", *command.size, 0, 0))
        self._listen(command, _Stream(master, 1))
        self._feed(command)

    def _listen(self, command: _Command, stream: _Stream) -> None:
        command.streams.append(stream)
        self._loop.add_reader(stream.fd, self._readable, command, stream)

    def _not_started(self, command: _Command, request: RunCommand, number: int) -> None:
        missing = number in {errno.ENOENT, errno.ENOTDIR}
        what = f"{request.argv[0]}: {'command not found' if missing else os.strerror(number)}"
        if missing and request.cwd:
            what += f" (or no folder {request.cwd})"
        command.client.send(Output(step=command.step, stream=2, data=f"agentwatch: {what}\n".encode()))
        command.ended_by = command.ended_by or ("not-found" if missing else "not-executable")
        code = 127 if missing else 126
        command.news = {"status": code << 8, "user": 0.0, "system": 0.0, "rss": 0}
        self._finish(command)

    # -- input and output ----------------------------------------------------------------------------------------

    def _readable(self, command: _Command, stream: _Stream) -> None:
        if command.client.is_slow and command.news is None:
            self._loop.remove_reader(stream.fd)  # until `resume_output`
            return
        self._read_once(command, stream)

    def _read_once(self, command: _Command, stream: _Stream) -> int:
        try:
            data = os.read(stream.fd, _CHUNK)
        except BlockingIOError:
            return 0
        except OSError:  # EIO: the terminal's other side is closed
            data = b""
        if not data:
            self._close(stream)
            return 0
        room = self._limits.output_bytes - stream.total
        stream.total += len(data)
        if room > 0:
            command.client.send(Output(step=command.step, stream=stream.number, data=data[:room]))
        return len(data)

    def _close(self, stream: _Stream) -> None:
        if stream.is_open:
            stream.is_open = False
            self._loop.remove_reader(stream.fd)
            os.close(stream.fd)

    def _feed(self, command: _Command) -> None:
        while command.unsent:
            data = command.unsent[0]
            if not data:
                self._close_stdin(command)
                return
            try:
                sent = os.write(command.stdin_fd, data)
            except BlockingIOError:
                self._loop.add_writer(command.stdin_fd, self._feed, command)
                return
            except OSError:  # EPIPE: nobody reads any more
                self._close_stdin(command)
                return
            command.unsent[0] = data[sent:]
            if not command.unsent[0]:
                command.unsent.pop(0)
        self._loop.remove_writer(command.stdin_fd)

    def _close_stdin(self, command: _Command) -> None:
        command.unsent.clear()
        if command.stdin_fd >= 0:
            self._loop.remove_writer(command.stdin_fd)
            if command.is_pty and command.news is None:
                os.write(command.stdin_fd, b"\x04")  # end of file, as a person types it
                return
            os.close(command.stdin_fd)
            command.stdin_fd = -1

    # -- end -----------------------------------------------------------------------------------------------------

    def _time_out(self, command: _Command, seconds: float) -> None:
        if command.news is not None:
            return
        limit = "command_s" if seconds == self._limits.command_s else "timeout"
        fields = {"limit": limit, "value": seconds, "maximum": seconds, "action": "step killed"}
        note_limit(self._recorder, command.step, fields)
        command.ended_by = "timeout" if limit == "timeout" else f"limit:{limit}"
        task = self._loop.create_task(self.kill(command.step, command.ended_by))
        task.add_done_callback(_ignore_end)

    def _finish(self, command: _Command) -> None:
        """Take what is left in the pipes (an orphan may hold them open for ever), record, and tell the client."""
        if self._running.pop(command.step, None) is None:
            return
        if command.timer is not None:
            command.timer.cancel()
        news = command.news
        assert news is not None  # noqa: S101 -- set by every caller
        for stream in command.streams:
            taken = 0
            while stream.is_open and taken < 4 * _PIPE:
                got = self._read_once(command, stream)
                if got == 0:
                    break
                taken += got
            if stream.is_open:
                self._loop.remove_reader(stream.fd)
                self._leftovers.take(stream.fd)
        command.is_pty = False
        self._close_stdin(command)
        totals = {1: 0, 2: 0} | {stream.number: stream.total for stream in command.streams}
        ended = Ending(
            step=command.step,
            ended_by=command.ended_by,
            status=news["status"],
            duration_s=time.monotonic() - command.started,
            cpu=(news["user"], news["system"]),
            max_rss_bytes=news["rss"],
            written=(totals[1], totals[2]),
        )
        self.on_end(command.step)
        command.client.send(tell_end(ended, self._limits, self._recorder))

    def _get(self, step: int) -> _Command:
        command = self._running.get(step)
        if command is None:
            known = ", ".join(map(str, self._running)) or "none"
            msg = f"step {step} does not run; running: {known}"
            raise ControlError(msg)
        return command


def _widen(fd: int) -> None:
    with contextlib.suppress(OSError):  # the user's pipe allowance is used up: 64 KiB work as well, only slower
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE)


def _ignore_end(task: asyncio.Task[int]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, AgentwatchError):
        raise error
