"""The pure parts of the model proxy: heads read strictly, requests judged, answers counted."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_agentwatch.proxy.head import Refusal, parse_head
from jupyter_agentwatch.proxy.shapes import ENDPOINTS, judge
from jupyter_agentwatch.proxy.tally import Tally
from tests.model_upstream import CLAUDE, MODEL, chat, chunk, event, message

CHAT, RESPONSES, MESSAGES = (ENDPOINTS[f"/v1/{name}"] for name in ("chat/completions", "responses", "messages"))
GOOD = b"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1:8790\r\nX-Api-Key: token\r\nContent-Length: 12"


def refused(raw: bytes) -> int:
    """The status with which a head is refused."""
    with pytest.raises(Refusal) as caught:
        parse_head(raw, max_body=100)
    return caught.value.status


def test_a_head_is_read() -> None:
    """What clients send is understood: method, path, fields in lower case, length."""
    head = parse_head(GOOD, max_body=100)
    assert (head.method, head.path, head.length) == ("POST", "/v1/messages", 12)
    assert head.fields["x-api-key"] == "token"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (GOOD.replace(b"POST", b"PUT"), 400),
        (GOOD.replace(b"/v1/messages", b"http://other.example/v1/messages"), 400),
        (GOOD.replace(b"HTTP/1.1", b"HTTP/2"), 400),
        (GOOD + b"\r\nContent-Length: 13", 400),
        (GOOD + b"\r\ncontent-length: 12", 400),
        (GOOD + b"\r\nTransfer-Encoding: chunked", 411),
        (GOOD + b"\r\ntransfer-encoding:\tidentity", 411),
        (GOOD + b"\r\nTransfer-Encoding : chunked", 400),
        (GOOD + b"\r\n Transfer-Encoding: chunked", 400),
        (GOOD + b"\r\nX: a\nTransfer-Encoding: chunked", 400),
        (GOOD + b"\r\nX: a\rb", 400),
        (GOOD + b"\r\nX: a\0b", 400),
        (GOOD + b"\r\nX: \xc3\xa4", 400),
        (GOOD + b"\r\nContent-Encoding: gzip", 415),
        (GOOD + b"\r\nExpect: 100-continue", 417),
        (GOOD + b"\r\nUpgrade: websocket", 400),
        (GOOD + b"\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b", 400),
        (GOOD.replace(b"12", b"+12"), 400),
        (GOOD.replace(b"12", b"0x12"), 400),
        (GOOD.replace(b"12", b"12, 12"), 400),
        (GOOD.replace(b"12", b"101"), 413),
        (GOOD.replace(b"12", b"9" * 10), 413),
        (GOOD.replace(b"12", b"9" * 40), 400),
        (GOOD.split(b"\r\nContent")[0], 411),
        (GOOD.replace(b"POST", b"GET"), 413),
        (b"", 400),
    ],
)
def test_a_head_with_a_second_meaning_is_refused(raw: bytes, status: int) -> None:
    """Whatever two readers could understand differently, or is not done here, is refused."""
    assert refused(raw) == status


@given(st.binary(max_size=300))
def test_any_bytes_are_a_head_or_refused(raw: bytes) -> None:
    """No bytes make the reader of heads fail in another way."""
    for each in (raw, GOOD + raw, GOOD + b"\r\n" + raw):
        with suppress(Refusal):
            parse_head(each, max_body=100)


def asked(body: Any, endpoint: Any = CHAT, *, hosted_tools: bool = False) -> Any:
    """Judge a body, and return what would be sent."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    wanted = judge(endpoint, raw, models=[MODEL, CLAUDE], hosted_tools=hosted_tools)
    return json.loads(wanted.payload)


def test_what_is_sent_is_what_was_judged() -> None:
    """A key that is given twice is sent once, with the value that was judged."""
    assert asked(b'{"model": "forbidden", "model": "test-model"}') == {"model": MODEL}
    with pytest.raises(Refusal, match="does not allow"):
        asked(b'{"model": "test-model", "model": "forbidden"}')


def test_a_stream_of_chat_is_made_to_count() -> None:
    """Streams of chat completions tell their tokens, whatever whoever asked has said about it."""
    sent = asked({"model": MODEL, "stream": True, "stream_options": {"include_usage": False, "other": 1}})
    assert sent["stream_options"] == {"include_usage": True, "other": 1}
    assert asked({"model": MODEL, "stream": True, "stream_options": "x"})["stream_options"] == {"include_usage": True}
    assert "stream_options" not in asked({"model": CLAUDE, "stream": True}, MESSAGES)


DEEP = b'{"model": "test-model", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"\xff", 400),
        (b"[]", 400),
        (b"{", 400),
        (b'{"model": "test-model", "x": NaN}', 400),
        (DEEP, 400),
        ({"messages": []}, 403),
        ({"model": None}, 403),
        ({"model": [MODEL]}, 403),
        ({"model": "another"}, 403),
        ({"model": MODEL, "stream": "yes"}, 400),
    ],
)
def test_a_body_that_is_none_is_refused(body: Any, status: int) -> None:
    """Neither broken JSON nor a model that is not allowed gets any further."""
    with pytest.raises(Refusal) as caught:
        asked(body)
    assert caught.value.status == status


HOSTED = [
    {"tools": [{"type": "web_search"}]},
    {"tools": [{"type": "function", "function": {}}, {"type": "mcp", "server_url": "https://other.example"}]},
    {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]},
    {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
    {"tools": [{"type": "code_execution_20250522"}]},
    {"tools": [{"type": ["function"]}]},
    {"tools": ["web_search"]},
    {"mcp_servers": [{"url": "https://other.example"}]},
    {"web_search_options": {"search_context_size": "low"}},
    {"models": [MODEL, "a-dear-one"]},
    {"plugins": [{"id": "web"}]},
    {"api_base": "https://other.example", "api_key": "x"},
    {"fallbacks": ["a-dear-one"]},
    {"data_sources": [{"type": "search", "parameters": {"endpoint": "https://other.example"}}]},
    {"messages": [{"content": [{"type": "image_url", "image_url": {"url": "https://other.example/?secret"}}]}]},
    {"input": [{"content": [{"type": "input_image", "image_url": "http://other.example"}]}]},
    {"input": [{"content": [{"type": "input_file", "file_url": "https://other.example"}]}]},
    {"messages": [{"content": [{"type": "image", "source": {"type": "url", "url": "https://other.example"}}]}]},
]


@pytest.mark.parametrize("extra", HOSTED)
def test_the_provider_is_not_a_way_out(extra: dict[str, Any]) -> None:
    """What the provider would carry out or fetch itself is refused, unless the policy allows it."""
    body = {"model": MODEL, **extra}
    with pytest.raises(Refusal) as caught:
        asked(body)
    assert caught.value.status == 403
    assert asked(body, hosted_tools=True) == body


def test_tools_that_the_client_carries_out_are_let_through() -> None:
    """Functions, custom tools, and Anthropic's shell and editor are the agent's own to carry out."""
    tools = [{"type": "function"}, {"type": "custom"}, {"name": "plain"}, {"type": "bash_20250124", "name": "bash"}]
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    body = {"model": CLAUDE, "tools": tools, "messages": [{"role": "user", "content": [image]}]}
    assert asked(body, MESSAGES) == body


def counted(raw: bytes, *, is_events: bool, size: int = 7) -> Tally:
    """Count an answer that comes in small pieces."""
    tally = Tally(is_events=is_events, limit=1 << 20)
    for start in range(0, len(raw), size):
        tally.feed(raw[start : start + size])
    assert not tally.finish(1, len(raw))
    return tally


RESPONSE = {
    "output": [{"type": "function_call", "id": "f1", "name": "look", "arguments": "{}"}],
    "usage": {"input_tokens": 4, "output_tokens": 2},
}


@pytest.mark.parametrize(
    ("document", "tokens", "calls"),
    [
        (chat(), (7, 5), []),
        (chat(None, calls=[("sh", '{"a": 1}'), ("ls", "{}")]), (7, 5), ['sh {"a": 1}', "ls {}"]),
        (message(tool=("sh", {"a": 1})), (11, 3), ['sh {"a": 1}']),
        (RESPONSE, (4, 2), ["look {}"]),
    ],
)
def test_a_document_is_counted(document: Any, tokens: tuple[int, int], calls: list[str]) -> None:
    """Tokens and tool calls are found in answers of every shape."""
    tally = counted(json.dumps(document).encode(), is_events=False)
    assert ((tally.input_tokens, tally.output_tokens), tally.tool_calls) == (tokens, calls)


def test_streams_are_counted() -> None:
    """Tokens and tool calls are put together from streams of every shape, however they are cut."""
    call = {"index": 0, "id": "c", "function": {"name": "sh", "arguments": '{"a"'}}
    more = {"index": 0, "function": {"arguments": ": 1}"}}
    pieces = [chunk({"tool_calls": [call]}), chunk({"tool_calls": [more]}), chunk(None, (9, 4)), b"data: [DONE]\n\n"]
    tally = counted(b"".join(pieces), is_events=True)
    assert (tally.input_tokens, tally.output_tokens, tally.tool_calls) == (9, 4, ['sh {"a": 1}'])

    begun = {**message(), "content": [], "usage": {"input_tokens": 5, "cache_read_input_tokens": 2, "output_tokens": 1}}
    block = {"type": "tool_use", "id": "t", "name": "sh", "input": {}}
    pieces = [
        event("message_start", message=begun),
        event("content_block_start", index=1, content_block=block),
        event("content_block_delta", index=1, delta={"type": "input_json_delta", "partial_json": '{"a": 1}'}),
        event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 6}),
    ]
    tally = counted(b"".join(pieces), is_events=True)
    assert (tally.input_tokens, tally.output_tokens, tally.tool_calls) == (7, 6, ['sh {"a": 1}'])

    tally = counted(event("response.completed", response=RESPONSE), is_events=True)
    assert (tally.input_tokens, tally.output_tokens, tally.tool_calls) == (4, 2, ["look {}"])


def test_an_answer_that_counts_nothing_is_guessed_by_size() -> None:
    """Where the upstream gives no counts, or nonsense, a guess stands in their place, rounded up."""
    for nonsense in (b"no JSON", b'{"usage": {"prompt_tokens": -1, "completion_tokens": true}}', b"[1]", b"[" * 90_000):
        tally = Tally(is_events=False, limit=1 << 20)
        tally.feed(nonsense)
        assert tally.finish(9, 4001)
        assert (tally.input_tokens, tally.output_tokens) == (3, 1001)


def test_whoever_hangs_up_before_the_count_pays_by_size() -> None:
    """At its begin a stream counts what came in, and next to nothing out: that is not taken for all that was used."""
    begun = {**message(), "content": [], "usage": {"input_tokens": 50, "output_tokens": 1}}
    tally = Tally(is_events=True, limit=1 << 20)
    tally.feed(event("message_start", message=begun))
    tally.feed(event("content_block_delta", index=0, delta={"type": "text_delta", "text": "much"}))
    assert tally.finish(9, 4000)
    assert (tally.input_tokens, tally.output_tokens) == (50, 1000)


def test_tool_calls_can_be_told_whatever_stands_in_them() -> None:
    """Half of a surrogate pair, which JSON can hold and UTF-8 cannot, must not keep the answer from the record."""
    raw = json.dumps(chat(None, calls=[("s\ud800h", '{"a": "\udc00"}')])).encode()
    assert counted(raw, is_events=False).tool_calls == ['s\\ud800h {"a": "\\udc00"}']
    assert msgspec.json.encode(counted(raw, is_events=False).tool_calls)


@given(st.lists(st.binary(max_size=80), max_size=8), st.booleans())
def test_any_answer_can_be_counted(pieces: list[bytes], is_events: bool) -> None:
    """No answer makes the count fail or grow beyond its bound."""
    tally = Tally(is_events=is_events, limit=100)
    for piece in pieces:
        tally.feed(b'data: {"choices": [{"delta": {"tool_calls": [' + piece + b"\n")
    tally.finish(1, 1)
    assert sum(map(len, tally.tool_calls)) <= 32 * 800


def test_endless_tool_calls_are_bounded() -> None:
    """A model that calls without end fills neither memory nor log."""
    tally = Tally(is_events=True, limit=100)
    for index in range(2000):
        tally.feed(chunk({"tool_calls": [{"index": index, "function": {"name": "n" * 500, "arguments": "a" * 5000}}]}))
    assert len(tally.tool_calls) == 32
    assert max(map(len, tally.tool_calls)) <= 701
