"""Takes the pictures of README.md from the real JupyterLab in Chromium (`make pictures`), as the notebooks run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import nbformat

from tests.jupyter_page import LONG_MS, ROOT, Lab, running_chromium, running_lab

if TYPE_CHECKING:
    from collections.abc import Sequence

    from playwright.sync_api import Page

OUT: Final = ROOT / "docs" / "pictures"
MOST_BYTES: Final = 150_000
"""A picture that is larger is none for a repository."""

_DASHBOARD: Final = ".aw-root[data-view=dashboard]"
_IS_READY: Final = """(path) => {
    const panel = window.jupyterapp?.shell.currentWidget;
    return panel?.context?.path === path && panel.sessionContext?.session?.kernel?.status === "idle";
}"""
_RUN: Final = """async (index) => {
    const { shell, commands } = window.jupyterapp;
    shell.currentWidget.content.activeCellIndex = index;
    await commands.execute("notebook:run-cell");
}"""
_SHOW: Final = """(selector) => {
    document.querySelector(selector).scrollIntoView({ block: "start", behavior: "instant" });
}"""


def main() -> int:
    """Take every picture; say how large each one is, and fail where one is too large."""
    OUT.mkdir(parents=True, exist_ok=True)
    with running_lab() as lab, running_chromium() as chromium:
        for name in ("01_quickstart", "02_live_dashboard"):
            shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", lab.folder)
        context = chromium.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        taken = [*_quick_start(page, lab), *_dashboard(page, lab)]
        context.close()
    for path in taken:
        sys.stdout.write(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes\n")
    return int(any(path.stat().st_size > MOST_BYTES for path in taken))


def _quick_start(page: Page, lab: Lab) -> list[Path]:
    cells = _opened(page, lab, "01_quickstart")
    _run(page, cells, ["load", "doctor", "workspaces"])
    _run(page, cells, ["start", "cell"])
    page.evaluate(_SHOW, f".jp-Notebook-cell:nth-of-type({cells['start'] + 1})")  # what nobody can see is not drawn
    page.locator(f"{_DASHBOARD} .aw-step-words").first.wait_for(state="attached", timeout=LONG_MS)
    page.wait_for_timeout(2500)  # the charts have begun, and the table has its rows
    return [_take(page, "quickstart")]


def _dashboard(page: Page, lab: Lab) -> list[Path]:
    cells = _opened(page, lab, "02_live_dashboard")
    _run(page, cells, ["server", "watch", "dashboard", "work", "ask"])
    page.evaluate(_SHOW, _DASHBOARD)
    page.locator(f"{_DASHBOARD} .aw-ask [role=timer]", has_text="denied in").wait_for(timeout=LONG_MS)
    page.locator(f"{_DASHBOARD} .aw-graph .scatterlayer").wait_for(timeout=LONG_MS)
    page.wait_for_timeout(1500)  # what is drawn three times a second has been drawn with all that is there
    held = _take(page, "held-call")
    _run(page, cells, ["answer", "trip"])
    page.evaluate(_SHOW, _DASHBOARD)
    page.locator(f"{_DASHBOARD} .aw-incident").first.wait_for(timeout=LONG_MS)
    page.wait_for_timeout(1500)
    frozen = _take(page, "frozen")
    page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.evaluate(_SHOW, f"{_DASHBOARD} .aw-panel-gpu")
    page.locator(f"{_DASHBOARD} .aw-panel-gpu .js-plotly-plot").first.wait_for(timeout=LONG_MS)
    page.wait_for_timeout(2500)
    charts = _take(page, "charts-dark")
    page.evaluate(_SHOW, _DASHBOARD)
    page.locator(f"{_DASHBOARD} .aw-kill").click()
    page.locator(f"{_DASHBOARD} .aw-kill-switch[data-phase=confirmed]").wait_for(timeout=LONG_MS)
    page.wait_for_timeout(1500)
    killed = OUT / "killed.png"
    page.locator(f"{_DASHBOARD} .aw-top").screenshot(path=killed)
    return [held, frozen, charts, killed]


def _opened(page: Page, lab: Lab, name: str) -> dict[str, int]:
    """Open a notebook alone and wait for its kernel; return the positions of its cells by their ids."""
    page.goto(f"{lab.base}lab/workspaces/{name}/tree/{name}.ipynb?token={lab.token}")
    page.wait_for_function(_IS_READY, arg=f"{name}.ipynb", timeout=LONG_MS)
    # The list of files tells nothing here, and takes a quarter of the picture.
    page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")
    notebook: Any = nbformat.read(lab.folder / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)
    return {cell.id: index for index, cell in enumerate(notebook.cells)}


def _run(page: Page, cells: dict[str, int], names: Sequence[str]) -> None:
    for name in names:
        page.evaluate(_RUN, cells[name])


def _take(page: Page, name: str) -> Path:
    path = OUT / f"{name}.png"
    page.screenshot(path=path)
    return path


if __name__ == "__main__":
    sys.exit(main())
