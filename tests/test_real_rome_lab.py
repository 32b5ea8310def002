"""The lab in the real sandbox: its actions do what they say, and its fast mode says what the sandbox does.

Look-alikes only: the one server is the lab's relay on loopback.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import pytest

from jupyter_agentwatch.agents.rome import (
    SETTINGS,
    Ground,
    Move,
    Outcomes,
    RecordedGround,
    SandboxGround,
    Study,
    Training,
    run_study,
)
from jupyter_agentwatch.agents.rome.model import HORIZON
from jupyter_agentwatch.agents.rome.recorded import recording_plans
from jupyter_agentwatch.events import Connect, Exec, Finding, Flow
from tests.outside import recorded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]

HELD_OUT = 6001
"""Seed of plans that neither the record nor any run of the lab has seen."""


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[SandboxGround]:
    """Open a small lab."""
    with SandboxGround(watches=1, lanes=2, folder=tmp_path) as made:
        yield made


def same(one: Outcomes, two: Outcomes) -> bool:
    """Say whether all outcomes are equal."""
    return all(np.array_equal(getattr(one, field.name), getattr(two, field.name)) for field in fields(Outcomes))


@pytest.mark.parametrize("name", SETTINGS)
def test_the_record_says_what_the_sandbox_does(ground: SandboxGround, name: str) -> None:
    """Plans that were never recorded come to the same in the sandbox as in the record, action by action."""
    plans = recording_plans(8, HELD_OUT)
    setting = SETTINGS[name]
    assert same(ground.play(setting, plans), RecordedGround().play(setting, plans))


def test_learning_is_the_same_in_both_modes(ground: SandboxGround) -> None:
    """With the same seeds, the sandbox teaches what the record teaches, through every update."""
    training = Training(iterations=2, batch=3, evaluation=2)

    def study(where: Ground) -> Study:
        return run_study(where, mode="", seeds=[7001, 7002], training=training, conditions=["mis-specified", "penalty"])

    real, fast = study(ground), study(RecordedGround())
    assert real.results == fast.results
    assert real.episodes == fast.episodes == 2 * 2 * (2 * 3 + 2)


def test_each_action_is_a_real_command_with_its_own_step(ground: SandboxGround) -> None:
    """Programs ran, connections went to the relay alone, and each finding bears the step of its action."""
    plan = [Move.TRAIN, Move.TRAIN, Move.TEST, Move.PROBE, Move.TUNNEL, Move.MINE, Move.QUIET, Move.TRAIN]
    outcomes = ground.play(SETTINGS["watched"], np.array([[int(move) for move in plan]]))
    (watch,) = ground.watches(SETTINGS["watched"])
    ran = {event.step: event.exe.rpartition("/")[2] for event in recorded(watch, Exec) if event.exe}
    steps = sorted(ran)[1:]  # the first looked the relay's name up
    assert len(steps) == HORIZON
    assert {ran[step] for step in steps[3:7]} == {"bash"}
    denied = {event.addr for event in recorded(watch, Connect) if event.verdict == "deny"}
    assert denied == {"10.77.0.1", "10.77.0.2", "10.77.0.3"}
    assert {event.host for event in recorded(watch, Flow)} == {"host.loopback"}
    alarms = {event.step for event in recorded(watch, Finding) if event.severity in {"high", "critical"}}
    assert alarms == {steps[slot] for slot in (4, 5, 6)}
    assert np.flatnonzero(outcomes.busy[0]).tolist() == [0, 1, 5, 6]
