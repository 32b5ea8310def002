"""`%%agentwatch agent` in a shell with the extension: steps as lines, the end in words, mistakes in one line."""

from __future__ import annotations

import _thread
import sys
from typing import TYPE_CHECKING, Any

import pytest
from IPython.core.error import UsageError

from jupyter_agentwatch import Watch
from jupyter_agentwatch.agents import AgentRun, Edit, Finish, Outcome, Say, Shell, write_trajectory
from jupyter_agentwatch.testing import ScriptedModel, calls, fake_supervisor
from tests.shells import displayed, shell_with_magics

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from IPython.core.interactiveshell import InteractiveShell


class Cells:
    """A shell whose magics use a watch that confines nothing, and what its cells showed."""

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell = shell

    def run(self, source: str) -> tuple[str, Any]:
        """Run a cell; return what it displayed and the error that it ended with, if any."""
        error = self.shell.run_cell(source).error_in_exec
        return "\n".join(data["text/plain"] for data in displayed(self.shell)), error


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cells]:
    """A shell without history; the recorded commands of a test are its own, so that nothing need confine them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w").mkdir()
    with shell_with_magics() as shell, Watch(workspace=tmp_path / "w", supervisor=fake_supervisor()) as watch:
        shell.user_ns["mine"] = watch
        made = Cells(shell)
        made.run("%agentwatch use mine")
        yield made


def test_a_replay_is_shown_step_by_step(cells: Cells, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each step is one line without any escape of the agent's, then the end, the answer and the log's head."""
    path = tmp_path / "run.jsonl"
    write_trajectory(path, [Shell("exit 3"), Say("\x1b[2J\nhm"), Finish("done \u202e")], task="try", agent="old")
    capsys.readouterr()
    shown, error = cells.run(f"%%agentwatch agent --replay {path} --out run\n \n")
    assert error is None
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["1", "shell"], ["2", "say"], ["3", "finish"]]
    assert "exit 3" in lines[0]
    assert all(line.isprintable() for line in lines)
    assert "finished after 3 steps" in shown
    assert "answer: done \\u202e" in shown
    assert "head " in shown
    run = cells.shell.user_ns["run"]
    assert isinstance(run, AgentRun)
    assert (run.outcome, run.task) == (Outcome.FINISHED, "try")


def test_an_edit_is_shown_with_its_diff(cells: Cells, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Below an edit stands what it changed, below a refused one why; a long diff is cut, and controls are escaped."""
    path = tmp_path / "run.jsonl"
    edits = [Edit("a.txt", "", "one\n\x1b[2Jtwo\n"), Edit("a.txt", "three", "3"), Edit("b.txt", "", "line\n" * 40)]
    write_trajectory(path, edits, task="write")
    capsys.readouterr()
    _, error = cells.run(f"%%agentwatch agent --replay {path}\n \n")
    assert error is None
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:6] == ["--- /dev/null", "+++ b/a.txt", "@@ -0,0 +1,2 @@", "+one", "+\\x1b[2Jtwo"]
    assert lines[6].startswith("2 edit     exit 1")
    assert lines[7] == "nothing was changed: the passage stands 0 times in the file, not once"
    assert (lines[9], lines[20], lines[21]) == ("--- /dev/null", "+line", "… 31 more lines")


def test_without_a_body_the_line_magic_does_it(
    cells: Cells, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """IPython takes no cell magic without a body; as a line, a recording is replayed and the help is shown."""
    path = tmp_path / "run.jsonl"
    write_trajectory(path, [Finish("done")], task="try", agent="old")
    shown, error = cells.run(f"%agentwatch agent --replay {path}")
    assert error is None
    assert "finished after 1 step" in shown
    capsys.readouterr()
    assert cells.run("%agentwatch agent --help") == ("", None)
    assert "usage: %%agentwatch agent" in capsys.readouterr().out
    _, error = cells.run("%agentwatch agent --model m --base-url http://127.0.0.1:9/v1")
    assert isinstance(error, UsageError)
    assert "task is empty" in str(error)


def test_a_model_gets_the_cell_as_its_task(cells: Cells) -> None:
    """The cell's text is the task, the endpoint the one that is named, and the cost is told."""
    with ScriptedModel([calls(("shell", {"command": "echo hello"}))]) as model:
        shown, error = cells.run(f"%%agentwatch agent --model m --base-url {model.url} --max-steps 5\nsay hello")
    assert error is None
    assert model.requests[0]["messages"][1]["content"] == "say hello\n"
    assert "200+20 tokens" in shown


@pytest.mark.parametrize("bound", ["--price-in 2000 --price-out 2000 --max-cost 0.2", "--max-tokens 100"])
def test_a_budget_bounds_what_a_model_costs(cells: Cells, bound: str) -> None:
    """With prices the cost of a reply is known where the endpoint does not say it; a bound ends the run."""
    with ScriptedModel([calls(("shell", {"command": "true"}))] * 9) as model:
        shown, error = cells.run(f"%%agentwatch agent --model m --base-url {model.url} {bound}\nsay hello")
    assert error is None
    assert "budget after 1 steps" in shown
    assert len(model.requests) == 1
    assert ("0.2200 USD" in shown) == ("--price" in bound)


class Pressing:
    """A standard output that presses ■ at the first line."""

    def write(self, _text: str) -> None:
        """Interrupt the main thread."""
        _thread.interrupt_main()

    def flush(self) -> None:
        """Keep nothing back."""


def test_interrupting_the_cell_stops_the_run(cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """■ ends the agent's command and the run, and the next cells do not run."""
    path = tmp_path / "run.jsonl"
    write_trajectory(path, [Say("first"), Shell("exec sleep 600")])
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Pressing())
        shown, error = cells.run(f"%%agentwatch agent --replay {path} --out run\n \n")
    assert isinstance(error, UsageError)
    assert str(error) == "interrupted"
    assert "stopped after" in shown
    assert cells.shell.user_ns["run"].outcome is Outcome.STOPPED


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("agent", "one of the arguments --model --replay is required"),
        ("agent --replay none.jsonl", "none.jsonl: cannot read the trajectory"),
        ("agent --model m --replay x", "not allowed with"),
        ("agent --model m --base-url http://127.0.0.1:9/v1", "task is empty"),
        ("agent --model m --max-steps 0", "'0' is not a whole number from 1"),
        ("agent --model m --max-cost nan", "'nan' is not a positive number"),
    ],
)
def test_a_mistake_is_one_line(cells: Cells, line: str, says: str) -> None:
    """What cannot be run is told as a usage error, never a traceback."""
    _, error = cells.run(f"%%agentwatch {line}\n ")
    assert isinstance(error, UsageError)
    assert says in str(error)
