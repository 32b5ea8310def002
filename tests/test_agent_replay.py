"""Trajectories: our form there and back, two foreign forms, and what is said of a file that is none of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jupyter_agentwatch.agents import (
    Action,
    Edit,
    Finish,
    Observation,
    Patch,
    ReplayAgent,
    Say,
    Shell,
    Unclear,
    read_trajectory,
    write_trajectory,
)
from jupyter_agentwatch.errors import TrajectoryError

if TYPE_CHECKING:
    from pathlib import Path

TEXT = st.text(max_size=20)
SOME = st.text(min_size=1, max_size=20)
ACTIONS = st.one_of(
    st.builds(Shell, st.one_of(SOME, st.lists(TEXT, min_size=1, max_size=3)), st.none() | st.floats(0.1, 9)),
    st.builds(Edit, SOME, TEXT, TEXT, thought=TEXT),
    st.builds(Patch, SOME),
    st.builds(Say, TEXT),
    st.builds(Finish, TEXT),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(st.lists(ACTIONS, max_size=5), TEXT)
def test_what_is_written_is_read_back(tmp_path: Path, actions: list[Action], task: str) -> None:
    """Every action and every text comes back as it was, and what was not understood is left out."""
    path = tmp_path / "run.jsonl"
    write_trajectory(path, [*actions, Unclear("?", "?")], task=task, agent="me")
    found = read_trajectory(path)
    assert (found.task, found.agent, list(found.actions)) == (task, "me", actions)


def written(path: Path, content: object) -> Path:
    """Write a file: text as it is, bytes as they are, anything else as JSON."""
    data = content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content))
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


MINI_1: dict[str, Any] = {
    "info": {"exit_status": "Submitted", "submission": "the diff", "model_stats": {"api_calls": 2}},
    "messages": [
        {"role": "system", "content": "You are."},
        {"role": "user", "content": "Fix it."},
        {"role": "assistant", "content": "I look.\n```bash\nls -l\n```"},
        {"role": "user", "content": "Observation: a"},
        {"role": "assistant", "content": "No command."},
        {"role": "assistant", "content": "```bash\necho COMPLETE\ncat a\n```"},
    ],
}
MINI_2: dict[str, Any] = {
    "trajectory_format": "mini-swe-agent-1.1",
    "info": {"exit_status": "Submitted", "submission": "the diff"},
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Fix it."}]},
        {"role": "assistant", "content": None, "extra": {"actions": [{"command": "ls -l"}, {"command": "pwd"}]}},
        {"role": "exit", "content": "", "extra": {"exit_status": "Submitted"}},
    ],
}
SWE: dict[str, Any] = {
    "trajectory": [
        {"action": "ls -F\n", "observation": "a", "thought": "I look.", "response": "…"},
        {"action": "", "observation": "nothing"},
        {"action": "submit\n", "observation": ""},
        {"action": "after the end", "observation": ""},
    ],
    "history": [{"role": "system", "content": "You are."}, {"role": "user", "content": "Fix it."}],
    "info": {"exit_status": "submitted", "submission": "the diff"},
}


@pytest.mark.parametrize(
    ("content", "agent", "commands"),
    [
        (MINI_1, "mini-swe-agent", ["ls -l", "echo COMPLETE\ncat a"]),
        (MINI_2, "mini-swe-agent", ["ls -l", "pwd"]),
        (SWE, "SWE-agent", ["ls -F\n"]),
    ],
)
def test_foreign_trajectories_are_read(tmp_path: Path, content: Any, agent: str, commands: list[str]) -> None:
    """Commands, task and submission of mini-swe-agent (both versions) and SWE-agent are found."""
    found = read_trajectory(written(tmp_path / "x.traj", content))
    assert (found.agent, found.task) == (agent, "Fix it.")
    *shells, last = found.actions
    assert [each.command for each in shells if isinstance(each, Shell)] == commands
    assert last == Finish("the diff")


HEAD = '{"agentwatch_trajectory": 1}\n'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "known form"),
        ("hello", "known form"),
        ([1, 2], "known form"),
        ({"steps": []}, "known form"),
        (b"\xff\xfe", "not UTF-8 text at byte 0"),
        ('{"agentwatch_trajectory": 9}', "line 1: version 9"),
        (HEAD + "{", "line 2: this is no JSON"),
        (HEAD + "[]", "line 2: this is no JSON object"),
        (HEAD + '{"action": "reboot"}', "line 2: action is 'reboot'; known: shell"),
        (HEAD + '\n{"action": "shell"}', "line 3: shell needs the field command"),
        (HEAD + '{"action": "shell", "command": 7}', "line 2: command is 7"),
        (HEAD + '{"action": "shell", "command": [7]}', r"line 2: command is \[7\]"),
        (HEAD + '{"action": "shell", "command": "ls", "timeout": -1}', "timeout is -1"),
        (HEAD + '{"action": "say", "text": "a", "loud": true}', "say has no field 'loud'"),
        ("[" * 100_000, "known form"),
        ("{" * 100_000, "line 1: this is no JSON"),
        ({"messages": [7]}, r"messages\[0\] is no message"),
        ({"messages": []}, "no command"),
        ({"trajectory": [{"observation": ""}]}, r"trajectory\[0\].action"),
    ],
)
def test_what_is_no_trajectory_is_refused_with_its_place(tmp_path: Path, content: object, says: str) -> None:
    """Each error names the file, and where in it something is wrong; nothing is guessed."""
    path = written(tmp_path / "odd.jsonl", content)
    with pytest.raises(TrajectoryError, match=says) as caught:
        ReplayAgent(path)
    assert "odd.jsonl" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A file that is not there, and a folder, are errors with their names."""
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(TrajectoryError, match=f"{path.name}: cannot read"):
            read_trajectory(path)


def test_a_replay_ends_with_its_recording(tmp_path: Path) -> None:
    """Actions come in their order, whatever is observed, and the end of the recording finishes the run."""
    path = tmp_path / "run.jsonl"
    write_trajectory(path, [Say("a"), Shell("ls")], task="look", agent="me")
    agent = ReplayAgent(path)
    seen = [agent.act(Observation(task="x", turn=turn)) for turn in (1, 2, 3)]
    assert (agent.name, agent.task, seen) == ("replay of me", "look", [Say("a"), Shell("ls"), Finish()])
