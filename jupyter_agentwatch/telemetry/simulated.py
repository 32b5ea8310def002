"""GPUs that do not exist, for teaching: they show what the sandboxed processes ask for, and say that they are not real.

The rule. A process is bound to the first device that its CUDA_VISIBLE_DEVICES names, as CUDA numbers devices (index or
UUID, the list ends at the first unknown one), and to device 0 where it has no such variable. Its CPU use is its demand:
one busy core asks for the whole device. A device gives what is asked for up to 100 %, in proportion where more is
asked; utilisation follows with a time constant of 0.5 s, temperature with 20 s. Below 2 % of a core a process does not
use its device. The only randomness is a jitter of ±1.5 %, a function of seed, device and time.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from jupyter_agentwatch.telemetry.model import GpuProcess, GpuSample, NoGpu, ProcessSample, Reading

__all__ = ["MAX_SIMULATED", "SimulatedGpus", "bound_device", "environment_value"]

MAX_SIMULATED: Final = 64
"""Devices that can be simulated at most."""

_MEMORY: Final = 16 * 2**30
_BASE_MEMORY: Final = 450 * 2**20
_PROCESS_MEMORY: Final = 300 * 2**20
_IDLE_W: Final = 55.0
_LIMIT_W: Final = 300.0
_AMBIENT_C: Final = 32.0
_RISE_C: Final = 46.0
_BUSY_PERCENT: Final = 2.0
_LOAD_S: Final = 0.5
_HEAT_S: Final = 20.0
_JITTER: Final = 1.5
_READING_NS: Final = 100_000_000
_ENVIRONMENT_BYTES: Final = 128 * 1024


@dataclass(slots=True)
class _Device:
    uuid: str
    load: float = 0.0
    heat: float = 0.0
    energy_j: float = 0.0
    shares: dict[int, float] = field(default_factory=dict)


class SimulatedGpus:
    """The `telemetry.backend.GpuBackend` of simulated GPUs. Deterministic in its arguments; keeps no clock.

    Args:
        count: Number of devices, 1 to 64.
        seed: Seed of the jitter and of the UUIDs.
        environment: Returns a variable of a process's environment, None where it is not set; by default from /proc.

    Raises:
        ValueError: `count` is out of range.
    """

    no_gpu: NoGpu | None = None

    def __init__(
        self, count: int, *, seed: int = 0, environment: Callable[[int, str], str | None] | None = None
    ) -> None:
        if not 1 <= count <= MAX_SIMULATED:
            msg = f"simulated GPUs: {count} is not between 1 and {MAX_SIMULATED}"
            raise ValueError(msg)
        self._seed = seed
        self._environment = environment or environment_value
        self._devices = [_Device(f"GPU-SIMULATED-{_digest(seed, index, -1).hex()[:12]}") for index in range(count)]
        self._bound: dict[tuple[int, int, str], int | None] = {}
        self._last_ns = 0
        self._read_ns = 0

    def sample(self, t_mono_ns: int, t_wall_ns: int, processes: Sequence[ProcessSample]) -> list[GpuSample]:
        """Let the model go on to `t_mono_ns`; see `telemetry.backend.GpuBackend.sample`."""
        passed_s = max(0, t_mono_ns - self._last_ns) / 1e9 if self._last_ns else 0.0
        self._last_ns = t_mono_ns
        living = {(process.pid, process.start_ticks, process.name) for process in processes}
        self._bound = {key: device for key, device in self._bound.items() if key in living}
        using: list[list[ProcessSample]] = [[] for _ in self._devices]
        for process in processes:
            if process.cpu_percent >= _BUSY_PERCENT and (device := self._device_of(process)) is not None:
                using[device].append(process)
        is_new = t_mono_ns - self._read_ns >= _READING_NS or not self._read_ns
        if is_new:
            self._read_ns = t_mono_ns
        for index, users in enumerate(using):
            _advance(self._devices[index], users, passed_s)
        return [
            self._sample(index, using[index], t_mono_ns, t_wall_ns, is_new=is_new)
            for index in range(len(self._devices))
        ]

    def close(self) -> None:
        """Nothing is held."""

    def _device_of(self, process: ProcessSample) -> int | None:
        # The name is part of the key because a new program (exec) may have another environment.
        key = (process.pid, process.start_ticks, process.name)
        if key not in self._bound:
            value = self._environment(process.pid, "CUDA_VISIBLE_DEVICES")
            self._bound[key] = bound_device(value, [device.uuid for device in self._devices])
        return self._bound[key]

    def _sample(
        self, index: int, users: list[ProcessSample], t_mono_ns: int, t_wall_ns: int, *, is_new: bool
    ) -> GpuSample:
        device = self._devices[index]
        noise = (_digest(self._seed, index, t_mono_ns // _READING_NS)[0] / 255 - 0.5) * 2 * _JITTER
        busy = round(min(100.0, max(0.0, device.load + noise)), 1) if device.load > 1 else 0.0
        memory = [_PROCESS_MEMORY + min(process.rss_bytes, 2**30) for process in users]
        return GpuSample(
            index=index,
            uuid=device.uuid,
            name="Simulated GPU",
            source="simulated",
            simulated=True,
            t_mono_ns=t_mono_ns,
            t_wall_ns=t_wall_ns,
            utilization=busy,
            memory_utilization=round(busy * 0.6, 1),
            readings=[Reading(t_ns=t_wall_ns, percent=busy)] if is_new else [],
            stamped=True,
            memory_used_bytes=min(_MEMORY, _BASE_MEMORY + sum(memory)),
            memory_total_bytes=_MEMORY,
            power_w=round(_power(device), 1),
            power_limit_w=_LIMIT_W,
            energy_j=round(device.energy_j, 3),
            temperature_c=round(_AMBIENT_C + _RISE_C * device.heat, 1),
            sm_clock_mhz=1410 if device.load > 1 else 345,
            memory_clock_mhz=1593,
            process_utilization=True,
            processes=[
                GpuProcess(
                    pid=process.pid,
                    start_ticks=process.start_ticks,
                    member=True,
                    attribution="exact",
                    memory_bytes=used,
                    utilization=round(min(busy, device.shares.get(process.pid, 0.0)), 1),
                    t_ns=t_wall_ns,
                )
                for process, used in zip(users, memory, strict=True)
            ],
        )


def bound_device(value: str | None, uuids: Sequence[str]) -> int | None:
    """Return the device that a process sees as its first, None where it sees none.

    Args:
        value: Its CUDA_VISIBLE_DEVICES: hostile text; None where it is not set.
        uuids: The devices' UUIDs; a prefix that fits one alone names it, as in CUDA.
    """
    if value is None:
        return 0
    first = value[:128].split(",", 1)[0].strip()
    if first.isascii() and first.isdigit():
        return int(first) if int(first) < len(uuids) else None
    fitting = [index for index, uuid in enumerate(uuids) if first.startswith("GPU-") and uuid.startswith(first)]
    return fitting[0] if len(fitting) == 1 else None


def environment_value(pid: int, name: str) -> str | None:
    """Return a variable with which a process was started, None where it is not set or not readable.

    Args:
        pid: Process id as this process sees it.
        name: Name of the variable; only the environment's first 128 KiB are looked at.
    """
    try:
        fd = os.open(f"/proc/{pid}/environ", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.read(fd, _ENVIRONMENT_BYTES)
    except OSError:
        return None
    finally:
        os.close(fd)
    wanted = name.encode() + b"="
    values = (entry[len(wanted) :] for entry in data.split(b"\0") if entry.startswith(wanted))
    found = next(values, None)
    return None if found is None else found.decode("utf-8", "replace")


def _advance(device: _Device, users: Sequence[ProcessSample], passed_s: float) -> None:
    device.energy_j += _power(device) * passed_s
    asked = sum(process.cpu_percent for process in users)
    scale = min(1.0, 100.0 / asked) if asked else 0.0
    device.load += (asked * scale - device.load) * (1 - math.exp(-passed_s / _LOAD_S))
    device.heat += (device.load / 100 - device.heat) * (1 - math.exp(-passed_s / _HEAT_S))
    device.shares = {process.pid: device.load * process.cpu_percent / asked for process in users if asked}


def _power(device: _Device) -> float:
    return _IDLE_W + (_LIMIT_W - _IDLE_W) * device.load / 100


def _digest(seed: int, index: int, step: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{index}/{step}".encode(), digest_size=8).digest()
