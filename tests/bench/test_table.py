"""The benchmark's own arithmetic: which targets count as met, what a percentile is, and that no figure is forgotten."""

from __future__ import annotations

import json

import pytest

from jupyter_agentwatch.testing import event
from tests.bench.attack_flows import attack_flows
from tests.bench.command import GROUPS, ONCE, is_wanted
from tests.bench.figures import FIGURES
from tests.bench.ground import alternate
from tests.bench.honest import STEPS, TOOLS, honest_lines, trajectory
from tests.bench.judged import attack_lines, clopper_pearson
from tests.bench.soak import slope
from tests.bench.table import Row, as_json, as_markdown, p99


@pytest.mark.parametrize(
    ("name", "value", "met"),
    [
        ("kill.survivors", 0, True),
        ("kill.survivors", 1, False),
        ("transfer.in", 0.5, True),
        ("transfer.in", 0.49, False),
        ("true.p99", 3.0, None),
        ("true.median", None, None),
    ],
)
def test_a_target_is_met_at_its_bound(name: str, value: float | None, met: bool | None) -> None:
    """The bound itself is good enough, in both senses; without a target or a value nothing is claimed."""
    assert Row(name, value).met is met


def test_the_99th_percentile_is_a_sample() -> None:
    """Of 1,000 samples ten are larger than the 99th percentile; of a few, the largest is taken."""
    assert p99(range(1, 1001)) == 990
    assert p99([3.0, 1.0, 2.0]) == 3.0


def test_each_figure_is_measured_by_one_group() -> None:
    """No figure is without a group, and none has two."""
    owners = {figure: [g for g, (_, prefix) in GROUPS.items() if figure.startswith(prefix)] for figure in FIGURES}
    assert {figure: groups for figure, groups in owners.items() if len(groups) != 1} == {}


def test_turns_change_and_the_first_round_is_not_counted() -> None:
    """Each way goes first in turn, and a warm-up that nobody sees comes before."""
    order: list[str] = []

    def way(name: str) -> float:
        order.append(name)
        return float(len(order))

    taken = alternate(2, {"a": lambda: way("a"), "b": lambda: way("b")})
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert taken == {"a": [3.0, 6.0], "b": [4.0, 5.0]}


def test_both_forms_say_the_same() -> None:
    """The JSON holds what the table shows, and says why there is no value."""
    rows = [Row("grep.vs_native", 1.04, 31, {"native": "90 ms"}), Row("build.make", None, note="not runnable here")]
    text = as_json(rows, {"kernel": "Linux"}, quick=False, seconds=1.0)
    first, second = json.loads(text)["rows"]
    assert (first["value"], first["met"], first["n"], first["beside"]) == (1.04, True, 31, {"native": "90 ms"})
    assert (second["value"], second["met"], second["note"]) == (None, None, "not runnable here")
    page = as_markdown(rows, {"kernel": "Linux"}, quick=False, seconds=1.0)
    assert "| 1.04 x (ratio of medians) | ≤ 1.05 x | yes | 31 | native 90 ms |" in page
    assert "not runnable here" in page


@pytest.mark.parametrize(
    ("seen", "count", "low", "high"), [(0, 300, 0.0, 0.012221), (5, 49, 0.03399, 0.22228), (49, 49, 0.92748, 1.0)]
)
def test_the_exact_interval_of_a_share(seen: int, count: int, low: float, high: float) -> None:
    """Clopper and Pearson's bounds are those that published tables give."""
    assert list(clopper_pearson(seen, count)) == pytest.approx([low, high], abs=1e-4)


def test_a_trajectory_is_long_in_order_and_the_same_again() -> None:
    """A composed trajectory has at least the promised steps, one order, ids of its own in each step, and no chance."""
    lines = honest_lines(200, seed=1)
    tools = {name: [event("step", seq=7, step=2), event("exec", seq=9, step=2, pid=44, claim_seq=8)] for name in TOOLS}
    events = list(trajectory("web", 3, tools, lines))
    assert events == list(trajectory("web", 3, tools, lines))
    seqs, times = [each.seq for each in events], [each.t_mono_ns for each in events]
    assert seqs == sorted(set(seqs))
    assert times == sorted(times)
    assert max(each.step for each in events) >= STEPS
    assert len({(each.pid, each.step) for each in events if each.pid}) == len({e.pid for e in events if e.pid})


def test_the_attacks_are_read_whole() -> None:
    """Each attack has a family and a text, each flow at least one record, and none stands there twice."""
    lines = attack_lines()
    assert len(lines) == len({line for _, line in lines}) >= 150
    assert {family for family, _ in lines} >= {"mining", "tunnel", "shell", "probing", "exfiltration", "tampering"}
    flows = attack_flows()
    assert all(events for _, _, events in flows)
    assert len(flows) == len({name for _, name, _ in flows}) >= 60


def test_what_depends_on_no_rung_is_measured_once() -> None:
    """A run on rung B leaves out what the rung has no influence on, and the ten minutes come only when asked for."""
    left_out = {name for name in GROUPS if not is_wanted(name, rung="B", soak=False)}
    assert left_out == ONCE
    assert {name for name in GROUPS if not is_wanted(name, rung="A", soak=False)} == {"soak"}
    assert all(is_wanted(name, rung="A", soak=True) for name in GROUPS)


def test_growth_is_the_slope_of_a_line() -> None:
    """Exact growth has no doubt; a value that only swings has no slope beyond its doubt."""
    assert list(slope([0.0, 10.0, 20.0], [5.0, 6.0, 7.0])) == pytest.approx([0.1, 0.0])
    steady, doubt = slope([0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 1.0, 2.0, 1.0])
    assert abs(steady) <= doubt
