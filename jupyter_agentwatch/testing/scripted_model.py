"""A server on loopback that plays a model from a script: the real client library talks to it, and no model is needed.

It plays bad endpoints, too: ones that refuse, are silent, never end, or talk nonsense.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self

__all__ = ["Answer", "Endless", "ScriptedModel", "Silence", "calls"]

_PATIENCE_S: Final = 600.0
_POLL_S: Final = 0.02
_PIECE: Final = b" " * 4096


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it stands.

    Attributes:
        status: HTTP status.
        body: What is sent; other than bytes as JSON.
        headers: Further headers.
    """

    status: int
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Endless:
    """An answer that begins and never ends: blanks for ever, or one a pause.

    Attributes:
        pause: Seconds between two pieces.
    """

    pause: float = 0.0


@dataclass(frozen=True, slots=True)
class Silence:
    """No answer at all, until the server closes."""


def calls(*wanted: tuple[str, Mapping[str, Any]], say: str | None = None) -> dict[str, Any]:
    """Return a message with tool calls.

    Args:
        *wanted: Name and arguments of each call.
        say: What the model says beside them.
    """
    listed = [
        {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for number, (name, arguments) in enumerate(wanted, 1)
    ]
    return {"role": "assistant", "content": say, "tool_calls": listed}


class ScriptedModel:
    """Answers chat completions from a script, one answer a request; when it is over, with a call of `finish`.

    Attributes:
        requests: The body of every request.
        authorization: The Authorization header of every request.
        asked: Released once for each request that has arrived.

    Example:
        >>> with ScriptedModel([calls(("shell", {"command": "ls"}))]) as model:  # doctest: +SKIP
        ...     watch.run_agent(ChatAgent("any", base_url=model.url, api_key="none"), "look").wait()
    """

    def __init__(self, script: Iterable[Mapping[str, Any] | Answer | Endless | Silence]) -> None:
        """Take a script: messages of an assistant, or answers of other kinds."""
        self.requests: list[dict[str, Any]] = []
        self.authorization: list[str] = []
        self.asked = threading.Semaphore(0)
        self._script = iter(script)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": _POLL_S}, name="scripted-model", daemon=True
        )

    @property
    def url(self) -> str:
        """What a client takes as `base_url`."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        """Begin to answer."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close; whoever still waits is hung up on."""
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _next(self, request: dict[str, Any], authorization: str) -> Mapping[str, Any] | Answer | Endless | Silence:
        with self._lock:
            self.requests.append(request)
            self.authorization.append(authorization)
            found = next(self._script, calls(("finish", {"answer": "the script is over"})))
        self.asked.release()
        return found

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        model = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the name is the base class's
                """Say nothing."""

            def do_POST(self) -> None:
                """Play the next answer of the script."""
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                answer = model._next(json.loads(body), self.headers.get("Authorization", ""))
                with contextlib.suppress(ConnectionError):
                    self._play(answer)

            def _play(self, answer: Mapping[str, Any] | Answer | Endless | Silence) -> None:
                match answer:
                    case Answer():
                        self._send(answer.status, answer.body, answer.headers)
                    case Endless(pause=pause):
                        self.send_response(200)
                        self.send_header("Connection", "close")
                        self.end_headers()
                        self.close_connection = True
                        while not model._closing.wait(pause):
                            self.wfile.write(_PIECE)
                    case Silence():
                        model._closing.wait(_PATIENCE_S)
                        self.close_connection = True
                    case message:
                        self._send(200, _completion(message), {})

            def _send(self, status: int, body: Any, headers: Mapping[str, str]) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        return Handler


def _completion(message: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": "scripted",
        "object": "chat.completion",
        "created": 0,
        "model": "scripted",
        "choices": [{"index": 0, "finish_reason": "stop", "message": dict(message)}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }
