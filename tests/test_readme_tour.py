"""The README's tour, command by command as it stands there: what it tells a newcomer to type works."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from IPython.core.error import UsageError

from jupyter_agentwatch.testing import ScriptedModel, calls
from tests.shells import displayed, shell_with_magics

if TYPE_CHECKING:
    from jupyter_agentwatch import Watch

pytestmark = pytest.mark.sandbox

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    """Return the tour's blocks of a language."""
    tour = README.read_text().split("\n## Five minutes\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", tour, re.DOTALL | re.MULTILINE)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the folder as the tour does, and stand beside it."""
    monkeypatch.chdir(tmp_path)
    (shell,) = blocks("sh")
    made = [line for line in shell.splitlines() if line.startswith("mkdir")]
    subprocess.run(["sh", "-ec", "\n".join(made)], check=True)
    return tmp_path / "project"


def test_the_python_of_the_tour_runs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The denied connection is shown, the change taken back, the agent finishes, nothing is left."""
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(compile(block, str(README), "exec"), names)  # noqa: S102 -- our own text
    watch: Watch = names["watch"]
    shown = capsys.readouterr().out
    assert names["result"].stdout.splitlines()[-1] == "all 3 tests pass"
    assert "198.51.100.7" in shown
    assert "path='result.txt'" in shown
    assert "finished done" in shown
    assert [step.observation.exit_code for step in names["run"].steps] == [0, None]
    assert "survivors=0" in shown
    assert watch.has_ended
    assert "<html" in (project.parent / "report.html").read_text()


def test_the_cells_of_the_tour_run(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each paragraph is a cell; the model is a script on loopback; help is there for both magics."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    (cells,) = blocks("text")
    with ScriptedModel([calls(("shell", {"command": "make test"}))]) as model, shell_with_magics() as shell:
        monkeypatch.setenv("OPENAI_BASE_URL", model.url)
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        for cell in cells.strip().split("\n\n"):
            assert shell.run_cell(cell + "\n").error_in_exec is None
        shown = "".join(data.get("text/plain", "") for data in displayed(shell))
        for line in ("%agentwatch --help", "%agentwatch agent --help"):
            assert shell.run_cell(line).error_in_exec is None
        assert isinstance(shell.run_cell("%agentwatch made-up").error_in_exec, UsageError)
        assert shell.run_cell("%agentwatch kill").error_in_exec is None
    assert "finished after" in shown
    said = capsys.readouterr().out
    assert "step 1: exit 0" in shown
    assert "all 3 tests pass" in said
    assert "usage: %%agentwatch agent" in said
    assert (project / "result.txt").exists()
