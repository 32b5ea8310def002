"""What live telemetry and the connection graph cost in the browser, beside the same data through a `FigureWidget`.

Bytes are those of all WebSocket frames that the page gets, the main thread's share is Chromium's own account of its
tasks, and a value is on screen in the frame after plotly.js has it.
"""

from __future__ import annotations

import base64
import time
from typing import TYPE_CHECKING, Any, Final

from jupyter_agentwatch import Watch
from jupyter_agentwatch.policy import Policy, Telemetry
from jupyter_agentwatch.policy.model import Breaker
from tests.bench.browsing import browsing
from tests.bench.ground import PYTHON, Ground, MeasureError
from tests.bench.table import Row, median, p99, spread
from tests.jupyter_page import LONG_MS, Lab, run_all

if TYPE_CHECKING:
    from playwright.sync_api import CDPSession, Page

__all__ = ["Meter", "eight_gpus", "graph", "show", "stream"]

_GPUS: Final = 8
_SHOW: Final = 'from jupyter_agentwatch.notebook.panels import Panel\nPanel("{run}", "{panel}")'
_FIGURE_WIDGET: Final = f"""
import threading, time
import numpy as np, plotly.graph_objects as go

x = time.time() * 1000 + np.linspace(-60_000, 0, 600)
y = [np.random.rand(600) * 100 for _ in range({_GPUS * 4})]
figure = go.FigureWidget([go.Scatter(x=x, y=each, mode="lines") for each in y])
figure.update_layout(xaxis={{"type": "date"}})

def stream():
    global x
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
_CONNECTED: Final = ".aw-panel-connections"


class Meter:
    """Counts what a page gets and does.

    Args:
        page: The page; it must not have opened its sockets yet.
    """

    def __init__(self, page: Page) -> None:
        self._page = page
        self._session: CDPSession = page.context.new_cdp_session(page)
        self._bytes = 0
        self._session.on("Network.webSocketFrameReceived", self._count)
        for domain in ("Network", "Performance", "HeapProfiler"):
            self._session.send(f"{domain}.enable")

    def over(self, seconds: float) -> tuple[float, float]:
        """Return kB a second to the page, and the share of its main thread in percent."""
        before, busy, begun = self._bytes, self._busy_s(), time.monotonic()
        self._page.wait_for_timeout(seconds * 1000)
        took = time.monotonic() - begun
        return (self._bytes - before) / took / 1000, (self._busy_s() - busy) / took * 100

    def heap_mib(self) -> float:
        """Return what the page's heap holds when its garbage is away."""
        self._session.send("HeapProfiler.collectGarbage")
        return float(self._session.send("Runtime.getHeapUsage")["usedSize"]) / (1 << 20)

    def _busy_s(self) -> float:
        metrics = self._session.send("Performance.getMetrics")["metrics"]
        return float(next(each["value"] for each in metrics if each["name"] == "TaskDuration"))

    def _count(self, event: dict[str, Any]) -> None:
        frame = event["response"]
        text = frame["payloadData"]
        self._bytes += len(base64.b64decode(text)) if frame["opcode"] == 2 else len(text.encode())


def stream(ground: Ground) -> list[Row]:
    """Show eight simulated GPUs and, in turns, the same number of lines by a `FigureWidget`."""
    seconds = ground.n(15, 4)
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
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
            lab.notebook(f"theirs-{number}", [_FIGURE_WIDGET])
            run_all(page, lab, f"theirs-{number}")
            theirs.append(_measured(page, meter, ".js-plotly-plot", seconds, delays["FigureWidget"]))
            _close(page)
    traffic = {"JupyterLab alone": f"{idle[0]:.3g} kB/s", "FigureWidget": f"{_mean(theirs, 0):.4g} kB/s"}
    share = {"JupyterLab alone": f"{idle[1]:.3g} %", "FigureWidget": f"{_mean(theirs, 1):.3g} %"}
    shown = {name: f"{spread(each, 'ms')}, p99 {p99(each):.4g} ms" for name, each in delays.items()}
    note = f"{_GPUS} simulated GPUs, 4 charts, 10 Hz; all WebSocket frames of the page"
    return [
        Row("stream.bytes", _mean(ours, 0), len(ours), traffic, note),
        Row("stream.main_thread", _mean(ours, 1), len(ours), share, "JupyterLab's own work included"),
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


def _measured(page: Page, meter: Meter, selector: str, seconds: float, delays: list[float]) -> tuple[float, float]:
    page.wait_for_function("(place) => document.querySelector(place)?._fullData?.length", arg=selector, timeout=LONG_MS)
    page.locator(selector).first.scroll_into_view_if_needed()
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
    """End the kernel and close the notebook, so that neither has a share in what comes next."""
    page.evaluate("() => window.jupyterapp.serviceManager.sessions.shutdownAll()")
    page.goto("about:blank")


def _mean(taken: list[tuple[float, float]], which: int) -> float:
    return sum(each[which] for each in taken) / len(taken)


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
        page.wait_for_function(
            "([place, least]) => Number(/(\\d+) connection/.exec(document.querySelector(place).textContent)?.[1]) >= least",
            arg=[_CONNECTED, 2 * endpoints],
            timeout=LONG_MS,
        )
        page.wait_for_timeout(3000)
        frames, longest = page.evaluate(_COUNT_FRAMES, seconds)
        drawn = page.evaluate("(place) => document.querySelectorAll(`${place} .points path`).length", _CONNECTED)
        watch.kill()
    beside = {"before it": f"{still:.3g} /s", "longest frame": f"{longest:.3g} ms", "nodes drawn": str(drawn)}
    note = f"{processes + endpoints} nodes and {edges}s, 10 changes a second; beyond 300 nodes neighbours are folded"
    return Row(name, frames, round(frames * seconds), beside, note)
