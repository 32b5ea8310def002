"""What every widget of ours is: one run's id, the name of a view, and answers for pages without a Jupyter server.

A kill never travels in a trait: the front-end holds traits back while a cell runs.
"""

from __future__ import annotations

import html
import threading
from typing import Any

import anywidget
import traitlets

from jupyter_agentwatch.errors import AgentwatchError, ControlError
from jupyter_agentwatch.events import printable
from jupyter_agentwatch.notebook.follower import Follower, run_ended
from jupyter_agentwatch.notebook.front_end import bundle_hash, view_bundle, widget_source
from jupyter_agentwatch.notebook.kill_routes import answer_kill, listen
from jupyter_agentwatch.server.incidents import recent_incidents
from jupyter_agentwatch.server.render import kill_command
from jupyter_agentwatch.watch import Watch
from jupyter_agentwatch.wire.messages import Answer, Request, Resume, Suspend
from jupyter_agentwatch.wire.runtime import audit_log, is_watch_id
from jupyter_agentwatch.wire.watches import tell_watch

__all__ = ["View"]


class View(anywidget.AnyWidget):
    """Base of the widgets.

    Attributes:
        run: Id of the run.
        view: "dashboard", "kill", or the name of one panel.
        bundle: Hash of the module that draws everything but the kill switch.
    """

    _esm = traitlets.Unicode().tag(sync=True)
    run = traitlets.Unicode(read_only=True).tag(sync=True)
    view = traitlets.Unicode(read_only=True).tag(sync=True)
    bundle = traitlets.Unicode(read_only=True).tag(sync=True)

    _follower: Follower | None = None  # of the class: `close` also ends a widget whose making failed

    def __init__(self, watch: Watch | str, view: str) -> None:
        """Show a run.

        Args:
            watch: The watch, or its id: also one of another kernel, or one that has ended.
            view: What of it.

        Raises:
            ControlError: The text is not the id of a run.
            FrontEndMissingError: The browser's part was not built.
        """
        run = watch if isinstance(watch, str) else watch.id
        if not is_watch_id(run):
            msg = f"{printable(run)!r} is not the id of a run: 8 hexadecimal characters"
            raise ControlError(msg)
        super().__init__(_esm=widget_source())
        for name, value in {"run": run, "view": view, "bundle": bundle_hash()}.items():
            self.set_trait(name, value)
        self.on_msg(self._on_message)
        listen(_shell())

    def close(self) -> None:
        """Take the view out of every page."""
        self._unfollow()
        super().close()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        found = super()._repr_mimebundle_(**kwargs)
        if found is None:  # taken out of every page
            return None
        bundle, metadata = found
        # What a notebook shows that is opened later, without a kernel, where widgets cannot be drawn.
        return {**bundle, "text/plain": repr(self), "text/html": self._static()}, metadata

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of run {self.run}>"

    def _static(self) -> str:
        rows = {"agent run": self.run, "log": str(audit_log(self.run)), "kill": kill_command(self.run)}
        cells = (
            f"<tr><th>{html.escape(k)}</th><td>{html.escape(printable(v, 4096))}</td></tr>" for k, v in rows.items()
        )
        return f"<table>{''.join(cells)}</table>"

    def _on_message(self, _widget: object, content: Any, _buffers: object) -> None:
        """Answer a page; what it sends is not trusted, and what is not understood is passed over."""
        match content:
            case {"type": "kill"}:
                # The id is this widget's own: a page cannot name another one here.
                self.send({"type": "killed", "run": self.run, "answer": answer_kill(self.run, "comm")})
            case {"type": "bundle"}:
                self.send({"type": "bundle", "hash": self.bundle}, buffers=[view_bundle()])
            case {"type": "follow", "after": int(after)}:
                self._unfollow()
                self._follower = Follower(self.run, self.send, after)
            case {"type": "incidents"}:
                # In a thread: a long log takes seconds to read, and the page's other messages must not wait.
                threading.Thread(target=self._tell_incidents, name="agentwatch-incidents", daemon=True).start()
            case {"type": "outcome"}:
                self.send({"type": "outcome", "run": run_ended(self.run) or {"watch": self.run, "state": "unknown"}})
            case {"type": "unfollow"}:
                self._unfollow()
            case {"type": "act", "action": str(action)}:
                self._act(action, content.get("decision"))
            case _:
                return

    def _tell_incidents(self) -> None:
        try:
            told: dict[str, Any] = {"incidents": recent_incidents(audit_log(self.run))}
        except AgentwatchError as error:
            told = {"incidents": [], "message": printable(str(error), 4096)}
        self.send({"type": "incidents", "run_id": self.run, **told})

    def _act(self, action: str, decision: object) -> None:
        kind, _, number = action.partition("/")
        request: Request
        match kind:
            case "suspend":
                request = Suspend()
            case "resume":
                request = Resume()
            case "asks" if number.isdecimal() and decision in {"allow", "deny"}:
                request = Answer(ask=int(number), allow=decision == "allow")
            case _:
                return
        try:
            tell_watch(self.run, request, name="kernel, by widget")
        except AgentwatchError as error:
            self.send({"type": "lost", "message": printable(str(error)), "run_id": self.run})

    def _unfollow(self) -> None:
        if self._follower is not None:
            self._follower.close()
            self._follower = None


def _shell() -> Any:
    from IPython.core.getipython import get_ipython

    return get_ipython()
