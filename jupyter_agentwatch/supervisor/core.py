"""The supervisor of one watch: puts the rooms together, and is the only place where a watch is frozen or ended.

Two threads: the main thread answers trapped calls (`Mediator.run`), the control thread runs everything else on one
asyncio loop. The main thread also started bubblewrap, because a parent-death signal belongs to the starting thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from jupyter_agentwatch.audit.log import LogWriteError
from jupyter_agentwatch.breaker import BreakerState, Cause, after
from jupyter_agentwatch.errors import ControlError, SessionEndedError
from jupyter_agentwatch.events import BreakerChanged, Control, Dns, Flow, Gap, LimitHit, Session, from_bytes
from jupyter_agentwatch.policy import Decision, NetworkMatcher, Policy
from jupyter_agentwatch.sandbox.dns import DnsStub, NameMemory
from jupyter_agentwatch.sandbox.gateway import FlowSpec, Gateway
from jupyter_agentwatch.sandbox.history import StepChange, WorkspaceHistory
from jupyter_agentwatch.sandbox.launch import Sandbox
from jupyter_agentwatch.sandbox.mounts import HOME
from jupyter_agentwatch.sandbox.notify import Listener
from jupyter_agentwatch.sandbox.paths import Root
from jupyter_agentwatch.sandbox.syscalls import MACHINES
from jupyter_agentwatch.sandbox.tasks import TaskTable
from jupyter_agentwatch.supervisor.census import count_in_namespace, namespace_of
from jupyter_agentwatch.supervisor.commands import Commands
from jupyter_agentwatch.supervisor.control import Connection, serve
from jupyter_agentwatch.supervisor.dialer import Dialer
from jupyter_agentwatch.supervisor.init_channel import InitChannel
from jupyter_agentwatch.supervisor.mediator import Mediator
from jupyter_agentwatch.supervisor.network import NetworkBroker
from jupyter_agentwatch.supervisor.record import Recorder
from jupyter_agentwatch.wire import messages
from jupyter_agentwatch.wire.messages import FromSupervisor, Launch, ToSupervisor

__all__ = ["Supervisor"]

_SAMPLE_S: Final = 0.1

_ENDED_GRACE_S: Final = 0.2
_STOP_PATIENCE_S: Final = 2.0


class Supervisor:
    """One watch, from an opened log and a standing sandbox to the closed log.

    Args:
        launch: What to watch.
        policy: The policy, paths absolute.
        sandbox: Standing, no command run yet.
        recorder: Where records go.
        environment: Environment of every command.
        rung: Letter of the rung.
        limits_by: Who holds which limit, for people.
        notes: What the user should know of this machine.
        count_tasks: The supervisor holds the bound on tasks.
        cleanup: Called when all is over.
    """

    def __init__(
        self,
        *,
        launch: Launch,
        policy: Policy,
        sandbox: Sandbox,
        recorder: Recorder,
        environment: dict[str, str],
        rung: str,
        limits_by: str,
        notes: list[str],
        count_tasks: bool,
        watches_memory: bool,
        cleanup: Callable[[], None],
    ) -> None:
        self._launch = launch
        self._policy = policy
        self._sandbox = sandbox
        self._recorder = recorder
        self._rung = rung
        self._limits_by = limits_by
        self._notes = notes
        self._watches_memory = watches_memory and policy.limits.memory_bytes is not None
        self._cleanup = cleanup
        self._namespace = namespace_of(sandbox.init_pid)
        self._state: BreakerState = "closed"
        self._started = time.monotonic()
        self._started_wall_ns = time.time_ns()
        self._connections: set[Connection] = set()
        self._killed: messages.Killed | None = None
        self._killing: asyncio.Future[messages.Killed] | None = None
        self._asks: dict[int, tuple[str, Callable[[bool, str], None], asyncio.TimerHandle | None]] = {}
        self._ask_ids = itertools.count(1)
        self._stopped_before: list[int] = []
        self._expiry: asyncio.TimerHandle | None = None
        self._over = threading.Event()
        self._unsent: list[bytes] = []
        self._unsent_lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._store = Path(launch.socket).with_suffix(".store")
        self._history = WorkspaceHistory(
            Path(launch.workspace),
            self._store,
            file_bytes=policy.snapshots.file_bytes,
            total_bytes=policy.snapshots.total_bytes,
        )
        self._listener = Listener(sandbox.listener_fd)
        self._task_table = TaskTable(sandbox.init_pid)
        self._root = Root(sandbox.init_pid)
        self._names = NameMemory(time.monotonic)
        self._matcher = NetworkMatcher(policy.network)
        self._init = InitChannel(self._loop, sandbox.control, self._process_ended, self._sandbox_ended)
        self._gateway = Gateway(policy.network, _FlowRecords(recorder))
        self._dialer = Dialer(
            loop=self._loop,
            listener=self._listener,
            gateway=self._gateway,
            listening=sandbox.gateway,
            parking=sandbox.parking,
            more_sockets=self._more_sockets,
            timeout_s=policy.network.connect_timeout_s,
            failed=self._dial_failed,
        )
        self._network = NetworkBroker(
            listener=self._listener,
            tasks=self._task_table,
            root=self._root,
            recorder=recorder,
            matcher=self._matcher,
            names_for=self._names.names_for,
            unix_sockets=policy.unix_sockets,
            private_folders=("/tmp", "/dev/shm", HOME),  # noqa: S108 -- the sandbox's own
            dialer=self._dialer,
            ask=self._ask_from_thread,
        )
        self._mediator = Mediator(
            machine=MACHINES[os.uname().machine],
            listener=self._listener,
            tasks=self._task_table,
            root=self._root,
            recorder=recorder,
            history=self._history,
            network=self._network,
            count_members=sandbox.tasks,
            max_tasks=policy.limits.processes if count_tasks else None,
        )
        self._commands = Commands(
            loop=self._loop,
            init=self._init,
            tasks=self._task_table,
            recorder=recorder,
            limits=policy.limits,
            environment=environment,
            workspace=launch.workspace,
            settled=self._step_settled,
        )
        self._handlers: dict[type[Any], Callable[[Any, Connection], Any]] = {
            messages.Hello: self._hello,
            messages.RunCommand: self._run_command,
            messages.StdinData: self._stdin,
            messages.Resize: self._resize,
            messages.SignalStep: self._signal,
            messages.Suspend: self._suspend_request,
            messages.Resume: self._resume_request,
            messages.Kill: self._kill_request,
            messages.Status: self._status,
            messages.Subscribe: self._subscribe,
            messages.DiffStep: self._diff,
            messages.UndoStep: self._undo,
            messages.Answer: self._answer,
        }

    # -- life ----------------------------------------------------------------------------------------------------

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until the watch has ended. `ready` is called when the control socket listens."""
        control = threading.Thread(target=self._control_thread, args=(ready,), name="control")
        control.start()
        self._mediator.run()
        # The mediator leaves when no task is left: on a kill, or because the sandbox died under us.
        self._loop.call_soon_threadsafe(self._sandbox_ended)
        control.join()

    def trip(self, why: str) -> None:
        """Freeze because the monitor itself cannot do its work. Any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the watch has ended
            self._loop.call_soon_threadsafe(self._trip, why)

    def _control_thread(self, ready: Callable[[], None]) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve(ready))
        finally:
            self._loop.close()

    async def _serve(self, ready: Callable[[], None]) -> None:
        self._ended = asyncio.Event()
        self._recorder.listener = self._queue_event
        server = await serve(self._launch.socket, self._connect)
        owner = os.pidfd_open(self._launch.owner_pid)
        self._loop.add_reader(owner, self._owner_ended, owner)
        stub = DnsStub(
            self._matcher.decide_name, _host_resolver(), self._dns_record, self._names, ask=self._ask_name
        )
        for sock in (self._sandbox.dns_udp, self._sandbox.dns_tcp):
            sock.setblocking(False)
        self._spawn(stub.serve_udp(self._sandbox.dns_udp))
        self._spawn(stub.serve_tcp(self._sandbox.dns_tcp))
        if self._policy.limits.session_s is not None:
            self._loop.call_later(self._policy.limits.session_s, self._session_time_over)
        if self._watches_memory:
            self._spawn(self._watch_memory())
        ready()
        await self._ended.wait()
        server.close()
        for connection in list(self._connections):
            connection.close()
        await asyncio.sleep(_ENDED_GRACE_S if self._connections else 0)  # let clients read their last message
        self._loop.remove_reader(owner)
        os.close(owner)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connect(self) -> Connection:
        connection = Connection(self._handle, self._client_lost, self._commands.resume_output)
        self._connections.add(connection)
        return connection

    async def _handle(self, request: ToSupervisor, connection: Connection) -> FromSupervisor | None:
        result = self._handlers[type(request)](request, connection)
        return await result if asyncio.iscoroutine(result) else result

    def _client_lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if connection.is_owner:
            self._end("the owner hung up")

    def _owner_ended(self, pidfd: int) -> None:
        self._loop.remove_reader(pidfd)
        self._end("the owner process ended")

    def _sandbox_ended(self) -> None:
        self._end("the sandbox ended by itself")

    def _session_time_over(self) -> None:
        seconds = float(self._policy.limits.session_s or 0)
        with contextlib.suppress(LogWriteError, ValueError):
            self._recorder.record(
                LimitHit, verdict="kill", limit="session_s", value=seconds, maximum=seconds, action="watch killed"
            )
        self._end("the session's wall time is over")

    def _end(self, reason: str) -> None:
        if self._killing is None:
            self._spawn(self.kill(reason, "supervisor", "ended"))

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and self._killing is None:
            # A part of the monitor has died: it must not go on half-blind.
            self._trip(f"{type(error).__name__}: {error}")

    # -- breaker -------------------------------------------------------------------------------------------------

    def _move(self, cause: Cause, by: str, detail: str = "") -> None:
        before, self._state = self._state, after(self._state, cause)
        with contextlib.suppress(LogWriteError):
            self._recorder.record(
                BreakerChanged,
                verdict="deny" if self._state != "closed" else "allow",
                before=before,
                after=self._state,
                cause=f"{cause}: {detail}" if detail else cause,
                by=by,
                sync=True,
            )

    async def freeze(self, cause: Cause, by: str, detail: str = "") -> None:
        """Stop every process and hold every call.

        Raises:
            ControlError: The watch is not closed (in the breaker's sense: running).
            SessionEndedError: Init did not stop them; then the watch has been killed.
        """
        self._move(cause, by, detail)
        self._mediator.freeze()
        self._gateway.pause()
        self._expiry = self._loop.call_later(self._policy.breaker.frozen_s, self._expired)
        try:
            reply, _ = await self._init.ask({"op": "freeze"})
        except SessionEndedError:
            self._end("init could not freeze the sandbox")
            raise
        self._stopped_before = reply["frozen"]

    async def thaw(self, cause: Cause, by: str) -> None:
        """Let everything go on.

        Raises:
            ControlError: The watch is not frozen.
        """
        self._move(cause, by)
        if self._expiry is not None:
            self._expiry.cancel()
        self._gateway.resume()
        self._mediator.thaw()
        await self._init.ask({"op": "thaw", "keep": self._stopped_before})

    def _trip(self, why: str) -> None:
        if self._state == "closed":
            self._spawn(self.freeze("trip", "supervisor", why))
            self._notes.append(f"frozen: {why}")

    def _expired(self) -> None:
        if self._state == "frozen":
            if self._policy.breaker.on_expiry == "resume":
                self._spawn(self.thaw("expiry-resumes", "supervisor"))
            else:
                self._spawn(self.kill("frozen for too long", "supervisor", "expiry-kills"))

    async def kill(self, reason: str, by: str, cause: Cause) -> messages.Killed:
        """End everything, close the log, and say what was counted. Idempotent: later callers get the same answer."""
        if self._killing is not None:
            return await asyncio.shield(self._killing)
        self._killing = self._loop.create_future()
        begun = time.monotonic()
        living = self._sandbox.members()
        # The kill comes first: nothing that could fail, such as a full disk, may stand before it.
        await self._loop.run_in_executor(None, self._sandbox.destroy)
        survivors = await self._loop.run_in_executor(None, count_in_namespace, self._namespace)
        latency_ms = (time.monotonic() - begun) * 1000
        self._mediator.stop()
        self._gateway.close_all("killed")
        self._dialer.close()
        self._network.close()
        self._init.close()
        self._commands.end_all()
        await self._gateway.wait_closed()
        self._move(cause, by, reason)
        self._close_log(reason, living, survivors)
        self._killed = messages.Killed(
            killed=living, survivors=survivors, latency_ms=latency_ms, head=self._recorder.head
        )
        self._killing.set_result(self._killed)
        self._loop.call_soon(self._finish)
        return self._killed

    def _close_log(self, reason: str, killed: int, survivors: int) -> None:
        with contextlib.suppress(LogWriteError):
            self._recorder.record(
                Session, verdict="kill", op="close", reason=reason, killed=killed, survivors=survivors, sync=True
            )
        self._recorder.close()

    def _finish(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._launch.socket)
        self._history.close()
        shutil.rmtree(self._store, ignore_errors=True)
        self._cleanup()
        self._ended.set()

    # -- requests ------------------------------------------------------------------------------------------------

    def _hello(self, request: messages.Hello, connection: Connection) -> FromSupervisor:
        if request.owner and connection.pid != self._launch.owner_pid:
            connection.is_owner = False
            msg = f"process {connection.pid} does not own this watch"
            raise ControlError(msg)
        return messages.Welcome(
            protocol=messages.PROTOCOL,
            watch=self._launch.watch,
            rung=self._rung,
            log=self._launch.log,
            head=self._recorder.head,
            notes=self._notes,
        )

    async def _run_command(self, request: messages.RunCommand, connection: Connection) -> None:
        if self._killing is not None:
            msg = "the watch has ended"
            raise SessionEndedError(msg)
        if self._state != "closed":
            msg = f"the watch is {self._state}; resume it before you run a command"
            raise ControlError(msg)
        await self._commands.start(request, connection)

    def _stdin(self, request: messages.StdinData, _connection: Connection) -> FromSupervisor:
        self._commands.write(request.step, request.data, eof=request.eof)
        return messages.Ack()

    def _resize(self, request: messages.Resize, _connection: Connection) -> FromSupervisor:
        self._commands.resize(request.step, request.rows, request.columns)
        return messages.Ack()

    async def _signal(self, request: messages.SignalStep, connection: Connection) -> FromSupervisor:
        self._note_control("signal", connection, f"step {request.step} signal {request.signal}")
        if request.signal == 9:
            await self._commands.kill(request.step, "killed")
        else:
            self._commands.interrupt(request.step, request.signal)
        return messages.Ack()

    async def _suspend_request(self, request: messages.Suspend, connection: Connection) -> FromSupervisor:
        await self.freeze("person-suspends", self._who(request.by, connection))
        await self._all_stopped()
        return messages.Ack()

    async def _resume_request(self, request: messages.Resume, connection: Connection) -> FromSupervisor:
        await self.thaw("person-resumes", self._who(request.by, connection))
        return messages.Ack()

    async def _kill_request(self, request: messages.Kill, connection: Connection) -> FromSupervisor:
        return await self.kill(request.reason or "a person", self._who(request.by, connection), "person-kills")

    def _status(self, _request: messages.Status, _connection: Connection) -> FromSupervisor:
        return messages.WatchStatus(
            watch=self._launch.watch,
            rung=self._rung,
            state=self._state,
            workspace=self._launch.workspace,
            log=self._launch.log,
            head=self._recorder.head,
            pid=os.getpid(),
            owner_pid=self._launch.owner_pid,
            started_wall_ns=self._started_wall_ns,
            elapsed_s=time.monotonic() - self._started,
            processes=self._sandbox.members(),
            running_steps=self._commands.running,
            steps=self._commands.steps,
            counts=dict(self._recorder.counts),
            asks={ident: what for ident, (what, _, _) in self._asks.items()},
            limits_by=self._limits_by,
            notes=self._notes,
        )

    def _subscribe(self, _request: messages.Subscribe, connection: Connection) -> FromSupervisor:
        connection.is_subscribed = True
        return messages.Ack()

    async def _diff(self, request: messages.DiffStep, _connection: Connection) -> FromSupervisor:
        found = await self._loop.run_in_executor(None, self._history.changes, self._known_step(request.step))
        return _changes(request.step, found)

    async def _undo(self, request: messages.UndoStep, connection: Connection) -> FromSupervisor:
        step = self._known_step(request.step)
        if step in self._commands.running:
            msg = f"step {step} still runs; wait for its end or kill it before undo"
            raise ControlError(msg)
        undone = await self._loop.run_in_executor(None, self._history.undo, step)
        self._note_control("undo", connection, f"step {step}: {len(undone)} paths")
        return _changes(step, undone)

    def _answer(self, request: messages.Answer, connection: Connection) -> FromSupervisor:
        by = self._who(request.by, connection)
        if request.ask not in self._asks:
            open_asks = ", ".join(map(str, self._asks)) or "none"
            msg = f"no open question {request.ask} (it may have timed out); open: {open_asks}"
            raise ControlError(msg)
        self._note_control("answer", connection, f"{request.ask}: {'allow' if request.allow else 'deny'}")
        self._resolve_ask(request.ask, request.allow, by)
        return messages.Ack()

    def _known_step(self, step: int) -> int:
        if not 1 <= step <= self._commands.steps:
            msg = f"no step {step}; there are {self._commands.steps}"
            raise ControlError(msg)
        return step

    def _note_control(self, op: str, connection: Connection, detail: str) -> None:
        with contextlib.suppress(LogWriteError):
            self._recorder.record(Control, op=op, by=self._who("", connection), detail=detail)

    def _who(self, by: str, connection: Connection) -> str:
        return f"{by or connection.client or 'client'} (pid {connection.pid})"

    async def _all_stopped(self) -> None:
        """Wait until every process is stopped or stands in a held call; it takes about a millisecond."""
        deadline = time.monotonic() + _STOP_PATIENCE_S
        while time.monotonic() < deadline:
            if all(state in "TtDZX" for state in self._sandbox.states()):
                return
            await asyncio.sleep(0.001)
        self._end("processes went on after they were stopped")
        msg = "not every process stopped; the watch is killed"
        raise SessionEndedError(msg)

    # -- asks ----------------------------------------------------------------------------------------------------

    def _ask_from_thread(self, what: str, step: int, answered: Callable[[bool, str], None]) -> None:
        self._loop.call_soon_threadsafe(self._ask, f"step {step}: {what}", answered)

    def _ask(self, what: str, answered: Callable[[bool, str], None]) -> None:
        ident = next(self._ask_ids)
        timeout_s = self._policy.network.ask_timeout_s
        timer = self._loop.call_later(timeout_s, self._resolve_ask, ident, False, f"nobody answered in {timeout_s} s")
        self._asks[ident] = (what, answered, timer)

    def _resolve_ask(self, ident: int, allow: bool, by: str) -> None:  # noqa: FBT001 -- bound by call_later
        _, answered, timer = self._asks.pop(ident)
        if timer is not None:
            timer.cancel()
        answered(allow, by)

    async def _ask_name(self, name: str) -> bool:
        future: asyncio.Future[bool] = self._loop.create_future()

        def answered(allow: bool, _by: str) -> None:  # noqa: FBT001 -- a person's yes or no
            if not future.done():
                future.set_result(allow)

        self._ask(f"resolve {name}", answered)
        return await future

    # -- news from the rooms -------------------------------------------------------------------------------------

    def _process_ended(self, news: dict[str, Any]) -> None:
        self._commands.exited(news)

    def _step_settled(self, step: int) -> None:
        """A command has ended; what it left running keeps its step."""

    async def _more_sockets(self, ipv6: bool, count: int) -> list[Any]:  # noqa: FBT001 -- the dialer's callback
        import socket  # noqa: PLC0415 -- only for parked connects

        _, fds = await self._init.ask({"op": "sockets", "ipv6": ipv6, "count": count})
        return [socket.socket(fileno=fd) for fd in fds]

    def _dial_failed(self, spec: FlowSpec, number: int) -> None:
        with contextlib.suppress(ValueError):
            self._recorder.record(
                Flow,
                verdict="deny",
                step=spec.step,
                pid=spec.pid,
                op="failed",
                flow=spec.flow,
                addr=spec.addr,
                port=spec.port,
                host=spec.host,
                rule=spec.decision.rule,
                reason=f"{errno.errorcode.get(number, number)}: {os.strerror(number)}",
            )

    def _dns_record(self, qname: str, qtype: str, rcode: str, answers: Sequence[str], decision: Decision) -> None:
        self._recorder.record(
            Dns,
            verdict=decision.verdict,
            qname=from_bytes(os.fsencode(qname)),
            qtype=qtype,
            rcode=rcode,
            answers=list(answers),
            rule=decision.rule,
        )

    def _queue_event(self, body: bytes) -> None:
        # Under the recorder's lock and on any thread: only queue, and wake the loop for the first of a batch.
        if not any(connection.is_subscribed for connection in tuple(self._connections)):
            return
        with self._unsent_lock:
            self._unsent.append(body)
            first = len(self._unsent) == 1
        if first:
            self._loop.call_soon_threadsafe(self._send_events)

    def _send_events(self) -> None:
        with self._unsent_lock:
            batch, self._unsent = self._unsent, []
        for connection in tuple(self._connections):
            if connection.is_subscribed:
                connection.send_events(batch)

    async def _watch_memory(self) -> None:
        """Hold the bound on memory where no cgroup does: look at 10 Hz while commands run."""
        bound = self._policy.limits.memory_bytes or 0
        while True:
            await asyncio.sleep(_SAMPLE_S)
            if not self._commands.running and self._sandbox.members() == 0:
                continue
            used = await self._loop.run_in_executor(None, self._sandbox.resident_bytes)
            if used > bound:
                with contextlib.suppress(LogWriteError):
                    self._recorder.record(
                        LimitHit,
                        verdict="kill",
                        limit="memory_bytes",
                        value=float(used),
                        maximum=float(bound),
                        action="running steps killed",
                        sync=True,
                    )
                for step in self._commands.running:
                    await self._commands.kill(step, "limit:memory_bytes")


class _FlowRecords:
    """Puts flows on record for the gateway."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def named(
        self, spec: FlowSpec, protocol: str, server_name: str, decision: Decision, bytes_out: int, bytes_in: int
    ) -> None:
        """Record a flow's protocol, before its first byte passes."""
        named = {"protocol": protocol, "server_name": server_name, "bytes_out": bytes_out, "bytes_in": bytes_in}
        self._record(spec, "named", decision.verdict, rule=decision.rule, **named)

    def closed(
        self, spec: FlowSpec, protocol: str, bytes_out: int, bytes_in: int, duration_s: float, reason: str
    ) -> None:
        """Record a flow's end."""
        counted = {"protocol": protocol, "bytes_out": bytes_out, "bytes_in": bytes_in, "duration_s": duration_s}
        self._record(spec, "closed", "allow", rule=spec.decision.rule, reason=reason, **counted)

    def _record(self, spec: FlowSpec, op: str, verdict: str, **fields: Any) -> None:
        where = {"flow": spec.flow, "addr": spec.addr, "port": spec.port, "host": spec.host}
        self._recorder.record(Flow, op=op, verdict=verdict, step=spec.step, pid=spec.pid, **where, **fields)


def _host_resolver() -> Any:
    from jupyter_agentwatch.sandbox.dns import HostResolver  # noqa: PLC0415 -- needs the running loop

    return HostResolver()


def _changes(step: int, found: Sequence[StepChange]) -> messages.Changes:
    rows = [messages.Change(path=c.path, change=c.change, diff=c.diff, note=c.note) for c in found]
    return messages.Changes(step=step, changes=rows)
