"""NVIDIA GPUs through NVML: finds them, survives their errors, and says why there are none.

The binding `pynvml` is imported only where the driver's library can be loaded: it costs 35 ms and 5 MiB. A call of NVML
can block for as long as the driver does, so nothing that must stay responsive may wait for `sample`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from jupyter_agentwatch.telemetry.model import GpuSample, NoGpu, NoGpuKind, ProcessSample
from jupyter_agentwatch.telemetry.nvml_device import DeviceReader, Identity, error_sample

__all__ = ["LIBRARY", "NvmlGpus"]

LIBRARY: Final = "libnvidia-ml.so.1"
"""What the driver installs and `pynvml` loads."""

_FIRST_RETRY_NS: Final = 1_000_000_000
_LAST_RETRY_NS: Final = 60_000_000_000
_RELIST_NS: Final = 10_000_000_000
_MAX_XIDS: Final = 16


class NvmlGpus:
    """The `telemetry.backend.GpuBackend` of real GPUs. One thread at a time.

    When a device or the driver refuses, that device's samples have the state "error" and the reason, and the others go
    on. A device that does not come back by itself makes NVML start anew, after 1 s, 2 s, 4 s … 60 s, until every device
    that was ever seen answers again.
    """

    def __init__(self) -> None:
        self.no_gpu: NoGpu | None = NoGpu(kind="other", reason="NVML has not been asked yet")
        self._session: _Session | None = None
        self._readers: dict[str, DeviceReader] = {}
        self._known: dict[str, Identity] = {}
        self._refusal = ""
        self._is_broken = True
        self._retry_ns = 0
        self._patience_ns = _FIRST_RETRY_NS

    def sample(self, t_mono_ns: int, t_wall_ns: int, processes: Sequence[ProcessSample] = ()) -> list[GpuSample]:
        """Look once at every GPU and MIG device; see `telemetry.backend.GpuBackend.sample`."""
        del processes
        if self._is_broken and t_mono_ns >= self._retry_ns:
            self._start(t_mono_ns)
        if self._session is None:
            self._wait(t_mono_ns)
            samples = [error_sample(known, self._refusal, t_mono_ns, t_wall_ns) for known in self._known.values()]
        else:
            samples = self._look(self._session, t_mono_ns, t_wall_ns)
        return sorted(samples, key=lambda sample: (sample.index, sample.instance))

    def close(self) -> None:
        """Shut NVML down. Idempotent."""
        if self._session is not None:
            self._session.close()
            self._session = None
        self._is_broken = True

    def _start(self, t_mono_ns: int) -> None:
        self.close()
        found = _open(t_mono_ns, self._readers)
        if isinstance(found, NoGpu):
            self._refusal = found.reason
            if not self._known:
                self.no_gpu = found
            return
        self._session = found

    def _look(self, session: _Session, t_mono_ns: int, t_wall_ns: int) -> list[GpuSample]:
        samples = session.sample(t_mono_ns, t_wall_ns)
        self._remember(session.readers)
        missing = [known for uuid, known in self._known.items() if uuid not in session.readers]
        for known in missing:
            error = session.unreachable.get(known.index, "the driver no longer lists this device")
            samples.append(error_sample(known, error, t_mono_ns, t_wall_ns))
        for index in session.unreachable.keys() - {known.index for known in missing}:
            samples.append(error_sample(Identity(index, ""), session.unreachable[index], t_mono_ns, t_wall_ns))
        self.no_gpu = None if samples else NoGpu(kind="device", reason="the NVIDIA driver runs and finds no GPU")
        self._is_broken = not samples or any(sample.state == "error" for sample in samples)
        if self._is_broken:
            self._wait(t_mono_ns)
        else:
            self._patience_ns = _FIRST_RETRY_NS
        return samples

    def _wait(self, t_mono_ns: int) -> None:
        """Choose when to try again, unless that is chosen."""
        if self._retry_ns <= t_mono_ns:
            self._retry_ns = t_mono_ns + self._patience_ns
            self._patience_ns = min(2 * self._patience_ns, _LAST_RETRY_NS)

    def _remember(self, listed: dict[str, DeviceReader]) -> None:
        for uuid, known in list(self._known.items()):
            # A MIG device that is gone while its GPU is there was taken apart by the administrator: no error.
            if known.parent_uuid in listed and uuid not in listed:
                del self._known[uuid], self._readers[uuid]
        self._known |= {uuid: reader.identity for uuid, reader in listed.items()}


class _Session:
    """NVML between one start and its end. `readers` are by UUID, `unreachable` holds what the rest says, by index.

    `ever` are the readers of all sessions: what was seen of a device stays known while it is away.
    """

    def __init__(self, nvml: Any, t_mono_ns: int, ever: dict[str, DeviceReader]) -> None:
        self._nvml = nvml
        self._ever = ever
        self.readers: dict[str, DeviceReader] = {}
        self.unreachable: dict[int, str] = {}
        self._relist_ns = t_mono_ns + _RELIST_NS
        self._events: Any = None
        self._list()
        self._listen()

    def sample(self, t_mono_ns: int, t_wall_ns: int) -> list[GpuSample]:
        nvml = self._nvml
        if t_mono_ns >= self._relist_ns:
            self._relist_ns = t_mono_ns + _RELIST_NS
            with contextlib.suppress(nvml.NVMLError):  # each device will say so itself
                self._list()
        xids = self._xids()
        samples: list[GpuSample] = []
        for uuid, reader in self.readers.items():
            critical = xids.get(uuid, [])
            try:
                samples.append(reader.read(t_mono_ns, t_wall_ns, critical))
            except nvml.NVMLError as error:
                samples.append(error_sample(reader.identity, str(error), t_mono_ns, t_wall_ns, critical))
        return samples

    def close(self) -> None:
        nvml = self._nvml
        with contextlib.suppress(nvml.NVMLError):
            if self._events is not None:
                nvml.nvmlEventSetFree(self._events)
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()

    def _list(self) -> None:
        """Enter every device that the driver lists."""
        nvml = self._nvml
        readers: dict[str, DeviceReader] = {}
        unreachable: dict[int, str] = {}
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                identity = Identity(index, nvml.nvmlDeviceGetUUID(handle), _name(nvml, handle))
                parts = list(_parts(nvml, handle, identity))
            except nvml.NVMLError as error:
                unreachable[index] = str(error)
                continue
            for found, part in [(handle, identity), *parts]:
                reader = self._ever.setdefault(part.uuid, DeviceReader(nvml))
                reader.adopt(found, part, is_divided=bool(parts) and part is identity)
                readers[part.uuid] = reader
        self.readers, self.unreachable = readers, unreachable

    def _listen(self) -> None:
        """Ask to be told of critical errors, where the driver does that; `_list` must have run."""
        nvml = self._nvml
        with contextlib.suppress(nvml.NVMLError):
            self._events = nvml.nvmlEventSetCreate()
        for reader in self.readers.values():
            if self._events is not None and not reader.identity.parent_uuid:
                with contextlib.suppress(nvml.NVMLError):
                    nvml.nvmlDeviceRegisterEvents(reader.handle, nvml.nvmlEventTypeXidCriticalError, self._events)

    def _xids(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        if self._events is None:
            return found
        nvml = self._nvml
        by_address = {_address(reader.handle): uuid for uuid, reader in self.readers.items()}
        with contextlib.suppress(nvml.NVMLError):  # ends with a time-out: nothing more to tell
            for _ in range(_MAX_XIDS):
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
                uuid = by_address.get(_address(event.device))
                if uuid is not None and event.eventType == nvml.nvmlEventTypeXidCriticalError:
                    found.setdefault(uuid, []).append(event.eventData)
        return found


def _open(t_mono_ns: int, ever: dict[str, DeviceReader]) -> _Session | NoGpu:
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        reason = f"no NVIDIA driver: {LIBRARY} cannot be loaded ({error})"
        return NoGpu(kind="library", reason=reason[:400])
    nvml: Any = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return NoGpu(kind=_kind(nvml, error), reason=f"NVML cannot be started: {error}")
    try:
        return _Session(nvml, t_mono_ns, ever)
    except nvml.NVMLError as error:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
        return NoGpu(kind=_kind(nvml, error), reason=f"NVML lists no devices: {error}")


def _kind(nvml: Any, error: Any) -> NoGpuKind:
    kinds: dict[int, NoGpuKind] = {
        nvml.NVML_ERROR_LIBRARY_NOT_FOUND: "library",
        nvml.NVML_ERROR_DRIVER_NOT_LOADED: "driver",
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "driver",
        nvml.NVML_ERROR_NO_PERMISSION: "permission",
        nvml.NVML_ERROR_NOT_FOUND: "device",
    }
    return kinds.get(error.value, "other")


def _name(nvml: Any, handle: Any) -> str:
    try:
        return str(nvml.nvmlDeviceGetName(handle))[:200]
    except UnicodeDecodeError:
        return "(its name is not readable)"  # a corrupted infoROM


def _parts(nvml: Any, handle: Any, parent: Identity) -> Iterator[tuple[Any, Identity]]:
    """Yield the MIG devices of a GPU."""
    try:
        if nvml.nvmlDeviceGetMigMode(handle)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return
        places = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except nvml.NVMLError as error:
        if error.value in {nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND}:
            return
        raise
    for place in range(places):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
        except nvml.NVMLError as error:
            if error.value in {nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_ERROR_INVALID_ARGUMENT}:
                continue  # an empty place
            raise
        instance = f"{nvml.nvmlDeviceGetGpuInstanceId(part)}.{nvml.nvmlDeviceGetComputeInstanceId(part)}"
        yield part, Identity(parent.index, nvml.nvmlDeviceGetUUID(part), _name(nvml, part), parent.uuid, instance)


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
