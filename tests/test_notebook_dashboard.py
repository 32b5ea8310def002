"""The notebook about the dashboard, from top to bottom in a real kernel, with nobody there to click."""

from __future__ import annotations

from typing import Any

import pytest

from jupyter_agentwatch.audit.reader import list_logs
from jupyter_agentwatch.audit.verify import verify_log
from tests.books import executed_book

pytestmark = pytest.mark.sandbox

VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every cell's outputs by the cell's id; a cell that fails fails the test."""
    return executed_book("02_live_dashboard.ipynb", tmp_path_factory.mktemp("book"))


def test_every_cell_runs_and_the_run_leaves_nothing(executed: dict[str, Any]) -> None:
    """Its assertions hold, its one log verifies, and its kill left no process."""
    (log,) = list_logs(executed["folder"] / "log")
    assert verify_log(log.path).ok
    (killed,) = executed["kill"]
    assert "survivors=0" in killed.data["text/plain"]


def test_what_is_shown_is_live_and_has_a_text_beside_it(executed: dict[str, Any]) -> None:
    """Dashboard, panels and figure are widgets and plotly's JSON; each has a text for where neither can be drawn."""
    views = [output for name in ("dashboard", "layout") for output in executed[name] if VIEW in output.get("data", {})]
    assert len(views) == 2
    assert all(view.data["text/plain"] for view in views)
    (figure,) = executed["figure"]
    assert figure.data["application/vnd.plotly.v1+json"]["data"]
    assert "SIMULATED" in str(figure.data)


def test_what_it_teaches_is_on_record(executed: dict[str, Any]) -> None:
    """The trip's incident is mining and moved the breaker; the held call had time left."""
    text = "".join(output.get("text", "") for name in ("answer", "trip", "incident") for output in executed[name])
    assert "s are left to answer" in text
    assert "s until kill" in text
    assert "critical" in text
    assert "breaker: closed -> frozen" in text
