"""Whole agent programs inside, with a model through the proxy: as they are installed, and without a credential."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from jupyter_agentwatch import Watch
from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.events import ModelCall
from tests.model_upstream import KEY, MODEL, ModelService, chat

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.sandbox

MINI_ENV = {
    "MSWEA_SILENT_STARTUP": "1",
    "MSWEA_CONFIGURED": "true",
    "MSWEA_COST_TRACKING": "ignore_errors",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # otherwise it is looked for on the network, first
}

PROGRAM = [
    *(sys.executable, "-m", "minisweagent", "-t", "Make a file.", "-m", f"openai/{MODEL}", "-y"),
    *("--exit-immediately", "-o", "trajectory.json"),
]


def test_mini_swe_agents_command_line_runs_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole agent program, as it is installed, works inside with nothing but the variables of the proxy."""
    actions = ["echo made by mini > made.txt", "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT; cat made.txt"]
    monkeypatch.setenv("TEST_MODEL_KEY", KEY)

    def answer(number: int, *_: object) -> Any:
        return chat(None, calls=[("bash", json.dumps({"command": actions[min(number, 1)]}))])

    with ModelService(answer=answer) as service, Watch(policy=service.policy(), workspace=tmp_path) as watch:
        result = watch.run(PROGRAM, env=MINI_ENV, timeout=200)
    assert (tmp_path / "made.txt").read_text() == "made by mini\n", result.stderr[-2000:]
    trajectory = json.loads((tmp_path / "trajectory.json").read_text())
    assert trajectory["info"]["exit_status"] == "Submitted"
    asked = [e for e in read_events(watch.log, kinds={"model"}) if isinstance(e, ModelCall) and e.op == "response"]
    assert [each.tool_calls for each in asked] == [[f"bash {json.dumps({'command': a})}"] for a in actions]
