"""Takes snapshots on a thread of its own, which is the only one that ever waits for a GPU driver."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import Final

import msgspec

from jupyter_agentwatch.telemetry.backend import GpuBackend
from jupyter_agentwatch.telemetry.members import SandboxMembers, attributed
from jupyter_agentwatch.telemetry.model import GpuSample, Snapshot
from jupyter_agentwatch.telemetry.processes import ProcessTable
from jupyter_agentwatch.telemetry.schedule import Schedule, Tick

__all__ = ["DEFAULT_HZ", "Collector", "Sampler"]

DEFAULT_HZ: Final = 10.0
"""Snapshots per second, unless told otherwise."""


class Collector:
    """Makes one snapshot of everything. One thread at a time.

    Args:
        gpus: Source of GPU samples.
        processes: The sandbox's processes.
        members: Says whose a process on a GPU is; None where there is no sandbox (all is unattributed then).
        step_of: Returns the step of a member by its host pid, 0 where it is unknown; must not raise.
        ours: Members that are the monitor's own, such as init: what they do asks for no simulated GPU.
    """

    def __init__(
        self,
        gpus: GpuBackend,
        processes: ProcessTable,
        members: SandboxMembers | None = None,
        step_of: Callable[[int], int] = lambda _pid: 0,
        *,
        ours: Collection[int] = (),
    ) -> None:
        self._ours = frozenset(ours)
        self._gpus = gpus
        self._processes = processes
        self._members = members
        self._step_of = step_of

    def collect(self, tick: Tick, t_mono_ns: int, t_wall_ns: int) -> Snapshot:
        """Look once.

        Args:
            tick: The tick that is due.
            t_mono_ns: Monotonic clock, nanoseconds.
            t_wall_ns: Unix time, nanoseconds.
        """
        resources = self._processes.sample(t_mono_ns)
        theirs = [process for process in resources.processes if process.pid not in self._ours]
        samples = self._gpus.sample(t_mono_ns, t_wall_ns, theirs)
        return Snapshot(
            seq=tick.seq,
            t_mono_ns=t_mono_ns,
            t_wall_ns=t_wall_ns,
            dropped=tick.dropped,
            gpus=[self._attributed(sample, t_mono_ns) for sample in samples],
            no_gpu=self._gpus.no_gpu,
            resources=resources,
        )

    def close(self) -> None:
        """Let go of driver and files."""
        self._gpus.close()
        self._processes.close()

    def _attributed(self, sample: GpuSample, t_mono_ns: int) -> GpuSample:
        if sample.source == "simulated":
            steps = [msgspec.structs.replace(used, step=self._step_of(used.pid)) for used in sample.processes]
            return msgspec.structs.replace(sample, processes=steps)
        members = self._members
        if sample.source == "trace" or members is None:
            return sample
        return attributed(sample, lambda pid: members.owner(pid, t_mono_ns), self._step_of)


class Sampler:
    """Calls `emit` with a snapshot at each tick, on its own thread.

    Nothing is queued: while `emit` or a driver takes its time, ticks are dropped, and the next snapshot says how many.

    Args:
        collector: Makes the snapshots; closed when the sampler ends.
        emit: Gets each snapshot.
        hz: Snapshots per second, 0.1 to 50.
        on_failure: Called, on the sampler's thread, with the exception that ended it: a blind monitor must be seen.

    Raises:
        ValueError: `hz` is out of range.
    """

    def __init__(
        self,
        collector: Collector,
        emit: Callable[[Snapshot], None],
        *,
        hz: float = DEFAULT_HZ,
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        self._collector = collector
        self._emit = emit
        self._on_failure = on_failure
        self._schedule = Schedule(hz, time.monotonic_ns())
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="agentwatch-telemetry", daemon=True)
        self._last_ns = time.monotonic_ns()
        self.failure: Exception | None = None
        """What ended the sampler before it was closed."""

    @property
    def dropped(self) -> int:
        """Ticks left out so far."""
        return self._schedule.dropped

    @property
    def silent_s(self) -> float:
        """Seconds since a snapshot was complete: where it grows far beyond the period, a driver hangs."""
        return (time.monotonic_ns() - self._last_ns) / 1e9

    @property
    def hz(self) -> float:
        """Snapshots per second."""
        return self._schedule.hz

    def start(self) -> None:
        """Begin. A sampler starts once.

        Raises:
            RuntimeError: It was started before.
        """
        self._thread.start()

    def set_rate(self, hz: float) -> None:
        """Change the rate.

        Raises:
            ValueError: `hz` is out of range.
        """
        with self._changed:
            self._schedule.set_rate(hz, time.monotonic_ns())
            self._changed.notify()

    def close(self, timeout_s: float = 2.0) -> bool:
        """End; returns False where the thread still waits for a driver after `timeout_s` seconds.

        Such a thread ends with its call, or with the process.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread.ident is None:
            self._collector.close()
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (tick := self._next_tick()) is not None:
                self._emit(self._collector.collect(tick, time.monotonic_ns(), time.time_ns()))
                self._last_ns = time.monotonic_ns()
        except Exception as error:  # noqa: BLE001 - whatever it is, it makes the monitor blind, and must be said
            self.failure = error
            if self._on_failure is not None:
                self._on_failure(error)
        finally:
            self._collector.close()

    def _next_tick(self) -> Tick | None:
        """Wait for the next tick; None when the sampler is to end."""
        with self._changed:
            while not self._is_closing:
                now_ns = time.monotonic_ns()
                tick = self._schedule.take(now_ns)
                if tick is not None:
                    return tick
                self._changed.wait(self._schedule.wait_ns(now_ns) / 1e9)
        return None
