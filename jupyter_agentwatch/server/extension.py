"""Where Jupyter's server loads the extension: puts the handlers under `agentwatch/`, and starts nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from jupyter_server.utils import url_path_join

from jupyter_agentwatch.server import handlers, sockets
from jupyter_agentwatch.server.feeds import Feeds
from jupyter_agentwatch.server.runs import Runs
from jupyter_agentwatch.server.summary import Summary

if TYPE_CHECKING:
    from jupyter_server.serverapp import ServerApp

__all__ = ["_load_jupyter_server_extension"]

_RUN = "api/runs/([^/]+)"
_ROUTES: list[tuple[str, type[Any]]] = [
    ("api/runs", handlers.RunsHandler),
    ("api/kill-all", handlers.KillAllHandler),
    (_RUN, handlers.RunHandler),
    (f"{_RUN}/events", handlers.EventsHandler),
    (f"{_RUN}/incidents", handlers.IncidentsHandler),
    (f"{_RUN}/kill", handlers.KillHandler),
    (f"{_RUN}/suspend", handlers.SuspendHandler),
    (f"{_RUN}/resume", handlers.ResumeHandler),
    (f"{_RUN}/asks/([0-9]{{1,9}})", handlers.AnswerHandler),
    ("stream", sockets.RunSocket),
    ("summary", sockets.SummarySocket),
    (".*", handlers.NotFoundHandler),
]


def _load_jupyter_server_extension(serverapp: ServerApp) -> None:
    """Add the routes to a Jupyter server.

    Args:
        serverapp: The server that loads the extension.
    """
    runs = Runs(lambda pid: _kernel_of(serverapp, pid))
    serverapp.web_app.settings[handlers.SETTING] = handlers.Relay(runs, Feeds(runs), Summary(runs))
    base = re.escape(url_path_join(serverapp.web_app.settings["base_url"], "agentwatch"))
    routes = [(f"{base}/{route}", handler) for route, handler in _ROUTES]
    serverapp.web_app.add_handlers(".*$", routes)  # type: ignore[no-untyped-call] # tornado's own omission


def _kernel_of(serverapp: ServerApp, pid: int) -> str:
    """Return the id of the local kernel whose process owns a watch, or ""; from memory, the kernel is not asked."""
    manager = serverapp.kernel_manager
    for ident in manager.list_kernel_ids():
        provisioner = getattr(manager.get_kernel(ident), "provisioner", None)
        if getattr(provisioner, "pid", None) == pid:
            return str(ident)
    return ""
