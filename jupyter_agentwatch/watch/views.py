"""The part of `Watch` that a notebook shows: dashboard, kill switch and single panels, loaded when they are asked for.

The widgets are the notebook's room, which lies above this one: they are found by name, so that a watch in a script
never loads a widget library.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Final, Literal

from jupyter_agentwatch.errors import ControlError

if TYPE_CHECKING:
    import anywidget

__all__ = ["PanelName", "WatchViews", "has_kernel"]

PanelName = Literal[
    "agent", "incidents", "findings", "connections", "timeline", "processes", "gpu", "resources", "audit"
]
"""What there is a panel for."""

_WIDGETS: Final = "jupyter_agentwatch.notebook"


def has_kernel() -> bool:
    """Tell whether this Python runs in a Jupyter kernel, which alone can show a widget."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class WatchViews:
    """What `Watch` inherits. It needs the id of the watch."""

    @property
    def id(self) -> str:
        """Id of the watch."""
        raise NotImplementedError

    def dashboard(self) -> anywidget.AnyWidget:
        """Return the live dashboard: state, kill switch, agent runs, findings, connections, steps, GPUs, audit log.

        As a cell's last expression it shows itself. It goes on while the kernel is busy, and after a reload of the page
        it finds the run again. What a saved notebook keeps of it is a picture and tables.

        Raises:
            ControlError: This is no notebook.
            AgentwatchError: The browser's part was not built; the text says how to build it.

        Example:
            >>> watch.dashboard()  # doctest: +SKIP
        """
        self._refuse_elsewhere("dashboard")
        return _widget("dashboard", "Dashboard", self.id)

    def kill_switch(self) -> anywidget.AnyWidget:
        """Return the kill button alone, for a layout of one's own.

        Raises:
            ControlError: This is no notebook.
            AgentwatchError: The browser's part was not built; the text says how to build it.
        """
        self._refuse_elsewhere("kill_switch")
        return _widget("kill_switch", "KillSwitch", self.id)

    def panel(self, name: PanelName) -> anywidget.AnyWidget:
        """Return one part of the dashboard, for a layout of one's own; the panels of one watch share a connection.

        Args:
            name: "agent", "incidents", "findings", "connections", "timeline", "processes", "gpu", "resources" or
                "audit".

        Raises:
            ControlError: This is no notebook, or there is no such panel.
            AgentwatchError: The browser's part was not built; the text says how to build it.

        Example:
            >>> HBox([watch.panel("gpu"), watch.panel("findings")])  # doctest: +SKIP
        """
        self._refuse_elsewhere("panel")
        return _widget("panels", "Panel", self.id, name)

    def _refuse_elsewhere(self, what: str) -> None:
        if not has_kernel():
            msg = (
                f"watch.{what}() needs a Jupyter notebook, and this is none; in a terminal "
                f"`jupyter agentwatch tail -f {self.id}` shows the record, `jupyter agentwatch kill {self.id}` kills"
            )
            raise ControlError(msg)


def _widget(module: str, name: str, *args: str) -> anywidget.AnyWidget:
    made: anywidget.AnyWidget = getattr(import_module(f"{_WIDGETS}.{module}"), name)(*args)
    return made
