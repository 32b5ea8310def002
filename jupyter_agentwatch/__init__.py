"""Audited sandbox and kill switch for AI agents in Jupyter.

This file is lazy on purpose: importing any submodule runs it, and the supervisor process must
never load Jupyter, IPython or pandas because of that.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from jupyter_agentwatch.errors import AgentwatchError
    from jupyter_agentwatch.policy import Policy
    from jupyter_agentwatch.watch import CommandResult, Watch

__version__ = "0.1.0"

__all__ = [
    "AgentwatchError",
    "CommandResult",
    "Policy",
    "Watch",
    "__version__",
    "_jupyter_server_extension_points",
    "load_ipython_extension",
    "unload_ipython_extension",
]

_HOMES = {
    "AgentwatchError": "jupyter_agentwatch.errors",
    "CommandResult": "jupyter_agentwatch.watch",
    "Policy": "jupyter_agentwatch.policy",
    "Watch": "jupyter_agentwatch.watch",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    """Tell Jupyter's server where the extension is; nothing is loaded before it asks for it."""
    return [{"module": "jupyter_agentwatch.server.extension"}]


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register `%agentwatch` and `%%agentwatch` (called by `%load_ext jupyter_agentwatch`)."""
    import_module("jupyter_agentwatch.notebook").load(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """End the notebook's watch, if one runs, and remove the magics."""
    import_module("jupyter_agentwatch.notebook").unload(shell)
