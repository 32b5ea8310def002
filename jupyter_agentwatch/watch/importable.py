"""Warns where this Python imports modules from a place that the agent can write to, and imports our own before it can.

No sandbox helps there: what the kernel imports runs in the kernel. `sys.path` is the user's own, and is left as it is.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

from jupyter_agentwatch.policy import Policy
from jupyter_agentwatch.sandbox.places import Mode, plan_places

__all__ = ["ImportableWorkspaceWarning", "guard_imports", "import_risk"]

_PACKAGE: Final = Path(__file__).resolve().parent.parent
_LATE: Final = (
    *("asyncio", "difflib", "pandas", "plotly.graph_objects", "psutil", "yaml"),
    *("jupyter_agentwatch.policy.suggest", "jupyter_agentwatch.watch.live_figure"),
    *("jupyter_agentwatch.watch.telemetry_table",),
)
"""What our side of a watch imports only when it is needed, which would be after the agent's first command."""


class ImportableWorkspaceWarning(UserWarning):
    """This Python imports modules from a folder that the agent can write to."""


def guard_imports(policy: Policy, workspace: Path, python: Sequence[str]) -> str:
    """Warn the caller's caller where the agent could plant modules, and import at once what we should import later.

    Args:
        policy: What the agent may write to.
        workspace: Absolute, checked.
        python: Folders of the active Python environment, which are read-only inside.

    Returns:
        The warning's text, "" for none.

    Raises:
        PolicyError: A path of the policy does not exist.
    """
    folders = tuple(Path(os.path.realpath(each)) for each in python)
    risk = import_risk(plan_places(policy, workspace, folders, _PACKAGE), sys.path)
    if risk:
        for name in _LATE:
            import_module(name)
        warnings.warn(risk, ImportableWorkspaceWarning, stacklevel=3)
    return risk


def import_risk(places: Mapping[Path, Mode], path: Sequence[str]) -> str:
    """Return what is both importable and writable for the agent, why that matters, and what to do; "" for nothing.

    Args:
        places: What exists inside and how, absolute and without links (`sandbox.places.plan_places`).
        path: Entries as `sys.path` has them; "" is the current folder.
    """
    for entry in path:
        folder = _folder(entry)
        if folder is None:
            continue
        if _mode(places, folder) == "rw":
            return (
                f"this Python imports from {folder}, where the agent can write (sys.path has {entry!r}): a pandas.py or"
                " json.py planted there would run in this process, outside of the sandbox, at the next import of that"
                f" name. Use another folder as the workspace, such as a new one below it, or sys.path.remove({entry!r})"
            )
        for place, mode in places.items():
            if mode == "rw" and place.parent == folder and _stands_for_another(place.name, entry, path):
                return (
                    f"this Python imports from {folder} (sys.path has {entry!r}), and {place.name!r}, where the agent"
                    " can write, has a module's name: an __init__.py planted there would run in this process, outside"
                    " of the sandbox, at the next import of that name. Rename the folder"
                )
    return ""


def _folder(entry: str) -> Path | None:
    try:
        return Path(os.path.realpath(entry or os.getcwd()))
    except OSError:  # the current folder has been removed: nothing is imported from it
        return None


def _mode(places: Mapping[Path, Mode], folder: Path) -> Mode | None:
    """Return how a folder exists inside: as the innermost place does in which it lies."""
    found = next((each for each in (folder, *folder.parents) if each in places), None)
    return None if found is None else places[found]


def _stands_for_another(name: str, entry: str, path: Sequence[str]) -> bool:
    if name in sys.stdlib_module_names:
        return True
    found = PathFinder.find_spec(name, [each for each in path if each != entry])
    return found is not None and found.loader is not None
