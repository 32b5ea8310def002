"""Telemetry of real watches: samples to clients, records at 1 Hz, leases, budgets, on simulated GPUs that say so."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import msgspec
import pytest

from jupyter_agentwatch import Watch
from jupyter_agentwatch.cli.words import event_line, status_text
from jupyter_agentwatch.errors import ControlError, PolicyError
from jupyter_agentwatch.events import (
    AnyEvent,
    BreakerChanged,
    Event,
    Exec,
    Finding,
    Gpu,
    LimitHit,
    Resources,
    decode_event,
)
from jupyter_agentwatch.telemetry.model import Snapshot
from jupyter_agentwatch.wire.client import Client
from jupyter_agentwatch.wire.messages import Leased, LeaseGpu
from jupyter_agentwatch.wire.runtime import control_socket
from tests.nvml_stub import StubDriver, build_stub
from tests.outside import LONG_S, closing, recorded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]

BURN: Final = "import time\nend = time.monotonic() + {}\nwhile time.monotonic() < end: pass"
"""A program that keeps one core, hence one simulated GPU, busy for so many seconds."""

FOR_EVER: Final = ["python3", "-c", "while True: pass"]
BUSY_S: Final = 3 * LONG_S
"""Upper bound of a wait for something that needs processor time, which other programs of the machine take, too."""

RULE: Final = "agentwatch.gpu_outside_lease"

E = TypeVar("E", bound=Event)


def burn(seconds: float) -> list[str]:
    """Return a command that keeps a core busy."""
    return ["python3", "-c", BURN.format(seconds)]


class Listener:
    """A client of its own that hears samples and events of a watch."""

    def __init__(self, watch: Watch) -> None:
        self.client = Client.connect(control_socket(watch.id), name="test")
        self._samples: queue.Queue[tuple[Snapshot, int]] = queue.Queue()
        self._events: queue.Queue[AnyEvent] = queue.Queue()
        decode = msgspec.msgpack.Decoder(Snapshot).decode
        self.client.subscribe_samples(lambda body, left_out: self._samples.put((decode(body), left_out)))
        self.client.subscribe(lambda body: self._events.put(decode_event(body)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def sample(self, is_wanted: Callable[[Snapshot], Any] = lambda _: True) -> Snapshot:
        """Return the next sample of a kind."""
        until = time.monotonic() + BUSY_S
        while True:
            found, _ = self._samples.get(timeout=until - time.monotonic())
            if is_wanted(found):
                return found

    def event(self, kind: type[E], is_wanted: Callable[[E], Any] = lambda _: True) -> E:
        """Return the next event of a kind."""
        until = time.monotonic() + BUSY_S
        while True:
            found = self._events.get(timeout=until - time.monotonic())
            if isinstance(found, kind) and is_wanted(found):
                return found


@pytest.fixture
def simulated(tmp_path: Path, rung: str) -> Iterator[Watch]:
    """A watch with two simulated GPUs."""
    with Watch({"telemetry": {"simulate_gpus": 2}}, tmp_path) as watch:
        yield watch


def ours(snapshot: Snapshot, step: int) -> list[Any]:
    """Return what a step does on simulated GPUs in a sample."""
    return [used for gpu in snapshot.gpus for used in gpu.processes if used.step == step]


def test_samples_show_what_a_step_does_and_reach_every_client(simulated: Watch) -> None:
    """CPU, memory and GPU of a busy command are in the samples, put down to its step, for the owner as for others."""
    with Listener(simulated) as listener:
        running = simulated.start(FOR_EVER)
        found = listener.sample(lambda s: any((used.utilization or 0) > 3 for used in ours(s, running.step)))
        (used,) = ours(found, running.step)
        process = next(each for each in found.resources.processes if each.pid == used.pid)
        assert process.cpu_percent > 2
        assert (used.member, used.attribution) == (True, "exact")
        assert [gpu.index for gpu in found.gpus] == [0, 1]
        assert all(gpu.simulated and gpu.source == "simulated" for gpu in found.gpus)
        assert found.gpus[1].processes == []
        running.kill()
        running.wait()
    table = simulated.telemetry()
    assert set(table["kind"]) == {"gpu", "gpu_process", "resources", "process"}
    on_gpu = simulated.telemetry("gpu_process")
    assert running.step in set(on_gpu["step"])
    assert simulated.telemetry("gpu")["simulated"].all()
    assert list(simulated.telemetry("resources")["cpu_percent"].to_numpy() > 2).count(True) > 0
    with pytest.raises(ValueError, match="gpus"):
        simulated.telemetry("gpus")  # type: ignore[arg-type]


def test_simulated_gpus_say_so_wherever_they_are_shown(simulated: Watch) -> None:
    """Notes, status, records and figures carry the word SIMULATED."""
    assert any("SIMULATED" in note for note in simulated.notes)
    assert "SIMULATED" in status_text(simulated.status())
    with Listener(simulated) as listener:
        simulated.run(burn(1.2), gpu=0)
        listener.event(Gpu, lambda e: e.op == "device" and e.gpu_seconds > 0)
    records = recorded(simulated, Gpu)
    assert {record.op for record in records} >= {"state", "lease", "device", "process", "release"}
    assert all(record.simulated for record in records)
    assert all("SIMULATED" in event_line(record) for record in records)
    figure = simulated.figure("gpu")
    assert "SIMULATED" in figure.layout.title.text
    assert all("SIMULATED" in trace.name for trace in figure.data)


def test_use_under_a_lease_is_expected_and_use_without_one_is_a_finding(simulated: Watch) -> None:
    """Begin and end of a lease are on record; what is used outside of it is told with process, step and evidence."""
    with Listener(simulated) as listener:
        with simulated.lease(0, purpose="training") as lease:
            leased = simulated.start(burn(60))
            listener.event(Gpu, lambda e: e.op == "process" and e.step == leased.step and e.gpu_seconds > 0.05)
            leased.kill()
            leased.wait()
        begin, end = listener_events(simulated)
        assert (begin.op, end.op) == ("lease", "release")
        assert (begin.device, begin.lease, begin.purpose) == (lease.device, lease.lease, "training")
        assert [finding for finding in recorded(simulated, Finding) if finding.rule == RULE] == []

        # The lease covers a second more, because drivers measure backwards.
        free = simulated.start(FOR_EVER)
        finding = listener.event(Finding, lambda e: e.rule == RULE)
        free.kill()
        free.wait()
    assert (finding.step, finding.severity, finding.technique) == (free.step, "high", "T1496")
    assert "SIMULATED GPU 0" in finding.title
    by_seq = {record.seq: record for record in recorded(simulated, Gpu)}
    assert finding.evidence
    for seq in finding.evidence:
        assert (by_seq[seq].op, by_seq[seq].pid, by_seq[seq].step) == ("process", finding.pid, free.step)
        assert by_seq[seq].outside_s > 0


def listener_events(watch: Watch) -> list[Gpu]:
    """Return the records of leases."""
    return [record for record in recorded(watch, Gpu) if record.op in {"lease", "release"}]


def test_a_command_with_a_gpu_has_a_lease_and_sees_that_gpu_alone(simulated: Watch) -> None:
    """`run(gpu=…)` leases the device to the step until it ends, and CUDA finds it, unless the caller chose."""
    show = "printf %s $CUDA_VISIBLE_DEVICES"
    result = simulated.run(show, gpu=1)
    begin, end = listener_events(simulated)
    assert result.stdout == begin.device == end.device
    assert (begin.op, begin.step, end.op, end.step) == ("lease", result.step, "release", result.step)
    assert simulated.run(show, gpu=begin.device).stdout == begin.device
    assert simulated.run(show, gpu=1, env={"CUDA_VISIBLE_DEVICES": "0"}).stdout == "0"
    with Listener(simulated) as listener:
        running = simulated.start(FOR_EVER, gpu=1)
        found = listener.sample(lambda s: any((used.utilization or 0) > 3 for used in ours(s, running.step)))
        assert found.gpus[0].processes == []
        running.kill()
        running.wait()
    assert [finding for finding in recorded(simulated, Finding) if finding.rule == RULE] == []


@pytest.mark.parametrize(
    ("gpu", "purpose", "words"),
    [
        (2, "training", "no GPU 2 here: there are 0 (GPU-SIMULATED-"),
        ("GPU-none", "training", "no GPU GPU-none here"),
        ("\x1b[31m", "training", "no GPU \\x1b[31m here"),
        (0, "", "purpose: must have 1 to 200 characters"),
        (0, "x" * 201, "purpose: must have 1 to 200 characters"),
    ],
)
def test_a_lease_that_cannot_be_had_is_refused(simulated: Watch, gpu: int | str, purpose: str, words: str) -> None:
    """What is wrong is named, nothing is on record, and the watch goes on."""
    with pytest.raises(ControlError) as refused, simulated.lease(gpu, purpose=purpose):
        pytest.fail("the block was entered")
    assert words in str(refused.value)
    if purpose == "training":
        with pytest.raises(ControlError):
            simulated.run("true", gpu=gpu)
    assert listener_events(simulated) == []
    assert simulated.run("true").step == 1


def test_a_lease_ends_with_its_client_and_its_watch(simulated: Watch) -> None:
    """Whoever hangs up gives its leases up; a kill ends the rest; and the log is whole and closed."""
    with Listener(simulated) as listener:
        other = Client.connect(control_socket(simulated.id), name="other")
        lease = other.request(LeaseGpu(gpu=1, purpose="a visit"), Leased)
        other.close()
        assert listener.event(Gpu, lambda e: e.op == "release").lease == lease.lease
    with simulated.lease(0, purpose="to the end"):
        simulated.kill("enough")
    assert [record.op for record in listener_events(simulated)] == ["lease", "release"] * 2
    assert closing(simulated.log).reason == "enough"


def test_what_was_measured_last_is_on_record_after_a_kill(simulated: Watch) -> None:
    """The interval that a kill cuts off is written before the log is closed."""
    with Listener(simulated) as listener:
        simulated.start(FOR_EVER)
        before = listener.event(Resources, lambda e: e.pid == 0 and e.cpu_s > 0)
        base = listener.sample(lambda s: s.t_mono_ns > before.t_mono_ns).resources.cpu_s
        known = listener.sample(lambda s: s.resources.cpu_s > base).resources.cpu_s
        simulated.kill()
    written = [record for record in recorded(simulated, Resources) if not record.pid]
    assert written[-1].seq > before.seq
    assert sum(record.cpu_s for record in written) == pytest.approx(known, abs=0.2)
    closing(simulated.log)


def test_a_used_up_budget_suspends_the_watch(tmp_path: Path, rung: str) -> None:
    """`max_gpu_seconds` freezes; a person's resume grants a tenth more, and no more than that."""
    policy = {"telemetry": {"simulate_gpus": 1}, "gpus": [{"device": 0, "max_gpu_seconds": 0.5}]}
    with Watch(policy, tmp_path) as watch, Listener(watch) as listener:
        watch.start(FOR_EVER, gpu=0)
        first = listener.event(LimitHit)
        assert (first.limit, first.maximum, first.verdict) == ("gpus[0].max_gpu_seconds", 0.5, "deny")
        assert first.value > 0.5
        assert "max_gpu_seconds" in listener.event(BreakerChanged, lambda e: e.after == "frozen").cause
        assert watch.status().state == "frozen"
        watch.resume()
        second = listener.event(LimitHit)
        assert second.value > first.value
        listener.event(BreakerChanged, lambda e: e.after == "frozen")
        assert watch.status().state == "frozen"


def test_only_what_the_policy_grants_can_be_leased(tmp_path: Path, rung: str) -> None:
    """With `gpus` in the policy, another device's lease is refused by name."""
    policy = {"telemetry": {"simulate_gpus": 2}, "gpus": [{"device": 1}]}
    with Watch(policy, tmp_path) as watch:
        with watch.lease(1, purpose="training") as lease:
            assert lease.simulated
        with pytest.raises(ControlError, match="not among the policy's gpus"), watch.lease(0, purpose="training"):
            pytest.fail("the block was entered")


def test_a_recorded_trace_is_shown_as_what_it_is(tmp_path: Path, rung: str, request: pytest.FixtureRequest) -> None:
    """A trace stands for the GPUs, is labelled, and is nobody's use: no finding, no budget."""
    trace = request.path.parent / "fixtures" / "gpu_trace_model.jsonl"
    with Watch({"telemetry": {"trace": str(trace)}}, tmp_path) as watch, Listener(watch) as listener:
        assert any("RECORDED TRACE" in note for note in watch.notes)
        found = listener.sample(lambda s: any(gpu.processes for gpu in s.gpus))
        assert {gpu.source for gpu in found.gpus} == {"trace"}
        assert {used.member for gpu in found.gpus for used in gpu.processes} == {None}
        listener.event(Gpu, lambda e: e.op == "device" and e.gpu_seconds > 0)
        assert "RECORDED TRACE" in watch.figure("gpu").layout.title.text
        assert recorded(watch, Finding) == []


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"telemetry": {"trace": "/nowhere/trace.jsonl"}}, "telemetry.trace: /nowhere/trace.jsonl: the trace cannot"),
        (
            {"telemetry": {"simulate_gpus": 1}, "gpus": [{"device": "GPU-other"}]},
            "gpus[0].device: no GPU 'GPU-other' is simulated; there are 0 to 0: GPU-SIMULATED-",
        ),
    ],
)
def test_a_policy_that_its_gpus_cannot_hold_is_refused(
    tmp_path: Path, rung: str, policy: dict[str, Any], words: str
) -> None:
    """The supervisor names the field and the reason, before anything runs."""
    with pytest.raises(PolicyError) as refused:
        Watch(policy, tmp_path)
    assert words in str(refused.value)


def test_the_drivers_processes_are_told_apart(
    tmp_path: Path, rung: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Through the real NVML binding: a stranger on a GPU is no member and no finding, a step's process is known."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(build_stub(tmp_path_factory.mktemp("nvml")).parent))
    driver = StubDriver(tmp_path_factory.mktemp("driver") / "state")
    for name, value in driver.environment.items():
        monkeypatch.setenv(name, value)
    driver.run(driver.state.devices[0], os.getpid())
    # Elsewhere, a driver's number says nothing: it is the machine's, and ours are another namespace's.
    has_same_numbers = os.stat("/proc/self/ns/pid").st_ino == 0xEFFFFFFC
    with Watch(workspace=tmp_path) as watch, Listener(watch) as listener:
        (gpu,) = listener.sample(lambda s: s.gpus).gpus
        assert (gpu.source, gpu.simulated, gpu.name) == ("nvml", False, "Stub H1")
        assert [(used.pid, used.member) for used in gpu.processes] == [
            (os.getpid(), False if has_same_numbers else None)
        ]
        with pytest.raises(ControlError, match="not among the policy's gpus"), watch.lease(0, purpose="training"):
            pytest.fail("the block was entered")
        assert [note for note in watch.notes if "SIMULATED" in note] == []

        running = watch.start(FOR_EVER)
        pid = listener.event(Exec, lambda e: e.step == running.step).pid
        driver.run(driver.state.devices[0], pid)
        (gpu,) = listener.sample(lambda s: any(used.pid == pid for gpu in s.gpus for used in gpu.processes)).gpus
        (used,) = [each for each in gpu.processes if each.pid == pid]
        assert (used.member, used.step) == ((True, running.step) if has_same_numbers else (None, 0))
        if has_same_numbers:
            assert used.attribution == ("exact" if watch.rung.startswith("A") else "weak")
        assert [finding for finding in recorded(watch, Finding) if "gpu" in finding.rule] == []
    driver.close()


def test_starting_a_watch_loads_no_telemetry() -> None:
    """What a session's start waits for does not grow by telemetry: it is loaded when the sandbox stands."""
    rooms = "jupyter_agentwatch.supervisor.__main__, jupyter_agentwatch.supervisor.core"
    code = f"import {rooms}, jupyter_agentwatch.supervisor.gpu_source, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = done.stdout.split()
    assert "jupyter_agentwatch.supervisor.telemetry_feed" in loaded
    assert [name for name in loaded if name.startswith("jupyter_agentwatch.telemetry")] == []
