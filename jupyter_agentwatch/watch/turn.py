"""For which turn of which agent's run a command is started: a mark that follows the code, not each call's arguments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["Turn", "current_turn", "in_turn"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of an agent's run.

    Attributes:
        run: Id of the run in its watch.
        number: Number of the turn, from 1.
        cell: Notebook cell that started the run, or "": an agent's thread has none of its own.
    """

    run: str
    number: int
    cell: str = ""


_CURRENT: ContextVar[Turn | None] = ContextVar("agentwatch-turn", default=None)


def current_turn() -> Turn | None:
    """Return the turn that this thread or task works for, None outside of any."""
    return _CURRENT.get()


@contextmanager
def in_turn(turn: Turn) -> Iterator[Turn]:
    """Make every command that this thread or task starts inside the `with` block one of this turn."""
    token = _CURRENT.set(turn)
    try:
        yield turn
    finally:
        _CURRENT.reset(token)
