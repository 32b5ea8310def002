"""What may be asked of a model, in the shapes of OpenAI and Anthropic; pure: bytes in, a decision or a refusal out.

What is forwarded is written anew from what was judged, so that no reader behind can find another meaning in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from jupyter_agentwatch.proxy.head import Refusal

__all__ = ["ENDPOINTS", "Endpoint", "Wanted", "judge"]

_CLIENT_TOOLS: Final = frozenset(("function", "custom"))
_CLIENT_PREFIXES: Final = ("bash_", "text_editor_", "computer_", "memory_")
"""Tools that the client itself carries out; all other types are the provider's, and act outside of the sandbox."""
_HOSTED_KEYS: Final = frozenset(
    (
        *("web_search_options", "mcp_servers", "container", "connectors", "background", "prompt"),
        *("plugins", "search_parameters", "enable_search", "data_sources", "guardrails", "callbacks"),
        # Gateways of several providers take another model, host or key than the policy's from the request.
        *("models", "fallbacks", "route", "provider", "preset", "custom_llm_provider", "user_config"),
        *("api_base", "base_url", "api_key", "api_version", "extra_body", "extra_headers", "headers"),
        "kv_transfer_params",
    )
)
"""What makes an upstream reach out by itself, or go somewhere else than the policy says."""
_MEDIA_KEYS: Final = frozenset(("image_url", "file_url", "video_url", "audio_url"))
_MAX_DEPTH: Final = 64


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path that is served: whose shape it has, and where it is below an upstream's URL."""

    shape: str
    upstream: str
    streams_usage: bool = False


ENDPOINTS: Final = {
    "/v1/chat/completions": Endpoint("openai", "/chat/completions", streams_usage=True),
    "/v1/responses": Endpoint("openai", "/responses"),
    "/v1/messages": Endpoint("anthropic", "/messages"),
}
"""Every path that leads to a model."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request that may be asked for: the model, whether the answer streams, and what to send."""

    model: str
    streams: bool
    payload: bytes


def judge(endpoint: Endpoint, body: bytes, *, models: Sequence[str], hosted_tools: bool) -> Wanted:
    """Read a request's body and decide whether it may be asked.

    Args:
        endpoint: Where it was sent to.
        body: JSON.
        models: Names that may be asked for.
        hosted_tools: Tools that the provider runs, and media that it fetches, may be asked for, too.

    Raises:
        Refusal: It is malformed, or may not.
    """
    try:
        asked = json.loads(body, parse_constant=_no_constant)
        if not isinstance(asked, dict):
            raise Refusal(400, "the body is no JSON object")
        model = asked.get("model")
        if not isinstance(model, str) or model not in models:
            raise Refusal(403, "the policy does not allow this model")
        streams = asked.get("stream", False)
        if not isinstance(streams, bool | None):
            raise Refusal(400, "stream is neither true nor false")
        if not hosted_tools:
            for reason in _hosted(asked):
                raise Refusal(403, reason)
        if streams and endpoint.streams_usage:
            options = asked.get("stream_options")
            asked["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        payload = json.dumps(asked, allow_nan=False).encode("ascii")
    except (ValueError, RecursionError):  # not UTF-8, not JSON, nested beyond all measure
        raise Refusal(400, "the body is no JSON") from None
    return Wanted(model, bool(streams), payload)


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _hosted(asked: dict[str, Any]) -> Iterator[str]:
    """Yield why a request would make the provider reach out from outside of the sandbox."""
    for key in sorted(_HOSTED_KEYS & asked.keys()):
        if asked[key]:
            yield f"{key} is the upstream's to carry out or to follow, and the policy does not allow that"
    tools = asked.get("tools")
    for tool in tools if isinstance(tools, list) else []:
        kind = tool.get("type", "custom") if isinstance(tool, dict) else ""
        if not isinstance(kind, str) or not (kind in _CLIENT_TOOLS or kind.startswith(_CLIENT_PREFIXES)):
            yield "a tool is the provider's to carry out, and the policy does not allow that"
    yield from _fetched(asked, 0)


def _fetched(value: object, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        yield "nested too deeply"
        return
    if isinstance(value, list):
        for each in value:
            yield from _fetched(each, depth + 1)
    if not isinstance(value, dict):
        return
    for key, each in value.items():
        link = each.get("url") if isinstance(each, dict) else each
        if key in _MEDIA_KEYS and isinstance(link, str) and not link.startswith("data:"):
            yield "media have to be in the request itself (data: …), not somewhere to be fetched from"
        yield from _fetched(each, depth + 1)
    if value.get("type") == "url" and isinstance(value.get("url"), str):
        yield "media have to be in the request itself, not somewhere to be fetched from"
