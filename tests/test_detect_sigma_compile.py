"""From Sigma files to compiled rules: what runs, what is reported and where, and the form that a cache keeps."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_agentwatch.detect.engine import KINDS
from jupyter_agentwatch.detect.sigma_compile import MAX_FILE_CHARACTERS, compile_rules
from jupyter_agentwatch.detect.sigma_fields import DERIVED, KEYWORD_FACTS, family_of
from jupyter_agentwatch.detect.sigma_form import CompiledRules, decode_rules, encode_rules
from tests.sigma_corpus import synthetic_rules

RULE = """\
# a comment
title: Netcat with a shell
id: 5a6b7c8d-0000-4000-8000-000000000001
status: test
description: A shell on a socket.
author: Ada
falsepositives: [Somebody's backup, Nothing else]
tags:
  - attack.execution
  - attack.t1059.004
  - attack.t1572
logsource:
  product: linux
  category: process_creation
detection:
  selection:
    Image|endswith: /nc
    CommandLine|contains: ' -e '
  condition: selection
level: critical
"""


def rule(**changes: Any) -> str:
    """The rule above with other parts."""
    return yaml.safe_dump({**yaml.safe_load(RULE), **changes}, sort_keys=False)


def only_problem(text: str) -> tuple[int, str, str]:
    """Compile a file in which exactly one thing is wrong; return line, kind and reason."""
    _, problems = compile_rules({"lab/file.yml": text})
    (problem,) = problems
    assert problem.source == "lab/file.yml"
    return problem.line, problem.kind, problem.reason


def test_a_rule_keeps_what_people_need() -> None:
    """Id, title, severity, technique, family, author and place of a rule reach its findings."""
    rules, problems = compile_rules({"lab/netcat.yml": RULE})
    assert problems == []
    (compiled,) = rules.rules
    assert (compiled.id, compiled.title) == ("5a6b7c8d-0000-4000-8000-000000000001", "Netcat with a shell")
    assert (compiled.severity, compiled.technique, compiled.family) == ("critical", "T1059.004", "shell")
    assert (compiled.source, compiled.line, compiled.kinds) == ("lab/netcat.yml", 2, ("exec",))
    assert compiled.rationale == (
        "A shell on a socket.\nKnown false positives: Somebody's backup; Nothing else.\nRule by Ada."
    )


@pytest.mark.parametrize(
    ("level", "severity"),
    [("informational", "info"), ("low", "low"), ("medium", "medium"), ("high", "high"), ("critical", "critical")],
)
def test_levels_become_severities(level: str, severity: str) -> None:
    """Sigma's levels are our severities."""
    assert compile_rules({"a.yml": rule(level=level)})[0].rules[0].severity == severity


def test_a_rule_without_level_is_of_medium_severity() -> None:
    """The specification leaves the level out of what a rule must have."""
    text = RULE.replace("level: critical\n", "")
    assert compile_rules({"a.yml": text})[0].rules[0].severity == "medium"


@pytest.mark.parametrize(
    ("techniques", "family"),
    [
        (("T1496",), "mining"),
        (("T1552.005",), "probing"),
        (("T1552",), "policy"),
        (("T9999", "T1048.003"), "exfiltration"),
        ((), "policy"),
    ],
)
def test_techniques_give_the_family(techniques: tuple[str, ...], family: str) -> None:
    """A sub-technique goes before its parent, an unknown technique gives way to a known one."""
    assert family_of(techniques) == family


AUDITED = """
title: Records of the audit daemon
logsource:
  product: linux
  service: auditd
detection:
  selection:
    type: EXECVE
    a0: ls
  condition: selection
"""
FIREWALL = """
title: Words of a firewall
logsource:
  category: firewall
detection:
  selection:
    dst_port: [23, 513]
    action: quarantine
  condition: selection
"""
BAD_FIELD = RULE.replace("CommandLine|contains: ' -e '", "OriginalFileName|contains: x")


@pytest.mark.parametrize(
    ("text", "line", "kind", "reason"),
    [
        (BAD_FIELD, 18, "field", "'OriginalFileName'"),
        (RULE.replace("condition: selection", "condition: selection and"), 19, "invalid", "condition"),
        (RULE.replace("condition: selection", "condition: other"), 19, "invalid", "other"),
        (RULE.replace("condition: selection", "condition: 1 of other*"), 19, "invalid", "other"),
        (RULE.replace("|contains", "|includes"), 18, "invalid", "includes"),
        (RULE.replace("condition: selection", "condition: {gte: 1}"), 19, "invalid", "has to be text"),
        (AUDITED.replace("EXECVE", "SERVICE_STOP"), 8, "source", "type service_stop"),
        (AUDITED.replace("a0: ls", "syscall: 135"), 9, "source", "syscall 135"),
        (FIREWALL, 8, "source", "action quarantine"),
        (
            FIREWALL.replace("firewall", "network_connection")
            .replace("dst_port: [23, 513]", "DestinationPort: 23")
            .replace("action: quarantine", "Initiated: false"),
            8,
            "source",
            "Initiated false",
        ),
        (RULE.replace("level: critical", "level: extreme"), 2, "invalid", "extreme"),
        (RULE.replace("title: Netcat with a shell", "name: x"), 2, "invalid", "title"),
        (RULE.replace("category: process_creation", "category: registry_set"), 2, "source", "linux registry_set"),
        (RULE.replace("product: linux", "product: windows"), 2, "source", "windows process_creation"),
        (RULE.replace("category: process_creation", "service: sshd"), 2, "source", "linux sshd"),
        (RULE.replace("status: test", "status: unsupported"), 2, "unsupported", "unsupported"),
        (RULE.replace("|contains: ' -e '", "|re: 'a(?=b)'"), 2, "invalid", "look-around"),
        (RULE.replace("|contains: ' -e '", "|re: '(a)\\1'"), 2, "invalid", "references back"),
        (RULE.replace("|contains: ' -e '", "|re: '['"), 2, "invalid", "missing ]"),
        (RULE.replace("|contains: ' -e '", "|expand: '%admins%'"), 2, "unsupported", "placeholders"),
        (RULE.replace("CommandLine|contains: ' -e '", "ProcessId|hour: 3"), 2, "unsupported", "parts of times"),
        (RULE.replace("CommandLine|contains: ' -e '", "CommandLine|cidr: 10.0.0.0/33"), 2, "invalid", "CIDR"),
        (RULE.replace("CommandLine|contains: ' -e '", "CommandLine|gt: many"), 2, "invalid", "many"),
        ("title: [\n", 2, "invalid", "not YAML"),
        ("- a\n- b\n", 1, "invalid", "is not a rule"),
        ("just a text", 1, "invalid", "is not a rule"),
        ("a: &x [*x]\n", 1, "invalid", ""),
        ("title: x\n---\n\x00", 1, "invalid", "cannot be read"),
        ("[" * 2000, 1, "invalid", "cannot be read"),
        ("#" * (MAX_FILE_CHARACTERS + 1), 1, "invalid", "too long"),
        ("title: x\naction: explode\n", 1, "invalid", "explode"),
    ],
    ids=lambda part: str(part)[:20],
)
def test_a_rule_that_cannot_run_is_named_by_line(text: str, line: int, kind: str, reason: str) -> None:
    """What is wrong with a file is said with its line, its kind and the words that people need to mend it."""
    found = only_problem(text)
    assert found[:2] == (line, kind)
    assert reason in found[2]


def test_a_mistake_in_what_a_rule_says_of_its_history_is_no_reason_not_to_run_it() -> None:
    """Dates, references and kinship that no specification allows leave the rule as it is."""
    history = {"related": [{"id": "x", "type": "obsoletes"}], "date": "last week", "references": {"a": 1}}
    rules, problems = compile_rules({"a.yml": rule(**history)})
    assert (len(rules.rules), problems) == (1, [])


def test_a_correlation_of_a_rule_that_does_not_run_says_why() -> None:
    """Its problem is of the same kind as that of the rule, and names it and what is wrong with it."""
    foreign = rule(logsource={"product": "linux", "service": "sshd"})
    counting = {
        "title": "Often",
        "correlation": {
            "type": "event_count",
            "rules": ["5a6b7c8d-0000-4000-8000-000000000001"],
            "timespan": "1m",
            "group-by": ["client_ip"],
            "condition": {"gte": 5},
        },
    }
    _, problems = compile_rules({"a.yml": "---\n".join([foreign, yaml.safe_dump(counting)])})
    assert [problem.kind for problem in problems] == ["source", "source"]
    assert "'Netcat with a shell', which does not run: is about linux sshd" in problems[1].reason


def test_the_other_rules_of_a_file_run() -> None:
    """One bad document among three does not stop the other two, and its line is its own."""
    text = "---\n".join([RULE, BAD_FIELD.replace("000001", "000002"), RULE.replace("000001", "000003")])
    rules, problems = compile_rules({"a.yml": text, "b.yml": "title: ["})
    assert [compiled.line for compiled in rules.rules] == [2, 44]
    assert [(problem.source, problem.line) for problem in problems] == [("a.yml", 39), ("b.yml", 1)]


def test_documents_may_share_a_head() -> None:
    """`action: global` gives what the following documents have in common."""
    head = {key: value for key, value in yaml.safe_load(RULE).items() if key not in ("detection", "id")}
    tails = [{"detection": {"sel": {"Image": name}, "condition": "sel"}, "id": f"{uuid}"} for name, uuid in IDS]
    text = yaml.safe_dump_all([{"action": "global", **head}, *tails])
    rules, problems = compile_rules({"a.yml": text})
    assert problems == []
    assert [compiled.id for compiled in rules.rules] == [uuid for _, uuid in IDS]


IDS = [("/a", "5a6b7c8d-0000-4000-8000-00000000000a"), ("/b", "5a6b7c8d-0000-4000-8000-00000000000b")]


def test_an_id_belongs_to_one_rule() -> None:
    """Of two rules with one id the first is used, and the second is reported."""
    rules, problems = compile_rules({"a.yml": RULE, "b.yml": RULE})
    assert [compiled.source for compiled in rules.rules] == ["a.yml"]
    assert [(problem.source, problem.reason) for problem in problems] == [
        ("b.yml", "has the id of a.yml:2, which is used")
    ]


@pytest.mark.parametrize("left_out", ["5a6b7c8d-0000-4000-8000-000000000001", "Netcat with a shell"])
def test_rules_can_be_left_out(left_out: str) -> None:
    """A rule that is too noisy for a laboratory is left out by its id or title, without a word."""
    assert compile_rules({"a.yml": RULE}, excluded=[left_out]) == (CompiledRules(), [])


def test_an_alias_bomb_is_refused() -> None:
    """YAML that would expand to billions of nodes is a problem, not an hour of work."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 12)]
    assert only_problem("title: Bomb\n" + "\n".join(lines))[1] == "invalid"


def test_every_derived_fact_and_keyword_has_a_kind() -> None:
    """The tables name kinds of events that exist, and facts that these kinds have."""
    assert set(KEYWORD_FACTS) <= set(KINDS)
    assert set(DERIVED) <= set(KINDS)
    for kind, facts in KEYWORD_FACTS.items():
        known = {each.name for each in msgspec.structs.fields(KINDS[kind])} | set(DERIVED.get(kind, ()))
        assert set(facts) <= known


def test_compiled_rules_survive_a_cache() -> None:
    """What is read back is what was written, for every form that rules take."""
    rules, problems = compile_rules(synthetic_rules(200, seed=5))
    assert problems == []
    assert len(rules.rules) == 200
    assert decode_rules(encode_rules(rules)) == rules


@pytest.mark.parametrize("data", [b"", b"\x00", b"{}", msgspec.msgpack.encode([99, [], []])])
def test_a_bad_cache_is_noticed(data: bytes) -> None:
    """Anything but rules of this version is an error, so that the caller compiles anew."""
    with pytest.raises(msgspec.DecodeError):
        decode_rules(data)


WORDS = st.sampled_from(
    [
        *("title", "id", "logsource", "detection", "condition", "selection", "category", "process_creation", "product"),
        *(
            "linux",
            "Image|endswith",
            "CommandLine|re",
            "|all",
            "correlation",
            "filter",
            "action",
            "global",
            "1 of them",
        ),
    ]
)
VALUES = st.recursive(
    st.one_of(WORDS, st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.dates()),
    lambda value: st.one_of(st.lists(value, max_size=3), st.dictionaries(WORDS, value, max_size=5)),
    max_leaves=12,
)


@settings(max_examples=150)
@given(VALUES, st.text(max_size=20))
def test_no_file_stops_the_others(document: Any, noise: str) -> None:
    """Whatever a file holds, compiling ends without an exception and the rule beside it runs."""
    rules, _ = compile_rules({"odd.yml": yaml.safe_dump(document), "noise.yml": noise, "good.yml": RULE})
    assert "5a6b7c8d-0000-4000-8000-000000000001" in {compiled.id for compiled in rules.rules}
