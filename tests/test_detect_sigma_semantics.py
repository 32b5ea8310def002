"""What each part of the Sigma language means, on the events of a watch."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import re2  # type: ignore[import-untyped]
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jupyter_agentwatch.detect import search
from jupyter_agentwatch.detect.search import PatternSet
from jupyter_agentwatch.detect.sigma_compile import compile_rules
from jupyter_agentwatch.detect.sigma_detector import SigmaDetector
from jupyter_agentwatch.detect.sigma_evaluate import PatternBanks, compiled
from jupyter_agentwatch.detect.sigma_form import AllOf, AnyOf, Node, Not, Pattern, Text
from jupyter_agentwatch.detect.sigma_index import Index
from jupyter_agentwatch.detect.sigma_view import View
from jupyter_agentwatch.testing import event

Detection = dict[str, Any]


def detector(detection: Detection, **logsource: str) -> SigmaDetector:
    """Return a detector of one rule, which has to compile."""
    rule = {
        "title": "A rule",
        "logsource": logsource or {"category": "process_creation", "product": "linux"},
        "detection": {"condition": "sel", **detection},
    }
    rules, problems = compile_rules({"rule.yml": yaml.safe_dump(rule)})
    assert problems == []
    return SigmaDetector(rules)


def met_by(detection: Detection, command: str, image: str = "/usr/bin/tool") -> bool:
    """Whether a rule about processes matches a program with this command line."""
    claim = event("exec", basis="claimed", path=image, argv=[command])
    return bool(list(detector(detection).feed(claim)))


def cli(modifiers: str, value: Any) -> Detection:
    """A rule about the command line alone."""
    return {"sel": {f"CommandLine{modifiers}": value}}


UTF16 = base64.b64encode("sh -c id".encode("utf-16le")).decode()
PLAIN = base64.b64encode(b"sh -c id").decode()
UTF16BE = base64.b64encode("sh -c id".encode("utf-16be")).decode()
BOM = base64.b64encode(b"\xff\xfe" + "sh -c id".encode("utf-16le")).decode()
SHIFTED = [base64.b64encode(b"x" * shift + b"/bin/bash -i" + b"yyy").decode() for shift in range(3)]

MEANINGS: dict[str, tuple[Detection, list[str], list[str]]] = {
    "a plain value is the whole text": (cli("", "ls -l"), ["ls -l"], ["ls -la", " ls -l", "ls -l\n", ""]),
    "case does not matter": (cli("", "LS É"), ["ls é", "Ls É"], ["ls e"]),
    "cased: case matters": (cli("|cased", "Ls"), ["Ls"], ["ls", "LS"]),
    "contains and cased": (cli("|contains|cased", "Ls"), ["a Ls b"], ["a ls b"]),
    "a list is any of its values": (cli("", ["a", "b"]), ["a", "b"], ["ab", "c"]),
    "contains": (cli("|contains", "nc -e"), ["nc -e", "x NC -E y"], ["nc  -e"]),
    "startswith": (cli("|startswith", "nc "), ["nc -e", "NC x"], [" nc -e", "nc"]),
    "endswith": (cli("|endswith", ".sh"), ["a.sh", ".SH"], ["a.sh\n", "a.sh x"]),
    "all: each value, in any order": (cli("|contains|all", ["-e", "sh"]), ["sh -e", "-e sh"], ["-e", "sh"]),
    "* is any run of characters, also none, also lines": (cli("", "a*z"), ["az", "a b\nz"], ["az ", "xaz"]),
    "? is one character": (cli("", "a?z"), ["abz", "a\nz"], ["az", "abbz"]),
    "a wildcard inside contains": (cli("|contains", "a*?b"), ["..axb..", "axxb"], ["ab"]),
    r"\* is a star": (cli("", r"a\*z"), ["a*z"], ["abz", r"a\*z"]),
    r"\? is a question mark": (cli("|contains", r"x\?y"), ["x?y"], ["xzy"]),
    r"\\* is a backslash and a wildcard": (cli("", r"a\\*"), ["a\\", "a\\b"], ["a*", "ab"]),
    r"\ before anything else is a backslash": (cli("|contains", r"\d.+"), [r"\d.+"], ["1.+", r"\dxx"]),
    "metacharacters of expressions are plain": (cli("|contains", "(a|b)[c]$^.+{2}"), ["(A|b)[c]$^.+{2}"], ["a"]),
    "* alone asks for some value": (cli("", "*"), ["x"], [""]),
    "an empty text": (cli("", ""), [""], ["x"]),
    "null: absent or empty": (cli("", None), [""], ["x"]),
    "null in a list": (cli("", ["a", None]), ["", "a"], ["b"]),
    "exists": (cli("|exists", value=True), ["x"], [""]),
    "does not exist": (cli("|exists", value=False), [""], ["x"]),
    "re is searched for, and its case matters": (cli("|re", r"\s-[FTd]\s"), ["a -F b"], ["a -f b", "-F b"]),
    "re: ^ and $ are the ends of the text": (cli("|re", "^a.c$"), ["abc", "abc\n"], ["xabc", "abc\nx", "a\nc"]),
    "re|i": (cli("|re|i", "^AB"), ["abc"], ["xab"]),
    "re|m: the ends of each line": (cli("|re|m", "^b$"), ["a\nb\nc"], ["ab"]),
    "re|s: . is a line feed, too": (cli("|re|s", "a.b"), ["a\nb"], ["ab"]),
    "re with several values": (cli("|re", ["a{2}", "b{2}"]), ["aa", "bb"], ["ab"]),
    "re and all": (cli("|re|all", ["a+", "b+"]), ["ab"], ["a", "b"]),
    "neq": (cli("|neq", "ls"), ["cat", ""], ["ls", "LS"]),
    "a number is compared as text": (cli("", 22), ["22"], ["222", "22.0"]),
    "windash": (
        cli("|windash|contains", " -e "),
        ["x -e y", "x /e y", "x \u2013e y", "x \u2014e y", "x \u2015e y"],
        ["x e y"],
    ),
    "windash and all": (cli("|contains|all|windash", [" -e ", " -x "]), [" /e  -x "], [" -e "]),
    "base64": (cli("|base64|contains", "/bin/bash -i"), ["echo L2Jpbi9iYXNoIC1p"], ["echo /bin/bash -i"]),
    "base64offset finds each shift": (cli("|base64offset|contains", "/bin/bash -i"), SHIFTED, ["L2Jpb"]),
    "wide is UTF-16 little-endian": (cli("|wide|base64offset|contains", "sh -c id"), [UTF16, BOM], [PLAIN]),
    "utf16be": (cli("|utf16be|base64offset|contains", "sh -c id"), [UTF16BE], [UTF16]),
    "utf16 has a byte order mark": (cli("|utf16|base64|contains", "sh -c id"), [BOM], [UTF16]),
    "fields of a map are joined by and": (
        {"sel": {"CommandLine|contains": "a", "Image|endswith": "/tool"}},
        ["a"],
        ["b"],
    ),
    "maps of a list are joined by or": (
        {"sel": [{"CommandLine": "a", "Image|endswith": "/tool"}, {"CommandLine": "b"}, {"Image": "/none"}]},
        ["a", "b"],
        ["c"],
    ),
    "keywords are looked for everywhere": ({"sel": ["N?w", "/bin/TOOL"]}, ["x"], []),
    "keywords": ({"sel": ["one*two", 77]}, ["a one x two b", "1771"], ["two one", "7 7"]),
    "keywords and all": ({"sel": {"|all": ["one", "two"]}}, ["two one"], ["one", "two"]),
    "keywords as expressions": ({"sel": {"|re": "o[n]e$"}}, ["an one"], ["one x"]),
}


@pytest.mark.parametrize("name", MEANINGS)
def test_a_selection_means_what_the_specification_says(name: str) -> None:
    """Each value form and modifier matches exactly the texts that it should."""
    detection, matching, others = MEANINGS[name]
    assert [text for text in matching if not met_by(detection, text)] == []
    assert [text for text in others if met_by(detection, text)] == []


A, B, C = ({"CommandLine|contains": letter} for letter in "abc")


@pytest.mark.parametrize(
    ("condition", "matching", "others"),
    [
        ("sel_a and sel_b", ["ab"], ["a", "b"]),
        ("sel_a or sel_b and sel_c", ["a", "bc"], ["b", "c"]),
        ("(sel_a or sel_b) and sel_c", ["ac", "bc"], ["a", "bx"]),
        ("not sel_a and sel_b", ["b"], ["ab", "x"]),
        ("not (sel_a and sel_b)", ["a", "b", "x"], ["ab"]),
        ("not not sel_a", ["a"], ["b"]),
        ("sel_a AND NOT sel_b", None, None),
        ("1 of sel_*", ["a", "b", "c"], ["x"]),
        ("any of sel_*", ["a", "b", "c"], ["x"]),
        ("all of sel_*", ["abc"], ["ab", "bc"]),
        ("1 of them", ["a", "c"], ["x"]),
        ("all of them", ["abc"], ["ab"]),
        ("sel_a and not 1 of sel_b*", ["ac"], ["ab", "c"]),
        (["sel_a", "sel_b and sel_c"], ["a", "bc"], ["b", "x"]),
    ],
    ids=str,
)
def test_conditions_bind_as_in_the_specification(
    condition: str | list[str], matching: list[str] | None, others: list[str] | None
) -> None:
    """`not` binds before `and`, `and` before `or`; selectors count; a list of conditions is any of them."""
    detection = {"sel_a": A, "sel_b": B, "sel_c": C, "condition": condition}
    if matching is None or others is None:  # operators are lower case
        rule = {"title": "A rule", "logsource": {"category": "process_creation"}, "detection": detection}
        assert compile_rules({"rule.yml": yaml.safe_dump(rule)})[1]
        return
    assert [text for text in matching if not met_by(detection, text)] == []
    assert [text for text in others if met_by(detection, text)] == []


@pytest.mark.parametrize(
    ("selection", "matching", "others"),
    [
        ({"DestinationIp|cidr": "10.0.0.0/8"}, ["10.9.8.7", "::ffff:10.0.0.1"], ["11.0.0.1", "not an address", ""]),
        ({"DestinationIp|cidr": ["::1/128", "fe80::/10"]}, ["::1", "fe80::1", "fe80::1%eth0"], ["::2", "1.1.1.1"]),
        ({"DestinationIp|cidr": ["10.0.0.0/8", "192.168.0.0/16"]}, ["192.168.1.1"], ["192.169.1.1"]),
        ({"Initiated": "true", "DestinationIp": "192.0.2.1"}, ["192.0.2.1"], ["192.0.2.2"]),
        ({"Initiated": True}, ["192.0.2.1"], []),
        ({"DestinationIsIpv6": True}, ["2001:db8::1"], ["192.0.2.1"]),
    ],
    ids=str,
)
def test_addresses_are_compared_as_addresses(selection: Detection, matching: list[str], others: list[str]) -> None:
    """Ranges work for both families, IPv4 inside IPv6 included, and an address that is none is in no range."""
    rule = detector({"sel": selection}, category="network_connection", product="linux")
    assert [a for a in matching if not list(rule.feed(event("connect", addr=a, step=hash(a))))] == []
    assert [a for a in others if list(rule.feed(event("connect", addr=a, step=hash(a))))] == []


@pytest.mark.parametrize(
    ("modifier", "number", "matching"),
    [
        ("lt", 443, [22]),
        ("lte", 443, [22, 443]),
        ("gt", 443, [8443]),
        ("gte", 443, [443, 8443]),
        ("neq", 443, [22, 8443]),
    ],
)
def test_numbers_are_compared_as_numbers(modifier: str, number: int, matching: list[int]) -> None:
    """lt, lte, gt, gte and neq compare by value: 8443 is more than 443, and 22 is less."""
    rule = detector({"sel": {f"DestinationPort|{modifier}": number}}, category="network_connection", product="linux")
    ports = [22, 443, 8443]
    assert [p for p in ports if list(rule.feed(event("connect", port=p, step=p)))] == matching


@pytest.mark.parametrize("text", ["", "x", "nan", "inf", "-inf", "1e999", "٣", "1_0"])
def test_what_is_no_number_is_neither_more_nor_less(text: str) -> None:
    """A text that the agent chose cannot pass for a number that is in every range."""
    low = detector({"sel": {"addr|lt": 1}}, category="connect", product="agentwatch")
    high = detector({"sel": {"addr|gt": 1000}}, category="connect", product="agentwatch")
    assert [list(each.feed(event("connect", addr=text))) for each in (low, high)] == [[], []]


@pytest.mark.parametrize(
    ("modifiers", "matching", "others"),
    [
        ("|fieldref", [("a", "A")], [("a", "b"), ("", "")]),
        ("|fieldref|startswith", [("abc", "ab")], [("ab", "abc")]),
        ("|fieldref|endswith", [("abc", "BC")], [("abc", "ab")]),
        ("|fieldref|contains", [("abcd", "bc")], [("abcd", "x")]),
    ],
)
def test_fields_are_compared_with_each_other(
    modifiers: str, matching: list[tuple[str, str]], others: list[tuple[str, str]]
) -> None:
    """A field reference compares two fields of one event; absent fields are not equal."""
    rule = detector({"sel": {f"server_name{modifiers}": "host"}}, category="flow", product="agentwatch")

    def met(pair: tuple[str, str]) -> bool:
        return bool(list(rule.feed(event("flow", server_name=pair[0], host=pair[1], step=hash(pair)))))

    assert [pair for pair in matching if not met(pair)] == []
    assert [pair for pair in others if met(pair)] == []


def test_any_item_of_a_list_may_match() -> None:
    """A field with several values, such as the answers to a query, matches by any of them."""
    rule = detector({"sel": {"answer": "192.0.2.7"}}, category="dns")
    assert list(rule.feed(event("dns", answers=["192.0.2.1", "192.0.2.7"])))
    assert not list(rule.feed(event("dns", answers=["192.0.2.17"], step=2)))


def test_an_expression_costs_linear_time() -> None:
    """An expression that makes a backtracking engine stall for ages is answered like any other."""
    detection = cli("|re", "(a+)+(b+)+$")
    assert not met_by(detection, "a" * 50_000 + "!")
    assert met_by(detection, "a" * 50_000 + "b")


@pytest.mark.parametrize("text", ["\x00", "\udcff", "a\udcffb", "é" * 5000, "\n", "İ", "\ufeff"])
def test_no_text_stops_a_rule(text: str) -> None:
    """Whatever bytes an agent puts around it, what the rule looks for is found."""
    everything = {"sel": {"CommandLine|contains": "needle"}, "re": {"CommandLine|re": "ne+dle"}, "key": ["needle"]}
    assert met_by({**everything, "condition": "all of them"}, f"{text}needle{text}")


LETTERS = st.text("aB/ *\n", max_size=6)
FACTS = st.sampled_from(["image", "command_line", "user"])
LEAVES = st.one_of(
    st.builds(
        Text,
        FACTS,
        st.sampled_from(["equals", "contains", "startswith", "endswith"]),
        st.lists(LETTERS.map(str.lower), min_size=1, max_size=3).map(tuple),
    ),
    st.builds(Pattern, FACTS, st.sampled_from(["a+b", "^/", "b$", "(?i)A/"])),
)
NODES = st.recursive(
    LEAVES,
    lambda node: st.one_of(
        st.builds(Not, node),
        st.builds(AnyOf, st.lists(node, min_size=1, max_size=3).map(tuple)),
        st.builds(AllOf, st.lists(node, min_size=1, max_size=4).map(tuple)),
        st.lists(node, min_size=1, max_size=3).map(lambda parts: Not(AnyOf(tuple(map(Not, parts))))),
    ),
    max_leaves=6,
)


@given(st.lists(NODES, min_size=1, max_size=5), LETTERS, LETTERS)
def test_the_index_never_hides_a_match(nodes: list[Node], image: str, command: str) -> None:
    """Rules found through the index are exactly those that match when each is tried."""
    facts = {"image": image, "command_line": command, "user": "ada"}
    banks = PatternBanks()
    tests = [compiled(node, banks) for node in nodes]
    banks.freeze()
    each = [number for number, test in enumerate(tests) if test(View(event("exec"), facts))]
    assert Index(nodes, "exec").matches(View(event("exec"), facts)) == each


def test_a_rule_about_a_program_and_a_text_is_tried_where_both_are() -> None:
    """The name of a shell alone would have each command shown to every rule about shells."""
    rule = AllOf((Text("image", "endswith", ("/bash",)), AllOf((Text("command_line", "contains", ("/dev/tcp/",)),))))
    index = Index([rule, Text("image", "endswith", ("/bash",))], "exec")

    def tried(image: str, command: str) -> list[int]:
        return [number for number, _ in index.tests(View(event("exec"), {"image": image, "command_line": command}))]

    assert tried("/bin/bash", "bash -c ls") == [1]
    assert tried("/bin/bash", "bash -c 'cat </DEV/TCP/h/1'") == [0, 1]
    assert tried("/bin/cat", "cat /dev/tcp/h/1") == []


class Starved:
    """A set of RE2 that runs out of memory at each text: it reports nothing at all, not even the empty pattern."""

    def Add(self, _: bytes) -> int:  # noqa: N802 - RE2's names
        """Take a pattern."""
        return 0

    def Compile(self) -> None:  # noqa: N802
        """Succeed, as RE2 does: the memory is needed when texts come."""

    def Match(self, _: bytes) -> list[int]:  # noqa: N802
        """Find nothing."""
        return []


@pytest.mark.parametrize("where", ["at once", "later"])
def test_without_memory_rules_are_slow_and_not_blind(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Where RE2 cannot take all patterns together, each is tried alone, and every match is still found."""
    if where == "at once":
        monkeypatch.setattr(search, "_MEMORY_BYTES", 2000)
        assert PatternSet(["needle" * 50]).find("needle" * 50) is None
    else:
        monkeypatch.setattr(re2.Set, "SearchSet", lambda _: Starved())
    nodes: list[Node] = [
        Text("user", "contains", ("needle",)),
        Pattern("user", "ne+dle$"),
        Text("user", "contains", ("other",)),
    ]
    index = Index(nodes, "exec")
    assert index.matches(View(event("exec"), {"user": "a needle"})) == [0, 1]
