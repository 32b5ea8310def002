"""Every exception that the project raises on purpose: one per kind of thing that a caller can do about it.

A command that fails is a result, not an exception; these are failures of the watch itself.
"""

from __future__ import annotations

__all__ = [
    "AgentwatchError",
    "ControlError",
    "LogError",
    "PolicyError",
    "RungError",
    "SessionEndedError",
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


class ControlError(AgentwatchError):
    """The supervisor refused a request, or something on the control socket was not ours."""


class LogError(AgentwatchError):
    """An audit log cannot be read, or is not one of ours."""


class UndoConflictError(AgentwatchError):
    """A later step changed the same files, or a pre-image was not kept; nothing was undone."""
