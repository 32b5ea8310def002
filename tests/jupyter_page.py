"""A real JupyterLab or Notebook 7 in a real Chromium, for tests that press buttons as a person does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import nbformat
from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from playwright.sync_api import Browser, Page

ROOT: Final = Path(__file__).parent.parent
LONG_MS: Final = 100_000
"""Upper bound of every wait in a page: reached only when a test fails."""

_TOKEN: Final = "agentwatch-test"
_ADDRESS: Final = re.compile(r"http://127\.0\.0\.1:(\d+)(/(?:\S*/)?)(?:lab|tree)")
# A machine without a way out would have each of Chromium's own requests refused, one by one.
_CHROMIUM_FLAGS: Final = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
_KERNEL_IS_IDLE: Final = """(path) => {
    const panel = window.jupyterapp?.shell.currentWidget;
    const isOpen = panel?.context?.path === path && panel.content?.widgets?.length;
    return isOpen && panel.sessionContext?.session?.kernel?.status === "idle";
}"""
_OPEN_ALONE: Final = """async (path) => {
    const { shell, commands } = window.jupyterapp;
    for (const panel of [...shell.widgets("main")]) {
        if (panel.context) panel.context.model.dirty = false; // or it asks whether to save
        panel.close();
    }
    await commands.execute("docmanager:open", { path });
}"""
_SETTINGS: Final = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}


@dataclass(frozen=True)
class Lab:
    """A Jupyter server of a test's own.

    Attributes:
        base: Its URL with the base path, and a slash at the end.
        folder: Where its notebooks are.
        runtime: Folder of control sockets that its kernels use.
        logs: Folder of audit logs that its kernels use.
        token: What lets a page in.
    """

    base: str
    folder: Path
    runtime: Path
    logs: Path
    token: str = _TOKEN

    def notebook(self, name: str, cells: Sequence[str]) -> Path:
        """Write a notebook with code cells."""
        book = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        )
        path = self.folder / f"{name}.ipynb"
        nbformat.write(book, path)
        return path

    def address(self, name: str, app: str = "lab") -> str:
        """Return the URL of a notebook in JupyterLab ("lab") or Notebook 7 ("notebooks")."""
        where = "lab/tree" if app == "lab" else "notebooks"
        return f"{self.base}{where}/{name}.ipynb?token={self.token}"

    def get(self, path: str) -> Any:
        """Return the JSON that the server answers with."""
        request = urllib.request.Request(self.base + path, headers={"Authorization": f"token {self.token}"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 -- our own server
            return json.load(answer)


@contextlib.contextmanager
def running_lab(base_url: str = "/") -> Iterator[Lab]:
    """Start a server with the extension from this checkout, and end it with all its kernels."""
    # Short names: a control socket's path has 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="awp-", dir="/tmp"))
    for name in ("books", "config/labconfig", "data/labextensions", "runtime", "ipython", "settings", "spaces"):
        (home / name).mkdir(parents=True)
    for name in ("run", "log"):
        (home / name).mkdir(mode=0o700)
    (home / "data/labextensions/jupyter-agentwatch").symlink_to(ROOT / "jupyter_agentwatch" / "labextension")
    (home / "config/labconfig/default_setting_overrides.json").write_text(json.dumps(_SETTINGS))
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *_options(home, base_url)],
        cwd=home / "books",
        env=_environment(home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        base = _wait_until_ready(server)
        yield Lab(base, home / "books", home / "run", home / "log")
    finally:
        server.terminate()
        server.communicate(timeout=30)
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def running_chromium() -> Iterator[Browser]:
    """Start a browser, and end it."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert program, "no Chromium on PATH: `make test` installs Debian's package `chromium`, or says why it cannot"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_CHROMIUM_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def run_all(page: Page, lab: Lab, name: str, app: str = "lab", *, opened: bool = False) -> None:
    """Open a notebook, unless it is open, and start all its cells, without waiting for their ends.

    A page that shows JupyterLab already is kept, with what it showed before closed: to load it takes seconds.
    """
    if app == "lab" and not opened and page.url.startswith(f"{lab.base}lab"):
        page.evaluate(_OPEN_ALONE, f"{name}.ipynb")
    elif not opened:
        page.goto(lab.address(name, app))
    page.wait_for_function(_KERNEL_IS_IDLE, arg=f"{name}.ipynb", timeout=LONG_MS)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")


def _options(home: Path, base_url: str) -> list[str]:
    return [
        "--no-browser",
        "--allow-root",
        "--expose-app-in-browser",
        "--ServerApp.port=0",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.base_url={base_url}",
        f"--IdentityProvider.token={_TOKEN}",
        f"--ServerApp.root_dir={home / 'books'}",
        "--ServerApp.jpserver_extensions={'jupyter_agentwatch': True, 'notebook': True}",
        f"--LabApp.user_settings_dir={home / 'settings'}",
        f"--LabApp.workspaces_dir={home / 'spaces'}",
        "--JupyterNotebookApp.expose_app_in_browser=True",
    ]


def _environment(home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "AGENTWATCH_RUNTIME_DIR": str(home / "run"),
        "AGENTWATCH_LOG_DIR": str(home / "log"),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_PREFER_ENV_PATH": "0",  # or an extension that is installed beside this checkout's would be shown
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "PYTHONPATH": str(ROOT),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def _wait_until_ready(server: subprocess.Popen[str]) -> str:
    """Return the base URL that the server prints when it listens, and let nothing else that it prints block it."""
    assert server.stderr is not None
    said: list[str] = []
    for line in server.stderr:
        said.append(line)
        found = _ADDRESS.search(line)
        if found:
            threading.Thread(target=deque, args=(server.stderr, 0), daemon=True).start()
            return f"http://127.0.0.1:{found.group(1)}{found.group(2)}"
    raise AssertionError("JupyterLab did not start:\n" + "".join(said))
