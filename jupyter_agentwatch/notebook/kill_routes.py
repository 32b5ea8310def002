"""The kernel's two ways of a kill: a message on the control channel, and a comm of our own.

Neither passes the queue of cells. Neither works while C code holds the interpreter: the server's way does.
"""

from __future__ import annotations

import asyncio
from typing import Any

from jupyter_agentwatch.errors import AgentwatchError
from jupyter_agentwatch.server.render import kill_json
from jupyter_agentwatch.server.runs import kill_run
from jupyter_agentwatch.wire.messages import Killed

__all__ = ["REQUEST", "TARGET", "answer_kill", "listen"]

TARGET = "agentwatch"
"""Name of the comm target."""

REQUEST = "agentwatch_kill_request"
"""Type of the control message; its content is `{"run": ID}`, and the reply's is what `answer_kill` returns."""

_REPLY = "agentwatch_kill_reply"
_REASON = "the button in the notebook"


def answer_kill(run: object, via: str) -> dict[str, Any]:
    """End a watch of this user; idempotent.

    Args:
        run: Its id, as a browser sent it.
        via: Which way the request came: "control" or "comm".

    Returns:
        What became of it, in the form of the server's answer. Never raises: a browser waits for the answer.
    """
    if not isinstance(run, str):
        return {**kill_json("", "that is not the id of a run"), "via": via}
    try:
        result: Killed | str = kill_run(run, _REASON, f"kernel, by {via}")
    except AgentwatchError as error:
        result = str(error)
    return {**kill_json(run, result), "via": via}


def listen(shell: object) -> bool:
    """Make a kernel answer kills on both ways; a second call changes nothing.

    Args:
        shell: The IPython shell.

    Returns:
        Whether it runs in a kernel at all.
    """
    kernel: Any = getattr(shell, "kernel", None)
    if kernel is None:
        return False

    async def on_control(stream: Any, ident: Any, parent: Any) -> None:
        run = parent["content"].get("run")
        # In a thread: the control channel also carries interrupts, and must go on.
        answer = await asyncio.get_running_loop().run_in_executor(None, answer_kill, run, "control")
        kernel.session.send(stream, _REPLY, answer, parent, ident)

    def on_open(comm: Any, message: Any) -> None:
        comm.send(answer_kill(message["content"]["data"].get("run"), "comm"))
        comm.close()

    kernel.control_handlers[REQUEST] = on_control
    kernel.comm_manager.register_target(TARGET, on_open)
    return True
