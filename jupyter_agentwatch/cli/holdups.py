"""Says why a command stands still: its watch is frozen or throttled, or one of its calls is held for a person's answer.

Nothing else would: whoever sits before a terminal has no dashboard.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.cli.output import remark
from jupyter_agentwatch.cli.words import left_text
from jupyter_agentwatch.errors import AgentwatchError, LogError
from jupyter_agentwatch.events import BreakerChanged, printable
from jupyter_agentwatch.watch import Watch
from jupyter_agentwatch.wire.messages import WatchStatus

__all__ = ["holdups_told"]

_EVERY_S: Final = 0.5
_COMMAND: Final = "jupyter agentwatch"


@contextmanager
def holdups_told(watch: Watch) -> Iterator[None]:
    """Look twice a second whether the watch stands still, and say each time what it waits for and how it goes on."""
    done = threading.Event()
    thread = threading.Thread(target=_look, args=(watch, done), name="holdups", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _look(watch: Watch, done: threading.Event) -> None:
    state, asks = "closed", set[int]()
    # The watch has ended, or nobody reads what we say: the command's own end says what there is to say.
    with contextlib.suppress(AgentwatchError, OSError):
        while not done.wait(_EVERY_S):
            status = watch.status()
            if status.state != state:
                state = status.state
                remark(_state_text(status, watch.log))
            for ask in sorted(status.asks.keys() - asks):
                left = left_text(status.asks_left_s.get(ask), "denied")
                answer = f"{_COMMAND} answer {watch.id} {ask} allow|deny"
                remark(f"held: {printable(status.asks[ask])}{left}: {answer}")
            asks |= status.asks.keys()


def _state_text(status: WatchStatus, log: Path) -> str:
    if status.state == "closed":
        return "the watch goes on"
    follows = "killed" if status.on_expiry == "kill" else "let go on"
    return (
        f"{printable(status.state)}: {_cause(log)}{left_text(status.frozen_left_s, follows)}: "
        f"{_COMMAND} resume {status.watch}, or kill {status.watch}"
    )


def _cause(log: Path) -> str:
    try:
        moves = [event for event in read_events(log, kinds={"breaker"}) if isinstance(event, BreakerChanged)]
    except LogError as error:
        return printable(str(error))
    if not moves:
        return "its log does not say why"
    return f"{printable(moves[-1].cause, 500)}, by {printable(moves[-1].by, 100)}"
