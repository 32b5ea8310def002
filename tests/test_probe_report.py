"""A report of probes: its text, the rung and the error that follow from it."""

from __future__ import annotations

import pytest

from jupyter_agentwatch.sandbox.probe_report import (
    RUNGS,
    Probe,
    Rung,
    conclude,
    failed_probe,
    report_text,
)


def example(
    *,
    ok: bool,
    required_for: tuple[Rung, ...] = RUNGS,
    name: str = "one",
    fix: str = "do this",
    lacks: str = "",
) -> Probe:
    """Return a probe."""
    return Probe(
        name=name,
        ok=ok,
        tried="a thing",
        detail="a result",
        fix="" if ok else fix,
        required_for=required_for,
        lacks=(lacks,) if lacks else (),
    )


def test_the_text_shows_each_probe_and_the_fixes_of_the_failed() -> None:
    """People get a line for each probe, in columns, then what is lacking, and the fixes, the optional ones marked."""
    probes = (
        example(ok=True, lacks="half of it"),
        example(ok=False, name="second", required_for=("A", "B"), fix="run that"),
        example(ok=False, required_for=(), name="third"),
    )
    assert report_text(conclude(probes, "nobody")).splitlines() == [
        "rung E: no isolation: run refuses, unless the policy says isolation: C (network confined, files not)",
        "isolation that a policy can name: C",
        "limits: nobody",
        "",
        "        for",
        "ok      ABC  one     a thing: a result",
        "FAILED  AB   second  a thing: a result",
        "absent  -    third   a thing: a result",
        "",
        "Works, but lacks:",
        "  one: half of it",
        "",
        "To fix:",
        "  second (rung A, B): run that",
        "  third (optional): do this",
    ]


@pytest.mark.parametrize("failing", ["", "A", "B", "AB", "BC", "ABC"])
def test_the_rung_follows_from_what_failed(failing: str) -> None:
    """Every combination of rungs that miss something gives the best of A and B, or E; C is named and never taken."""
    probes = [example(ok=rung not in failing, required_for=(rung,), name=f"of {rung}") for rung in RUNGS]
    report = conclude(probes, "")
    assert "".join(report.available) == "".join(rung for rung in RUNGS if rung not in failing)
    assert report.rung == {"": "A", "A": "B", "B": "A", "AB": "E", "BC": "A", "ABC": "E"}[failing]
    assert report.missing == {rung: (f"of {rung}",) if rung in failing else () for rung in RUNGS}


def test_the_error_names_the_first_failed_probe_of_each_rung_and_its_fix() -> None:
    """The text of the error names what was tried, what came of it and how to mend it, for each rung that would do."""
    probes = (
        example(ok=False, required_for=()),
        example(ok=False, required_for=("A",), name="second"),
        example(ok=False, required_for=("A",), name="third"),
        example(ok=False, required_for=("B", "C"), name="fourth", fix=""),
    )
    report = conclude(probes, "")
    second = "rung A needs second: probe 'second' failed: tried a thing: a result; fix: do this"
    fourth = "needs fourth: probe 'fourth' failed: tried a thing: a result"
    assert failed_probe(report) == f"{second}; rung B {fourth}"
    assert (failed_probe(report, "A"), failed_probe(report, "C")) == (
        second,
        f"rung C {fourth}",
    )
    same = conclude([example(ok=False)], "")
    assert failed_probe(same).startswith("rungs A and B need one: probe 'one' failed: ")
    assert failed_probe(conclude(probes[:1], "")) == ""
