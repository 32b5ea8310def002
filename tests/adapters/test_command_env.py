"""The real Gymnasium, on our environment of commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

from jupyter_agentwatch.agents.adapters.command_env import CommandEnv
from jupyter_agentwatch.errors import WorkspaceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.sandbox


@pytest.fixture
def env(tmp_path: Path) -> Iterator[CommandEnv]:
    """An environment that pays for a file named "made", and for saying little."""
    template = tmp_path / "template"
    template.mkdir()
    (template / "given").write_text("from the template\n")
    made = CommandEnv(
        reward=lambda r: {"made": float("made" in r.stdout), "words": -0.25 * len(r.stdout.split())},
        done=lambda r: r.stdout == "over\n",
        template=template,
        max_steps=3,
        max_output=40,
    )
    yield made
    made.close()


@pytest.mark.filterwarnings("ignore:.*Discrete action space.*", "ignore:.*render.*")
def test_gymnasium_accepts_the_environment() -> None:
    """Gymnasium's own check finds nothing: spaces, types, seeds, resets."""
    env = CommandEnv(max_command=8, timeout=5)
    check_env(env, skip_render_check=True)
    env.close()


def test_an_episode_adds_up_its_terms(env: CommandEnv) -> None:
    """Rewards are the sum of named terms, actions really change the workspace, and `done` ends the episode."""
    _, info = env.reset(seed=1)
    observation, reward, terminated, truncated, told = env.step("cat given; touch made; ls")
    assert observation == {"output": "from the template\ngiven\nmade\n", "exit_code": 0}
    assert told["terms"] == {"made": 1.0, "words": -1.25}
    assert (reward, terminated, truncated) == (-0.25, False, False)
    _, _, terminated, truncated, told = env.step("echo over")
    assert (terminated, truncated, told["step"]) == (True, False, 2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("true")
    assert env.observation_space.contains(observation)
    assert info["watch"]


def test_each_episode_begins_anew(env: CommandEnv, tmp_path: Path) -> None:
    """A reset ends the former watch and its workspace: an episode reaches neither the next nor the template."""
    env.reset()
    former = env.watch
    assert former is not None
    env.step("echo changed > given; touch made")
    env.reset()
    assert former.has_ended
    assert not former.workspace.exists()
    assert env.step("ls; cat given")[0]["output"] == "given\nfrom the template\n"
    assert (tmp_path / "template" / "given").read_text() == "from the template\n"


def test_an_episode_is_truncated_at_its_last_step(env: CommandEnv) -> None:
    """The step after which the episode has its full length says so."""
    env.reset()
    assert [env.step("true")[3] for _ in range(3)] == [False, False, True]


def test_hostile_output_stays_within_the_space(env: CommandEnv) -> None:
    """Escapes, other scripts and endless output are shown as bounded ASCII."""
    env.reset()
    observation, *_ = env.step("printf '\\033[2J\\342\\202\\254\\377'; yes | head -c 100000")
    assert env.observation_space.contains(observation)
    assert observation["output"].startswith("\\x1b[2J\\u20ac\\ufffd")
    assert "characters)" in observation["output"]


def test_what_is_no_command_is_an_observation(env: CommandEnv) -> None:
    """A NUL in an action is told, costs a step, and the episode goes on."""
    env.reset()
    observation, reward, terminated, _, info = env.step("a\0b")
    assert (observation["exit_code"], reward, terminated, info["outcome"]) == (-1, 0.0, False, "refused")
    assert env.step("echo on")[0]["output"] == "on\n"


def test_a_kill_ends_the_episode(env: CommandEnv) -> None:
    """After a kill the next step terminates the episode without a word of why."""
    env.reset()
    assert env.watch is not None
    env.watch.kill("a person's reason")
    observation, reward, terminated, truncated, info = env.step("echo still here")
    assert (observation, reward, terminated, truncated) == ({"output": "", "exit_code": -9}, 0.0, True, False)
    assert info["outcome"] == "ended"


def test_a_template_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    """The error names the template, and nothing starts."""
    env = CommandEnv(template=tmp_path / "nowhere")
    with pytest.raises(WorkspaceError, match="nowhere"):
        env.reset()
