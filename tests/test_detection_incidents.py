"""Incidents put together from logs that are written out by hand, and what people are shown of them."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from jupyter_agentwatch.cli.incident_text import incident_lines
from jupyter_agentwatch.detect.sigma_form import Problem
from jupyter_agentwatch.server.incidents import recent_incidents
from jupyter_agentwatch.testing import event
from jupyter_agentwatch.watch.incidents import find_incidents
from jupyter_agentwatch.watch.report import make_report
from jupyter_agentwatch.watch.rules import _parser_version, compile_files, problem_notes
from tests.incident_logs import SECOND, a_finding, a_log, a_story, an_exec
from tests.strategies import WATCH


def test_findings_of_a_step_and_family_are_one_incident(tmp_path: Path) -> None:
    """Both findings, the worst one's title, what they rest on, from the first record to the freeze."""
    (incident,) = find_incidents(a_story(tmp_path))
    assert (incident.watch, incident.step, incident.cell, incident.command) == (WATCH, 3, "c1", ("sh", "-c", "mine"))
    assert (incident.severity, incident.title) == ("critical", "spoke to a pool")
    assert incident.shape == "mining: mining.one, mining.two"
    assert [each.seq for each in incident.findings] == [5, 12]
    assert [each.seq for each in incident.evidence] == [4, 7]
    assert (incident.began_wall_ns, incident.ended_wall_ns) == (4 * SECOND, 13 * SECOND)
    assert incident.duration_s == 9.0
    assert [move.seq for move in incident.breaker] == [13]


def test_an_incident_knows_whose_child_it_is(tmp_path: Path) -> None:
    """The process comes first, then its parents as far as their execs are on record."""
    (incident,) = find_incidents(a_story(tmp_path))
    assert [(each.pid, each.exe) for each in incident.ancestry] == [(12, "/project/worker"), (11, "/bin/sh")]


def test_a_number_that_went_to_another_process_tells_of_the_one_before(tmp_path: Path) -> None:
    """What runs under the number later is not taken for what the finding was about."""
    log = a_log(tmp_path, an_exec(12, 1, "/bin/first"), a_finding(1), an_exec(12, 1, "/bin/second"))
    assert [each.exe for each in find_incidents(log)[0].ancestry] == ["/bin/first"]


def test_a_process_without_an_exec_of_its_own_is_taken_from_the_trip(tmp_path: Path) -> None:
    """Where the program never ran, the tree that the breaker kept says who asked for it."""
    processes = ["12 11 /bin/sh sh -c mine", "11 1 /bin/bash bash", "broken", "13 x /bin/odd"]
    log = a_log(tmp_path, a_finding(severity="critical"), event("breaker", evidence=[1], processes=processes))
    assert [each.pid for each in find_incidents(log)[0].ancestry] == [12, 11]


def test_an_incident_costs_what_its_step_used_since(tmp_path: Path) -> None:
    """Only the same step's use, only from the first sign on, at the policy's prices."""
    cost = find_incidents(a_story(tmp_path))[0].cost
    assert (cost.cpu_s, cost.gpu_s, cost.bytes_out) == (2.0, 1.5, 1000)
    assert cost.money == pytest.approx(2.0 + 3.0 + 1.0)


def test_an_incident_names_the_agents_turn_and_its_action(tmp_path: Path) -> None:
    """The step says which turn of which run asked for it, and what was noted of that turn comes with it."""
    note = {"op": "turn", "run": "r1", "action": "shell"}
    log = a_log(
        tmp_path,
        event("step", op="start", step=3, argv=["mine"], run="r1", turn=2),
        event("agent", **note, step=2, turn=1, thought="not this one"),
        a_finding(1, severity="critical"),
        event("breaker", evidence=[3], step=3, after="frozen", last_bytes=["192.0.2.1:1 out 'login' in ''"]),
        event("agent", **note, step=3, turn=2, text="mine", thought="it pays"),
    )
    (incident,) = find_incidents(log)
    assert (incident.run, incident.turn) == ("r1", 2)
    assert incident.action is not None
    assert (incident.action.text, incident.action.thought) == ("mine", "it pays")
    told = "\n".join(incident_lines([incident]))
    assert "agent: turn 2 of run r1: shell it pays" in told
    assert "last bytes: 192.0.2.1:1 out 'login' in ''" in told
    page = make_report(log).markdown
    assert "it pays" in page
    assert "Last bytes of connections" in page
    (shown,) = recent_incidents(log)
    assert (shown["turn"], shown["thought"], len(shown["last_bytes"])) == (2, "it pays", 1)


def test_an_incident_without_an_agent_says_so(tmp_path: Path) -> None:
    """What a person ran has no turn and no action."""
    (incident,) = find_incidents(a_story(tmp_path))
    assert (incident.run, incident.turn, incident.action) == ("", 0, None)


def test_what_was_prevented_is_told_once(tmp_path: Path) -> None:
    """Denied connects and flows, and programs that did not run, each in words and once."""
    denied = event("connect", step=3, verdict="deny", addr="10.0.0.1", port=22, rule="no-rule")
    log = a_log(
        tmp_path,
        event("exec", basis="claimed", step=3, pid=12, path="/w", argv=["./worker", "-o", "x"]),
        a_finding(1),
        event("exec", basis="claimed", step=3, pid=12, claim_seq=1, unconfirmed="held"),
        denied,
        denied,
        event(
            "flow", step=3, op="named", verdict="deny", protocol="stratum", addr="192.0.2.1", port=3333, rule="mining"
        ),
    )
    assert find_incidents(log)[0].prevented == (
        "held before it ran: ./worker -o x",
        "connect to 10.0.0.1:22 denied [no-rule]",
        "stratum to 192.0.2.1:3333 denied [mining], no byte of it passed",
    )


def test_small_findings_alone_are_no_incident(tmp_path: Path) -> None:
    """Below medium there is none; other steps and families are others."""
    low, other = a_finding(severity="low"), a_finding(family="tunnel", step=3)
    log = a_log(tmp_path, low, other, a_finding(step=4), a_finding(step=4, severity="low"))
    assert [(each.family, each.step, len(each.findings)) for each in find_incidents(log)] == [
        ("tunnel", 3, 1),
        ("mining", 4, 2),
    ]
    (tmp_path / "log.jsonl").unlink()
    assert find_incidents(a_log(tmp_path, low)) == []


def test_hostile_words_are_made_safe(tmp_path: Path) -> None:
    """Titles, arguments and names that hold control characters are shown without them."""
    evil = "\x1b]0;owned\x07\u202e<img>"
    log = a_log(
        tmp_path,
        event("step", op="start", step=3, argv=[evil]),
        an_exec(12, 1, evil),
        a_finding(2, title=evil, rule=evil, cell=evil),
        event("connect", step=3, verdict="deny", addr="10.0.0.1", host=evil, port=1),
    )
    lines = incident_lines(find_incidents(log))
    assert len(lines) >= 6
    assert all(line.isprintable() for line in lines)
    assert incident_lines(find_incidents(log), "critical") == []


def test_rules_that_do_not_run_are_named(tmp_path: Path) -> None:
    """Each rule that cannot run is a line with its place; those about other systems' logs are only counted."""
    problems = [Problem("a.yml", 7, "One", "needs a field"), Problem("b.yml", 1, "Two", "Windows", "source")]
    assert problem_notes(problems) == [
        "not in use: a.yml:7: One: needs a field",
        "1 rule is about a log that is not kept here",
    ]
    many = [Problem("a.yml", line, "One", "no", "invalid") for line in range(30)]
    assert len(problem_notes(many)) == 11
    assert problem_notes([]) == []


def test_a_folder_of_rules_is_read_in_one_order(tmp_path: Path) -> None:
    """Every file of a folder counts, others do not; a change of a file or of what is disabled is another result."""
    folder, cache = tmp_path / "rules", tmp_path / "cache"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.yml", "deep/a.yaml", "ignored.txt"):
        (folder / name).write_text("title: [broken\n")
    first = compile_files([folder], cache=cache)
    assert [Path(each.source).name for each in first.problems] == ["b.yml", "a.yaml"]
    assert compile_files([folder], cache=cache) == first
    assert len(list(cache.iterdir())) == 1
    compile_files([folder], ["x"], cache=cache)
    (folder / "b.yml").write_text("title: [broken again\n")
    compile_files([folder], cache=cache)
    assert len(list(cache.iterdir())) == 3


def test_files_of_rules_are_read_whole_and_in_the_order_of_their_paths(tmp_path: Path) -> None:
    """A folder's files come before those of a longer name, links to files count, and long files are read whole."""
    for name in ("b/z.yml", "b-a/y.yml", "b/c/x.yaml", "a.yml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("title: [broken\n")
    (tmp_path / "b" / "l.yml").symlink_to(tmp_path / "a.yml")
    (tmp_path / "b" / "c" / "x.yaml").write_text(f"# {'x' * 70_000}\ntitle: [broken\n")
    problems = compile_files([tmp_path]).problems
    expected = sorted(each for each in tmp_path.rglob("*") if each.is_file())
    assert [each.source for each in problems] == [str(each) for each in expected]
    assert [each.line for each in problems if each.source.endswith("x.yaml")] == [3]


def test_the_parsers_version_is_what_is_installed() -> None:
    """The short way to it, by which a cache is kept, says the same as the library for it."""
    assert _parser_version() == version("pysigma")
