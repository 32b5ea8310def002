"""An agent behind which stands any model with an OpenAI-compatible endpoint and tool calling.

The key stays in this process: nothing of it enters the sandbox or the log.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Final

from jupyter_agentwatch.agents.completions import Completions
from jupyter_agentwatch.agents.model import Action, Finish, Observation, Unclear
from jupyter_agentwatch.agents.tools import TOOLS, action_from_call
from jupyter_agentwatch.errors import ModelError
from jupyter_agentwatch.watch.episode import Usage

__all__ = ["ChatAgent"]

_SYSTEM: Final = (
    "You work on a task in a Linux workspace, by calling tools. Your commands begin in the workspace; what lies "
    "outside of it may be missing or read-only, and there may be no network. Look before you change something, check "
    "what you changed, and call finish with a short answer when the task is done or cannot be done."
)
_NO_CALL: Final = "You called no tool. Call one of: shell, edit_file, apply_patch, finish."
_LEFT_OUT: Final = "[left out: the conversation became too long]"
_MOST_CALLS: Final = 32
_MOST_TEXT: Final = 200_000
_MOST_TOKENS: Final = 10**12
_MILLION: Final = 1e6


class ChatAgent:
    """Asks a model what to do; one object serves one run.

    Attributes:
        name: For the log: "chat" and the model.
        usage: What it has cost so far.

    Example:
        >>> agent = ChatAgent("my-model", base_url="http://127.0.0.1:8000/v1", api_key="none")  # doctest: +SKIP
        >>> watch.run_agent(agent, "make the tests pass").wait()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        price_in: float = 0.0,
        price_out: float = 0.0,
        timeout: float = 300.0,
        retries: int = 2,
        system: str = _SYSTEM,
        context_chars: int = 400_000,
        **options: Any,
    ) -> None:
        """Prepare an agent; nothing is sent yet.

        Args:
            model: Name of the model.
            base_url: Address of the endpoint; default: OPENAI_BASE_URL, else that of the `openai` library.
            api_key: Its key; default: OPENAI_API_KEY.
            price_in: US dollars for a million tokens read. What the endpoint itself says of a reply's cost goes first.
            price_out: US dollars for a million tokens written.
            timeout: Seconds for one reply, all tries included.
            retries: How often a request that failed for a passing reason is tried again.
            system: What the model is told first.
            context_chars: Characters of the conversation that are sent; old outputs of commands are left out first.
            **options: Further fields of each request, as `temperature`.

        Raises:
            ModelError: The `openai` library is not installed, or finds no key.
            ValueError: The model has no name, or a bound is not positive.
        """
        if not model.strip():
            msg = "model is empty: name one that the endpoint knows"
            raise ValueError(msg)
        if not (timeout > 0 and context_chars > 0 and retries >= 0 and price_in >= 0 and price_out >= 0):
            msg = "timeout and context_chars must be positive; retries, price_in and price_out at least 0"
            raise ValueError(msg)
        self.name = f"chat {model}"
        self.usage = Usage(model=model)
        self._model = model
        self._prices = (price_in, price_out)
        self._context_chars = context_chars
        self._options = options
        self._completions = Completions(base_url=base_url, api_key=api_key, timeout=timeout, retries=retries)
        self._messages: list[dict[str, Any]] = [{"role": "system", "content": system}]
        self._waiting: deque[tuple[str, Action]] = deque()
        self._open = ""

    def act(self, observation: Observation, /) -> Action:
        """Tell the model what came of its last action, and return the next one that it asks for.

        Raises:
            ModelError: The model cannot be reached, refuses, or its reply is none.
        """
        self._tell(observation)
        if not self._waiting:
            self._ask()
        self._open, action = self._waiting.popleft()
        return action

    def cancel(self) -> None:
        """End a request that is under way; any thread."""
        self._completions.cancel()

    def close(self) -> None:
        """Close the connections to the endpoint; in the thread of the run."""
        self._completions.close()

    def __repr__(self) -> str:
        return f"<ChatAgent {self._model} at {self._completions.place}>"

    def _tell(self, observation: Observation) -> None:
        if len(self._messages) == 1:
            self._messages.append({"role": "user", "content": observation.task})
        elif self._open:
            self._messages.append({"role": "tool", "tool_call_id": self._open, "content": _told(observation)})
        else:
            self._messages.append({"role": "user", "content": observation.text or _NO_CALL})

    def _ask(self) -> None:
        self._shorten()
        reply, tries = self._completions.ask(self._model, self._messages, tools=TOOLS, **self._options)
        message = _message(reply, self._completions.place)
        usage = self._used(reply, tries)
        self.usage += usage
        content = message.get("content") or message.get("refusal")
        text = content[:_MOST_TEXT] if isinstance(content, str) else ""
        calls = message.get("tool_calls")
        known = [call for call in calls[:_MOST_CALLS] if isinstance(call, dict)] if isinstance(calls, list) else []
        if not known:
            self._messages.append({"role": "assistant", "content": text})
            self._waiting.append(("", Unclear(text, _NO_CALL, usage=usage)))
            return
        said: list[dict[str, Any]] = []
        for number, call in enumerate(known):
            id_ = str(call.get("id") or f"call-{len(self._messages)}-{number}")[:200]
            # The reply as a whole has a cost: the first of its actions bears it.
            action = action_from_call(call, text if number == 0 else "", usage if number == 0 else Usage())
            self._waiting.append((id_, action))
            said.append(_as_said(call, id_, is_understood=not isinstance(action, Unclear)))
            if isinstance(action, Finish):
                break
        self._messages.append({"role": "assistant", "content": text or None, "tool_calls": said})

    def _used(self, reply: dict[str, Any], tries: int) -> Usage:
        usage = reply.get("usage")
        numbers = usage if isinstance(usage, dict) else {}
        tokens_in, tokens_out = (int(_amount(numbers.get(f"{each}_tokens"))) for each in ("prompt", "completion"))
        price_in, price_out = self._prices
        reckoned = (tokens_in * price_in + tokens_out * price_out) / _MILLION
        return Usage(
            model=self._model,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            cost_usd=_amount(numbers.get("cost")) or reckoned,
            requests=tries,
        )

    def _shorten(self) -> None:
        """Leave out the oldest outputs until the rest is short enough; what was said stays."""
        total = sum(len(str(message.get("content") or "")) for message in self._messages)
        for message in self._messages:
            if total <= self._context_chars:
                return
            if message["role"] == "tool" and len(message["content"]) > len(_LEFT_OUT):
                total -= len(message["content"]) - len(_LEFT_OUT)
                message["content"] = _LEFT_OUT


def _message(reply: dict[str, Any], place: str) -> dict[str, Any]:
    match reply:
        case {"choices": [{"message": dict(message)}, *_]}:
            return message
        case _:
            msg = f"the model at {place}: its reply holds no message (choices[0].message)"
            raise ModelError(msg)


def _told(observation: Observation) -> str:
    how = observation.outcome
    if observation.exit_code is not None:
        how = f"exit code {observation.exit_code}"
    return "\n".join(filter(None, [observation.text, f"[{how}]" if how else ""])) or "[done]"


def _as_said(call: dict[str, Any], id_: str, *, is_understood: bool) -> dict[str, Any]:
    """Return a call as it is shown to the model again: endpoints refuse a conversation with a call that is no JSON."""
    function = call.get("function")
    given = function if isinstance(function, dict) else {}
    name, arguments = given.get("name"), given.get("arguments")
    shown = {
        "name": name if isinstance(name, str) and name else "unknown",
        "arguments": arguments if is_understood and isinstance(arguments, str) else "{}",
    }
    return {"id": id_, "type": "function", "function": shown}


def _amount(value: object) -> float:
    """Return a number that an endpoint gave, 0 where it is none that can be."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return 0.0
    return float(min(max(value, 0), _MOST_TOKENS))
