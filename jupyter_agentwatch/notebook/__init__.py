"""The IPython extension: `%agentwatch` and `%%agentwatch`. Everything that needs IPython is in this package."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["load", "unload"]

_NAME = "agentwatch"


def load(shell: InteractiveShell) -> None:
    """Register the magics and their completion, and let the kernel answer kills; a second call changes nothing.

    Args:
        shell: The shell that loads the extension.
    """
    from jupyter_agentwatch.notebook.kill_routes import listen
    from jupyter_agentwatch.notebook.magics import AgentwatchMagics, complete

    if AgentwatchMagics.__name__ in shell.magics_manager.registry:
        return
    listen(shell)  # now, so that a kill from the page never waits for the first widget
    shell.register_magics(AgentwatchMagics(shell))
    shell.Completer.custom_matchers.append(complete)


def unload(shell: InteractiveShell) -> None:
    """End the watch that the magics started, and remove them.

    Args:
        shell: The shell that loaded the extension.
    """
    from jupyter_agentwatch.notebook.magics import AgentwatchMagics, complete

    magics = shell.magics_manager.registry.pop(AgentwatchMagics.__name__, None)
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop(_NAME, None)
    if complete in shell.Completer.custom_matchers:
        shell.Completer.custom_matchers.remove(complete)
    if isinstance(magics, AgentwatchMagics):
        magics.close()
