"""The circuit breaker's table: every pair of state and cause is decided, and no sequence of causes undoes a kill."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_agentwatch.breaker import TRANSITIONS, BreakerState, Cause, after
from jupyter_agentwatch.errors import ControlError

STATES: tuple[BreakerState, ...] = get_args(BreakerState)
CAUSES: tuple[Cause, ...] = get_args(Cause)

causes = st.lists(st.sampled_from(CAUSES), max_size=20)


def walk(sequence: list[Cause]) -> list[tuple[BreakerState, Cause, BreakerState]]:
    """Return every step that a new breaker takes; a cause that is refused changes nothing."""
    state: BreakerState = "closed"
    steps = []
    for cause in sequence:
        before = state
        try:
            state = after(state, cause)
        except ControlError:
            continue
        steps.append((before, cause, state))
    return steps


@pytest.mark.parametrize(("state", "cause"), list(product(STATES, CAUSES)))
def test_every_pair_is_decided(state: BreakerState, cause: Cause) -> None:
    """A pair of the table moves as it says; any other is refused with the state in the text."""
    if (state, cause) in TRANSITIONS:
        assert after(state, cause) == TRANSITIONS[state, cause]
    else:
        with pytest.raises(ControlError, match=f"the watch is {state}"):
            after(state, cause)


def test_the_table_names_nothing_unknown() -> None:
    """States and causes of the table are those that the types declare, and each cause occurs."""
    assert {state for state, _ in TRANSITIONS} | set(TRANSITIONS.values()) == set(STATES)
    assert {cause for _, cause in TRANSITIONS} == set(CAUSES)


def test_a_kill_is_possible_from_every_state_but_its_own() -> None:
    """A person and the end of the owner kill a watch whatever it does; nothing leaves `killed`."""
    for state in ("closed", "frozen"):
        assert after(state, "person-kills") == after(state, "ended") == "killed"
    assert [pair for pair in TRANSITIONS if pair[0] == "killed"] == []


@given(causes)
def test_nothing_leaves_killed(sequence: list[Cause]) -> None:
    """Whatever comes after a kill is refused."""
    steps = walk(sequence)
    kills = [index for index, (_, _, state) in enumerate(steps) if state == "killed"]
    assert kills in ([], [len(steps) - 1])


@given(causes)
def test_a_frozen_watch_waits_for_a_person_or_its_time_limit(sequence: list[Cause]) -> None:
    """Only a person, the time limit, or the end of the owner leave `frozen`; a new trip does not."""
    for before, cause, state in walk(sequence):
        if before == "frozen":
            assert cause in {"person-resumes", "person-kills", "expiry-kills", "expiry-resumes", "ended"}
            assert state == ("closed" if cause in {"person-resumes", "expiry-resumes"} else "killed")
        elif cause in {"trip", "person-suspends"}:
            assert state == "frozen"


def test_refusals_say_what_was_asked_for() -> None:
    """The text names the request in a person's words."""
    with pytest.raises(ControlError, match="cannot suspend: the watch is frozen"):
        after("frozen", "person-suspends")
    with pytest.raises(ControlError, match="cannot resume: the watch is closed"):
        after("closed", "person-resumes")
