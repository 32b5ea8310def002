"""What the process that drives an agent puts on record of a run: checked, bounded, and never more than claimed."""

from __future__ import annotations

import contextlib
import math
import re
from collections import OrderedDict
from typing import Any, Final, get_args, get_type_hints

from jupyter_agentwatch.audit.log import LogWriteError
from jupyter_agentwatch.errors import ControlError
from jupyter_agentwatch.events import AgentNote, Reward, printable
from jupyter_agentwatch.supervisor.record import Recorder
from jupyter_agentwatch.wire.messages import NoteAgent, NoteReward

__all__ = ["AgentNotes", "check_turn"]

_RUN: Final = re.compile(r"[0-9A-Za-z_-]{0,64}")
_TEXT: Final = 4096
_NAME: Final = 200
_TERMS: Final = 64
_MOST_OPEN: Final = 1000
_OPS: Final = get_args(get_type_hints(AgentNote)["op"])
_MOST: Final = 2**53


def check_turn(run: str, turn: int) -> None:
    """Refuse what can be no turn of a run.

    Raises:
        ControlError: The id of the run has other characters than it may, or the turn is out of range.
    """
    if not _RUN.fullmatch(run):
        msg = "run: the id of an agent's run is at most 64 letters, digits, - and _"
        raise ControlError(msg)
    if not 0 <= turn <= _MOST:
        msg = f"turn: {turn} is not the number of a turn"
        raise ControlError(msg)


class AgentNotes:
    """The accounts of agents' runs in one watch.

    Args:
        recorder: Where they go.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._open: OrderedDict[str, NoteAgent] = OrderedDict()

    def note(self, note: NoteAgent) -> None:
        """Put on record what a run of an agent did.

        Raises:
            ControlError: It cannot be a record.
            LogWriteError: The log cannot be written.
        """
        check_turn(note.run, note.turn)
        if not note.run or note.op not in _OPS:
            msg = f"op: give the id of a run and one of {', '.join(_OPS)}"
            raise ControlError(msg)
        counts = {name: getattr(note, name) for name in ("max_steps", "tokens_in", "tokens_out", "cost_usd")}
        for name, value in counts.items():
            _check_amount(name, value, least=0)
        fields: dict[str, Any] = {name: getattr(note, name)[:_NAME] for name in ("agent", "action", "outcome", "model")}
        fields |= {name: getattr(note, name)[:_TEXT] for name in ("text", "thought")}
        fields |= {"run": note.run, "turn": note.turn} | counts | _place(note)
        self._recorder.record(AgentNote, basis="claimed", op=note.op, **fields)
        if note.op == "end":
            self._open.pop(note.run, None)
        elif note.op == "begin" or note.run in self._open:
            self._open[note.run] = NoteAgent(op="end", run=note.run, turn=note.turn, cell=note.cell)
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)

    def note_reward(self, note: NoteReward) -> None:
        """Put on record what a turn earned.

        Raises:
            ControlError: It cannot be a record.
            LogWriteError: The log cannot be written.
        """
        check_turn(note.run, note.turn)
        if not note.run or len(note.terms) > _TERMS:
            msg = f"terms: give the id of a run and at most {_TERMS} terms"
            raise ControlError(msg)
        for name, value in note.terms.items():
            _check_amount(f"terms[{printable(name, _NAME)!r}]", value, least=-_MOST)
        terms = {name[:_NAME]: float(value) for name, value in note.terms.items()}
        fields: dict[str, Any] = {
            "run": note.run,
            "turn": note.turn,
            "total": math.fsum(terms.values()),
            "terms": terms,
        }
        self._recorder.record(Reward, basis="claimed", **fields, **_place(note))

    def end_all(self) -> None:
        """Put on record that the runs which still go on end with their watch: whoever drives them may be gone."""
        while self._open:
            run, end = self._open.popitem(last=False)
            with contextlib.suppress(LogWriteError):
                cell = end.cell[:_NAME]
                self._recorder.record(AgentNote, op="end", run=run, turn=end.turn, cell=cell, outcome="killed")


def _place(note: NoteAgent | NoteReward) -> dict[str, Any]:
    if not 0 <= note.step <= _MOST:
        msg = f"step: {note.step} is not the number of a step"
        raise ControlError(msg)
    # Of a step's record the recorder knows the cell itself.
    return {"step": note.step} if note.step else {"cell": note.cell[:_NAME]}


def _check_amount(name: str, value: float, *, least: float) -> None:
    if not (math.isfinite(value) and least <= value <= _MOST):
        msg = f"{name}: {value} is no amount"
        raise ControlError(msg)
