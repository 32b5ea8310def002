"""Events through the engine: how execs are joined, and what failing detectors and rules leave behind."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable
from typing import Any

import pytest
import yaml

from jupyter_agentwatch.detect import Draft
from jupyter_agentwatch.detect.engine import FAILED, Engine
from jupyter_agentwatch.detect.model import RULE_FAILED
from jupyter_agentwatch.detect.sigma_compile import compile_rules
from jupyter_agentwatch.detect.sigma_detector import SigmaDetector
from jupyter_agentwatch.detect.sigma_form import CompiledRules, Exists, InRange, Rule
from jupyter_agentwatch.events import AnyEvent
from jupyter_agentwatch.testing import ManualClock, event
from tests.sigma_corpus import exec_pair, random_commands, synthetic_rules


def rules(*selections: dict[str, Any], **logsource: str) -> CompiledRules:
    """Compile one rule for each selection, titled by its number."""
    texts = {
        f"{number}.yml": yaml.safe_dump(
            {
                "title": str(number),
                "logsource": logsource or {"category": "process_creation"},
                "detection": {"condition": "sel", **selection}
                if "sel" in selection
                else {"sel": selection, "condition": "sel"},
            }
        )
        for number, selection in enumerate(selections)
    }
    compiled, problems = compile_rules(texts)
    assert problems == []
    return compiled


def found(detector: SigmaDetector, events: Iterable[AnyEvent]) -> list[tuple[str, tuple[int, ...]]]:
    """Feed events; return title and evidence of each finding."""
    return [(draft.title, draft.evidence) for each in events for draft in detector.feed(each)]


class Scripted:
    """A detector that does what a test says, and remembers what it was shown."""

    def __init__(self, name: str, kinds: set[str], react: Any = lambda _: ()) -> None:
        self.name = name
        self.kinds = frozenset(kinds)
        self.react = react
        self.seen: list[str] = []

    def feed(self, shown: AnyEvent) -> Iterable[Draft]:
        """See `Detector`."""
        self.seen.append(str(shown.__struct_config__.tag))
        return self.react(shown)


def draft(title: str) -> Draft:
    """A finding."""
    return Draft(rule="test.rule", title=title, severity="low", family="policy")


def engine(*detectors: Any, **options: Any) -> Engine:
    """An engine whose clock stands still."""
    return Engine(detectors, clock=ManualClock().monotonic_ns, **options)


def test_each_detector_sees_the_kinds_that_it_wants() -> None:
    """Other events are not passed to it, and drafts come in the order of the detectors."""
    first = Scripted("first", {"exec"}, lambda _: [draft("a"), draft("b")])
    second = Scripted("second", {"exec", "dns"}, lambda _: iter([draft("c")]))
    both = engine(first, second)
    assert [each.title for each in both.feed(event("exec"))] == ["a", "b", "c"]
    assert [each.title for each in both.feed(event("dns"))] == ["c"]
    assert both.feed(event("gap")) == []
    assert (first.seen, second.seen) == (["exec"], ["exec", "dns"])


def raising(_: AnyEvent) -> Any:
    """Fail as a detector with a defect does."""
    msg = "a defect"
    raise KeyError(msg)


def raising_late(_: AnyEvent) -> Any:
    """Fail after a first draft has been given."""
    yield draft("early")
    raise RecursionError


@pytest.mark.parametrize("react", [raising, raising_late, lambda _: ["no draft"], lambda _: None])
def test_a_detector_that_fails_is_a_finding(react: Any) -> None:
    """It is disabled with one HIGH finding that names it, whatever it did, and the others go on."""
    broken, sound = Scripted("broken", {"exec"}, react), Scripted("sound", {"exec"}, lambda _: [draft("x")])
    both = engine(broken, sound)
    failure, other = both.feed(event("exec", seq=7, step=3, pid=11))
    assert (failure.rule, failure.severity, failure.family) == (FAILED, "high", "monitor")
    assert (failure.evidence, failure.step, failure.pid) == ((7,), 3, 11)
    assert "broken" in failure.title
    assert other.title == "x"
    assert [each.title for each in both.feed(event("exec"))] == ["x"]
    assert (both.disabled, len(broken.seen), len(sound.seen)) == (("broken",), 1, 2)


def test_a_detector_that_is_slow_again_and_again_is_a_finding() -> None:
    """Spending more than the limit three times disables it; what it found in time is kept."""
    clock = ManualClock()

    def slow(_: AnyEvent) -> list[Draft]:
        clock.advance(0.06)
        return [draft("x")]

    one = Engine([Scripted("slow", {"exec"}, slow), Scripted("fast", {"exec"})], clock=clock.monotonic_ns)
    titles = [[each.rule for each in one.feed(event("exec"))] for _ in range(4)]
    assert titles == [["test.rule"], ["test.rule"], ["test.rule", FAILED], []]
    assert one.disabled == ("slow",)
    one.restore()
    titles = [[each.rule for each in one.feed(event("exec"))] for _ in range(4)]
    assert titles == [["test.rule"], ["test.rule"], ["test.rule", FAILED], []]


def test_a_detector_within_its_limit_stays() -> None:
    """Time that other detectors spend is not counted."""
    clock = ManualClock()

    def busy(_: AnyEvent) -> list[Draft]:
        clock.advance(0.04)
        return []

    two = Engine([Scripted(name, {"exec"}, busy) for name in "ab"], clock=clock.monotonic_ns)
    assert [two.feed(event("exec")) for _ in range(5)] == [[]] * 5
    assert two.disabled == ()


def test_waiting_for_a_processor_is_no_slowness() -> None:
    """CPU time alone counts, which is asked for only once an event, and where the cheap clock says that it was long."""
    cpu, wall = ManualClock(), ManualClock()
    asked: list[int] = []

    def cpu_ns() -> int:
        asked.append(1)
        return cpu.monotonic_ns()

    def act(worked_s: float, waited_s: float) -> list[Draft]:
        cpu.advance(worked_s)
        wall.advance(worked_s + waited_s)
        return []

    waited_s, worked_s = 1.0, 0.01
    one = Engine(
        [Scripted("one", {"exec"}, lambda _: act(worked_s, waited_s))],
        clock=cpu_ns,
        glance=wall.monotonic_ns,
        strikes=1,
    )
    assert [one.feed(event("exec")) for _ in range(5)] == [[]] * 5
    waited_s = 0.0
    asked.clear()
    assert one.feed(event("exec")) == []
    assert len(asked) == 1
    worked_s = 0.06
    assert [each.rule for each in one.feed(event("exec"))] == [FAILED]


def test_names_are_unique_and_kinds_exist() -> None:
    """A mistake in a set of detectors is found when the engine is made."""
    with pytest.raises(ValueError, match="two detectors have the name 'a'"):
        engine(Scripted("a", set()), Scripted("a", set()))
    with pytest.raises(ValueError, match="'exce', which does not exist"):
        engine(Scripted("a", {"exce"}))
    with pytest.raises(ValueError, match="two detectors have the name 'sigma'"):
        engine(Scripted("sigma", set()), sigma_rules=CompiledRules())


def test_sigma_rules_run_beside_the_detectors() -> None:
    """The engine turns compiled rules into findings with what a person needs to decide."""
    compiled = rules({"Image|endswith": "/nc"})
    (claim, truth) = exec_pair(["/usr/bin/nc", "-l"], 4, step=2)
    (finding,) = engine(sigma_rules=compiled).feed(claim)
    assert (finding.rule, finding.title, finding.severity) == ("0", "0", "medium")
    assert (finding.evidence, finding.step, finding.pid) == ((4,), 2, 1004)
    assert engine(sigma_rules=compiled).feed(truth)[0].evidence == (5,)


def test_an_exec_is_one_match_and_not_two() -> None:
    """A rule that the claim met is not met again by the truth about the same exec."""
    assert found(SigmaDetector(rules({"Image|endswith": "/nc"})), exec_pair(["/usr/bin/nc"], 0)) == [("0", (0,))]


def test_a_link_is_matched_by_its_name_and_by_where_it_leads() -> None:
    """Rules about the name that was called and rules about the program that ran are both met."""
    by_name, by_truth = {"Image|endswith": "/nc"}, {"Image|endswith": "/nc.openbsd", "CommandLine|contains": "-l"}
    claim, truth = exec_pair(["/usr/bin/nc", "-l"], 0)
    truth = event("exec", basis="post", seq=1, step=1, pid=1000, exe="/usr/bin/nc.openbsd", claim_seq=0)
    assert found(SigmaDetector(rules(by_name, by_truth)), [claim, truth]) == [("0", (0,)), ("1", (1,))]


def test_an_exec_counts_once_in_a_correlation() -> None:
    """The name that was called and the program behind it are one exec to a rule that fits both."""
    base = {
        "title": "Listening",
        "name": "listening",
        "logsource": {"category": "process_creation"},
        "detection": {"sel": {"CommandLine|contains": "-l"}, "condition": "sel"},
    }
    many = {"type": "event_count", "rules": ["listening"], "timespan": "1m", "condition": {"gte": 2}}
    compiled, problems = compile_rules({"r.yml": yaml.safe_dump_all([base, {"title": "Many", "correlation": many}])})
    assert problems == []
    detector = SigmaDetector(compiled)
    claim = event("exec", basis="claimed", seq=0, path="/usr/bin/nc", argv=["nc", "-l"])
    truth = event("exec", basis="post", seq=1, exe="/usr/bin/nc.openbsd", claim_seq=0)
    assert found(detector, [claim, truth]) == []
    assert found(detector, [event("exec", basis="claimed", seq=2, argv=["nc", "-l"])]) == [("Many", (0, 2))]


def test_a_truth_without_a_claim_is_matched() -> None:
    """A program whose claim nobody saw is judged by what runs."""
    truth = event("exec", basis="post", seq=1, exe="/usr/bin/nc", claim_seq=-1)
    assert found(SigmaDetector(rules({"Image|endswith": "/nc"})), [truth]) == [("0", (1,))]


def test_parents_are_known_from_their_own_execs() -> None:
    """A rule about the parent waits for the record that names it, and knows its image and command line."""
    selection = {"ParentImage|endswith": "/bash", "ParentCommandLine|contains": "run.sh", "Image|endswith": "/nc"}
    shell = exec_pair(["/usr/bin/bash", "run.sh"], 0, pid=50)
    child = [
        event("exec", basis="claimed", seq=2, pid=51, path="/usr/bin/nc", argv=["nc"], step=1),
        event("exec", basis="post", seq=3, pid=51, exe="/usr/bin/nc", claim_seq=2, ppid=50, step=1),
    ]
    assert found(SigmaDetector(rules(selection)), [*shell, *child]) == [("0", (3,))]


def test_a_filter_on_the_parent_is_not_passed_over() -> None:
    """`not` the parent is decided when the parent is known, not when it is still absent."""
    detection = {
        "sel": {"Image|endswith": "/nc"},
        "no": {"ParentImage|endswith": "/bash"},
        "condition": "sel and not no",
    }
    shell = exec_pair(["/usr/bin/bash"], 0, pid=50)
    child = [
        event("exec", basis="claimed", seq=2, pid=51, path="/usr/bin/nc", argv=["nc"], step=1),
        event("exec", basis="post", seq=3, pid=51, exe="/usr/bin/nc", claim_seq=2, ppid=50, step=1),
    ]
    assert found(SigmaDetector(rules(detection)), [*shell, *child]) == []


def test_connections_know_their_program() -> None:
    """A rule about a shell that connects finds the program by the process of the connection."""
    compiled = rules({"Image|endswith": "/bash", "DestinationPort": 4444}, category="network_connection")
    detector = SigmaDetector(compiled)
    events = [*exec_pair(["/usr/bin/bash"], 0, pid=50), event("connect", seq=9, pid=50, port=4444)]
    assert found(detector, [*events, event("connect", seq=10, pid=51, port=4444, step=2)]) == [("0", (9,))]
    over = [event("exit", seq=11, pid=50), event("connect", seq=12, pid=50, port=4444, step=3)]
    assert found(detector, over) == []


@pytest.mark.parametrize(
    ("logsource", "selection", "shown"),
    [
        ({"category": "dns"}, {"query|endswith": ".example"}, event("dns", qname="a.example")),
        ({"category": "dns_query"}, {"QueryName": "A.EXAMPLE"}, event("dns", qname="a.example")),
        ({"product": "zeek", "service": "dns"}, {"query": "a.example"}, event("dns", qname="a.example")),
        ({"category": "file_event"}, {"TargetFilename": "/x/cron"}, event("file", op="openat", path="/x/cron")),
        ({"category": "file_event"}, {"TargetFilename": "/y"}, event("file", op="renameat2", path="/x", path2="/y")),
        ({"category": "file_rename"}, {"SourceFilename": "/x"}, event("file", op="rename", path="/x", path2="/y")),
        ({"category": "file_delete"}, {"TargetFilename": "/x"}, event("file", op="unlinkat", path="/x")),
        ({"category": "firewall"}, {"dst_port": 22, "action": "deny"}, event("connect", port=22, verdict="deny")),
        ({"category": "flow", "product": "agentwatch"}, {"protocol": "ssh"}, event("flow", protocol="ssh")),
        ({"category": "gap", "product": "agentwatch"}, {"lost|gt": 0}, event("gap", lost=3)),
        ({"category": "exec", "product": "agentwatch"}, {"mismatch": True}, event("exec", basis="post", mismatch=True)),
    ],
    ids=str,
)
def test_log_sources_are_our_events(logsource: dict[str, str], selection: dict[str, Any], shown: AnyEvent) -> None:
    """Rules of each log source are shown the events that stand for it, with the fields that they know."""
    assert found(SigmaDetector(rules(selection, **logsource)), [shown]) == [("0", (0,))]


@pytest.mark.parametrize(
    ("logsource", "shown"),
    [
        ({"category": "file_event"}, event("file", op="unlink", path="/x")),
        ({"category": "file_delete"}, event("file", op="openat", path="/x")),
        ({"category": "network_connection"}, event("connect", transport="unix", addr="/x")),
    ],
    ids=str,
)
def test_log_sources_are_no_other_events(logsource: dict[str, str], shown: AnyEvent) -> None:
    """A rule about files that were made does not see files that were removed, and so on."""
    assert found(SigmaDetector(rules({"ProcessId": 0}, **logsource)), [shown]) == []


def test_rules_for_auditd_read_arguments_by_position() -> None:
    """a0, a1 … are the arguments, the empty ones included."""
    compiled = rules(
        {"type": "EXECVE", "a0|endswith": "wget", "a2|startswith": "--post-file"}, product="linux", service="auditd"
    )
    hit, miss = (event("exec", basis="claimed", seq=s, argv=argv, path="/w", step=s) for s, argv in enumerate(ARGVS))
    assert found(SigmaDetector(compiled), [hit, miss]) == [("0", (0,))]


ARGVS = (["wget", "", "--post-file=x"], ["wget", "--post-file=x"])


def test_the_folder_of_a_process_is_where_its_step_began() -> None:
    """CurrentDirectory is what is known of it: the folder of the command."""
    detector = SigmaDetector(rules({"CurrentDirectory": "/project"}))
    start = event("step", op="start", cwd="/project", step=3)
    shown = [start, event("exec", basis="claimed", seq=1, step=3), event("exec", basis="claimed", seq=2, step=4)]
    assert found(detector, shown) == [("0", (1,))]


def test_repetition_does_not_flood_the_log() -> None:
    """A rule is reported once a second and step at most; a correlation still counts every match."""
    detector = SigmaDetector(rules({"Image|endswith": "/nc"}))
    execs = [
        event("exec", basis="claimed", seq=place, t_mono_ns=place * 400_000_000, path="/nc", step=1)
        for place in range(6)
    ]
    assert found(detector, execs) == [("0", (0,)), ("0", (3,))]
    assert found(detector, [event("exec", basis="claimed", seq=9, t_mono_ns=2_000_000_000, path="/nc", step=2)])


def test_a_rule_that_fails_is_named_and_the_others_run() -> None:
    """A rule that raises becomes a HIGH finding with its file and line, and is not tried again."""
    broken = Rule("b", "broken", "low", "policy", "", "", "lab/b.yml", 3, ("connect",), Exists("", wanted=True))
    sound = Rule("s", "sound", "low", "policy", "", "", "s.yml", 1, ("connect",), InRange("addr", ("192.0.2.0/24",)))
    detector = SigmaDetector(CompiledRules(rules=(broken, sound)))

    class Hostile(str):
        """A text that fails when it is looked at."""

        __slots__ = ()

        def endswith(self, *_: Any) -> bool:
            raise MemoryError

    detector._by_kind["connect"].index._tests[0] = lambda view: view.texts(Hostile("x")) == ()
    failure, match = detector.feed(event("connect", seq=4))
    assert (failure.rule, failure.severity, match.title) == (RULE_FAILED, "high", "sound")
    assert "broken" in failure.title
    assert "lab/b.yml:3" in failure.rationale
    assert [each.title for each in detector.feed(event("connect", step=1))] == ["sound"]


def test_a_slow_rule_of_a_file_goes_out_of_service_alone() -> None:
    """One that spends a hundred times its share on a text is told, high, and is back when a person lets it be."""
    stuck = ["a" * 50 + chr(98 + number % 20) + "a" * (40 + number % 9) for number in range(100)]
    slow = {"sel": {"Image|endswith": "/bash"}, "but": {"CommandLine|contains": stuck}, "condition": "sel and not but"}
    # Its texts are looked for together with those of all others, and it is not tried where none of them is there.
    idle = {"Image|endswith": "/bash", "CommandLine|contains": stuck}
    compiled = rules(idle, slow, {"Image|endswith": "/bash"})
    guarded = Engine([], compiled, clock=time.thread_time_ns, limit_ns=2_000_000, strikes=3)

    def fed(step: int) -> list[str]:
        command = ["/bin/bash", "-c", "a" * 400_000]
        shown = event("exec", basis="claimed", seq=step, step=step, path="/bin/bash", argv=command)
        return [draft.title.partition(": ")[0] for draft in guarded.feed(shown)]

    gc.disable()  # a collection in the middle of the other rule would be taken for the rule's own time
    try:
        told = [fed(0), fed(1)]
        guarded.restore()
        told.append(fed(2))
    finally:
        gc.enable()
    out = "the rule 1 is out of service"
    assert told == [["1", "2", out], ["2"], ["1", "2", out]]
    assert guarded.disabled == ()


@pytest.mark.parametrize(("spent_ms", "times", "is_out"), [(400, 2, False), (400, 3, True), (200, 9, False)])
def test_a_rule_has_three_tries(spent_ms: int, times: int, is_out: bool) -> None:
    """Three events that are over the limit, not two, and none that is within it."""
    clock = ManualClock()
    compiled = rules({"Image|endswith": "/nc"})
    guarded = Engine([], compiled, clock=clock.monotonic_ns, limit_ns=250_000_000, strikes=3)
    (detector,) = guarded._everyone
    assert isinstance(detector, SigmaDetector)

    def dawdles(_: object) -> bool:
        clock.advance(spent_ms / 1000)
        return False

    detector._by_kind["exec"].index._tests[0] = dawdles
    told = [
        draft.rule
        for place in range(times)
        for one in exec_pair(["/nc", str(place)], 2 * place)
        for draft in guarded.feed(one)
    ]
    assert told == ([RULE_FAILED] if is_out else [])
    assert (detector._by_kind["exec"].index._tests == [None]) == is_out


def test_what_is_remembered_of_a_command_is_what_a_look_would_give() -> None:
    """The same commands again, in other steps, folders and under other parents, give what fresh rules give."""
    compiled, _ = compile_rules(synthetic_rules(30, seed=4))
    commands = random_commands(25, seed=3) * 2
    detector = SigmaDetector(compiled)
    told = 0
    for place, command in enumerate(commands):
        begin = event("step", op="start", step=place, argv=command, cwd=("/w", "/tmp")[place % 2])
        events = [begin, *exec_pair(command, 2 * place, step=place)]
        fresh = SigmaDetector(compiled)
        fresh._programs.update(detector._programs)
        expected = found(fresh, events)
        assert found(detector, events) == expected
        told += len(expected)
    assert told > 10
    assert any(each._known for each in detector._by_kind.values())


def test_a_rule_about_more_than_the_command_is_asked_each_time() -> None:
    """What a rule says of the step or of the process id is not kept for the same command in another one."""
    detector = SigmaDetector(rules({"Image|endswith": "/nc", "ProcessId": 8}))
    first, second = (
        [event("exec", basis="claimed", seq=pid, step=pid, pid=pid, path="/nc", argv=["/nc"])] for pid in (7, 8)
    )
    assert found(detector, first) == []
    assert found(detector, second) == [("0", (8,))]


def test_what_is_remembered_is_bounded() -> None:
    """However many processes and steps there are, the tables do not grow without end."""
    detector = SigmaDetector(rules({"Image|endswith": "/nc"}))
    for place in range(9000):
        found(detector, exec_pair(["/nc"], place * 2, step=place))
        found(detector, [event("exec", basis="claimed", seq=10**6 + place, path="/x")])
        found(detector, [event("exec", basis="claimed", seq=10**7 + place, path="/y", argv=[str(place)])])
    tables = (detector._claims, detector._programs, detector._reported)
    assert [len(table) for table in tables] == [8192] * 3
    assert len(detector._by_kind["exec"]._known) == 1024


def test_the_same_record_gives_the_same_findings() -> None:
    """Two engines that are fed the same events agree in every draft and their order."""
    compiled, _ = compile_rules(synthetic_rules(60, seed=2))
    events = [
        each for n, command in enumerate(random_commands(150, seed=9)) for each in exec_pair(command, n * 2, step=n)
    ]
    first, second = (
        [draft for each in events for draft in one.feed(each)]
        for one in (engine(sigma_rules=compiled), engine(sigma_rules=compiled))
    )
    assert len(first) > 20
    assert first == second
