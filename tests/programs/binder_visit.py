"""What a visitor of Binder does: starts the server by binder/start, opens the page, runs the notebook; says what was.

`binder_visit.py TREE NOTEBOOK` prints JSON. The memory is the largest sum of the resident memory of this process
and all that come of it, shared pages counted for each: an upper bound of what a container would need.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import psutil

TREE, NOTEBOOK = Path(sys.argv[1]), sys.argv[2]
PORT = 8888
TOKEN = "visitor"
PATIENCE_S = 90.0


class Meter(threading.Thread):
    """Looks at the memory of this process and all that come of it ten times a second."""

    def __init__(self) -> None:
        """Begin at once."""
        super().__init__(daemon=True)
        self.peak = 0
        self.over = threading.Event()
        self.start()

    def run(self) -> None:
        """Measure until it is over."""
        own = psutil.Process()
        while not self.over.wait(0.1):
            resident = 0
            for process in (own, *own.children(recursive=True)):
                with contextlib.suppress(psutil.Error):  # it has ended
                    resident += process.memory_info().rss
            self.peak = max(self.peak, resident)


def fetch(path: str) -> tuple[str, str]:
    """Return the address that a page led to, and its text."""
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}?token={TOKEN}", timeout=30) as answer:
        return answer.url, answer.read().decode()


def opened() -> tuple[str, str]:
    """Return where the front page leads, as soon as the server answers."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return fetch("/")
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


meter = Meter()
lab = ["python", "-m", "jupyter", "lab", "--no-browser", f"--port={PORT}", f"--IdentityProvider.token={TOKEN}"]
with Path("server.log").open("w") as log:
    server = subprocess.Popen([TREE / "binder/start", *lab], cwd=TREE, stderr=log, stdout=log)
try:
    address, page = opened()
    _, document = fetch(f"/api/contents/notebooks/{NOTEBOOK}.ipynb")
    runner = ["python", "notebooks/run_demo.py", "--out", str(Path.cwd() / "out"), f"notebooks/{NOTEBOOK}.ipynb"]
    executed = subprocess.run(runner, cwd=TREE, capture_output=True, text=True, check=False)
finally:
    server.terminate()
    server.wait(30)
    meter.over.set()
cells = json.loads((Path("out") / NOTEBOOK / f"{NOTEBOOK}.ipynb").read_text())["cells"]
text = [line for cell in cells for out in cell.get("outputs", []) for line in out.get("text", [])]
sys.stdout.write(
    json.dumps(
        {
            "address": address,
            "is_lab": "jupyterlab" in page.lower(),
            "cells": len(json.loads(document)["content"]["cells"]),
            "code": executed.returncode,
            "said": executed.stdout[-3000:] + executed.stderr[-3000:],
            "output": "".join(text),
            "peak": meter.peak,
            "log": Path("server.log").read_text(),
        }
    )
)
