"""Adds up what GPUs were used for: seconds, joules, by whom. Pure: all times come with the samples.

A GPU-second is a second in which a kernel was executing, as NVML's utilisation has it: a measurement speaks about the
interval that ends with its time stamp and begins with the one before. The same measurement is never counted twice, and
none speaks about more than 2 s (the time between two samples and 1 s more, where samples are rarer; 15 s at most).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import msgspec

from jupyter_agentwatch.telemetry.model import Attribution, GpuProcess, GpuSample

__all__ = ["DeviceTotal", "ProcessTotal", "StepTotal", "Usage", "Use"]

_LOOKS_BACK_NS: Final = 1_000_000_000  # NVML averages over 1/6 to 1 s, depending on the product
_LONGEST_NS: Final = 15_000_000_000
_CLOCK_SET_BACK_NS: Final = 5_000_000_000
_MAX_TOTALS: Final = 4096
_MAX_POWER_W: Final = 5000.0


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """Use of one device by one process in one interval.

    Attributes:
        uuid: The device.
        index: Its position in the driver's list.
        parent_uuid: The GPU that a MIG device is a part of, or "".
        start_ns: Begin of the interval, Unix time in nanoseconds, by the driver's clock.
        end_ns: Its end.
        gpu_seconds: Seconds of it in which a kernel of this process was executing.
        pid: Process id as the driver numbers it; 0 where no process is known.
        start_ticks: With `pid`, names the process for good; 0 if unknown.
        member: Whether it belongs to the sandbox; None if unknown.
        step: Its step, 0 if unknown.
        attribution: How surely.
        simulated: It is not real.
    """

    uuid: str
    index: int
    parent_uuid: str = ""
    start_ns: int
    end_ns: int
    gpu_seconds: float
    pid: int = 0
    start_ticks: int = 0
    member: bool | None = None
    step: int = 0
    attribution: Attribution = "none"
    simulated: bool = False


class DeviceTotal(msgspec.Struct, frozen=True, kw_only=True):
    """All of one device.

    `gpu_seconds` and `energy_j` are everybody's, `members_s` is the part that is known to be the sandbox's.
    `measured_s` is the time that measurements speak about, `unmeasured_s` the time between that none does.
    """

    uuid: str
    index: int
    gpu_seconds: float
    members_s: float
    energy_j: float
    measured_s: float
    unmeasured_s: float
    simulated: bool


class ProcessTotal(msgspec.Struct, frozen=True, kw_only=True):
    """All of one process on one device; its energy is the device's, divided like the GPU-seconds."""

    uuid: str
    pid: int
    start_ticks: int
    step: int
    member: bool | None
    attribution: Attribution
    gpu_seconds: float
    energy_j: float


class StepTotal(msgspec.Struct, frozen=True, kw_only=True):
    """All of one step on every device. `attribution` is the weakest of its parts."""

    step: int
    gpu_seconds: float
    energy_j: float
    attribution: Attribution


@dataclass(slots=True)
class _Device:
    index: int
    simulated: bool
    seen_ns: int = 0
    polled_ns: int = 0
    gpu_s: float = 0.0
    members_s: float = 0.0
    energy_j: float = 0.0
    measured_ns: int = 0
    unmeasured_ns: int = 0
    counter_j: float | None = None
    power_w: float | None = None
    asked_ns: int = 0
    stamps: dict[tuple[int, int], int] = field(default_factory=dict)


@dataclass(slots=True)
class _Process:
    step: int
    member: bool | None
    attribution: Attribution
    gpu_s: float = 0.0


class Usage:
    """The sums over all samples that it was fed, in the order of their times."""

    def __init__(self) -> None:
        self._devices: dict[str, _Device] = {}
        self._processes: dict[tuple[str, int, int], _Process] = {}

    def feed(self, sample: GpuSample) -> list[Use]:
        """Add one sample; returns the new uses in it, one per process that has any.

        Where the driver does not measure processes, a device's use is divided evenly among those that are on it, and is
        weakly attributed when there are several; where there is none, it is nobody's (`pid` 0).
        """
        device = self._devices.setdefault(sample.uuid, _Device(sample.index, sample.simulated))
        device.simulated = device.simulated or sample.simulated
        if sample.state != "ok":
            device.counter_j = device.power_w = None
            return []
        _add_energy(device, sample)
        polled_ns = device.polled_ns or sample.t_wall_ns
        device.polled_ns = sample.t_wall_ns
        longest_ns = min(max(sample.t_wall_ns - polled_ns, 0) + _LOOKS_BACK_NS, _LONGEST_NS)
        start_ns, end_ns, busy_s = _add_readings(device, sample, max(longest_ns, 2 * _LOOKS_BACK_NS))
        if sample.process_utilization:
            uses = _measured(device, sample, polled_ns, longest_ns)
        else:
            uses = _divided(sample, start_ns, end_ns, busy_s)
        for use in uses:
            self._add(device, use)
        return uses

    def devices(self) -> list[DeviceTotal]:
        """Return the totals of each device."""
        return [
            DeviceTotal(
                uuid=uuid,
                index=device.index,
                gpu_seconds=device.gpu_s,
                members_s=device.members_s,
                energy_j=device.energy_j,
                measured_s=device.measured_ns / 1e9,
                unmeasured_s=device.unmeasured_ns / 1e9,
                simulated=device.simulated,
            )
            for uuid, device in self._devices.items()
        ]

    def processes(self) -> list[ProcessTotal]:
        """Return the totals of each process on each device; those after the first 4096 are in the devices' only."""
        shared: dict[str, float] = {}
        for (uuid, _, _), process in self._processes.items():
            shared[uuid] = shared.get(uuid, 0.0) + process.gpu_s
        return [
            ProcessTotal(
                uuid=uuid,
                pid=pid,
                start_ticks=start_ticks,
                step=process.step,
                member=process.member,
                attribution=process.attribution,
                gpu_seconds=process.gpu_s,
                energy_j=self._devices[uuid].energy_j * process.gpu_s / max(shared[uuid], self._devices[uuid].gpu_s),
            )
            for (uuid, pid, start_ticks), process in self._processes.items()
            if process.gpu_s
        ]

    def steps(self) -> list[StepTotal]:
        """Return the totals of each step that members used a device for."""
        found: dict[int, StepTotal] = {}
        for part in self.processes():
            if part.member:
                before = found.get(part.step) or StepTotal(
                    step=part.step, gpu_seconds=0.0, energy_j=0.0, attribution="exact"
                )
                found[part.step] = StepTotal(
                    step=part.step,
                    gpu_seconds=before.gpu_seconds + part.gpu_seconds,
                    energy_j=before.energy_j + part.energy_j,
                    attribution=_weaker(before.attribution, part.attribution),
                )
        return [found[step] for step in sorted(found)]

    def _add(self, device: _Device, use: Use) -> None:
        if use.member:
            device.members_s += use.gpu_seconds
        key = (use.uuid, use.pid, use.start_ticks)
        process = self._processes.get(key)
        if process is None:
            if len(self._processes) >= _MAX_TOTALS:
                return
            process = self._processes[key] = _Process(use.step, use.member, use.attribution)
        process.gpu_s += use.gpu_seconds
        process.step = process.step or use.step
        process.attribution = _weaker(process.attribution, use.attribution)


def _weaker(one: Attribution, other: Attribution) -> Attribution:
    order: list[Attribution] = ["none", "weak", "exact"]
    return order[min(order.index(one), order.index(other))]


def _add_readings(device: _Device, sample: GpuSample, longest_ns: int) -> tuple[int, int, float]:
    """Add the device's new measurements; returns begin, end and busy seconds of what they speak about."""
    begin_ns, busy_s = 0, 0.0
    for reading in sample.readings:
        since_ns = device.seen_ns
        if since_ns and reading.t_ns <= since_ns:
            if since_ns - reading.t_ns > _CLOCK_SET_BACK_NS:
                device.seen_ns = reading.t_ns
            continue
        device.seen_ns = reading.t_ns
        if not since_ns:
            continue  # the first one: nobody knows when its interval began
        spoken_ns = min(reading.t_ns - since_ns, longest_ns)
        device.measured_ns += spoken_ns
        device.unmeasured_ns += reading.t_ns - since_ns - spoken_ns
        busy_s += reading.percent / 100 * spoken_ns / 1e9
        begin_ns = begin_ns or reading.t_ns - spoken_ns
    device.gpu_s += busy_s
    return begin_ns, device.seen_ns, busy_s


def _measured(device: _Device, sample: GpuSample, polled_ns: int, longest_ns: int) -> list[Use]:
    """Return the uses in new measurements of processes. Drivers leave idle processes out, so a long gap was idle."""
    uses: list[Use] = []
    stamps: dict[tuple[int, int], int] = {}
    for process in sample.processes:
        key = (process.pid, process.start_ticks)
        last_ns = device.stamps.get(key, 0)
        if last_ns - process.t_ns > _CLOCK_SET_BACK_NS and process.t_ns:
            last_ns = 0
        stamps[key] = max(last_ns, process.t_ns)
        # A process that had no measurement before did not use the device before the last sample.
        since_ns = max(last_ns or polled_ns, process.t_ns - longest_ns)
        if process.utilization is not None and process.t_ns > since_ns:
            busy_s = process.utilization / 100 * (process.t_ns - since_ns) / 1e9
            uses.append(_use(sample, process, since_ns, process.t_ns, busy_s))
    device.stamps = stamps
    return uses


def _divided(sample: GpuSample, start_ns: int, end_ns: int, busy_s: float) -> list[Use]:
    if busy_s <= 0:
        return []
    if not sample.processes:
        return [_use(sample, GpuProcess(pid=0), start_ns, end_ns, busy_s)]
    parts = len(sample.processes)
    uses = [_use(sample, process, start_ns, end_ns, busy_s / parts) for process in sample.processes]
    if parts == 1:
        return uses
    return [msgspec.structs.replace(use, attribution=_weaker(use.attribution, "weak")) for use in uses]


def _use(sample: GpuSample, process: GpuProcess, start_ns: int, end_ns: int, busy_s: float) -> Use:
    return Use(
        uuid=sample.uuid,
        index=sample.index,
        parent_uuid=sample.parent_uuid,
        start_ns=start_ns,
        end_ns=end_ns,
        gpu_seconds=busy_s,
        pid=process.pid,
        start_ticks=process.start_ticks,
        member=process.member,
        step=process.step,
        attribution=process.attribution,
        simulated=sample.simulated,
    )


def _add_energy(device: _Device, sample: GpuSample) -> None:
    """Add energy by the driver's counter, else by its power, in the time since the last sample."""
    passed_ns = sample.t_mono_ns - device.asked_ns if device.asked_ns else 0
    passed_s = min(max(passed_ns, 0), _LONGEST_NS) / 1e9
    counted = None
    if sample.energy_j is not None and device.counter_j is not None:
        counted = sample.energy_j - device.counter_j
    if counted is not None and 0 <= counted <= _MAX_POWER_W * max(passed_ns, 0) / 1e9 + 1:
        device.energy_j += counted
    elif sample.power_w is not None and device.power_w is not None:
        device.energy_j += (sample.power_w + device.power_w) / 2 * passed_s
    device.counter_j, device.power_w, device.asked_ns = sample.energy_j, sample.power_w, sample.t_mono_ns
