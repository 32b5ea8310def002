"""The live watches of this user, for an event loop that must never wait: each call blocks in a thread of a pool.

Kills have a pool of their own, so that no number of silent supervisors stands before one. No kernel is asked anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from jupyter_agentwatch.audit.reader import read_last
from jupyter_agentwatch.errors import AgentwatchError, ControlError, LogError, SessionEndedError
from jupyter_agentwatch.events import Session
from jupyter_agentwatch.server.render import ended_json, safe, status_json
from jupyter_agentwatch.wire.force import supervisors_of
from jupyter_agentwatch.wire.messages import Killed, Request, WatchStatus
from jupyter_agentwatch.wire.runtime import audit_log, control_socket, is_watch_id, live_watches
from jupyter_agentwatch.wire.watches import kill_watch, tell_watch, watch_status

__all__ = ["Runs", "UnknownRunError", "kill_run", "outcome_of"]

_NAME = "jupyter server"
_AT_ONCE = 32
_REMEMBERED = 256

P = ParamSpec("P")
T = TypeVar("T")


class UnknownRunError(ControlError):
    """No watch of this user has, or ever had, this id."""


class Runs:
    """Every live watch of this user, whoever started it.

    Args:
        kernel_of: Returns the id of the kernel that has a process id, or "".
    """

    def __init__(self, kernel_of: Callable[[int], str]) -> None:
        self._kernel_of = kernel_of
        self._asking = ThreadPoolExecutor(_AT_ONCE, "agentwatch-ask")
        self._killing = ThreadPoolExecutor(_AT_ONCE, "agentwatch-kill")
        self._kills: dict[str, asyncio.Task[Killed]] = {}

    async def live(self) -> list[str]:
        """Return the ids of all watches that have a control socket, but for those that were killed here.

        Raises:
            ControlError: The folder of control sockets is not ours alone.
        """
        return self._not_killed(await self.in_thread(live_watches))

    async def table(self) -> list[dict[str, Any]]:
        """Return every live watch; one that does not answer is listed as silent, and holds up nobody for long.

        Raises:
            ControlError: The folder of control sockets is not ours alone.
        """
        return list(await asyncio.gather(*map(self.describe, await self.live())))

    async def describe(self, watch: str) -> dict[str, Any]:
        """Return a watch, or that it is gone or silent and why; never raises for a watch that does not answer."""
        try:
            return self.picture(await self.in_thread(watch_status, watch, name=_NAME))
        except SessionEndedError as error:
            return {"watch": watch, "state": "gone", "error": safe(str(error))}
        except AgentwatchError as error:
            return {"watch": watch, "state": "silent", "error": safe(str(error))}

    async def status(self, watch: str) -> dict[str, Any]:
        """Return a watch that is live, or how it ended, or that nobody here can tell.

        Raises:
            UnknownRunError: There is and was no such watch.
            ControlError: Its supervisor does not answer, or is another user's.
        """
        await self.check(watch)
        try:
            return self.picture(await self.in_thread(watch_status, watch, name=_NAME))
        except SessionEndedError:
            pass
        try:
            return await self.outcome(watch)
        except ControlError as error:
            return {"watch": watch, "state": "unknown", "error": safe(str(error))}

    async def outcome(self, watch: str) -> dict[str, Any]:
        """Return how a watch ended that does not listen any more.

        Raises:
            ControlError: Its supervisor still lives, or nobody here can tell.
        """
        try:
            return ended_json(watch, await self.in_thread(outcome_of, watch))
        except ControlError:
            if watch not in self._kills:
                raise
            return ended_json(watch, await asyncio.shield(self._kills[watch]))

    async def tell(self, watch: str, message: Request, user: str) -> None:
        """Send a live watch a request that is answered with a plain yes.

        Args:
            watch: Its id.
            message: `Suspend`, `Resume` or `Answer`.
            user: Who asks, for the audit log.

        Raises:
            UnknownRunError: There is and was no such watch.
            SessionEndedError: It has ended.
            RefusedError: Its supervisor said no.
            ControlError: Its supervisor does not answer, or is another user's.
        """
        await self.check(watch)
        await self.in_thread(tell_watch, watch, message, name=f"{_NAME}: {user}")

    async def kill(self, watch: str, reason: str, user: str) -> Killed:
        """End a watch. Idempotent: whoever asks at the same time, or later, gets the same answer.

        Args:
            watch: Its id.
            reason: For the audit log.
            user: Who kills, for the audit log.

        Raises:
            UnknownRunError: There is and was no such watch.
            ControlError: Nothing was killed; the text says why.
        """
        task = self._kills.get(watch)
        if task is None:
            name = f"{_NAME}: {user}"
            kill = asyncio.get_running_loop().run_in_executor(self._killing, kill_run, watch, reason, name)
            task = self._kills[watch] = asyncio.ensure_future(_result(kill))
            task.add_done_callback(lambda done: self._remember(watch, done))
        return await asyncio.shield(task)  # a browser that goes away must not take the others' answer with it

    async def kill_all(self, reason: str, user: str) -> dict[str, Killed | str]:
        """End every live watch; a text says why one was not killed.

        Raises:
            ControlError: The folder of control sockets is not ours alone.
        """
        ids = self._not_killed(await asyncio.get_running_loop().run_in_executor(self._killing, live_watches))
        results = await asyncio.gather(*(self.kill(watch, reason, user) for watch in ids), return_exceptions=True)
        texts = (each if isinstance(each, Killed) else str(each) for each in results)
        return dict(zip(ids, texts, strict=True))

    def picture(self, status: WatchStatus) -> dict[str, Any]:
        """Return a status as a browser gets it."""
        return status_json(status, self._kernel_of(status.owner_pid))

    async def check(self, watch: str) -> None:
        """Refuse what cannot be a watch, before it becomes part of a path.

        Raises:
            UnknownRunError: There is and was no such watch.
        """
        await self.in_thread(_check_known, watch)

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do blocking work in a thread; a kill never waits for one of these."""
        return await asyncio.get_running_loop().run_in_executor(self._asking, lambda: work(*args, **kwargs))

    def _not_killed(self, ids: Sequence[str]) -> list[str]:
        # A supervisor takes its socket away a moment after its last answer.
        return [watch for watch in ids if watch not in self._kills or not self._kills[watch].done()]

    def _remember(self, watch: str, done: asyncio.Task[Killed]) -> None:
        if done.cancelled() or done.exception() is not None or done.result().survivors > 0:
            del self._kills[watch]  # the next one tries again
        elif len(self._kills) > _REMEMBERED:
            over = next(name for name, task in self._kills.items() if task.done())
            del self._kills[over]


def _recorded_end(watch: str) -> Killed | None:
    """Return what the audit log says of a watch's end, or None where it says nothing."""
    try:
        last = read_last(audit_log(watch))
    except LogError:
        return None
    if not isinstance(last, Session) or last.op != "close":
        return None
    note = f"it has ended: {last.reason}"
    return Killed(killed=last.killed, survivors=last.survivors, latency_ms=0.0, head="", note=note)


def _abandoned(watch: str, *, was_here: bool) -> Killed:
    """Say how a watch ended whose log does not; only a socket that was left on this machine is proof of it."""
    if not was_here:
        msg = (
            f"the log of run {watch} has no end, and no supervisor listens at {control_socket(watch)}: it may run on "
            "another machine, or with another AGENTWATCH_RUNTIME_DIR"
        )
        raise ControlError(msg)
    note = "its supervisor ended without closing the log; its sandbox ended with it, and nobody counted"
    return Killed(killed=0, survivors=-1, latency_ms=0.0, head="", note=note)


def outcome_of(watch: str) -> Killed:
    """Return how a watch ended that does not listen any more; `survivors` -1 where nobody counted.

    Args:
        watch: Its id.

    Raises:
        ControlError: Its supervisor still lives, or nobody here can tell.
    """
    # The log first: a supervisor that has closed it lives on for a moment.
    if (ended := _recorded_end(watch)) is not None:
        return ended
    path = control_socket(watch)
    if supervisors_of(path):
        msg = f"the supervisor of run {watch} lives, but the connection to it is gone"
        raise ControlError(msg)
    return _abandoned(watch, was_here=path.exists())


async def _result(work: asyncio.Future[Killed]) -> Killed:
    return await work


def _check_known(watch: str) -> None:
    if not is_watch_id(watch) or not (control_socket(watch).exists() or audit_log(watch).exists()):
        msg = f"no run {watch!r} of this user"
        raise UnknownRunError(msg)


def kill_run(watch: str, reason: str, name: str) -> Killed:
    """End a watch, or say how it had ended; the same for everybody who kills on behalf of a browser.

    Args:
        watch: Its id, as a browser sent it.
        reason: For the audit log.
        name: Who kills, for the audit log.

    Raises:
        UnknownRunError: There is and was no such watch.
        ControlError: Nothing was killed; the text says why.
    """
    _check_known(watch)
    was_here = control_socket(watch).exists()
    try:
        return kill_watch(watch, reason=reason, name=name)
    except SessionEndedError:
        return _recorded_end(watch) or _abandoned(watch, was_here=was_here)
