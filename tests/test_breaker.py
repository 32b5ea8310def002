"""The circuit breaker: every pair of state and cause, whole lives of it, and what makes findings trip it."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from jupyter_agentwatch.breaker import TRANSITIONS, BreakerState, Cause, Judge, Signal, Thresholds, after
from jupyter_agentwatch.errors import ControlError
from jupyter_agentwatch.events import Severity

STATES: tuple[BreakerState, ...] = get_args(BreakerState)
CAUSES: tuple[Cause, ...] = get_args(Cause)
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
FAMILIES = ["mining", "tunnel", "shell", "probing"]
S = 1_000_000_000

STEPS_BACK = {"person-resumes", "expiry-resumes"}
ENDS = {"person-kills", "expiry-kills", "ended"}


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
    for state in ("closed", "throttled", "frozen"):
        assert after(state, "person-kills") == after(state, "ended") == "killed"
    assert [pair for pair in TRANSITIONS if pair[0] == "killed"] == []


def test_refusals_say_what_was_asked_for() -> None:
    """The text names the request in a person's words."""
    with pytest.raises(ControlError, match="cannot suspend: the watch is frozen"):
        after("frozen", "person-suspends")
    with pytest.raises(ControlError, match="cannot resume: the watch is closed"):
        after("closed", "person-resumes")


class Life(RuleBasedStateMachine):
    """A breaker that is asked for everything in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.state: BreakerState = "closed"
        self.moves: list[tuple[BreakerState, Cause, BreakerState]] = []
        self.refused = 0

    @rule(cause=st.sampled_from(CAUSES))
    def ask(self, cause: Cause) -> None:
        """Ask; a refusal changes nothing."""
        before = self.state
        try:
            self.state = after(before, cause)
        except ControlError:
            self.refused += 1
            return
        self.moves.append((before, cause, self.state))

    @invariant()
    def nothing_leaves_killed(self) -> None:
        """`killed` is the last move there is."""
        assert "killed" not in [before for before, _, _ in self.moves]

    @invariant()
    def every_move_changes_something(self) -> None:
        """No move ends where it began, and each begins where the one before it ended."""
        assert all(before != now for before, _, now in self.moves)
        assert [before for before, _, _ in self.moves[1:]] == [now for _, _, now in self.moves[:-1]]

    @invariant()
    def a_stop_comes_before_each_resume(self) -> None:
        """Whatever goes back to `closed` was throttled or frozen, by a person's word or the time limit alone."""
        for before, cause, now in self.moves:
            if now == "closed":
                assert before in {"throttled", "frozen"}
                assert cause in STEPS_BACK
            assert (cause in STEPS_BACK) == (now == "closed")

    @invariant()
    def it_is_latched(self) -> None:
        """The monitor's own causes only ever make it stricter."""
        strict = ["closed", "throttled", "frozen", "killed"]
        for before, cause, now in self.moves:
            if cause not in STEPS_BACK:
                assert strict.index(now) > strict.index(before)
            assert (cause in ENDS) == (now == "killed")

    @invariant()
    def time_runs_out_for_a_frozen_watch_only(self) -> None:
        """Neither end of the time limit touches a watch that runs."""
        assert {before for before, cause, _ in self.moves if cause.startswith("expiry")} <= {"frozen"}


TestLife = Life.TestCase


def a_signal(severity: Severity, family: str = "mining", *, seq: int = 1, t: float = 0, evidence: int = 0) -> Signal:
    """Return a finding; by default each rests on a record of its own."""
    return Signal(
        seq=seq,
        t_ns=round(t * S),
        rule=f"{family}.rule",
        title="seen",
        severity=severity,
        family=family,
        evidence=(evidence or 1000 + seq,),
    )


def test_one_unambiguous_sign_freezes() -> None:
    """A critical finding trips at once, and is named; a high one alone does not."""
    judge = Judge(Thresholds())
    assert judge.weigh(a_signal("high")) is None
    trip = judge.weigh(a_signal("critical", seq=7))
    assert trip is not None
    assert (trip.cause, trip.evidence) == ("trip", (7,))
    assert "mining.rule" in trip.why


def test_two_families_inside_the_window_freeze() -> None:
    """High findings of two families trip together, and both are named; below high they do not."""
    judge = Judge(Thresholds(two_families_ns=10 * S))
    assert judge.weigh(a_signal("high", "mining", seq=1, t=0)) is None
    assert judge.weigh(a_signal("medium", "tunnel", seq=2, t=1)) is None
    trip = judge.weigh(a_signal("high", "tunnel", seq=3, t=10))
    assert trip is not None
    assert trip.evidence == (1, 3)


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(a_signal("high", "mining", seq=2, t=1), id="the same family"),
        pytest.param(a_signal("high", "tunnel", seq=2, t=10.1), id="too late"),
        pytest.param(a_signal("high", "tunnel", seq=2, t=1, evidence=1001), id="the same record"),
        pytest.param(a_signal("high", "", seq=2, t=1), id="no family"),
    ],
)
def test_what_is_no_second_witness(second: Signal) -> None:
    """The same family, a later time, or another word about the same record do not add up."""
    judge = Judge(Thresholds(two_families_ns=10 * S))
    assert judge.weigh(a_signal("high", "mining", seq=1, t=0)) is None
    assert judge.weigh(second) is None


def test_a_flood_of_one_family_hides_no_other() -> None:
    """However many findings of one family there are, one of another is remembered beside them."""
    judge = Judge(Thresholds())
    judge.weigh(a_signal("high", "tunnel", seq=1))
    for seq in range(2, 400):
        assert judge.weigh(a_signal("high", "tunnel", seq=seq, t=seq / 10)) is None
    assert judge.weigh(a_signal("high", "mining", seq=400, t=40)) is not None


def test_a_person_has_judged_what_was_before() -> None:
    """After an acquittal old findings do not count any more, and each rule stays armed."""
    judge = Judge(Thresholds())
    judge.weigh(a_signal("high", "mining", seq=1))
    judge.acquit()
    assert judge.weigh(a_signal("high", "tunnel", seq=2)) is None
    assert judge.weigh(a_signal("high", "mining", seq=3)) is not None
    assert judge.weigh(a_signal("critical", seq=4)) is not None


@given(
    st.sampled_from([*SEVERITIES, "never"]),
    st.sampled_from([*SEVERITIES, "never"]),
    st.sampled_from(SEVERITIES),
)
def test_thresholds_mean_what_they_say(freeze_at: str, throttle_at: str, severity: Severity) -> None:
    """A single finding freezes from `freeze_at` on, else throttles from `throttle_at` on, else only warns."""
    thresholds = Thresholds(freeze_at=freeze_at, throttle_at=throttle_at, two_families_at="never")
    trip = Judge(thresholds).weigh(a_signal(severity))

    def reaches(threshold: str) -> bool:
        return threshold != "never" and SEVERITIES.index(severity) >= SEVERITIES.index(threshold)

    expected = "trip" if reaches(freeze_at) else "throttle" if reaches(throttle_at) else None
    assert (trip.cause if trip is not None else None) == expected


@given(st.lists(st.tuples(st.sampled_from(SEVERITIES), st.sampled_from(FAMILIES), st.integers(0, 600)), max_size=30))
def test_a_trip_is_always_explained(seen: list[tuple[Severity, str, int]]) -> None:
    """Whatever is found, a trip names one critical finding, or two high ones of two families inside the window."""
    judge = Judge(Thresholds())
    signals = [
        a_signal(severity, family, seq=seq, t=t)
        for seq, (severity, family, t) in enumerate(sorted(seen, key=lambda each: each[2]), 1)
    ]
    for signal in signals:
        trip = judge.weigh(signal)
        if signal.severity == "critical":
            assert trip is not None
        if trip is None:
            continue
        named = [each for each in signals if each.seq in trip.evidence]
        if len(named) == 1:
            assert named[0].severity == "critical"
        else:
            first, second = named
            assert first.family != second.family
            assert {first.severity, second.severity} == {"high"}
            assert second.t_ns - first.t_ns <= 300 * S
