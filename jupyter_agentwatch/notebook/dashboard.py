"""One run at a glance, live: the picture that a person watches while an agent works."""

from __future__ import annotations

from jupyter_agentwatch.notebook.view import View
from jupyter_agentwatch.watch import Watch

__all__ = ["Dashboard"]


class Dashboard(View):
    """State, kill switch, connections, steps, processes, findings, GPUs, resources and the audit log of one run.

    It asks the Jupyter server, so that it goes on while the kernel is busy or gone; after a reload of the page it
    finds the run by its id.

    Example:
        >>> Dashboard(watch)  # doctest: +SKIP
    """

    def __init__(self, watch: Watch | str) -> None:
        """Make a dashboard.

        Args:
            watch: The watch, or its id: also one of another kernel, or one that has ended.

        Raises:
            ControlError: The text is not the id of a run.
            FrontEndMissingError: The browser's part was not built.
        """
        super().__init__(watch, "dashboard")
