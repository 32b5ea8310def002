"""One run at a glance, live: the picture that a person watches while an agent works."""

from __future__ import annotations

from IPython.display import display

from jupyter_agentwatch.notebook.saved import Saved
from jupyter_agentwatch.notebook.view import View
from jupyter_agentwatch.watch import Watch
from jupyter_agentwatch.watch.views import has_kernel

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
        self._saved: list[Saved] = []
        super().__init__(watch, "dashboard")

    def close(self) -> None:
        """Take the dashboard out of every page; the picture beside it stays as it is."""
        for saved in getattr(self, "_saved", ()):  # also where the making failed
            saved.close()
        super().close()

    def _ipython_display_(self) -> None:
        """Show the dashboard, and beside it what a notebook keeps of it."""
        found = self._repr_mimebundle_()
        if found is None:
            display({"text/plain": repr(self)}, raw=True)  # type: ignore[no-untyped-call]
            return
        display(found[0], metadata=found[1], raw=True)  # type: ignore[no-untyped-call]
        if has_kernel():
            self._saved.append(Saved(self.run))
