"""Turns ten snapshots a second into the few records a second that go into the audit log. Pure.

A log that is kept for weeks cannot hold every sample; what it holds are sums over an interval, changes of state at
once, and where nothing happened a sign of life now and then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from jupyter_agentwatch.events import Event, Gpu, Resources
from jupyter_agentwatch.telemetry.leases import LeaseBook
from jupyter_agentwatch.telemetry.model import GpuSample, ProcessSample, Snapshot
from jupyter_agentwatch.telemetry.usage import DeviceTotal, Usage, Use

__all__ = ["Digest", "Entry"]

_IDLE_EVERY: Final = 30
_BUSY_SHARE: Final = 0.5
_BUSIEST: Final = 8
_MAX_USERS: Final = 32
_ORDER: Final = {"none": 0, "weak": 1, "exact": 2}


@dataclass(frozen=True, slots=True)
class Entry:
    """One record to be written: `kind(**stamps, pid=pid, step=step, **fields)`.

    Attributes:
        kind: Event class, `Gpu` or `Resources`.
        pid: Process that it is about, as the host sees it, or 0.
        step: Its step, or 0.
        fields: The kind's own fields.
        outside: It is a use that no lease covers.
    """

    kind: type[Event]
    pid: int
    step: int
    fields: dict[str, Any]
    outside: bool = False


@dataclass(slots=True)
class _Device:
    state: str = ""
    last: GpuSample | None = None
    percents: list[float] = field(default_factory=list)
    xids: list[int] = field(default_factory=list)
    gpu_s: float = 0.0
    energy_j: float = 0.0
    quiet: int = _IDLE_EVERY


@dataclass(slots=True)
class _User:
    use: Use
    gpu_s: float = 0.0
    outside_s: float = 0.0


class Digest:
    """Collects snapshots of one watch, in order, and gives records once per interval.

    Args:
        usage: The sums; fed here, so it must not be fed elsewhere.
        leases: The watch's leases.
        interval_s: Length of an interval, seconds.
        step_of: Returns the step of a member by its host pid, 0 where it is unknown; must not raise.
    """

    def __init__(
        self,
        usage: Usage,
        leases: LeaseBook,
        *,
        interval_s: float = 1.0,
        step_of: Callable[[int], int] = lambda _pid: 0,
    ) -> None:
        self._usage = usage
        self._leases = leases
        self._step_of = step_of
        self._interval_ns = round(interval_s * 1e9)
        self._began_ns: int | None = None
        self._devices: dict[str, _Device] = {}
        self._users: dict[tuple[str, int, int], _User] = {}
        self._last: Snapshot | None = None
        self._cpu: dict[tuple[int, int], tuple[float, int, int]] = {}
        self._sums = (0.0, 0, 0)
        self._dropped = 0
        self._quiet = _IDLE_EVERY

    def feed(self, snapshot: Snapshot) -> list[Entry]:
        """Take a snapshot; returns what is to be written now: changes of state at once, the rest with the interval."""
        if self._began_ns is None:
            self._began_ns = snapshot.t_mono_ns  # what was used before the first look counts with the first interval
        entries: list[Entry] = []
        for sample in snapshot.gpus:
            entries += self._take(sample)
        self._dropped += snapshot.dropped
        self._last = snapshot
        if snapshot.t_mono_ns - self._began_ns >= self._interval_ns:
            entries += self.flush()
        return entries

    def flush(self) -> list[Entry]:
        """End the interval now, for the last records of a watch."""
        if self._last is None or self._began_ns is None:
            return []
        passed_s = (self._last.t_mono_ns - self._began_ns) / 1e9
        if passed_s <= 0:
            return []
        entries = [entry for total in self._usage.devices() for entry in self._device(total, passed_s)]
        users = sorted(self._users.values(), key=lambda user: (-user.outside_s, -user.gpu_s))
        entries += [self._user(user, passed_s) for user in users[:_MAX_USERS] if user.gpu_s]
        entries += self._resources(self._last, passed_s)
        self._began_ns = self._last.t_mono_ns
        self._users.clear()
        self._dropped = 0
        self._mark(self._last)
        return entries

    def _take(self, sample: GpuSample) -> list[Entry]:
        device = self._devices.setdefault(sample.uuid, _Device())
        device.last = sample
        device.percents += [reading.percent for reading in sample.readings]
        device.xids += sample.xids
        for use in self._usage.feed(sample):
            user = self._users.setdefault((use.uuid, use.pid, use.start_ticks), _User(use))
            outside = self._leases.judge(use)
            # What is known best about a process in the interval is what is written of it.
            user.use = max(user.use, use, key=lambda known: _ORDER[known.attribution])
            user.gpu_s += use.gpu_seconds
            user.outside_s += outside.gpu_seconds if outside is not None else 0.0
        if sample.state == device.state:
            return []
        device.state = sample.state
        return [Entry(Gpu, 0, 0, {"op": "state", **_named(sample), "state": sample.state, "reason": sample.error})]

    def _device(self, total: DeviceTotal, passed_s: float) -> list[Entry]:
        device = self._devices[total.uuid]
        sample, percents, xids = device.last, device.percents, device.xids
        gpu_s, energy_j = total.gpu_seconds - device.gpu_s, total.energy_j - device.energy_j
        device.gpu_s, device.energy_j = total.gpu_seconds, total.energy_j
        device.percents, device.xids = [], []
        device.quiet += 1
        if sample is None or (sample.state != "ok" and not xids):
            return []
        if not gpu_s and not xids and not sample.processes and device.quiet < _IDLE_EVERY:
            return []
        device.quiet = 0
        fields: dict[str, Any] = {
            "op": "device",
            **_named(sample),
            "interval_s": passed_s,
            "utilization": sum(percents) / len(percents) if percents else sample.utilization,
            "utilization_max": max(percents, default=sample.utilization),
            "memory_bytes": sample.memory_used_bytes,
            "memory_total_bytes": sample.memory_total_bytes,
            "power_w": sample.power_w,
            "temperature_c": sample.temperature_c,
            "gpu_seconds": gpu_s,
            "energy_j": energy_j,
            "xids": xids[:64],
        }
        return [Entry(Gpu, 0, 0, fields)]

    def _user(self, user: _User, passed_s: float) -> Entry:
        use = user.use
        device = self._devices[use.uuid].last
        on_it = device.processes if device is not None else []
        fields: dict[str, Any] = {
            "op": "process",
            "device": use.uuid,
            "index": use.index,
            "source": device.source if device is not None else "",
            "simulated": use.simulated,
            "interval_s": passed_s,
            "memory_bytes": next((process.memory_bytes for process in on_it if process.pid == use.pid), None),
            "gpu_seconds": user.gpu_s,
            "outside_s": user.outside_s,
            "attribution": use.attribution,
            "member": use.member,
            "driver_pid": use.pid,
        }
        known = use.attribution != "none"
        return Entry(Gpu, use.pid if known else 0, use.step if known else 0, fields, outside=user.outside_s > 0)

    def _resources(self, snapshot: Snapshot, passed_s: float) -> list[Entry]:
        now = snapshot.resources
        cpu_s, read, written = self._sums
        used_s = max(0.0, now.cpu_s - cpu_s)
        self._quiet += 1
        if not used_s and not self._dropped and self._quiet < _IDLE_EVERY:
            return []
        self._quiet = 0
        fields: dict[str, Any] = {
            "interval_s": passed_s,
            "cpu_s": used_s,
            "rss_bytes": now.rss_bytes,
            "read_bytes": max(0, now.read_bytes - read),
            "write_bytes": max(0, now.write_bytes - written),
            "processes": len(now.processes) + now.unread,
            "threads": now.threads,
            "dropped": self._dropped,
        }
        busy = [(self._used_s(process), process) for process in now.processes]
        busy = sorted((pair for pair in busy if pair[0] >= _BUSY_SHARE * passed_s), key=lambda pair: -pair[0])
        return [Entry(Resources, 0, 0, fields), *(self._busy(each, used, passed_s) for used, each in busy[:_BUSIEST])]

    def _busy(self, process: ProcessSample, used_s: float, passed_s: float) -> Entry:
        _, read, written = self._cpu.get((process.pid, process.start_ticks), (0.0, 0, 0))
        fields: dict[str, Any] = {
            "interval_s": passed_s,
            "name": process.name,
            "cpu_s": used_s,
            "rss_bytes": process.rss_bytes,
            "read_bytes": max(0, (process.read_bytes or 0) - read),
            "write_bytes": max(0, (process.write_bytes or 0) - written),
            "processes": 1,
            "threads": process.threads,
        }
        return Entry(Resources, process.pid, self._step_of(process.pid), fields)

    def _used_s(self, process: ProcessSample) -> float:
        return process.cpu_s - self._cpu.get((process.pid, process.start_ticks), (0.0, 0, 0))[0]

    def _mark(self, snapshot: Snapshot) -> None:
        now = snapshot.resources
        self._sums = now.cpu_s, now.read_bytes, now.write_bytes
        self._cpu = {
            (process.pid, process.start_ticks): (process.cpu_s, process.read_bytes or 0, process.write_bytes or 0)
            for process in now.processes
        }


def _named(sample: GpuSample) -> dict[str, Any]:
    return {
        "device": sample.uuid,
        "index": sample.index,
        "name": sample.name,
        "source": sample.source,
        "simulated": sample.simulated,
    }
