"""Each part of the dashboard as a widget of its own, to be put into any ipywidgets box."""

from __future__ import annotations

from typing import Final, get_args

from jupyter_agentwatch.errors import ControlError
from jupyter_agentwatch.notebook.view import View
from jupyter_agentwatch.watch import Watch
from jupyter_agentwatch.watch.views import PanelName

__all__ = ["PANELS", "Panel"]

PANELS: Final[tuple[str, ...]] = get_args(PanelName)
"""The names of all panels."""


class Panel(View):
    """One part of the dashboard. Panels of one run share one connection.

    Example:
        >>> HBox([Panel(watch, "gpu"), Panel(watch, "findings")])  # doctest: +SKIP
    """

    def __init__(self, watch: Watch | str, name: PanelName) -> None:
        """Make a panel.

        Args:
            watch: The watch, or its id.
            name: Which part.

        Raises:
            ControlError: The text is not the id of a run, or there is no such panel.
            FrontEndMissingError: The browser's part was not built.
        """
        if name not in PANELS:
            msg = f"there is no panel {name!r}; there are {', '.join(PANELS)}"
            raise ControlError(msg)
        super().__init__(watch, name)
