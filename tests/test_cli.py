"""The command line against real logs, real sockets and real processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from jupyter_agentwatch.audit.chain import FORMAT
from jupyter_agentwatch.audit.log import AuditLog
from jupyter_agentwatch.cli import main
from jupyter_agentwatch.cli.parser import OWN_FAILURE, build_parser
from jupyter_agentwatch.events import Session
from jupyter_agentwatch.policy import Policy, parse_policy
from jupyter_agentwatch.testing import FakeSupervisor, event
from jupyter_agentwatch.wire.force import supervisors_of
from jupyter_agentwatch.wire.messages import Ack, Answer, Kill, Killed, Resume, Suspend
from tests.outside import IDLE, LONG_S, stop

ROOT = Path(__file__).parent.parent
HOSTILE = "\x1b]0;owned\x07\u202ex"
SUBCOMMANDS = ["run", "list", "kill", "suspend", "resume", "answer", "tail", "verify", "doctor", "policy"]
SILENT = """
import socket, subprocess, sys
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen(1)
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)  # ends with us: nobody else holds its input
print(child.pid, flush=True)
sys.stdin.read()
"""


def open_log(path: Path, watch: str) -> AuditLog:
    """Begin a log as a supervisor does."""
    fields = {"workspace": "/project", "t_wall_ns": 1_700_000_000 * 10**9}
    opening = event("session", op="open", format=FORMAT, watch=watch, **fields)
    assert isinstance(opening, Session)
    return AuditLog.create(path, opening)


class Home:
    """Runtime and log folders of one test, so that `kill --all` means this test's watches."""

    def __init__(self, base: Path) -> None:
        self.run, self.log = base / "run", base / "log"
        for folder in (self.run, self.log):
            folder.mkdir(mode=0o700)

    def socket(self, watch: str) -> Path:
        return self.run / f"{watch}.sock"

    def make_log(self, watch: str, *events: Any, close: bool = True) -> Path:
        path = self.log / f"{watch}.jsonl"
        log = open_log(path, watch)
        ending = [("session", {"op": "close", "reason": "done"})] if close else []
        for kind, fields in [*events, *ending]:
            log.append(event(kind, seq=log.next_seq, watch=watch, **fields))
        log.sync()
        log.close()
        return path


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """Folders with short paths: a socket's path may have 107 bytes."""
    base = Path(tempfile.mkdtemp(prefix="awc-", dir="/tmp"))
    made = Home(base)
    monkeypatch.setenv("AGENTWATCH_RUNTIME_DIR", str(made.run))
    monkeypatch.setenv("AGENTWATCH_LOG_DIR", str(made.log))
    yield made
    shutil.rmtree(base)


def spawn(*argv: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start the command line as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "jupyter_agentwatch.cli", *argv]
    return subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def silent_supervisor(path: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start a process that looks like our supervisor, listens and never answers; return it and its child's id."""
    argv = [sys.executable, "-c", SILENT, str(path), "-m", "jupyter_agentwatch.supervisor"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours and close what leads to it."""
    process.kill()
    process.communicate()


# --- Grammar.


@pytest.mark.parametrize("command", [*SUBCOMMANDS, "policy check", "policy suggest"])
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` of every subcommand exits with 0 and shows how it is used."""
    assert main([*command.split(), "--help"]) == 0
    assert f"jupyter agentwatch {command.partition(' ')[0]}" in capsys.readouterr().out.partition("example")[2]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` tells the package's version."""
    from jupyter_agentwatch import __version__

    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["frobnicate"],
        ["run"],
        ["run", "--"],
        ["run", "--timeout", "0", "--", "true"],
        ["run", "--timeout", "nan", "--", "true"],
        ["kill", "3f", "--all"],
        ["answer", "3f", "1", "perhaps"],
        ["tail", "-n", "-1"],
        ["policy", "suggest", "x", "--pick", "1,b"],
    ],
    ids=" ".join,
)
def test_a_usage_error_is_our_own_failure(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake in the arguments gives 125, the usage and a reason: 2 could be a command's own code."""
    assert main(argv) == OWN_FAILURE
    said = capsys.readouterr().err
    assert "usage: jupyter agentwatch" in said
    assert "agentwatch: " in said


def test_an_unknown_option_is_told_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped option of a subcommand gets that subcommand's usage and the option that was meant."""
    assert main(["run", "--polcy", "x", "--", "true"]) == OWN_FAILURE
    said = capsys.readouterr().err
    assert "usage: jupyter agentwatch run [--policy F]" in said
    assert "unrecognized arguments: --polcy; did you mean --policy?" in said


def test_everything_after_the_mark_belongs_to_the_command() -> None:
    """Options after `--` are the command's, also where they look like ours."""
    options = build_parser().parse_args(["run", "--timeout", "2", "--", "prog", "--quiet", "--", "--help"])
    assert options.argv == ["--", "prog", "--quiet", "--", "--help"]
    assert (options.timeout, options.quiet) == (2.0, False)


# --- Policies.


def test_policy_show_prints_a_policy_that_can_be_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    """What `policy show` prints is the default policy, complete."""
    assert main(["policy", "show"]) == 0
    shown = capsys.readouterr().out
    assert parse_policy(shown) == Policy()
    assert "output_bytes" in shown


def test_policy_check_names_file_line_and_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A malformed policy gives 125 and says where; a good one gives 0 and its digest."""
    file = tmp_path / "p.yaml"
    file.write_text("version: 1\nnetwork:\n  ruels: []\n")
    assert main(["policy", "check", str(file)]) == OWN_FAILURE
    assert re.search(r"p\.yaml:3: network\.ruels: .*rules", capsys.readouterr().err)
    file.write_text("version: 1\n")
    assert main(["policy", "check", str(file)]) == 0
    assert re.search(r"sha256 [0-9a-f]{64}", capsys.readouterr().out)


@pytest.mark.parametrize("content", [None, b"\xff"], ids=["missing", "not text"])
def test_a_policy_that_cannot_be_read_is_named(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A policy file that is missing or no text is an error of one line that names it."""
    file = tmp_path / "p.yaml"
    if content is not None:
        file.write_bytes(content)
    assert main(["run", "--policy", str(file), "--", "true"]) == OWN_FAILURE
    said = capsys.readouterr().err
    assert str(file) in said
    assert said.count("\n") == 1


@pytest.fixture
def denials(home: Home) -> Path:
    """A log with two destinations that were denied."""
    return home.make_log(
        "0a0a0a0a",
        ("dns", {"verdict": "deny", "qname": "api.example.org", "rcode": "REFUSED", "rule": "no-rule"}),
        ("connect", {"verdict": "deny", "addr": "198.51.100.9", "rule": "no-rule", "port": 22}),
    )


def test_policy_suggest_shows_candidates_with_their_evidence(denials: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a pick nothing is allowed yet: candidates and records stand in comments before the log's policy."""
    assert main(["policy", "suggest", str(denials)]) == 0
    shown = capsys.readouterr().out
    comments = [line for line in shown.splitlines() if line.startswith("#")]
    assert any(re.search(r"1\. api\.example\.org ports 443 .*#1\b", line) for line in comments)
    assert any(re.search(r"2\. 198\.51\.100\.9\S* ports 22 .*#2\b", line) for line in comments)
    assert parse_policy(shown) == Policy()


def test_policy_suggest_takes_what_is_picked(denials: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--pick` and `--all` print a policy with exactly those rules; a number that is not there is an error."""
    assert main(["policy", "suggest", "0a", "--pick", "1"]) == 0
    assert [rule.host for rule in parse_policy(capsys.readouterr().out).network.rules] == ["api.example.org"]
    assert main(["policy", "suggest", "0a", "--all"]) == 0
    assert len(parse_policy(capsys.readouterr().out).network.rules) == 2
    assert main(["policy", "suggest", "0a", "--pick", "3"]) == OWN_FAILURE
    assert "no candidate 3" in capsys.readouterr().err


# --- Logs.


def test_tail_prints_the_last_records_in_words_and_as_they_are(
    home: Home, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Text is one line for each record; `--json` is the log's own bytes."""
    path = home.make_log("0b0b0b0b", *[("exec", {"path": f"/bin/p{n}", "argv": ["x"], "pid": n + 1}) for n in range(5)])
    assert main(["tail", "0b", "-n", "3"]) == 0
    lines = capfdbinary.readouterr().out.decode().splitlines()
    assert [re.search(r"/bin/p\d|close", line)[0] for line in lines] == ["/bin/p3", "/bin/p4", "close"]  # type: ignore[index]
    assert main(["tail", str(path), "--json", "-n", "2"]) == 0
    assert capfdbinary.readouterr().out == b"".join(path.read_bytes().splitlines(keepends=True)[-2:])
    assert main(["tail", "-n", "0", "--follow"]) == 0
    assert capfdbinary.readouterr().out == b""


def test_tail_takes_the_newest_log_and_refuses_what_is_not_one(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Without an id the newest log is meant; a prefix of two, an unknown one and a foreign file are errors."""
    assert main(["tail"]) == OWN_FAILURE
    assert "no audit log" in capsys.readouterr().err
    home.make_log("0c0c0c0c")
    home.make_log("0c0d0d0d", ("gap", {"reason": "newest"}))
    (home.log / "notes.txt").write_text("not a log")
    assert main(["tail"]) == 0
    assert main(["tail", "0c"]) == OWN_FAILURE
    assert main(["tail", "ff"]) == OWN_FAILURE
    assert main(["tail", str(home.log / "notes.txt")]) == OWN_FAILURE
    said = capsys.readouterr()
    assert "newest" in said.out
    assert re.search("more than one .*neither a file .*not an audit log", said.err, re.DOTALL)


def test_tail_follows_a_log_until_its_session_closes(home: Home) -> None:
    """`--follow` shows records as they come and ends with the session's close record."""
    log = open_log(home.log / "0d0d0d0d.jsonl", "0d0d0d0d")
    process = spawn("tail", "0d", "--follow")
    try:
        assert process.stdout is not None
        assert b"open" in process.stdout.readline()
        log.append(event("gap", seq=1, watch="0d0d0d0d", reason="here it comes"))
        assert b"here it comes" in process.stdout.readline()
        log.append(event("session", seq=2, watch="0d0d0d0d", op="close", reason="done"))
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out.count(b"\n"), err) == (0, 1, b"")
    finally:
        log.close()
        end(process)


def test_following_ends_when_nobody_is_left_to_write(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """A log whose supervisor was killed has no close record; `--follow` says so and ends."""
    home.make_log("0e0e0e0e", close=False)
    assert main(["tail", "--follow"]) == 0
    assert "no supervisor any more" in capsys.readouterr().err


def test_verify_tells_whole_changed_and_foreign_apart(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """0: whole; 1: the first bad record is named; 125: not a log of ours."""
    path = home.make_log("0f0f0f0f", ("exec", {"path": "/bin/true"}), ("exec", {"path": "/bin/cat"}))
    assert main(["verify", "0f"]) == 0
    assert capsys.readouterr().out.startswith("ok: ")
    assert main(["verify", str(path), "--head", "a" * 64]) == 1
    path.write_bytes(path.read_bytes().replace(b"/bin/true", b"/bin/tree"))
    assert main(["verify", str(path)]) == 1
    assert re.search(r"BAD: .*edited.*record 1 ", capsys.readouterr().out)
    foreign = home.log / "x.json"
    foreign.write_text("{}\n")
    assert main(["verify", str(foreign)]) == OWN_FAILURE
    assert "not an audit log" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_traceback(home: Home) -> None:
    """`… | head` ends us quietly with 141, as SIGPIPE would."""
    home.make_log("1a1a1a1a", *[("gap", {"reason": "x" * 300}) for _ in range(2000)])
    process = spawn("tail", "1a", "-n", "2000")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(30) == 141


# --- Live watches.


def test_list_asks_live_watches_and_reads_ended_ones(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """A live watch answers, a silent one and a socket left over are told as such; `--all` adds ended ones."""
    assert main(["list"]) == 0
    assert "no live watch" in capsys.readouterr().out
    home.make_log("2b2b2b2b")
    left_over = socket.socket(socket.AF_UNIX)
    left_over.bind(str(home.socket("2c2c2c2c")))
    left_over.close()
    with FakeSupervisor(
        home.socket("2a2a2a2a"), watch="2a2a2a2a", workspace="/project", log=home.log / "2a2a2a2a.jsonl"
    ):
        assert main(["list", "--json"]) == 0
        found = {each["watch"]: each for each in json.loads(capsys.readouterr().out)}
        assert {watch: each["state"] for watch, each in found.items()} == {"2a2a2a2a": "running", "2c2c2c2c": "gone"}
        assert found["2a2a2a2a"]["workspace"] == "/project"
        assert main(["list", "--all"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert re.match(r"ID +STATE", lines[0])
        assert re.match(r"2a2a2a2a +running .* /project$", lines[1])
        assert any(re.match(r"2b2b2b2b +ended .* /project$", line) for line in lines)


def test_suspend_resume_and_answer_reach_the_watch(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is one request to the watch that the id's beginning names; an unknown id is our own failure."""
    with FakeSupervisor(home.socket("3a3a3a3a"), watch="3a3a3a3a", answers={Answer: lambda _: Ack()}) as fake:
        assert main(["suspend", "3a"]) == 0
        assert main(["resume", "3a3a3a3a"]) == 0
        assert main(["answer", "3a", "4", "deny"]) == 0
        assert main(["suspend", "4"]) == OWN_FAILURE
        told = [each for each in fake.received if isinstance(each, (Suspend, Resume, Answer))]
    assert [type(each) for each in told] == [Suspend, Resume, Answer]
    assert (told[2].ask, told[2].allow) == (4, False)  # type: ignore[union-attr]
    assert "3a3a3a3a" in capsys.readouterr().err


def test_kill_says_what_became_of_it(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed processes, survivors and time are printed; only 0 survivors are a success."""
    left = Killed(killed=9, survivors=2, latency_ms=5.0, head="")
    with FakeSupervisor(home.socket("5a5a5a5a"), watch="5a5a5a5a") as good:
        assert main(["kill", "--reason", "test"]) == 0
        assert re.search(r"5a5a5a5a: killed 0 processes, 0 left, \d+ ms", capsys.readouterr().out)
        assert [each.reason for each in good.received if isinstance(each, Kill)] == ["test"]
    with (
        FakeSupervisor(home.socket("5b5b5b5b"), watch="5b5b5b5b", answers={Kill: lambda _: left}),
        FakeSupervisor(home.socket("5c5c5c5c"), watch="5c5c5c5c") as other,
    ):
        assert main(["kill"]) == OWN_FAILURE
        assert "name one, or give --all" in capsys.readouterr().err
        assert not other.done.is_set()
        assert main(["kill", "--all"]) == 1
        assert other.done.wait(LONG_S)  # it has answered, and is about to say so
        assert "5b5b5b5b: killed 9 processes, 2 left" in capsys.readouterr().out


@pytest.mark.parametrize("variable", ["AGENTWATCH_RUNTIME_DIR", "AGENTWATCH_LOG_DIR"])
@pytest.mark.parametrize("below", [False, True], ids=["a file", "below a file"])
def test_a_folder_that_cannot_be_made_is_named(
    variable: str, below: bool, home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever stands where the folder of sockets or logs should be, the error says which folder it is."""
    (home.run / "file").touch()
    path = home.run / "file" / "folder" if below else home.run / "file"
    monkeypatch.setenv(variable, str(path))
    assert main(["list", "--all"]) == OWN_FAILURE
    assert f"{path} cannot be made: " in capsys.readouterr().err


def test_nothing_to_kill_is_said(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a watch `kill --all` is done already; an unknown id is our own failure; a socket left over is removed."""
    assert main(["kill", "--all"]) == 0
    assert "nothing to kill" in capsys.readouterr().out
    assert main(["kill", "6a"]) == OWN_FAILURE
    left_over = socket.socket(socket.AF_UNIX)
    left_over.bind(str(home.socket("6b6b6b6b")))
    left_over.close()
    assert main(["kill", "6b"]) == 0
    assert "had ended before" in capsys.readouterr().out
    assert not home.socket("6b6b6b6b").exists()


@pytest.mark.parametrize("is_full", [False, True], ids=["silent", "backlog full"])
def test_kill_ends_a_supervisor_that_does_not_answer(
    is_full: bool, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """The supervisor that holds the socket gets SIGKILL, its descendants are waited for, and it is said."""
    path = home.socket("7a7a7a7a")
    process, child = silent_supervisor(path)
    waiting: list[socket.socket] = []
    try:
        assert supervisors_of(path) == [process.pid]
        while is_full:
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            try:
                waiting[-1].connect(str(path))
            except BlockingIOError:
                break
        assert main(["kill", "7a"]) == 0
        assert process.wait(10) == -signal.SIGKILL
        assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
        shown = capsys.readouterr().out
        assert re.search(r"killed 1 process, 0 left, \d+ ms", shown)
        assert f"SIGKILL to the supervisor (process {process.pid})" in shown
    finally:
        for each in waiting:
            each.close()
        end(process)


def test_kill_signals_nobody_who_is_not_our_supervisor(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """A silent socket that another program holds is reported, and that program lives on (it is this test)."""
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(home.socket("8a8a8a8a")))
        foreign.listen(1)
        assert main(["kill", "8a"]) == OWN_FAILURE
    assert "nothing was killed" in capsys.readouterr().err


# --- `run` in the real sandbox.


def run(*argv: str, stdin: bytes | None = b"", workspace: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end."""
    process = spawn("run", "--workspace", str(workspace), *argv, stdin=subprocess.PIPE)
    out, err = process.communicate(stdin, timeout=120)
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def spawn_ready(workspace: Path, script: str) -> subprocess.Popen[bytes]:
    """Start a script and wait until it has said "ready"."""
    process = spawn("run", "--quiet", "--workspace", str(workspace), "--", "sh", "-c", script, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    first = process.stdout.readline()
    assert (first, b"" if first else process.communicate()[1]) == (b"ready\n", b"")
    return process


@pytest.mark.sandbox
@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--", "sh", "-c", "exit 3"], 3),
        (["--", "sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["--", "no-such-program"], 127),
        (["--", "./not-executable"], 126),
        (["--timeout", "0.3", "--", "sleep", "60"], 128 + signal.SIGKILL),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_run_returns_what_a_shell_would(argv: list[str], code: int, home: Home, tmp_path: Path) -> None:
    """The exit code is the command's, 128 and the signal, or 127 and 126 as from a shell; nothing stays alive."""
    (tmp_path / "not-executable").write_text("")
    done = run(*argv, workspace=tmp_path)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert list(home.run.glob("*.sock")) == []


@pytest.mark.sandbox
def test_run_passes_bytes_unmixed_and_unchanged(home: Home, tmp_path: Path) -> None:
    """Standard input, output and error are pipes for any bytes; `--quiet` adds nothing of ours."""
    data = bytes(range(256)) * 4096
    done = run("--quiet", "--", "sh", "-c", "cat; printf '\\377\\000' >&2", stdin=data, workspace=tmp_path)
    assert done.returncode == 0
    assert done.stdout == data
    assert done.stderr == b"\xff\x00"


@pytest.mark.sandbox
def test_run_ends_with_a_line_that_the_log_confirms(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The summary counts from the log, and its head is the log's last: `verify --head` would show a truncation."""
    done = run("--", "sh", "-c", "touch made; getent hosts example.org", workspace=tmp_path)
    (line,) = done.stderr.decode().splitlines()
    found = re.fullmatch(
        r"agentwatch: 1 step, [23] processes, 0 connections allowed, 0 denied, \d+ names? refused, 1 file written; "
        r"log (\S+) head ([0-9a-f]{64})",
        line,
    )
    assert found
    assert main(["verify", found[1], "--head", found[2]]) == 0
    assert f"head {found[2]}; closed" in capsys.readouterr().out


@pytest.mark.sandbox
def test_run_says_why_its_command_stands_still(home: Home, tmp_path: Path) -> None:
    """A watch that is frozen, goes on, or holds a call for a person says so, with what a person can type."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "{version: 1, network: {rules: [{cidr: 192.0.2.0/24, ports: [80], protocol: http, verdict: ask}]}}"
    )
    (tmp_path / "work").mkdir()
    asks = "import socket; socket.create_connection(('192.0.2.1', 80))"
    command = ["sh", "-c", f'echo ready; read word <wait; exec python3 -c "{asks}"']
    os.mkfifo(tmp_path / "work" / "wait")
    options = ["--quiet", "--policy", str(policy), "--workspace", str(tmp_path / "work")]
    process = spawn("run", *options, "--", *command, stdin=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        (watch,) = (path.stem for path in home.run.glob("*.sock"))
        assert main(["suspend", watch]) == 0
        frozen = process.stderr.readline().decode()
        assert frozen.startswith("agentwatch: frozen: person-suspends, by command line (pid ")
        assert re.search(r" \(killed in \d+ s unless a person decides\): ", frozen)
        assert f"jupyter agentwatch resume {watch}, or kill {watch}\n" in frozen
        assert main(["resume", watch]) == 0
        assert process.stderr.readline() == b"agentwatch: the watch goes on\n"
        (tmp_path / "work" / "wait").write_text("\n")
        held = process.stderr.readline().decode()
        assert held.startswith("agentwatch: held: step 1: connect to 192.0.2.1 port 80 (denied in ")
        assert held.endswith(f": jupyter agentwatch answer {watch} 1 allow|deny\n")
        assert main(["answer", watch, "1", "deny"]) == 0
        assert process.wait(60) == 1
        assert b"Permission denied" in process.stderr.read()
    finally:
        end(process)


@pytest.mark.sandbox
def test_run_hands_ctrl_c_to_the_command_and_kills_it_at_the_second(home: Home, tmp_path: Path) -> None:
    """The first SIGINT is the command's to handle; the second ends it."""
    script = f"trap 'echo caught' INT; echo ready; {IDLE}"
    process = spawn_ready(tmp_path, script)
    try:
        assert process.stdout is not None
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"caught\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 128 + signal.SIGKILL
    finally:
        end(process)


@pytest.mark.sandbox
def test_run_ends_when_nobody_reads_its_output(home: Home, tmp_path: Path) -> None:
    """`run -- yes | head -1` ends with 141, without a traceback and without a watch left over."""
    process = spawn("run", "--workspace", str(tmp_path), "--", "yes", stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"y\n"
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(60) == 141
    assert list(home.run.glob("*.sock")) == []


@pytest.mark.sandbox
def test_run_refuses_a_workspace_that_is_not_there(home: Home, tmp_path: Path) -> None:
    """Our own failure is 125 and one line that names the folder."""
    done = run("--", "true", workspace=tmp_path / "missing")
    assert done.returncode == OWN_FAILURE
    assert re.fullmatch(rb"agentwatch: .*/missing: .*\n", done.stderr)


@pytest.mark.sandbox
@pytest.mark.parametrize("is_stopped", [False, True], ids=["answering", "stopped"])
def test_kill_ends_a_real_watch(
    is_stopped: bool, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`kill` leaves nothing of a real sandbox, also when its supervisor is stopped and answers nothing."""
    process = spawn_ready(tmp_path, "setsid sh -c 'sleep 600 & sleep 600 & echo ready; wait' & wait")
    try:
        (path,) = home.run.glob("*.sock")
        (supervisor,) = supervisors_of(path)
        inside = psutil.Process(supervisor).children(recursive=True)
        if is_stopped:
            stop(supervisor)
        assert main(["kill"]) == 0
        assert [each for each in inside if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []
        shown = capsys.readouterr().out
        assert re.search(r"killed [4-9] processes, 0 left", shown)
        assert "SIGKILL to the supervisor" in shown or not is_stopped
        assert process.wait(60) in {OWN_FAILURE, 128 + signal.SIGKILL}
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    finally:
        end(process)
