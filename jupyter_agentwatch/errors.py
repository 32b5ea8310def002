"""Every exception that the project raises on purpose: one per kind of thing that a caller can do about it.

A command that fails is a result, not an exception, unless the caller asked for one (`check=True`); these are
failures of the watch itself. All of them can be made from a text alone, because they also travel by name.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AgentwatchError",
    "CommandFailedError",
    "ControlError",
    "LogError",
    "ModelError",
    "PolicyError",
    "RefusedError",
    "RungError",
    "SessionEndedError",
    "ShellEndedError",
    "TrajectoryError",
    "UndoConflictError",
    "WorkspaceError",
]


class AgentwatchError(Exception):
    """Base class; `exit_code` is what the command line returns for it (125: our own failure)."""

    exit_code = 125


class PolicyError(AgentwatchError):
    """The policy is malformed, or asks for what cannot be granted; the text names file, field and reason."""


class RungError(AgentwatchError):
    """This machine cannot give the isolation that was asked for; the text names the failed probe and its fix."""


class WorkspaceError(AgentwatchError):
    """The workspace does not exist, is a symbolic link, would expose secrets, or is in use by another watch."""


class SessionEndedError(AgentwatchError):
    """The watch was killed or its supervisor is gone; nothing runs in it any more."""


class CommandFailedError(AgentwatchError):
    """A command that was run with `check=True` did not exit with 0.

    Attributes:
        result: The `watch.CommandResult`, with everything that the command wrote.
    """

    result: Any

    def __init__(self, text: str, result: object = None) -> None:
        super().__init__(text)
        self.result = result


class ShellEndedError(AgentwatchError):
    """A persistent shell is over (`exit`, a signal, a limit); its watch goes on, and a new shell can be opened."""


class ControlError(AgentwatchError):
    """The supervisor refused a request, or something on the control socket was not ours."""


class RefusedError(ControlError):
    """The supervisor understood a request and said no; the text is its own, and asking again changes nothing."""


class LogError(AgentwatchError):
    """An audit log cannot be read, or is not one of ours."""


class ModelError(AgentwatchError):
    """The model behind an agent cannot be reached, or refuses; the text says what it answered and what to check."""


class TrajectoryError(AgentwatchError):
    """A recorded trajectory cannot be read, or is of a form that is not known; the text names file, line and field."""


class UndoConflictError(AgentwatchError):
    """A later step changed the same files, or a pre-image was not kept; nothing was undone."""
