"""When a watch ends and what ■ does: real processes, real signals, a real kernel; the supervisor is the fake one."""

from __future__ import annotations

import gc
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.manager import start_new_kernel

import jupyter_agentwatch
from jupyter_agentwatch import Watch
from jupyter_agentwatch.testing import ManualClock, event, fake_supervisor
from jupyter_agentwatch.watch.cell import current_cell
from jupyter_agentwatch.watch.running import Interrupts
from tests.outside import IDLE, LONG_S, closing_reason, wait_for_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROLOGUE = f"""
IDLE = {IDLE!r}
import os, signal, sys
from jupyter_agentwatch import Watch
from jupyter_agentwatch.testing import fake_supervisor
watch = Watch(workspace=sys.argv[1], supervisor=fake_supervisor())
def show(stream, data):
    sys.stdout.write(data.decode())
    sys.stdout.flush()
def say(*words):
    print(*words, flush=True)
"""


class Owner:
    """A Python process that owns a watch, and what it says."""

    def __init__(self, script: str, workspace: Path) -> None:
        root = str(Path(jupyter_agentwatch.__file__).parents[1])
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROLOGUE + script, str(workspace)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": root},
        )
        self._said = b""

    def line(self) -> str:
        """Return the next line that it wrote, without the newline."""
        while b"\n" not in self._said:
            assert self._hear(), "it ended too early"
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def interrupt(self) -> None:
        """Send SIGINT, as ■ does."""
        self.process.send_signal(signal.SIGINT)

    def rest(self) -> list[str]:
        """Return all lines that are still written until its end."""
        while self._hear():
            pass
        self.process.wait(LONG_S)
        return self._said.decode().splitlines()

    def _hear(self) -> bool:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], LONG_S)[0], f"silence after {self._said!r}"
        data = os.read(self.process.stdout.fileno(), 65536)
        self._said += data
        return bool(data)


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Callable[[str], Owner]]:
    """Start an owner with a script; it is ended after the test."""
    started: list[Owner] = []

    def start(script: str) -> Owner:
        started.append(Owner(script, tmp_path))
        return started[-1]

    yield start
    for each in started:
        with each.process:
            each.process.kill()


# ■


def test_one_interrupt_reaches_the_command_and_spares_the_watch(owner: Callable[[str], Owner]) -> None:
    """SIGINT in `run` interrupts the command; KeyboardInterrupt comes after its end, with the result at hand."""
    process = owner("""
try:
    watch.run("trap 'echo cleaned; exit 7' INT; echo up; " + IDLE, on_output=show)
except KeyboardInterrupt:
    say(watch.last_result.outcome, watch.last_result.exit_code, watch.last_result.stdout.split())
say(watch.run("echo alive").stdout.strip(), signal.getsignal(signal.SIGINT) is signal.default_int_handler)
""")
    assert process.line() == "up"
    process.interrupt()
    assert process.rest() == ["cleaned", "exited 7 ['up', 'cleaned']", "alive True"]


def test_a_second_interrupt_kills_the_command_and_spares_the_watch(owner: Callable[[str], Owner]) -> None:
    """A command that ignores the first SIGINT is killed by the second; the watch runs the next command."""
    process = owner("""
try:
    watch.run("trap 'echo ignored' INT; echo up; " + IDLE, on_output=show)
except KeyboardInterrupt:
    say(watch.last_result.outcome, watch.last_result.signal)
say(watch.run("echo alive").stdout.strip())
""")
    assert process.line() == "up"
    process.interrupt()
    assert process.line() == "ignored"
    process.interrupt()
    assert process.rest() == ["signalled 9", "alive"]


def test_an_interrupt_before_the_command_has_begun_is_not_lost(owner: Callable[[str], Owner]) -> None:
    """SIGINT between the call and the beginning of the command interrupts it once it has begun."""
    process = owner("""
def late(start=watch._client.start):
    def started(request, sink):
        signal.raise_signal(signal.SIGINT)
        start(request, sink)
    return started
watch._client.start = late()
try:
    watch.run(["sleep", "600"])
except KeyboardInterrupt:
    say(watch.last_result.outcome, watch.last_result.signal)
""")
    assert process.rest() == ["signalled 2"]


def test_a_third_interrupt_is_the_way_out(owner: Callable[[str], Owner]) -> None:
    """Where the supervisor has stopped and even a kill is not answered, the third SIGINT returns to the caller."""
    process = owner("""
pid = watch.status().pid
def freeze(stream, data):
    say(int(data))
    os.kill(pid, signal.SIGSTOP)
    for number in range(3):
        say("interrupt", number)
        signal.raise_signal(signal.SIGINT)
    say("never reached")
try:
    watch.run("echo $$; exec sleep 600", on_output=freeze)
except KeyboardInterrupt:
    say("out", watch.last_result)
os.kill(pid, signal.SIGCONT)
say(watch.run("echo alive").stdout.strip())
""")
    command = int(process.line())
    assert process.rest() == ["interrupt 0", "interrupt 1", "interrupt 2", "out None", "alive"]
    wait_for_end(command)


def test_threads_without_signals_run_commands_all_the_same() -> None:
    """Where SIGINT is ignored, the counter changes nothing and counts nothing."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert interrupts.count == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupted_shell_lives_on(owner: Callable[[str], Owner], tmp_path: Path) -> None:
    """SIGINT in a persistent shell ends the program in it; its variables are kept."""
    os.mkfifo(tmp_path / "up")
    process = owner("""
shell = watch.shell()
shell.run("A=kept")
try:
    shell.run("sh -c 'echo > up; exec sleep 600'")
except KeyboardInterrupt:
    say("interrupted", shell.last_result.exit_code)
say(shell.run("echo $A").stdout.strip())
""")
    assert (tmp_path / "up").read_text() == "\n"
    process.interrupt()
    assert process.rest() == ["interrupted 130", "kept"]


def test_a_second_interrupt_ends_the_shell_and_spares_the_watch(owner: Callable[[str], Owner], tmp_path: Path) -> None:
    """A command that ignores SIGINT in a persistent shell ends with its shell; the watch opens another one."""
    os.mkfifo(tmp_path / "up")
    process = owner("""
from jupyter_agentwatch.errors import ShellEndedError
shell = watch.shell()
try:
    shell.run("trap 'echo > up' INT; echo > up; " + IDLE)
except KeyboardInterrupt:
    say("interrupted")
try:
    shell.run("true")
except ShellEndedError:
    say("over")
say(watch.shell().run("echo new").stdout.strip())
""")
    for _ in range(2):
        assert (tmp_path / "up").read_text() == "\n"
        process.interrupt()
    assert process.rest() == ["interrupted", "over", "new"]


# The end of the owner


def test_a_killed_owner_takes_its_watch_along(owner: Callable[[str], Owner]) -> None:
    """When the owner is killed in mid-command, the supervisor ends the command, closes the log and ends itself."""
    process = owner("""
say(watch.status().pid, watch.log)
watch.run("echo $$; exec sleep 600", on_output=show)
""")
    supervisor, log = process.line().split()
    command = int(process.line())
    process.process.kill()
    wait_for_end(command)
    wait_for_end(int(supervisor))
    assert closing_reason(Path(log)) == "owner is gone"


@pytest.mark.parametrize("ending", ["", "sys.exit(3)", "raise ValueError", "del watch; say('deleted')"])
def test_the_end_of_the_interpreter_closes_the_watch(owner: Callable[[str], Owner], ending: str) -> None:
    """A script that ends without `close` leaves no process, and a log that says that it was closed."""
    process = owner(f"""
say(watch.status().pid, watch.log)
watch.start("sleep 600")
sys.stderr = open(os.devnull, "w")
{ending}
""")
    supervisor, log = process.line().split()
    process.rest()
    wait_for_end(int(supervisor))
    assert closing_reason(Path(log)) == "closed"


def test_a_forgotten_watch_is_closed(tmp_path: Path) -> None:
    """When the last reference goes, the sandbox goes."""
    watch = Watch(workspace=tmp_path, supervisor=fake_supervisor())
    log, pid = watch.log, watch.status().pid
    assert watch.run("true").ok
    del watch
    gc.collect()
    wait_for_end(pid)
    assert closing_reason(log) == "closed"


def test_a_running_command_keeps_its_watch(tmp_path: Path) -> None:
    """A command whose watch was forgotten runs to its end."""
    os.mkfifo(tmp_path / "go")
    running = Watch(workspace=tmp_path, supervisor=fake_supervisor()).start("cat go; echo done")
    gc.collect()
    (tmp_path / "go").write_text("go ")
    assert running.wait(LONG_S).stdout == "go done\n"


def test_a_forked_child_cannot_end_its_parents_watch(owner: Callable[[str], Owner]) -> None:
    """A child that the owner forks and that exits in the ordinary way leaves the watch to its parent."""
    process = owner("""
pid = os.fork()
if pid == 0:
    watch.close()
    sys.exit(0)
os.waitpid(pid, 0)
say(watch.run("echo alive").stdout.strip())
""")
    assert process.rest() == ["alive"]


def test_the_owners_terminal_does_not_reach_the_supervisor(tmp_path: Path) -> None:
    """The supervisor is in a session of its own, so that Ctrl-C in a terminal is only the owner's."""
    with Watch(workspace=tmp_path, supervisor=fake_supervisor()) as watch:
        pid = watch.status().pid
        assert os.getsid(pid) == pid != os.getsid(0)


# Cells


def kernel_shell(parent: Callable[[str], Any]) -> SimpleNamespace:
    """Return a module as IPython looks in a kernel whose `get_parent` is `parent`."""
    shell = SimpleNamespace(kernel=SimpleNamespace(get_parent=parent), execution_count=4)
    return SimpleNamespace(get_ipython=lambda: shell)


def no_parent(_: str) -> Any:
    raise LookupError


@pytest.mark.parametrize(
    ("module", "cell"),
    [
        (kernel_shell(lambda _: {"metadata": {"cellId": "abc"}}), "abc"),
        (kernel_shell(lambda _: {"metadata": {"cellId": "x" * 500}}), "x" * 128),
        (kernel_shell(lambda _: {"metadata": {}}), "In[4]"),
        (kernel_shell(lambda _: {"metadata": {"cellId": 3}}), "In[4]"),
        (kernel_shell(lambda _: {}), "In[4]"),
        (kernel_shell(no_parent), "In[4]"),
        (SimpleNamespace(get_ipython=lambda: None), ""),
        (SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=None)), ""),
        (SimpleNamespace(), ""),
        (None, ""),
    ],
)
def test_the_cell_is_found_without_importing_ipython(
    monkeypatch: pytest.MonkeyPatch, module: SimpleNamespace | None, cell: str
) -> None:
    """The front-end's cell id counts, else the execution count; outside a kernel there is none."""
    monkeypatch.setitem(sys.modules, "IPython", module)
    assert current_cell() == cell


def test_a_real_kernel_attributes_commands_and_is_interrupted(tmp_path: Path) -> None:
    """In ipykernel the cell's id is on record, also from a thread, and ■ ends the cell and not the watch."""
    root = str(Path(jupyter_agentwatch.__file__).parents[1])
    manager, client = start_new_kernel(kernel_name="python3", env={**os.environ, "PYTHONPATH": root})
    try:
        said = run_cell(client, "cell-a", PROLOGUE.replace("sys.argv[1]", repr(str(tmp_path))))
        said = run_cell(
            client,
            "cell-b",
            "import threading; watch.run('true')\n"
            "t = threading.Thread(target=watch.run, args=('true',)); t.start(); t.join()\n"
            "say(*watch.events(kind='step')['cell'])",
        )
        assert said.split() == ["cell-b"] * 4
        code = "watch.run('echo up; exec sleep 600', on_output=show)"
        assert run_cell(client, "cell-c", code, at="up", then=manager.interrupt_kernel).endswith("KeyboardInterrupt")
        said = run_cell(client, "cell-d", "say(watch.last_result.signal, watch.run('echo alive').stdout, watch.log)")
        signalled, alive, log = said.split()
        assert (signalled, alive) == ("2", "alive")
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
    assert closing_reason(Path(log)) in {"closed", "owner is gone"}


def run_cell(client: Any, cell: str, code: str, at: str = "", then: Callable[[], None] | None = None) -> str:
    """Execute code as a front-end does; return what it wrote, then the name of its error; do `then` once at `at`."""
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    message = client.session.msg("execute_request", content, metadata={"cellId": cell})
    client.shell_channel.send(message)
    said = ""
    while True:
        reply = client.get_iopub_msg(timeout=LONG_S)
        if reply["parent_header"].get("msg_id") != message["header"]["msg_id"]:
            continue
        kind, body = reply["msg_type"], reply["content"]
        if kind == "stream":
            said += body["text"]
            if then is not None and at in said:
                then()
                then = None
        elif kind == "error":
            said += body["ename"]
        elif kind == "status" and body["execution_state"] == "idle":
            return said


# Builders


def test_a_manual_clock_moves_only_when_it_is_told() -> None:
    """Time passes by `advance`; only the wall clock can step back."""
    clock = ManualClock(wall_ns=1000, monotonic_ns=5)
    clock.advance(2.5)
    assert (clock.wall_ns(), clock.monotonic_ns()) == (2_500_001_000, 2_500_000_005)
    clock.step_wall(-2)
    assert (clock.wall_ns(), clock.monotonic_ns()) == (500_001_000, 2_500_000_005)
    with pytest.raises(ValueError, match="cannot go back"):
        clock.advance(-1)


def test_events_are_built_with_what_a_test_cares_about() -> None:
    """Every kind can be built from its name alone; a wrong kind or field is an error."""
    kinds = [
        "session",
        "step",
        "exec",
        "exit",
        "connect",
        "listen",
        "dns",
        "flow",
        "file",
        "limit",
        "finding",
        "breaker",
        "control",
        "gap",
    ]
    assert [event(kind).__struct_config__.tag for kind in kinds] == kinds
    assert event("exec", path="/bin/sh", seq=9).seq == 9
    with pytest.raises(ValueError, match="'exce' is not a kind"):
        event("exce")
    with pytest.raises(TypeError, match="colour"):
        event("exec", colour="red")
