"""A driver that a test scripts: the stub library beside it, compiled with gcc, and the memory that both share.

The product's code and the real `pynvml` run unchanged; only what lies below the C interface of NVML is made up.
"""

from __future__ import annotations

import ctypes
import mmap
import shutil
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["StubDriver", "build_stub", "load"]

_SOURCE = Path(__file__).parent / "programs" / "nvml_stub.c"
_NAME = "libnvidia-ml.so.1"
_DEVICES, _PROCESSES, _SAMPLES, _XIDS = 8, 16, 16, 4


class _Process(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("memory", "t_us")),
        *((name, ctypes.c_uint32) for name in ("pid", "sm", "transfer")),
    ]


class _Sample(ctypes.Structure):
    _fields_ = [("t_us", ctypes.c_uint64), ("value", ctypes.c_uint64)]


_WIDE = ("memory_total", "memory_used", "energy_mj", "throttle", "ecc_corrected", "ecc_uncorrected")
_NARROW = (
    *("error", "utilization", "transfer", "power_mw", "limit_mw", "temperature", "sm_clock", "memory_clock"),
    *("is_part_of", "gpu_instance", "compute_instance", "mig_mode"),
    *("sample_count", "process_count", "xid_count", "grows", "listed"),
)


class _Device(ctypes.Structure):
    _fields_ = [
        ("uuid", ctypes.c_char * 96),
        ("name", ctypes.c_char * 96),
        *((name, ctypes.c_uint64) for name in _WIDE),
        *((name, ctypes.c_uint32) for name in _NARROW),
        ("samples", _Sample * _SAMPLES),
        ("processes", _Process * _PROCESSES),
        ("running", ctypes.c_uint32 * _PROCESSES),
        ("xids", ctypes.c_uint64 * _XIDS),
    ]


class _State(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("init_error", "count", "inits", "shutdowns", "count_error")),
        ("refused", ctypes.c_char * 1024),
        ("missing", ctypes.c_char * 1024),
        ("devices", _Device * _DEVICES),
    ]


def build_stub(folder: Path) -> Path:
    """Compile the library into a folder and return its path; without gcc the test fails and says so."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "the tests of NVML need gcc: .ci/setup.sh test installs it"
    library = folder / _NAME
    # The soname lets a loaded copy stand for the driver's library when pynvml asks for it by name.
    argv = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{_NAME}"]
    subprocess.run([*argv, "-o", str(library), str(_SOURCE)], check=True, timeout=120)
    return library


class StubDriver:
    """The driver's state. `path` names the file that the library maps when NVML is started.

    Args:
        path: File to be made.
        gpus: Number of whole GPUs.
    """

    def __init__(self, path: Path, gpus: int = 1) -> None:
        self.path = path
        path.write_bytes(bytes(ctypes.sizeof(_State)))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), ctypes.sizeof(_State))
        self.state = _State.from_buffer(self._memory)
        self._free = 0
        for _ in range(gpus):
            self.add()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead the library to this driver."""
        return {"NVML_STUB_STATE": str(self.path)}

    def add(self, **values: Any) -> Any:
        """Add a GPU, or with `part_of` (a device) a MIG device, and return it."""
        device = self.state.devices[self._free]
        parent = values.pop("part_of", None)
        plain = {
            "uuid": f"GPU-{self._free:08x}".encode(),
            "name": b"Stub H1",
            "memory_total": 80 << 30,
            "memory_used": 1 << 30,
            "power_mw": 70_000,
            "limit_mw": 700_000,
            "temperature": 40,
            "sm_clock": 1980,
            "memory_clock": 2619,
            "listed": 1,
        }
        for name, value in {**plain, **values}.items():
            setattr(device, name, value)
        if parent is None:
            self.state.count += 1
        else:
            device.is_part_of = 1 + next(i for i in range(_DEVICES) if self.state.devices[i].uuid == parent.uuid)
        self._free += 1
        return device

    def measure(self, device: Any, *samples: tuple[int, int]) -> None:
        """Make (time stamp in µs, percent) the utilisation samples that the driver holds."""
        for place, (t_us, percent) in enumerate(samples):
            device.samples[place].t_us, device.samples[place].value = t_us, percent
        device.sample_count = len(samples)

    def run(
        self, device: Any, pid: int, *, sm: int = 0, t_us: int = 0, memory: int = 1 << 20, listed: bool = True
    ) -> Any:
        """Put a process on a device; `listed` says whether it still runs."""
        place = device.process_count
        process = device.processes[place]
        process.pid, process.sm, process.t_us, process.memory = pid, sm, t_us, memory
        device.running[place] = int(listed)
        device.process_count = place + 1

    def close(self) -> None:
        """Give the mapping up."""
        del self.state
        self._memory.close()


def load(library: Path) -> None:
    """Make the stub the NVML library of this process."""
    ctypes.CDLL(str(library))
