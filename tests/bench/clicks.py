"""From a mouse click on the kill switch to the end of the last process, in JupyterLab, whatever the kernel does.

The click is the browser's own time stamp of the pointer event; the end is when the kernel of this machine reports each
process of the sandbox gone, by descriptors opened before. Both are wall clocks of one machine.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import psutil

from jupyter_agentwatch.wire.force import supervisors_of
from tests.bench.browsing import browsing
from tests.bench.ground import Ground, MeasureError
from tests.bench.table import Row, median, spread
from tests.jupyter_page import LONG_MS, Lab, run_all

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Response

__all__ = ["BLOCKS", "clicks"]

_LONG_S: Final = 60.0
_ROUNDS: Final = 2
_RUNS: Final = 25
_START: Final = """
import os, time
from pathlib import Path
from IPython.display import display
from jupyter_agentwatch import Watch
from jupyter_agentwatch.notebook.kill_switch import KillSwitch

here, watches = Path("{name}"), []
here.mkdir()
(here / "pid").write_text(str(os.getpid()))
for number in range({runs}):
    (here / f"w{{number}}").mkdir()
    watches.append(Watch(workspace=here / f"w{{number}}"))
    watches[-1].start("for i in 1 2 3 4 5 6 7 8; do setsid sleep 1000 & done; touch ready; wait")
"""
_SHOW: Final = "for watch in watches: display(KillSwitch(watch))"
_MARK: Final = "(here / 'blocked').touch()"
BLOCKS: Final = {
    "idle": _MARK,
    "sleep": f"{_MARK}; time.sleep(1000)",
    "loop": f"{_MARK}\nwhile True: pass",
    "gil": f"import ctypes\n{_MARK}\nctypes.PyDLL(None).sleep(1000)",
    "callback": (
        f"import ipywidgets\ndef block(_): {_MARK}; time.sleep(1000)\n"
        "button = ipywidgets.Button(description='block'); button.on_click(block); button"
    ),
}
"""What the kernel is doing, and the cell that makes it do so."""

_LISTEN: Final = """() => {
    window.pressed = 0;
    document.addEventListener("click", (event) => {
        window.pressed = performance.timeOrigin + event.timeStamp;
    }, { capture: true });
}"""


@dataclass(slots=True)
class _Taken:
    """Milliseconds of one state: click to last process gone, click to green, and the answer above the kill itself."""

    gone: list[float] = field(default_factory=list)
    green: list[float] = field(default_factory=list)
    above: list[float] = field(default_factory=list)
    via: dict[str, int] = field(default_factory=dict)


def clicks(ground: Ground) -> list[Row]:
    """Press every switch of notebooks in each state; then those of runs whose supervisor has gone."""
    states: dict[str, _Taken] = {}
    with browsing() as (lab, page):
        for state in BLOCKS:
            states[state] = _Taken()
            for number in range(ground.n(_ROUNDS, 1)):
                _round(page, lab, f"{state}-{number}", ground.n(_RUNS, 3), states[state])
        wrong, reported = _without_supervisor(page, lab, ground.n(_RUNS, 2))
    rows = [_row(state, taken) for state, taken in states.items()]
    every = [each for taken in states.values() for each in taken.above]
    note = "the server's answer as the page sees it, without the milliseconds that the supervisor took to kill"
    return [
        *rows,
        Row(
            "click.ack",
            median(every),
            len(every),
            {"spread": spread(every, "ms"), "at most": f"{max(every):.3g} ms"},
            note,
        ),
        Row(
            "click.gone",
            wrong,
            len(reported),
            {"told after": spread(reported, "ms")},
            "the supervisor was killed before",
        ),
    ]


def _row(state: str, taken: _Taken) -> Row:
    ways = ", ".join(f"{way} {count}" for way, count in sorted(taken.via.items()))
    beside = {"spread": spread(taken.gone, "ms"), "green after": spread(taken.green, "ms"), "first answer via": ways}
    return Row(f"click.{state}", max(taken.gone), len(taken.gone), beside)


def _round(page: Page, lab: Lab, name: str, runs: int, taken: _Taken) -> None:
    state = name.partition("-")[0]
    with _notebook(page, lab, name, BLOCKS[state], runs) as switches:
        if state == "callback":
            page.get_by_role("button", name="block", exact=True).click()
        blocked = lab.folder / name / "blocked"
        _wait(page, blocked.exists, "the kernel is not blocked")
        for switch in switches:
            _press(page, lab, switch, taken)


@contextlib.contextmanager
def _notebook(page: Page, lab: Lab, name: str, last: str, runs: int) -> Iterator[list[Locator]]:
    """Open a notebook with runs in a new kernel, and end that kernel in the end, whatever it does."""
    lab.notebook(name, [_START.format(runs=runs, name=name), _SHOW, last])
    run_all(page, lab, name)
    page.evaluate(_LISTEN)
    switches = page.locator(".aw-root[data-view=kill] .aw-kill-switch")
    switches.nth(runs - 1).wait_for(timeout=LONG_MS)
    folder = lab.folder / name
    _wait(page, lambda: len(list(folder.glob("w*/ready"))) == runs, "not every run has begun")
    try:
        yield [switches.nth(number) for number in range(runs)]
    finally:
        os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
        page.evaluate("() => window.jupyterapp.serviceManager.sessions.shutdownAll()")


def _press(page: Page, lab: Lab, switch: Locator, taken: _Taken) -> None:
    run = switch.get_attribute("data-run") or ""
    pids = _inside(lab, run)
    switch.scroll_into_view_if_needed()
    answers: list[Response] = []

    def keep(answer: Response) -> None:
        answers.append(answer)

    page.on("response", keep)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(_ended, pids)
        switch.locator("button").click()
        text = _result(switch, "confirmed", "unconfirmed", "done")
        last = ended.result(_LONG_S)
    page.remove_listener("response", keep)
    if " 0 left" not in text:
        msg = f"a run was not killed: {text}"
        raise MeasureError(msg)
    taken.gone.append((last - page.evaluate("window.pressed") / 1000) * 1000)
    way = text.rpartition("via ")[2].split()[0]
    taken.via[way] = taken.via.get(way, 0) + 1
    taken.green.append(float(text.partition(" ms,")[0].rpartition(" ")[2]))
    for answer in answers:
        if answer.url.endswith(f"runs/{run}/kill"):
            body = answer.json()
            answer.finished()
            taken.above.append(answer.request.timing["responseEnd"] - body["ms"])


def _result(switch: Locator, *phases: str) -> str:
    selector = ", ".join(f".aw-kill-switch[data-phase={phase}]" for phase in phases)
    switch.and_(switch.page.locator(selector)).wait_for(timeout=LONG_MS)
    return switch.locator(".aw-kill-result").inner_text()


def _inside(lab: Lab, run: str) -> list[int]:
    """Return descriptors of every process below the supervisor of a run."""
    (supervisor,) = supervisors_of(lab.runtime / f"{run}.sock")
    below = psutil.Process(supervisor).children(recursive=True)
    if len(below) < 9:
        msg = f"only {len(below)} processes inside"
        raise MeasureError(msg)
    return [os.pidfd_open(process.pid) for process in below]


def _ended(handles: Sequence[int]) -> float:
    """Wait until every process has ended; return the wall clock then, in seconds."""
    poll = select.poll()
    for handle in handles:
        poll.register(handle, select.POLLIN)
    left, deadline = len(handles), time.monotonic() + _LONG_S
    while left and time.monotonic() < deadline:
        for handle, _ in poll.poll(1000):
            poll.unregister(handle)
            os.close(handle)
            left -= 1
    if left:
        msg = f"{left} processes still live"
        raise MeasureError(msg)
    return time.time()


def _without_supervisor(page: Page, lab: Lab, runs: int) -> tuple[int, list[float]]:
    """Return how many clicks were answered otherwise than that nobody counted, and after how many ms each was told."""
    wrong, told = 0, []
    with _notebook(page, lab, "gone-0", BLOCKS["sleep"], runs) as switches:
        for switch in switches:
            socket = lab.runtime / f"{switch.get_attribute('data-run')}.sock"
            handles = _inside(lab, socket.stem)
            os.kill(supervisors_of(socket)[0], signal.SIGKILL)
            _ended(handles)
            switch.locator("button").click()
            text = _result(switch, "done", "confirmed", "unconfirmed")
            wrong += switch.get_attribute("data-phase") != "done" or "nobody counted" not in text
            told.append(page.evaluate("performance.timeOrigin + performance.now() - window.pressed"))
    return wrong, told


def _wait(page: Page, holds: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 2 * _LONG_S
    while not holds():
        if time.monotonic() > deadline:
            raise MeasureError(otherwise)
        page.wait_for_timeout(20)
