"""The real mini-swe-agent, with a model that says what the test wants, on our environment."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from minisweagent.agents.default import DefaultAgent
from minisweagent.environments import get_environment
from minisweagent.exceptions import InterruptAgentFlow
from minisweagent.models.test_models import DeterministicModel, make_output

from jupyter_agentwatch import Watch
from jupyter_agentwatch.agents.adapters.mini_swe import AgentwatchEnvironment
from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.errors import PolicyError
from jupyter_agentwatch.events import Step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.sandbox

DONE = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT; echo the answer"


@pytest.fixture
def env(tmp_path: Path) -> Iterator[AgentwatchEnvironment]:
    """An environment of its own, made as mini-swe-agent makes it from a configuration file."""
    name = "jupyter_agentwatch.agents.adapters.mini_swe.AgentwatchEnvironment"
    made = get_environment({"environment_class": name, "workspace": str(tmp_path), "env": {"COLOUR": "blue"}})
    assert isinstance(made, AgentwatchEnvironment)
    yield made
    made.cleanup()


def played(env: AgentwatchEnvironment, *commands: str) -> tuple[dict[str, Any], DefaultAgent]:
    """Run the agent with a model that runs these commands, one in each turn."""
    outputs = [make_output("I act.", [{"command": command}]) for command in commands]
    templates = {"system_template": "You work in {{cwd}} on {{system}}.", "instance_template": "{{task}}"}
    agent = DefaultAgent(DeterministicModel(outputs=outputs), env, cost_limit=0.0, **templates)
    return agent.run("Do it."), agent


def test_an_agent_runs_to_its_submission(env: AgentwatchEnvironment, tmp_path: Path) -> None:
    """Each action is a step of the watch, the agent sees its output, and its submission is the run's."""
    extra, agent = played(env, "echo $COLOUR > made; cat made; echo oops >&2; exit 3", DONE)
    assert extra == {"exit_status": "Submitted", "submission": "the answer\n"}
    assert (tmp_path / "made").read_text() == "blue\n"
    seen = str(agent.messages)
    assert "blue" in seen
    assert "oops" in seen
    steps = [e for e in read_events(env.watch.log, kinds={"step"}) if isinstance(e, Step)]
    assert [e.exit_code for e in steps if e.op == "end"] == [3, 0]
    info = agent.serialize()["info"]
    assert info["agentwatch"]["log"] == str(env.watch.log)


def test_prompts_learn_nothing_of_our_environment(env: AgentwatchEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a prompt may name holds the workspace, and no variable of the process that runs the agent."""
    monkeypatch.setenv("SECRET_TOKEN", "sesame")
    variables = env.get_template_vars(task="t")
    assert variables["cwd"] == str(env.watch.workspace)
    assert "sesame" not in str(variables)


def test_a_command_that_takes_too_long_is_told_to_the_agent(env: AgentwatchEnvironment) -> None:
    """A timeout is an observation with the output so far, and the next command runs."""
    output = env.execute({"command": "echo begun; sleep 60"}, timeout=0.3)
    assert output["output"] == "begun\n"
    assert "timed out after 0.3 s" in output["exception_info"]
    assert env.execute({"command": "echo on"})["output"] == "on\n"


@pytest.mark.parametrize("command", ["a\0b", "\ud800"])
def test_a_command_that_cannot_be_one_is_told_to_the_agent(env: AgentwatchEnvironment, command: str) -> None:
    """Nonsense from a model is an observation, not the end of the run."""
    output = env.execute({"command": command})
    assert output["returncode"] == -1
    assert output["exception_info"]


def test_a_suspended_watch_holds_the_agent(env: AgentwatchEnvironment) -> None:
    """While the watch is suspended the next action waits; after the resume it runs, and nothing is told of it."""
    env.watch.suspend()
    outputs: list[dict[str, Any]] = []
    agent = threading.Thread(target=lambda: outputs.append(env.execute({"command": "echo on"})))
    agent.start()
    agent.join(0.5)
    assert agent.is_alive()
    env.watch.resume()
    agent.join(60)
    assert outputs == [{"output": "on\n", "returncode": 0, "exception_info": ""}]


def test_a_kill_ends_the_agent(env: AgentwatchEnvironment) -> None:
    """After a kill the run is over: the exit is not one that the agent could have made, and gives no reason."""
    env.watch.kill("a person's reason")
    extra, agent = played(env, "echo still here", DONE)
    assert extra == {"exit_status": "SandboxEnded", "submission": ""}
    assert "a person's reason" not in str(agent.messages)
    with pytest.raises(InterruptAgentFlow):
        env.execute({"command": "true"})


def test_a_watch_of_ours_lives_on(closed: Watch) -> None:
    """An environment on a given watch does not end it."""
    environment = AgentwatchEnvironment(closed)
    assert environment.execute({"command": "echo hello"})["output"] == "hello\n"
    environment.cleanup()
    assert closed.run(["true"]).ok


def test_a_wrong_policy_is_refused(tmp_path: Path) -> None:
    """A misspelt key of the policy names itself, and nothing starts."""
    with pytest.raises(PolicyError, match="netwrok"):
        AgentwatchEnvironment(policy={"netwrok": {}}, workspace=str(tmp_path))
