"""What a client may put on record about an agent's run: bounded, checked, and marked as its word."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from jupyter_agentwatch.audit.chain import FORMAT
from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.errors import ControlError
from jupyter_agentwatch.events import AgentNote, Reward
from jupyter_agentwatch.supervisor.agent_notes import AgentNotes, check_turn
from jupyter_agentwatch.supervisor.record import Recorder, open_log
from jupyter_agentwatch.watch import Account
from jupyter_agentwatch.watch.accounts import Accounts
from jupyter_agentwatch.wire.messages import NoteAgent, NoteReward

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    """A recorder on a real log."""
    made = Recorder(open_log(tmp_path / "log.jsonl", watch="w", format=FORMAT), "w", print, max_bytes=1 << 30)
    yield made
    made.close()


def kept(tmp_path: Path) -> list[Any]:
    """Return what is on record, but for the session."""
    return list(read_events(tmp_path / "log.jsonl"))[1:]


def test_notes_are_claims_and_cut(recorder: Recorder, tmp_path: Path) -> None:
    """A note is `claimed`, its texts are cut, and it bears the cell that its step belongs to, or its own."""
    recorder.step_belongs_to(7, "cell-7")
    notes = AgentNotes(recorder)
    long: dict[str, Any] = {"text": "x" * 9999, "thought": "y" * 9999, "action": "a" * 999}
    notes.note(NoteAgent(op="turn", run="r", turn=1, step=7, cell="other", **long))
    notes.note(NoteAgent(op="end", run="r", turn=1, cell="mine"))
    notes.note_reward(NoteReward(run="r", turn=1, step=7, terms={"n" * 999: 0.1, "b": 0.2}))
    turn, end, reward = kept(tmp_path)
    assert isinstance(turn, AgentNote)
    assert isinstance(reward, Reward)
    assert (turn.basis, turn.cell) == ("claimed", "cell-7")
    assert [len(each) for each in (turn.text, turn.thought, turn.action)] == [4096, 4096, 200]
    assert (end.step, end.cell) == (0, "mine")
    assert (reward.cell, [len(name) for name in reward.terms]) == ("cell-7", [200, 1])
    assert reward.total == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("note", "says"),
    [
        (NoteAgent(op="turn", run=""), "run"),
        (NoteAgent(op="reboot", run="r"), "begin, turn, end"),
        (NoteAgent(op="turn", run="../r"), "letters"),
        (NoteAgent(op="turn", run="r" * 65), "64"),
        (NoteAgent(op="turn", run="r\n"), "letters"),
        (NoteAgent(op="turn", run="r", turn=-1), "turn: -1"),
        (NoteAgent(op="turn", run="r", step=-1), "step: -1"),
        (NoteAgent(op="begin", run="r", max_steps=-1), "max_steps: -1"),
        (NoteAgent(op="turn", run="r", tokens_in=-1), "tokens_in: -1"),
        (NoteAgent(op="turn", run="r", tokens_out=1 << 60), "tokens_out"),
        (NoteAgent(op="turn", run="r", cost_usd=math.nan), "cost_usd: nan"),
        (NoteReward(run="", terms={}), "run"),
        (NoteReward(run="r", terms=dict.fromkeys(map(str, range(65)), 0.0)), "64"),
        (NoteReward(run="r", terms={"\x1b[2J": math.inf}), r"terms\['\\\\x1b"),
        (NoteReward(run="r", terms={"a": -1e300}), "no amount"),
        (NoteReward(run="r", step=1 << 60), "step"),
    ],
)
def test_what_can_be_no_note_is_refused(
    recorder: Recorder, tmp_path: Path, note: NoteAgent | NoteReward, says: str
) -> None:
    """Ids, numbers and names that cannot be are refused in words, and nothing of them is on record."""
    notes = AgentNotes(recorder)
    with pytest.raises(ControlError, match=says):
        notes.note(note) if isinstance(note, NoteAgent) else notes.note_reward(note)
    assert kept(tmp_path) == []


def test_a_command_names_a_turn_that_can_be() -> None:
    """The run and turn of a command are checked like those of a note; none at all is allowed."""
    check_turn("", 0)
    check_turn("ab12-_Z", 7)
    with pytest.raises(ControlError, match="letters"):
        check_turn("a b", 1)


def test_runs_that_go_on_end_with_their_watch(recorder: Recorder, tmp_path: Path) -> None:
    """Each run that has begun and not ended gets one end, as the supervisor's own word; what it keeps is bounded."""
    notes = AgentNotes(recorder)
    for run in ("done", "open"):
        notes.note(NoteAgent(op="begin", run=run, cell="mine"))
        notes.note(NoteAgent(op="turn", run=run, turn=3, cell="mine"))
    notes.note(NoteAgent(op="end", run="done", turn=3, outcome="finished"))
    notes.note(NoteAgent(op="turn", run="done", turn=4))
    notes.end_all()
    notes.end_all()
    ends = [event for event in kept(tmp_path) if event.op == "end"]
    assert [(each.run, each.turn, each.outcome, each.basis) for each in ends] == [
        ("done", 3, "finished", "claimed"),
        ("open", 3, "killed", "verified"),
    ]
    assert ends[1].cell == "mine"
    for number in range(1001):
        notes.note(NoteAgent(op="begin", run=f"many-{number}"))
    notes.end_all()
    assert len([event for event in kept(tmp_path) if event.op == "end"]) == 2 + 1000


def test_accounts_are_taken_once(recorder: Recorder, tmp_path: Path) -> None:
    """What has come on record since is returned for the steps that are named, and only to the first who asks."""
    accounts = Accounts(tmp_path / "log.jsonl")
    notes = AgentNotes(recorder)
    notes.note(NoteAgent(op="turn", run="r", turn=1, step=1))
    notes.note(NoteAgent(op="turn", run="r", turn=1, step=2))
    assert accounts.take([1, 3]).counts == {"agent:allow": 1}
    assert accounts.take([1, 3]).counts == {}
    notes.note(NoteAgent(op="turn", run="r", turn=2, step=1))
    assert accounts.take([1, 2]).counts == {"agent:allow": 2}
    assert Accounts(tmp_path / "none.jsonl").take([1]) == Account()
