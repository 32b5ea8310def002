"""What the supervisor and the model proxy say to each other, as a closed tagged union; pure data, no socket here.

One SOCK_SEQPACKET socket carries one message at a time; `Open` comes with the descriptor of a connection.
"""

from __future__ import annotations

import msgspec

__all__ = [
    "Answered",
    "Asked",
    "FromProxy",
    "Judged",
    "Open",
    "ProxySetup",
    "ProxyUpstream",
    "Refused",
    "ToProxy",
]


class ProxyUpstream(msgspec.Struct, frozen=True, kw_only=True):
    """One upstream as the policy names it, with its key. `models` are the names that may be asked for."""

    shape: str
    url: str
    key: str
    models: list[str]


class ProxySetup(msgspec.Struct, frozen=True, kw_only=True):
    """The one document on a new proxy's standard input. Sizes in bytes, times in seconds."""

    control: int
    token: str
    upstreams: list[ProxyUpstream]
    request_bytes: int
    response_bytes: int
    answer_s: float
    hosted_tools: bool


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    pass


class _OfFlow(_Message, frozen=True, kw_only=True):
    """Whose connection it is about."""

    flow: int
    step: int
    pid: int


class Open(_OfFlow, frozen=True, kw_only=True, tag="open"):
    """A process inside has connected; the descriptor that comes with this is the other end."""


class Judged(_Message, frozen=True, kw_only=True, tag="judged"):
    """Answer to `Asked`: it is on record, and may leave or not."""

    request: int
    allow: bool


class _About(_OfFlow, frozen=True, kw_only=True):
    """Who asked for what. `endpoint` and `model` are as far as they were understood."""

    endpoint: str = ""
    model: str = ""


class Asked(_About, frozen=True, kw_only=True, tag="asked"):
    """A request is complete and well-formed, and waits for `Judged`; nothing of it has left."""

    request: int
    streams: bool
    request_bytes: int


class Refused(_About, frozen=True, kw_only=True, tag="refused"):
    """A request was refused by the proxy itself, and nothing of it has left."""

    status: int
    reason: str


class Answered(_About, frozen=True, kw_only=True, tag="answered"):
    """A request that had left has ended.

    `status` is the upstream's, 0 where it gave none; `estimated` says that the counts of tokens are a guess by size,
    because the upstream gave none; `reason` is "" where the answer was passed on whole.
    """

    request: int
    status: int
    response_bytes: int
    input_tokens: int
    output_tokens: int
    estimated: bool
    tool_calls: list[str]
    duration_s: float
    reason: str


ToProxy = Open | Judged
"""Everything that the supervisor may say."""

FromProxy = Asked | Refused | Answered
"""Everything that the proxy may say."""
