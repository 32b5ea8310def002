"""Processes of a sandbox as /proc tells them, whose they are, and when they are sampled."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_agentwatch.telemetry import members as members_module
from jupyter_agentwatch.telemetry.members import Owner, SandboxMembers, attributed
from jupyter_agentwatch.telemetry.model import GpuProcess, GpuSample, Snapshot
from jupyter_agentwatch.telemetry.processes import ProcessTable
from jupyter_agentwatch.telemetry.sampler import Collector, Sampler
from jupyter_agentwatch.telemetry.schedule import Schedule
from jupyter_agentwatch.telemetry.simulated import SimulatedGpus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jupyter_agentwatch.telemetry.model import ProcessSample

SECOND_NS = 1_000_000_000
PATIENCE_S = 20.0

HOSTILE = "import ctypes; ctypes.CDLL(None).prctl(15, b') R 1 (\\n\\xff <b>')"
WAIT = "import sys; print(flush=True); sys.stdin.read()"


@contextlib.contextmanager
def running(code: str, *wrapped_in: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python code that prints a line when it is ready and ends when its input does."""
    argv = [*wrapped_in, sys.executable, "-c", code]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            yield process
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.communicate(timeout=PATIENCE_S)


@contextlib.contextmanager
def table(pids: Callable[[], list[int]], **options: Any) -> Iterator[ProcessTable]:
    made = ProcessTable(pids, **options)
    try:
        yield made
    finally:
        made.close()


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        os.sched_yield()


def only(samples: list[ProcessSample]) -> ProcessSample:
    (sample,) = samples
    return sample


def test_a_process_is_read_as_it_is() -> None:
    """Parent, state, threads, memory and start time are the kernel's, and a name cannot break the reading."""
    with running(f"{HOSTILE}\n{WAIT}") as process, table(lambda: [process.pid]) as processes:
        sample = only(processes.sample(SECOND_NS).processes)
        assert (sample.pid, sample.ppid, sample.threads) == (process.pid, os.getpid(), 1)
        assert sample.name == ") R 1 (\n\\xff <b>"
        assert sample.state in "RS"
        assert 1 << 20 < sample.rss_bytes < 1 << 30
        assert sample.start_ticks > 0


def test_cpu_use_is_percent_of_a_core() -> None:
    """What a process has used between two samples appears as seconds and as percent of the time between them."""
    burn = "import time\nwhile time.process_time() < 0.5: pass\n"
    with running(f"{WAIT.replace('read()', 'readline()')}\n{burn}{WAIT}") as process:
        with table(lambda: [process.pid]) as processes:
            before = processes.sample(SECOND_NS)
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
            process.stdout.readline()
            after = processes.sample(2 * SECOND_NS)
        used = only(after.processes).cpu_s - only(before.processes).cpu_s
        assert used >= 0.4
        assert only(after.processes).cpu_percent == pytest.approx(100 * used, abs=0.2)
        assert after.cpu_percent == pytest.approx(100 * (after.cpu_s - before.cpu_s), abs=0.2)
        assert only(before.processes).cpu_percent == 0


def test_an_idle_process_is_read_rarely_and_its_waking_is_seen() -> None:
    """After 2 s without a change a process is read at 0.4 s distances, and no CPU time is lost by that."""
    burn = "import time\nwhile time.process_time() < 0.5: pass\n"
    with running(f"{WAIT.replace('read()', 'readline()')}\n{burn}{WAIT}") as process:
        with table(lambda: [process.pid]) as processes:
            start, idle, resting = (processes.sample(round(t * SECOND_NS)) for t in (1.0, 3.1, 3.2))
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
            process.stdout.readline()
            unread, awake = (processes.sample(round(t * SECOND_NS)) for t in (3.3, 3.6))
        assert start.cpu_s == idle.cpu_s == resting.cpu_s == unread.cpu_s
        assert awake.cpu_s - unread.cpu_s >= 0.4


def test_short_lived_processes_are_in_the_sum() -> None:
    """A child that lived between two samples only has no row, and its CPU time counts nevertheless."""
    child = "import time\nwhile time.process_time() < 0.3: pass\n"
    spawn = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])\n"
    with running(f"{WAIT.replace('read()', 'readline()')}\n{spawn}{WAIT}") as process:
        with table(lambda: [process.pid]) as processes:
            before = processes.sample(SECOND_NS)
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
            process.stdout.readline()
            after = processes.sample(2 * SECOND_NS)
        assert after.cpu_s - before.cpu_s >= 0.25
        assert only(after.processes).cpu_s - only(before.processes).cpu_s < 0.25


def test_bytes_written_to_storage_are_counted(tmp_path: Any) -> None:
    """The counters are the kernel's, and stay in the sum after the process ended."""
    write = f"import os\nf = os.open({str(tmp_path / 'f')!r}, 65)\nos.write(f, bytes(1 << 20)); os.fsync(f)\n"
    with running(f"{write}{WAIT}") as process:
        pids = [process.pid]
        with table(lambda: pids, io_every_s=0) as processes:
            first = processes.sample(SECOND_NS)
            with open(f"/proc/{process.pid}/io", encoding="ascii") as file:
                counted = {name: int(number) for name, number in (line.split(": ") for line in file)}
            told = only(first.processes)
            assert (told.read_bytes, told.write_bytes) == (counted["read_bytes"], counted["write_bytes"])
            pids.clear()
            after = processes.sample(2 * SECOND_NS)
        assert after.write_bytes == counted["write_bytes"] == first.write_bytes
        assert after.processes == []


def test_a_process_that_is_gone_is_left_out() -> None:
    """A pid that ended before it was read is no row and no error."""
    with running(WAIT) as process:
        pids = [process.pid]
        with table(lambda: pids) as processes:
            assert len(processes.sample(SECOND_NS).processes) == 1
            process.communicate(timeout=PATIENCE_S)
            gone = processes.sample(2 * SECOND_NS)
            assert (gone.processes, gone.unread) == ([], 0)


def test_a_number_that_is_given_to_another_process_is_another_process() -> None:
    """A reused pid does not inherit the CPU time of its predecessor: it is known by pid and start together."""
    with running(WAIT) as first, running(WAIT) as second, table(lambda: [first.pid]) as processes:
        old = only(processes.sample(SECOND_NS).processes)
        # The kernel does not hand out a chosen number, so the table's own entry is moved to the other process's file.
        entry = processes._known[first.pid]
        os.close(entry.fd)
        entry.fd = os.open(f"/proc/{second.pid}/stat", os.O_RDONLY)
        entry.start_ticks -= 1
        again = only(processes.sample(2 * SECOND_NS).processes)
        assert (again.pid, again.start_ticks, again.cpu_percent) == (first.pid, old.start_ticks, 0.0)


def test_files_are_closed_when_processes_go() -> None:
    """A sandbox that forks for days does not use up the supervisor's descriptors."""
    with running(WAIT) as process:
        pids = [process.pid]
        before = len(os.listdir("/proc/self/fd"))
        with table(lambda: pids) as processes:
            processes.sample(SECOND_NS)
            assert len(os.listdir("/proc/self/fd")) == before + 2
            pids.clear()
            processes.sample(2 * SECOND_NS)
            assert len(os.listdir("/proc/self/fd")) == before


def test_more_processes_than_a_sample_holds_are_counted() -> None:
    """A fork bomb makes the sample say how many were not read, instead of making it slow."""
    with running(WAIT) as process, table(lambda: [process.pid, os.getpid(), 1], max_processes=2) as processes:
        found = processes.sample(SECOND_NS)
        assert (len(found.processes), found.unread) == (2, 1)


# Members


@pytest.fixture
def sandbox() -> Iterator[tuple[int, int]]:
    """A PID namespace: the host's number of its init, and that of init's child."""
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()'])\n"
        f"{WAIT}\nchild.wait()\n"
    )
    bwrap = ["bwrap", "--unshare-user", "--unshare-pid", "--as-pid-1", "--bind", "/", "/", "--proc", "/proc"]
    with running(code, *bwrap) as process:
        (init,) = children(process.pid)
        (child,) = children(init)
        yield init, child


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(number) for number in file.read().split()]


@pytest.mark.sandbox
def test_members_are_those_of_the_namespace(sandbox: tuple[int, int]) -> None:
    """Init and its child are members, nobody else is, and when the namespace has ended nobody is any more."""
    init, _ = sandbox
    members = SandboxMembers(init)
    assert sorted(members.pids()) == sorted(sandbox)
    os.kill(init, signal.SIGKILL)
    wait_until(lambda: members.pids() == [])


BREEDS = f"""
import subprocess, sys, threading
print(flush=True)
sys.stdin.readline()
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
print(flush=True)
sys.stdin.readline()
threading.Thread(target=threading.Event().wait, daemon=True).start()
{WAIT}
child.communicate()
"""


@pytest.mark.sandbox
def test_who_comes_later_is_found_by_its_number_and_a_thread_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that lists nothing asks about the numbers given away since, and knows a thread's from a process's."""
    bwrap = ["bwrap", "--unshare-user", "--unshare-pid", "--as-pid-1", "--bind", "/", "/", "--proc", "/proc"]
    monkeypatch.setattr(members_module, "_LISTED_EVERY_NS", 0)
    monkeypatch.setattr(members_module, "_FEW", 1 << 22)
    with running(BREEDS, *bwrap) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        (init,) = children(process.pid)
        members = SandboxMembers(init)
        assert [members.pids() for _ in range(2)] == [[init]] * 2
        monkeypatch.setattr(members_module, "_LISTED_IN_FULL", 1 << 30)
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"\n"
        (child,) = children(init)
        assert sorted(members.pids()) == sorted([init, child])
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"\n"
        assert len(os.listdir(f"/proc/{init}/task")) == 2
        assert sorted(members.pids()) == sorted([init, child])


@pytest.mark.sandbox
def test_a_number_of_the_driver_is_put_down_to_the_sandboxs_process(sandbox: tuple[int, int]) -> None:
    """Where the driver's numbers are ours: member or not, exactly, with the number inside and the start time."""
    init, child = sandbox
    members = SandboxMembers(init, same_numbers=True)
    inside, outside = members.owner(child, SECOND_NS), members.owner(os.getpid(), SECOND_NS)
    assert (inside.member, inside.attribution, inside.sandbox_pid) == (True, "exact", 2)
    assert (outside.member, outside.attribution, outside.sandbox_pid) == (False, "exact", 0)
    assert inside.start_ticks > 0
    assert members.owner(0, SECOND_NS) == members.owner(2**22 + 1, SECOND_NS) == Owner(None, "none")


@pytest.mark.sandbox
def test_a_process_that_ended_is_put_down_weakly_for_a_moment_and_then_not(sandbox: tuple[int, int]) -> None:
    """The driver measures the past: who was seen alive keeps its last use, for two seconds, as weak."""
    init, child = sandbox
    members = SandboxMembers(init, same_numbers=True)
    before = members.owner(child, SECOND_NS)
    os.kill(init, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{child}"))
    after = members.owner(child, 2 * SECOND_NS)
    assert after == Owner(True, "weak", before.sandbox_pid, before.start_ticks)
    assert members.owner(child, 4 * SECOND_NS) == Owner(None, "none")


@pytest.mark.sandbox
def test_in_a_container_a_number_alone_is_no_evidence(sandbox: tuple[int, int]) -> None:
    """Where the driver numbers processes otherwise, only one that has the device open is put down, and weakly."""
    init, child = sandbox
    # A character device that the child has open stands for the GPU's: its standard output is not one.
    without = SandboxMembers(init, same_numbers=False)
    assert without.owner(child, SECOND_NS) == Owner(None, "none")
    with open("/dev/null", "rb") as null:
        with_device = SandboxMembers(init, same_numbers=False, device_major=os.major(os.fstat(null.fileno()).st_rdev))
        mine = with_device.owner(os.getpid(), SECOND_NS)
    assert (mine.member, mine.attribution) == (False, "weak")


def test_a_sample_gets_owner_and_step() -> None:
    """Each process on a GPU carries what is known of it, and a stranger's step is not asked for."""
    owners = {7: Owner(True, "exact", 3, 99), 8: Owner(False, "exact", 0, 98), 9: Owner(None, "none")}
    sample = GpuSample(index=0, uuid="GPU-1", source="nvml", processes=[GpuProcess(pid=pid) for pid in owners])
    ours, other, unknown = attributed(sample, owners.__getitem__, {7: 5}.__getitem__).processes
    assert (ours.member, ours.attribution, ours.sandbox_pid, ours.start_ticks, ours.step) == (True, "exact", 3, 99, 5)
    assert (other.member, other.step) == (False, 0)
    assert (unknown.member, unknown.attribution) == (None, "none")


# The schedule


def test_a_late_tick_drops_what_it_missed() -> None:
    """Sampling never catches up: what is missed is counted, and the next tick is on the grid."""
    schedule = Schedule(10, 0)
    first = schedule.take(0)
    assert (first is not None and (first.seq, first.dropped)) == (0, 0)
    assert schedule.take(50_000_000) is None
    late = schedule.take(450_000_000)
    assert (late is not None and (late.seq, late.dropped)) == (1, 3)
    assert schedule.wait_ns(450_000_000) == 50_000_000
    assert schedule.dropped == 3


@given(st.floats(0.1, 50), st.lists(st.integers(0, 30 * SECOND_NS), max_size=50))
def test_ticks_and_dropped_ticks_are_the_time_that_passed(hz: float, steps: list[int]) -> None:
    """Whatever the lateness, each period is one tick or one dropped tick, and the numbers have no gap."""
    schedule, now, taken = Schedule(hz, 0), 0, []
    for step in steps:
        now += step
        tick = schedule.take(now)
        if tick is not None:
            taken.append(tick)
            assert schedule.take(now) is None
    assert [tick.seq for tick in taken] == list(range(len(taken)))
    period_ns = round(1e9 / hz)
    assert len(taken) + schedule.dropped == (now // period_ns + 1 if taken else 0)


@pytest.mark.parametrize("hz", [0, 0.09, 50.1, -1, float("nan"), float("inf")])
def test_a_rate_out_of_range_is_refused(hz: float) -> None:
    """At the beginning and later, and the rate in force stays."""
    with pytest.raises(ValueError, match="telemetry rate"):
        Schedule(hz, 0)
    schedule = Schedule(5, 0)
    with pytest.raises(ValueError, match="telemetry rate"):
        schedule.set_rate(hz, 0)
    assert schedule.hz == 5


def test_a_faster_rate_takes_effect_at_once() -> None:
    """Who asks for 50 Hz does not wait for the end of a period of ten seconds."""
    schedule = Schedule(0.1, 0)
    schedule.take(0)
    schedule.set_rate(50, SECOND_NS)
    assert schedule.wait_ns(SECOND_NS) == 20_000_000


# The sampler


def a_collector(gpus: Any = None) -> Collector:
    return Collector(gpus or SimulatedGpus(1), ProcessTable(lambda: [os.getpid()]))


def test_the_sampler_gives_numbered_snapshots_until_it_is_closed() -> None:
    """Snapshots come in order with GPUs and processes in them, and none comes after `close`."""
    snapshots: list[Snapshot] = []
    enough = threading.Event()

    def emit(snapshot: Snapshot) -> None:
        snapshots.append(snapshot)
        if len(snapshots) == 3:
            enough.set()

    sampler = Sampler(a_collector(), emit, hz=50)
    sampler.start()
    assert enough.wait(PATIENCE_S)
    assert sampler.close()
    count = len(snapshots)
    assert [snapshot.seq for snapshot in snapshots] == list(range(count))
    assert all(snapshot.gpus[0].simulated and snapshot.no_gpu is None for snapshot in snapshots)
    assert all(os.getpid() in {p.pid for p in snapshot.resources.processes} for snapshot in snapshots)
    assert (len(snapshots), sampler.failure) == (count, None)


def test_a_slow_consumer_makes_ticks_drop_and_the_next_snapshot_says_so() -> None:
    """While a snapshot is not taken, nothing piles up."""
    go_on, dropped = threading.Event(), threading.Event()

    def emit(snapshot: Snapshot) -> None:
        if snapshot.seq == 0:
            assert go_on.wait(PATIENCE_S)
        elif snapshot.dropped:
            dropped.set()

    sampler = Sampler(a_collector(), emit, hz=50)
    sampler.start()
    late_ns = time.monotonic_ns() + 5 * SECOND_NS // 50
    wait_until(lambda: time.monotonic_ns() > late_ns)
    go_on.set()
    assert dropped.wait(PATIENCE_S)
    assert sampler.close()
    assert sampler.dropped >= 1


def test_a_failure_is_told_and_not_swallowed() -> None:
    """When sampling breaks, whoever started it learns why: a blind monitor must be seen."""
    told: list[Exception] = []
    broken = RuntimeError("the consumer broke")
    over = threading.Event()

    def fail(error: Exception) -> None:
        told.append(error)
        over.set()

    def emit(_snapshot: Snapshot) -> None:
        raise broken

    sampler = Sampler(a_collector(), emit, on_failure=fail)
    sampler.start()
    assert over.wait(PATIENCE_S)
    assert sampler.close()
    assert told == [sampler.failure] == [broken]


class Hanging(SimulatedGpus):
    """A driver whose call does not come back until the test lets it."""

    def __init__(self) -> None:
        super().__init__(1)
        self.let_go = threading.Event()
        self.asked = threading.Event()

    def sample(self, *arguments: Any) -> list[GpuSample]:
        self.asked.set()
        assert self.let_go.wait(PATIENCE_S)
        return super().sample(*arguments)


def test_a_driver_that_hangs_holds_nobody_up() -> None:
    """`close` comes back and says that the thread still waits, and the silence can be seen."""
    driver = Hanging()
    sampler = Sampler(a_collector(driver), lambda _snapshot: None)
    sampler.start()
    assert driver.asked.wait(PATIENCE_S)
    silent_s = sampler.silent_s
    assert sampler.close(timeout_s=0) is False
    assert sampler.silent_s > silent_s
    driver.let_go.set()
    assert sampler.close(PATIENCE_S)


def test_a_rate_is_changed_while_it_waits() -> None:
    """A sampler at 0.1 Hz that is told 50 Hz samples now, not in ten seconds."""
    seen = threading.Semaphore(0)
    sampler = Sampler(a_collector(), lambda _snapshot: seen.release(), hz=0.1)
    sampler.start()
    assert seen.acquire(timeout=PATIENCE_S)
    sampler.set_rate(50)
    assert seen.acquire(timeout=5)
    assert sampler.hz == 50
    assert sampler.close()


def test_a_sampler_that_never_started_can_be_closed() -> None:
    """Whoever fails between making and starting it leaves nothing open."""
    before = len(os.listdir("/proc/self/fd"))
    assert Sampler(a_collector(), lambda _snapshot: None).close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_simulated_use_has_its_step() -> None:
    """In the simulation the process is known for certain, and its step is the one that the supervisor knows."""
    burning = ProcessTable(lambda: [os.getpid()])
    collector = Collector(SimulatedGpus(1), burning, step_of={os.getpid(): 4}.__getitem__)
    schedule, snapshots = Schedule(10, 0), []
    for now_ns in range(0, 3 * SECOND_NS, SECOND_NS // 10):
        tick = schedule.take(now_ns)
        assert tick is not None
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass
        snapshots.append(collector.collect(tick, now_ns + 1, now_ns + 1))
    collector.close()
    snapshot = snapshots[-1]
    (use,) = snapshot.gpus[0].processes
    assert (use.pid, use.step, use.member, use.attribution) == (os.getpid(), 4, True, "exact")
    assert msgspec.json.decode(msgspec.json.encode(snapshot), type=Snapshot) == snapshot
