"""The dashboard and the JupyterLab extension, as a person sees them in a real browser."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jupyter_agentwatch import Watch
from jupyter_agentwatch.agents import Finish, Shell
from jupyter_agentwatch.notebook.panels import PANELS
from tests.jupyter_page import LONG_MS, Lab, run_all, running_chromium, running_lab
from tests.node import tools

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Error, Page

    from jupyter_agentwatch.agents import Action, Observation

pytestmark = [pytest.mark.sandbox, pytest.mark.browser]

HOSTILE = '<img src=x onerror="window.owned=1">\u202egpj\x1b[31m'
SAVED_TELLS = """(words) => {
    const { cells } = window.jupyterapp.shell.currentWidget.content.model;
    return [...Array(cells.length).keys()].some((cell) => {
        const outputs = cells.get(cell).outputs;
        return [...Array(outputs?.length ?? 0).keys()].some((place) => {
            const html = String(outputs.get(place).data["text/html"]);
            return html.includes("aw-saved") && html.includes(words);
        });
    });
}"""
DASHBOARD = ".aw-root[data-view=dashboard]"
PARTS = """
from ipywidgets import HBox, VBox
from jupyter_agentwatch.notebook.kill_switch import KillSwitch
from jupyter_agentwatch.notebook.panels import PANELS, Panel

parts = [Panel("{run}", name) for name in PANELS]
VBox([KillSwitch("{run}"), HBox(parts[:2]), *parts[2:]])
"""
TOO_WIDE = """(selector) => [...document.querySelectorAll(`${selector}, ${selector} .aw-panel`)]
    .filter((each) => each.scrollWidth > each.clientWidth + 1).map((each) => each.className)"""
# A layout that is restored only then would close the sidebar again.
SHOW_RUNS = """async () => {
    await window.jupyterapp.restored;
    await window.jupyterapp.commands.execute("agentwatch:show-runs");
}"""
SHOW = """
from jupyter_agentwatch.notebook.dashboard import Dashboard
Dashboard("{run}")
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One server; its notebooks look at watches that these tests start themselves."""
    with running_lab() as found:
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser."""
    with running_chromium() as found:
        yield found


@pytest.fixture(scope="module")
def kept_page(chromium: Browser) -> Iterator[Page]:
    """A page that most tests share, for JupyterLab takes seconds to load."""
    context = chromium.new_context(viewport={"width": 1400, "height": 1600})
    yield context.new_page()
    context.close()


@pytest.fixture
def desk(kept_page: Page) -> Iterator[Page]:
    """The shared page; an error of ours in it fails the test."""
    with our_errors(kept_page) as errors:
        yield kept_page
    assert errors == []


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page of its own, with no memory of others; an error of ours in it fails the test."""
    context = chromium.new_context(viewport={"width": 1400, "height": 1600})
    page = context.new_page()
    with our_errors(page) as errors:
        yield page
    context.close()
    assert errors == []


@contextlib.contextmanager
def our_errors(page: Page) -> Iterator[list[str]]:
    """Collect errors that come from our modules; JupyterLab has some of its own."""
    errors: list[str] = []

    def note(error: Error) -> None:
        trace = error.stack or ""
        if any(part in trace for part in ("jupyter-agentwatch", "blob:")):
            errors.append(trace)

    page.on("pageerror", note)
    yield errors
    page.remove_listener("pageerror", note)


@pytest.fixture
def start(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Watch]]:
    """Start watches of this process in the folders that the server looks at, and end them."""
    monkeypatch.setenv("AGENTWATCH_RUNTIME_DIR", str(lab.runtime))
    monkeypatch.setenv("AGENTWATCH_LOG_DIR", str(lab.logs))
    started: list[Watch] = []

    def new(policy: Any = None) -> Watch:
        workspace = tmp_path / f"w{len(started)}"
        workspace.mkdir()
        started.append(Watch(policy, workspace))
        return started[-1]

    yield new
    for watch in started:
        watch.close()


@pytest.fixture
def watch(start: Callable[..., Watch]) -> Watch:
    """One watch with the default policy."""
    return start()


def show(page: Page, lab: Lab, watch: Watch, app: str = "lab") -> None:
    """Open a notebook with the dashboard of a watch."""
    lab.notebook(watch.id, [SHOW.format(run=watch.id)])
    run_all(page, lab, watch.id, app)
    page.locator(f"{DASHBOARD} .aw-panel-header[data-state]").wait_for(timeout=LONG_MS)


def wait_for_text(page: Page, selector: str, text: str) -> None:
    """Wait until an element of the dashboard holds a text."""
    page.locator(f"{DASHBOARD} {selector}").filter(has_text=text).first.wait_for(timeout=LONG_MS)


def assert_accessible(page: Page) -> None:
    """Let axe-core look at everything of ours in the page; nothing that it finds may be serious."""
    page.evaluate((tools() / "axe-core" / "axe.min.js").read_text("utf-8"))
    found = page.evaluate(
        "() => axe.run({include: [['.aw-root'], ['.aw-status'], ['.aw-sidebar']]}, {resultTypes: ['violations']})"
    )
    serious = [each for each in found["violations"] if each["impact"] in {"serious", "critical"}]
    assert serious == [], json.dumps(
        [(each["id"], [node["html"] for node in each["nodes"]][:3]) for each in serious], indent=1
    )


@pytest.mark.parametrize("app", ["lab", "notebooks"])
def test_the_dashboard_shows_what_was_done_before_and_after_it_was_opened(
    page: Page, lab: Lab, watch: Watch, app: str
) -> None:
    """Steps, processes, refused connections and records from before and after the opening stand in their panels."""
    watch.run("curl -sS --max-time 2 https://198.51.100.7/")
    show(page, lab, watch, app)
    wait_for_text(page, ".aw-step-words", "198.51.100.7")
    wait_for_text(page, ".aw-graph text", "198.51.100.7:443")
    page.locator(f"{DASHBOARD} .aw-panel-connections summary").click()
    wait_for_text(page, ".aw-panel-connections .aw-table", "198.51.100.7:443")
    watch.run("ls /; echo later > later.txt")
    wait_for_text(page, ".aw-step-words", "later.txt")
    wait_for_text(page, ".aw-tree", "ls /")
    page.locator(f"{DASHBOARD} .aw-filters input").fill("later.txt")
    wait_for_text(page, ".aw-grid-rows", "later.txt")
    wait_for_text(page, ".aw-facts", "2 steps, 1 refused call")


@pytest.mark.parametrize("app", ["lab", "notebooks"])
def test_a_click_on_the_graph_shows_the_process(desk: Page, lab: Lab, watch: Watch, app: str) -> None:
    """A click on a node says which process it is, of which step, and where it went."""
    watch.run("curl -sS --max-time 2 https://198.51.100.7/")
    show(desk, lab, watch, app)
    wait_for_text(desk, ".aw-graph text", "curl")
    node = desk.locator(f"{DASHBOARD} .aw-graph .scatterlayer .points path").first
    node.scroll_into_view_if_needed()
    box = node.bounding_box()
    assert box is not None
    desk.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=5)
    desk.locator(f"{DASHBOARD} .hoverlayer .hovertext").wait_for(timeout=LONG_MS)
    desk.mouse.down()
    desk.mouse.up()
    wait_for_text(desk, ".aw-chosen", "step 1: curl -sS --max-time 2 https://198.51.100.7/ → 198.51.100.7:443")


def test_in_a_large_graph_every_node_can_be_pointed_at(desk: Page, lab: Lab, start: Callable[..., Watch]) -> None:
    """A graph of more nodes than have room for a name is few elements; a click says all the same which node it was."""
    watch = start({"version": 1, "breaker": {"freeze_at": "never", "two_families_at": "never", "throttle_at": "never"}})
    code = "import socket\nfor i in range(90): socket.socket().connect_ex((f'198.51.100.{i}', 443))"
    watch.run(["python3", "-c", code])
    show(desk, lab, watch)
    desk.locator(f"{DASHBOARD} .aw-graph[data-nodes='91'] .main-svg").first.wait_for(timeout=LONG_MS)
    assert desk.locator(f"{DASHBOARD} .aw-graph .points path").count() == 0
    plot = desk.locator(f"{DASHBOARD} .aw-graph")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    place = """(selector) => {
        const {_fullLayout: {xaxis, yaxis}, data: [{x, y}]} = document.querySelector(selector);
        return [xaxis._offset + xaxis.l2p(x[0]), yaxis._offset + yaxis.l2p(y[0])];
    }"""
    x, y = desk.evaluate(place, f"{DASHBOARD} .aw-graph")
    desk.mouse.move(box["x"] + x, box["y"] + y, steps=5)
    desk.locator(f"{DASHBOARD} .hoverlayer .hovertext").wait_for(timeout=LONG_MS)
    desk.mouse.down()
    desk.mouse.up()
    wait_for_text(desk, ".aw-chosen", "step 1: python3 -c")


def test_names_that_an_agent_chooses_are_text_everywhere(desk: Page, lab: Lab, watch: Watch) -> None:
    """Markup, terminal escapes and bidirectional marks in names reach no panel as what they are."""
    name = f"{HOSTILE}.sh"
    (watch.workspace / name).write_text("#!/bin/sh\nexec sleep 0.2\n")
    (watch.workspace / name).chmod(0o755)
    watch.run([f"./{name}"])
    watch.run(["python3", "-c", f"import socket; socket.socket(socket.AF_UNIX).connect_ex('/tmp/' + {HOSTILE!r})"])
    watch.run(["curl", "-sS", f"https://{'h' * 10_000}.example/"])
    show(desk, lab, watch)
    wait_for_text(desk, ".aw-step-words", "<img src=x")
    wait_for_text(desk, ".aw-tree", "<img src=x")
    desk.locator(f"{DASHBOARD} .aw-panel-audit").scroll_into_view_if_needed()  # nothing is drawn that nobody can see
    wait_for_text(desk, ".aw-grid-rows", "\\u202egpj\\x1b[31m")
    desk.locator(f"{DASHBOARD} .aw-panel-connections summary").click()
    wait_for_text(desk, ".aw-panel-connections .aw-table", "<img src=x")
    assert desk.locator(f"{DASHBOARD} img").count() == 0
    assert desk.evaluate("() => window.owned") is None
    wait_for_text(desk, ".aw-step-words", "hhh")
    assert desk.evaluate(TOO_WIDE, DASHBOARD) == []
    text = desk.locator(DASHBOARD).inner_text()
    assert "\u202e" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize("app", ["lab", "notebooks"])
def test_the_charts_move(desk: Page, lab: Lab, start: Callable[..., Watch], app: str) -> None:
    """While a program computes, each chart gets further points, and what is simulated says so where it is drawn."""
    watch = start({"version": 1, "telemetry": {"simulate_gpus": 2}})
    watch.start("while :; do :; done")
    show(desk, lab, watch, app)
    wait_for_text(desk, ".aw-panel-gpu .aw-empty", "SIMULATED: these GPUs are not real")
    for panel, names in {"resources": ["CPU"], "gpu": ["GPU 0 SIMULATED", "GPU 1 SIMULATED"]}.items():
        chart = f"{DASHBOARD} .aw-panel-{panel} .aw-strip.js-plotly-plot"
        plot = desk.locator(chart).first
        plot.scroll_into_view_if_needed()
        grown = "([selector, least]) => (document.querySelector(selector).data?.[0].x.length ?? 0) >= least"
        desk.wait_for_function(grown, arg=[chart, 5], timeout=LONG_MS)
        points = desk.evaluate("selector => document.querySelector(selector).data[0].x.length", chart)
        desk.wait_for_function(grown, arg=[chart, points + 10], timeout=LONG_MS)
        shown = desk.evaluate("selector => document.querySelector(selector).data.map(trace => trace.name)", chart)
        assert [name for name in shown if "sandbox" not in name] == names
        assert plot.is_visible()
    marks = desk.locator(f"{DASHBOARD} .aw-panel-gpu .aw-strip-head")
    assert marks.count() == 4
    assert all("SIMULATED" in text for text in marks.all_inner_texts())


@pytest.mark.parametrize("app", ["lab", "notebooks"])
def test_a_call_that_is_held_is_decided_by_a_button(
    desk: Page, lab: Lab, start: Callable[..., Watch], app: str
) -> None:
    """A held connection appears as two buttons; after Deny the program gets its refusal and the question goes."""
    rule = {"cidr": "192.0.2.0/24", "ports": [443], "verdict": "ask"}
    watch = start({"version": 1, "network": {"rules": [rule]}})
    code = "import socket; print(socket.socket().connect_ex(('192.0.2.9', 443)))"
    running = watch.start(["python3", "-c", code])
    show(desk, lab, watch, app)
    wait_for_text(desk, ".aw-ask", "192.0.2.9")
    wait_for_text(desk, ".aw-ask [role=timer]", "denied in 0:0")
    assert_accessible(desk)
    desk.locator(f"{DASHBOARD} .aw-ask button[data-decision=deny]").click()
    assert running.wait().stdout.strip() == "13"
    desk.locator(f"{DASHBOARD} .aw-ask").wait_for(state="detached", timeout=LONG_MS)
    # Not on the next button: whoever presses Enter twice must not decide twice.
    desk.wait_for_function("() => document.activeElement.className === 'aw-state'", timeout=LONG_MS)


def test_an_agents_run_shows_how_far_it_is(desk: Page, lab: Lab, watch: Watch) -> None:
    """Step of how many, action, verdicts, reward and outcome of an agent's run come as they happen; names are text."""
    goes_on = threading.Event()

    class Slow:
        name = HOSTILE

        def act(self, observation: Observation) -> Action:
            if observation.turn == 1:
                return Shell("curl -sS --max-time 2 https://198.51.100.7/ || true")
            goes_on.wait(LONG_MS / 1000)
            return Finish("that was all")

    show(desk, lab, watch)
    run = watch.run_agent(Slow(), "call out", max_steps=4, reward=lambda step: {"task": 0.5, "price": -2.0})
    wait_for_text(desk, ".aw-agent-place", "step 1 of 4")
    wait_for_text(desk, ".aw-agent td", "curl -sS --max-time 2")
    wait_for_text(desk, ".aw-agent tr", "1 denied")
    wait_for_text(desk, ".aw-agent .aw-facts", "\u22121.5 = task +0.5, price \u22122")
    wait_for_text(desk, ".aw-agent-state", "running")
    watch.suspend()
    wait_for_text(desk, ".aw-agent-state", "paused: the watch is frozen")
    watch.resume()
    assert_accessible(desk)
    goes_on.set()
    run.wait(LONG_MS / 1000)
    wait_for_text(desk, ".aw-agent-state", "finished")
    wait_for_text(desk, ".aw-agent .aw-facts", "that was all")
    wait_for_text(desk, ".aw-agent-name", "<img src=x")
    assert desk.locator(f"{DASHBOARD} img").count() == 0
    assert desk.evaluate("() => window.owned") is None


@pytest.mark.parametrize("app", ["lab", "notebooks"])
def test_a_run_is_suspended_resumed_and_killed_by_keyboard(desk: Page, lab: Lab, watch: Watch, app: str) -> None:
    """Enter on Suspend freezes the run, Resume is one Tab further on, and the kill's own button keeps the focus."""
    show(desk, lab, watch, app)
    focused = "() => document.activeElement.className || document.activeElement.dataset.action"
    suspend = desk.locator(f"{DASHBOARD} button[data-action=suspend]")
    suspend.wait_for(timeout=LONG_MS)
    suspend.focus()
    desk.keyboard.press("Enter")
    wait_for_text(desk, ".aw-state", "FROZEN")
    assert watch.status().state == "frozen"
    desk.wait_for_function("() => document.activeElement.className === 'aw-state'", timeout=LONG_MS)
    desk.keyboard.press("Tab")
    assert desk.evaluate(focused) == "resume"
    desk.keyboard.press("Enter")
    wait_for_text(desk, ".aw-state", "running")
    assert watch.status().state == "closed"
    desk.wait_for_function("() => document.activeElement.className === 'aw-state'", timeout=LONG_MS)
    desk.keyboard.press("Shift+Tab")
    assert desk.evaluate(focused) == "aw-kill"
    desk.keyboard.press("Enter")
    wait_for_text(desk, ".aw-kill-switch[data-phase=confirmed]", "0 left")
    assert desk.evaluate(focused) == "aw-kill"
    assert watch.kill().survivors == 0


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_each_part_alone_is_accessible_and_moves_nothing(page: Page, lab: Lab, watch: Watch, theme: str) -> None:
    """axe-core finds nothing serious in a layout of panels and kill switch; asked for no motion, nothing moves."""
    watch.run("curl -sS --max-time 2 https://198.51.100.7/; true")
    page.emulate_media(reduced_motion="reduce")
    lab.notebook(f"parts-{watch.id}", [PARTS.format(run=watch.id)])
    run_all(page, lab, f"parts-{watch.id}")
    for name in PANELS:
        page.locator(f".aw-root[data-view={name}] .aw-panel-{name}").wait_for(timeout=LONG_MS)
    page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
    page.locator(f"body[data-jp-theme-name='{theme}']").wait_for(state="attached", timeout=LONG_MS)
    page.locator(".aw-graph text", has_text="curl").first.wait_for(timeout=LONG_MS)
    assert page.locator(".aw-root[data-view=kill] .aw-kill-switch[data-phase=armed]").count() == 1
    assert_accessible(page)
    moving = "() => document.getAnimations().filter((each) => each.effect.target?.closest('.aw-root')).length"
    assert page.evaluate(moving) == 0


def test_a_trip_says_why_until_when_and_what_was_prevented(desk: Page, lab: Lab, start: Callable[..., Watch]) -> None:
    """What looks like a miner is held; the head says why and until when, the incident what it was."""
    watch = start({"version": 1, "breaker": {"frozen_s": 600}})
    shutil.copy(shutil.which("true") or "/bin/true", watch.workspace / HOSTILE)
    miner = [f"./{HOSTILE}", "-o", "stratum+tcp://pool.example:3333", "-u", "4" + "A" * 94, "--donate-level", "1"]
    show(desk, lab, watch)
    wait_for_text(desk, ".aw-state", "running")
    watch.start(miner)
    wait_for_text(desk, ".aw-state", "FROZEN")
    wait_for_text(desk, ".aw-why", "trip: critical:")
    wait_for_text(desk, ".aw-left", "will be killed in 0:")
    wait_for_text(desk, ".aw-incident", "refused before it ran: ./<img src=x")
    assert_accessible(desk)
    assert desk.locator(f"{DASHBOARD} img").count() == 0


@pytest.mark.parametrize("app", ["lab", "notebooks"])
def test_after_a_reload_the_dashboard_finds_its_run_again(page: Page, lab: Lab, watch: Watch, app: str) -> None:
    """A reloaded page with the same kernel shows the run as it is now, with what happened in between."""
    show(page, lab, watch, app)
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    watch.run("echo between > between.txt")
    page.reload()
    wait_for_text(page, ".aw-step-words", "between.txt")
    # What is saved grows, too, though JupyterLab forgets with the reload which output the kernel's pictures belong to.
    watch.run("echo afterwards > afterwards.txt")
    page.wait_for_function(SAVED_TELLS, arg="afterwards.txt", timeout=LONG_MS)


def test_the_dashboard_of_a_run_that_has_ended_shows_its_record(desk: Page, lab: Lab, watch: Watch) -> None:
    """Long after its end a run's dashboard is made from its log, and its kill switch is not green."""
    watch.run("echo once > once.txt")
    watch.kill("done")
    show(desk, lab, watch)
    wait_for_text(desk, ".aw-state", "ended")
    wait_for_text(desk, ".aw-step-words", "once.txt")
    wait_for_text(desk, ".aw-kill-switch[data-phase=ended]", "ended, 0 processes left")


def test_many_dashboards_of_one_page_load_the_big_module_once(page: Page, lab: Lab, watch: Watch) -> None:
    """Three dashboards and a panel of one run fetch one module, and share one connection."""
    fetched: list[str] = []
    sockets: list[str] = []
    page.on("request", lambda request: fetched.append(request.url) if "/static/view." in request.url else None)
    page.on("websocket", lambda socket: sockets.append(socket.url) if "agentwatch/stream" in socket.url else None)
    more = "from jupyter_agentwatch.notebook.panels import Panel\ndisplay(*[Dashboard(r) for r in 2*[{run!r}]])\n"
    cells = [SHOW.format(run=watch.id), more.format(run=watch.id) + f"Panel({watch.id!r}, 'findings')"]
    lab.notebook(watch.id, cells)
    run_all(page, lab, watch.id)
    # "attached": what is below the edge of the window is there, but draws only when it is scrolled into sight.
    page.locator(f"{DASHBOARD} .aw-panel-header").nth(2).wait_for(state="attached", timeout=LONG_MS)
    page.locator(".aw-root[data-view=findings] section").wait_for(state="attached", timeout=LONG_MS)
    assert len(fetched) == 1
    assert len(sockets) == 1


def test_without_a_server_the_kernel_brings_module_and_records(page: Page, lab: Lab, watch: Watch) -> None:
    """In a page that names no Jupyter server the widget works by its messages, and says where the kill goes."""
    page.add_init_script(
        """
        const real = document.getElementById.bind(document);
        document.getElementById = (id) => window.hidesServer && id === "jupyter-config-data" ? null : real(id);
        """
    )
    watch.run("echo before > before.txt")
    lab.notebook(watch.id, [SHOW.format(run=watch.id)])
    page.goto(lab.address(watch.id))
    page.wait_for_function("() => window.jupyterapp", timeout=LONG_MS)
    page.evaluate("() => { window.hidesServer = true; }")
    run_all(page, lab, watch.id, opened=True)
    wait_for_text(page, ".aw-kill-result", "no Jupyter server here")
    wait_for_text(page, ".aw-step-words", "before.txt")
    page.locator(f"{DASHBOARD} .aw-kill").click()
    wait_for_text(page, ".aw-kill-switch[data-phase=confirmed]", "0 left")
    assert watch.has_ended or watch.kill().survivors == 0


@pytest.mark.parametrize("app", ["lab", "notebooks"])
def test_every_run_is_ended_from_the_bar_after_one_confirmation(
    page: Page, lab: Lab, start: Callable[..., Watch], app: str
) -> None:
    """The bar counts the live runs; kill-all asks once, then says that nothing is left, and nothing is."""
    watches = [start(), start()]
    lab.notebook("bar", ["1"])
    page.goto(lab.address("bar", app))
    bar = page.locator(".aw-status-button")
    bar.filter(has_text="2 agent runs").wait_for(timeout=LONG_MS)
    bar.click()
    page.locator(".jp-Dialog button", has_text="Cancel").click()
    assert [watch.status().state for watch in watches] == ["closed", "closed"]
    bar.click()
    page.locator(".jp-Dialog button", has_text="Kill all").click()
    done = page.locator(".aw-status-result[data-phase=confirmed]")
    done.filter(has_text="2 runs").filter(has_text="0 left").wait_for(timeout=LONG_MS)
    bar.filter(has_text="0 agent runs").wait_for(timeout=LONG_MS)
    assert [watch.kill().survivors for watch in watches] == [0, 0]


@pytest.mark.parametrize("app", ["lab", "notebooks"])
def test_the_sidebar_lists_runs_and_a_trip_is_notified(page: Page, lab: Lab, watch: Watch, app: str) -> None:
    """The palette opens a list of runs with working buttons; a finding and a frozen run raise notices."""
    lab.notebook("side", ["1"])
    page.goto(lab.address("side", app))
    page.locator(".aw-status-button").filter(has_text="1 agent run").wait_for(timeout=LONG_MS)
    page.evaluate(SHOW_RUNS)
    row = page.locator(f".aw-sidebar .aw-row[data-run='{watch.id}']")
    row.wait_for(timeout=LONG_MS)
    shutil.copy(shutil.which("true") or "/bin/true", watch.workspace / "nmap")
    watch.run(["./nmap", "-sS", HOSTILE])
    found = page.locator(".Toastify__toast").filter(has_text="has a new finding: high: a network scanner is started")
    found.filter(has_text="<img src=x").wait_for(timeout=LONG_MS)
    assert page.locator(".Toastify__toast img[src=x]").count() == 0
    watch.suspend()
    notice = page.locator(".Toastify__toast").filter(has_text=f"Agent run {watch.id} is frozen")
    notice.wait_for(timeout=LONG_MS)
    row.locator("button", has_text="Resume").click()
    row.filter(has_text="running").wait_for(timeout=LONG_MS)
    notice.wait_for(state="detached", timeout=LONG_MS)
    row.locator(".aw-kill").click()
    row.locator(".aw-kill-switch[data-phase=confirmed]").wait_for(timeout=LONG_MS)
    assert watch.kill().survivors == 0


def test_a_trip_reaches_the_desktop_of_a_page_that_nobody_looks_at(
    page: Page, lab: Lab, start: Callable[..., Watch]
) -> None:
    """Where a person allowed it, a trip in a hidden page raises a desktop notice, of harmless text, that says why."""
    page.add_init_script(
        """
        window.desktop = [];
        window.Notification = class {
            static permission = "granted";
            constructor(title, options) { window.desktop.push(`${title}: ${options.body}`); }
            close() {}
        };
        Object.defineProperty(Document.prototype, "hidden", { get: () => true });
        """
    )
    watch = start()
    lab.notebook("desk", ["1"])
    page.goto(lab.address("desk"))
    page.locator(".aw-status-button").filter(has_text="1 agent run").wait_for(timeout=LONG_MS)
    shutil.copy(shutil.which("true") or "/bin/true", watch.workspace / HOSTILE)
    watch.start([f"./{HOSTILE}", "-o", "stratum+tcp://pool.example:3333", "-u", "4" + "A" * 94, "--donate-level", "1"])
    page.wait_for_function("() => window.desktop.some(each => each.includes('is frozen'))", timeout=LONG_MS)
    (notice,) = [each for each in page.evaluate("() => window.desktop") if "is frozen" in each]
    assert notice.startswith(f"Agent Watch: Agent run {watch.id} is frozen: critical: ")
    assert "\u202e" not in notice
    assert page.locator(".Toastify__toast img[src=x]").count() == 0


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_the_dashboard_is_accessible_in_both_themes(desk: Page, lab: Lab, watch: Watch, theme: str) -> None:
    """axe-core finds nothing serious in dashboard, status bar and sidebar, in the light and in the dark theme."""
    watch.run("curl -sS --max-time 2 https://198.51.100.7/; true")
    show(desk, lab, watch)
    desk.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
    desk.evaluate(SHOW_RUNS)
    desk.locator(f"body[data-jp-theme-name='{theme}']").wait_for(state="attached", timeout=LONG_MS)
    wait_for_text(desk, ".aw-graph text", "curl")
    assert_accessible(desk)


@pytest.mark.parametrize("app", ["lab", "notebooks"])
def test_a_saved_notebook_shows_the_run_without_its_kernel(desk: Page, lab: Lab, watch: Watch, app: str) -> None:
    """A copy that nobody trusts, with another kernel, shows picture and tables; a live dashboard hides them."""
    (watch.workspace / HOSTILE).write_text("#!/bin/sh\necho kept\n")
    (watch.workspace / HOSTILE).chmod(0o755)
    watch.run([f"./{HOSTILE}"])
    show(desk, lab, watch, app)
    desk.locator(".aw-saved img").wait_for(state="attached", timeout=LONG_MS)
    assert not desk.locator(".aw-saved img").is_visible()
    desk.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    saved = json.loads((lab.folder / f"{watch.id}.ipynb").read_text("utf-8"))
    widget, kept = (output["data"] for output in saved["cells"][0]["outputs"])
    assert f"jupyter agentwatch kill {watch.id}" in "".join(widget["text/html"])
    assert str(watch.log) in "".join(kept["text/html"])
    assert len(json.dumps(saved)) < 100_000
    copy = lab.folder / f"later-{watch.id}.ipynb"
    copy.write_text(json.dumps(saved), "utf-8")
    # In a workspace of its own, or the page would open the live dashboard again, too.
    alone = f"{lab.base}lab/workspaces/{watch.id}/tree/{copy.name}?token={lab.token}"
    desk.goto(alone if app == "lab" else lab.address(copy.stem, app))
    picture = desk.locator(".aw-saved img")
    picture.wait_for(timeout=LONG_MS)
    desk.wait_for_function("() => document.querySelector('.aw-saved img').naturalWidth > 500", timeout=LONG_MS)
    desk.locator(".aw-saved summary").click()
    desk.locator(".aw-saved td", has_text="<img src=x").first.wait_for(timeout=LONG_MS)
    assert desk.locator(".aw-saved img").count() == 1
    assert desk.evaluate("() => window.owned") is None
