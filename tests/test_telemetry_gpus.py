"""GPUs that are simulated or replayed: what they show, what they say about themselves, and what they refuse."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_agentwatch.telemetry.backend import open_gpus
from jupyter_agentwatch.telemetry.model import GpuProcess, GpuSample, NoGpu, ProcessSample, Reading
from jupyter_agentwatch.telemetry.recording import record
from jupyter_agentwatch.telemetry.simulated import SimulatedGpus, bound_device, environment_value
from jupyter_agentwatch.telemetry.trace import TraceError, TraceGpus, read_trace

if TYPE_CHECKING:
    from collections.abc import Sequence

FIXTURE = Path(__file__).parent / "fixtures" / "gpu_trace_model.jsonl"
WALL_NS = 1_800_000_000_000_000_000
SECOND_NS = 1_000_000_000


def a_process(pid: int, percent: float, **changes: Any) -> ProcessSample:
    sample = ProcessSample(
        pid=pid,
        start_ticks=1,
        ppid=1,
        name="python3",
        state="R",
        cpu_s=1.0,
        cpu_percent=percent,
        rss_bytes=100 << 20,
        threads=1,
    )
    return msgspec.structs.replace(sample, **changes)


def run(gpus: SimulatedGpus, processes: Sequence[ProcessSample], seconds: float = 10.0) -> list[GpuSample]:
    """Let the model run at 10 Hz; returns the last samples."""
    samples: list[GpuSample] = []
    for tick in range(round(seconds * 10) + 1):
        now_ns = SECOND_NS + tick * SECOND_NS // 10
        samples = gpus.sample(now_ns, WALL_NS + now_ns, processes)
    return samples


def simulated(count: int, bound: dict[int, str] | None = None, seed: int = 0) -> SimulatedGpus:
    return SimulatedGpus(count, seed=seed, environment=lambda pid, _name: (bound or {}).get(pid))


def test_every_simulated_sample_says_that_it_is() -> None:
    """Neither an idle nor a busy device can be taken for a real one."""
    for processes in ([], [a_process(7, 100.0)]):
        samples = run(simulated(3), processes)
        assert [(s.simulated, s.source, "SIMULATED" in s.uuid) for s in samples] == [(True, "simulated", True)] * 3


def test_the_simulation_follows_the_processes_cpu_use() -> None:
    """One busy core asks for a whole device, half a core for half of it, and power and heat follow."""
    idle, half, full = (run(simulated(1), [a_process(7, percent)])[0] for percent in (0.0, 50.0, 100.0))
    assert idle.utilization == 0.0
    assert half.utilization == pytest.approx(50, abs=2)
    assert full.utilization == pytest.approx(100, abs=2)
    for lower, higher in ((idle, half), (half, full)):
        assert (lower.power_w or 0) + 50 < (higher.power_w or 0)
        assert (lower.temperature_c or 0) + 5 < (higher.temperature_c or 0)
        assert (lower.energy_j or 0) < (higher.energy_j or 0)


def test_what_is_asked_for_in_excess_is_shared() -> None:
    """Two processes that ask for more than there is get their parts, and no device shows more than 100 %."""
    (sample,) = run(simulated(1), [a_process(7, 300.0), a_process(8, 100.0)])
    shares = {process.pid: process.utilization or 0 for process in sample.processes}
    assert sample.utilization is not None
    assert 98 <= sample.utilization <= 100
    assert shares[7] == pytest.approx(75, abs=2)
    assert shares[8] == pytest.approx(25, abs=2)


def test_a_process_uses_the_device_that_it_is_bound_to() -> None:
    """CUDA_VISIBLE_DEVICES decides; an empty one means no device, none at all means the first."""
    processes = [a_process(pid, 90.0) for pid in (7, 8, 9)]
    samples = run(simulated(2, {8: "1", 9: ""}), processes)
    assert [[process.pid for process in sample.processes] for sample in samples] == [[7], [8]]


def test_a_new_program_in_the_same_process_is_bound_anew() -> None:
    """After an exec the environment may be another one."""
    bound = {7: "0"}
    gpus = simulated(2, bound)
    assert run(gpus, [a_process(7, 90.0)])[0].processes
    bound[7] = "1"
    assert run(gpus, [a_process(7, 90.0, name="train")])[1].processes


def test_the_same_seed_gives_the_same_samples() -> None:
    """A lesson shows the same curve each time, and another seed another one."""
    one, same, other = (run(simulated(2, seed=seed), [a_process(7, 60.0)]) for seed in (1, 1, 2))
    assert one == same
    assert one != other


@pytest.mark.parametrize("count", [0, -1, 65])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    """The number is named, with what is allowed."""
    with pytest.raises(ValueError, match=rf"{count} is not between 1 and 64"):
        SimulatedGpus(count)


@given(st.one_of(st.none(), st.text(max_size=300)), st.integers(1, 8))
def test_any_text_names_a_device_that_exists_or_none(value: str | None, count: int) -> None:
    """A hostile CUDA_VISIBLE_DEVICES never leads out of the list."""
    found = bound_device(value, [f"GPU-{index}" for index in range(count)])
    assert found is None or 0 <= found < count


@pytest.mark.parametrize(
    ("value", "device"),
    [(None, 0), ("1", 1), ("1,0", 1), (" 1 ", 1), ("2", None), ("-1", None), ("", None), ("GPU-b", 1), ("GPU-", None)],
)
def test_devices_are_named_as_cuda_names_them(value: str | None, device: int | None) -> None:
    """By index or by a UUID's unique beginning; the first entry counts."""
    assert bound_device(value, ["GPU-a1", "GPU-b2"]) == device


def test_the_environment_is_the_one_of_the_process() -> None:
    """The variable is read from the kernel's record of the process, and a process that is gone has none."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "3,4", "XCUDA_VISIBLE_DEVICES": "9"}
    code = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert environment_value(process.pid, "CUDA_VISIBLE_DEVICES") == "3,4"
        assert environment_value(process.pid, "NVIDIA_NO_SUCH") is None
        process.communicate()
    assert environment_value(process.pid, "CUDA_VISIBLE_DEVICES") is None


def test_only_one_stand_in_can_be_asked_for() -> None:
    """A simulation and a trace at once is an error, not a silent choice."""
    with pytest.raises(ValueError, match="only one"):
        open_gpus(simulate=1, trace=FIXTURE)
    assert isinstance(open_gpus(simulate=2), SimulatedGpus)
    assert isinstance(open_gpus(trace=FIXTURE), TraceGpus)


# Traces


def test_the_trace_that_is_shipped_replays_from_idle_to_busy() -> None:
    """The fixture is valid, says that it is not real, and shows its load, with distinct readings moved to now."""
    gpus = TraceGpus(FIXTURE)
    samples = [gpus.sample(SECOND_NS + t * SECOND_NS // 10, WALL_NS + t * SECOND_NS // 10) for t in range(60)]
    readings = [reading for tick in samples for reading in tick[0].readings]
    stamps = [reading.t_ns for reading in readings]
    assert {(s.source, s.simulated, s.state) for tick in samples for s in tick} == {("trace", True, "ok")}
    assert sorted(set(stamps)) == stamps
    assert WALL_NS - SECOND_NS <= stamps[0] <= stamps[-1] <= WALL_NS + 7 * SECOND_NS
    assert min(reading.percent for reading in readings) == 0
    assert max(reading.percent for reading in readings) > 90


def test_a_replay_at_another_speed_shows_every_measurement() -> None:
    """Lines that pass between two ticks lose none of their readings, and their distance shrinks with the speed."""
    slow, fast = (
        [
            reading
            for tick in range(ticks)
            for reading in gpus.sample(SECOND_NS + tick * SECOND_NS // 10, WALL_NS)[0].readings
        ]
        for gpus, ticks in ((TraceGpus(FIXTURE), 60), (TraceGpus(FIXTURE, speed=10.0), 6))
    )
    most = min(len(slow), len(fast))
    assert most > 20
    assert [reading.percent for reading in slow[:most]] == [reading.percent for reading in fast[:most]]
    assert (fast[9].t_ns - fast[0].t_ns) * 10 == pytest.approx(slow[9].t_ns - slow[0].t_ns, rel=0.01)


def test_a_trace_that_is_over_says_so() -> None:
    """After the last line there are no numbers that could be taken for a measurement."""
    gpus = TraceGpus(FIXTURE, speed=1000.0)
    gpus.sample(SECOND_NS, WALL_NS)
    over = gpus.sample(2 * SECOND_NS, WALL_NS)
    assert {(sample.state, sample.utilization, sample.error) for sample in over} == {
        ("ended", None, "the recorded trace is over")
    }


def a_trace(*lines: bytes, header: bytes | None = None) -> bytes:
    first = b'{"format":"agentwatch-gpu-trace","version":1,"recorded":"nvml","t_wall_ns":1000}'
    return b"".join(line + b"\n" for line in [header or first, *lines])


TICK = b'{"t_s":0.5,"gpus":[{"index":0,"uuid":"GPU-1","source":"nvml","utilization":50.0}]}'


def test_a_recorded_process_is_nobody_here(tmp_path: Path) -> None:
    """A trace that claims an exact owner does not put its use down to a process of this machine."""
    claimed = GpuProcess(pid=os.getpid(), member=True, attribution="exact", step=3, sandbox_pid=2, start_ticks=5)
    sample = GpuSample(index=0, uuid="GPU-1", source="nvml", processes=[claimed])
    path = tmp_path / "trace"
    path.write_bytes(a_trace(b'{"t_s":0,"gpus":[' + msgspec.json.encode(sample) + b"]}"))
    (replayed,) = TraceGpus(path).sample(SECOND_NS, WALL_NS)
    assert replayed.processes == [GpuProcess(pid=os.getpid())]
    assert (replayed.source, replayed.simulated) == ("trace", False)


@pytest.mark.parametrize(
    ("data", "line", "words"),
    [
        (b"", 1, "empty"),
        (a_trace(), 2, "without samples"),
        (a_trace(TICK)[:-1], 2, "cut off"),
        (a_trace(TICK, TICK[:-9]), 3, "truncated"),
        (a_trace(b"\xff\xfe{}"), 2, "malformed"),
        (a_trace(TICK, TICK.replace(b"0.5", b"0.4")), 3, "time must not go back"),
        (a_trace(TICK.replace(b"50.0", b"101")), 2, "$.gpus[0].utilization"),
        (a_trace(TICK.replace(b"50.0", b"NaN")), 2, "malformed"),
        (a_trace(TICK.replace(b"0.5", b"1e999")), 2, "t_s"),
        (a_trace(TICK.replace(b'"index":0', b'"index":-1')), 2, "index"),
        (a_trace(TICK.replace(b'"utilization"', b'"utilisation"')), 2, "unknown field `utilisation`"),
        (a_trace(TICK.replace(b"GPU-1", b"x" * 600)), 2, "length <= 512"),
        (a_trace(b"[" * 100_000), 2, ""),
        (a_trace(b'"' + b"x" * 2**20 + b'"'), 2, "longer than 1048576 bytes"),
        (a_trace(TICK, header=TICK), 1, "unknown field"),
        (a_trace(TICK, header=b'{"format":"other","version":1,"recorded":"nvml","t_wall_ns":1}'), 1, "Invalid enum"),
        (
            a_trace(TICK, header=b'{"format":"agentwatch-gpu-trace","version":2,"recorded":"nvml","t_wall_ns":1}'),
            1,
            "version 2 of the format; this program reads version 1",
        ),
    ],
)
def test_a_bad_trace_is_refused_with_its_line(tmp_path: Path, data: bytes, line: int, words: str) -> None:
    """Short, corrupt and hostile files end in one error that names file, line and reason."""
    path = tmp_path / "trace.jsonl"
    path.write_bytes(data)
    with pytest.raises(TraceError) as error:
        TraceGpus(path)
    assert f"trace.jsonl: line {line}: " in str(error.value)
    assert words in str(error.value)


@given(st.binary(max_size=400))
def test_no_bytes_break_the_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever a line holds, the answer is a trace or a TraceError."""
    path = tmp_path_factory.mktemp("trace") / "t"
    path.write_bytes(a_trace(TICK, data))
    try:
        read_trace(path)
    except TraceError as error:
        assert "line " in str(error)  # noqa: PT017 - either outcome is right


def test_a_trace_must_be_a_file(tmp_path: Path) -> None:
    """A FIFO does not hang the monitor, and a missing file is an error of ours."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(TraceError, match="regular file"):
        TraceGpus(tmp_path / "fifo")
    with pytest.raises(TraceError, match="cannot be read"):
        TraceGpus(tmp_path / "missing")


@pytest.mark.parametrize("speed", [0, -1, 1001, float("nan")])
def test_a_speed_out_of_range_is_refused(speed: float) -> None:
    """The number is named."""
    with pytest.raises(ValueError, match="speed of a trace"):
        TraceGpus(FIXTURE, speed=speed)


class Scripted:
    """A backend that gives what it is told, and counts being closed."""

    def __init__(self, samples: list[GpuSample], no_gpu: NoGpu | None = None) -> None:
        self.no_gpu = no_gpu
        self.samples = samples
        self.closed = 0

    def sample(self, t_mono_ns: int, t_wall_ns: int, processes: Sequence[ProcessSample]) -> list[GpuSample]:
        return [msgspec.structs.replace(s, t_mono_ns=t_mono_ns, t_wall_ns=t_wall_ns) for s in self.samples]

    def close(self) -> None:
        self.closed += 1


def test_what_is_recorded_can_be_replayed(tmp_path: Path) -> None:
    """A recording keeps every field, for its owner only, and the replay gives it back."""
    sample = GpuSample(
        index=0,
        uuid="GPU-1",
        source="nvml",
        utilization=12.5,
        readings=[Reading(t_ns=WALL_NS, percent=12.5)],
        processes=[GpuProcess(pid=77, utilization=3.0, t_ns=WALL_NS)],
    )
    backend, path = Scripted([sample]), tmp_path / "trace"
    assert record(path, 0.1, hz=50, note="idle", gpus=backend) >= 2
    assert (backend.closed, path.stat().st_mode & 0o777) == (1, 0o600)
    header, ticks = read_trace(path)
    assert (header.recorded, header.note) == ("nvml", "idle")
    assert all(tick.gpus[0].processes == sample.processes for tick in ticks)
    (replayed,) = TraceGpus(path).sample(SECOND_NS, WALL_NS)
    assert (replayed.utilization, len(replayed.readings)) == (12.5, 1)


def test_a_recording_overwrites_nothing_and_needs_a_gpu(tmp_path: Path) -> None:
    """An existing file stays, and without a GPU no file is made and the reason is named."""
    path = tmp_path / "trace"
    path.write_text("mine")
    with pytest.raises(TraceError, match="File exists"):
        record(path, 0.1, gpus=open_gpus(simulate=1))
    assert path.read_text() == "mine"
    missing = Scripted([], NoGpu(kind="driver", reason="no driver today"))
    with pytest.raises(TraceError, match="no driver today"):
        record(tmp_path / "other", 0.1, gpus=missing)
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="seconds"):
        record(tmp_path / "other", 0, gpus=open_gpus(simulate=1))
