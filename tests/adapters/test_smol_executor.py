"""The real smolagents, with a model that says what the test wants, on our executor."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from smolagents import CodeAgent, tool
from smolagents.models import ChatMessage, MessageRole, Model
from smolagents.utils import AgentError

from jupyter_agentwatch import Watch
from jupyter_agentwatch.agents.adapters.smol_executor import AgentwatchExecutor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.sandbox


class Scripted(Model):
    """A model that says one action after the other."""

    def __init__(self, *actions: str) -> None:
        super().__init__(model_id="scripted")
        self._actions = iter(actions)

    def generate(self, *_: Any, **__: Any) -> ChatMessage:
        """Say the next one."""
        return ChatMessage(
            role=MessageRole.ASSISTANT, content=f"Thought: go on\n<code>\n{next(self._actions)}\n</code>"
        )


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[AgentwatchExecutor]:
    """An executor in a watch of its own."""
    with Watch(workspace=tmp_path) as watch:
        made = AgentwatchExecutor(watch, timeout=20)
        yield made
        made.cleanup()


@tool
def doubled(number: int) -> int:
    """Double a number.

    Args:
        number: The number.
    """
    return 2 * number


def test_an_agent_runs_to_its_answer(executor: AgentwatchExecutor, tmp_path: Path) -> None:
    """State lasts from action to action, tools run inside, and the answer comes back as it is."""
    model = Scripted(
        "x = doubled(20)\nopen('made', 'w').write(str(x))\nprint('made it')",
        "y = x + 1\nraise ValueError('a mistake')",
        "final_answer({'x': x, 'y': y, 'list': [1, (2, 3)]})",
    )
    agent = CodeAgent(tools=[doubled], model=model, executor=executor, max_steps=5, verbosity_level=0)
    assert agent.run("Do it.") == {"x": 40, "y": 41, "list": [1, (2, 3)]}
    assert (tmp_path / "made").read_text() == "40"
    seen = str([step.observations for step in agent.memory.steps[1:]])
    assert "made it" in seen
    errors = [str(step.error) for step in agent.memory.steps[1:] if getattr(step, "error", None)]
    assert len(errors) == 1
    assert "a mistake" in errors[0]


def test_it_runs_inside(executor: AgentwatchExecutor) -> None:
    """The code meets the walls of the watch, and its programs' output is in the logs."""
    code = "import os, subprocess, socket\nsubprocess.run(['echo', 'from a program'])\nos.getuid()"
    output = executor(code)
    assert output.logs == "from a program\n"
    with pytest.raises(AgentError, match="PermissionError"):
        executor("socket.create_connection(('198.51.100.7', 443))")
    connects = executor.watch.events(kind="connect", verdict="deny")
    assert list(connects["addr"]) == ["198.51.100.7"]


def test_variables_are_sent(executor: AgentwatchExecutor) -> None:
    """What a run is given beside its task is there under its name."""
    executor.send_variables({"given": {"a": [1, 2]}})
    assert executor("given['a']").output == "[1, 2]"


def test_an_action_that_takes_too_long_is_interrupted(tmp_path: Path) -> None:
    """A timeout is an error for the agent; what was defined before is still there."""
    with Watch(workspace=tmp_path) as watch:
        executor = AgentwatchExecutor(watch, timeout=0.5)
        executor("kept = 7")
        with pytest.raises(AgentError, match="KeyboardInterrupt"):
            executor("import time\ntime.sleep(60)")
        assert executor("kept").output == "7"


def test_an_action_that_ends_the_interpreter_is_told(executor: AgentwatchExecutor) -> None:
    """An exit of the interpreter is an error for the agent, and the next action has a new one."""
    executor("kept = 7")
    with pytest.raises(AgentError, match="the interpreter is gone"):
        executor("import os\nos._exit(3)")
    assert executor("1 + 1").output == "2"
    with pytest.raises(AgentError, match="NameError"):
        executor("kept")


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfor fd in range(2, 9):\n    try: os.write(fd, b'{}\\nnot json\\n[[\\n')\n    except OSError: pass",
        "this is no Python",
        "'\\0'",
        "raise SystemExit",
        "class FinalAnswerException(BaseException):\n    value = 'pickle:gASVAAAA'\nraise FinalAnswerException()",
    ],
)
def test_hostile_actions_do_no_harm(executor: AgentwatchExecutor, code: str) -> None:
    """Whatever an action says or forges, it is an output or an error, and the next one runs; nothing is unpickled."""
    with suppress(AgentError):
        executor(code)
    assert executor("1 + 1").output == "2"


def test_a_kill_ends_it_without_a_reason(executor: AgentwatchExecutor) -> None:
    """After a kill each action fails, and the agent is not told why."""
    executor("kept = 7")
    executor.watch.kill("a person's reason")
    with pytest.raises(AgentError) as caught:
        executor("kept")
    assert "a person's reason" not in str(caught.value)
