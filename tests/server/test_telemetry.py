"""Telemetry as browsers get it: which lines there are, their points once and in order, in few bytes."""

from __future__ import annotations

import asyncio
import json
import math
import struct
from array import array
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from jupyter_agentwatch.errors import ControlError
from jupyter_agentwatch.server.curves import POINTS, Curves
from jupyter_agentwatch.telemetry.model import GpuProcess, GpuSample, NoGpu, Reading, Resources, Snapshot
from tests.server.scenes import Browser, scene

if TYPE_CHECKING:
    from collections.abc import Callable

    from jupyter_agentwatch import Watch

SECOND = 1_000_000_000
WALL = 1_800_000_000 * SECOND

Points = dict[int, list[tuple[float, float | None]]]


def unpacked(data: bytes | None) -> Points:
    """Read points as a page does: number of the line → times in seconds after `WALL`, and values."""
    assert data is not None
    version, runs, base_ms = struct.unpack_from("<IId", data)
    assert version == 1
    found: Points = {}
    at = 16
    for _ in range(runs):
        line, count = struct.unpack_from("<II", data, at)
        times, values = (
            array("f", data[at + 8 : at + 8 + 4 * count]),
            array("f", data[at + 8 + 4 * count :][: 4 * count]),
        )
        seconds = [round((base_ms + each) / 1000 - WALL / SECOND, 3) for each in times]
        found[line] = list(zip(seconds, [None if math.isnan(each) else each for each in values], strict=True))
        at += 8 + 8 * count
    assert at == len(data)
    return found


def a_sample(at: float, gpus: int = 1, **changes: Any) -> bytes:
    """Return what a supervisor sends: a sample so many seconds after the start, a third of each GPU the sandbox's."""
    t_ns = WALL + round(at * SECOND)
    ours = GpuProcess(pid=7, member=True, utilization=20.0, memory_bytes=2**30, t_ns=t_ns)
    devices = [
        GpuSample(
            index=index,
            uuid=f"GPU-{index}",
            source="simulated",
            simulated=True,
            t_wall_ns=t_ns,
            readings=[Reading(t_ns=t_ns, percent=60.0)],
            memory_used_bytes=3 * 2**30,
            power_w=200.0 + index,
            temperature_c=60.0,
            process_utilization=True,
            processes=[ours],
        )
        for index in range(gpus)
    ]
    resources = Resources(t_mono_ns=t_ns, cpu_s=at, cpu_percent=90.0, rss_bytes=2**20, threads=2)
    found = Snapshot(seq=0, t_mono_ns=t_ns, t_wall_ns=t_ns, gpus=devices, resources=resources)
    return msgspec.msgpack.encode(msgspec.structs.replace(found, **changes))


def named(lines: bytes | None) -> list[tuple[str, int, str, str]]:
    """Return what the numbers of lines stand for."""
    assert lines is not None
    return [tuple(line.values()) for line in json.loads(lines)["lines"]]


def test_each_point_is_sent_once_and_names_only_when_they_change() -> None:
    """Samples become new points of numbered lines; the same measurement again, and the same names again, do not."""
    curves = Curves()
    first = curves.take([a_sample(0), a_sample(0.1)])
    names = named(first.lines)
    assert ("gpu", 0, "GPU 0 SIMULATED", "") in names
    assert ("gpu", 1, "GPU 0 SIMULATED", "sandbox") in names
    assert json.loads(first.lines or b"")["notes"]["gpu"] == ["SIMULATED"]
    points = unpacked(first.points)
    assert points[names.index(("gpu", 1, "GPU 0 SIMULATED", ""))] == [(0.0, 3.0), (0.1, 3.0)]
    assert points[names.index(("gpu", 1, "GPU 0 SIMULATED", "sandbox"))] == [(0.0, 1.0), (0.1, 1.0)]
    assert points[names.index(("resources", 0, "CPU", ""))] == [(0.0, 90.0), (0.1, 90.0)]
    again = curves.take([a_sample(0.1)])
    assert (again.lines, again.points) == (None, None)
    more = curves.take([a_sample(0.2)])
    assert more.lines is None
    assert {tuple(run) for run in unpacked(more.points).values()} >= {((0.2, 90.0),), ((0.2, 3.0),)}


def test_who_comes_later_gets_what_is_kept_under_the_same_numbers() -> None:
    """Everything is the last points of each line, and a line that came later has not moved the numbers of others."""
    curves = Curves()
    curves.take([a_sample(0, gpus=1)])
    for tick in range(1, POINTS + 100):
        curves.take([a_sample(tick / 10, gpus=2)])
    whole = curves.whole()
    names, points = named(whole.lines), unpacked(whole.points)
    assert names.index(("gpu", 2, "GPU 1 SIMULATED", "")) > names.index(("resources", 0, "CPU", ""))
    power = points[names.index(("gpu", 2, "GPU 1 SIMULATED", ""))]
    assert len(power) == POINTS
    assert power[-1] == ((POINTS + 99) / 10, 201.0)


def test_a_missing_gpu_is_said_and_hostile_words_are_text() -> None:
    """What stands beside a chart says why there is no GPU, with nothing in it that could act on a page."""
    reason = "no driver \x1b[31m\u202e<b>"
    curves = Curves()
    news = curves.take([a_sample(0, gpus=0, no_gpu=NoGpu(kind="driver", reason=reason))])
    assert json.loads(news.lines or b"")["notes"]["gpu"] == ["No GPU: no driver \\x1b[31m\\u202e<b>"]


@pytest.mark.parametrize("bad", [b"", b"\xff", b"\x80", msgspec.msgpack.encode({"seq": 1}), b"\x91" * 100_000])
def test_what_is_no_sample_is_refused(bad: bytes) -> None:
    """A supervisor that sends something else is not believed, and nothing but our own error comes of it."""
    with pytest.raises(ControlError, match="not a sample"):
        Curves().take([bad])


def test_eight_gpus_at_ten_hertz_take_less_than_twenty_kilobytes_a_second() -> None:
    """A minute of eight GPUs and the sandbox's own lines, drawn three times a second, stays under the bound."""
    curves = Curves()
    sent = 0
    for drawing in range(200):
        samples = [a_sample((3 * drawing + tick) / 10, gpus=8) for tick in range(3)]
        sent += sum(len(message) for message in curves.take(samples).messages)
    assert sent / 60 < 20_000


@pytest.mark.sandbox
@scene
async def test_the_stream_brings_live_lines_to_each_browser(browser: Browser, watches: Callable[..., Watch]) -> None:
    """Two browsers, one of them later, get the names first and then points that go on; nothing asks the kernel."""
    watch = watches({"gpus": [], "telemetry": {"hz": 20}})
    running = await asyncio.to_thread(watch.start, "while :; do :; done")
    first = await browser.stream("stream", params={"run": watch.id})
    names = (await first.until("lines", lambda message: bool(message["lines"])))["lines"]
    cpu = next(number for number, line in enumerate(names) if line["group"] == "CPU")
    before = unpacked((await first.until("points"))["data"])[cpu]
    second = await browser.stream("stream", params={"run": watch.id})
    assert (await second.next())["type"] == "state"
    lines = await second.until("lines", lambda message: bool(message["lines"]))
    assert lines["lines"][cpu] == names[cpu]
    history = unpacked((await second.until("points"))["data"])[cpu]
    assert history[0][0] <= before[0][0]
    after = await first.until(
        "points", lambda message: unpacked(message["data"]).get(cpu, [(0, 0)])[0][0] > before[-1][0]
    )
    assert all((value or 0) >= 0 for _, value in unpacked(after["data"])[cpu])
    running.kill()
    for stream in (first, second):
        stream.connection.close()
