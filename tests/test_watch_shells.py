"""Shells and terminals of the public handle, against a fake supervisor that runs real programs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jupyter_agentwatch import Policy, Watch
from jupyter_agentwatch.errors import (
    ShellEndedError,
)
from jupyter_agentwatch.policy import Limits
from jupyter_agentwatch.testing import fake_supervisor
from jupyter_agentwatch.watch import Terminal
from tests.outside import LONG_S

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    """A watch for the tests that leave it as it was."""
    with Watch(workspace=tmp_path_factory.mktemp("project"), supervisor=fake_supervisor()) as watch:
        yield watch


def test_a_shell_keeps_folder_and_variables(shared: Watch) -> None:
    """What one command sets, the next one sees; each result has its own output and exit code."""
    (shared.workspace / "deep").mkdir()
    with shared.shell(env={"GIVEN": "x"}) as shell:
        assert shell.run("cd deep; export A=1; f() { echo \"f $1\"; }; B='two words'").ok
        result = shell.run('pwd; echo "$A $B $GIVEN"; f 3; (exit 7)')
        assert result.stdout.splitlines() == [str(shared.workspace / "deep"), "1 two words x", "f 3"]
        assert (result.exit_code, result.ok, result.stderr) == (7, False, "")
        assert shell.last_result is result
        assert shell.run("true").ok


@pytest.mark.parametrize(
    ("command", "stdout", "exit_code"),
    [
        ("printf no-newline", "no-newline", 0),
        ("cat; read x; echo after", "after\n", 0),
        ("if then", "", 2),
        ("echo 'unbalanced", "", 2),
        ("printf '%s\\n' \"it's\" 'a\"b' \\$x", "it's\na\"b\n$x\n", 0),
        ("", "", 0),
        ("# only a comment", "", 0),
        ("cat <<EOF\nline\nEOF", "line\n", 0),
        ("nosuchcommand_", "", 127),
        ("kill -9 $BASHPID & wait $!", "", 137),
        ("printf '\\036fake:0\\036'", "\x1efake:0\x1e", 0),
        ("exec 3>&1; echo x >&3; ls /proc/self/fd | grep -c 19[89]", "x\n0\n", 1),
    ],
)
def test_a_shell_is_not_confused_by_what_it_runs(shared: Watch, command: str, stdout: str, exit_code: int) -> None:
    """Output without a newline, reading commands, syntax errors and quotes leave the shell usable."""
    with shared.shell() as shell:
        result = shell.run(command)
        assert (result.stdout, result.exit_code) == (stdout, exit_code)
        assert shell.run("echo alive").stdout == "alive\n"


def test_a_shell_that_redirects_itself_still_answers(shared: Watch) -> None:
    """`exec > file` takes the output away for good, as it should, but not the end of the command."""
    with shared.shell() as shell:
        shell.run("exec >out.txt")
        assert shell.run("echo gone").stdout == ""
        assert (shared.workspace / "out.txt").read_text() == "gone\n"


@pytest.mark.parametrize("command", ["echo bye >&2; exit 5", "exec true", "set -e; false", "kill -9 $$"])
def test_a_shell_that_ends_says_so(shared: Watch, command: str) -> None:
    """A command that ends its shell is an error that says so; so is every later one; the watch goes on."""
    shell = shared.shell()
    with pytest.raises(ShellEndedError, match="the shell is over"):
        shell.run(command)
    with pytest.raises(ShellEndedError, match="open a new"):
        shell.run("true")
    shell.close()
    assert shared.run("true").ok


def test_a_shells_command_can_be_limited(shared: Watch) -> None:
    """A command that takes too long is interrupted and the shell lives on; its variables are still there."""
    with shared.shell() as shell:
        shell.run("A=kept")
        result = shell.run("sleep 60", timeout=0.05)
        assert (result.timed_out, result.exit_code) == (True, 130)
        assert shell.run("echo $A").stdout == "kept\n"


def test_background_output_belongs_to_the_command_during_which_it_comes(shared: Watch) -> None:
    """What a job writes later is neither lost nor taken for an answer."""
    os.mkfifo(shared.workspace / "go")
    with shared.shell() as shell:
        assert shell.run("{ read x < go; echo $x; } &").stdout == ""
        assert shell.run("echo later > go; wait").stdout == "later\n"


def test_a_shells_output_limit_ends_it(tmp_path: Path) -> None:
    """A shell whose output is used up is over and names the limit; it does not wait for a mark that cannot come."""
    with Watch(Policy(limits=Limits(output_bytes=5000)), tmp_path, supervisor=fake_supervisor()) as watch:
        shell = watch.shell()
        with pytest.raises(ShellEndedError, match=r"standard output reached limits\.output_bytes"):
            shell.run("head -c 6000 /dev/zero")


def read_until(terminal: Terminal, mark: bytes) -> bytes:
    """Return what a terminal shows up to `mark` and a little beyond."""
    shown = b""
    while mark not in shown:
        shown += terminal.read(LONG_S)
    return shown


def test_a_terminal_is_one(shared: Watch) -> None:
    """With `pty` the shell has a terminal of the size that was asked for, echoes, and takes Ctrl-C."""
    with shared.shell(pty=True, env={"PS1": "ready> "}) as terminal:
        terminal.resize(40, 100)
        terminal.write("stty size; sh -c 'tty; exec sleep 60'\r")
        shown = read_until(terminal, b"/dev/pts/")
        assert b"40 100" in shown
        terminal.write("\x03")
        # What is typed before the prompt is back may be flushed, as on every terminal.
        read_until(terminal, b"ready> ")
        terminal.write("echo over $?\r")
        read_until(terminal, b"over 130")
        with pytest.raises(ValueError, match="between 1 and 65535"):
            terminal.resize(0, 10)
        terminal.write("exit 6\r")
        while terminal.read(LONG_S):
            pass
        assert terminal.running.wait(LONG_S).exit_code == 6
