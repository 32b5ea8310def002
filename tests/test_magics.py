"""The notebook's magics in a shell of this process, and in a real kernel where the sandbox can be had."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

from jupyter_agentwatch.cli import main as command_line
from jupyter_agentwatch.notebook import load, unload
from jupyter_agentwatch.notebook.arguments import AGENT_PARSER, CELL_PARSER, LINE_PARSER, SUBCOMMANDS
from jupyter_agentwatch.notebook.summary import summary
from jupyter_agentwatch.testing import event, fake_supervisor
from jupyter_agentwatch.watch import CommandResult, Watch
from jupyter_agentwatch.wire.runtime import live_watches
from tests.outside import IDLE
from tests.shells import displayed, shell_with_magics

ROOT = Path(__file__).parent.parent
PATIENCE_S = 60


class Notebook:
    """A shell with the extension loaded, and what its cells showed."""

    def __init__(self, shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
        self.shell = shell
        self.capsys = capsys

    def cell(self, source: str) -> str:
        """Run a cell that must not fail; return what it displayed."""
        result = self.shell.run_cell(source)
        assert result.error_in_exec is None
        return self.displayed()

    def mistake(self, source: str) -> str:
        """Run a cell that must fail with a UsageError; return its text."""
        result = self.shell.run_cell(source)
        assert isinstance(result.error_in_exec, UsageError)
        assert "Traceback" not in "".join(self.capsys.readouterr())
        return str(result.error_in_exec)

    def displayed(self) -> str:
        """Return and forget what was displayed; it must be plain text only."""
        shown = displayed(self.shell)
        assert all(set(data) == {"text/plain"} for data in shown)
        return "\n".join(data["text/plain"] for data in shown)


@pytest.fixture
def notebook(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    """A shell without history, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    with shell_with_magics() as shell:
        yield Notebook(shell, capsys)


@pytest.fixture
def watch(notebook: Notebook, tmp_path: Path) -> Iterator[Watch]:
    """A watch with a fake supervisor (nothing is confined), which the notebook uses."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    with Watch(workspace=workspace, supervisor=fake_supervisor()) as made:
        notebook.shell.user_ns["mine"] = made
        notebook.cell("%agentwatch use mine")
        yield made


def result(**fields: Any) -> CommandResult:
    """Build a result; what is not given is that of `true`."""
    known: dict[str, Any] = dict.fromkeys(("stdout_total", "stderr_total", "duration_s", "cpu_user_s"), 0)
    known |= dict.fromkeys(("cpu_system_s", "max_rss_bytes"), 0)
    known |= {"step": 1, "argv": ("true",), "outcome": "exited", "exit_code": 0, "signal": None, "head": "ab" * 32}
    known |= {"stdout_bytes": b"", "stderr_bytes": b"", "stdout_truncated": False, "stderr_truncated": False}
    return CommandResult(**known | fields)


# --- Running cells.


def test_a_cell_is_a_script_whose_output_and_end_are_shown(notebook: Notebook, watch: Watch) -> None:
    """Output goes to the cell's streams, the summary follows as plain text, and `--out` keeps the result."""
    notebook.capsys.readouterr()
    shown = notebook.cell("%%agentwatch --out r\nfor n in 1 2; do echo out$n; done\necho err >&2\nexit 3")
    assert notebook.capsys.readouterr() == ("out1\nout2\n", "err\n")
    assert re.search(r"step 1: exit 3, \d", shown)
    assert f"head {watch.head}" in shown
    kept = notebook.shell.user_ns["r"]
    assert (kept.exit_code, kept.stdout) == (3, "out1\nout2\n")


def test_hostile_output_cannot_reach_the_front_end(notebook: Notebook, watch: Watch) -> None:
    """Escapes other than colours become visible text, and a colour that was left on ends with the output."""
    notebook.capsys.readouterr()
    notebook.cell(r"""%%agentwatch
printf '\033]0;owned\007\033[31mred \342\200\256 \303\251 \377'""")
    assert notebook.capsys.readouterr().out == "\\x1b]0;owned\\x07\x1b[31mred \\u202e é \ufffd\x1b[0m"


def test_options_of_a_cell_reach_the_command(notebook: Notebook, watch: Watch) -> None:
    """`--timeout` and `--shell` are the command's."""
    assert "timeout" in notebook.cell("%%agentwatch --timeout 0.2\nexec sleep 60")
    notebook.cell("%%agentwatch --shell /bin/sh --out r\ntrue")
    assert notebook.shell.user_ns["r"].argv[0] == "/bin/sh"


def test_an_interrupt_ends_the_command_and_the_run_of_cells_but_not_the_watch(notebook: Notebook, watch: Watch) -> None:
    """■ interrupts the command; its summary says so, and one line of error keeps the next cells from running."""
    assert notebook.mistake(f"%%agentwatch --out r\nkill -INT {os.getpid()}; exec sleep 60") == "interrupted"
    assert re.search(r"step 1: signal 2, interrupted", notebook.displayed())
    assert notebook.shell.user_ns["r"].signal == 2
    assert "step 2: exit 0" in notebook.cell("%%agentwatch\ntrue")


def test_a_cell_does_not_start_another_watch_behind_a_kill(notebook: Notebook, watch: Watch) -> None:
    """After a kill a cell refuses: whoever killed did not mean that the next cell goes on elsewhere."""
    watch.kill("enough")
    said = notebook.mistake("%%agentwatch\ntouch again")
    assert watch.id in said
    assert "%agentwatch start" in said


def test_the_summary_counts_and_neutralises_what_the_log_holds() -> None:
    """Connections come with destination and reason, files, findings and limits with their names, all made safe."""
    shown = summary(
        result(stdout_truncated=True, stdout_total=99, outcome="limit:memory_bytes", exit_code=None, signal=9),
        [
            event("exec", step=1, pid=5),
            event("connect", seq=1, verdict="deny", host="evil\x1b[2J.example", rule="no-rule"),
            event("connect", seq=2, host="ok.example", rule="network.rules[0]"),
            event("dns", seq=3, verdict="deny", qname="bad\u202e.example", rcode="REFUSED", rule="no-rule"),
            event("file", seq=4, path="/w/a\nb"),
            *(event("file", seq=5 + n, path=f"/w/{n}") for n in range(9)),
            event("finding", seq=20, title="tunnel\x07", severity="high"),
            event("limit", seq=21, limit="memory_bytes"),
        ],
        "/logs/x.jsonl",
        interrupted=True,
    )
    lines = shown.splitlines()
    assert all(line.isprintable() for line in lines)
    assert lines[0] == "step 1: signal 9 (limit:memory_bytes), interrupted, 0.00 s"
    assert "1 process, 1 connection allowed, 1 denied, 1 name refused, 10 files written, 1 finding" in lines[1]
    assert "  denied  evil\\x1b[2J.example:443 [no-rule]" in lines
    assert "  denied  name bad\\u202e.example [no-rule]" in lines
    assert "  allowed ok.example:443 [network.rules[0]]" in lines
    assert "  … and 5 files more" in lines
    assert "  finding: high: tunnel\\x07" in lines
    assert "  limit reached: memory_bytes" in lines
    assert "  stdout was cut: 99 bytes were written" in lines
    assert lines[-1] == f"head {'ab' * 32}"


# --- Mistakes.


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("%agentwatch", "required: SUBCOMMAND"),
        ("%agentwatch strat", "unknown subcommand 'strat'; did you mean start?"),
        ("%agentwatch qqq", "unknown subcommand 'qqq'\nusage: %agentwatch"),
        ("%agentwatch undo", "required: STEP\nusage: %agentwatch undo"),
        ("%agentwatch undo zero", "'zero' is not the number of a step"),
        ("%agentwatch answer 1 maybe", "invalid choice: 'maybe'"),
        ("%agentwatch start --policy 'x", "No closing quotation"),
        ("%agentwatch start --policy nowhere.yaml", "nowhere.yaml: cannot read the policy"),
        ("%agentwatch start --policy bad.yaml", "bad.yaml:2: netwrok: unknown field; did you mean network?"),
        ("%agentwatch start --workspace nowhere", "nowhere: No such file"),
        ("%agentwatch events", "no watch yet"),
        ("%agentwatch use nothing", "nothing is no Watch; variables that hold one: none"),
        ("%%agentwatch --timeout soon\ntrue", "'soon' is not a positive number of seconds"),
        ("%%agentwatch --out 1x\ntrue", "'1x' is not a variable's name"),
        (
            "%agentwatch start --polcy x",
            "--polcy x; did you mean --policy?\nusage: %agentwatch start [-h] [--policy F]",
        ),
        ("%%agentwatch start\ntrue", "unrecognized arguments: start\nusage: %%agentwatch"),
        ("%%agentwatch --policy nowhere.yaml\ntrue", "nowhere.yaml: cannot read the policy"),
    ],
)
def test_a_mistake_is_one_usage_error(source: str, expected: str, notebook: Notebook, tmp_path: Path) -> None:
    """A user's mistake is a UsageError that says what is wrong, with the usage where the grammar was missed."""
    (tmp_path / "bad.yaml").write_text("version: 1\nnetwrok: {}\n")
    said = notebook.mistake(source)
    assert expected in said
    assert notebook.displayed() == ""


def test_a_machine_without_the_sandbox_is_one_line(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rung A cannot be had, the cell shows the failed probe and no traceback, and nothing runs."""
    refusal = fake_supervisor("--report", '{"error": "RungError", "text": "user namespaces: fix it so"}')
    monkeypatch.setattr("jupyter_agentwatch.watch.handle.supervisor_command", lambda: refusal)
    assert notebook.mistake("%%agentwatch\ntouch ran") == "user namespaces: fix it so"
    assert not Path("ran").exists()


@pytest.mark.parametrize("source", ["%agentwatch start", "%%agentwatch\ntrue"])
def test_a_workspace_that_can_be_imported_from_is_said_once(
    notebook: Notebook, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Where the agent could plant modules for the kernel, the first cell notes it, as text, and no later cell does."""
    monkeypatch.setattr("jupyter_agentwatch.watch.handle.supervisor_command", fake_supervisor)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert notebook.cell(source).count("note: this Python imports from") == 1
    assert "Warning" not in "".join(notebook.capsys.readouterr())
    assert "note" not in notebook.cell("%%agentwatch\ntrue")


def test_a_command_that_no_program_can_be_given_is_a_mistake(notebook: Notebook, watch: Watch) -> None:
    """A NUL in the cell is refused with its reason."""
    assert "NUL" in notebook.mistake("%%agentwatch\necho \0")


# --- Subcommands.


def test_status_suspend_resume_and_kill(notebook: Notebook, watch: Watch) -> None:
    """Each subcommand acts on the watch and says so; a second kill tells what the first one did."""
    assert f"watch {watch.id}: running" in notebook.cell("%agentwatch status")
    notebook.cell("%agentwatch suspend")
    assert "frozen" in notebook.cell("%agentwatch status")
    notebook.cell("%agentwatch resume")
    assert "running" in notebook.cell("%agentwatch status")
    shown = notebook.cell("%agentwatch kill it's --enough")
    assert re.search(rf"watch {watch.id}: killed 0 processes, 0 left, \d+ ms", shown)
    assert watch.events(kind="session")["reason"].iloc[-1] == "it's --enough"
    assert "0 left" in notebook.cell("%agentwatch kill")
    assert f"watch {watch.id} has ended" in notebook.cell("%agentwatch status")


def test_without_a_watch_nothing_is_started_by_asking(notebook: Notebook) -> None:
    """`status` and `kill` without a watch say so and start none."""
    assert "no watch yet" in notebook.cell("%agentwatch status")
    assert "nothing to kill" in notebook.cell("%agentwatch kill")


def test_a_running_watch_is_named_and_its_policy_is_not_swapped(
    notebook: Notebook, watch: Watch, tmp_path: Path
) -> None:
    """`start` names the watch that runs; another policy or workspace is refused instead of being ignored."""
    (tmp_path / "p.yaml").write_text("version: 1\nlimits: {processes: 5}\n")
    (tmp_path / "same.yaml").write_text("version: 1\n")
    assert f"watch {watch.id} runs already; end it with %agentwatch kill" in notebook.cell("%agentwatch start --out w")
    assert notebook.shell.user_ns["w"] is watch
    notebook.cell(f"%agentwatch start --policy same.yaml --workspace {watch.workspace}")
    assert "another policy" in notebook.mistake("%agentwatch start --policy p.yaml")
    assert "another policy" in notebook.mistake("%%agentwatch --policy p.yaml\ntrue")
    assert str(watch.workspace) in notebook.mistake("%agentwatch start --workspace .")


def test_events_are_lines_and_on_request_a_table(notebook: Notebook, watch: Watch) -> None:
    """`events` shows the last records that fit; `--out` keeps all of them as a DataFrame; an unknown kind is told."""
    notebook.cell("%%agentwatch\ntrue")
    shown = notebook.cell("%agentwatch events --kind step --step 1 --out table -n 1")
    assert len(shown.splitlines()) == 1
    assert "end exited exit 0" in shown
    assert list(notebook.shell.user_ns["table"]["op"]) == ["start", "end"]
    assert notebook.cell("%agentwatch events --verdict ask") == "no such record"
    assert "stepp" in notebook.mistake("%agentwatch events --kind stepp")


def test_findings_are_shown(notebook: Notebook, watch: Watch) -> None:
    """`findings` shows incidents, or that there are none, and gives the table to a variable."""
    assert notebook.cell("%agentwatch findings --out found") == "nothing found"
    assert len(notebook.shell.user_ns["found"]) == 0
    assert "severe" in notebook.mistake("%agentwatch findings --severity severe")


def test_diff_and_undo_ask_the_watch(notebook: Notebook, watch: Watch) -> None:
    """`diff` means the last step unless told otherwise; a step that is not there is one line of error."""
    notebook.cell("%%agentwatch\ntrue")
    assert notebook.cell("%agentwatch diff") == "no change in the workspace"
    assert notebook.cell("%agentwatch undo 1").startswith("taken back:")
    assert "no step 9" in notebook.mistake("%agentwatch undo 9")


def test_policy_shows_and_suggests(notebook: Notebook, watch: Watch) -> None:
    """`policy` prints the watch's policy as YAML; `policy suggest` says when nothing was denied."""
    assert "output_bytes: 16777216" in notebook.cell("%agentwatch policy")
    assert notebook.cell("%agentwatch policy suggest").startswith("# nothing was denied")


def test_doctor_prints_every_probe(notebook: Notebook) -> None:
    """`doctor` needs no watch."""
    assert re.search(r"rung [AE]: .*bubblewrap", notebook.cell("%agentwatch doctor"), re.DOTALL)


def test_a_comment_ends_a_line(notebook: Notebook, watch: Watch) -> None:
    """What stands behind a # is for readers, also with an apostrophe in it; a # within a word is none."""
    assert watch.id in notebook.cell("%agentwatch status  # what's it doing?")
    assert "exit 0" in notebook.cell("%%agentwatch --timeout 60  # that's enough\ntrue")
    assert "a#b.yaml" in notebook.mistake("%%agentwatch --policy a#b.yaml\ntrue")


def test_help_is_shown_and_is_the_docstring(notebook: Notebook) -> None:
    """`-h` prints the parser's help, and `%agentwatch?` shows that of both magics."""
    assert notebook.shell.run_cell("%agentwatch start -h").error_in_exec is None
    assert "--workspace DIR" in notebook.capsys.readouterr().out
    doc = notebook.shell.magics_manager.magics["line"]["agentwatch"].__doc__ or ""
    assert LINE_PARSER.format_help() in doc
    assert doc.endswith(f"{CELL_PARSER.format_help()}\n{AGENT_PARSER.format_help()}")


def completed(notebook: Notebook, line: str) -> set[str]:
    """Return what the shell offers at the end of a line."""
    with provisionalcompleter():
        return {each.text for each in notebook.shell.Completer.completions(line, len(line))}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%agentwatch su", {"suspend"}),
        ("%agentwatch ", set(SUBCOMMANDS)),
        ("%agentwatch answer 1 a", {"allow"}),
        ("%agentwatch events --ver", {"--verdict"}),
        ("%%agentwatch --ti", {"--timeout"}),
        ("%%agentwatch ag", {"agent"}),
        ("%%agentwatch agent --re", {"--replay"}),
        ("%agentwatch agent --re", {"--replay"}),
    ],
)
def test_completion(line: str, expected: set[str], notebook: Notebook) -> None:
    """Subcommands, options and fixed words complete, and nothing else is offered among them."""
    assert completed(notebook, line) == expected


def test_completion_leaves_other_lines_alone(notebook: Notebook) -> None:
    """Code that is not ours completes as it did."""
    assert "print" in completed(notebook, "pri")


def test_unload_removes_the_magics_and_leaves_a_users_own_watch(notebook: Notebook, watch: Watch) -> None:
    """After `%unload_ext` the magics are gone; a Watch object of the user's goes on; loading again works."""
    unload(notebook.shell)
    assert notebook.shell.find_line_magic("agentwatch") is None
    assert notebook.shell.find_cell_magic("agentwatch") is None
    assert not watch.has_ended
    load(notebook.shell)
    load(notebook.shell)
    assert "no watch yet" in notebook.cell("%agentwatch status")


# --- The real sandbox.


@pytest.mark.sandbox
def test_the_first_cell_starts_the_watch_and_unload_ends_it(notebook: Notebook, tmp_path: Path) -> None:
    """A cell needs no `start`; what it did is counted from the log; `unload` leaves nothing alive."""
    (tmp_path / "w").mkdir()
    shown = notebook.cell(
        "%%agentwatch --workspace w --out r\nls / > list; cat /nowhere; getent hosts example.org; exit 5"
    )
    assert "step 1: exit 5" in shown
    assert re.search(
        r"1 step, [34] processes, 0 connections allowed, 0 denied, \d+ names? refused, 1 file written", shown
    )
    assert "denied  name example.org" in shown
    notebook.cell("%agentwatch start --workspace w --out w")
    made = notebook.shell.user_ns["w"]
    assert made.id in live_watches()
    unload(notebook.shell)
    assert made.has_ended
    assert made.id not in live_watches()


class Kernel:
    """A real kernel and what a cell of it says while it runs."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self.client = client
        self.said = ""
        self.watch = ""
        self.message = ""

    def start(self, source: str) -> None:
        """Send a cell without waiting."""
        self.said = ""
        self.message = self.client.execute(source)

    def wait_for(self, done: Callable[[], bool]) -> None:
        """Take the cell's messages until `done`, or until the cell has ended."""
        while not done():
            message = self.client.get_iopub_msg(timeout=PATIENCE_S)
            if message["parent_header"].get("msg_id") != self.message:
                continue
            content = message["content"]
            if message["msg_type"] == "status" and content["execution_state"] == "idle":
                return
            self.said += content.get("text", "") + content.get("data", {}).get("text/plain", "")
            self.said += "".join(content.get("traceback", []))

    def finish(self) -> str:
        """Wait for the cell's end; return "ok" or "error"."""
        self.wait_for(lambda: False)
        while True:  # the replies to what the client asked of its own come here, too
            reply = self.client.get_shell_msg(timeout=PATIENCE_S)
            if reply["parent_header"].get("msg_id") == self.message:
                return str(reply["content"]["status"])


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[tuple[Kernel, Any]]:
    """A kernel with the extension loaded, in a workspace of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    manager, client = start_new_kernel(kernel_name="python3", env=environment, cwd=str(tmp_path))
    try:
        made = Kernel(client)
        made.start("%load_ext jupyter_agentwatch\n%agentwatch start")
        assert made.finish() == "ok"
        (made.watch,) = re.findall(r"watch (\w+) started", made.said)
        yield made, manager
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


@pytest.mark.sandbox
def test_output_is_live_in_a_real_kernel(kernel: tuple[Kernel, Any], tmp_path: Path) -> None:
    """What a command writes is in the cell while the command still waits for its next input."""
    cell, _ = kernel
    os.mkfifo(tmp_path / "go")
    cell.start("%%agentwatch\necho first; read line < go; echo then $line")
    cell.wait_for(lambda: "first" in cell.said)
    assert "then" not in cell.said
    (tmp_path / "go").write_text("on\n")
    assert cell.finish() == "ok"
    assert "then on" in cell.said
    assert "step 1: exit 0" in cell.said


@pytest.mark.sandbox
def test_an_interrupt_of_a_real_kernel_reaches_the_command_only(kernel: tuple[Kernel, Any]) -> None:
    """■ ends the command with its summary and one line of error; the next cell runs in the same watch."""
    cell, manager = kernel
    cell.start(f"%%agentwatch\ntrap 'echo caught; exit 7' INT; echo ready; {IDLE}")
    cell.wait_for(lambda: "ready" in cell.said)
    manager.interrupt_kernel()
    assert cell.finish() == "error"
    assert "caught" in cell.said
    assert "step 1: exit 7, interrupted" in cell.said
    assert "UsageError: interrupted" in cell.said
    assert "Traceback" not in cell.said
    cell.start("%%agentwatch\necho again")
    assert cell.finish() == "ok"
    assert "again" in cell.said


@pytest.mark.sandbox
def test_a_kill_from_the_shell_ends_the_cell_of_a_busy_kernel(
    kernel: tuple[Kernel, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """`jupyter agentwatch kill` needs nothing of the kernel; the cell ends without a traceback."""
    cell, _ = kernel
    cell.start("%%agentwatch\nsetsid sh -c 'sleep 600 & sleep 600 & echo ready; wait' & wait")
    cell.wait_for(lambda: "ready" in cell.said)
    assert command_line(["kill", cell.watch, "--reason", "test"]) == 0
    assert re.search(r"killed [4-9] processes, 0 left", capsys.readouterr().out)
    cell.finish()
    assert "Traceback" not in cell.said
    cell.start("%%agentwatch\ntrue")
    assert cell.finish() == "error"
    assert "start another one with %agentwatch start" in cell.said


@pytest.mark.sandbox
def test_the_end_of_the_kernel_ends_the_watch(kernel: tuple[Kernel, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """A kernel that is killed takes its watch with it: the log closes, and nothing is left to kill."""
    cell, manager = kernel
    manager.shutdown_kernel(now=True)
    assert command_line(["tail", cell.watch, "--follow"]) == 0
    shown = capsys.readouterr()
    assert re.search(r"session +\w+ +close", shown.out)
    assert "no supervisor" not in shown.err
