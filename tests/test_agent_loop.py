"""The agent loop in a real sandbox: what the agent sees, what is on record, and every way in which a run ends."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from jupyter_agentwatch import Watch
from jupyter_agentwatch.agents import (
    Action,
    AgentStep,
    Budget,
    Edit,
    Finish,
    Observation,
    Outcome,
    Patch,
    Say,
    Shell,
    Unclear,
)
from jupyter_agentwatch.errors import ModelError, SessionEndedError
from jupyter_agentwatch.events import AgentNote, Connect, Exec, FileOp, Reward, Step
from jupyter_agentwatch.watch import Usage
from tests.outside import recorded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]

PATIENCE_S = 60.0
"""How long a run may take on a loaded machine before a test gives it up."""


class Scripted:
    """An agent that knows beforehand what it will do, and keeps what it saw."""

    def __init__(self, actions: Iterable[Action]) -> None:
        self._actions = iter(actions)
        self.seen: list[Observation] = []

    def act(self, observation: Observation, /) -> Action:
        """Return the next action; say "done" at the end."""
        self.seen.append(observation)
        return next(self._actions, Finish("done"))


class Calling:
    """An agent that asks a function."""

    def __init__(self, function: Any) -> None:
        self.act = function


class Waiting:
    """An agent that never answers, until it is cancelled."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.cancelled = threading.Event()

    def act(self, observation: Observation, /) -> Action:
        """Wait for `cancel`."""
        self.asked.set()
        self.cancelled.wait(PATIENCE_S)
        return Shell("echo too late > late.txt")

    def cancel(self) -> None:
        """Let `act` return."""
        self.cancelled.set()


@pytest.fixture
def own(tmp_path: Path, rung: str) -> Iterator[Watch]:
    """A watch that a test may end."""
    (tmp_path / "w").mkdir()
    with Watch(workspace=tmp_path / "w") as watch:
        yield watch


def test_an_agent_works_and_sees_what_came_of_it(closed: Watch) -> None:
    """Commands, both kinds of edit, refusals and words: each observation tells what the action before it did."""
    actions: list[Action] = [
        Shell("echo out; echo err >&2; exit 3"),
        Edit("deep/a.txt", "", "one\ntwo\n"),
        Edit("deep/a.txt", "two", "2"),
        Edit("deep/a.txt", "three", "3"),
        Patch("--- a/deep/a.txt\n+++ b/deep/a.txt\n@@ -1,2 +1,2 @@\n-one\n+1\n 2\n"),
        Say("nearly there"),
        Shell(["cat", "deep/a.txt"]),
        Shell("echo a\0b"),
    ]
    agent = Scripted(actions)
    run = closed.run_agent(agent, "count")
    assert run.wait(PATIENCE_S) is Outcome.FINISHED, run.reason
    assert run.answer == "done"
    first, shell, made, edited, refused, patched, said, read, broken = agent.seen
    assert (first.task, first.turn, first.text, first.outcome) == ("count", 1, "", "")
    assert (shell.turn, shell.text, shell.exit_code, shell.ok) == (2, "out\n[stderr]\nerr", 3, False)
    assert made.ok
    assert "+two" in made.text
    assert "-two\n+2" in edited.text
    assert not refused.ok
    assert "0 times" in refused.text
    assert "-one\n+1" in patched.text
    assert (said.text, said.outcome) == ("", "")
    assert (read.text, read.ok) == ("1\n2", True)
    assert "NUL" in broken.text
    assert [change.path for change in closed.diff(run.steps[4].step)] == ["deep/a.txt"]


def test_every_record_of_a_step_leads_to_its_turn_and_cell(tmp_path: Path, rung: str) -> None:
    """Programs and connections bear the step, a step its run and turn, and all of them the cell that began the run."""
    with Watch(workspace=tmp_path, cell=lambda: "cell-7") as watch:
        agent = Scripted([Shell("exec 3<>/dev/tcp/192.0.2.1/80", thought="who is there?"), Edit("a.txt", "", "x")])
        run = watch.run_agent(
            agent, "call out", max_steps=9, reward=lambda step: {"task": 0.5, "price": -0.25 * step.turn}
        )
        assert run.wait(PATIENCE_S) is Outcome.FINISHED
        started = {event.step: (event.run, event.turn) for event in recorded(watch, Step) if event.op == "start"}
        assert started == {run.steps[0].step: (run.id, 1), run.steps[1].step: (run.id, 2)}
        (connect,) = recorded(watch, Connect)
        assert (connect.step, connect.verdict) == (run.steps[0].step, "deny")
        assert {
            event.cell for kind in (Step, Exec, Connect, FileOp, AgentNote, Reward) for event in recorded(watch, kind)
        } == {"cell-7"}
        written = {event.step for event in recorded(watch, FileOp) if event.path.endswith("/a.txt")}
        assert written == {run.steps[1].step}
        assert run.steps[0].account.egress_denied == 1
        notes = recorded(watch, AgentNote)
        assert [(note.op, note.turn, note.action) for note in notes] == [
            ("begin", 0, ""),
            ("turn", 1, "shell"),
            ("turn", 2, "edit"),
            ("turn", 3, "finish"),
            ("end", 3, ""),
        ]
        assert {(note.run, note.basis) for note in notes} == {(run.id, "claimed")}
        assert [note.thought for note in notes] == ["", "who is there?", "", "", ""]
        assert notes[0].max_steps == 9
        assert (notes[0].text, notes[-1].outcome, notes[-1].text) == ("call out", "finished", "done")
        rewards = recorded(watch, Reward)
        assert [(each.turn, each.terms, each.total) for each in rewards] == [
            (turn, {"task": 0.5, "price": -0.25 * turn}, 0.5 - 0.25 * turn) for turn in (1, 2, 3)
        ]
        assert run.ledger.total == pytest.approx(sum(each.total for each in rewards))


def test_long_output_is_cut_in_the_middle(closed: Watch) -> None:
    """An agent gets the beginning and the end of a long output, and is told that it is not all."""
    agent = Scripted([Shell("seq 1 100000")])
    assert closed.run_agent(agent, "count", output_chars=300).wait(PATIENCE_S) is Outcome.FINISHED
    seen = agent.seen[1]
    assert len(seen.text) < 400
    assert seen.text.startswith("1\n2\n")
    assert seen.text.endswith("100000")
    assert "left out" in seen.text
    assert seen.truncated


def test_endless_output_ends_with_the_time_of_its_step(closed: Watch) -> None:
    """A command that writes for ever is killed at its time limit, the agent is told so, and the run goes on."""
    agent = Scripted([Shell("yes", timeout=0.5)])
    run = closed.run_agent(agent, "shout", output_chars=1000)
    assert run.wait(PATIENCE_S) is Outcome.FINISHED
    assert (agent.seen[1].outcome, agent.seen[1].truncated) == ("timeout", True)
    assert closed.status().running_steps == []


@pytest.mark.parametrize(
    ("action", "outcome", "reason"),
    [
        (lambda _: (_ for _ in ()).throw(ModelError("no answer")), Outcome.MODEL_ERROR, "no answer"),
        (lambda _: 1 / 0, Outcome.AGENT_ERROR, "ZeroDivisionError"),
        (lambda _: (_ for _ in ()).throw(SystemExit), Outcome.AGENT_ERROR, "SystemExit"),
        (lambda _: "ls", Outcome.NONSENSE, "str"),
        (lambda _: Unclear("?", "no tool call"), Outcome.NONSENSE, "no tool call"),
        (lambda _: Say("hm"), Outcome.MAX_STEPS, ""),
        (lambda _: Say("hm", usage=Usage(cost_usd=0.4)), Outcome.BUDGET, "cost_usd: 1.2 of 1"),
        (lambda _: Say("hm", usage=Usage(tokens_in=70)), Outcome.BUDGET, "tokens: 210 of 200"),
    ],
)
def test_whatever_an_agent_does_its_run_ends_with_one_outcome(
    closed: Watch, action: Any, outcome: Outcome, reason: str
) -> None:
    """Failures, nonsense and spent budgets end the run, are on record, and leave the watch as it was."""
    run = closed.run_agent(Calling(action), "try", max_steps=7, budget=Budget(cost_usd=1.0, tokens=200))
    assert run.wait(PATIENCE_S) is outcome
    assert reason in run.reason
    last = [note for note in recorded(closed, AgentNote) if note.run == run.id][-1]
    assert (last.op, last.outcome) == ("end", outcome.value)
    assert run.state == "ended"
    assert closed.run("true").ok


def test_a_reward_or_listener_that_raises_ends_the_run(closed: Watch) -> None:
    """Somebody's code that raises, and a reward that is no number, end the run as the agent's error."""

    def broken(step: AgentStep) -> dict[str, float]:
        raise LookupError(step.turn)

    for options, reason in (
        ({"reward": broken}, "LookupError: 1"),
        ({"on_step": broken}, "LookupError: 1"),
        ({"reward": lambda _: {"task": float("nan")}}, "finite"),
        ({"reward": lambda _: dict.fromkeys(map(str, range(65)), 1.0)}, "64"),
    ):
        run = closed.run_agent(Scripted([Say("x")]), "try", **options)
        assert run.wait(PATIENCE_S) is Outcome.AGENT_ERROR
        assert reason in run.reason


def test_what_cannot_begin_is_refused_at_once(closed: Watch, own: Watch) -> None:
    """An empty task, no agent, bounds that are not positive and an ended watch are errors of the caller."""
    with pytest.raises(ValueError, match="task is empty"):
        closed.run_agent(Scripted([]), " \n")
    with pytest.raises(TypeError, match="act"):
        closed.run_agent(object(), "x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_steps"):
        closed.run_agent(Scripted([]), "x", max_steps=0)
    with pytest.raises(ValueError, match="tokens"):
        Budget(tokens=0)
    with pytest.raises(ValueError, match="cost_usd is nan"):
        Usage(cost_usd=float("nan"))
    own.close()
    with pytest.raises(SessionEndedError, match="ended"):
        own.run_agent(Scripted([]), "x")


def test_stop_kills_the_command_and_the_watch_lives_on(closed: Watch) -> None:
    """`stop` ends a run in the midst of a command: the command is gone, the turn on record, the watch usable."""
    run = closed.run_agent(Scripted([Shell("echo begun; sleep 600")]), "sleep")
    while not closed.status().running_steps:
        pass
    run.stop()
    run.stop()
    assert run.wait(PATIENCE_S) is Outcome.STOPPED
    assert closed.status().running_steps == []
    assert run.steps[-1].observation.outcome == "killed"
    assert closed.run("true").ok


def test_what_a_run_leaves_behind_ends_with_it(own: Watch) -> None:
    """A process that left its command, its session and its parent is gone when the run is over; others' live on."""
    leave = "setsid sleep 600 </dev/null >/dev/null 2>&1 & echo $!"
    others = own.run(leave).stdout
    run = own.run_agent(Scripted([Shell(leave), Shell("true")]), "leave")
    assert run.wait(PATIENCE_S) is Outcome.FINISHED
    left = run.steps[0].observation.text
    assert (own.run(f"test -d /proc/{left}").ok, own.run(f"test -d /proc/{others}").ok) == (False, True)


def test_stop_does_not_wait_for_an_agent_that_thinks(closed: Watch) -> None:
    """An agent is cancelled in the midst of its choice, and what it chooses then is not carried out."""
    agent = Waiting()
    run = closed.run_agent(agent, "think")
    assert agent.asked.wait(PATIENCE_S)
    run.stop()
    assert run.wait(PATIENCE_S) is Outcome.STOPPED
    assert agent.cancelled.wait(PATIENCE_S)
    assert not run.steps
    assert not (closed.workspace / "late.txt").exists()


@pytest.mark.parametrize("busy", ["command", "agent"])
def test_a_kill_ends_the_run_whatever_it_is_at(own: Watch, busy: str) -> None:
    """A killed watch ends the run for good, on record too, and the agent is not asked again."""
    waiting, scripted = Waiting(), Scripted([Shell("sleep 600")])
    run = own.run_agent(waiting if busy == "agent" else scripted, "sleep")
    if busy == "agent":
        assert waiting.asked.wait(PATIENCE_S)
    else:
        while not own.status().running_steps:
            pass
    own.kill("enough")
    assert run.wait(PATIENCE_S) is Outcome.KILLED
    assert (run.state, len(scripted.seen)) == ("ended", 0 if busy == "agent" else 1)
    notes = [note for note in recorded(own, AgentNote) if note.run == run.id]
    assert {note.outcome for note in notes if note.op == "end"} == {"killed"}


def test_a_frozen_watch_pauses_the_run(own: Watch) -> None:
    """While the watch is frozen no command starts; when it goes on, so does the run, and the agent sees no reason."""
    thinking, go = threading.Event(), threading.Event()

    def act(observation: Observation) -> Action:
        seen.append(observation)
        if observation.turn == 1:
            thinking.set()
            go.wait(PATIENCE_S)
            return Shell("echo thawed")
        return Finish()

    seen: list[Observation] = []
    run = own.run_agent(Calling(act), "wait")
    assert thinking.wait(PATIENCE_S)
    own.suspend()
    go.set()
    assert run.state == "paused"
    with pytest.raises(TimeoutError, match="goes on"):
        run.wait(0.5)
    own.resume()
    assert run.wait(PATIENCE_S) is Outcome.FINISHED
    assert (seen[1].text, seen[1].exit_code) == ("thawed", 0)


def test_stop_ends_a_paused_run(own: Watch) -> None:
    """A run whose command is frozen can be stopped; so can one whose next command waits for the thaw."""
    run = own.run_agent(Scripted([Shell("sleep 600")]), "sleep")
    while not own.status().running_steps:
        pass
    own.suspend()
    waiting = own.run_agent(Scripted([Shell("true")]), "wait")
    run.stop()
    waiting.stop()
    assert waiting.wait(PATIENCE_S) is Outcome.STOPPED
    assert run.wait(PATIENCE_S) is Outcome.STOPPED
    own.resume()
    assert own.run("true").ok


async def test_a_run_is_awaited_and_followed_without_blocking(closed: Watch) -> None:
    """`async for` yields every step as it comes, and `await` the outcome, while the event loop goes on."""
    run = closed.run_agent(Scripted([Say("a"), Shell("true")]), "go")
    turns = [step.turn async for step in run]
    assert turns == [1, 2, 3]
    async with asyncio.timeout(PATIENCE_S):
        assert await run is Outcome.FINISHED
    assert [step.turn for step in run] == turns


def test_runs_in_one_watch_do_not_mix(closed: Watch) -> None:
    """Parallel runs each get their own results, and their records bear their own ids."""
    runs = [closed.run_agent(agent := Scripted([Shell(f"echo {n}; true {n}")] * 3), str(n)) for n in range(6)]
    del agent
    for run in runs:
        assert run.wait(PATIENCE_S) is Outcome.FINISHED
        assert {step.observation.text for step in run.steps[:3]} == {run.task}
    whose = {event.step: event.run for event in recorded(closed, Step) if event.op == "start" and event.run}
    assert all(whose[step.step] == run.id for run in runs for step in run.steps[:3])
    assert len({run.id for run in runs}) == len(runs)
