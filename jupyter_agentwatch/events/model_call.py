"""The record of what programs inside ask of a model through the model proxy."""

from __future__ import annotations

from typing import Literal

from jupyter_agentwatch.events.model import Event

__all__ = ["ModelCall"]


class ModelCall(Event, frozen=True, kw_only=True, tag="model"):
    """A program inside asked a model through the model proxy, was refused, or got its answer.

    Attributes:
        op: "request": it may leave from here on; "refused": nothing of it has left; "response": it has ended.
        flow: Id that joins this record to the `flow` records of its connection.
        request: Number that joins "request" and "response"; 0 where the proxy itself refused.
        endpoint: Path that it was sent to, as far as there is one.
        model: Model that was asked, as far as it is an allowed one.
        streams: The answer was to come piece by piece.
        status: HTTP status: the upstream's (0: none came), or that of the refusal.
        request_bytes: Size of what was sent on.
        response_bytes: Size of what was passed on inside.
        input_tokens: Tokens given to the model.
        output_tokens: Tokens that it wrote.
        estimated: The upstream did not count them: they are a guess by size.
        cost: What they cost by the policy's prices.
        tool_calls: What the model asked to be called, each as "name arguments", bounded in count and length; hostile.
        duration_s: From request to end, seconds.
        reason: Why it was refused or broke off; "" where the answer is whole.
    """

    op: Literal["request", "refused", "response"]
    flow: int
    request: int = 0
    endpoint: str = ""
    model: str = ""
    streams: bool = False
    status: int = 0
    request_bytes: int = 0
    response_bytes: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False
    cost: float = 0.0
    tool_calls: list[str] = []  # noqa: RUF012 -- msgspec copies it
    duration_s: float = 0.0
    reason: str = ""
