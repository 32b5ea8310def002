"""The supervisor of one watch: puts the rooms together, and is the only place where a watch is frozen or ended.

Two threads: the main thread answers trapped calls (`Mediator.run`), the control thread runs everything else on one
asyncio loop. The main thread also started bubblewrap, because a parent-death signal belongs to the starting thread.
Neither may wait for anything that the sandbox, a client or a diff can hold up; a watchdog looks whether they go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from jupyter_agentwatch.audit.log import LogWriteError
from jupyter_agentwatch.breaker import BreakerState, Cause, Trip
from jupyter_agentwatch.events import LimitHit
from jupyter_agentwatch.policy import Policy
from jupyter_agentwatch.sandbox.history import WorkspaceHistory
from jupyter_agentwatch.sandbox.notify import Listener
from jupyter_agentwatch.sandbox.paths import Root
from jupyter_agentwatch.sandbox.standing import Sandbox
from jupyter_agentwatch.sandbox.syscalls import MACHINES
from jupyter_agentwatch.sandbox.tasks import TaskTable
from jupyter_agentwatch.supervisor.asks import Asks
from jupyter_agentwatch.supervisor.bounds import BoundsWatch
from jupyter_agentwatch.supervisor.circuit import Circuit, Works
from jupyter_agentwatch.supervisor.commands import Commands
from jupyter_agentwatch.supervisor.control import Connection, serve
from jupyter_agentwatch.supervisor.detection import Detection
from jupyter_agentwatch.supervisor.fan import EventFan
from jupyter_agentwatch.supervisor.final_acts import FinalActs
from jupyter_agentwatch.supervisor.fresh import watch_fresh_folders
from jupyter_agentwatch.supervisor.gate import Gate
from jupyter_agentwatch.supervisor.host import Host
from jupyter_agentwatch.supervisor.init_channel import InitChannel
from jupyter_agentwatch.supervisor.mediator import Mediator
from jupyter_agentwatch.supervisor.model_side import ModelSide
from jupyter_agentwatch.supervisor.network_side import NetworkSide
from jupyter_agentwatch.supervisor.record import Recorder
from jupyter_agentwatch.supervisor.requests import Requests
from jupyter_agentwatch.supervisor.sockets import MadeSockets
from jupyter_agentwatch.supervisor.stand_ins import StandIns
from jupyter_agentwatch.supervisor.standstill import Standstill
from jupyter_agentwatch.supervisor.telemetry_feed import Measured, TelemetryFeed
from jupyter_agentwatch.supervisor.watchdog import Watchdog
from jupyter_agentwatch.wire import messages
from jupyter_agentwatch.wire.messages import Launch

__all__ = ["Supervisor"]

_ENDED_GRACE_S: Final = 0.2
_LONG_LOOK_S: Final = 0.005


class Supervisor:
    """One watch, from an opened log and a standing sandbox to the closed log.

    Args:
        launch: What to watch.
        policy: The policy, paths absolute.
        sandbox: Standing, no command run yet.
        recorder: Where records go.
        environment: Environment of every command.
        host: What this machine gives the watch.
    """

    def __init__(
        self,
        *,
        launch: Launch,
        policy: Policy,
        sandbox: Sandbox,
        recorder: Recorder,
        environment: dict[str, str],
        host: Host,
    ) -> None:
        self.launch = launch
        self._policy = policy
        self.sandbox = sandbox
        self.recorder = recorder
        self.host = host
        self.notes: list[str] = []
        self.started = time.monotonic()
        self.started_wall_ns = time.time_ns()
        self._connections: set[Connection] = set()
        self._killing: asyncio.Future[messages.Killed] | None = None
        self.gate = Gate()
        self.is_armed = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._requests = Requests(self)
        self._final_acts = FinalActs(self._loop, sandbox, recorder)
        self._is_held = False
        self._will_look = False
        self._next_look = 0.0
        self.asks = Asks(self._loop, policy.network.ask_timeout_s)
        self._store = Path(launch.socket).with_suffix(".store")
        self.history = self._make_history()
        self._listener = Listener(sandbox.listener_fd)
        self._task_table = TaskTable(sandbox.init_pid, sandbox.living_sessions, sandbox.forker)
        self._root = Root(sandbox.init_pid)
        self._init = InitChannel(self._loop, sandbox.control, self._process_ended, self._init_ended)
        self._models = self._make_models()
        self._network = self._make_network()
        self._mediator = self._make_mediator()
        self.standstill = Standstill(sandbox.states, self._end)
        self._watchdog = self._make_watchdog()
        self.commands = Commands(
            loop=self._loop,
            init=self._init,
            tasks=self._task_table,
            recorder=recorder,
            limits=policy.limits,
            environment=environment | (self._models.environment if self._models else {}),
            workspace=launch.workspace,
        )
        self._bounds = BoundsWatch(policy.limits, host, sandbox, self.commands, recorder)
        self.circuit = self._make_circuit()
        measured = Measured(policy, sandbox, host.gpus, self._task_table, recorder, self.trip, self._measured_state)
        self.telemetry = TelemetryFeed(self._loop, measured, self._connections)
        self.commands.on_end = self.telemetry.step_ended

    def _make_history(self) -> WorkspaceHistory:
        keep = self._policy.snapshots
        workspace = Path(self.launch.workspace)
        return WorkspaceHistory(workspace, self._store, file_bytes=keep.file_bytes, total_bytes=keep.total_bytes)

    def _make_models(self) -> ModelSide | None:
        if self.host.proxy is None:
            return None
        return ModelSide(self._loop, self._policy.models, self.host.proxy, self.recorder, self.gate)

    def _make_network(self) -> NetworkSide:
        return NetworkSide(
            loop=self._loop,
            policy=self._policy,
            sandbox=self.sandbox,
            listener=self._listener,
            tasks=self._task_table,
            root=self._root,
            recorder=self.recorder,
            gate=self.gate,
            asks=self.asks,
            ask_init=self._init.ask,
            models=self._models,
        )

    def _make_mediator(self) -> Mediator:
        return Mediator(
            machine=MACHINES[os.uname().machine],
            listener=self._listener,
            tasks=self._task_table,
            root=self._root,
            recorder=self.recorder,
            gate=self.gate,
            history=self.history,
            network=self._network.broker,
            unshared=self._make_stand_ins(),
            count_members=self.sandbox.tasks,
            max_tasks=self._policy.limits.processes if self.host.count_tasks else None,
            memory_bytes=self._policy.limits.memory_bytes,
        )

    def _make_stand_ins(self) -> StandIns | None:
        sockets = self._network.sockets
        if not isinstance(sockets, MadeSockets):
            return None
        return StandIns(
            listener=self._listener,
            tasks=self._task_table,
            root=self._root,
            recorder=self.recorder,
            sockets=sockets,
            init_pid=self.sandbox.init_pid,
            writable=self.host.writable,
            shared_memory=str(self._store.with_suffix(".fresh") / "shm"),
        )

    def _make_circuit(self) -> Circuit:
        self._detection = Detection(self._policy, self.launch.rules, self._trip)
        self.recorder.expect_examiner()
        works = Works(
            loop=self._loop,
            sandbox=self.sandbox,
            recorder=self.recorder,
            gate=self.gate,
            mediator=self._mediator,
            network=self._network,
            commands=self.commands,
            init=self._init,
            standstill=self.standstill,
            spawn=self._spawn,
            end=self._end,
            notes=self.notes,
        )
        about = {"watch": self.launch.watch, "workspace": self.launch.workspace, "log": self.launch.log}
        return Circuit(works, self._detection, self._policy.breaker, about)

    def _make_watchdog(self) -> Watchdog:
        return Watchdog(
            watched={
                "the notification thread": self._mediation,
                "the closing of sockets": self._network.closer.progress,
            },
            stuck=self._stuck,
            beat=self._loop.call_soon_threadsafe,
            destroy=self.sandbox.destroy,
        )

    # -- life ----------------------------------------------------------------------------------------------------

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until the watch has ended. `ready` is called when the control socket listens."""
        control = threading.Thread(target=self._control_thread, args=(ready,), name="control")
        control.start()
        self._watchdog.start()
        reason = "the sandbox ended by itself"
        try:
            # The mediator leaves when no task is left: on a kill, or because the sandbox died under us.
            self._mediator.run()
        except Exception as error:  # noqa: BLE001 -- whatever it was: nobody answers calls any more
            reason = f"the notification thread failed: {type(error).__name__}: {error}"
        with contextlib.suppress(RuntimeError):  # the loop is closed: all has ended already
            self._loop.call_soon_threadsafe(self._end, reason)
        control.join()

    def _mediation(self) -> int | None:
        return None if self._is_held else self._mediator.progress()  # an undo keeps it waiting as long as it writes

    def _stuck(self, what: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: all has ended already
            self._loop.call_soon_threadsafe(self._end_stuck, f"{what} of the monitor was held up by one piece of work")

    def _end_stuck(self, reason: str) -> None:
        if self._killing is None:
            self._spawn(self.kill(reason, "supervisor", "ended", is_alarm=True))

    @property
    def is_ending(self) -> bool:
        """The watch is being killed, or has been."""
        return self._killing is not None

    @property
    def state(self) -> BreakerState:
        """What the breaker is in."""
        return self.circuit.state

    def _measured_state(self) -> BreakerState:
        return "killed" if self.is_ending else self.state  # the sandbox is gone before the breaker's record of it

    def trip(self, why: str) -> None:
        """Freeze because the monitor itself cannot do its work. Any thread."""
        self.circuit.trip_for(why)

    def _trip(self, trip: Trip) -> None:
        self.circuit.trip(trip)

    def _control_thread(self, ready: Callable[[], None]) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve(ready))
        except BaseException:
            self.sandbox.destroy()  # nobody could end it any more
            raise
        finally:
            self._loop.close()

    async def _serve(self, ready: Callable[[], None]) -> None:
        self._ended = asyncio.Event()
        self.recorder.listener = EventFan(self._loop, self._connections).put
        server = await serve(self.launch.socket, self._connect)
        try:
            owner = os.pidfd_open(self.launch.owner_pid)
        except ProcessLookupError:
            owner = os.eventfd(1)  # readable at once, as the pidfd of a process that has ended
        self._loop.add_reader(owner, self._owner_ended, owner)
        if self._models is not None:
            self._models.listen()
        self._spawn(self._network.serve_names(self.circuit.is_running))
        self._spawn(self.circuit.watch_budgets())
        self._spawn(self._network.tidy())
        if self._policy.limits.session_s is not None:
            self._loop.call_later(self._policy.limits.session_s, self._session_time_over)
        self._spawn(self._bounds.watch())
        self._spawn(self.telemetry.run())
        if self.sandbox.shares_network:
            folders = [self._store.with_suffix(".fresh") / name for name in ("home", "tmp", "shm")]
            bound = self._policy.filesystem.tmp_bytes
            self._spawn(watch_fresh_folders(folders, bound, self.sandbox, self.commands, self.recorder))
        ready()
        self._spawn(self._arm())
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

    async def _arm(self) -> None:
        """Load the detectors, while the owner prepares the first command, which waits for them."""

        def load() -> None:
            self._detection.load()
            with contextlib.suppress(LogWriteError, ValueError):  # that has tripped the breaker, or all is over
                self.recorder.examine_with(self._detection)

        await asyncio.to_thread(load)
        self.is_armed.set()

    def _connect(self) -> Connection:
        connection = Connection(self._requests.handle, self._client_lost, self.commands.resume_output)
        self._connections.add(connection)
        return connection

    def _client_lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self.telemetry.forget(connection)
        if connection.is_owner:
            self._end("the owner hung up")

    def _owner_ended(self, pidfd: int) -> None:
        self._loop.remove_reader(pidfd)
        self._end("the owner process ended")

    def _init_ended(self) -> None:
        self._end("the sandbox ended by itself")

    def _session_time_over(self) -> None:
        seconds = float(self._policy.limits.session_s or 0)
        with contextlib.suppress(LogWriteError, ValueError):
            self.recorder.record(
                LimitHit, verdict="kill", limit="session_s", value=seconds, maximum=seconds, action="watch killed"
            )
        self._end("the session's wall time is over")

    def _end(self, reason: str, cause: Cause = "ended") -> None:
        if self._killing is None:
            self._spawn(self.kill(reason, "supervisor", cause))

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and self._killing is None:
            # A part of the monitor has died: it must not go on half-blind.
            self.trip(f"{type(error).__name__}: {error}")

    @contextlib.contextmanager
    def calls_held(self) -> Iterator[None]:
        """Leave every trapped call unanswered for a moment, without stopping any process."""
        self.gate.shut("undo")
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            self.gate.open("undo")
            self._mediator.serve_held()

    # -- breaker -------------------------------------------------------------------------------------------------

    async def kill(self, reason: str, by: str, cause: Cause, *, is_alarm: bool = False) -> messages.Killed:
        """End everything, close the log, and say what was counted. Idempotent: later callers get the same answer.

        Args:
            reason: Goes into the log.
            by: Who ends it.
            cause: What the breaker calls it.
            is_alarm: The monitor itself was attacked or has failed: a critical finding goes with it.
        """
        if self._killing is not None:
            return await asyncio.shield(self._killing)
        self._killing = self._loop.create_future()
        self._watchdog.kill_began()
        begun = time.monotonic()
        if self.sandbox.shares_network:
            self.gate.shut("frozen")  # without a PID namespace, what could fork would outrun its end
        living = self.sandbox.members()
        self.commands.will_be_killed()
        # The kill comes first: nothing that could fail, such as a full disk, may stand before it.
        survivors = await self._final_acts.destroy()
        latency_ms = (time.monotonic() - begun) * 1000
        self._mediator.stop()
        self._init.close()
        self.commands.end_all()
        self.commands.go_on()
        await self._network.close()
        if self._models is not None:
            self._models.close()
        self.telemetry.close()
        end = {"reason": reason, "killed": living, "survivors": survivors}

        def last_acts() -> None:
            self._bounds.tell_refused()
            self.circuit.move(cause, by, reason)
            self._requests.agent_notes.end_all()

        note = await self._final_acts.close_log(last_acts, end, is_alarm=is_alarm)
        self._watchdog.watch_ended()
        head = self.recorder.head
        killed = messages.Killed(killed=living, survivors=survivors, latency_ms=latency_ms, head=head, note=note)
        self._killing.set_result(killed)
        self._spawn(self._finish())
        return killed

    async def _finish(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.launch.socket)
        await self._final_acts.clear_away(self.history, (self._store, self._store.with_suffix(".fresh")))
        if self.host.leaf is not None:
            self.host.leaf.remove()
        self._ended.set()

    # -- news from the rooms -------------------------------------------------------------------------------------

    def _process_ended(self, news: dict[str, Any]) -> None:
        self._bounds.tell_refused(news["step"])
        self.commands.exited(news)
        if not self._will_look:
            # Looking takes the longer the more have ended: then at most half of the time, or news would pile up.
            self._will_look = True
            wait_s = self._next_look - self._loop.time()
            if wait_s > 0:
                self._loop.call_later(wait_s, self._look_for_quiet)
            else:
                self._look_for_quiet()

    def _look_for_quiet(self) -> None:
        self._will_look = False
        moment, began = time.time_ns(), self._loop.time()
        if self.sandbox.members() == 0:
            self.history.quiet(moment)
        took_s = self._loop.time() - began
        self._next_look = began + 2 * took_s if took_s > _LONG_LOOK_S else 0.0
