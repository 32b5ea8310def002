"""The notebooks, from top to bottom in real kernels, as `make demo` runs them; each asserts its own promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.sandbox

ROOT = Path(__file__).parent.parent
LONG_S = 300


@pytest.mark.parametrize("name", ["01_quickstart", "03_rome_incident", "04_reward_hacking_lab", "06_investigate"])
def test_a_notebook_runs_from_top_to_bottom(name: str, tmp_path: Path) -> None:
    """Every cell succeeds, every log verifies, nothing survives, and the executed notebook is there."""
    argv = [sys.executable, "notebooks/run_demo.py", "--out", str(tmp_path), f"notebooks/{name}.ipynb"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LONG_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / name / f"{name}.ipynb").exists()
    assert " 0 left" in done.stdout
