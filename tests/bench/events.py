"""How many mediated events a second go into the log, that none is lost, and what an idle supervisor costs.

Each session has one core to itself: its program and its supervisor take turns there, as the one waits for the other.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from pathlib import Path

from jupyter_agentwatch import Watch
from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.audit.verify import verify_log
from jupyter_agentwatch.events import FileOp
from tests.bench.ground import PYTHON, Ground, MeasureError, on_core
from tests.bench.table import Row, median

__all__ = ["cpu_s", "resting", "throughput"]

_SECOND = 1_000_000_000
_EVENTS = 10_000


def throughput(ground: Ground) -> list[Row]:
    """Storm one session, then two at once."""
    cores = sorted(os.sched_getaffinity(0))
    one, lost_in_one = _storm(ground, cores[:1])
    rows = [_row("events.one_session", one, cores[:1])]
    if len(cores) < 2:
        rows.append(Row("events.two_sessions", None, note="not runnable here: one core"))
        return [*rows, Row("events.lost", lost_in_one, sum(one))]
    two, lost_in_two = _storm(ground, cores[:2])
    return [
        *rows,
        _row("events.two_sessions", two, cores[:2]),
        Row("events.lost", lost_in_one + lost_in_two, sum(one) + sum(two), note="n counts events"),
    ]


def _row(name: str, windows: list[int], cores: list[int]) -> Row:
    beside = {"worst second": f"{min(windows)} /s", "best": f"{max(windows)} /s"}
    placed = ", ".join(f"session {i} with its supervisor on CPU {core}" for i, core in enumerate(cores, 1))
    return Row(name, median(windows), len(windows), beside, f"write-opens; placement: {placed}")


def _storm(ground: Ground, cores: list[int]) -> tuple[list[int], int]:
    """Run one storm on each core; return the events of each whole second, of all together, and how many were lost."""
    seconds = ground.n(18, 4)
    with contextlib.ExitStack() as stack:
        watches = [_on_a_core(ground, stack, core) for core in cores]
        argv = [PYTHON, "-I", "-S", "opens.py", "storm", str(seconds)]
        running = [watch.start(argv) for watch in watches]
        made = [int(each.wait().stdout) for each in running]
    times: list[int] = []
    lost = 0
    for watch, count in zip(watches, made, strict=True):
        stamps = _recorded(watch.log)
        lost += count - len(stamps)
        times += stamps
    first, last = min(times), max(times)
    windows = Counter((stamp - first) // _SECOND for stamp in times)
    # The first and the last second are not whole.
    return [windows[second] for second in range(1, (last - first) // _SECOND)], lost


def _on_a_core(ground: Ground, stack: contextlib.ExitStack, core: int) -> Watch:
    workspace = ground.stage(f"storm-{core}")
    with on_core(core):  # the supervisor, and all that it starts, inherit it
        return stack.enter_context(ground.session(workspace=workspace))


def _recorded(log: Path) -> list[int]:
    """Return the times of the storm's records, after a check that the log has no gap and no change in it."""
    verdict = verify_log(log)
    if not verdict.ok:
        msg = f"a log does not verify: {verdict}"
        raise MeasureError(msg)
    opened = (event for event in read_events(log, kinds={"file"}) if isinstance(event, FileOp))
    return [event.t_mono_ns for event in opened if "/storm-" in event.path.removeprefix("/storm-")]


def resting(ground: Ground) -> list[Row]:
    """Look at a supervisor after 10,000 events, and then while nothing happens."""
    seconds = ground.n(20, 3)
    with ground.session() as watch:
        ground.answer(watch, (PYTHON, "-I", "-S", "opens.py", "same", str(_EVENTS)))
        status = watch.status()
        if sum(status.counts.values()) < _EVENTS:
            msg = f"only {sum(status.counts.values())} events"
            raise MeasureError(msg)
        resident = _resident_mib(status.pid)
        time.sleep(1)
        before, begun = cpu_s(status.pid), time.monotonic()
        time.sleep(seconds)
        share = (cpu_s(status.pid) - before) / (time.monotonic() - begun) * 100
    return [
        Row("supervisor.resident", resident, 1, {"events": str(sum(status.counts.values()))}),
        Row("supervisor.idle_cpu", share, 1, {"over": f"{seconds} s"}),
    ]


def _resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def cpu_s(pid: int) -> float:
    """Return the CPU time of all threads, from the scheduler's account in nanoseconds where there is one."""
    tasks = Path(f"/proc/{pid}/task")
    try:
        return sum(int((task / "schedstat").read_text("ascii").split()[0]) for task in tasks.iterdir()) / _SECOND
    except FileNotFoundError:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
