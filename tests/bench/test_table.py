"""The benchmark's own arithmetic: which targets count as met, what a percentile is, and that no figure is forgotten."""

from __future__ import annotations

import json

import pytest

from tests.bench.command import GROUPS
from tests.bench.figures import FIGURES
from tests.bench.ground import alternate
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
