"""Reads one GPU or MIG device through `pynvml`: each measurement once, with the driver's time stamp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from jupyter_agentwatch.telemetry.model import GpuProcess, GpuSample, Reading

__all__ = ["DeviceReader", "Identity", "error_sample"]

_SLOW_EVERY_NS: Final = 1_000_000_000
_BELIEVED_US: Final = 5_000_000
_HOLDS_US: Final = 1_000_000
_MAX_READINGS: Final = 512
_MAX_PROCESSES: Final = 1024

_PROCESS_LISTS: Final = (
    ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"),
    ("nvmlDeviceGetGraphicsRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v2"),
    ("nvmlDeviceGetMPSComputeRunningProcesses_v3", "nvmlDeviceGetMPSComputeRunningProcesses_v2"),
)
"""The newest form of each call and the one before it, for a driver that is older than the binding."""

_VALUE_FIELDS: Final = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""Members of the union nvmlValue_t in the order of nvmlValueType_t."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What stays of a device as long as the driver runs.

    Attributes:
        index: Position in the driver's list; a MIG device has its parent's.
        uuid: "GPU-…" or "MIG-…".
        name: Model.
        parent_uuid: Of a MIG device, else "".
        instance: Of a MIG device, as "1.0", else "".
    """

    index: int
    uuid: str
    name: str = ""
    parent_uuid: str = ""
    instance: str = ""


@dataclass(slots=True)
class _Slow:
    """What changes slowly, or is dear to ask for."""

    at_ns: int = -_SLOW_EVERY_NS
    values: dict[str, Any] = field(default_factory=dict)


class DeviceReader:
    """Asks one device. What it does not support is asked for once; any other refusal is raised.

    Args:
        nvml: The module `pynvml`. `adopt` must be called before `read`.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self.handle: Any = None
        self.identity = Identity(0, "")
        self._is_divided = False
        self._unsupported: set[tuple[Any, ...]] = set()
        self._slow = _Slow()
        self._seen_us = 0
        self._processes_seen_us = 0
        self._latest: dict[int, tuple[int, float, float]] = {}

    def adopt(self, handle: Any, identity: Identity, *, is_divided: bool) -> None:
        """Take what the driver's list says now; which measurements were seen stays known.

        Args:
            handle: The device's handle since NVML was started.
            identity: What stays of it.
            is_divided: Its processes run on its MIG devices, which list them.
        """
        self.handle, self.identity, self._is_divided = handle, identity, is_divided
        self._unsupported.clear()

    def read(self, t_mono_ns: int, t_wall_ns: int, xids: list[int]) -> GpuSample:
        """Look once.

        Args:
            t_mono_ns: Monotonic clock, nanoseconds.
            t_wall_ns: Unix time, nanoseconds.
            xids: Critical errors that were reported for this device.

        Raises:
            pynvml.NVMLError: The device does not answer.
        """
        memory = self._memory()
        rates = self._ask("nvmlDeviceGetUtilizationRates")
        readings, stamped = self._readings(t_wall_ns, rates)
        if t_mono_ns - self._slow.at_ns >= _SLOW_EVERY_NS:
            self._slow = _Slow(t_mono_ns, self._slow_values())
        power, energy = self._ask("nvmlDeviceGetPowerUsage"), self._ask("nvmlDeviceGetTotalEnergyConsumption")
        processes, is_measured = self._processes(t_wall_ns)
        utilization = readings[-1].percent if readings and stamped else _percent(rates.gpu if rates else None)
        return GpuSample(
            **_identity(self.identity),
            source="nvml",
            t_mono_ns=t_mono_ns,
            t_wall_ns=t_wall_ns,
            utilization=utilization,
            memory_utilization=_percent(rates.memory if rates else None),
            readings=readings,
            stamped=stamped,
            memory_used_bytes=memory.used if memory else None,
            memory_total_bytes=memory.total if memory else None,
            power_w=None if power is None else power / 1e3,
            energy_j=None if energy is None else energy / 1e3,
            temperature_c=self._ask("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU),
            xids=xids[:64],
            process_utilization=is_measured,
            processes=processes,
            **self._slow.values,
        )

    def _ask(self, name: str, *arguments: Any, remember: tuple[Any, ...] | None = None) -> Any:
        """Call NVML; None where the device, the driver or the binding has no answer to this question."""
        key = remember or (name, *arguments)
        if key in self._unsupported:
            return None
        nvml = self._nvml
        try:
            return getattr(nvml, name)(self.handle, *arguments)
        except (AttributeError, UnicodeDecodeError):
            self._unsupported.add(key)
        except nvml.NVMLError as error:
            if error.value in _never(nvml):
                self._unsupported.add(key)
            elif error.value not in _not_now(nvml):
                raise
        return None

    def _memory(self) -> Any:
        # The second form tells what the driver reserves apart from what is used, as nvidia-smi shows it.
        newer = self._ask("nvmlDeviceGetMemoryInfo", getattr(self._nvml, "nvmlMemory_v2", None))
        return newer or self._ask("nvmlDeviceGetMemoryInfo")

    def _readings(self, t_wall_ns: int, rates: Any) -> tuple[list[Reading], bool]:
        now_us = t_wall_ns // 1000
        self._seen_us = _since(self._seen_us, now_us)
        nvml = self._nvml
        key = ("samples",)
        found = self._ask("nvmlDeviceGetSamples", nvml.NVML_GPU_UTILIZATION_SAMPLES, self._seen_us, remember=key)
        if key in self._unsupported:
            percent = _percent(rates.gpu if rates else None)
            return ([] if percent is None else [Reading(t_ns=t_wall_ns, percent=percent)]), False
        kind, samples = found or (1, [])
        if not 0 <= kind < len(_VALUE_FIELDS):
            return [], True
        fresh = {
            sample.timeStamp: percent
            for sample in samples
            if self._seen_us < sample.timeStamp <= now_us + _BELIEVED_US
            and (percent := _percent(getattr(sample.sampleValue, _VALUE_FIELDS[kind]))) is not None
        }
        self._seen_us = max(fresh, default=self._seen_us)
        return [Reading(t_ns=t * 1000, percent=fresh[t]) for t in sorted(fresh)[-_MAX_READINGS:]], True

    def _slow_values(self) -> dict[str, Any]:
        nvml = self._nvml
        limit = self._ask("nvmlDeviceGetEnforcedPowerLimit")
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:
            reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        counter = nvml.NVML_VOLATILE_ECC
        return {
            "power_limit_w": None if limit is None else limit / 1e3,
            "sm_clock_mhz": self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            "throttle_reasons": reasons,
            "ecc_corrected": self._ask("nvmlDeviceGetTotalEccErrors", nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, counter),
            "ecc_uncorrected": self._ask(
                "nvmlDeviceGetTotalEccErrors", nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, counter
            ),
        }

    def _processes(self, t_wall_ns: int) -> tuple[list[GpuProcess], bool]:
        if self._is_divided:
            return [], False
        is_measured = self._measure_processes(t_wall_ns // 1000)
        memory: dict[int, int | None] = {}
        for names in _PROCESS_LISTS:
            for process in self._list(names):
                memory[process.pid] = max(process.usedGpuMemory or 0, memory.get(process.pid) or 0) or None
        pids = sorted(pid for pid in memory.keys() | self._latest.keys() if pid > 0)[:_MAX_PROCESSES]
        processes = []
        for pid in pids:
            t_us, busy, transfer = self._latest.get(pid, (0, None, None))
            processes.append(
                GpuProcess(
                    pid=pid,
                    memory_bytes=memory.get(pid),
                    utilization=busy,
                    memory_utilization=transfer,
                    t_ns=t_us * 1000,
                )
            )
        return processes, is_measured

    def _list(self, names: tuple[str, ...]) -> list[Any]:
        for name in names:
            found = self._ask(name)
            if found is not None or (name,) not in self._unsupported:
                return list(found or [])
        return []

    def _measure_processes(self, now_us: int) -> bool:
        """Take new measurements per process; False where the driver does not make them on this device."""
        self._processes_seen_us = _since(self._processes_seen_us, now_us)
        key = ("process utilisation",)
        found = self._ask("nvmlDeviceGetProcessUtilization", self._processes_seen_us, remember=key) or []
        for sample in found:
            busy, transfer = _percent(sample.smUtil), _percent(sample.memUtil)
            # Drivers also return empty and stale entries here.
            believable = self._processes_seen_us < sample.timeStamp <= now_us + _BELIEVED_US
            if sample.pid > 0 and believable and busy is not None and transfer is not None:
                known = self._latest.get(sample.pid)
                if known is None or known[0] < sample.timeStamp:
                    self._latest[sample.pid] = sample.timeStamp, busy, transfer
        newest = max((t for t, _, _ in self._latest.values()), default=0)
        self._processes_seen_us = max(self._processes_seen_us, newest)
        old = [pid for pid, (t, _, _) in self._latest.items() if not now_us - _HOLDS_US <= t <= now_us + _BELIEVED_US]
        for pid in old:
            del self._latest[pid]
        return key not in self._unsupported


def error_sample(identity: Identity, error: str, t_mono_ns: int, t_wall_ns: int, xids: Sequence[int] = ()) -> GpuSample:
    """Return the sample of a device that does not answer: its state and the reason, and no numbers."""
    stamps: dict[str, Any] = {"t_mono_ns": t_mono_ns, "t_wall_ns": t_wall_ns, "xids": list(xids[:64])}
    return GpuSample(**_identity(identity), **stamps, source="nvml", state="error", error=error[:512])


def _identity(identity: Identity) -> dict[str, Any]:
    return {name: getattr(identity, name) for name in ("index", "uuid", "name", "parent_uuid", "instance")}


def _since(seen_us: int, now_us: int) -> int:
    """Return the time after which measurements are new: a second ago at first and after the clock was set back."""
    return seen_us if 0 < seen_us <= now_us + _BELIEVED_US else max(now_us - _HOLDS_US, 0)


def _percent(value: float | None) -> float | None:
    return float(value) if value is not None and 0 <= value <= 100 else None


def _never(nvml: Any) -> tuple[int, ...]:
    return (
        nvml.NVML_ERROR_NOT_SUPPORTED,
        nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        nvml.NVML_ERROR_NO_PERMISSION,
        nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    )


def _not_now(nvml: Any) -> tuple[int, ...]:
    # NVML_SUCCESS: what pynvml raises for "no process has used the device", because it expects the call to say that its
    # buffer is too small. NVML_ERROR_INSUFFICIENT_SIZE: something came between the two calls that it makes.
    return (
        nvml.NVML_SUCCESS,
        nvml.NVML_ERROR_NOT_FOUND,
        nvml.NVML_ERROR_INSUFFICIENT_SIZE,
        nvml.NVML_ERROR_NO_DATA,
        nvml.NVML_ERROR_NOT_READY,
        nvml.NVML_ERROR_TIMEOUT,
    )
