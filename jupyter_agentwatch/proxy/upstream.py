"""The way to an upstream: one request with the real key, no redirects, every wait bounded."""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

from jupyter_agentwatch.proxy.head import Head, Refusal
from jupyter_agentwatch.proxy.shapes import Endpoint, Wanted
from jupyter_agentwatch.wire.model_messages import ProxyUpstream

__all__ = ["Answer", "asked"]

_IDLE_S: Final = 120.0
"""Seconds between two pieces of an answer: a model may think for that long before it says a word."""
_PIECE: Final = 1 << 16
_MAX_ERROR: Final = 1 << 16
_TYPES: Final = {"application/json": False, "text/event-stream": True}
_ANTHROPIC_VERSION: Final = "2023-06-01"
_KEY_TROUBLE: Final = frozenset((401, 403, 407))
"""Statuses of an answer that speaks of the key, perhaps with a part of it."""


class Answer:
    """What an upstream answers.

    Args:
        response: The open response.
        key: What must not stand in it.
        deadline: Moment (`time.monotonic`) until which it may go on.

    Attributes:
        status: Its HTTP status, never a redirect.
        is_events: It is a stream of events.
        retry_after: Seconds after which the upstream wants to be asked again, or "".
    """

    def __init__(self, response: http.client.HTTPResponse, key: str, deadline: float) -> None:
        kind = response.headers.get_content_type()
        self.status = response.status
        if not 200 <= self.status < 600 or 300 <= self.status < 400:
            raise Refusal(502, f"the upstream answered {self.status}")
        if self.status in _KEY_TROUBLE:
            raise Refusal(502, f"the upstream refused the key or the request ({self.status})")
        if kind not in _TYPES:
            raise Refusal(502, "the upstream answered with neither JSON nor events")
        self.is_events = _TYPES[kind] and self.status == http.client.OK
        after = response.headers.get("retry-after", "")
        self.retry_after = after if after.isascii() and after.isdigit() and len(after) <= 5 else ""
        self._response = response
        self._key = key.encode()
        self._deadline = deadline

    def pieces(self) -> Iterator[bytes]:
        """Yield what comes, as it comes.

        Raises:
            TimeoutError: It took too long.
            OSError: The connection broke.
            http.client.HTTPException: The answer broke off.
        """
        if self.status != http.client.OK:
            said = self._response.read(_MAX_ERROR)
            yield said.replace(self._key, b"***") if self._key else said
            return
        while piece := self._response.read1(_PIECE):
            yield piece
            if time.monotonic() > self._deadline:
                raise TimeoutError
        if self._response.length:  # told in the head, and not come
            raise http.client.IncompleteRead(b"", self._response.length)


@contextmanager
def asked(upstream: ProxyUpstream, endpoint: Endpoint, wanted: Wanted, head: Head, deadline: float) -> Iterator[Answer]:
    """Send a request to an upstream, and close the connection afterwards.

    Args:
        upstream: Where to, with the key.
        endpoint: Which path below it.
        wanted: What to send.
        head: The request inside: two of its fields are passed on, after a look.
        deadline: Moment until which everything has to end.

    Raises:
        Refusal: It could not be reached, or its answer cannot be passed on.
    """
    url = urlsplit(upstream.url)
    patience = max(1.0, min(_IDLE_S, deadline - time.monotonic()))
    connection: http.client.HTTPConnection
    if url.scheme == "https":
        connection = http.client.HTTPSConnection(
            url.hostname or "", url.port, timeout=patience, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=patience)
    try:
        try:
            connection.request(
                "POST", url.path.rstrip("/") + endpoint.upstream, wanted.payload, _fields(upstream, wanted, head)
            )
            answer = Answer(connection.getresponse(), upstream.key, deadline)
        except TimeoutError:
            raise Refusal(504, "the upstream did not answer in time") from None
        except (OSError, http.client.HTTPException) as error:
            raise Refusal(502, f"the upstream could not be asked ({type(error).__name__})") from None
        yield answer
    finally:
        connection.close()


def _fields(upstream: ProxyUpstream, wanted: Wanted, head: Head) -> dict[str, str]:
    fields = {
        "Content-Type": "application/json",
        "Accept": "text/event-stream" if wanted.streams else "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": "jupyter-agentwatch",
    }
    if upstream.shape == "anthropic":
        version = head.fields.get("anthropic-version", "")
        fields["anthropic-version"] = version if _is_version(version) else _ANTHROPIC_VERSION
        return fields | ({"x-api-key": upstream.key} if upstream.key else {})
    return fields | ({"Authorization": f"Bearer {upstream.key}"} if upstream.key else {})


def _is_version(text: str) -> bool:
    return len(text) == len(_ANTHROPIC_VERSION) and text.replace("-", "").isdigit()
