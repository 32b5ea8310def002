"""The account of one run of an agent in the audit log: begun, turn by turn, paid, ended.

Whatever drives an agent (our own loop, a framework's adapter, a learner) keeps one; it decides nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from jupyter_agentwatch.errors import AgentwatchError, SessionEndedError
from jupyter_agentwatch.watch.turn import Turn, in_turn
from jupyter_agentwatch.wire.client import Client
from jupyter_agentwatch.wire.messages import Ack, NoteAgent, NoteReward

__all__ = ["Episode", "Usage"]

_TEXT = 4096
_ANSWER_S = 10.0
_NAME = 200
_MAX_TERMS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a model was given and gave, and what that cost.

    Attributes:
        model: Its name; "" for none.
        tokens_in: Tokens read.
        tokens_out: Tokens written.
        cost_usd: Price of both, US dollars; 0 where no price is known.
        requests: Requests made, those that were tried again included.
    """

    model: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0
    requests: int = 0

    def __post_init__(self) -> None:
        """Refuse amounts that cannot be: they would not be put on record.

        Raises:
            ValueError: One is negative or no finite number.
        """
        for name in ("tokens_in", "tokens_out", "cost_usd", "requests"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                msg = f"usage: {name} is {value!r}; give a number that is not negative"
                raise ValueError(msg)

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.tokens_in + self.tokens_out

    def __add__(self, other: Usage) -> Usage:
        """Return the sum; the model is the last one that was named."""
        return Usage(
            model=other.model or self.model,
            tokens_in=self.tokens_in + other.tokens_in,
            tokens_out=self.tokens_out + other.tokens_out,
            cost_usd=self.cost_usd + other.cost_usd,
            requests=self.requests + other.requests,
        )


class Episode:
    """One run of an agent; `Watch.episode` makes it. Any thread may use it.

    Everything that is put on record here is this process's word (`claimed`); what the agent's commands do is recorded
    by the supervisor, whatever is said here. After the end of the watch nothing more is recorded, and nothing raises.

    Attributes:
        id: Id of the run in its watch.
        agent: Name of the agent.
        task: What it is to do.
        cell: Notebook cell that began it, or "".

    Example:
        >>> episode = watch.episode("mine", "say hello")  # doctest: +SKIP
        >>> with episode.turn() as turn:  # doctest: +SKIP
        ...     result = watch.run("echo hello")
        ...     episode.note(turn, "shell", step=result.step)
        >>> episode.end("finished")  # doctest: +SKIP
    """

    def __init__(self, client: Client, *, agent: str, task: str, cell: str, max_steps: int = 0) -> None:
        """Put the beginning of a run on record; use `Watch.episode`."""
        self.id = secrets.token_hex(4)
        self.agent = agent
        self.task = task
        self.cell = cell
        self._client = client
        self._numbers = itertools.count(1)
        self._last = 0
        self._ended = threading.Lock()
        name, what = _text(agent, _NAME), _text(task, _TEXT)
        self._post(NoteAgent(op="begin", run=self.id, cell=cell, agent=name, max_steps=max_steps, text=what))

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """Begin the next turn: commands that are started inside the `with` block bear its number on record."""
        self._last = next(self._numbers)
        with in_turn(Turn(self.id, self._last, self.cell)) as turn:
            yield turn

    def note(
        self,
        turn: Turn,
        action: str,
        text: str = "",
        *,
        step: int = 0,
        thought: str = "",
        outcome: str = "",
        usage: Usage | None = None,
    ) -> None:
        """Put on record what a turn did.

        Args:
            turn: The turn.
            action: What the agent chose, as "shell" or "edit".
            text: What the action says; cut to 4096 characters.
            step: The command that carried it out, 0 for none.
            thought: What the agent says about its choice; cut likewise.
            outcome: What came of it, as "exited 0".
            usage: What the choice cost.
        """
        used = usage or Usage()
        self._post(
            NoteAgent(
                op="turn",
                run=self.id,
                turn=turn.number,
                step=step,
                cell=self.cell,
                action=_text(action, _NAME),
                text=_text(text, _TEXT),
                thought=_text(thought, _TEXT),
                outcome=_text(outcome, _NAME),
                model=_text(used.model, _NAME),
                tokens_in=used.tokens_in,
                tokens_out=used.tokens_out,
                cost_usd=used.cost_usd,
            )
        )

    def reward(self, turn: Turn, terms: Mapping[str, float], *, step: int = 0) -> None:
        """Put on record what a turn earned.

        Args:
            turn: The turn.
            terms: At most 64 parts by their names; a price paid is negative.
            step: The command that it was paid for, 0 for none.

        Raises:
            ValueError: There are too many terms, or one is not a finite number.
        """
        if len(terms) > _MAX_TERMS:
            msg = f"a reward has at most {_MAX_TERMS} terms, not {len(terms)}"
            raise ValueError(msg)
        for name, value in terms.items():
            if not math.isfinite(value):
                msg = f"reward: the term {name!r} is {value}; give a finite number"
                raise ValueError(msg)
        named = {_text(name, _NAME): float(value) for name, value in terms.items()}
        self._post(NoteReward(run=self.id, turn=turn.number, step=step, cell=self.cell, terms=named))

    def end(self, outcome: str, text: str = "") -> None:
        """Put the end of the run on record; the second and later calls do nothing.

        Args:
            outcome: How it ended.
            text: The agent's answer, or what went wrong; cut to 4096 characters.
        """
        if not self._ended.acquire(blocking=False):
            return
        how, said = _text(outcome, _NAME), _text(text, _TEXT)
        note = NoteAgent(op="end", run=self.id, turn=self._last, cell=self.cell, outcome=how, text=said)
        with contextlib.suppress(AgentwatchError):  # as below; whoever waits for the end finds everything on record
            self._client.request(note, Ack, timeout=_ANSWER_S)

    def _post(self, note: NoteAgent | NoteReward) -> None:
        with contextlib.suppress(SessionEndedError):  # the log has its close record, which says why
            self._client.post(note)


def _text(text: str, limit: int) -> str:
    """Return text that can be sent: a model may have written lone surrogates."""
    return text[:limit].encode("utf-8", "backslashreplace").decode()
