"""Recorded trajectories: our own form, one JSON object a line, and those of mini-swe-agent and SWE-agent, read only.

Our form begins with `{"agentwatch_trajectory": 1, "task": "…", "agent": "…"}`; each further line is one action:
`{"action": "shell", "command": "ls", "timeout": 10}`, `{"action": "edit", "path": "a", "old": "x", "new": "y"}`,
`{"action": "patch", "diff": "…"}`, `{"action": "say", "text": "…"}`, `{"action": "finish", "text": "…"}`; each may have
`"thought"`. A command is a text (a shell script) or a list (a program and its arguments).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jupyter_agentwatch.agents.model import Action, Edit, Finish, Patch, Say, Shell, kind_of_action
from jupyter_agentwatch.errors import TrajectoryError
from jupyter_agentwatch.events import from_path, printable

__all__ = ["Trajectory", "read_trajectory", "write_trajectory"]

_VERSION: Final = 1
_MARK: Final = "agentwatch_trajectory"
_MOST_BYTES: Final = 256 * 1024 * 1024
_BLOCK: Final = re.compile(r"```(?:bash|sh|mswea_bash_command)\s*\n(.*?)\n?```", re.DOTALL)

_FIELDS: Final[Mapping[str, tuple[type[Action], tuple[str, ...]]]] = {
    "shell": (Shell, ("command", "timeout")),
    "edit": (Edit, ("path", "old", "new")),
    "patch": (Patch, ("diff",)),
    "say": (Say, ("text",)),
    "finish": (Finish, ("text",)),
}
_DEFAULTS: Final = {"old": "", "new": "", "text": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """What an agent did once.

    Attributes:
        task: What it was to do; "" where the file does not say.
        agent: Who it was.
        actions: What it chose, in order.
    """

    task: str
    agent: str
    actions: tuple[Action, ...]


def read_trajectory(path: str | os.PathLike[str]) -> Trajectory:
    """Read a trajectory of any form that is known; which one, the content says.

    Actions of SWE-agent that are none of the shell's (its own tools, but for `submit`) are kept as the shell commands
    that they are written as, and fail as such where there is no program of that name.

    Raises:
        TrajectoryError: It cannot be read, or is of none of the forms; the text names file, line and field.
    """
    place = Path(path)
    text = _text(place)
    first = text.lstrip()[:1]
    if first != "{":
        raise _unknown(place)
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return _ours(text, place)
    match whole:
        case {"messages": list(messages)}:
            return _mini_swe(whole, messages, place)
        case {"trajectory": list(steps)}:
            return _swe_agent(whole, steps, place)
        case _:
            return _ours(text, place)


def write_trajectory(
    path: str | os.PathLike[str], actions: Iterable[Action], *, task: str = "", agent: str = ""
) -> None:
    """Write actions in our own form, as `read_trajectory` reads it. `Unclear` ones are left out: nothing was done.

    Raises:
        OSError: The file cannot be written.
    """
    lines = [{_MARK: _VERSION, "task": task, "agent": agent}, *map(_as_line, actions)]
    # Escaped: a model may have written what is no valid Unicode.
    text = "".join(json.dumps(line) + "\n" for line in lines if line)
    Path(path).write_text(text, "ascii")


def _as_line(action: Action) -> dict[str, Any]:
    kind = kind_of_action(action)
    if kind not in _FIELDS:
        return {}
    values = {name: getattr(action, name) for name in _FIELDS[kind][1]} | {"thought": action.thought}
    if kind == "shell" and not isinstance(values["command"], str):
        values["command"] = [os.fspath(part) for part in values["command"]]
    return {"action": kind} | {name: value for name, value in values.items() if value}


def _text(path: Path) -> str:
    name = _shown(path)
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        msg = f"{name}: cannot read the trajectory: {error.strerror}"
        raise TrajectoryError(msg) from error
    if len(data) > _MOST_BYTES:
        msg = f"{name}: the trajectory is larger than {_MOST_BYTES} bytes"
        raise TrajectoryError(msg)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        msg = f"{name}: the trajectory is not UTF-8 text at byte {error.start}"
        raise TrajectoryError(msg) from error


def _ours(text: str, path: Path) -> Trajectory:
    head: dict[str, Any] | None = None
    actions: list[Action] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{_shown(path)}: line {number}"
        fields = _object(line, where)
        if head is None:
            if _MARK not in fields:
                raise _unknown(path)
            if fields[_MARK] != _VERSION:
                msg = f"{where}: version {printable(str(fields[_MARK]), 40)}; this version reads {_VERSION}"
                raise TrajectoryError(msg)
            head = fields
        else:
            actions.append(_action(fields, where))
    if head is None:
        raise _unknown(path)
    task, agent = (str(head.get(name) or "") for name in ("task", "agent"))
    return Trajectory(task=task, agent=agent or path.stem, actions=tuple(actions))


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        msg = f"{where}: this is no JSON: {printable(str(error), 200)}"
        raise TrajectoryError(msg) from error
    if not isinstance(found, dict):
        msg = f"{where}: this is no JSON object"
        raise TrajectoryError(msg)
    return found


def _action(fields: dict[str, Any], where: str) -> Action:
    kind = fields.get("action")
    if not isinstance(kind, str) or kind not in _FIELDS:
        msg = f"{where}: action is {printable(repr(kind), 80)}; known: {', '.join(_FIELDS)}"
        raise TrajectoryError(msg)
    make, names = _FIELDS[kind]
    unknown = sorted({*fields}.difference(names, {"action", "thought"}))
    if unknown:
        msg = f"{where}: {kind} has no field {printable(repr(unknown[0]), 80)}; known: {', '.join(names)}"
        raise TrajectoryError(msg)
    given = {name: fields[name] for name in (*names, "thought") if fields.get(name) is not None}
    values = {name: default for name, default in _DEFAULTS.items() if name in names} | given
    missing = [name for name in names if name not in values and name != "timeout"]
    if missing:
        msg = f"{where}: {kind} needs the field {missing[0]}"
        raise TrajectoryError(msg)
    for name, value in values.items():
        _check(name, value, where)
    made: Action = make(**values)
    return made


def _check(name: str, value: object, where: str) -> None:
    if name == "timeout":
        is_right = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    elif name == "command" and isinstance(value, list):
        is_right = bool(value) and all(isinstance(part, str) for part in value)
    else:
        is_right = isinstance(value, str)
    if not is_right:
        msg = f"{where}: {name} is {printable(repr(value), 80)}; give a text, or as timeout a positive number"
        raise TrajectoryError(msg)


def _mini_swe(whole: dict[str, Any], messages: list[Any], path: Path) -> Trajectory:
    """Version 2 has the parsed actions beside each message; before that they stand as blocks in its text."""
    actions: list[Action] = []
    task = ""
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            msg = f"{_shown(path)}: messages[{number}] is no message: it has no role"
            raise TrajectoryError(msg)
        content = _plain(message.get("content"))
        if message["role"] == "user" and not task:
            task = content
        if message["role"] == "assistant":
            actions += [Shell(command, thought=content) for command in _commands(message, content)]
    info = whole.get("info")
    submission = info.get("submission") if isinstance(info, dict) else ""
    if not actions:
        msg = f"{_shown(path)}: messages hold no command of an assistant"
        raise TrajectoryError(msg)
    return Trajectory(task=task, agent="mini-swe-agent", actions=(*actions, Finish(_plain(submission))))


def _commands(message: dict[str, Any], content: str) -> list[str]:
    extra = message.get("extra")
    parsed = extra.get("actions") if isinstance(extra, dict) else None
    if isinstance(parsed, list):
        found = [each.get("command") for each in parsed if isinstance(each, dict)]
        return [command for command in found if isinstance(command, str)]
    blocks: list[str] = _BLOCK.findall(content)
    return [blocks[0].strip()] if len(blocks) == 1 else []


def _swe_agent(whole: dict[str, Any], steps: list[Any], path: Path) -> Trajectory:
    actions: list[Action] = []
    for number, step in enumerate(steps):
        action = step.get("action") if isinstance(step, dict) else None
        if not isinstance(action, str):
            msg = f"{_shown(path)}: trajectory[{number}].action is no text"
            raise TrajectoryError(msg)
        if action.strip() == "submit":
            break
        if action.strip():
            actions.append(Shell(action, thought=_plain(step.get("thought"))))
    info = whole.get("info")
    submission = info.get("submission") if isinstance(info, dict) else ""
    history = whole.get("history")
    asked = [each for each in history if isinstance(each, dict)] if isinstance(history, list) else []
    task = next((_plain(each.get("content")) for each in asked if each.get("role") == "user"), "")
    return Trajectory(task=task, agent="SWE-agent", actions=(*actions, Finish(_plain(submission))))


def _plain(content: object) -> str:
    """Return a message's text; it may stand in parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _shown(path: Path) -> str:
    return printable(from_path(str(path)), 4096)


def _unknown(path: Path) -> TrajectoryError:
    return TrajectoryError(
        f"{_shown(path)}: no trajectory of a known form: neither ours (JSON lines, the first with {_MARK!r}), nor "
        "mini-swe-agent's ('messages'), nor SWE-agent's ('trajectory')"
    )
