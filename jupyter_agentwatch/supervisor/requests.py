"""What each request on the control socket does: the watch's public face, one method a message."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jupyter_agentwatch.audit.log import LogWriteError
from jupyter_agentwatch.errors import ControlError, SessionEndedError
from jupyter_agentwatch.events import Control, printable
from jupyter_agentwatch.sandbox.comparison import StepChange
from jupyter_agentwatch.supervisor.agent_notes import AgentNotes, check_turn
from jupyter_agentwatch.supervisor.control import Connection
from jupyter_agentwatch.wire import messages
from jupyter_agentwatch.wire.messages import FromSupervisor, ToSupervisor

if TYPE_CHECKING:
    from jupyter_agentwatch.supervisor.core import Supervisor
    from jupyter_agentwatch.supervisor.measuring import Measuring

__all__ = ["Requests"]

_LAST_SIGNAL: Final = 64
_MAX_SIDE: Final = 65535


class Requests:
    """Answers the requests of all clients of one watch.

    Attributes:
        agent_notes: What clients put on record of agents' runs.
    """

    def __init__(self, watch: Supervisor) -> None:
        self._watch = watch
        self.agent_notes = AgentNotes(watch.recorder)
        self._handlers: dict[type[Any], Callable[[Any, Connection], Any]] = {
            messages.Hello: self._hello,
            messages.RunCommand: self._run_command,
            messages.NoteAgent: self._note_agent,
            messages.NoteReward: self._note_reward,
            messages.StdinData: self._stdin,
            messages.Resize: self._resize,
            messages.SignalStep: self._signal,
            messages.Suspend: self._suspend_request,
            messages.Resume: self._resume_request,
            messages.Kill: self._kill_request,
            messages.Status: self._status,
            messages.Subscribe: self._subscribe,
            messages.SubscribeSamples: self._subscribe_samples,
            messages.LeaseGpu: self._lease,
            messages.ReleaseGpu: self._release,
            messages.DiffStep: self._diff,
            messages.UndoStep: self._undo,
            messages.Answer: self._answer,
        }

    async def handle(self, request: ToSupervisor, connection: Connection) -> FromSupervisor | None:
        """Answer one request; None where the reply has been sent already.

        Raises:
            AgentwatchError: It is refused; the client is told the class and the text.
        """
        result = self._handlers[type(request)](request, connection)
        reply: FromSupervisor | None = await result if asyncio.iscoroutine(result) else result
        return reply

    def _hello(self, request: messages.Hello, connection: Connection) -> FromSupervisor:
        if request.owner and connection.pid != self._watch.launch.owner_pid:
            connection.is_owner = False
            msg = f"process {connection.pid} does not own this watch"
            raise ControlError(msg)
        return messages.Welcome(
            protocol=messages.PROTOCOL,
            watch=self._watch.launch.watch,
            rung=self._watch.host.rung,
            log=self._watch.launch.log,
            head=self._watch.recorder.head,
            notes=self._watch.notes,
        )

    async def _run_command(self, request: messages.RunCommand, connection: Connection) -> None:
        _check_command(request)
        await self._watch.is_armed.wait()
        measuring = None if request.gpu is None else await self._watch.telemetry.ready()
        if self._watch.is_ending:
            msg = "the watch has ended"
            raise SessionEndedError(msg)
        if self._watch.state != "closed":
            msg = f"the watch is {self._watch.state}; resume it before you run a command"
            raise ControlError(msg)
        if request.gpu is None or measuring is None:
            await self._watch.commands.start(request, connection)
        else:
            await self._run_leased(request, request.gpu, measuring, connection)

    async def _run_leased(
        self, request: messages.RunCommand, gpu: int | str, measuring: Measuring, connection: Connection
    ) -> None:
        """Start a command that has a GPU, and has CUDA see that one alone; its lease ends with its first process."""
        # From here to the command's number nothing may wait: another one would take it.
        step = self._watch.commands.steps + 1
        lease, _ = measuring.lease(gpu, f"step {step}", step=step)
        env = {"CUDA_VISIBLE_DEVICES": lease.device} | self._watch.launch.policy.environment.set | request.env
        try:
            await self._watch.commands.start(msgspec.structs.replace(request, env=env), connection)
        except BaseException:
            measuring.step_ended(step)
            raise

    def _note_agent(self, request: messages.NoteAgent, _connection: Connection) -> FromSupervisor:
        self.agent_notes.note(request)
        return messages.Ack()

    def _note_reward(self, request: messages.NoteReward, _connection: Connection) -> FromSupervisor:
        self.agent_notes.note_reward(request)
        return messages.Ack()

    def _stdin(self, request: messages.StdinData, _connection: Connection) -> FromSupervisor:
        self._watch.commands.write(request.step, request.data, eof=request.eof)
        return messages.Ack()

    def _resize(self, request: messages.Resize, _connection: Connection) -> FromSupervisor:
        _check_size(request.rows, request.columns)
        self._watch.commands.resize(request.step, request.rows, request.columns)
        return messages.Ack()

    async def _signal(self, request: messages.SignalStep, connection: Connection) -> FromSupervisor:
        if not 1 <= request.signal <= _LAST_SIGNAL:
            msg = f"there is no signal {request.signal}; signals are 1 to {_LAST_SIGNAL}"
            raise ControlError(msg)
        self._note_control("signal", connection, f"step {request.step} signal {request.signal}")
        if request.signal == 9:
            await self._watch.commands.kill(request.step, "killed")
        else:
            self._watch.commands.interrupt(request.step, request.signal)
        return messages.Ack()

    async def _suspend_request(self, request: messages.Suspend, connection: Connection) -> FromSupervisor:
        await self._watch.circuit.freeze("person-suspends", self._who(request.by, connection))
        await self._watch.standstill.wait()
        return messages.Ack()

    async def _resume_request(self, request: messages.Resume, connection: Connection) -> FromSupervisor:
        await self._watch.circuit.thaw("person-resumes", self._who(request.by, connection))
        return messages.Ack()

    async def _kill_request(self, request: messages.Kill, connection: Connection) -> FromSupervisor:
        return await self._watch.kill(request.reason or "a person", self._who(request.by, connection), "person-kills")

    def _status(self, _request: messages.Status, _connection: Connection) -> FromSupervisor:
        return messages.WatchStatus(
            watch=self._watch.launch.watch,
            rung=self._watch.host.rung,
            # The breaker moves when nothing is left; who asks meanwhile should not start anything more.
            state="killed" if self._watch.is_ending else self._watch.state,
            workspace=self._watch.launch.workspace,
            log=self._watch.launch.log,
            head=self._watch.recorder.head,
            pid=os.getpid(),
            owner_pid=self._watch.launch.owner_pid,
            started_wall_ns=self._watch.started_wall_ns,
            elapsed_s=time.monotonic() - self._watch.started,
            processes=self._watch.sandbox.usage().processes,
            running_steps=self._watch.commands.running,
            steps=self._watch.commands.steps,
            counts=self._watch.recorder.counts(),
            asks=self._watch.asks.texts(),
            limits_by=self._watch.host.limits_by,
            notes=self._watch.notes,
            asks_left_s=self._watch.asks.left_s(),
            frozen_left_s=self._watch.circuit.frozen_left_s,
            on_expiry=self._watch.circuit.on_expiry,
            steps_alive=self._watch.commands.with_processes(),
            findings=self._watch.recorder.findings,
        )

    def _subscribe(self, _request: messages.Subscribe, connection: Connection) -> FromSupervisor:
        connection.is_subscribed = True
        return messages.Ack()

    def _subscribe_samples(self, _request: messages.SubscribeSamples, connection: Connection) -> FromSupervisor:
        self._watch.telemetry.subscribe(connection)
        return messages.Ack()

    async def _lease(self, request: messages.LeaseGpu, connection: Connection) -> FromSupervisor:
        return await self._watch.telemetry.lease(request.gpu, request.purpose, connection)

    def _release(self, request: messages.ReleaseGpu, _connection: Connection) -> FromSupervisor:
        self._watch.telemetry.release(request.lease)
        return messages.Ack()

    async def _diff(self, request: messages.DiffStep, _connection: Connection) -> FromSupervisor:
        found = await asyncio.to_thread(self._watch.history.changes, self._known_step(request.step))
        return _changes(request.step, found)

    async def _undo(self, request: messages.UndoStep, connection: Connection) -> FromSupervisor:
        step = self._known_step(request.step)
        if step in self._watch.commands.running:
            msg = f"step {step} still runs; wait for its end or kill it before undo"
            raise ControlError(msg)
        with self._watch.calls_held():  # nothing that still runs may write meanwhile
            undone = await asyncio.to_thread(self._watch.history.undo, step)
        self._note_control("undo", connection, f"step {step}: {len(undone)} paths")
        return _changes(step, undone)

    def _answer(self, request: messages.Answer, connection: Connection) -> FromSupervisor:
        by = self._who(request.by, connection)
        if self._watch.state != "closed":
            msg = f"the watch is {self._watch.state}; resume it before you answer"
            raise ControlError(msg)
        self._watch.asks.answer(request.ask, by, allow=request.allow)
        self._note_control("answer", connection, f"{request.ask}: {'allow' if request.allow else 'deny'}")
        return messages.Ack()

    def _known_step(self, step: int) -> int:
        if not 1 <= step <= self._watch.commands.steps:
            msg = f"no step {step}; there are {self._watch.commands.steps}"
            raise ControlError(msg)
        return step

    def _note_control(self, op: str, connection: Connection, detail: str) -> None:
        with contextlib.suppress(LogWriteError):
            self._watch.recorder.record(Control, op=op, by=self._who("", connection), detail=detail)

    def _who(self, by: str, connection: Connection) -> str:
        return f"{by or connection.client or 'client'} (pid {connection.pid})"


def _check_command(request: messages.RunCommand) -> None:
    """Refuse what no call takes: init would not survive it."""
    _check_size(request.rows, request.columns)
    check_turn(request.run, request.turn)
    if not 0 <= request.timeout_s < math.inf:
        msg = f"timeout_s is {request.timeout_s}; give seconds, or 0 for the policy's limit"
        raise ControlError(msg)
    for name in request.env:
        if not name or "=" in name:
            msg = f"an environment variable cannot be called {printable(name)!r}"
            raise ControlError(msg)


def _check_size(rows: int, columns: int) -> None:
    if not (0 <= rows <= _MAX_SIDE and 0 <= columns <= _MAX_SIDE):
        msg = f"a terminal cannot have {rows} rows and {columns} columns; each is 0 to {_MAX_SIDE}"
        raise ControlError(msg)


def _changes(step: int, found: Sequence[StepChange]) -> messages.Changes:
    rows = [messages.Change(path=c.path, change=c.change, diff=c.diff, note=c.note) for c in found]
    return messages.Changes(step=step, changes=rows)
