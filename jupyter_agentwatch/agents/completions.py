"""One question to a model over the `openai` library: bounded in time and size, cancellable, every failure in words.

The reply is taken as bytes and read by hand: endpoints that call themselves compatible differ in what they leave out.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import urlsplit

from jupyter_agentwatch.errors import ModelError
from jupyter_agentwatch.events import printable

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["Completions"]

_MOST_BYTES: Final = 8 * 1024 * 1024
_SHOWN: Final = 300


class Completions:
    """An endpoint's chat completions, for one thread; `cancel` may be called from another.

    Args:
        base_url: Where the endpoint is; None: as the library finds it (OPENAI_BASE_URL, else its default).
        api_key: Its key; None: OPENAI_API_KEY. An endpoint that is named may need none.
        timeout: Seconds for one reply, all tries and all of its body included.
        retries: How often a request is tried again that failed by 408, 409, 429, 5xx or the network.

    Raises:
        ModelError: The `openai` library is not installed, or finds no key.
    """

    def __init__(self, *, base_url: str | None, api_key: str | None, timeout: float, retries: int) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()
        self._task: asyncio.Task[Any] | None = None
        self._is_cancelled = False
        try:
            import openai
        except ImportError as error:
            msg = "models need the openai library (extra llm of this package): pip install openai"
            raise ModelError(msg) from error
        self._openai = openai
        if base_url is not None and api_key is None and not os.environ.get("OPENAI_API_KEY"):
            api_key = "none"  # the library insists on one, a server of one's own does not
        try:
            self._client: AsyncOpenAI = openai.AsyncOpenAI(
                base_url=base_url, api_key=api_key, timeout=timeout, max_retries=retries
            )
        except openai.OpenAIError as error:
            msg = f"no key for the model: set OPENAI_API_KEY or give api_key ({printable(str(error), _SHOWN)})"
            raise ModelError(msg) from error
        self._runner = asyncio.Runner()

    @property
    def place(self) -> str:
        """Where the endpoint is, without what may be secret in its address."""
        parts = urlsplit(str(self._client.base_url))
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"

    def ask(self, model: str, messages: Sequence[dict[str, Any]], **options: Any) -> tuple[dict[str, Any], int]:
        """Ask a model.

        Args:
            model: Its name.
            messages: The conversation.
            **options: Further fields of the request, as `tools`.

        Returns:
            The reply as JSON, and how many requests it took.

        Raises:
            ModelError: There is no reply; the text says why.
        """
        try:
            return self._runner.run(self._ask(model, messages, options))
        except asyncio.CancelledError:
            self._fail("the request was cancelled")

    def cancel(self) -> None:
        """End the request that is under way, and every later one; any thread."""
        with self._lock:
            self._is_cancelled = True
            task = self._task
        if task is not None:
            with contextlib.suppress(RuntimeError):  # it ended in between, and its loop with it
                task.get_loop().call_soon_threadsafe(task.cancel)

    def close(self) -> None:
        """Close the connections; in the thread that asked."""
        try:
            self._runner.run(self._client.close())
        finally:
            self._runner.close()

    async def _ask(
        self, model: str, messages: Sequence[dict[str, Any]], options: dict[str, Any]
    ) -> tuple[dict[str, Any], int]:
        with self._lock:
            if self._is_cancelled:
                raise asyncio.CancelledError
            self._task = asyncio.current_task()
        openai = self._openai
        try:
            async with asyncio.timeout(self._timeout):
                return await self._fetch(model, messages, options)
        except (TimeoutError, openai.APITimeoutError):
            self._fail(f"no complete reply within {self._timeout:g} s")
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            self._fail(f"it cannot be reached: {printable(str(cause), _SHOWN)}")
        except openai.APIStatusError as error:
            hint = {401: "check the key", 404: "check the address and the name of the model"}.get(error.status_code, "")
            said = printable(error.message, _SHOWN)
            self._fail(f"{said}{f'; {hint}' if hint else ''} (HTTP {error.status_code})")
        except (openai.OpenAIError, OSError) as error:
            self._fail(printable(str(error), _SHOWN))
        finally:
            with self._lock:
                self._task = None

    async def _fetch(
        self, model: str, messages: Sequence[dict[str, Any]], options: dict[str, Any]
    ) -> tuple[dict[str, Any], int]:
        create = self._client.chat.completions.with_streaming_response.create
        asked: Any = {"model": model, "messages": list(messages), **options}
        async with create(**asked) as response:
            body = bytearray()
            async for piece in response.iter_bytes():
                body += piece
                if len(body) > _MOST_BYTES:
                    self._fail(f"its reply is larger than {_MOST_BYTES} bytes")
            tries = 1 + int(getattr(response, "retries_taken", 0) or 0)
        try:
            found = json.loads(bytes(body))
        except (ValueError, RecursionError) as error:
            self._fail(f"its reply is no JSON: {printable(str(error), _SHOWN)}")
        if not isinstance(found, dict):
            self._fail("its reply is no JSON object")
        return found, tries

    def _fail(self, why: str) -> NoReturn:
        msg = f"the model at {self.place}: {why}"
        raise ModelError(msg)
