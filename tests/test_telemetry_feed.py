"""How samples are kept going and held against budgets: failing and hanging sources, real processes, a real log."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from jupyter_agentwatch.audit.chain import FORMAT
from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.errors import ControlError, PolicyError
from jupyter_agentwatch.events import Finding, LimitHit
from jupyter_agentwatch.policy import Gpu, Policy, Telemetry, parse_policy, policy_from_mapping, policy_to_yaml
from jupyter_agentwatch.sandbox.notify import Gone
from jupyter_agentwatch.sandbox.places import gpu_nodes
from jupyter_agentwatch.supervisor import measuring as measuring_module
from jupyter_agentwatch.supervisor import telemetry_feed
from jupyter_agentwatch.supervisor.gpu_budgets import BudgetedUsage
from jupyter_agentwatch.supervisor.gpu_source import checked_source, find_gpu, source_note
from jupyter_agentwatch.supervisor.measuring import Measuring, Surroundings, packed
from jupyter_agentwatch.supervisor.record import Recorder, open_log
from jupyter_agentwatch.supervisor.telemetry_feed import Measured, TelemetryFeed
from jupyter_agentwatch.telemetry.model import (
    GpuProcess,
    GpuSample,
    NoGpu,
    ProcessSample,
    Reading,
    Resources,
    Snapshot,
)
from jupyter_agentwatch.watch.opening import with_simulated_gpus
from jupyter_agentwatch.watch.samples import Samples
from jupyter_agentwatch.wire.messages import SampleNotice
from tests.outside import LONG_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

SECOND = 1_000_000_000
WALL = 1_800_000_000 * SECOND


def a_gpu(at_ns: int, percent: float = 100.0, **changes: Any) -> GpuSample:
    """Return a sample of GPU 0, on which one process of the sandbox does everything."""
    used = GpuProcess(
        pid=7, start_ticks=7, member=True, attribution="exact", step=1, utilization=percent, t_ns=WALL + at_ns
    )
    sample = GpuSample(
        index=0,
        uuid="GPU-1",
        source="nvml",
        stamped=True,
        t_mono_ns=at_ns + 1,
        t_wall_ns=WALL + at_ns,
        utilization=percent,
        readings=[Reading(t_ns=WALL + at_ns, percent=percent)],
        process_utilization=True,
        processes=[used],
    )
    return msgspec.structs.replace(sample, **changes)


def a_snapshot(at_ns: int, *gpus: GpuSample, processes: Sequence[ProcessSample] = ()) -> Snapshot:
    """Return a snapshot of some GPUs."""
    resources = Resources(t_mono_ns=at_ns, processes=list(processes))
    return Snapshot(seq=0, t_mono_ns=at_ns + 1, t_wall_ns=WALL + at_ns, gpus=list(gpus), resources=resources)


def budgeted(*snapshots: Snapshot, gpu: Gpu | None = None) -> BudgetedUsage:
    """Return the sums after snapshots, with a budget of two seconds."""
    usage = BudgetedUsage([gpu or Gpu(device=0, max_gpu_seconds=2.0)])
    for snapshot in snapshots:
        usage.know(snapshot)
        for sample in snapshot.gpus:
            usage.feed(sample)
    return usage


# -- policy --------------------------------------------------------------------------------------------------------


def test_the_policys_keys_are_read_and_written() -> None:
    """`telemetry` has its defaults, survives a round trip, and a real rate is a number."""
    assert Policy().telemetry == Telemetry(hz=10.0, simulate_gpus=0, trace=None)
    policy = parse_policy("version: 1\ntelemetry: {hz: 2, simulate_gpus: 3}\ngpus: [{device: 2}]\n")
    assert policy.telemetry == Telemetry(hz=2.0, simulate_gpus=3)
    assert parse_policy(policy_to_yaml(policy)) == policy


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"telemetry": {"hz": 0}}, "telemetry.hz: expected"),
        ({"telemetry": {"hz": 51}}, "telemetry.hz: expected"),
        ({"telemetry": {"hz": float("nan")}}, "telemetry.hz: "),
        ({"telemetry": {"simulate_gpus": -1}}, "telemetry.simulate_gpus: expected"),
        ({"telemetry": {"simulate_gpus": 65}}, "telemetry.simulate_gpus: expected"),
        ({"telemetry": {"simulate": 1}}, "did you mean simulate_gpus"),
        ({"telemetry": {"trace": "trace.jsonl"}}, 'telemetry.trace: "trace.jsonl": give an absolute path'),
        ({"telemetry": {"trace": "/a/../b"}}, "telemetry.trace: "),
        ({"telemetry": {"trace": "/t", "simulate_gpus": 1}}, "telemetry.trace: simulate_gpus and trace cannot both"),
        ({"telemetry": {"simulate_gpus": 1}, "gpus": [{"device": 1}]}, "gpus[0].device: 1: only 1 GPUs are simulated"),
        (
            {"telemetry": {"trace": "/t"}, "gpus": [{"device": 0, "max_gpu_seconds": 1}]},
            "gpus[0].max_gpu_seconds: a recorded trace is nobody's use",
        ),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(policy: dict[str, Any], words: str) -> None:
    """The field and the reason are named."""
    with pytest.raises(PolicyError) as refused:
        policy_from_mapping(policy)
    assert words in str(refused.value)


def test_no_real_gpu_is_granted_where_something_stands_for_them() -> None:
    """With simulated GPUs or a trace, no device node of the machine is mounted, whatever the policy names."""
    for telemetry in (Telemetry(simulate_gpus=1), Telemetry(trace="/t")):
        assert gpu_nodes(Policy(gpus=[Gpu(device=0)], telemetry=telemetry)) == ([], [])
    with pytest.raises(PolicyError):
        gpu_nodes(Policy(gpus=[Gpu(device=4095)]))


def test_the_option_for_simulated_gpus_leaves_the_rest_of_a_policy() -> None:
    """`--simulate-gpu` changes the count alone, and what does not go with it is an error."""
    policy = parse_policy("version: 1\ntelemetry: {hz: 2}\n")
    assert with_simulated_gpus(policy, None) == policy
    assert with_simulated_gpus(policy, 4).telemetry == Telemetry(hz=2.0, simulate_gpus=4)
    with pytest.raises(PolicyError, match="cannot both"):
        with_simulated_gpus(Policy(telemetry=Telemetry(trace="/t")), 1)


# -- source --------------------------------------------------------------------------------------------------------


class Source:
    """A source of GPU samples whose every answer a test gives."""

    def __init__(self, answer: Callable[[], list[GpuSample]], no_gpu: NoGpu | None = None) -> None:
        self._answer = answer
        self.no_gpu = no_gpu

    def sample(self, t_mono_ns: int, t_wall_ns: int, processes: Sequence[ProcessSample]) -> list[GpuSample]:
        return self._answer()

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize(
    ("samples", "no_gpu", "words"),
    [
        ([], NoGpu(kind="library", reason="no NVIDIA driver"), "held: no NVIDIA driver; leave it out"),
        ([a_gpu(0, index=1)], None, "the driver lists no such device"),
        ([a_gpu(0, state="error", error="fell off the bus")], None, "fell off the bus"),
        ([a_gpu(0, utilization=None, process_utilization=False)], None, "does not tell this device's utilisation"),
    ],
)
def test_a_budget_that_cannot_be_measured_is_refused(
    monkeypatch: pytest.MonkeyPatch, samples: list[GpuSample], no_gpu: NoGpu | None, words: str
) -> None:
    """A bound on GPU time is an error with the true reason wherever nothing could hold it."""
    policy = Policy(gpus=[Gpu(device=0, max_gpu_seconds=1.0)])
    with monkeypatch.context() as patch:
        patch.setattr("jupyter_agentwatch.telemetry.backend.open_gpus", lambda **_: Source(lambda: samples, no_gpu))
        with pytest.raises(PolicyError) as refused:
            checked_source(policy)
        assert str(refused.value).startswith("gpus[0].max_gpu_seconds: GPU time cannot be measured here")
        assert words in str(refused.value)
        checked_source(Policy(gpus=[Gpu(device=0)]))  # without a budget nothing relies on it


def test_a_budget_that_can_be_measured_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the device answers with its utilisation, or is simulated, the bound is accepted."""
    budget = Policy(gpus=[Gpu(device="GPU-1", max_gpu_seconds=1.0)])
    simulated = Policy(gpus=[Gpu(device=0, max_gpu_seconds=1.0)], telemetry=Telemetry(simulate_gpus=1))
    assert checked_source(simulated)().sample(1, 1, ())[0].simulated
    monkeypatch.setattr("jupyter_agentwatch.telemetry.backend.open_gpus", lambda **_: Source(lambda: [a_gpu(0)]))
    checked_source(budget)
    assert source_note(budget) == ""
    assert "SIMULATED: 1" in source_note(simulated)


def test_a_device_is_found_by_index_or_name() -> None:
    """An index means the whole GPU, never a MIG device of it, which has a name of its own."""
    part = a_gpu(0, uuid="MIG-1", parent_uuid="GPU-1", instance="1.0")
    whole = a_gpu(0)
    assert find_gpu(0, [part, whole]) is whole
    assert find_gpu("MIG-1", [part, whole]) is part
    assert find_gpu("MIG", [part, whole]) is None


# -- budgets -------------------------------------------------------------------------------------------------------


def test_a_budget_counts_what_is_not_known_to_be_somebody_elses() -> None:
    """Members and unattributed use count, strangers' does not, and a GPU's MIG devices count for it."""
    three = [t * SECOND for t in range(4)]

    def by(member: bool | None, **changes: Any) -> list[Snapshot]:
        return [
            a_snapshot(
                t,
                a_gpu(0, state="ok"),
                a_gpu(t, processes=[msgspec.structs.replace(a_gpu(t).processes[0], member=member)], **changes),
            )
            for t in three
        ]

    assert budgeted(*by(True)).overruns(4 * SECOND)[0].used_s == pytest.approx(3)
    assert budgeted(*by(None)).overruns(4 * SECOND)
    assert budgeted(*by(False)).overruns(4 * SECOND) == []
    assert budgeted(*by(True, uuid="MIG-1", parent_uuid="GPU-1")).overruns(4 * SECOND)
    assert budgeted(*by(True, uuid="GPU-2", index=1)).overruns(4 * SECOND) == []


def test_a_budget_is_told_of_once_and_a_resume_grants_a_tenth() -> None:
    """No second word while the watch is suspended; afterwards there is a tenth more, and not more than that."""
    usage = budgeted(*(a_snapshot(t * SECOND, a_gpu(t * SECOND)) for t in range(4)))
    (overrun,) = usage.overruns(4 * SECOND)
    assert (overrun.name, overrun.maximum_s, overrun.blind) == ("gpus[0].max_gpu_seconds", 2.0, "")
    assert usage.overruns(4 * SECOND) == []
    usage.grant_more(4 * SECOND)
    assert usage.overruns(4 * SECOND) == []
    usage.feed(a_gpu(4 * SECOND))
    assert len(usage.overruns(5 * SECOND)) == 1


def test_a_device_that_does_not_answer_ends_the_trust_in_its_budget() -> None:
    """After ten seconds without a measurement nobody knows what is used: that is told, and again after a resume."""
    usage = budgeted(a_snapshot(0, a_gpu(0)))
    lost = a_snapshot(9 * SECOND, a_gpu(9 * SECOND, state="error", error="lost"))
    usage.know(lost)
    assert usage.overruns(9 * SECOND) == []
    (overrun,) = usage.overruns(11 * SECOND)
    assert "10 s" in overrun.blind
    usage.grant_more(12 * SECOND)
    assert usage.overruns(13 * SECOND) == []
    assert len(usage.overruns(30 * SECOND)) == 1


def test_without_a_budget_nothing_is_held() -> None:
    """GPUs of the policy that have no bound make none."""
    assert not BudgetedUsage([Gpu(device=0)])
    assert BudgetedUsage([Gpu(device=0, max_gpu_seconds=1.0)])


# -- what is sent ---------------------------------------------------------------------------------------------------


def test_a_crowd_makes_a_sample_no_longer() -> None:
    """Of 4,000 processes and 4,000 users of a GPU the 64 busiest are sent; the others are counted."""
    crowd = [
        ProcessSample(
            pid=pid,
            start_ticks=1,
            ppid=1,
            name="x" * 15,
            state="R",
            cpu_s=0.0,
            cpu_percent=float(pid % 1000),
            rss_bytes=pid,
            threads=1,
        )
        for pid in range(1, 4001)
    ]
    users = [GpuProcess(pid=pid, utilization=float(pid % 100)) for pid in range(1, 4001)]
    body = packed(a_snapshot(0, a_gpu(0, processes=users), processes=crowd))
    assert len(body) < 32_000
    sent = msgspec.msgpack.decode(body, type=Snapshot)
    assert len(sent.resources.processes) == 64
    assert sent.resources.unread == 4000 - 64
    assert min(each.cpu_percent for each in sent.resources.processes) >= 980
    assert {each.utilization for each in sent.gpus[0].processes} == {98.0, 99.0}


def test_the_owners_ring_is_bounded_and_counts() -> None:
    """The oldest samples go when there are too many bytes; what was not sent is counted; each is given once."""
    ring = Samples(max_bytes=2000)
    for second in range(40):
        ring.put(packed(a_snapshot(second * SECOND, a_gpu(second * SECOND))), 1 if second == 3 else 0)
    assert ring.left_out == 1
    count, kept = ring.since()
    assert count == 40
    assert 1 <= len(kept) < 20
    assert kept[-1].t_wall_ns == WALL + 39 * SECOND
    assert ring.since(count) == (40, [])
    ring.put(packed(a_snapshot(50 * SECOND)), 0)
    assert [each.t_wall_ns for each in ring.since(count)[1]] == [WALL + 50 * SECOND]


def test_the_owners_ring_keeps_minutes_of_many_gpus_in_little_memory() -> None:
    """Samples are compressed in blocks: whoever looks gets each of them in order, from wherever he left off."""
    ring = Samples()
    gpus = [a_gpu(0, uuid=f"GPU-{index}", index=index) for index in range(8)]
    plain = 0
    for tick in range(600):
        sample = packed(a_snapshot(tick * SECOND, *gpus))
        plain += len(sample)
        ring.put(sample, 0)
    assert ring._bytes + ring._newest_bytes < plain / 4
    assert [each.t_wall_ns for each in ring.since()[1]] == [WALL + tick * SECOND for tick in range(600)]
    for seen in (1, 299, 598, 599, 600):
        count, newer = ring.since(seen)
        assert (count, len(newer)) == (600, 600 - seen)
        assert [each.t_wall_ns for each in newer[:1]] == [WALL + seen * SECOND] * (seen < 600)


# -- the feed -------------------------------------------------------------------------------------------------------


class Place:
    """A sandbox's place in the tree of processes: an init and what it has started."""

    shares_network = True

    def __init__(self) -> None:
        self.init = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        self.init_pid = self.init.pid
        self.others: list[subprocess.Popen[bytes]] = []

    def pids(self) -> list[int]:
        return [each.pid for each in self.others]

    def start(self) -> None:
        self.others.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))

    def close(self) -> None:
        for each in (self.init, *self.others):
            each.communicate(b"\n")


class NoTasks:
    """A table of tasks that knows no step."""

    def step_of(self, tid: int) -> int:
        raise Gone


class Reader:
    """A client that takes samples, or is slow."""

    def __init__(self) -> None:
        self.is_slow = False
        self.got: list[SampleNotice] = []
        self.has_come = asyncio.Event()

    def send(self, message: SampleNotice) -> None:
        self.got.append(message)
        self.has_come.set()

    async def next(self, is_wanted: Callable[[Snapshot], object] = lambda _: True) -> Snapshot:
        async with asyncio.timeout(LONG_S):
            while True:
                while self.got:
                    found = msgspec.msgpack.decode(self.got.pop(0).sample, type=Snapshot)
                    if is_wanted(found):
                        return found
                self.has_come.clear()
                await self.has_come.wait()


class Ground:
    """A feed over real processes, a real log and a source of the test's own."""

    def __init__(self, path: Path, policy: Policy) -> None:
        self.path = path
        self.place = Place()
        self.trips: list[str] = []
        self.policy = policy
        self.answer: Callable[[], list[GpuSample]] = list
        self.recorder = Recorder(
            open_log(path, watch="0badcafe", format=FORMAT), "0badcafe", self.trips.append, max_bytes=1 << 30
        )
        self.state = "closed"
        self.loop: asyncio.AbstractEventLoop | None = None
        self.has_tripped = asyncio.Event()

    def source(self) -> Source:
        return Source(self.answer)

    def around(self, is_running: Callable[[], bool], trip: Callable[[str], None]) -> Surroundings:
        return Surroundings(
            policy=self.policy, recorder=self.recorder, step_of=lambda _: 0, is_running=is_running, trip=trip
        )

    def trip(self, why: str) -> None:
        self.trips.append(why)
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.has_tripped.set)

    async def wait_for_trip(self) -> None:
        async with asyncio.timeout(LONG_S):
            await self.has_tripped.wait()

    def feed(self, *readers: Reader) -> TelemetryFeed:
        """Return a feed on the running loop."""
        self.loop = asyncio.get_running_loop()
        measured = Measured(
            self.policy,
            self.place,  # type: ignore[arg-type]
            self.source,
            NoTasks(),  # type: ignore[arg-type]
            self.recorder,
            self.trip,
            lambda: self.state,  # type: ignore[arg-type, return-value]
        )
        made = TelemetryFeed(asyncio.get_running_loop(), measured, readers)  # type: ignore[arg-type]
        for reader in readers:
            made.subscribe(reader)  # type: ignore[arg-type]
        return made

    def findings(self) -> list[Finding]:
        return [event for event in read_events(self.path) if isinstance(event, Finding)]

    def close(self) -> None:
        self.place.close()
        self.recorder.close()


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    """A watch's ground with a budget, whose waits are short."""
    monkeypatch.setattr(telemetry_feed, "_BEGIN_AFTER_S", 0.0)
    monkeypatch.setattr(telemetry_feed, "_AGAIN_AFTER_S", 0.01)
    monkeypatch.setattr(telemetry_feed, "_LOOK_S", 0.01)
    made = Ground(tmp_path / "log", Policy(gpus=[Gpu(device=0, max_gpu_seconds=5.0)], telemetry=Telemetry(hz=50.0)))
    yield made
    made.close()


async def test_a_sampler_that_fails_is_a_finding_and_starts_anew(ground: Ground) -> None:
    """The failure is on record with its reason, a budget that relies on it trips, and samples come again."""
    broken = True

    def answer() -> list[GpuSample]:
        if broken:
            msg = "the library is gone"
            raise RuntimeError(msg)
        return [a_gpu(0)]

    ground.answer = answer
    reader = Reader()
    feed = ground.feed(reader)
    running = asyncio.create_task(feed.run())
    await ground.wait_for_trip()
    broken = False
    await reader.next()
    running.cancel()
    first = ground.findings()[0]
    assert (first.rule, first.severity) == ("agentwatch.telemetry_failed", "high")
    assert "RuntimeError: the library is gone" in first.title
    assert "max_gpu_seconds cannot be held" in ground.trips[0]


async def test_a_driver_that_hangs_is_a_finding(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is told once, a budget that relies on it trips, and the feed ends without waiting for the driver."""
    monkeypatch.setattr(telemetry_feed, "_SILENT_S", 0.1)
    let_go = threading.Event()

    def answer() -> list[GpuSample]:
        let_go.wait(LONG_S)
        return []

    ground.answer = answer
    feed = ground.feed()
    running = asyncio.create_task(feed.run())
    await ground.wait_for_trip()
    monkeypatch.setattr(telemetry_feed, "_ANSWER_S", 0.0)
    with pytest.raises(ControlError, match="no GPU has answered within 0 s"):
        await feed.ready()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    (finding,) = ground.findings()
    assert finding.rule == "agentwatch.telemetry_silent"
    let_go.set()


async def test_a_slow_client_is_told_how_much_it_missed(ground: Ground) -> None:
    """While a client takes nothing, nothing is queued for it; the next sample says how many there were."""
    slow, quick = Reader(), Reader()
    running = asyncio.create_task(ground.feed(slow, quick).run())
    await slow.next()
    slow.is_slow = True
    slow.got.clear()
    for _ in range(3):
        await quick.next()
    assert slow.got == []
    slow.is_slow = False
    slow.has_come.clear()
    async with asyncio.timeout(LONG_S):
        await slow.has_come.wait()
    assert slow.got[0].left_out >= 2
    running.cancel()


async def test_an_empty_sandbox_is_looked_at_once_a_second(ground: Ground) -> None:
    """The rate falls while nothing but init is there, and is the policy's again with the first command."""
    reader = Reader()
    feed = ground.feed(reader)
    running = asyncio.create_task(feed.run())
    await reader.next()
    sampler = feed._sampler
    assert sampler is not None
    assert sampler.hz == pytest.approx(50)
    while sampler.hz > 2:
        await reader.next()
    ground.place.start()
    await reader.next(lambda sample: len(sample.resources.processes) == 2)
    while sampler.hz < 2:
        await reader.next()
    assert sampler.hz == pytest.approx(50)
    running.cancel()


# -- measuring ------------------------------------------------------------------------------------------------------


def test_while_a_watch_is_suspended_no_budget_trips(ground: Ground) -> None:
    """GPU kernels that were launched go on and count; that is held against the watch when it goes on, not before."""
    is_running, trips = True, list[str]()
    measuring = Measuring(ground.around(lambda: is_running, trips.append))
    for second in range(7):
        measuring.take(a_snapshot(second * SECOND, a_gpu(second * SECOND)))
    assert [trip.partition(":")[0] for trip in trips] == ["gpus[0].max_gpu_seconds"]
    is_running = False
    for second in range(7, 9):
        measuring.take(a_snapshot(second * SECOND, a_gpu(second * SECOND)))
    assert len(trips) == 1
    is_running = True
    measuring.take(a_snapshot(9 * SECOND, a_gpu(9 * SECOND, 0.0)))
    assert len(trips) == 1
    measuring.take(a_snapshot(10 * SECOND, a_gpu(10 * SECOND)))
    assert len(trips) == 2
    limits = [event for event in read_events(ground.path) if isinstance(event, LimitHit)]
    assert [round(event.value) for event in limits] == [6, 9]
    measuring.close()
    measuring.take(a_snapshot(11 * SECOND, a_gpu(11 * SECOND)))
    assert len(trips) == 2


def test_the_end_waits_for_what_is_being_written(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interval that has just ended on the sampler's thread is on record before the log may be closed."""
    monkeypatch.setattr(measuring_module, "_LAST_RECORD_S", LONG_S)
    measuring = Measuring(ground.around(lambda: True, ground.trip))
    measuring.take(a_snapshot(0, a_gpu(0)))
    is_writing, may_write, order = threading.Event(), threading.Event(), list[str]()
    record = ground.recorder.record

    def slowly(*arguments: Any, **fields: Any) -> Any:
        is_writing.set()
        assert may_write.wait(LONG_S)
        order.append("written")
        return record(*arguments, **fields)

    def end() -> None:
        measuring.close()
        order.append("closed")

    monkeypatch.setattr(ground.recorder, "record", slowly)
    sampling = threading.Thread(target=measuring.take, args=(a_snapshot(2 * SECOND, a_gpu(2 * SECOND)),))
    sampling.start()
    assert is_writing.wait(LONG_S)
    ending = threading.Thread(target=end)
    ending.start()
    ending.join(0.2)  # without the wait it would be over by now
    may_write.set()
    sampling.join(LONG_S)
    ending.join(LONG_S)
    assert order[-1] == "closed"
    assert set(order[:-1]) == {"written"}
