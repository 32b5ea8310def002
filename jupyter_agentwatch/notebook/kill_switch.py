"""A button that ends one run, whatever the kernel does; for people who compose their own layouts."""

from __future__ import annotations

from jupyter_agentwatch.notebook.view import View
from jupyter_agentwatch.watch import Watch

__all__ = ["KillSwitch"]


class KillSwitch(View):
    """The button, and what became of it: green only when every process is known to be gone.

    A click asks the Jupyter server, the kernel's control channel and a comm at once; the first acknowledgement counts.
    In front-ends without a Jupyter server only the kernel can be asked, and the button says so.

    Example:
        >>> KillSwitch(watch)  # doctest: +SKIP
    """

    def __init__(self, watch: Watch | str) -> None:
        """Make a button.

        Args:
            watch: The watch, or its id.

        Raises:
            ControlError: The text is not the id of a run.
            FrontEndMissingError: The browser's part was not built.
        """
        super().__init__(watch, "kill")
