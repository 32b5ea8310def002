"""The model proxy against hostile programs inside and bad upstreams, over real sockets; the test is its supervisor."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from jupyter_agentwatch.proxy import server as proxy_server
from jupyter_agentwatch.proxy.server import MAX_AT_ONCE, ModelProxy
from jupyter_agentwatch.wire.model_messages import Answered, Asked, Judged, Open, ProxySetup, ProxyUpstream, Refused
from tests.model_upstream import CLAUDE, KEY, MODEL, ModelService, chat, chunk, document, event, events, message
from tests.outside import LONG_S
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.server import BaseHTTPRequestHandler

    from jupyter_agentwatch.wire.model_messages import FromProxy

TOKEN = "aw-token"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


class Supervised:
    """A proxy whose supervisor is the test: everything may leave, unless `allow` says no."""

    def __init__(self, url: str, **bounds: Any) -> None:
        given = {"request_bytes": 10_000, "response_bytes": 100_000, "answer_s": LONG_S, "hosted_tools": False}
        upstreams = [
            ProxyUpstream(shape="openai", url=url, key=KEY, models=[MODEL]),
            ProxyUpstream(shape="anthropic", url=url, key=KEY, models=[CLAUDE]),
        ]
        self.allow = True
        self.told: list[FromProxy] = []
        self._ended = threading.Condition()
        setup = ProxySetup(control=0, token=TOKEN, upstreams=upstreams, **(given | bounds))
        self.proxy = ModelProxy(setup, self._tell)

    def _tell(self, message: FromProxy) -> None:
        with self._ended:
            self.told.append(message)
            self._ended.notify_all()
        if isinstance(message, Asked):
            self.proxy.judged(Judged(request=message.request, allow=self.allow))

    def connect(self) -> socket.socket:
        """Connect as the supervisor does for a process inside."""
        ours, theirs = socket.socketpair()
        ours.settimeout(LONG_S)
        self.proxy.opened(Open(flow=5, step=3, pid=77), theirs)
        return ours

    def exchange(self, raw: bytes) -> bytes:
        """Send bytes, and return all that comes back."""
        with self.connect() as sock:
            sock.sendall(raw)
            return received(sock)

    def ask(self, body: Any = CHAT, path: str = "/v1/chat/completions", **fields: str) -> tuple[int, bytes]:
        """Ask as a client does; return status and body, b"..." with what came where it broke off."""
        return parsed(self.exchange(request(body, path, **fields)))

    def wait_told(self, kind: type[Any]) -> Any:
        """Wait until the proxy has told of something, and return the last of it."""
        with self._ended:
            assert self._ended.wait_for(lambda: any(isinstance(m, kind) for m in self.told), LONG_S)
            return [m for m in self.told if isinstance(m, kind)][-1]


def request(body: Any = CHAT, path: str = "/v1/chat/completions", **fields: str) -> bytes:
    """The bytes of a request."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Host": "127.0.0.1:8790", "Authorization": f"Bearer {TOKEN}", "Content-Length": str(len(raw))}
    lines = [f"POST {path} HTTP/1.1", *(f"{n.replace('_', '-')}: {v}" for n, v in (given | fields).items() if v)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw


def received(sock: socket.socket) -> bytes:
    """Read until the peer closes."""
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def parsed(raw: bytes) -> tuple[int, bytes]:
    """Read an answer; a chunked one that broke off loses its end mark, and is told by a b"BROKEN" behind it."""
    head, _, body = raw.partition(b"\r\n\r\n")
    if b"chunked" in head:
        pieces, rest = b"", body
        while rest and not rest.startswith(b"0\r\n"):
            size, _, rest = rest.partition(b"\r\n")
            pieces, rest = pieces + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        body = pieces if rest else pieces + b"BROKEN"
    return int(head.split()[1]), body


@pytest.fixture
def service() -> Iterator[ModelService]:
    """A service that answers "hello"."""
    with ModelService() as made:
        yield made


@pytest.fixture
def supervised(service: ModelService) -> Supervised:
    """A proxy in front of it."""
    return Supervised(service.url)


def test_a_request_goes_out_with_the_key_and_an_answer_comes_back(
    supervised: Supervised, service: ModelService
) -> None:
    """The upstream gets the key and nothing else of the request's head; the record has who asked, tokens and calls."""
    service.answer = lambda *_: chat(None, calls=[("sh", "{}")])
    status, body = supervised.ask(X_Other="from inside", Cookie="a=b", User_Agent="agent")
    assert (status, json.loads(body)["usage"]["total_tokens"]) == (200, 12)
    (asked,) = service.asked
    assert (asked.path, asked.body) == ("/v1/chat/completions", CHAT)
    assert asked.fields["authorization"] == f"Bearer {KEY}"
    assert not {"x-other", "cookie", "x-api-key"} & asked.fields.keys()
    assert "agent" not in asked.fields["user-agent"].split()
    answered = supervised.wait_told(Answered)
    assert (answered.flow, answered.step, answered.pid, answered.model) == (5, 3, 77, MODEL)
    assert (answered.status, answered.input_tokens, answered.output_tokens, answered.reason) == (200, 7, 5, "")
    assert answered.tool_calls == ["sh {}"]


def test_the_other_shape_is_served(supervised: Supervised, service: ModelService) -> None:
    """Anthropic's shape has its own path, its own field for the key, and a version that is passed on."""
    service.answer = lambda *_: message()
    body = {"model": CLAUDE, "max_tokens": 5, "messages": []}
    fields = {"Authorization": "", "X_Api_Key": TOKEN, "Anthropic_Version": "2099-01-02"}
    assert supervised.ask(body, "/v1/messages?beta=true", **fields)[0] == 200
    assert supervised.ask(body, "/v1/messages", **(fields | {"Anthropic_Version": "x, y"}))[0] == 200
    assert [a.fields["anthropic-version"] for a in service.asked] == ["2099-01-02", "2023-06-01"]
    assert [a.fields["x-api-key"] for a in service.asked] == [KEY] * 2
    assert supervised.ask({**body, "model": MODEL}, "/v1/messages", **fields)[0] == 403


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (request(Authorization="Bearer wrong"), 401),
        (request(Authorization="Bearer "), 401),
        (request(Authorization=f"Basic {TOKEN}"), 401),
        (request(Authorization=""), 401),
        (request(X_Api_Key="wrong"), 401),
        (request(path="/v1/files"), 404),
        (request(path="/v1/chat/completions/"), 404),
        (request(path="/v1/../v1/chat/completions"), 404),
        (request(path="//v1/chat/completions"), 404),
        (request(path="/v1/chat/completions?key=1"), 404),
        (request(path="/"), 404),
        (request(b"x" * 10_001), 413),
        (request(b"{"), 400),
        (request({"model": "another"}), 403),
        (request() + request(), 400),
        (request() + b"x", 400),
        (request(Transfer_Encoding="chunked"), 411),
        (b"GET /v1/chat/completions HTTP/1.1\r\nAuthorization: Bearer aw-token\r\n\r\n", 404),
        (b"A" * 40_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n", 431),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
    ],
)
def test_what_is_hostile_is_refused_and_on_record(
    supervised: Supervised, service: ModelService, raw: bytes, status: int
) -> None:
    """Wrong tokens, other paths, huge bodies and smuggled requests: nothing leaves, and each refusal is told."""
    with supervised.connect() as sock:
        with suppress(ConnectionError):  # it was refused before it was complete
            sock.sendall(raw)
        assert int(sock.recv(65536).split()[1]) == status
    assert supervised.wait_told(Refused).status == status
    assert service.asked == []
    assert supervised.ask()[0] == 200  # the next one is served


def test_nothing_leaves_without_the_supervisors_word(supervised: Supervised, service: ModelService) -> None:
    """Where the supervisor says no, the request is refused and the upstream hears nothing."""
    supervised.allow = False
    assert supervised.ask()[0] == 403
    assert service.asked == []
    assert [type(each) for each in supervised.told] == [Asked, Refused]


def test_many_large_requests_are_read_one_at_a_time(service: ModelService) -> None:
    """Requests that would take thirty times their size to be read do not add up: each is refused, none is lost."""
    supervised = Supervised(service.url, request_bytes=1 << 20)
    body = b'{"model": "another", "x": [' + b"[]," * 300_000 + b"[]]}"
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(supervised.ask(body)[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert statuses == [403] * 8
    assert service.asked == []


def test_the_list_of_models_is_answered_here(supervised: Supervised, service: ModelService) -> None:
    """Clients that list models get the policy's, and the upstream is not asked."""
    raw = f"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
    status, body = parsed(supervised.exchange(raw))
    assert (status, [each["id"] for each in json.loads(body)["data"]]) == (200, [MODEL, CLAUDE])
    assert service.asked == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_the_upstreams_troubles_are_passed_on(supervised: Supervised, service: ModelService, status: int) -> None:
    """Too many requests and server errors reach whoever asked, with the time to wait, and cost no tokens."""

    def trouble(_number: int, _asked: Any, handler: BaseHTTPRequestHandler) -> None:
        document(handler, status, {"error": {"message": f"slow down, {KEY}"}}, Retry_After="7", Set_Cookie="a=b")

    service.answer = trouble
    raw = supervised.exchange(request())
    assert parsed(raw) == (status, b'{"error": {"message": "slow down, ***"}}')
    assert b"Retry-After: 7" in raw
    assert b"Cookie" not in raw
    answered = supervised.wait_told(Answered)
    assert (answered.status, answered.input_tokens, answered.tool_calls) == (status, 0, [])


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (401, {}),
        (403, {}),
        (302, {"Location": "http://127.0.0.1:9/"}),
        (200, {"Content_Type": "text/html"}),
        (600, {}),
    ],
)
def test_an_answer_that_may_not_come_in_is_none(
    supervised: Supervised, service: ModelService, status: int, fields: dict[str, str]
) -> None:
    """What speaks of the key, leads elsewhere or is no model's answer becomes a plain 502."""
    service.answer = lambda _n, _a, handler: document(handler, status, {"key": KEY}, **fields)
    got, body = supervised.ask()
    assert got == 502
    assert KEY.encode() not in body
    assert len(service.asked) == 1


def test_an_upstream_that_is_not_there_is_told() -> None:
    """A refused connection becomes a 502 that names neither address nor key."""
    port = free_port()
    supervised = Supervised(f"http://127.0.0.1:{port}/v1")
    status, body = supervised.ask()
    assert status == 502
    assert str(port).encode() not in body
    assert "ConnectionRefusedError" in supervised.wait_told(Answered).reason


def test_an_upstream_that_hangs_is_given_up(service: ModelService) -> None:
    """An upstream that takes the request and says nothing is given up when its time is over."""
    release = threading.Event()
    service.answer = lambda *_: release.wait(LONG_S) and None
    supervised = Supervised(service.url, answer_s=1.0)
    try:
        assert supervised.ask()[0] == 504
    finally:
        release.set()


def test_a_stream_comes_piece_by_piece(supervised: Supervised, service: ModelService) -> None:
    """Each event is passed on before the next one exists."""
    go_on = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield chunk({"content": "first"})
        assert go_on.wait(LONG_S)
        yield chunk({"content": "second"})
        yield chunk(None, (9, 4))

    service.answer = lambda *_: pieces()
    with supervised.connect() as sock:
        sock.sendall(request({**CHAT, "stream": True}))
        got = b""
        while b"first" not in got:
            got += sock.recv(65536)
        assert b"second" not in got
        go_on.set()
        status, body = parsed(got + received(sock))
    assert (status, body.count(b"data:"), b"BROKEN" in body) == (200, 3, False)
    answered = supervised.wait_told(Answered)
    assert (answered.input_tokens, answered.output_tokens, answered.estimated) == (9, 4, False)


def test_an_endless_stream_is_broken_off(supervised: Supervised, service: ModelService) -> None:
    """A stream without end stops at the bound, cannot be taken for whole, and its tokens are guessed."""

    def endless() -> Iterator[bytes]:
        while True:
            yield chunk({"content": "x" * 1000})

    service.answer = lambda *_: endless()
    status, body = supervised.ask({**CHAT, "stream": True})
    assert status == 200
    assert body.endswith(b"BROKEN")
    assert len(body) <= 100_000 + len(b"BROKEN")
    answered = supervised.wait_told(Answered)
    assert "longer than 100000 bytes" in answered.reason
    assert answered.estimated
    assert answered.output_tokens > 20_000


def test_an_answer_that_breaks_off_cannot_be_taken_for_whole(supervised: Supervised, service: ModelService) -> None:
    """An upstream that hangs up in the middle leaves an answer without an end mark, and a reason on record."""

    def half(_number: int, _asked: Any, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b'{"half":')

    service.answer = half
    assert supervised.ask() == (200, b'{"half":BROKEN')
    assert supervised.wait_told(Answered).reason.startswith("the upstream broke off")


def test_whoever_hangs_up_in_mid_stream_ends_the_request(supervised: Supervised, service: ModelService) -> None:
    """A client that goes away makes the proxy hang up on the upstream, and what was used is told."""
    is_gone = threading.Event()

    def endless(_number: int, _asked: Any, handler: BaseHTTPRequestHandler) -> None:
        def pieces() -> Iterator[bytes]:
            while True:
                yield chunk({"content": "x"})

        try:
            events(handler, pieces())
        except OSError:
            is_gone.set()

    service.answer = endless
    with supervised.connect() as sock:
        sock.sendall(request({**CHAT, "stream": True}))
        assert sock.recv(10)
    assert is_gone.wait(LONG_S)
    assert supervised.wait_told(Answered).status == 200


def test_a_stream_of_messages_that_is_left_early_is_paid_for(supervised: Supervised, service: ModelService) -> None:
    """Who reads the text and hangs up before the last count has used as much as came, and it is told as a guess."""
    is_left = threading.Event()
    begun = {**message(), "content": [], "usage": {"input_tokens": 11, "output_tokens": 1}}

    def pieces(*_: Any) -> Iterator[bytes]:
        yield event("message_start", message=begun)
        yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": "x" * 4000})
        assert is_left.wait(LONG_S)
        while True:  # until the proxy hangs up, too
            yield event("ping")

    service.answer = pieces
    body = {"model": CLAUDE, "max_tokens": 5, "messages": [], "stream": True}
    data = b""
    with supervised.connect() as sock:
        sock.sendall(request(body, "/v1/messages"))
        while data.count(b"x") < 4000:
            data += sock.recv(65536)
    is_left.set()
    answered = supervised.wait_told(Answered)
    assert (answered.input_tokens, answered.estimated) == (11, True)
    assert answered.output_tokens >= 1000


def test_an_answer_that_cannot_be_told_whole_is_told(supervised: Supervised, service: ModelService) -> None:
    """A tool call with half a surrogate pair does not keep its answer from the record, nor from being counted."""
    service.answer = lambda *_: chat(None, calls=[("sh", "\ud800")])
    assert supervised.ask()[0] == 200
    answered = supervised.wait_told(Answered)
    assert (answered.output_tokens, answered.tool_calls) == (5, ["sh \\ud800"])
    assert msgspec.json.encode(answered)


def test_a_slow_request_is_given_up(supervised: Supervised, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that never becomes complete is refused when its time is over."""
    monkeypatch.setattr(proxy_server, "_REQUEST_S", 0.2)
    with supervised.connect() as sock:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n")
        assert received(sock).startswith(b"HTTP/1.1 408 ")


def test_too_many_at_once_are_closed(supervised: Supervised, service: ModelService) -> None:
    """Beyond the bound a connection is closed at once; when one has ended, the next is served."""
    held = [supervised.connect() for _ in range(MAX_AT_ONCE)]
    with supervised.connect() as sock:
        assert sock.recv(1) == b""
    for each in held:
        each.sendall(request())
        assert received(each).startswith(b"HTTP/1.1 200 ")
        each.close()
