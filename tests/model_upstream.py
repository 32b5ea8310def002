"""A service of models on loopback, in both shapes: it answers what a test has written down, and keeps what it hears."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from tests.outside import LONG_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

KEY = "sk-the-real-key-that-stays-outside"
MODEL = "test-model"
CLAUDE = "test-claude"


def chat(text: str | None = "hello", *, calls: Iterable[tuple[str, str]] = (), tokens: tuple[int, int] = (7, 5)) -> Any:
    """A chat completion."""
    called = [
        {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(calls)
    ]
    message = {"role": "assistant", "content": text} | ({"tool_calls": called} if called else {})
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if called else "stop"}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    about = {"id": "c1", "object": "chat.completion", "created": 1, "model": MODEL}
    return {**about, "choices": [choice], "usage": usage}


def chunk(delta: dict[str, Any] | None, usage: tuple[int, int] | None = None) -> bytes:
    """One event of a stream of chat completions."""
    choices = [{"index": 0, "delta": delta, "finish_reason": None}] if delta is not None else []
    document: dict[str, Any] = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    document["choices"] = choices
    if usage:
        document["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def message(text: str = "hello", *, tokens: tuple[int, int] = (11, 3), tool: tuple[str, Any] | None = None) -> Any:
    """A message in Anthropic's shape."""
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if tool:
        content.append({"type": "tool_use", "id": "t1", "name": tool[0], "input": tool[1]})
    about = {"id": "m1", "type": "message", "role": "assistant", "model": CLAUDE, "stop_reason": "end_turn"}
    return {**about, "content": content, "usage": {"input_tokens": tokens[0], "output_tokens": tokens[1]}}


def event(name: str, **fields: Any) -> bytes:
    """One event of a stream in Anthropic's shape."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


@dataclass
class Asked:
    """What the service was asked: path, header fields (names in lower case), body."""

    path: str
    fields: dict[str, str]
    body: Any


@dataclass
class ModelService:
    """The service. `answer` is called for each request, with its number from 0 and what was asked.

    It returns a document (status 200), or pieces of events, or writes by itself where it returns None.
    """

    answer: Callable[[int, Asked, BaseHTTPRequestHandler], Any] = lambda *_: chat()
    asked: list[Asked] = field(default_factory=list)

    def __enter__(self) -> Self:
        """Begin to listen."""
        service = self
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = LONG_S

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                asked = Asked(self.path, {k.lower(): v for k, v in self.headers.items()}, json.loads(body))
                with lock:
                    number = len(service.asked)
                    service.asked.append(asked)
                answer = service.answer(number, asked, self)
                with suppress(OSError):  # whoever asked may have gone
                    if isinstance(answer, dict):
                        document(self, 200, answer)
                    elif answer is not None:
                        events(self, answer)
                self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """What its paths begin with."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def policy(self, **models: Any) -> dict[str, Any]:
        """A policy under which commands have this service as their model, of both shapes."""
        openai = {"name": MODEL, "price_in": 1_000_000, "price_out": 2_000_000}
        upstreams = [
            {"shape": "openai", "url": self.url, "key_env": "TEST_MODEL_KEY", "models": [openai]},
            {"shape": "anthropic", "url": self.url, "key_env": "TEST_MODEL_KEY", "models": [{"name": CLAUDE}]},
        ]
        return {"models": {"upstreams": upstreams, **models}}


def document(handler: BaseHTTPRequestHandler, status: int, body: Any, **fields: str) -> None:
    """Answer with a JSON document."""
    raw = json.dumps(body).encode()
    handler.send_response(status)
    given = {name.replace("_", "-"): value for name, value in fields.items()}
    for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(raw))} | given).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(raw)


def events(handler: BaseHTTPRequestHandler, pieces: Iterable[bytes]) -> None:
    """Answer with events, each sent as it comes."""
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for piece in pieces:
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        handler.wfile.flush()
    handler.wfile.write(b"0\r\n\r\n")
