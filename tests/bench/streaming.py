"""What live telemetry and the connection graph cost in the browser, beside the same data through a `FigureWidget`.

Bytes are those of all WebSocket frames that the page gets, the main thread's share is Chromium's own account of the CPU
that its tasks took, and a value is on screen in the frame after plotly.js has it.
"""

from __future__ import annotations

import base64
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jupyter_agentwatch import Watch
from jupyter_agentwatch.policy import Policy, Telemetry
from jupyter_agentwatch.policy.model import Breaker
from tests.bench.browsing import browsing
from tests.bench.ground import PYTHON, Ground, MeasureError
from tests.bench.table import Row, p99, spread
from tests.jupyter_page import LONG_MS, Lab, run_all

if TYPE_CHECKING:
    from playwright.sync_api import CDPSession, Page

__all__ = ["Load", "Meter", "eight_gpus", "graph", "show", "stream"]

_GPUS: Final = 8
_SHOW: Final = 'from jupyter_agentwatch.notebook.panels import Panel\nPanel("{run}", "{panel}")'
_FIGURE_WIDGET: Final = f"""
import os, threading, time
import numpy as np, plotly.graph_objects as go

x = time.time() * 1000 + np.linspace(-60_000, 0, 600)
y = [np.random.rand(600) * 100 for _ in range({_GPUS * 4})]
figure = go.FigureWidget([go.Scatter(x=x, y=each, mode="lines") for each in y])
figure.update_layout(xaxis={{"type": "date"}})

def stream():
    global x
    while not os.path.exists("{{drawn}}"):  # what is sent before the page has drawn is lost
        time.sleep(0.1)
    while True:
        time.sleep(0.1)
        x = np.append(x[1:], time.time() * 1000)
        with figure.batch_update():
            for number, trace in enumerate(figure.data):
                y[number] = np.append(y[number][1:], np.random.rand() * 100)
                trace.x, trace.y = x, y[number]

threading.Thread(target=stream, daemon=True).start()
figure
"""
_THEIRS: Final = ".js-plotly-plot:not(.aw-strip)"
_DRAWN: Final = "(place) => document.querySelector(place)?._fullData?.length"
_MOVES: Final = """(selector) => {
    const times = document.querySelector(selector)?._fullData?.[0]?.x;
    const last = Number(times?.[times.length - 1]);
    if (Number.isNaN(last)) {
        return false;
    }
    window.moved ??= last;
    return window.moved !== last;
}"""
_WATCH_DELAYS: Final = """(selector) => {
    window.delays = [];
    let newest = 0;
    const look = () => {
        const trace = document.querySelector(selector)?._fullData?.[0];
        const times = trace === undefined ? [] : Array.from(trace.x.slice(-50), Number);
        const fresh = times.filter((time) => time > newest);
        if (newest !== 0) {
            window.delays.push(...fresh.map((time) => Date.now() - time));
        }
        newest = Math.max(newest, ...fresh);
        requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
}"""
_COUNT_FRAMES: Final = """async (seconds) => {
    const begun = performance.now();
    let count = 0, last = begun, longest = 0;
    return await new Promise((done) => {
        const tick = (now) => {
            count += 1;
            longest = Math.max(longest, now - last);
            last = now;
            if (now - begun < 1000 * seconds) {
                requestAnimationFrame(tick);
            } else {
                done([1000 * count / (now - begun), longest]);
            }
        };
        requestAnimationFrame(tick);
    });
}"""
_LISTED: Final = """([place, least]) => {
    const found = /(\\d+) connection/.exec(document.querySelector(place).textContent);
    return Number(found?.[1]) >= least;
}"""
_CONNECTED: Final = ".aw-panel-connections"


class Load(NamedTuple):
    """What a page got and did: kB a second in all, those of our own stream, and its main thread's share in percent."""

    kilobytes: float
    ours: float
    busy: float


class Meter:
    """Counts what a page gets and does.

    Args:
        page: The page; it must not have opened its sockets yet.
    """

    def __init__(self, page: Page) -> None:
        self._page = page
        self._session: CDPSession = page.context.new_cdp_session(page)
        self._bytes = 0
        self._ours = 0
        self._streams: set[str] = set()
        self._session.on("Network.webSocketCreated", self._opened)
        self._session.on("Network.webSocketFrameReceived", self._count)
        for domain in ("Network", "HeapProfiler"):
            self._session.send(f"{domain}.enable")
        # CPU of the thread: by the wall clock a task also grows by what other programs do meanwhile.
        self._session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def over(self, seconds: float) -> Load:
        """Look for some seconds."""
        every, ours, busy, begun = self._bytes, self._ours, self._busy_s(), time.monotonic()
        self._page.wait_for_timeout(seconds * 1000)
        took = time.monotonic() - begun
        kilobytes = ((self._bytes - every) / took / 1000, (self._ours - ours) / took / 1000)
        return Load(*kilobytes, (self._busy_s() - busy) / took * 100)

    def heap_mib(self) -> float:
        """Return what the page's heap holds when its garbage is away."""
        self._session.send("HeapProfiler.collectGarbage")
        return float(self._session.send("Runtime.getHeapUsage")["usedSize"]) / (1 << 20)

    def _busy_s(self) -> float:
        metrics = self._session.send("Performance.getMetrics")["metrics"]
        return float(next(each["value"] for each in metrics if each["name"] == "TaskDuration"))

    def _opened(self, event: dict[str, Any]) -> None:
        if "/agentwatch/" in event["url"]:
            self._streams.add(event["requestId"])

    def _count(self, event: dict[str, Any]) -> None:
        frame = event["response"]
        text = frame["payloadData"]
        size = len(base64.b64decode(text)) if frame["opcode"] == 2 else len(text.encode())
        self._bytes += size
        self._ours += size if event["requestId"] in self._streams else 0


def stream(ground: Ground) -> list[Row]:
    """Show eight simulated GPUs and, in turns, the same number of lines by a `FigureWidget`."""
    seconds = ground.n(15, 4)
    ours: list[Load] = []
    theirs: list[Load] = []
    delays: dict[str, list[float]] = {"ours": [], "FigureWidget": []}
    with browsing() as (lab, page), eight_gpus(ground) as watch:
        meter = Meter(page)
        lab.notebook("empty", [""])
        run_all(page, lab, "empty")
        idle = meter.over(seconds)
        for number in range(ground.n(2, 1)):
            show(page, lab, watch, "gpu", f"ours-{number}")
            ours.append(_measured(page, meter, ".aw-panel-gpu .aw-strip", seconds, delays["ours"]))
            _close(page)
            drawn = lab.folder / f"drawn-{number}"
            lab.notebook(f"theirs-{number}", [_FIGURE_WIDGET.replace("{drawn}", drawn.name)])
            run_all(page, lab, f"theirs-{number}")
            page.wait_for_function(_DRAWN, arg=_THEIRS, timeout=LONG_MS)
            drawn.touch()
            theirs.append(_measured(page, meter, _THEIRS, seconds, delays["FigureWidget"]))
            _close(page)
    traffic = {
        "all of the page's sockets": f"{_mean([each.kilobytes for each in ours]):.4g} kB/s",
        "without our panel": f"{idle.kilobytes:.3g} kB/s",
        "FigureWidget instead": f"{_mean([each.kilobytes for each in theirs]):.4g} kB/s",
    }
    share = {
        "without our panel": f"{idle.busy:.3g} %",
        "FigureWidget instead": f"{_mean([each.busy for each in theirs]):.3g} %",
    }
    shown = {name: f"{spread(each, 'ms')}, p99 {p99(each):.4g} ms" for name, each in delays.items()}
    note = f"{_GPUS} simulated GPUs, 4 charts, 10 Hz; payload of the frames of our WebSocket"
    return [
        Row("stream.bytes", _mean([each.ours for each in ours]), len(ours), traffic, note),
        Row(
            "stream.main_thread",
            _mean([each.busy for each in ours]),
            len(ours),
            share,
            "JupyterLab's own work included",
        ),
        Row("stream.delay", p99(delays["ours"]), len(delays["ours"]), shown, "from the sample's own time stamp"),
    ]


def eight_gpus(ground: Ground) -> Watch:
    """Open a watch with simulated GPUs in which something runs, so that all of it is measured ten times a second."""
    policy = Policy(telemetry=Telemetry(simulate_gpus=_GPUS, hz=10.0))
    watch = ground.open(policy, ground.stage("gpus"))
    try:
        watch.start(
            "for gpu in 0 1 2 3 4 5 6 7; do CUDA_VISIBLE_DEVICES=$gpu sh -c 'while :; do sleep 0.2; done' & done; wait"
        )
    except BaseException:
        watch.close()
        raise
    return watch


def show(page: Page, lab: Lab, watch: Watch, panel: str, name: str) -> None:
    """Open a notebook with one panel, and wait until it stands."""
    lab.notebook(name, [_SHOW.format(run=watch.id, panel=panel)])
    run_all(page, lab, name)
    place = page.locator(f".aw-panel-{panel}").last
    place.wait_for(timeout=LONG_MS)
    place.scroll_into_view_if_needed()


def _measured(page: Page, meter: Meter, selector: str, seconds: float, delays: list[float]) -> Load:
    page.evaluate("() => { window.moved = undefined; }")
    page.locator(selector).first.wait_for(timeout=LONG_MS)
    page.locator(selector).first.scroll_into_view_if_needed()
    page.wait_for_function(_MOVES, arg=selector, timeout=LONG_MS)
    page.wait_for_timeout(2000)
    page.evaluate(_WATCH_DELAYS, selector)
    found = meter.over(seconds)
    seen = page.evaluate("window.delays")
    if not seen:
        msg = f"nothing new was drawn in {selector} for {seconds} s"
        raise MeasureError(msg)
    delays += seen
    return found


def _close(page: Page) -> None:
    """End the kernel, so that it has no share in what comes next; the notebook is closed when another is opened."""
    page.evaluate("() => window.jupyterapp.serviceManager.sessions.shutdownAll()")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def graph(ground: Ground) -> list[Row]:
    """Count frames while graphs of two sizes change ten times a second."""
    rows = []
    with browsing() as (lab, page):
        for name, processes, endpoints in (("graph.frames", 250, 750), ("graph.folded", 1250, 3750)):
            rows.append(_frames(ground, lab, page, name, processes, endpoints))
            _close(page)
    return rows


def _frames(ground: Ground, lab: Lab, page: Page, name: str, processes: int, endpoints: int) -> Row:
    seconds = ground.n(15, 4)
    policy = Policy(breaker=Breaker(freeze_at="never", two_families_at="never", throttle_at="never"))
    with ground.session(policy, ground.stage(name)) as watch:
        show(page, lab, watch, "connections", name)
        still, _ = page.evaluate(_COUNT_FRAMES, ground.n(5, 2))
        running = watch.start([PYTHON, "-I", "-S", "graph.py", str(processes), str(endpoints), str(10 * seconds + 600)])
        for _, piece in running:
            if b"built" in piece:
                break
        edges = f"{2 * endpoints} connection"
        page.wait_for_function(_LISTED, arg=[_CONNECTED, 2 * endpoints], timeout=LONG_MS)
        page.wait_for_timeout(3000)
        frames, longest = page.evaluate(_COUNT_FRAMES, seconds)
        drawn = page.evaluate("(place) => document.querySelector(`${place} .aw-graph`).dataset.nodes", _CONNECTED)
        watch.kill()
    beside = {"before it": f"{still:.3g} /s", "longest frame": f"{longest:.3g} ms", "nodes drawn": str(drawn)}
    note = f"{processes + endpoints} nodes and {edges}s, 10 changes a second; beyond 300 nodes neighbours are folded"
    return Row(name, frames, round(frames * seconds), beside, note)
