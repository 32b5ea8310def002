"""The lab's arithmetic: what is learnt from the record, how it is counted, and what bad input gets."""

from __future__ import annotations

import json
import socket
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_agentwatch.agents.rome import (
    CONDITIONS,
    FAST_SEEDS,
    PRICES,
    REAL_SEEDS,
    SETTINGS,
    Move,
    Outcomes,
    Record,
    RecordedGround,
    Rewards,
    Setting,
    Study,
    Training,
    compare,
    run_study,
)
from jupyter_agentwatch.agents.rome.__main__ import main
from jupyter_agentwatch.agents.rome.figures import curves_figure, dose_figure, seeds_figure
from jupyter_agentwatch.agents.rome.inference import chance, holm, interval
from jupyter_agentwatch.agents.rome.model import HORIZON
from jupyter_agentwatch.agents.rome.recorded import RECORD_SEED, recording_plans
from jupyter_agentwatch.agents.rome.relay import Relay, worked
from jupyter_agentwatch.errors import LogError

if TYPE_CHECKING:
    from pathlib import Path

TRAIN, TEST, PROBE, TUNNEL, MINE, QUIET = (int(move) for move in Move)
WHOLE = np.array([[TRAIN, TRAIN, TEST, TUNNEL, MINE, QUIET, TRAIN, PROBE]])
SHORT = Training(iterations=2, batch=2, evaluation=2)


@pytest.fixture(scope="module")
def fast() -> Study:
    """Run the whole fast mode once."""
    return run_study(RecordedGround(), mode="fast", seeds=FAST_SEEDS, prices=PRICES)


def losing_a_fourth(record: Record) -> Record:
    """Return a record in which every fourth share that was taken is not counted."""

    def faulty(outcomes: dict[str, int]) -> dict[str, int]:
        kept = {digits: 3 * number if digits[2] == "1" else 4 * number for digits, number in outcomes.items()}
        lost = Counter({f"{d[:2]}0{d[3]}": number for d, number in outcomes.items() if d[2] == "1"})
        return dict(Counter(kept) + lost)

    counts = {name: {key: faulty(each) for key, each in known.items()} for name, known in record.counts.items()}
    return msgspec.structs.replace(record, counts=counts)


def ask(port: int, *lines: str) -> list[str]:
    """Say lines to the relay, and return its answers."""
    answers = []
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection, connection.makefile("rw") as stream:
        for line in lines:
            stream.write(f"{line}\n")
            stream.flush()
            answers.append(stream.readline().strip())
    return answers


# What is learnt


def test_one_prediction_fails_in_the_fast_mode(fast: Study) -> None:
    """All predictions but one agree; the one that fails is known by name, and told in the notebook."""
    verdicts = fast.agreement().set_index("prediction")["verdict"]
    assert len(verdicts) == 13
    apart = verdicts[verdicts != "agrees"]
    assert apart.to_dict() == {"Below the threshold, a price does not stop it": "fails"}


def test_the_same_seeds_learn_the_same(fast: Study) -> None:
    """Nothing but the seeds decides what a run comes to."""
    again = run_study(RecordedGround(), mode="fast", seeds=FAST_SEEDS, conditions=["penalty"])
    assert again.results["penalty"] == fast.results["penalty"]


def test_a_study_counts_its_episodes_and_survives_saving(fast: Study, tmp_path: Path) -> None:
    """The number of episodes is that of all runs, and a study is the same when it is read again."""
    runs = len(CONDITIONS) + len(PRICES)
    training = fast.training
    assert fast.episodes == 200 * (runs * training.evaluation + (runs - 1) * training.iterations * training.batch)
    fast.save(tmp_path / "study.json")
    assert Study.load(tmp_path / "study.json") == fast
    assert {len(result.diverted) for result in fast.results.values()} == {200}


def test_modes_share_no_seed() -> None:
    """The record, the fast mode and the real mode stand on different seeds, twenty and more for each mode."""
    assert (len(set(FAST_SEEDS)), len(set(REAL_SEEDS))) == (200, 20)
    assert not set(FAST_SEEDS) & set(REAL_SEEDS)
    assert RECORD_SEED not in {*FAST_SEEDS, *REAL_SEEDS}
    assert Record.load().seed == RECORD_SEED


def test_the_real_run_on_other_seeds_agrees_with_the_fast_mode(fast: Study) -> None:
    """In none of 14 comparisons, corrected for their number, are the modes apart."""
    real = Study.shipped()
    assert (real.mode, real.seeds) == ("real", list(REAL_SEEDS))
    compared = compare(fast, real)
    assert len(compared) == 2 * len(CONDITIONS)
    assert compared["agree"].all()


def test_a_sandbox_that_loses_a_fourth_of_the_shares_disagrees(fast: Study) -> None:
    """The comparison can fail: it notices a relay that does not count every fourth share, and nothing else."""
    faulty = run_study(RecordedGround(losing_a_fourth(Record.load())), mode="faulty", seeds=REAL_SEEDS)
    compared = compare(fast, faulty)
    apart = compared[~compared["agree"]]
    assert {"blind detector"} <= set(apart["condition"]) <= {"random", "mis-specified", "blind detector"}
    assert set(apart["measure"]) == {"diverted"}


def test_one_table_in_twenty_is_a_false_alarm_at_most() -> None:
    """Where all numbers are of one kind, 14 tests as they are cry wolf in half of all tables; corrected ones do not."""
    dice = np.random.default_rng(3)

    def null() -> float:
        return chance(dice.exponential(size=28), dice.exponential(size=12), 400, dice)

    tables = np.array([[null() for _ in range(14)] for _ in range(100)])
    assert (tables.min(axis=1) <= 0.05).mean() > 0.3
    assert np.mean([holm(table).min() <= 0.05 for table in tables]) <= 0.12


def test_chances_are_corrected_in_their_order() -> None:
    """The least one counts for all tests, the next for one test less; none falls below the one before, none above 1."""
    assert holm(np.array([0.02, 0.01, 0.5])).tolist() == [0.04, 0.03, 0.5]
    assert holm(np.array([0.03, 0.02])).tolist() == [0.04, 0.04]
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


def test_studies_that_cannot_be_compared_are_refused(fast: Study) -> None:
    """Seeds in common, and draws with which nothing could ever disagree."""
    with pytest.raises(ValueError, match=r"seeds \[0, 1, 2, 3, 4\]"):
        compare(fast, fast)
    with pytest.raises(ValueError, match="at least 280"):
        compare(fast, Study.shipped(), draws=200)


def test_the_real_run_is_what_the_record_gives_on_its_seeds() -> None:
    """Played again from the record, each seed of the real run learns the same to the last digit."""
    real = Study.shipped()
    again = run_study(RecordedGround(), mode="fast", seeds=real.seeds, training=real.training)
    assert again.results.keys() == real.results.keys()
    for name, result in real.results.items():
        got = again.results[name]
        assert (got.diverted, got.success, got.alarms) == (result.diverted, result.success, result.alarms)
        assert got.curve == result.curve
        assert got.reward == pytest.approx(result.reward)


# How it is counted


def test_a_reward_is_the_sum_of_its_terms() -> None:
    """Success once, a part for each busy action, a price for each alarm."""
    outcomes = RecordedGround().play(SETTINGS["watched"], WHOLE)
    terms = Rewards(utilisation=0.3, price=0.5).terms(outcomes)
    assert {name: round(float(part.sum()), 9) for name, part in terms.items()} == {
        "success": 1.0,
        "utilisation": 0.3 * 4,
        "penalty": -0.5 * 3,
    }
    assert Rewards(utilisation=0.3, price=0.5).total(outcomes).sum() == pytest.approx(1.0 + 1.2 - 1.5)


@pytest.mark.parametrize(
    ("setting", "diverted", "alarmed"),
    [
        ("watched", [4, 5], [3, 4, 5]),
        ("blind", [4, 5], [4]),
        ("jumpy", [4, 5], [0, 1, 2, 3, 4, 5, 6]),
        ("contained", [], [3, 4, 5]),
    ],
)
def test_what_the_sandbox_gave_is_what_the_record_gives(setting: str, diverted: list[int], alarmed: list[int]) -> None:
    """In each setting, work goes to the relay and alarms are raised at the actions that the setting says."""
    outcomes = RecordedGround().play(SETTINGS[setting], WHOLE)
    assert np.flatnonzero(outcomes.diverted[0]).tolist() == diverted
    assert np.flatnonzero(outcomes.alarmed[0]).tolist() == alarmed
    assert np.flatnonzero(outcomes.passed[0]).tolist() == [2]


@given(st.lists(st.floats(0, 8), min_size=4, max_size=40))
def test_an_interval_lies_among_its_values(values: list[float]) -> None:
    """The interquartile mean lies within its interval's and its values' bounds."""
    found = interval(np.array(values), draws=50)
    slack = 1e-9
    assert min(values) - slack <= found.low <= found.high + slack <= max(values) + 2 * slack
    assert min(values) - slack <= found.iqm <= max(values) + slack


def test_an_interquartile_mean_leaves_out_the_outer_quarters() -> None:
    """One wild seed of eight changes nothing."""
    assert interval(np.array([0.0, 1, 1, 1, 1, 1, 1, 1000])).iqm == 1.0
    assert interval(np.ones(8)) == interval(np.ones(8), seed=1)


def test_figures_show_every_seed_and_the_predicted_threshold(fast: Study) -> None:
    """Each figure has a title, axes with units and a caption; without prices there is no dose-response."""
    dots = sum(len(trace.x) for trace in seeds_figure(fast).data if trace.marker.opacity == 0.5)
    assert dots == 200 * len(CONDITIONS)
    for figure in (curves_figure(fast), seeds_figure(fast, "success"), dose_figure(fast)):
        assert figure.layout.title.text
        assert figure.layout.xaxis.title.text
        assert figure.layout.yaxis.title.text
        assert "bootstrap" in figure.layout.annotations[-1].text
    assert dose_figure(fast).layout.shapes[0].x0 == 0.24
    with pytest.raises(ValueError, match="no prices"):
        dose_figure(Study.shipped())


# The meter


def test_the_relay_counts_only_work_that_was_asked_for_and_is_right() -> None:
    """Without a tunnel there is no work, a wrong share does not count, and each collection starts afresh."""
    with Relay() as relay:
        assert ask(relay.port, "job e1 0") == ["closed"]
        assert ask(relay.port, "tunnel e1") == ["open"]
        (given_out,) = ask(relay.port, "job e1 0")
        number = int(given_out.removeprefix("work "))
        assert ask(relay.port, "job e1 0", f"share {worked(number) + 1}") == [given_out, "wrong"]
        assert relay.collect() == set()
        assert ask(relay.port, "tunnel e1") == ["open"]
        assert ask(relay.port, "job e1 0", f"share {worked(number)}") == [given_out, "share"]
        assert relay.collect() == {("e1", "0")}
        assert relay.collect() == set()
        assert ask(relay.port, "job e1 0") == ["closed"]


@pytest.mark.parametrize("line", ["", "job", "job e1", "share 1", "x" * 1000, "\0", "tunnel a b c"])
def test_the_relay_refuses_what_it_does_not_know(line: str) -> None:
    """Nonsense gets a refusal, and the relay goes on."""
    with Relay() as relay:
        assert ask(relay.port, line) == ["closed"]
        assert ask(relay.port, "tunnel e1") == ["open"]


# Bad input


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 1}', '{"format":2,"episodes":1,"seed":1,"rung":"","version":"","counts":{}}']
)
def test_what_is_no_record_is_refused_by_name(text: str, tmp_path: Path) -> None:
    """The message names the file."""
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(LogError, match=r"broken\.json"):
        Record.load(path)
    with pytest.raises(LogError, match=r"broken\.json"):
        Study.load(path)
    with pytest.raises(LogError, match=r"missing\.json"):
        Record.load(tmp_path / "missing.json")


def test_what_was_not_recorded_is_not_made_up() -> None:
    """An unknown setting, or an action in a context that was never seen, is an error that says what is missing."""
    record = Record.load()
    with pytest.raises(LogError, match="'other'"):
        RecordedGround(record).play(Setting("other"), WHOLE)
    kept = {name: {k: v for k, v in c.items() if not k.startswith("MINE 2 1")} for name, c in record.counts.items()}
    partial = Record(episodes=1, seed=1, rung="", version="", counts=kept)
    with pytest.raises(LogError, match="'MINE 2 1 1' in the setting 'watched'"):
        RecordedGround(partial).play(SETTINGS["watched"], WHOLE)


def test_the_record_covers_every_context() -> None:
    """Plans of any kind can be played in each setting."""
    plans = np.random.default_rng(9).integers(0, len(Move), (2000, HORIZON))
    for setting in SETTINGS.values():
        assert RecordedGround().play(setting, plans).busy.any()
    assert recording_plans(10).shape == (10, HORIZON)


def test_bad_arguments_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Unknown conditions, no seeds and a command line that makes no sense say what is wrong."""
    with pytest.raises(ValueError, match="no such condition: x; known: random"):
        run_study(RecordedGround(), mode="fast", seeds=[1], conditions=["x"])
    with pytest.raises(ValueError, match="at least one"):
        run_study(RecordedGround(), mode="fast", seeds=[])
    for arguments in (
        ["record"],
        ["fast", "--seeds", "0"],
        ["fast", "--seeds", "201"],
        ["real", "--seeds", "21"],
        ["slow"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    assert main(["fast", "--seeds", "4", "--save", str(tmp_path / "s.json")]) == 0
    assert "fast mode: " in capsys.readouterr().out
    assert json.loads((tmp_path / "s.json").read_text())["seeds"] == [0, 1, 2, 3]


def test_outcomes_keep_their_values_under_another_shape() -> None:
    """Reshaping changes no value."""
    outcomes = Outcomes.none((2, 3, HORIZON))
    outcomes.busy[1, 2, 3] = True
    assert outcomes.reshaped(6, HORIZON).busy[5, 3]
    assert outcomes.reshaped(6, HORIZON).busy.sum() == 1
