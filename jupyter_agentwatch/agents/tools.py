"""The tools that a model is offered, and what it asks of them as actions; everything that it wrote is checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from jupyter_agentwatch.agents.model import Action, Edit, Finish, Patch, Shell, Unclear
from jupyter_agentwatch.events import printable
from jupyter_agentwatch.watch.episode import Usage

__all__ = ["TOOLS", "action_from_call"]

_MOST_CHARS: Final = 1_000_000
_SHOWN: Final = 200


def _tool(name: str, description: str, required: Mapping[str, str], optional: Mapping[str, Any]) -> dict[str, Any]:
    fields = {field: {"type": "string", "description": text} for field, text in required.items()} | dict(optional)
    schema = {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


TOOLS: Final[Sequence[dict[str, Any]]] = (
    _tool(
        "shell",
        "Run a shell script in the workspace and return its output and exit code. Each call is a new shell.",
        {"command": "the script"},
        {"timeout": {"type": "number", "description": "seconds after which it is killed"}},
    ),
    _tool(
        "edit_file",
        "Replace a passage of a file that stands in it exactly once, or make a new file.",
        {
            "path": "the file, relative to the workspace",
            "old": "the passage as it stands there; empty for a new file",
            "new": "what comes in its place",
        },
        {},
    ),
    _tool("apply_patch", "Apply a unified diff, all of it or nothing.", {"diff": "the diff"}, {}),
    _tool("finish", "End the work: it is done, or cannot be done.", {"answer": "what there is to say"}, {}),
)
"""Schemas of the tools, as chat completions take them."""

_FIELDS: Final = {tool["function"]["name"]: tool["function"]["parameters"]["required"] for tool in TOOLS}


def action_from_call(call: object, thought: str, usage: Usage) -> Action:
    """Return what a model's tool call asks for; `Unclear`, with what is wrong, where it is no call of a tool of ours.

    Args:
        call: The call as it stands in the reply.
        thought: What the model said beside it.
        usage: What the reply cost.
    """
    function = call.get("function") if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    given = function.get("arguments") if isinstance(function, dict) else None
    text = f"{name}({given if isinstance(given, str) else ''})"[:_MOST_CHARS]

    def unclear(problem: str) -> Unclear:
        return Unclear(text, f"the tool call cannot be understood: {problem}", thought=thought, usage=usage)

    if not isinstance(name, str) or name not in _FIELDS:
        return unclear(f"there is no tool {printable(repr(name), _SHOWN)}; there are: {', '.join(_FIELDS)}")
    if not isinstance(given, str) or len(given) > _MOST_CHARS:
        return unclear(f"the arguments of {name} must be a JSON text of at most {_MOST_CHARS} characters")
    try:
        fields = json.loads(given)
    except (ValueError, RecursionError) as error:
        return unclear(f"the arguments of {name} are no JSON: {printable(str(error), _SHOWN)}")
    if not isinstance(fields, dict):
        return unclear(f"the arguments of {name} must be a JSON object")
    for field in _FIELDS[name]:
        if not isinstance(fields.get(field), str):
            return unclear(f"{name} needs {field}, a text")
    timeout = fields.get("timeout")
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0):
        return unclear(f"timeout of {name} must be a positive number of seconds")
    return _action(name, fields, timeout, thought, usage)


def _action(name: str, fields: Mapping[str, Any], timeout: float | None, thought: str, usage: Usage) -> Action:
    match name:
        case "shell":
            return Shell(fields["command"], timeout, thought=thought, usage=usage)
        case "edit_file":
            return Edit(fields["path"], fields["old"], fields["new"], thought=thought, usage=usage)
        case "apply_patch":
            return Patch(fields["diff"], thought=thought, usage=usage)
        case _:
            return Finish(fields["answer"], thought=thought, usage=usage)
