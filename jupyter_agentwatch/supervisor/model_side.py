"""The supervisor's end of the model proxy: hands connections over, and has the last word on each request.

The proxy is a process of its own because it reads what the sandbox and an upstream send, and holds the real keys: what
goes wrong in it can neither stop the monitor nor reach the log.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import socket
from typing import Any, Final

import msgspec

from jupyter_agentwatch.audit.log import LogWriteError
from jupyter_agentwatch.events import LimitHit, ModelCall
from jupyter_agentwatch.policy import AllowedModel, Decision, Models
from jupyter_agentwatch.sandbox.flow import FlowSpec
from jupyter_agentwatch.sandbox.sockaddr import Address, is_inside
from jupyter_agentwatch.supervisor.gate import Gate, Held
from jupyter_agentwatch.supervisor.proxy_process import ProxyProcess
from jupyter_agentwatch.supervisor.record import Recorder
from jupyter_agentwatch.wire.model_messages import (
    Answered,
    Asked,
    FromProxy,
    Judged,
    Open,
    Refused,
)

__all__ = ["RULE", "ModelSide"]

RULE: Final = "models"
"""What the record of a connection to the proxy names as the rule."""

_GRANTED: Final = Decision("allow", RULE, "http")
_MAX_MESSAGE: Final = 1 << 18
_MAX_AT_ONCE: Final = 64
_MILLION: Final = 1e6


class ModelSide:
    """The model proxy of one watch. `begin` may be called from any thread; the rest belongs to the loop's.

    Args:
        loop: The control thread's loop.
        policy: What may be asked of whom.
        process: The proxy.
        recorder: Where records go.
        gate: Shut where a record has tripped the breaker.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        policy: Models,
        process: ProxyProcess,
        recorder: Recorder,
        gate: Gate,
    ) -> None:
        self._loop = loop
        self._policy = policy
        self._recorder = recorder
        self._gate = gate
        self._prices: dict[tuple[str, str], AllowedModel] = {
            (upstream.shape, model.name): model for upstream in policy.upstreams for model in upstream.models
        }
        self._token = process.token
        self._decoder: msgspec.json.Decoder[FromProxy] = msgspec.json.Decoder(FromProxy)
        self._used = {"max_requests": 0.0, "max_tokens": 0.0, "max_cost": 0.0}
        self._told: set[str] = set()
        self._under_way: dict[int, dict[str, Any]] = {}
        self._control = process.control
        self._control.setblocking(False)

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which programs inside find their model: addresses inside, and the token of this watch."""
        base = f"http://127.0.0.1:{self._policy.port}"
        found: dict[str, str] = {}
        shapes = {upstream.shape for upstream in self._policy.upstreams}
        if "openai" in shapes:
            found |= {"OPENAI_BASE_URL": f"{base}/v1", "OPENAI_API_BASE": f"{base}/v1", "OPENAI_API_KEY": self._token}
        if "anthropic" in shapes:
            found |= {"ANTHROPIC_BASE_URL": base, "ANTHROPIC_API_KEY": self._token}
        return found

    def granted(self, address: Address) -> Decision | None:
        """Return the word on a connection where it goes to the proxy, else None."""
        return _GRANTED if address.port == self._policy.port and is_inside(address.host) else None

    def begin(self, spec: FlowSpec) -> tuple[socket.socket, int]:
        """Connect to the proxy on behalf of a process inside; return our end, and 0 or the errno."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        message = msgspec.json.encode(Open(flow=spec.flow, step=spec.step, pid=spec.pid))
        try:
            with theirs:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))]
                self._control.sendmsg([message], rights)
        except BlockingIOError:
            return ours, errno.EAGAIN
        except OSError:  # it has ended
            return ours, errno.ECONNREFUSED
        return ours, 0

    def listen(self) -> None:
        """Begin to answer the proxy."""
        self._loop.add_reader(self._control, self._readable)

    def close(self) -> None:
        """End the proxy; put on record that what was under way has ended with it."""
        self._loop.remove_reader(self._control)
        self._control.close()
        self._all_ended("the watch has ended")

    def _readable(self) -> None:
        for _ in range(_MAX_AT_ONCE):  # then others have their turn
            try:
                data = self._control.recv(_MAX_MESSAGE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._loop.remove_reader(self._control)
                with contextlib.suppress(LogWriteError, ValueError):  # that has tripped the breaker, or all is over
                    self._all_ended("the model proxy has ended")
                    self._record(verdict="deny", op="refused", flow=0, reason="the model proxy has ended")
                return
            message = self._decoder.decode(data)
            # What cannot be recorded has tripped the breaker already; a request that it was about does not leave.
            with contextlib.suppress(LogWriteError, ValueError, Held):
                self._handle(message)

    def _handle(self, message: FromProxy) -> None:
        about: dict[str, Any] = {
            "flow": message.flow,
            "step": message.step,
            "pid": message.pid,
            "endpoint": message.endpoint,
            "model": message.model,
        }
        match message:
            case Asked():
                self._judge(message, about)
            case Refused():
                self._record(verdict="deny", op="refused", status=message.status, reason=message.reason, **about)
            case Answered():
                self._count(message, about)

    def _judge(self, asked: Asked, about: dict[str, Any]) -> None:
        allow = False
        try:
            used_up = self._used_up()
            if used_up:
                reason = f"{RULE}.{used_up} is used up"
                self._record(verdict="deny", op="refused", request=asked.request, reason=reason, **about)
            else:
                self._check_running()
                self._record(
                    op="request",
                    request=asked.request,
                    streams=asked.streams,
                    request_bytes=asked.request_bytes,
                    **about,
                )
                self._check_running()
                self._used["max_requests"] += 1
                self._under_way[asked.request] = about
                allow = True
        finally:
            with contextlib.suppress(OSError):  # it has ended
                self._control.send(msgspec.json.encode(Judged(request=asked.request, allow=allow)))

    def _check_running(self) -> None:
        """Ask the gate, before and after the record, which may itself have tripped the breaker.

        Raises:
            Held: The watch is stopped.
        """
        self._gate.check_leaving()
        if self._gate.is_shut:
            raise Held

    def _count(self, answered: Answered, about: dict[str, Any]) -> None:
        self._under_way.pop(answered.request, None)
        shape = "anthropic" if answered.endpoint.endswith("/messages") else "openai"
        prices = self._prices[shape, answered.model]
        cost = (answered.input_tokens * prices.price_in + answered.output_tokens * prices.price_out) / _MILLION
        self._used["max_tokens"] += answered.input_tokens + answered.output_tokens
        self._used["max_cost"] += cost
        self._record(
            op="response",
            request=answered.request,
            status=answered.status,
            response_bytes=answered.response_bytes,
            input_tokens=answered.input_tokens,
            output_tokens=answered.output_tokens,
            estimated=answered.estimated,
            cost=cost,
            tool_calls=answered.tool_calls,
            duration_s=answered.duration_s,
            reason=answered.reason,
            **about,
        )

    def _all_ended(self, reason: str) -> None:
        """Record the end of requests of which nobody can tell any more what they have used."""
        for request, about in self._under_way.items():
            with contextlib.suppress(LogWriteError, ValueError):
                self._record(op="response", request=request, reason=reason, **about)
        self._under_way.clear()

    def _used_up(self) -> str:
        """Return the first bound that is reached, "" for none; the first time, put that on record."""
        for name, used in self._used.items():
            bound = getattr(self._policy, name)
            if bound is not None and used >= bound:
                if name not in self._told:
                    self._told.add(name)
                    self._recorder.record(
                        LimitHit,
                        verdict="deny",
                        limit=f"{RULE}.{name}",
                        value=used,
                        maximum=float(bound),
                        action="requests refused",
                    )
                return name
        return ""

    def _record(self, *, verdict: str = "allow", **fields: Any) -> None:
        self._recorder.record(ModelCall, verdict=verdict, **fields)
