"""Telemetry of one watch: starts the sampler when the sandbox stands, keeps it going, and passes samples to clients.

Loads nothing of the telemetry room before that, because a session's start waits for each module. A sampler that fails
or falls silent is a finding, and is started anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from jupyter_agentwatch.breaker import BreakerState
from jupyter_agentwatch.errors import AgentwatchError, ControlError
from jupyter_agentwatch.policy import Policy
from jupyter_agentwatch.sandbox.notify import Gone
from jupyter_agentwatch.sandbox.standing import Sandbox
from jupyter_agentwatch.sandbox.tasks import TaskTable
from jupyter_agentwatch.supervisor.control import Connection
from jupyter_agentwatch.supervisor.record import Recorder
from jupyter_agentwatch.wire.messages import Leased, SampleNotice

if TYPE_CHECKING:
    from jupyter_agentwatch.supervisor.measuring import Measuring
    from jupyter_agentwatch.telemetry.backend import GpuBackend
    from jupyter_agentwatch.telemetry.leases import Lease
    from jupyter_agentwatch.telemetry.members import SandboxMembers
    from jupyter_agentwatch.telemetry.model import GpuSample, Snapshot
    from jupyter_agentwatch.telemetry.sampler import Sampler

__all__ = ["Measured", "TelemetryFeed"]

_BEGIN_AFTER_S: Final = 0.25
"""The first command comes right after the start, and should not share the processor with our imports."""

_AGAIN_AFTER_S: Final = 5.0
_LOOK_S: Final = 1.0
_SILENT_S: Final = 5.0
_ANSWER_S: Final = 8.0
_IDLE_HZ: Final = 1.0
_IDLE_TICKS: Final = 20
_UNSENT: Final = 50


@dataclass(frozen=True, slots=True)
class Measured:
    """What is measured, and for whom.

    Attributes:
        policy: The policy.
        sandbox: Whose processes.
        gpus: Opens the source of GPU samples.
        tasks: Says which step a process belongs to.
        recorder: Where records go.
        trip: Suspends the watch, with a reason. Any thread.
        state: Returns the breaker's state.
    """

    policy: Policy
    sandbox: Sandbox
    gpus: Callable[[], GpuBackend]
    tasks: TaskTable
    recorder: Recorder
    trip: Callable[[str], None]
    state: Callable[[], BreakerState]

    def step_of(self, pid: int) -> int:
        """Return the step of a process by its host pid, 0 where it has none or has ended."""
        try:
            return self.tasks.step_of(pid)
        except (Gone, OSError):
            return 0


class TelemetryFeed:
    """The sampler of one watch, and the clients that get its samples. Belongs to the control thread's loop.

    Args:
        loop: The loop.
        measured: What is measured.
        connections: All clients; the supervisor's own living set.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, measured: Measured, connections: Collection[Connection]
    ) -> None:
        self._loop = loop
        self._measured = measured
        self._connections = connections
        self._left_out: dict[Connection, int] = {}
        self._leases: dict[int, Connection] = {}
        self._hurry = asyncio.Event()
        self._seen = asyncio.Event()
        self._failed = asyncio.Event()
        self._measuring: Measuring | None = None
        self._sampler: Sampler | None = None
        self._lock = threading.Lock()
        self._unsent: list[bytes] = []
        self._overflow = 0
        self._quiet_ticks = 0

    async def run(self) -> None:
        """Measure until cancelled."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), _BEGIN_AFTER_S)
        try:
            while True:
                self._failed.clear()
                try:
                    await asyncio.to_thread(self._begin)
                    await self._attend()
                except (AgentwatchError, OSError, ValueError) as error:
                    self._fail(error)
                await asyncio.sleep(_AGAIN_AFTER_S)
        finally:
            self.close()

    def close(self) -> None:
        """Write the last sums, and end. Does not wait for a driver. Idempotent."""
        if self._sampler is not None:
            self._sampler.close(timeout_s=0)
        if self._measuring is not None:
            self._measuring.close()

    def subscribe(self, connection: Connection) -> None:
        """Send every further sample to a client."""
        self._left_out.setdefault(connection, 0)

    def forget(self, connection: Connection) -> None:
        """A client has gone: its leases end."""
        self._left_out.pop(connection, None)
        for lease in [number for number, holder in self._leases.items() if holder is connection]:
            self.release(lease)

    # -- leases ----------------------------------------------------------------------------------------------------

    async def lease(self, gpu: int | str, purpose: str, holder: Connection) -> Leased:
        """Enter a lease that lasts until `release` or until its holder has gone.

        Raises:
            ControlError: No such GPU, one that the policy does not grant, or a purpose that is no text for it.
        """
        leased = (await self.ready()).lease(gpu, purpose)
        self._leases[leased[0].id] = holder
        return _answer(*leased)

    def release(self, lease: int) -> None:
        """End a lease.

        Raises:
            ControlError: There is no such lease.
        """
        if self._measuring is None:
            msg = f"lease: there is no lease {lease}"
            raise ControlError(msg)
        self._leases.pop(lease, None)
        self._measuring.release(lease)

    def step_ended(self, step: int) -> None:
        """A step's first process has ended: so has its lease."""
        if self._measuring is not None:
            self._measuring.step_ended(step)

    async def ready(self) -> Measuring:
        """Wait until the GPUs were looked at.

        Raises:
            ControlError: They do not answer.
        """
        self._hurry.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._seen.wait(), _ANSWER_S)
        if self._measuring is None or not self._seen.is_set():
            msg = f"lease: no GPU has answered within {_ANSWER_S:g} s; is the driver hanging?"
            raise ControlError(msg)
        return self._measuring

    # -- the sampler -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Load the telemetry room and start a sampler. In a thread of its own: this takes tens of milliseconds."""
        from jupyter_agentwatch.supervisor.measuring import Measuring, Surroundings
        from jupyter_agentwatch.telemetry.processes import ProcessTable
        from jupyter_agentwatch.telemetry.sampler import Collector, Sampler

        measured = self._measured
        if self._measuring is None:
            self._measuring = Measuring(
                Surroundings(
                    policy=measured.policy,
                    recorder=measured.recorder,
                    step_of=measured.step_of,
                    is_running=lambda: measured.state() in {"closed", "throttled"},
                    trip=measured.trip,
                )
            )
        members = _members(measured.sandbox)
        ours = (measured.sandbox.init_pid,)
        collector = Collector(measured.gpus(), ProcessTable(members.pids), members, measured.step_of, ours=ours)
        hz = measured.policy.telemetry.hz
        self._sampler = Sampler(collector, self._take, hz=hz, on_failure=self._tell_failure)
        self._sampler.start()

    async def _attend(self) -> None:
        """Return when the sampler has failed; tell of one that has not come back from a driver."""
        is_silent = False
        sampler = self._sampler
        while sampler is not None and not self._failed.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._failed.wait(), _LOOK_S)
            silent_s = sampler.silent_s
            if silent_s <= max(_SILENT_S, 3 / sampler.hz):
                is_silent = False
            elif not is_silent and self._measuring is not None:
                is_silent = True
                self._measuring.failed(f"nothing has come for {silent_s:.0f} s", "agentwatch.telemetry_silent")

    def _tell_failure(self, error: Exception) -> None:
        self._fail(error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: the watch has ended
            self._loop.call_soon_threadsafe(self._failed.set)

    def _fail(self, error: Exception) -> None:
        # A killed sandbox has no init to look at any more, which is no failure.
        if self._measuring is not None and self._measured.state() != "killed":
            self._measuring.failed(f"{type(error).__name__}: {error}", "agentwatch.telemetry_failed")

    def _take(self, snapshot: Snapshot) -> None:
        """Take a sample. On the sampler's thread."""
        measuring, sampler = self._measuring, self._sampler
        if measuring is None or sampler is None:
            return
        measuring.take(snapshot)
        self._pace(snapshot, sampler)
        self._queue(snapshot)

    def _pace(self, snapshot: Snapshot, sampler: Sampler) -> None:
        """Look less often while nothing runs inside."""
        hz = self._measured.policy.telemetry.hz
        init = self._measured.sandbox.init_pid
        if any(process.pid != init for process in snapshot.resources.processes):
            self._quiet_ticks = 0
        else:
            self._quiet_ticks += 1
        wanted = min(hz, _IDLE_HZ) if self._quiet_ticks > _IDLE_TICKS else hz
        if abs(wanted - sampler.hz) > 0.01 * wanted:
            sampler.set_rate(wanted)

    # -- clients ---------------------------------------------------------------------------------------------------

    def _queue(self, snapshot: Snapshot) -> None:
        from jupyter_agentwatch.supervisor.measuring import packed

        if not self._left_out and self._seen.is_set():
            return  # for nobody the loop is not woken
        body = packed(snapshot) if self._left_out else b""
        with self._lock:
            self._unsent.append(body)
            is_first = len(self._unsent) == 1
            if len(self._unsent) > _UNSENT:
                del self._unsent[0]
                self._overflow += 1
        if is_first:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the watch has ended
                self._loop.call_soon_threadsafe(self._send)

    def _send(self) -> None:
        self._seen.set()
        with self._lock:
            bodies, self._unsent = self._unsent, []
            overflow, self._overflow = self._overflow, 0
        for connection, left_out in list(self._left_out.items()):
            if connection not in self._connections:
                del self._left_out[connection]
                continue
            missed = left_out + overflow
            for body in filter(None, bodies):
                if connection.is_slow:
                    missed += 1
                    continue
                connection.send(SampleNotice(sample=body, left_out=missed))
                missed = 0
            self._left_out[connection] = missed


def _members(sandbox: Sandbox) -> SandboxMembers:
    from jupyter_agentwatch.telemetry.members import SandboxMembers

    if not sandbox.shares_network:
        return SandboxMembers(sandbox.init_pid)
    from jupyter_agentwatch.sandbox.descendants import is_descendant

    ours = os.getpid()
    belonging = (lambda: [sandbox.init_pid, *sandbox.pids()], lambda pid: is_descendant(pid, ours))
    return SandboxMembers(sandbox.init_pid, belonging=belonging)


def _answer(lease: Lease, sample: GpuSample) -> Leased:
    return Leased(lease=lease.id, device=lease.device, index=sample.index, simulated=sample.simulated)
