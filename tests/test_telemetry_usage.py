"""Sums of GPU use, leases, and the records that go into the log."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_agentwatch.cli.words import event_line
from jupyter_agentwatch.events import AnyEvent, Gpu, Resources, decode_event, encode_event
from jupyter_agentwatch.telemetry.digest import Digest, Entry
from jupyter_agentwatch.telemetry.leases import GRACE_NS, LeaseBook, LeaseError
from jupyter_agentwatch.telemetry.model import GpuProcess, GpuSample, ProcessSample, Reading, Snapshot
from jupyter_agentwatch.telemetry.model import Resources as ProcessTotals
from jupyter_agentwatch.telemetry.usage import Usage, Use
from jupyter_agentwatch.testing.builders import event

MS = 1_000_000
SECOND = 1000 * MS
START = 1_800_000_000 * SECOND


def a_sample(at_ns: int, percent: float | None = None, *processes: GpuProcess, **changes: Any) -> GpuSample:
    """One GPU at `at_ns` after the start, with a reading of that moment."""
    sample = GpuSample(
        index=0,
        uuid="GPU-1",
        source="nvml",
        stamped=True,
        t_mono_ns=at_ns + 1,
        t_wall_ns=START + at_ns,
        utilization=percent,
        readings=[] if percent is None else [Reading(t_ns=START + at_ns, percent=percent)],
        process_utilization=True,
        processes=list(processes),
    )
    return msgspec.structs.replace(sample, **changes)


def a_user(pid: int, percent: float, at_ns: int, **changes: Any) -> GpuProcess:
    base = GpuProcess(pid=pid, start_ticks=pid, member=True, attribution="exact", step=1)
    return msgspec.structs.replace(base, utilization=percent, t_ns=START + at_ns, **changes)


def fed(*samples: GpuSample) -> Usage:
    usage = Usage()
    for sample in samples:
        usage.feed(sample)
    return usage


def test_gpu_seconds_are_utilisation_by_time() -> None:
    """Two seconds at 50 % and one at 100 % are two GPU-seconds; the first reading opens and counts nothing."""
    (total,) = fed(*(a_sample(t * SECOND, p) for t, p in [(0, 100), (1, 50), (2, 50), (3, 100)])).devices()
    assert total.gpu_seconds == pytest.approx(2)
    assert (total.measured_s, total.unmeasured_s) == (3, 0)


def test_a_measurement_that_comes_twice_counts_once() -> None:
    """Samples faster than the driver measures do not multiply the use, of a device or of a process."""
    usage = Usage()
    user = a_user(7, 80, SECOND)
    for tick in range(21):
        at = tick * 50 * MS
        usage.feed(a_sample(at, None, user, readings=[Reading(t_ns=START + (at // SECOND) * SECOND, percent=80)]))
    (device,), (process,) = usage.devices(), usage.processes()
    assert device.gpu_seconds == pytest.approx(0.8)
    assert process.gpu_seconds <= 0.8


def test_time_without_a_measurement_is_not_made_up() -> None:
    """After a gap of an hour one reading counts for a moment, and the rest is stated as unmeasured."""
    (total,) = fed(a_sample(0, 100), a_sample(SECOND, 100), a_sample(3600 * SECOND, 100)).devices()
    assert total.gpu_seconds <= 16
    assert total.measured_s + total.unmeasured_s == pytest.approx(3600)


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 100)), min_size=1, max_size=40))
def test_use_is_never_more_than_time(steps: list[tuple[int, float]]) -> None:
    """For every series of readings: GPU-seconds lie between 0 and the time that passed."""
    at, samples = 0, [a_sample(0, 0)]
    for milliseconds, percent in steps:
        at += milliseconds * MS
        samples.append(a_sample(at, percent, a_user(7, percent, at)))
    usage = fed(*samples)
    parts = [device.gpu_seconds for device in usage.devices()]
    parts += [process.gpu_seconds for process in usage.processes()]
    assert all(0 <= seconds <= at / 1e9 + 1e-9 for seconds in parts)


def test_use_goes_on_counting_after_the_clock_was_set_back() -> None:
    """A clock that is set back by a day stops the sums for one measurement, not for a day."""
    day = 86_400 * SECOND
    samples = [a_sample(t * SECOND, 100, a_user(7, 100, t * SECOND)) for t in range(3)]
    samples += [
        a_sample(t * SECOND, 100, a_user(7, 100, t * SECOND - day), t_wall_ns=START + t * SECOND - day)
        for t in range(3, 7)
    ]
    usage = Usage()
    for sample in samples:
        usage.feed(msgspec.structs.replace(sample, readings=[Reading(t_ns=sample.t_wall_ns, percent=100)]))
    assert usage.devices()[0].gpu_seconds == pytest.approx(5)
    assert 4 <= usage.processes()[0].gpu_seconds <= 7


def test_each_process_and_step_has_its_part() -> None:
    """Two steps on one device: each has its own seconds, a stranger has none of the sandbox's."""
    usage = Usage()
    for tick in range(5):
        at = tick * SECOND
        users = (a_user(7, 30, at), a_user(8, 20, at, step=2), a_user(9, 50, at, member=False, step=0))
        usage.feed(a_sample(at, 100, *users, power_w=100.0))
    parts = {part.pid: part.gpu_seconds for part in usage.processes()}
    assert parts == {7: pytest.approx(1.2), 8: pytest.approx(0.8), 9: pytest.approx(2.0)}
    one, two = usage.steps()
    assert (one.step, one.attribution, two.step, two.attribution) == (1, "exact", 2, "exact")
    assert [one.gpu_seconds, two.gpu_seconds] == pytest.approx([1.2, 0.8])
    (device,) = usage.devices()
    assert device.members_s == pytest.approx(2.0)
    assert device.energy_j == pytest.approx(400)
    assert sum(part.energy_j for part in usage.processes()) == pytest.approx(400)


def test_without_measurements_per_process_use_is_divided_and_says_so() -> None:
    """One process gets all of a device, several equal parts with weak attribution, nobody's is nobody's."""
    alone = GpuProcess(pid=7, member=True, attribution="exact")
    other = GpuProcess(pid=8, member=False, attribution="exact")
    usage = Usage()
    usage.feed(a_sample(0, 100, process_utilization=False))
    (one,) = usage.feed(a_sample(SECOND, 100, alone, process_utilization=False))
    two = usage.feed(a_sample(2 * SECOND, 100, alone, other, process_utilization=False))
    (none,) = usage.feed(a_sample(3 * SECOND, 100, process_utilization=False))
    assert (one.pid, one.attribution) == (7, "exact")
    assert one.gpu_seconds == pytest.approx(1)
    assert [(use.pid, use.gpu_seconds, use.attribution) for use in two] == [(7, 0.5, "weak"), (8, 0.5, "weak")]
    assert (none.pid, none.member, none.attribution) == (0, None, "none")


def test_energy_is_the_counters_and_a_counter_that_jumps_is_not_believed() -> None:
    """The driver's counter is exact; after its reset, or an absurd leap, power by time stands for it."""
    counters = [1000.0, 1100.0, 50.0, 150.0, 1e12]
    usage = fed(*(a_sample(t * SECOND, energy_j=joules, power_w=200.0) for t, joules in enumerate(counters)))
    assert usage.devices()[0].energy_j == pytest.approx(100 + 200 + 100 + 200)


def test_an_error_state_adds_nothing() -> None:
    """A lost GPU uses nothing that is known, and what comes after it is not counted from before it."""
    lost = a_sample(2 * SECOND, None, state="error", error="GPU is lost")
    usage = fed(a_sample(0, 100, power_w=100.0), a_sample(SECOND, 100, power_w=100.0), lost)
    before = usage.devices()
    usage.feed(a_sample(3 * SECOND, None, power_w=100.0))
    assert usage.devices() == before


# Leases


def a_use(start_ns: int, end_ns: int, **changes: Any) -> Use:
    base = Use(
        uuid="GPU-1",
        index=0,
        start_ns=start_ns,
        end_ns=end_ns,
        gpu_seconds=(end_ns - start_ns) / 1e9,
        pid=7,
        member=True,
        step=1,
        attribution="exact",
    )
    return msgspec.structs.replace(base, **changes)


def test_use_inside_a_lease_is_expected_and_outside_it_is_not() -> None:
    """Only the part that no lease covers is reported, with the attribution of the use."""
    book = LeaseBook()
    lease = book.lease("GPU-1", "training", 10 * SECOND)
    assert book.judge(a_use(11 * SECOND, 12 * SECOND)) is None
    early = book.judge(a_use(8 * SECOND, 12 * SECOND, attribution="weak"))
    assert early is not None
    assert (early.gpu_seconds, early.attribution) == (2.0, "weak")
    book.release(lease.id, 20 * SECOND)
    assert book.judge(a_use(20 * SECOND, 20 * SECOND + GRACE_NS)) is None
    late = book.judge(a_use(25 * SECOND, 26 * SECOND))
    assert late is not None
    assert late.gpu_seconds == 1.0


def test_a_lease_is_for_its_device_and_its_step() -> None:
    """Another device or step is not covered; a GPU's lease covers its MIG devices, a MIG device's only itself."""
    book = LeaseBook()
    book.lease("GPU-1", "training", 0, step=1)
    book.lease("MIG-7", "evaluation", 0)
    assert book.judge(a_use(1, SECOND)) is None
    assert book.judge(a_use(1, SECOND, step=0)) is None
    assert book.judge(a_use(1, SECOND, uuid="MIG-1", parent_uuid="GPU-1")) is None
    assert book.judge(a_use(1, SECOND, uuid="MIG-7", parent_uuid="GPU-2", step=5)) is None
    assert book.judge(a_use(1, SECOND, step=2)) is not None
    assert book.judge(a_use(1, SECOND, uuid="GPU-2")) is not None
    assert [lease.purpose for lease in book.covered("MIG-1", SECOND, parent="GPU-1")] == ["training"]


def test_another_users_work_is_not_the_sandboxs_diversion() -> None:
    """A process that is known not to be a member is never reported; one that is not known is, as unattributed."""
    book = LeaseBook()
    assert book.judge(a_use(0, SECOND, member=False)) is None
    unknown = book.judge(a_use(0, SECOND, member=None, attribution="none"))
    assert unknown is not None
    assert unknown.attribution == "none"


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), max_size=6),
    st.integers(0, 100),
    st.integers(1, 100),
)
def test_what_is_covered_is_the_union_of_the_leases(spans: list[tuple[int, int]], start: int, length: int) -> None:
    """For any leases, second by second: outside is exactly what none of them, with its grace, covers."""
    book, covered = LeaseBook(), set()
    for begin, more in spans:
        book.lease("GPU-1", "x", begin * SECOND, (begin + more) * SECOND)
        covered |= set(range(begin, begin + more + GRACE_NS // SECOND))
    outside = book.judge(a_use(start * SECOND, (start + length) * SECOND))
    open_s = len(set(range(start, start + length)) - covered)
    assert (outside.gpu_seconds if outside else 0) == pytest.approx(open_s)


def test_old_leases_do_not_cover_and_do_not_slow_the_judge() -> None:
    """A lease that ended a minute ago is left out of what is looked at, and stays in the book."""
    book = LeaseBook()
    for number in range(100):
        book.lease("GPU-1", "x", number * SECOND, (number + 1) * SECOND)
    assert book.judge(a_use(1000 * SECOND, 1001 * SECOND)) is not None
    assert (len(book.leases()), len(book._current)) == (100, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("", "x", 0), "device"),
        (("GPU-1", "", 0), "purpose"),
        (("GPU-1", "x" * 201, 0), "purpose"),
        (("GPU-1", "x", 5, 4), "before"),
    ],
)
def test_a_wrong_lease_is_refused(arguments: tuple[Any, ...], words: str) -> None:
    """The text names the field."""
    with pytest.raises(LeaseError, match=words):
        LeaseBook().lease(*arguments)


def test_releasing_twice_keeps_the_first_end() -> None:
    """A late second release does not make an ended lease longer; an unknown one is an error."""
    book = LeaseBook()
    lease = book.lease("GPU-1", "x", 0)
    assert book.release(lease.id, 5).end_ns == 5
    assert book.release(lease.id, 9).end_ns == 5
    with pytest.raises(LeaseError, match="no lease 99"):
        book.release(99, 0)


# The digest


def a_snapshot(seq: int, *gpus: GpuSample, **totals: Any) -> Snapshot:
    at = seq * 100 * MS
    return Snapshot(
        seq=seq, t_mono_ns=at, t_wall_ns=START + at, gpus=list(gpus), resources=ProcessTotals(t_mono_ns=at, **totals)
    )


def digested(digest: Digest, ticks: int, percent: float, **totals: Any) -> list[Entry]:
    """Feed ticks of 100 ms with one GPU and one member on it."""
    entries: list[Entry] = []
    for seq in range(ticks):
        users = [a_user(7, percent, seq * 100 * MS, memory_bytes=9)] if percent else []
        entries += digest.feed(a_snapshot(seq, a_sample(seq * 100 * MS, percent, *users, power_w=100.0), **totals))
    return entries


def named(entries: list[Entry], op: str) -> list[dict[str, Any]]:
    return [entry.fields for entry in entries if entry.fields.get("op") == op]


def test_ten_snapshots_become_one_record_per_device_and_user() -> None:
    """Over a second: the device's sums, the process's sums and what of them no lease covers."""
    entries = digested(Digest(Usage(), LeaseBook()), 11, 50)
    assert [fields["state"] for fields in named(entries, "state")] == ["ok"]
    (device,), (process,) = named(entries, "device"), named(entries, "process")
    assert device["interval_s"] == pytest.approx(1)
    assert device["gpu_seconds"] == pytest.approx(0.5)
    assert device["energy_j"] == pytest.approx(100)
    assert (device["utilization"], device["utilization_max"]) == (50, 50)
    assert process["gpu_seconds"] == process["outside_s"] == pytest.approx(0.5)
    (entry,) = [entry for entry in entries if entry.outside]
    assert (entry.kind, entry.pid, entry.step, process["memory_bytes"]) == (Gpu, 7, 1, 9)


def test_a_leased_use_is_not_outside() -> None:
    """With a lease over the interval, the same use is recorded and not marked."""
    book = LeaseBook()
    book.lease("GPU-1", "training", START - SECOND)
    entries = digested(Digest(Usage(), book), 11, 50)
    assert named(entries, "process")[0]["outside_s"] == 0
    assert not any(entry.outside for entry in entries)


def test_nothing_happening_is_a_sign_of_life_and_no_more() -> None:
    """A minute of an idle GPU and idle processes is a handful of records, not six hundred."""
    entries = digested(Digest(Usage(), LeaseBook()), 601, 0)
    assert 2 <= len(entries) <= 8


def test_a_lost_gpu_is_on_record_at_once_and_once() -> None:
    """A change of state does not wait for the interval's end, and is not repeated at each tick."""
    digest = Digest(Usage(), LeaseBook())
    digest.feed(a_snapshot(0, a_sample(0, 10)))
    lost = [
        digest.feed(a_snapshot(seq, a_sample(seq * 100 * MS, state="error", error="GPU is lost"))) for seq in (1, 2)
    ]
    assert [[(e.fields["state"], e.fields["reason"]) for e in entries] for entries in lost] == [
        [("error", "GPU is lost")],
        [],
    ]


def test_the_unattributed_has_no_pid_of_ours() -> None:
    """A use whose process is not known names the driver's number, and no process and no step of this machine."""
    digest, entries = Digest(Usage(), LeaseBook()), []
    for seq in range(11):
        at = seq * 100 * MS
        user = GpuProcess(pid=4242, utilization=90, t_ns=START + at)
        entries += digest.feed(a_snapshot(seq, a_sample(at, 90, user)))
    (entry,) = [entry for entry in entries if entry.fields.get("op") == "process"]
    assert (entry.pid, entry.step, entry.fields["driver_pid"], entry.fields["attribution"]) == (0, 0, 4242, "none")
    assert entry.outside


def test_busy_processes_have_records_of_their_own() -> None:
    """The sum of all is recorded, and each process that used half of the interval or more, with its step."""

    def row(pid: int, cpu_s: float) -> ProcessSample:
        return ProcessSample(
            pid=pid,
            start_ticks=1,
            ppid=1,
            name=f"p{pid}",
            state="R",
            cpu_s=cpu_s,
            cpu_percent=0,
            rss_bytes=5,
            threads=2,
        )

    digest, entries = Digest(Usage(), LeaseBook(), step_of={7: 3, 8: 4}.__getitem__), []
    for seq in range(11):
        rows = [row(7, seq * 0.09), row(8, seq * 0.01)]
        entries += digest.feed(a_snapshot(seq, processes=rows, cpu_s=seq * 0.1, rss_bytes=10, threads=4))
    everything, busy = entries
    assert (everything.kind, everything.pid, everything.fields["processes"]) == (Resources, 0, 2)
    assert everything.fields["cpu_s"] == pytest.approx(1)
    assert (busy.pid, busy.step, busy.fields["name"]) == (7, 3, "p7")
    assert busy.fields["cpu_s"] == pytest.approx(0.9)


def test_dropped_ticks_are_on_record() -> None:
    """Where sampling was late, the log says how many samples are missing, also when nothing else happened."""
    digest = Digest(Usage(), LeaseBook())
    digest.feed(a_snapshot(0))
    digest.flush()
    entries = digest.feed(msgspec.structs.replace(a_snapshot(11), dropped=10))
    assert [entry.fields["dropped"] for entry in entries] == [10]


def test_every_entry_is_a_valid_record() -> None:
    """What the digest gives can be written and read back as an event of its kind."""
    stamps: dict[str, Any] = {"t_mono_ns": 1, "t_wall_ns": 1, "watch": "w", "verdict": "allow", "basis": "verified"}
    entries = digested(Digest(Usage(), LeaseBook()), 25, 50, cpu_s=1.0)
    assert {entry.fields.get("op") for entry in entries} == {"state", "device", "process", None}
    for seq, entry in enumerate(entries):
        event: Any = entry.kind(seq=seq, pid=entry.pid, step=entry.step, **stamps, **entry.fields)
        assert decode_event(encode_event(event)) == event


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (event("gpu", op="state", state="error", reason="GPU is lost"), "state GPU-1 error GPU is lost"),
        (event("gpu", op="lease", lease=3, purpose="\x1b[2J"), "lease GPU-1 lease 3: \\x1b[2J"),
        (event("gpu", simulated=True, gpu_seconds=0.5, interval_s=1.0), "GPU-1 SIMULATED: 0.50 GPU s in 1.0 s"),
        (
            event("gpu", op="process", driver_pid=9, attribution="weak", gpu_seconds=1.0, outside_s=0.5),
            "by driver pid 9 (weak): 1.00 GPU s in 0.0 s, 0.50 s outside a lease",
        ),
        (event("resources", pid=7, name="<b>\u202e", cpu_s=0.9, interval_s=1.0), "<b>\\u202e: 0.90 s CPU in 1.0 s"),
        (event("resources", processes=2, rss_bytes=3 << 20), "2 processes: 0.00 s CPU in 0.0 s, 3 MiB"),
    ],
)
def test_each_record_reads_as_one_safe_line(event: AnyEvent, words: str) -> None:
    """The command line shows what a record says, SIMULATED where it is, and hostile names escaped."""
    assert words in event_line(event)


def test_the_last_interval_is_not_lost() -> None:
    """A watch that ends within an interval still records what was used in it."""
    digest = Digest(Usage(), LeaseBook())
    assert named(digested(digest, 6, 80), "device") == []
    (device,) = named(digest.flush(), "device")
    assert (device["interval_s"], device["gpu_seconds"]) == (pytest.approx(0.5), pytest.approx(0.4))
    assert digest.flush() == []
