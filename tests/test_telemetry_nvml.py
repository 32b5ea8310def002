"""NVML through the real pynvml, over a driver library whose answers each test scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jupyter_agentwatch.telemetry.nvml import NvmlGpus
from tests.nvml_stub import StubDriver, build_stub, load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jupyter_agentwatch.telemetry.model import GpuSample

WALL_NS = 1_800_000_000_000_000_000
WALL_US = WALL_NS // 1000
TICK_NS = 100_000_000
GPU_LOST, UNKNOWN, DRIVER_GONE, NO_PERMISSION = 15, 999, 9, 4


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = build_stub(tmp_path_factory.mktemp("nvml"))
    load(built)
    return built


@pytest.fixture
def driver(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubDriver]:
    made = StubDriver(tmp_path / "driver")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    yield made
    made.close()


@pytest.fixture
def gpus(driver: StubDriver) -> Iterator[NvmlGpus]:
    backend = NvmlGpus()
    yield backend
    backend.close()


class Clock:
    """Asks a backend at times of the test's own choice."""

    def __init__(self, backend: NvmlGpus) -> None:
        self.backend = backend
        self.now_ns = 1_000_000_000

    def look(self, after_ns: int = TICK_NS) -> list[GpuSample]:
        self.now_ns += after_ns
        return self.backend.sample(self.now_ns, WALL_NS + self.now_ns)

    @property
    def wall_us(self) -> int:
        return (WALL_NS + self.now_ns) // 1000


@pytest.fixture
def clock(gpus: NvmlGpus) -> Clock:
    return Clock(gpus)


def gpu(driver: StubDriver, index: int = 0) -> Any:
    return driver.state.devices[index]


def test_a_gpu_is_read_in_physical_units(driver: StubDriver, clock: Clock) -> None:
    """Watts, joules, bytes, degrees, megahertz and errors are what the driver says, in the units of the model."""
    device = gpu(driver)
    device.energy_mj, device.throttle, device.ecc_corrected, device.ecc_uncorrected = 5_000, 4, 3, 1
    device.utilization, device.transfer = 55, 20
    (sample,) = clock.look()
    assert (sample.uuid, sample.name, sample.index, sample.state) == ("GPU-00000000", "Stub H1", 0, "ok")
    assert (sample.power_w, sample.power_limit_w, sample.energy_j) == (70.0, 700.0, 5.0)
    assert (sample.memory_used_bytes, sample.memory_total_bytes) == (1 << 30, 80 << 30)
    assert (sample.temperature_c, sample.sm_clock_mhz, sample.memory_clock_mhz) == (40, 1980, 2619)
    assert (sample.throttle_reasons, sample.ecc_corrected, sample.ecc_uncorrected) == (4, 3, 1)
    assert (sample.utilization, sample.memory_utilization) == (55.0, 20.0)
    assert (sample.source, sample.simulated, clock.backend.no_gpu) == ("nvml", False, None)


def test_each_measurement_comes_once_with_the_drivers_own_stamp(driver: StubDriver, clock: Clock) -> None:
    """The driver's buffer is asked for again and again, and each of its measurements is given on once."""
    clock.look()
    driver.measure(gpu(driver), (clock.wall_us + 10, 40), (clock.wall_us + 20, 60))
    stamps = [(clock.wall_us + 10) * 1000, (clock.wall_us + 20) * 1000]
    (first,) = clock.look()
    (second,) = clock.look()
    driver.measure(gpu(driver), (clock.wall_us - 5, 70))
    (third,) = clock.look()
    assert [reading.t_ns for reading in first.readings] == stamps
    assert [reading.percent for reading in first.readings] == [40.0, 60.0]
    assert (first.utilization, first.stamped) == (60.0, True)
    assert second.readings == []
    assert [reading.percent for reading in third.readings] == [70.0]


def test_history_from_before_the_watch_and_stamps_from_the_future_are_not_taken(
    driver: StubDriver, clock: Clock
) -> None:
    """The first answer holds no old measurements; a stamp far ahead or a percentage over 100 is not believed."""
    now = clock.wall_us
    driver.measure(gpu(driver), (now - 60_000_000, 90), (now + 3_600_000_000, 80), (now, 255), (now + 50, 33))
    (sample,) = clock.look()
    assert [reading.percent for reading in sample.readings] == [33.0]


def test_measurements_go_on_after_the_clock_was_set_back(driver: StubDriver, clock: Clock) -> None:
    """A clock that is set back by an hour does not silence the charts for an hour."""
    clock.look()
    driver.measure(gpu(driver), (clock.wall_us + 10, 40))
    assert len(clock.look()[0].readings) == 1
    hour_ns = 3_600_000_000_000
    driver.measure(gpu(driver), (clock.wall_us - hour_ns // 1000 + 50_000, 50))
    clock.now_ns += TICK_NS
    (sample,) = clock.backend.sample(clock.now_ns, WALL_NS + clock.now_ns - hour_ns)
    assert [reading.percent for reading in sample.readings] == [50.0]


def test_without_a_buffer_the_moment_of_asking_stands_for_the_stamp(driver: StubDriver, clock: Clock) -> None:
    """A device that keeps no samples is asked for its rate, and the sample says that the stamp is ours."""
    driver.state.refused = b"nvmlDeviceGetSamples,"
    gpu(driver).utilization = 12
    (sample,) = clock.look()
    assert (sample.stamped, [(r.t_ns, r.percent) for r in sample.readings]) == (False, [(sample.t_wall_ns, 12.0)])


def test_what_a_device_does_not_support_is_none(driver: StubDriver, clock: Clock) -> None:
    """Refused questions leave holes, never zeros, and do not make an error of the device."""
    driver.state.refused = (
        b"nvmlDeviceGetTotalEccErrors,nvmlDeviceGetPowerUsage,nvmlDeviceGetTotalEnergyConsumption,"
        b"nvmlDeviceGetUtilizationRates,nvmlDeviceGetSamples,nvmlDeviceGetProcessUtilization,"
        b"nvmlDeviceGetMigMode,nvmlDeviceRegisterEvents,nvmlEventSetCreate,"
    )
    (sample,) = clock.look()
    assert sample.state == "ok"
    unknown = (sample.power_w, sample.energy_j, sample.utilization, sample.ecc_corrected, sample.ecc_uncorrected)
    assert unknown == (None,) * 5
    assert (sample.readings, sample.process_utilization, sample.memory_used_bytes) == ([], False, 1 << 30)


def test_a_driver_that_is_older_than_the_binding_still_answers(driver: StubDriver, clock: Clock) -> None:
    """Where the newest form of a call is missing, the one before it is used."""
    driver.state.missing = (
        b"nvmlDeviceGetComputeRunningProcesses_v3,nvmlDeviceGetMemoryInfo_v2,nvmlDeviceGetCurrentClocksEventReasons,"
    )
    gpu(driver).throttle = 8
    driver.run(gpu(driver), 4242)
    (sample,) = clock.look()
    assert [process.pid for process in sample.processes] == [4242]
    assert (sample.memory_used_bytes, sample.throttle_reasons) == ((1 << 30) + 1000, 8)


def test_processes_have_memory_and_stamped_utilisation(driver: StubDriver, clock: Clock) -> None:
    """Per process: memory from the list, utilisation with the driver's stamp; an unused device has no processes."""
    assert clock.look()[0].processes == []
    driver.run(gpu(driver), 4242, memory=7 << 20, sm=35, t_us=clock.wall_us + 7)
    driver.run(gpu(driver), 4343, memory=1 << 20)
    stamp = (clock.wall_us + 7) * 1000
    (sample,) = clock.look()
    first, second = sample.processes
    assert (first.pid, first.memory_bytes, first.utilization, first.t_ns) == (4242, 7 << 20, 35.0, stamp)
    assert (second.pid, second.memory_bytes, second.utilization, second.t_ns) == (4343, 1 << 20, None, 0)
    assert sample.process_utilization


def test_a_measurement_of_a_process_is_held_for_a_second_and_then_forgotten(driver: StubDriver, clock: Clock) -> None:
    """A process that the driver says nothing about any more is not shown as busy for ever."""
    clock.look()
    driver.run(gpu(driver), 4242, sm=35, t_us=clock.wall_us + 7)
    assert clock.look()[0].processes[0].utilization == 35.0
    assert clock.look(500_000_000)[0].processes[0].utilization == 35.0
    assert clock.look(1_000_000_000)[0].processes[0].utilization is None


def test_a_process_that_ends_between_two_calls_is_no_error(driver: StubDriver, clock: Clock) -> None:
    """Lists that change while pynvml reads them leave the device in good state."""
    clock.look()
    driver.run(gpu(driver), 4242)
    driver.run(gpu(driver), 4343, sm=20, t_us=clock.wall_us + 1)
    gpu(driver).grows = 1
    (sample,) = clock.look()
    assert (sample.state, [process.pid for process in sample.processes]) == ("ok", [4242])


def test_a_process_that_was_measured_and_has_ended_is_still_named(driver: StubDriver, clock: Clock) -> None:
    """What a process did in its last moments is in the sample, although no list has it any more."""
    clock.look()
    driver.run(gpu(driver), 4242, sm=80, t_us=clock.wall_us + 3, listed=False)
    (sample,) = clock.look()
    (process,) = sample.processes
    assert (process.pid, process.utilization, process.memory_bytes) == (4242, 80.0, None)


def test_empty_and_absurd_entries_of_the_driver_are_left_out(driver: StubDriver, clock: Clock) -> None:
    """Entries without a process, with a percentage over 100 or a stamp that was seen before are not taken."""
    clock.look()
    driver.run(gpu(driver), 0, sm=50, t_us=clock.wall_us + 1, listed=False)
    driver.run(gpu(driver), 17, sm=4_000_000_000, t_us=clock.wall_us + 1, listed=False)
    driver.run(gpu(driver), 18, sm=50, t_us=clock.wall_us - 30_000_000, listed=False)
    assert clock.look()[0].processes == []


def test_mig_devices_are_devices_of_their_own(driver: StubDriver, clock: Clock) -> None:
    """Each instance has a UUID, a parent and its own processes; its parent lists none of them a second time."""
    whole = gpu(driver)
    whole.mig_mode = 1
    driver.run(whole, 4242)
    for instance in (1, 2):
        part = driver.add(part_of=whole, uuid=f"MIG-{instance}".encode(), gpu_instance=instance, memory_used=instance)
        driver.run(part, 5000 + instance)
    parent, one, two = clock.look()
    assert (parent.parent_uuid, parent.processes, one.parent_uuid) == ("", [], parent.uuid)
    assert [(s.uuid, s.instance, s.index, s.memory_used_bytes) for s in (one, two)] == [
        ("MIG-1", "1.0", 0, 1),
        ("MIG-2", "2.0", 0, 2),
    ]
    assert [process.pid for sample in (one, two) for process in sample.processes] == [5001, 5002]
    assert (one.utilization, one.process_utilization, one.state) == (None, False, "ok")


def test_a_mig_device_that_the_administrator_takes_away_is_no_error(driver: StubDriver, clock: Clock) -> None:
    """A new layout is seen within ten seconds, without an error for the part that is gone."""
    whole = gpu(driver)
    whole.mig_mode = 1
    part = driver.add(part_of=whole, uuid=b"MIG-1", gpu_instance=1)
    assert len(clock.look()) == 2
    part.listed = 0
    assert [(s.uuid, s.state) for s in clock.look(11_000_000_000)] == [("GPU-00000000", "ok")]
    part.listed = 1
    assert [s.uuid for s in clock.look(11_000_000_000)] == ["GPU-00000000", "MIG-1"]


def test_critical_errors_are_told_once(driver: StubDriver, clock: Clock) -> None:
    """XIDs reach the sample of the device that had them, and only the next one."""
    other = driver.add()
    clock.look()
    other.xids[0], other.xids[1], other.xid_count = 79, 31, 2
    assert [sorted(sample.xids) for sample in clock.look()] == [[], [31, 79]]
    assert [sample.xids for sample in clock.look()] == [[], []]


def test_a_lost_gpu_is_an_error_the_others_go_on_and_it_comes_back(driver: StubDriver, clock: Clock) -> None:
    """A GPU that falls off the bus has a state and a reason, and no numbers; after NVML's restart it is read again."""
    driver.add()
    assert [sample.state for sample in clock.look()] == ["ok", "ok"]
    gpu(driver).error = GPU_LOST
    lost, other = clock.look()
    assert (lost.state, lost.error, lost.utilization, lost.uuid) == ("error", "GPU is lost", None, "GPU-00000000")
    assert other.state == "ok"
    before = driver.state.inits
    lost, other = clock.look(1_500_000_000)  # NVML was started anew and lists it without a handle
    assert (driver.state.inits, driver.state.shutdowns) == (before + 1, before)
    assert [(s.uuid, s.state) for s in (lost, other)] == [("GPU-00000000", "error"), ("GPU-00000001", "ok")]
    gpu(driver).error = 0
    assert [sample.state for sample in clock.look(5_000_000_000)] == ["ok", "ok"]
    assert clock.backend.no_gpu is None


def test_a_moments_error_ends_without_a_restart(driver: StubDriver, clock: Clock) -> None:
    """A device that answers again by itself is not torn down."""
    clock.look()
    gpu(driver).error = UNKNOWN
    assert clock.look()[0].state == "error"
    gpu(driver).error = 0
    assert [clock.look()[0].state, clock.look(2_000_000_000)[0].state] == ["ok", "ok"]
    assert driver.state.inits == 1


def test_restarts_become_rarer(driver: StubDriver, clock: Clock) -> None:
    """A GPU that stays lost makes NVML start anew after 1, 2, 4 … 60 s, not at each tick."""
    clock.look()
    gpu(driver).error = GPU_LOST
    starts = []
    for _ in range(3000):  # five minutes at 10 Hz
        before = driver.state.inits
        clock.look()
        if driver.state.inits != before:
            starts.append(round(clock.now_ns / 1e9))
    gaps = [later - earlier for earlier, later in pairwise(starts)]
    assert gaps[:5] == [2, 4, 8, 16, 32]
    assert set(gaps[5:]) == {60}


def test_a_measurement_is_not_seen_twice_across_a_restart(driver: StubDriver, clock: Clock) -> None:
    """After an error and its recovery, readings that were given on before are not given on again."""
    clock.look()
    seen = (clock.wall_us + 10, 40)
    driver.measure(gpu(driver), seen)
    assert len(clock.look()[0].readings) == 1
    gpu(driver).error = GPU_LOST
    clock.look(1)
    clock.look(1_000_000_001)
    gpu(driver).error = 0
    driver.measure(gpu(driver), seen, (clock.wall_us, 50))
    (sample,) = clock.look(2_500_000_000)
    assert (sample.state, [reading.percent for reading in sample.readings]) == ("ok", [50.0])


def test_a_device_that_the_driver_no_longer_lists_is_an_error(driver: StubDriver, clock: Clock) -> None:
    """A GPU that vanishes from the list is not silently missing from the panel."""
    second = driver.add()
    assert len(clock.look()) == 2
    second.listed, driver.state.count = 0, 1
    states = {sample.uuid: (sample.state, sample.error) for sample in clock.look(11_000_000_000)}
    assert states["GPU-00000000"] == ("ok", "")
    assert states["GPU-00000001"] == ("error", "the driver no longer lists this device")


def test_a_driver_that_goes_away_leaves_errors_not_silence(driver: StubDriver, clock: Clock) -> None:
    """When NVML cannot be started again, the known devices say why, and recover with it."""
    clock.look()
    gpu(driver).error = DRIVER_GONE
    driver.state.init_error = DRIVER_GONE
    clock.look()
    (sample,) = clock.look(1_500_000_000)
    assert (sample.uuid, sample.state) == ("GPU-00000000", "error")
    assert "Driver Not Loaded" in sample.error
    gpu(driver).error = driver.state.init_error = 0
    assert clock.look(10_000_000_000)[0].state == "ok"


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [(DRIVER_GONE, "driver", "Driver Not Loaded"), (NO_PERMISSION, "permission", "Insufficient Permissions")],
)
def test_no_gpu_has_a_reason(driver: StubDriver, clock: Clock, error: int, kind: str, words: str) -> None:
    """A driver that cannot be started gives no samples and a typed reason; when it can be, the GPUs appear."""
    driver.state.init_error = error
    assert clock.look() == []
    missing = clock.backend.no_gpu
    assert missing is not None
    assert (missing.kind, words in missing.reason) == (kind, True)
    driver.state.init_error = 0
    assert [sample.state for sample in clock.look(2_000_000_000)] == ["ok"]
    assert clock.backend.no_gpu is None


def test_a_driver_without_devices_says_so(driver: StubDriver, clock: Clock) -> None:
    """A machine with a driver and no card is told apart from one without a driver."""
    driver.state.count = gpu(driver).listed = 0
    assert clock.look() == []
    assert clock.backend.no_gpu is not None
    assert clock.backend.no_gpu.kind == "device"


def test_closing_shuts_nvml_down_and_may_be_repeated(driver: StubDriver, clock: Clock) -> None:
    """Every start of NVML is followed by one shutdown."""
    clock.look()
    clock.backend.close()
    clock.backend.close()
    assert (driver.state.inits, driver.state.shutdowns) == (1, 1)


def in_a_fresh_process(code: str, folder: Path) -> str:
    """Run code with a folder's libraries in front of the machine's."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(Path(__file__).parent.parent)}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


LOOK = """
import sys
from jupyter_agentwatch.telemetry.backend import open_gpus
gpus = open_gpus()
samples = gpus.sample(1, 1, ())
print(len(samples), gpus.no_gpu.kind if gpus.no_gpu else "-", "pynvml" in sys.modules)
"""


def test_without_a_driver_pynvml_is_not_even_imported(tmp_path: Path) -> None:
    """Where the library cannot be loaded, the reason says so, and the binding's start-up cost is saved."""
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"not a library")
    assert in_a_fresh_process(LOOK, tmp_path) == "0 library False"


def test_pynvml_finds_the_library_by_its_name(library: Path, driver: StubDriver) -> None:
    """The way from a fresh process over pynvml to the driver's library is the ordinary one."""
    assert in_a_fresh_process(LOOK, library.parent) == "1 - True"
