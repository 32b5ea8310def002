"""The kill switch, pressed by a mouse in a real browser, in each state that a kernel can be in."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jupyter_agentwatch.audit.reader import read_last
from jupyter_agentwatch.events import Session
from jupyter_agentwatch.wire.force import supervisors_of
from jupyter_agentwatch.wire.watches import kill_watch
from tests.jupyter_page import LONG_MS, Lab, run_all, running_chromium, running_lab
from tests.outside import stop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Locator, Page

pytestmark = [pytest.mark.sandbox, pytest.mark.browser]

RUNS = 5
CLICKS = 10
CONFIRMED = re.compile(r"killed (\d+) process(es)?, 0 left, \d+ ms, via (http|control|comm)")

START = """
import os, time
from pathlib import Path
from IPython.display import display
from jupyter_agentwatch import Watch
from jupyter_agentwatch.notebook.kill_switch import KillSwitch

watches = []
for number in range({runs}):
    folder = Path("{name}", f"w{{number}}")
    folder.mkdir(parents=True)
    watches.append(Watch(workspace=folder))
    watches[-1].start("setsid sleep 8{mark}.25 & sleep 8{mark}.25 & wait")
"""
SHOW = "for watch in watches: display(KillSwitch(watch))"
BLOCKS = {
    "idle": "Path('{name}', 'blocked').touch()",
    "sleep": "Path('{name}', 'blocked').touch(); time.sleep(60)",
    "loop": "Path('{name}', 'blocked').touch()\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass",
    "gil": "import ctypes\nPath('{name}', 'blocked').touch()\nctypes.PyDLL(None).sleep(60)",
    "callback": (
        "import ipywidgets\n"
        "def block(_): Path('{name}', 'blocked').touch(); time.sleep(60)\n"
        "button = ipywidgets.Button(description='block'); button.on_click(block); button"
    ),
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One server under a prefix, as a JupyterHub has it."""
    with running_lab("/user/me/") as found:
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser."""
    with running_chromium() as found:
        yield found


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page with no memory of other tests."""
    context = chromium.new_context(viewport={"width": 1300, "height": 1000})
    yield context.new_page()
    context.close()


@pytest.fixture
def own_folders(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """What this process asks of watches, it asks of those of the server's kernels."""
    monkeypatch.setenv("AGENTWATCH_RUNTIME_DIR", str(lab.runtime))
    monkeypatch.setenv("AGENTWATCH_LOG_DIR", str(lab.logs))
    return lab


def sleepers(mark: int) -> list[int]:
    """Return the processes on this machine that sleep for a time that only one test uses."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if f"sleep\x008{mark}.25\x00".encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def block(page: Page, lab: Lab, name: str, mark: int, how: str, runs: int = 1, *, app: str = "lab") -> list[Locator]:
    """Start runs in a new kernel, block it, and return the kill switches."""
    cells = [START.format(runs=runs, name=name, mark=mark), SHOW, BLOCKS[how].format(name=name)]
    lab.notebook(name, cells)
    run_all(page, lab, name, app)
    switches = page.locator(".aw-root[data-view=kill] .aw-kill-switch")
    switches.nth(runs - 1).wait_for(timeout=LONG_MS)
    if how == "callback":
        page.get_by_role("button", name="block", exact=True).click()
    blocked = lab.folder / name / "blocked"
    while not blocked.exists() or len(sleepers(mark)) < 2 * runs:
        page.wait_for_timeout(20)
    return [switches.nth(number) for number in range(runs)]


def result(switch: Locator, *phases: str) -> str:
    """Return what a switch says when it has reached one of some phases."""
    selector = ", ".join(f".aw-kill-switch[data-phase={phase}]" for phase in phases)
    switch.and_(switch.page.locator(selector)).wait_for(timeout=LONG_MS)
    return switch.locator(".aw-kill-result").inner_text()


@pytest.mark.parametrize("app", ["lab", "notebooks"])
@pytest.mark.parametrize(("how", "mark"), [(how, 100 + number) for number, how in enumerate(BLOCKS)])
def test_the_button_kills_whatever_the_kernel_does(page: Page, own_folders: Lab, how: str, mark: int, app: str) -> None:
    """Each of five runs, its button pressed ten times while the kernel is blocked, ends; green only then."""
    for number, switch in enumerate(block(page, own_folders, f"kill-{how}-{app}", mark, how, RUNS, app=app)):
        button = switch.locator("button")
        assert switch.get_attribute("data-phase") == "armed"
        for _ in range(CLICKS):
            button.click(force=True)  # a person in alarm does not wait until a button is enabled again
        text = result(switch, "confirmed", "unconfirmed", "done")
        assert CONFIRMED.fullmatch(text), text
        assert len(sleepers(mark)) == 2 * (RUNS - 1 - number)
    logs = sorted(own_folders.logs.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)[-RUNS:]
    ends = [read_last(path) for path in logs]
    assert [(end.op, end.survivors) for end in ends if isinstance(end, Session)] == [("close", 0)] * RUNS
    assert not list(own_folders.runtime.glob("*.sock"))


def test_with_the_interpreter_held_only_the_server_can_answer(page: Page, own_folders: Lab) -> None:
    """With the GIL held in C the acknowledgement comes over HTTP: nothing in that kernel can have sent it."""
    (switch,) = block(page, own_folders, "kill-gil-one", 120, "gil")
    switch.locator("button").click()
    assert "via http" in result(switch, "confirmed", "unconfirmed")


def test_a_run_whose_supervisor_has_gone_is_not_shown_green(page: Page, own_folders: Lab) -> None:
    """Where the supervisor was killed, its sandbox ended with it, but nobody counted: that is said, not in green."""
    for switch in block(page, own_folders, "kill-gone", 122, "sleep", RUNS):
        os.kill(supervisor_of(own_folders, switch), signal.SIGKILL)
        for _ in range(CLICKS):
            switch.locator("button").click(force=True)
        text = result(switch, "done", "confirmed", "unconfirmed")
        assert switch.get_attribute("data-phase") == "done", text
        assert "nobody counted" in text
    assert sleepers(122) == []


def test_a_supervisor_that_hangs_is_ended_with_its_sandbox(page: Page, own_folders: Lab) -> None:
    """Where the supervisor does not answer, it is killed itself, and the button says that."""
    (switch,) = block(page, own_folders, "kill-hangs", 123, "sleep")
    stop(supervisor_of(own_folders, switch))
    switch.locator("button").click()
    assert "supervisor" in result(switch, "done", "confirmed", "unconfirmed")
    assert switch.get_attribute("data-phase") in {"done", "confirmed"}
    assert sleepers(123) == []


def supervisor_of(lab: Lab, switch: Locator) -> int:
    """Return the supervisor of a switch's run."""
    (pid,) = supervisors_of(lab.runtime / f"{switch.get_attribute('data-run')}.sock")
    return pid


def test_without_a_server_the_kernel_is_asked(page: Page, own_folders: Lab) -> None:
    """When no request reaches the server any more, the control channel, which is open already, carries the kill."""
    (switch,) = block(page, own_folders, "kill-offline", 124, "sleep")
    page.route("**/agentwatch/**", lambda route: route.abort())
    switch.locator("button").click()
    text = result(switch, "confirmed", "unconfirmed")
    assert CONFIRMED.fullmatch(text), text
    assert "via http" not in text
    assert sleepers(124) == []


def test_without_any_acknowledgement_it_is_red_and_says_what_to_type(page: Page, own_folders: Lab) -> None:
    """With no server and a kernel that cannot answer the button never turns green; the command that it shows works."""
    (switch,) = block(page, own_folders, "kill-nothing", 125, "gil")
    page.route("**/agentwatch/**", lambda route: route.abort())
    switch.locator("button").click()
    text = result(switch, "confirmed", "unconfirmed", "done")
    (socket,) = own_folders.runtime.glob("*.sock")
    assert text.startswith("NOT confirmed")
    assert text.endswith(f"jupyter agentwatch kill {socket.stem}")
    assert len(sleepers(125)) == 2
    page.unroute("**/agentwatch/**")
    switch.locator("button").click()
    assert "via http" in result(switch, "confirmed")
    assert sleepers(125) == []


def test_a_switch_alone_learns_that_its_run_has_ended(page: Page, own_folders: Lab) -> None:
    """Ended by another hand, an armed switch and one that could not be confirmed say so, neither green nor red."""
    armed, red = block(page, own_folders, "kill-other", 126, "gil", 2)
    page.route("**/agentwatch/api/runs/*/kill", lambda route: route.abort())
    red.locator("button").click()
    assert result(red, "unconfirmed", "confirmed").startswith("NOT confirmed")
    for switch in (armed, red):
        run = switch.get_attribute("data-run") or ""
        assert kill_watch(run, reason="test", name="test").survivors == 0
        assert result(switch, "ended") == "ended, 0 processes left"
    assert sleepers(126) == []
