"""Telemetry where people meet it: a live figure in a real kernel, the magics and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.manager import start_new_kernel

from jupyter_agentwatch import Watch
from jupyter_agentwatch.cli import main as command_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jupyter_client.blocking.client import BlockingKernelClient

pytestmark = pytest.mark.sandbox

ROOT = Path(__file__).parent.parent
PATIENCE_S = 60.0
OPEN = """
import ipywidgets
from jupyter_agentwatch import Watch
watch = Watch({"telemetry": {"simulate_gpus": 1}}, workspace=".")
figure = watch.figure_widget("gpu")
print(figure.model_id)
ipywidgets.VBox([figure])
"""
BURN = """
result = watch.run(["python3", "-c", "import time\\nend = time.monotonic() + 3\\nwhile time.monotonic() < end: pass"])
print(result.duration_s)
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[BlockingKernelClient]:
    """A kernel in a folder of its own, which is no place to import from."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    manager, client = start_new_kernel(kernel_name="python3", env=environment, cwd=str(tmp_path))
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    manager.cleanup_resources()


def run_cell(client: BlockingKernelClient, source: str) -> list[dict[str, Any]]:
    """Run a cell and return everything that the kernel said until it had ended."""
    asked = client.execute(source)
    said: list[dict[str, Any]] = []
    while True:
        message = client.get_iopub_msg(timeout=PATIENCE_S)
        said.append(message)
        if message["msg_type"] == "error":
            pytest.fail("\n".join(message["content"]["traceback"]))
        is_ours = message["parent_header"].get("msg_id") == asked
        if is_ours and message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            return said


def printed(said: list[dict[str, Any]]) -> str:
    """Return what a cell printed."""
    return "".join(each["content"]["text"] for each in said if each["msg_type"] == "stream").strip()


def updates(said: list[dict[str, Any]], model: str) -> list[dict[str, Any]]:
    """Return the updates that plotly was sent for a figure."""
    found = [
        each["content"]["data"].get("state", {}).get("_py2js_update")
        for each in said
        if each["msg_type"] == "comm_msg" and each["content"]["comm_id"] == model
    ]
    return [each for each in found if each]


def test_a_live_figure_moves_while_a_cell_runs_and_stops_when_it_is_closed(kernel: BlockingKernelClient) -> None:
    """In a box of a real kernel it is updated at most twice a second during a cell, and not after `close`."""
    opened = run_cell(kernel, OPEN)
    model = printed(opened)
    (shown,) = [each for each in opened if each["msg_type"] == "execute_result"]
    assert "application/vnd.jupyter.widget-view+json" in shown["content"]["data"]
    during = run_cell(kernel, BURN)
    told = updates(during, model)
    assert 2 <= len(told) <= 2 * float(printed(during)) + 2
    assert all(set(each["style_data"]) <= {"x", "y"} for each in told)
    closed = run_cell(kernel, "figure.close()")
    assert next(each["content"]["comm_id"] for each in closed if each["msg_type"] == "comm_close") == model
    after = run_cell(kernel, BURN)
    assert updates(after, model) == []
    run_cell(kernel, "watch.kill()")


def test_the_magics_start_simulated_gpus_and_say_so(kernel: BlockingKernelClient) -> None:
    """`%agentwatch start --simulate-gpu 2` and `status` show that the GPUs are simulated; a wrong number is refused."""
    shown = run_cell(kernel, "%load_ext jupyter_agentwatch\n%agentwatch start --simulate-gpu 2")
    assert "GPUs are SIMULATED: 2" in str([each["content"] for each in shown])
    status = run_cell(kernel, "%agentwatch status")
    assert "GPUs are SIMULATED: 2" in str([each["content"] for each in status])
    refused = kernel.execute_interactive("%agentwatch start --simulate-gpu 65", silent=False, allow_stdin=False)
    assert refused["content"]["status"] == "error"
    assert "from 1 to 64" in refused["content"]["evalue"]
    run_cell(kernel, "%agentwatch kill")


def test_the_command_line_starts_simulated_gpus_and_says_so(tmp_path: Path) -> None:
    """`run --simulate-gpu 1` labels its summary; the record of it bears the label, too."""
    argv = [sys.executable, "-m", "jupyter_agentwatch.cli", "run", "--workspace", str(tmp_path), "--simulate-gpu", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*argv, "--", "python3", "-c", "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass"],
        capture_output=True,
        cwd=ROOT,
        env=environment,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "GPUs are SIMULATED: 1" in done.stderr
    log = done.stderr.split("log ")[1].split()[0]
    assert '"source":"simulated","simulated":true' in Path(log).read_text("utf-8")


@pytest.mark.parametrize("count", ["0", "65", "-1", "two", "1.5"])
def test_a_number_of_gpus_out_of_range_is_refused(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line names the range before anything starts."""
    assert command_line(["run", f"--simulate-gpu={count}", "--", "true"]) == 125
    assert "from 1 to 64" in capsys.readouterr().err


def test_the_figures_of_a_real_watch_have_its_connections_and_samples(tmp_path: Path) -> None:
    """What a command really did is in the figures, also after the watch has ended."""
    with Watch(workspace=tmp_path) as watch:
        watch.run("exec 3<>/dev/tcp/198.51.100.7/4444 || true")
        while watch.telemetry().empty:
            watch.status()
        live = watch.figure_widget("connections")
        assert live.is_live
    shown = watch.figure("connections")
    texts = [text for trace in shown.data for text in (trace.text or ())]
    assert any(text.startswith("bash (pid ") for text in texts)
    assert any("198.51.100.7:4444" in text and "1 denied" in text for text in texts)
    assert "denied" in {trace.name for trace in shown.data if trace.x is not None and len(trace.x)}
    assert len(watch.figure("resources").data[0].x) > 0
    with pytest.raises(ValueError, match="figure: 'cpu' is none of gpu, resources, connections"):
        watch.figure("cpu")  # type: ignore[arg-type]
    live.close()
