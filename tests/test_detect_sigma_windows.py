"""Correlations: what is counted, over which span, for which group, and what happens when there is too much to count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jupyter_agentwatch.detect import Draft, sigma_windows
from jupyter_agentwatch.detect.sigma_compile import compile_rules
from jupyter_agentwatch.detect.sigma_detector import WINDOW_FORGOT, SigmaDetector
from jupyter_agentwatch.testing import event

SECOND = 1_000_000_000


def connections(name: str, **fields: Any) -> dict[str, Any]:
    """A base rule over connections."""
    return {
        "title": f"Base {name}",
        "name": name,
        "logsource": {"category": "network_connection"},
        "detection": {"sel": fields or {"Initiated": "true"}, "condition": "sel"},
        "level": "low",
    }


def correlation(type_: str, rules: list[str], **more: Any) -> dict[str, Any]:
    """A correlation over 10 seconds, by step."""
    part = {"type": type_, "rules": rules, "group-by": ["step"], "timespan": "10s", **more}
    return {"title": "The correlation", "name": "correlation", "level": "high", "correlation": part}


def detector(*documents: dict[str, Any]) -> SigmaDetector:
    """Compile documents of one file, all of which have to be right."""
    rules, problems = compile_rules({"rules.yml": yaml.safe_dump_all(documents)})
    assert problems == []
    return SigmaDetector(rules)


def run(rules: SigmaDetector, seen: Sequence[tuple[float, dict[str, Any]]]) -> list[Draft]:
    """Feed connections at these seconds and return the findings."""
    drafts: list[Draft] = []
    for seq, (seconds, fields) in enumerate(seen):
        drafts += rules.feed(event("connect", seq=seq, t_mono_ns=round(seconds * SECOND), step=1, **fields))
    return drafts


def evidence(drafts: list[Draft]) -> list[tuple[int, ...]]:
    """What each finding rests on; all have to be the correlation's."""
    assert {draft.rule for draft in drafts} <= {"correlation"}
    return [draft.evidence for draft in drafts]


def counted(type_: str = "event_count", /, **condition: Any) -> SigmaDetector:
    """A correlation over one base rule."""
    return detector(connections("any"), correlation(type_, ["any"], condition=condition))


@pytest.mark.parametrize(("operator", "needed"), [("gte", 3), ("gt", 2), ("eq", 3)])
def test_matches_are_counted(operator: str, needed: int) -> None:
    """event_count fires at the match that completes the number, names all of them, and begins anew."""
    condition: dict[str, Any] = {operator: needed}
    rules = counted(**condition)
    assert evidence(run(rules, [(second, {}) for second in range(7)])) == [(0, 1, 2), (3, 4, 5)]


def test_the_window_slides() -> None:
    """Matches count together when they lie within the span of each other, wherever a clock's hour ends."""
    rules = counted(gte=3)
    assert evidence(run(rules, [(0, {}), (9, {}), (10.1, {}), (18.9, {}), (40, {})])) == [(1, 2, 3)]


def test_both_ends_of_the_span_belong_to_it() -> None:
    """Two matches exactly one span apart count together; a nanosecond more, and they do not."""
    assert evidence(run(counted(gte=2), [(0, {}), (10, {})])) == [(0, 1)]
    assert run(counted(gte=2), [(0, {}), (10.000000001, {})]) == []


def test_groups_are_counted_apart() -> None:
    """What is grouped by has to be the same, without regard to case."""
    rules = detector(
        connections("any"),
        correlation("event_count", ["any"], condition={"gte": 2}, **{"group-by": ["DestinationHostname", "step"]}),
    )
    hosts = ["a.example", "b.example", "A.example", "c.example", "b.example"]
    assert evidence(run(rules, [(0, {"host": host}) for host in hosts])) == [(0, 2), (1, 4)]


def test_without_groups_everything_counts_together() -> None:
    """group-by may be left out."""
    part = correlation("event_count", ["any"], condition={"gte": 2})
    del part["correlation"]["group-by"]
    rules = detector(connections("any"), part)
    steps = [list(rules.feed(event("connect", seq=seq, step=seq))) for seq in range(2)]
    assert evidence(steps[1]) == [(0, 1)]


def test_distinct_values_are_counted() -> None:
    """value_count counts ports, not connections: a scan, and not a client that is busy."""
    rules = counted("value_count", field="DestinationPort", gte=3)
    ports = [22, 22, 22, 80, 80, 443, 22]
    assert evidence(run(rules, [(second, {"port": port}) for second, port in enumerate(ports)])) == [(2, 4, 5)]


def test_distinct_values_expire() -> None:
    """A value that was last seen longer ago than the span does not count any more."""
    rules = counted("value_count", field="DestinationPort", gte=3)
    assert run(rules, [(0, {"port": 1}), (8, {"port": 2}), (11, {"port": 3})]) == []
    again = [(20, {"port": 1}), (21, {"port": 2}), (29, {"port": 1}), (32, {"port": 3})]
    assert run(counted("value_count", field="DestinationPort", gte=3), again) == []


def test_absent_values_do_not_count() -> None:
    """An event without the field adds no value."""
    rules = counted("value_count", field="DestinationHostname", gte=2)
    assert run(rules, [(0, {"host": ""}), (1, {"host": "a.example"}), (2, {"host": ""})]) == []


def three(type_: str, **more: Any) -> SigmaDetector:
    """A temporal correlation over three ports."""
    names = ["first", "second", "third"]
    bases = [connections(name, DestinationPort=port) for port, name in enumerate(names, 1)]
    return detector(*bases, correlation(type_, names, **more))


def at_ports(*ports: int, gap: float = 1.0) -> list[tuple[float, dict[str, Any]]]:
    """Connections to ports, one after another."""
    return [(place * gap, {"port": port}) for place, port in enumerate(ports)]


def test_rules_meet_in_any_order() -> None:
    """A temporal rule needs each rule once within the span."""
    assert evidence(run(three("temporal"), at_ports(3, 3, 1, 2))) == [(1, 2, 3)]
    assert run(three("temporal"), at_ports(1, 2, 1, 2)) == []
    assert run(three("temporal"), at_ports(1, 2, 3, gap=5.1)) == []


def test_some_of_the_rules_may_be_enough() -> None:
    """A temporal rule takes a count of different rules."""
    assert evidence(run(three("temporal", condition={"gte": 2}), at_ports(1, 1, 3))) == [(1, 2)]


@pytest.mark.parametrize(
    ("ports", "found"),
    [((1, 2, 3), [(0, 1, 2)]), ((3, 2, 1), []), ((1, 1, 2, 2, 3), [(1, 3, 4)]), ((2, 1, 3, 2, 3), [(1, 3, 4)])],
)
def test_an_order_is_kept(ports: tuple[int, ...], found: list[tuple[int, ...]]) -> None:
    """temporal_ordered needs the rules one after another, and prefers the chain that began last."""
    assert evidence(run(three("temporal_ordered"), at_ports(*ports))) == found


def test_one_match_is_not_two_steps_of_an_order() -> None:
    """A rule that is named twice has to match twice."""
    rules = detector(connections("any"), correlation("temporal_ordered", ["any", "any"]))
    assert evidence(run(rules, at_ports(1, 1, 1))) == [(0, 1), (1, 2)]


def test_an_order_has_to_fit_into_the_span() -> None:
    """A chain that began too long ago is not completed, but a later beginning is."""
    assert run(three("temporal_ordered"), at_ports(1, 2, 3, gap=5.1)) == []
    late = [(0, {"port": 1}), (6, {"port": 2}), (7, {"port": 1}), (8, {"port": 2}), (12, {"port": 3})]
    assert evidence(run(three("temporal_ordered"), late)) == [(2, 3, 4)]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=30))
def test_counting_agrees_with_looking_back(steps: list[tuple[int, int]]) -> None:
    """event_count by group gives the same as looking through the whole past at each match."""
    rules = counted(gte=3)
    past: dict[int, list[int]] = {}
    now = 0
    for seq, (wait, group) in enumerate(steps):
        now += wait * SECOND * 2
        seen = past.setdefault(group, [])
        seen.append(now)
        expected = sum(each >= now - 10 * SECOND for each in seen) >= 3
        if expected:
            seen.clear()
        assert bool(list(rules.feed(event("connect", seq=seq, t_mono_ns=now, step=group)))) is expected


def test_a_correlation_may_count_correlations() -> None:
    """Many tries and then a success: the outer one fires with its own severity."""
    many = correlation("event_count", ["first"], condition={"gte": 2})
    many["name"], many["title"] = "many", "Many"
    outer = correlation("temporal_ordered", ["many", "second"])
    bases = [connections("first", DestinationPort=1), connections("second", DestinationPort=2)]
    (draft,) = run(detector(outer, many, *bases), at_ports(1, 2, 1, 2))
    assert (draft.rule, draft.severity, draft.evidence) == ("correlation", "high", (2, 3))


def test_aliases_join_fields_of_different_names() -> None:
    """A group may be one field in one rule and another field in the other."""
    query = {
        "title": "Query",
        "name": "query",
        "logsource": {"category": "dns"},
        "detection": {"sel": {"query|endswith": ".example"}, "condition": "sel"},
    }
    aliases = {"name": {"query": "QueryName", "any": "DestinationHostname"}}
    joined = correlation("temporal", ["query", "any"], aliases=aliases, **{"group-by": ["name"]})
    rules = detector(query, connections("any"), joined)
    assert list(rules.feed(event("dns", seq=1, qname="a.example"))) == []
    assert list(rules.feed(event("connect", seq=2, host="b.example"))) == []
    assert evidence(list(rules.feed(event("connect", seq=3, host="A.example")))) == [(1, 3)]


def test_what_a_correlation_counts_is_no_finding_of_its_own() -> None:
    """Base rules are silent unless `generate` is set."""
    assert len(run(counted(gte=2), at_ports(1, 1))) == 1
    loud = detector(connections("any"), correlation("event_count", ["any"], condition={"gte": 2}, generate=True))
    assert [draft.title for draft in run(loud, [(0, {}), (2, {})])] == ["Base any", "Base any", "The correlation"]


def test_a_file_cannot_silence_the_rules_of_another() -> None:
    """A correlation counts rules of any file, but those of another file stay findings."""
    own = yaml.safe_dump(correlation("event_count", ["any"], condition={"gte": 2}))
    rules, problems = compile_rules({"own.yml": own, "public.yml": yaml.safe_dump(connections("any"))})
    assert problems == []
    drafts = run(SigmaDetector(rules), [(0, {}), (2, {})])
    assert [draft.title for draft in drafts] == ["Base any", "Base any", "The correlation"]


def test_a_flood_of_groups_is_bounded_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest groups are forgotten, once a finding says so, and the others are still counted."""
    monkeypatch.setattr(sigma_windows, "_MAX_KEPT", 50)
    rules = counted(gte=2)
    drafts = [draft for step in range(500) for draft in rules.feed(event("connect", seq=step, step=step))]
    assert [(draft.rule, draft.family, draft.evidence) for draft in drafts] == [(WINDOW_FORGOT, "monitor", (50,))]
    assert evidence(list(rules.feed(event("connect", seq=500, step=499)))) == [(499, 500)]


def test_a_group_in_use_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is forgotten is what has not been seen for longest, so that a flood cannot push out what goes on."""
    monkeypatch.setattr(sigma_windows, "_MAX_KEPT", 50)
    rules = counted(gte=40)
    fired = []
    for place in range(40):
        steps = [1, *range(1000 + place * 9, 1009 + place * 9)]
        fired += [draft for step in steps for draft in rules.feed(event("connect", seq=place, step=step))]
    assert [draft.evidence[-1] for draft in fired if draft.rule == "correlation"] == [39]


def test_nothing_is_kept_of_what_is_over() -> None:
    """A group that has fired leaves nothing behind: the agent may make as many as it likes."""
    rules = counted(gte=1)
    for step in range(100):
        assert len(list(rules.feed(event("connect", seq=step, step=step)))) == 1
    (book,) = rules._windows._books
    assert (len(book._groups), book._kept) == (0, 0)


def test_evidence_is_bounded() -> None:
    """A correlation over thousands of matches names the first and the last of them."""
    (draft,) = run(counted(gte=1000), [(place / 1000, {}) for place in range(1000)])
    assert draft.evidence == (*range(8), *range(992, 1000))


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (correlation("event_count", ["none"], condition={"gte": 2}), "no rule that runs has this id or name"),
        (correlation("event_count", ["any"], condition={"lt": 2}), "fewer than a number"),
        (correlation("event_count", ["any"], condition={"gte": 10**6}), "between 1 and 10000"),
        (correlation("event_count", ["any"], condition={"gte": 0}), "between 1 and 10000"),
        (correlation("value_count", ["any"], condition={"gte": 2, "field": "Nonsense"}), "'Nonsense'"),
        (correlation("value_count", ["any"], condition={"gte": 2}), "without field"),
        (correlation("value_sum", ["any"], condition={"gte": 2, "field": "DestinationPort"}), "value_sum"),
        (correlation("temporal", ["any"], condition={"gte": 2}), "can never match"),
        (correlation("temporal", ["any"], condition="any"), "list the rules"),
        (correlation("temporal", ["any", "any"]), "named twice"),
        (correlation("event_count", ["any"], condition={"gte": 2}, **{"group-by": ["Nothing"]}), "'Nothing'"),
        (correlation("event_count", ["any"], condition={"gte": 2}, timespan="soon"), "soon"),
        (correlation("event_count", ["correlation"], condition={"gte": 2}), "no rule that runs"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_cannot_be_counted_is_refused(part: dict[str, Any], reason: str) -> None:
    """A correlation that cannot be evaluated exactly is a problem at its line; the base rule runs on its own."""
    rules, problems = compile_rules({"rules.yml": yaml.safe_dump_all([connections("any"), part])})
    assert [problem.line for problem in problems] == [11]
    assert reason in problems[0].reason
    assert [rule.reported for rule in rules.rules] == [True]
    assert rules.windows == ()
