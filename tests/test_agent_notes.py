"""What a client may put on record about an agent's run: bounded, checked, and marked as its word."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from jupyter_agentwatch.audit.chain import FORMAT
from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.errors import ControlError
from jupyter_agentwatch.events import AgentNote, Reward
from jupyter_agentwatch.supervisor.agent_notes import check_turn, note_agent, note_reward
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
    note_agent(recorder, NoteAgent(op="turn", run="r", turn=1, step=7, cell="other", text="x" * 9999, action="a" * 999))
    note_agent(recorder, NoteAgent(op="end", run="r", turn=1, cell="mine"))
    note_reward(recorder, NoteReward(run="r", turn=1, step=7, terms={"n" * 999: 0.1, "b": 0.2}))
    turn, end, reward = kept(tmp_path)
    assert isinstance(turn, AgentNote)
    assert isinstance(reward, Reward)
    assert (turn.basis, turn.cell, len(turn.text), len(turn.action)) == ("claimed", "cell-7", 4096, 200)
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
    with pytest.raises(ControlError, match=says):
        note_agent(recorder, note) if isinstance(note, NoteAgent) else note_reward(recorder, note)
    assert kept(tmp_path) == []


def test_a_command_names_a_turn_that_can_be() -> None:
    """The run and turn of a command are checked like those of a note; none at all is allowed."""
    check_turn("", 0)
    check_turn("ab12-_Z", 7)
    with pytest.raises(ControlError, match="letters"):
        check_turn("a b", 1)


def test_accounts_are_taken_once(recorder: Recorder, tmp_path: Path) -> None:
    """What has come on record since is returned for the steps that are named, and only to the first who asks."""
    accounts = Accounts(tmp_path / "log.jsonl")
    note_agent(recorder, NoteAgent(op="turn", run="r", turn=1, step=1))
    note_agent(recorder, NoteAgent(op="turn", run="r", turn=1, step=2))
    assert accounts.take([1, 3]).counts == {"agent:allow": 1}
    assert accounts.take([1, 3]).counts == {}
    note_agent(recorder, NoteAgent(op="turn", run="r", turn=2, step=1))
    assert accounts.take([1, 2]).counts == {"agent:allow": 2}
    assert Accounts(tmp_path / "none.jsonl").take([1]) == Account()
