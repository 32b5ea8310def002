"""Serves the connections that the supervisor hands over: one thread and one request each, then it is closed.

Everything that comes from inside is hostile: sizes, times and the number of requests are bounded, nothing is forwarded
that was not judged, and nothing leaves before the supervisor has put it on record and agreed.
"""

from __future__ import annotations

import hmac
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPException
from typing import Final

from jupyter_agentwatch.proxy.head import MAX_HEAD, Head, Refusal, parse_head
from jupyter_agentwatch.proxy.shapes import ENDPOINTS, Endpoint, Wanted, judge
from jupyter_agentwatch.proxy.tally import Tally
from jupyter_agentwatch.proxy.upstream import Answer, asked
from jupyter_agentwatch.wire.model_messages import (
    Answered,
    Asked,
    FromProxy,
    Judged,
    Open,
    ProxySetup,
    ProxyUpstream,
    Refused,
)

__all__ = ["MAX_AT_ONCE", "ModelProxy"]

MAX_AT_ONCE: Final = 32
"""Connections served at a time; the next ones are closed."""

_REQUEST_S: Final = 60.0
"""Seconds in which a request has to be complete."""
_JUDGED_S: Final = 30.0
_PIECE: Final = 1 << 16
_MODELS: Final = "/v1/models"


@dataclass(slots=True)
class _Visit:
    """One connection: who made it, and what is known of its request so far."""

    opened: Open
    sock: socket.socket
    endpoint: str = ""
    model: str = ""

    def about(self) -> dict[str, int | str]:
        """Return what every message about it says."""
        o = self.opened
        return {"flow": o.flow, "step": o.step, "pid": o.pid, "endpoint": self.endpoint, "model": self.model}


@dataclass(slots=True)
class _Question:
    """A request that waits for the supervisor's word."""

    is_answered: threading.Event = field(default_factory=threading.Event)
    allow: bool = False


class ModelProxy:
    """All connections of one watch.

    Args:
        setup: What may be asked of whom.
        tell: Sends a message to the supervisor. Any thread.
    """

    def __init__(self, setup: ProxySetup, tell: Callable[[FromProxy], None]) -> None:
        self._setup = setup
        self._tell = tell
        self._numbers = itertools.count(1)
        self._questions: dict[int, _Question] = {}
        self._room = threading.BoundedSemaphore(MAX_AT_ONCE)
        # What is read of JSON can take thirty times its size: one at a time, or a few requests would fill the memory.
        self._reading = threading.Lock()

    def opened(self, message: Open, sock: socket.socket) -> None:
        """Serve a connection in a thread of its own."""
        if not self._room.acquire(blocking=False):
            sock.close()
            return
        visit = _Visit(message, sock)
        threading.Thread(target=self._serve, args=(visit,), name=f"flow-{message.flow}", daemon=True).start()

    def judged(self, message: Judged) -> None:
        """Pass the supervisor's word on to the request that waits for it."""
        question = self._questions.pop(message.request, None)
        if question is not None:
            question.allow = message.allow
            question.is_answered.set()

    def _serve(self, visit: _Visit) -> None:
        try:
            with visit.sock:
                try:
                    self._answer(visit)
                except Refusal as refusal:
                    status, reason = refusal.status, refusal.reason
                    self._tell(Refused(status=status, reason=reason, **visit.about()))  # type: ignore[arg-type]
                    _send_error(visit.sock, refusal)
        except OSError:  # whoever asked has gone
            pass
        finally:
            self._room.release()

    def _answer(self, visit: _Visit) -> None:
        head, body = _read_request(visit.sock, self._setup.request_bytes)
        path, _, query = head.path.partition("?")
        self._check_token(head)
        if (head.method, path) == ("GET", _MODELS):
            models = [
                {"id": m, "object": "model", "owned_by": u.shape} for u in self._setup.upstreams for m in u.models
            ]
            _send_document(visit.sock, 200, {"object": "list", "data": models})
            return
        endpoint = ENDPOINTS.get(path)
        if endpoint is None or head.method != "POST" or query not in {"", "beta=true"}:
            raise Refusal(404, "there is no such endpoint")
        visit.endpoint = path
        upstream, wanted = self._judge(endpoint, body)
        visit.model = wanted.model
        number = self._ask_leave(visit, wanted)
        self._forward(visit, number, head, (upstream, endpoint, wanted))

    def _check_token(self, head: Head) -> None:
        scheme, _, bearer = head.fields.get("authorization", "").partition(" ")
        given = [bearer.strip()] if scheme.lower() == "bearer" else []
        given += [head.fields["x-api-key"]] if "x-api-key" in head.fields else []
        if not given or not all(hmac.compare_digest(each.encode(), self._setup.token.encode()) for each in given):
            raise Refusal(401, "the token is missing or wrong")

    def _judge(self, endpoint: Endpoint, body: bytes) -> tuple[ProxyUpstream, Wanted]:
        upstreams = [each for each in self._setup.upstreams if each.shape == endpoint.shape]
        models = [model for each in upstreams for model in each.models]
        with self._reading:
            wanted = judge(endpoint, body, models=models, hosted_tools=self._setup.hosted_tools)
        return next(each for each in upstreams if wanted.model in each.models), wanted

    def _ask_leave(self, visit: _Visit, wanted: Wanted) -> int:
        """Have a request put on record; return its number.

        Raises:
            Refusal: The supervisor does not let it leave.
        """
        number = next(self._numbers)
        question = self._questions[number] = _Question()
        size = len(wanted.payload)
        self._tell(Asked(request=number, streams=wanted.streams, request_bytes=size, **visit.about()))  # type: ignore[arg-type]
        if not question.is_answered.wait(_JUDGED_S):
            self._questions.pop(number, None)
        if not question.allow:
            raise Refusal(403, "the policy does not allow this request")
        return number

    def _forward(self, visit: _Visit, number: int, head: Head, what: tuple[ProxyUpstream, Endpoint, Wanted]) -> None:
        upstream, endpoint, wanted = what
        begun = time.monotonic()
        deadline = begun + self._setup.answer_s
        tally = Tally(is_events=wanted.streams, limit=self._setup.response_bytes)
        status, passed, reason = 0, [0], ""
        try:
            with asked(upstream, endpoint, wanted, head, deadline) as answer:
                status = answer.status
                tally.is_events = answer.is_events
                reason = self._pass_on(visit.sock, answer, tally, passed, deadline)
        except Refusal as refusal:
            status, reason = 0, refusal.reason
            _send_error(visit.sock, refusal)
        except OSError as error:
            reason = f"whoever asked has gone ({type(error).__name__})"
        finally:
            with self._reading:
                is_guess = tally.finish(len(wanted.payload), passed[0]) if status == HTTPStatus.OK else False
            self._tell(
                Answered(
                    request=number,
                    status=status,
                    response_bytes=passed[0],
                    input_tokens=tally.input_tokens,
                    output_tokens=tally.output_tokens,
                    estimated=is_guess,
                    tool_calls=tally.tool_calls,
                    duration_s=time.monotonic() - begun,
                    reason=reason,
                    **visit.about(),  # type: ignore[arg-type]
                )
            )

    def _pass_on(self, sock: socket.socket, answer: Answer, tally: Tally, passed: list[int], deadline: float) -> str:
        """Send an answer on, piece by piece; return why it broke off, "" where it is whole.

        Raises:
            OSError: Whoever asked has gone.
        """
        # A watch that is suspended takes nothing for a while: that alone must not break the answer off.
        sock.settimeout(max(1.0, deadline - time.monotonic()))
        kind = "text/event-stream" if answer.is_events else "application/json"
        fields = {"Content-Type": kind, "Transfer-Encoding": "chunked"}
        if answer.retry_after:
            fields["Retry-After"] = answer.retry_after
        sock.sendall(_head(answer.status, fields))
        pieces = answer.pieces()
        while True:
            try:
                piece = next(pieces, b"")
            except TimeoutError:
                return "the upstream took too long"
            except (OSError, HTTPException) as error:
                return f"the upstream broke off ({type(error).__name__})"
            if not piece:
                break
            if passed[0] + len(piece) > self._setup.response_bytes:
                return f"the answer is longer than {self._setup.response_bytes} bytes"
            tally.feed(piece)
            passed[0] += len(piece)
            sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        sock.sendall(b"0\r\n\r\n")  # what broke off ends without it, and cannot be taken for whole
        return ""


def _read_request(sock: socket.socket, max_body: int) -> tuple[Head, bytes]:
    deadline = time.monotonic() + _REQUEST_S
    held = bytearray()
    while (end := held.find(b"\r\n\r\n")) < 0:
        if len(held) > MAX_HEAD:
            raise Refusal(431, f"a head may have {MAX_HEAD} bytes")
        held += _more(sock, deadline, _PIECE)
    if end > MAX_HEAD:
        raise Refusal(431, f"a head may have {MAX_HEAD} bytes")
    head = parse_head(bytes(held[:end]), max_body=max_body)
    del held[: end + 4]
    while len(held) < head.length:
        held += _more(sock, deadline, min(_PIECE, head.length - len(held)))
    if len(held) > head.length:
        raise Refusal(400, "more than one request on one connection")
    return head, bytes(held)


def _more(sock: socket.socket, deadline: float, size: int) -> bytes:
    sock.settimeout(max(0.001, deadline - time.monotonic()))
    try:
        data = sock.recv(size)
    except TimeoutError:
        raise Refusal(408, "the request was not complete in time") from None
    if not data:
        raise ConnectionResetError
    return data


def _head(status: int, fields: dict[str, str]) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    fields = {**fields, "Cache-Control": "no-store", "Connection": "close"}
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def _send_document(sock: socket.socket, status: int, document: object) -> None:
    body = json.dumps(document).encode()
    sock.settimeout(_REQUEST_S)
    sock.sendall(_head(status, {"Content-Type": "application/json", "Content-Length": str(len(body))}) + body)
    sock.shutdown(socket.SHUT_WR)


def _send_error(sock: socket.socket, refusal: Refusal) -> None:
    """Answer in a form that the clients of both shapes understand."""
    kind = "authentication_error" if refusal.status == HTTPStatus.UNAUTHORIZED else "invalid_request_error"
    error = {"type": kind, "message": refusal.reason, "code": None, "param": None}
    _send_document(sock, refusal.status, {"type": "error", "error": error})
