"""The escape corpus on the grounds of this machine, and the same programs where nothing holds them.

The published table (docs/escape-corpus.md) is made by `python -m tests.escape`, on more grounds and with more tries.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Final

import pytest

from tests.docker_like import ROOT
from tests.escape.cases import CASES, GROUNDS, Case
from tests.escape.runner import Row
from tests.escape.table import markdown, run_ground

pytestmark = pytest.mark.sandbox

TRIES: Final = 150
"""How often each race is run here; in the published table it is 20,000."""

IS_ROOT: Final = os.geteuid() == 0
HERE: Final = ("A-root", "B-root", "docker-user") if IS_ROOT else ("A-user", "B-user", "docker-user")
NEED_ROOT: Final = {case.name for case in CASES if case.names}

HELD_BY_THE_KERNEL: Final = frozenset(
    {"files kernel", "kernel mounts", "kernel splices", "network vsock", "network netlink", "network interface"}
)
"""What an ordinary user cannot do anyway."""


@cache
def rows(ground: str) -> dict[str, Row]:
    """Run the corpus once on a ground."""
    return {row.name: row for row in run_ground(GROUNDS[ground], tries=TRIES)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("ground", HERE)
def test_nothing_gets_out(ground: str, case: Case) -> None:
    """The program gets nothing, nothing outside changes; what a rung leaves open is said, and nothing else is open."""
    row = rows(ground)[case.name]
    allowed = {"held"} | ({"open"} if GROUNDS[ground].rung in case.open_on else set())
    allowed |= {"not runnable"} if not IS_ROOT and case.name in NEED_ROOT else set()
    assert row.outcome in allowed, row.detail


if IS_ROOT:  # nobody else can make the namespaces that keep these programs from this machine

    def test_the_witness_sees_what_gets_out() -> None:
        """Where nothing holds them, the same programs get out and are found out: a corpus that cannot fail is none."""
        outcomes = {name: row.outcome for name, row in rows("bare").items() if row.outcome != "not runnable"}
        assert {name for name, outcome in outcomes.items() if outcome != "escaped"} <= HELD_BY_THE_KERNEL
        assert set(outcomes) == {case.name for case in CASES if case.may_run_bare}


def test_the_published_table_is_that_of_this_corpus() -> None:
    """Each case stands in the page, once, and so does the reason of each that is open; nothing escaped."""
    page = (ROOT / "docs" / "escape-corpus.md").read_text("utf-8")
    for case in CASES:
        assert page.count(f"| {case.title} |") == 1
        for rung, why in case.open_on.items():
            assert f"* {case.title}, rung {rung}: {why}." in page
    assert "**escaped** |" not in page
    assert page.endswith("## Escaped\n\nNothing.\n")


def test_what_escapes_stands_in_the_table() -> None:
    """A row that escaped is shown as such, with what got out, and counted."""
    found = Row(CASES[0].name, "escaped", "created /outside/new", 0, 0.1)
    page = markdown({"A-root": [found]}, machine="Linux")
    assert f"| {CASES[0].title} | **escaped** |" in page
    assert f"* {CASES[0].title}, A, root: created /outside/new" in page
    assert "| **together** | 1 escaped |" in page
