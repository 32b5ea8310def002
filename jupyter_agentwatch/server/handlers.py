"""The REST face, JSON only: each handler authenticated and authorised, each action a POST with Jupyter's XSRF check."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import msgspec
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado import web

from jupyter_agentwatch.errors import AgentwatchError, RefusedError, SessionEndedError
from jupyter_agentwatch.events import printable
from jupyter_agentwatch.server.feeds import Feeds
from jupyter_agentwatch.server.history import MOST_RECORDS, recent_events
from jupyter_agentwatch.server.incidents import recent_incidents
from jupyter_agentwatch.server.render import encode, kill_command, kill_json, safe
from jupyter_agentwatch.server.runs import Runs, UnknownRunError
from jupyter_agentwatch.server.summary import Summary
from jupyter_agentwatch.wire.messages import Answer, Request, Resume, Suspend
from jupyter_agentwatch.wire.runtime import audit_log

__all__ = [
    "RESOURCE",
    "SETTING",
    "AnswerHandler",
    "EventsHandler",
    "IncidentsHandler",
    "KillAllHandler",
    "KillHandler",
    "NotFoundHandler",
    "Relay",
    "ResumeHandler",
    "RunHandler",
    "RunsHandler",
    "SuspendHandler",
    "kinds_of",
    "who",
]

RESOURCE = "agentwatch"
"""What a Jupyter authorizer is asked about; the actions are `read` and `write`."""

SETTING = "agentwatch_relay"
"""Key of the `Relay` in the web application's settings."""

_MOST_BODY = 16 * 1024
_USER = 100
_NUMBER = re.compile(r"-?[0-9]{1,12}")
_KINDS = re.compile(r"[a-z]{1,20}(?:,[a-z]{1,20}){0,31}")

B = TypeVar("B", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Relay:
    """What the handlers of one server share.

    Attributes:
        runs: The live watches.
        feeds: Streams of single runs.
        summary: The stream of all runs.
    """

    runs: Runs
    feeds: Feeds
    summary: Summary


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """A body without fields."""


class _Reason(msgspec.Struct, forbid_unknown_fields=True):
    reason: str = ""


class _Decision(msgspec.Struct, forbid_unknown_fields=True):
    decision: Literal["allow", "deny"]


class _BadBodyError(AgentwatchError):
    """The request's body is not what it should be."""


def who(user: Any) -> str:
    """Return the name under which a Jupyter user stands in the audit log."""
    return printable(str(getattr(user, "username", "") or "?"), _USER)


def kinds_of(text: str) -> list[str] | None:
    """Return the kinds of records that a query names; None, which is all of them, where it names none.

    Raises:
        AgentwatchError: These are no names of kinds.
    """
    if not text:
        return None
    if not _KINDS.fullmatch(text):
        msg = "`kinds` must be names of kinds of records with commas between them, as gpu,resources"
        raise _BadBodyError(msg)
    return text.split(",")


class _Handler(APIHandler):
    """Base: finds the relay, reads bodies, and turns our errors into JSON with a status that fits."""

    auth_resource = RESOURCE
    _track_activity = False  # a status bar that asks by itself must not keep an idle server alive

    @property
    def relay(self) -> Relay:
        relay: Relay = self.settings[SETTING]
        return relay

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")

    def body(self, kind: type[B]) -> B:
        """Return the request's body; none at all stands for an empty object."""
        data = self.request.body or b"{}"
        if len(data) > _MOST_BODY:
            msg = f"the body has {len(data)} bytes; the limit is {_MOST_BODY}"
            raise _BadBodyError(msg)
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            msg = f"malformed body: {error}"
            raise _BadBodyError(msg) from error

    def reply(self, content: Any, status: int = 200) -> None:
        self.set_status(status)
        self.finish(encode(content))

    def refuse(self, error: AgentwatchError, **more: Any) -> None:
        match error:
            case _BadBodyError():
                status = 400
            case UnknownRunError():
                status = 404
            case RefusedError():
                status = 409
            case SessionEndedError():
                status = 410
            case _:
                status = 502
        self.reply({"message": safe(str(error)), "error": type(error).__name__.lstrip("_"), **more}, status)

    async def reply_with(self, work: Awaitable[Any]) -> None:
        try:
            content = await work
        except AgentwatchError as error:
            self.refuse(error)
        else:
            self.reply(content)

    async def tell(self, run: str, message: Request) -> dict[str, Any]:
        await self.relay.runs.tell(run, message, who(self.current_user))
        self.relay.summary.hurry()
        return {"watch": run, "done": True}


class RunsHandler(_Handler):
    """`GET api/runs`: every live watch of this user."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Answer `{"runs": [...]}`."""
        await self.reply_with(self._runs())

    async def _runs(self) -> dict[str, Any]:
        return {"runs": await self.relay.runs.table()}


class RunHandler(_Handler):
    """`GET api/runs/ID`: one watch, live or ended."""

    @web.authenticated
    @authorized
    async def get(self, run: str) -> None:
        """Answer with the run."""
        await self.reply_with(self.relay.runs.status(run))


class EventsHandler(_Handler):
    """`GET api/runs/ID/events?after=SEQ&limit=N&kinds=A,B`: the newest records of a watch, live or ended."""

    @web.authenticated
    @authorized
    async def get(self, run: str) -> None:
        """Answer `{"events": [...]}`, oldest first; records before the first one are in the log only."""
        await self.reply_with(self._events(run))

    async def _events(self, run: str) -> dict[str, Any]:
        after, limit = self.get_query_argument("after", "-1"), self.get_query_argument("limit", str(MOST_RECORDS))
        if not (_NUMBER.fullmatch(after) and _NUMBER.fullmatch(limit)):
            msg = "`after` and `limit` must be whole numbers"
            raise _BadBodyError(msg)
        kinds = kinds_of(self.get_query_argument("kinds", ""))
        await self.relay.runs.check(run)
        read = partial(recent_events, after=int(after), most=int(limit), kinds=kinds)
        return {"events": await self.relay.runs.in_thread(read, audit_log(run))}


class IncidentsHandler(_Handler):
    """`GET api/runs/ID/incidents`: findings put together, each with what came of it; of a watch, live or ended."""

    @web.authenticated
    @authorized
    async def get(self, run: str) -> None:
        """Answer `{"incidents": [...]}`, oldest first."""
        await self.reply_with(self._incidents(run))

    async def _incidents(self, run: str) -> dict[str, Any]:
        await self.relay.runs.check(run)
        return {"incidents": await self.relay.runs.in_thread(recent_incidents, audit_log(run))}


class KillHandler(_Handler):
    """`POST api/runs/ID/kill`: end a watch. Idempotent; 200 only where nothing of it goes on."""

    @web.authenticated
    @authorized
    async def post(self, run: str) -> None:
        """Answer with what was counted, or with the shell command that kills."""
        try:
            reason = self.body(_Reason).reason
        except _BadBodyError as error:
            self.refuse(error)
            return
        try:
            killed = await self.relay.runs.kill(run, reason, who(self.current_user))
        except UnknownRunError as error:
            self.refuse(error)
            return
        except AgentwatchError as error:
            self.reply(kill_json(run, str(error)), 502)
            return
        finally:
            self.relay.summary.hurry()
        content = kill_json(run, killed)
        self.reply(content, 200 if content["final"] else 502)


class KillAllHandler(_Handler):
    """`POST api/kill-all`: end every live watch of this user; 200 only where nothing of any goes on."""

    @web.authenticated
    @authorized
    async def post(self) -> None:
        """Answer `{"final": …, "results": [one for each watch]}`."""
        try:
            reason = self.body(_Reason).reason
            found = await self.relay.runs.kill_all(reason, who(self.current_user))
        except AgentwatchError as error:
            self.refuse(error, final=False, command=kill_command(""))
            return
        finally:
            self.relay.summary.hurry()
        results = [kill_json(watch, result) for watch, result in found.items()]
        final = all(result["final"] for result in results)
        more = {} if final else {"command": kill_command("")}
        self.reply({"final": final, "results": results, **more}, 200 if final else 502)


class SuspendHandler(_Handler):
    """`POST api/runs/ID/suspend`: stop every process of a watch."""

    @web.authenticated
    @authorized
    async def post(self, run: str) -> None:
        """Answer when every process is stopped."""
        await self.reply_with(self._suspend(run))

    async def _suspend(self, run: str) -> dict[str, Any]:
        self.body(_Nothing)
        return await self.tell(run, Suspend())


class ResumeHandler(_Handler):
    """`POST api/runs/ID/resume`: let a suspended watch go on."""

    @web.authenticated
    @authorized
    async def post(self, run: str) -> None:
        """Answer when it goes on."""
        await self.reply_with(self._resume(run))

    async def _resume(self, run: str) -> dict[str, Any]:
        self.body(_Nothing)
        return await self.tell(run, Resume())


class AnswerHandler(_Handler):
    """`POST api/runs/ID/asks/ASK`: a person's word on a call that is held."""

    @web.authenticated
    @authorized
    async def post(self, run: str, ask: str) -> None:
        """Answer when the call goes on."""
        await self.reply_with(self._answer(run, int(ask)))

    async def _answer(self, run: str, ask: int) -> dict[str, Any]:
        return await self.tell(run, Answer(ask=ask, allow=self.body(_Decision).decision == "allow"))


class NotFoundHandler(_Handler):
    """Everything else under `agentwatch/`: JSON here, too, and only for who may look."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Answer 404."""
        self.reply({"message": "there is nothing at this address", "error": "NotFound"}, 404)

    @web.authenticated
    @authorized
    async def post(self) -> None:
        """Answer 404."""
        self.reply({"message": "there is nothing at this address", "error": "NotFound"}, 404)
