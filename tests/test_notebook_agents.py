"""The notebook about agents, from top to bottom in a real kernel; its model is a script on loopback."""

from __future__ import annotations

from typing import Any

import pytest

from jupyter_agentwatch.audit.reader import list_logs, read_events
from jupyter_agentwatch.audit.verify import verify_log
from jupyter_agentwatch.events import AgentNote
from tests.books import executed_book

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every cell's outputs by the cell's id; a cell that fails fails the test."""
    return executed_book("05_bring_your_own_agent.ipynb", tmp_path_factory.mktemp("book"))


def test_every_cell_runs_and_every_run_has_an_end_on_record(executed: dict[str, Any]) -> None:
    """Its assertions hold, its logs verify, and each run has its outcome in it, the killed one, too."""
    logs = [log.path for log in list_logs(executed["folder"] / "log")]
    assert len(logs) == 2
    assert all(verify_log(log).ok for log in logs)
    notes = [event for log in logs for event in read_events(log) if isinstance(event, AgentNote)]
    begun = [note.run for note in notes if note.op == "begin"]
    ended = {note.run: note.outcome for note in notes if note.op == "end"}
    assert [ended.get(run) for run in begun[:8]] == [*["finished"] * 7, "stopped"]
    assert len(begun) == 9
    assert ended[begun[8]] == "killed"


def test_what_it_shows_is_plain_text_and_a_figure(executed: dict[str, Any]) -> None:
    """Steps are lines of text, the rewards a figure with the terms by their names."""
    steps = "".join(output.get("text", "") for output in executed["run"])
    assert [line.split()[:2] for line in steps.splitlines()] == [
        ["1", "shell"],
        ["2", "edit"],
        ["3", "shell"],
        ["4", "finish"],
    ]
    (figure,) = executed["figure"]
    traces = figure.data["application/vnd.plotly.v1+json"]["data"]
    assert [trace["name"] for trace in traces] == [
        "return",
        "check passes",
        "price.egress_denied",
        "price.finding",
    ]
