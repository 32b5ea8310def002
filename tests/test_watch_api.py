"""The public handle against a fake supervisor in a process of its own: real pipes, sockets, commands and signals."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

import jupyter_agentwatch
from jupyter_agentwatch import Policy, Watch
from jupyter_agentwatch.audit.verify import verify_log
from jupyter_agentwatch.errors import (
    CommandFailedError,
    ControlError,
    PolicyError,
    RungError,
    SessionEndedError,
    WorkspaceError,
)
from jupyter_agentwatch.policy import Limits
from jupyter_agentwatch.testing import event, fake_supervisor
from jupyter_agentwatch.watch import CommandResult
from jupyter_agentwatch.watch.process import supervisor_command
from jupyter_agentwatch.watch.table import event_columns, event_table
from jupyter_agentwatch.wire.client import ask
from jupyter_agentwatch.wire.messages import Kill, Killed
from jupyter_agentwatch.wire.runtime import control_socket, live_watches, log_dir
from tests.outside import LONG_S, closing_reason, wait_for_end

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = str(Path(jupyter_agentwatch.__file__).parents[1])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    """A watch for the tests that leave it as it was."""
    with Watch(
        workspace=tmp_path_factory.mktemp("project"), supervisor=fake_supervisor(), cell=lambda: "cell-1"
    ) as watch:
        yield watch


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """A watch of the test's own."""
    with Watch(workspace=tmp_path, supervisor=fake_supervisor()) as watch:
        yield watch


def pid_of(watch: Watch) -> int:
    """Return the process id of a watch's supervisor."""
    return watch.status().pid


# Commands and their results


def test_a_result_says_all_that_is_known(shared: Watch) -> None:
    """Step, argv, outcome, exit code, both streams, resource use and the log's head come with every result."""
    result = shared.run(["sh", "-c", "printf out; printf err >&2; exit 3"])
    assert result.argv == ("sh", "-c", "printf out; printf err >&2; exit 3")
    assert (result.outcome, result.exit_code, result.signal, result.returncode) == ("exited", 3, None, 3)
    assert (result.stdout, result.stderr) == ("out", "err")
    assert (result.stdout_total, result.stderr_total) == (3, 3)
    assert (result.ok, result.stdout_truncated, result.stderr_truncated) == (False, False, False)
    assert result.duration_s > 0
    assert result.cpu_user_s + result.cpu_system_s > 0
    assert result.max_rss_bytes > 100_000
    assert result.head == shared.head
    assert len(result.head) == 64
    assert shared.last_result is result
    assert shared.run(["true"]).step == result.step + 1


def test_text_is_a_shell_script(shared: Watch) -> None:
    """A command given as text goes to the shell as it is, quotes, pipes and lines included."""
    result = shared.run("x='a b'\necho \"$x\" | tr a-z A-Z")
    assert result.stdout == "A B\n"
    assert result.ok


@pytest.mark.parametrize(
    ("command", "outcome", "returncode"),
    [
        (["no-such-program-here"], "not-found", 127),
        (["/etc/passwd"], "not-executable", 126),
        ("kill -TERM $$", "signalled", -15),
        ("exit 0", "exited", 0),
    ],
)
def test_how_it_ended_fits_into_one_number(
    shared: Watch, command: str | list[str], outcome: str, returncode: int
) -> None:
    """`returncode` is the exit code, the negative signal, or what a shell gives for a program that it cannot start."""
    result = shared.run(command)
    assert (result.outcome, result.returncode) == (outcome, returncode)
    assert result.ok == (returncode == 0)


def test_a_time_limit_ends_the_command(shared: Watch) -> None:
    """A command that outlives its timeout is killed, and the outcome says that it was the timeout."""
    result = shared.run(["sleep", "60"], timeout=0.05)
    assert (result.outcome, result.returncode, result.ok) == ("timeout", -9, False)


def test_bytes_that_are_no_text_are_kept(shared: Watch) -> None:
    """Binary output is there byte for byte; as text, what is not UTF-8 becomes a replacement character."""
    result = shared.run("printf '\\377\\000ok'")
    assert result.stdout_bytes == b"\xff\x00ok"
    assert result.stdout == "\ufffd\x00ok"


def test_long_input_and_output_pass_whole(shared: Watch) -> None:
    """Megabytes on standard input come back from cat unchanged; text is sent as UTF-8."""
    data = os.urandom(3 << 20)
    assert shared.run(["cat"], stdin=data).stdout_bytes == data
    assert shared.run(["cat"], stdin="žluť").stdout == "žluť"


def test_input_that_nobody_reads_is_no_error(shared: Watch) -> None:
    """A command may end without reading what it was given, however long that is."""
    assert shared.run(["true"], stdin=b"x" * (4 << 20)).ok


def test_without_input_a_command_reads_nothing(shared: Watch) -> None:
    """A command that reads gets an end of file at once, not the notebook's input."""
    assert shared.run(["cat"]).stdout == ""


def test_environment_and_folder_are_the_callers(shared: Watch) -> None:
    """`env` adds variables; `cwd` is taken relative to the workspace."""
    (shared.workspace / "sub").mkdir()
    result = shared.run('pwd; echo "$A"', env={"A": "1 = 2"}, cwd="sub")
    assert result.stdout.splitlines() == [str(shared.workspace / "sub"), "1 = 2"]


def test_output_over_the_limit_is_cut_and_marked(tmp_path: Path) -> None:
    """Of each stream the policy's limit is kept; the rest is counted and the result says so."""
    policy = Policy(limits=Limits(output_bytes=1000))
    with Watch(policy, tmp_path, supervisor=fake_supervisor()) as watch:
        result = watch.run("head -c 100000 /dev/zero; printf short >&2")
    assert (len(result.stdout_bytes), result.stdout_total, result.stdout_truncated) == (1000, 100000, True)
    assert (result.stderr, result.stderr_total, result.stderr_truncated) == ("short", 5, False)
    assert "100000 bytes, truncated" in repr(result)
    assert len(repr(result)) < 200


def test_check_raises_with_the_result(shared: Watch) -> None:
    """With `check`, a failing command raises an error that holds its result."""
    with pytest.raises(CommandFailedError, match="exited, return code 4") as caught:
        shared.run("echo why >&2; exit 4", check=True)
    assert caught.value.result.stderr == "why\n"
    assert shared.run(["true"], check=True).ok


@pytest.mark.parametrize(
    ("command", "options", "error", "match"),
    [
        ([], {}, ValueError, "at least a program"),
        (["a", "b\0c"], {}, ValueError, r"command\[1\] holds a NUL"),
        (["a", "\udcff"], {}, ValueError, r"command\[1\] is not valid Unicode"),
        (["a", 1], {}, TypeError, "int"),
        (b"ls", {}, TypeError, "not bytes"),
        ("ls", {"timeout": 0}, ValueError, "positive number of seconds"),
        ("ls", {"timeout": float("nan")}, ValueError, "positive number of seconds"),
        ("ls", {"env": {"A=B": "1"}}, ValueError, "'A=B' is not a variable's name"),
        ("ls", {"env": {"": "1"}}, ValueError, "not a variable's name"),
        ("ls", {"env": {"A": 1}}, TypeError, r"env\['A'\] must be text, not int"),
        ("ls", {"cwd": "a\0b"}, ValueError, "cwd holds a NUL"),
        ("ls", {"stdin": 1}, TypeError, "stdin must be bytes or text"),
    ],
)
def test_what_no_program_can_be_given_is_refused(
    shared: Watch, command: object, options: dict[str, object], error: type[Exception], match: str
) -> None:
    """A wrong argument is an error that names it, and nothing is started."""
    steps = shared.status().steps
    with pytest.raises(error, match=match):
        shared.run(command, **options)  # type: ignore[arg-type]
    assert shared.status().steps == steps


def test_output_is_delivered_in_the_callers_thread(shared: Watch) -> None:
    """`on_output` is called in the thread that called `run`, so that a notebook shows it in the right cell."""
    got: list[tuple[int, bytes]] = []
    threads = set()

    def receive(stream: int, data: bytes) -> None:
        got.append((stream, data))
        threads.add(threading.get_ident())

    shared.run("echo 1; echo 2 >&2; echo 3", on_output=receive)
    assert threads == {threading.get_ident()}
    assert b"".join(data for stream, data in got if stream == 1) == b"1\n3\n"
    assert b"".join(data for stream, data in got if stream == 2) == b"2\n"


def test_a_callback_that_raises_ends_the_command(shared: Watch) -> None:
    """An error in `on_output` reaches the caller, and the command that nobody holds any more is killed."""

    def refuse(stream: int, data: bytes) -> None:
        raise LookupError(data.decode())

    with pytest.raises(LookupError) as caught:
        shared.run("echo $$; exec sleep 600", on_output=refuse)
    wait_for_end(int(str(caught.value)))


def test_commands_run_side_by_side(shared: Watch) -> None:
    """Two commands of two threads run at once: each waits for the other through a named pipe."""
    os.mkfifo(shared.workspace / "a")
    os.mkfifo(shared.workspace / "b")
    results: list[CommandResult] = []
    scripts = ("echo ping > a; cat b", "cat a; echo pong > b")
    threads = [threading.Thread(target=lambda s=s: results.append(shared.run(s))) for s in scripts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert sorted(result.stdout for result in results) == ["ping\n", "pong\n"]
    assert len({result.step for result in results}) == 2


# Running commands


def test_a_running_command_can_be_talked_with(shared: Watch) -> None:
    """What is written reaches the command at once, its answer can be iterated over, and end of input ends it."""
    running = shared.start(["cat"], stdin=True)
    assert running.step > 0
    pieces = iter(running)
    running.write("hello")
    assert next(pieces) == (1, b"hello")
    running.write(b" again")
    assert next(pieces) == (1, b" again")
    running.close_stdin()
    assert list(pieces) == []
    assert running.wait(LONG_S).stdout == "hello again"
    assert b"".join(data for _, data in running) == b"hello again"
    with pytest.raises(BrokenPipeError, match="reads no more"):
        running.write("more")


def test_waiting_can_be_limited(shared: Watch) -> None:
    """`wait` with a time limit raises and leaves the command running; SIGINT ends it; a second kill is harmless."""
    running = shared.start("echo up; exec sleep 60")
    assert next(iter(running)) == (1, b"up\n")
    with pytest.raises(TimeoutError, match="still runs"):
        running.wait(0.01)
    assert not running.has_ended
    running.interrupt()
    assert running.wait(LONG_S).signal == signal.SIGINT
    running.kill()
    running.interrupt()


def test_kill_ends_what_ignores_interrupts(shared: Watch) -> None:
    """A command that ignores SIGINT ends by `kill`."""
    running = shared.start("trap '' INT; echo up; exec sleep 600")
    assert next(iter(running)) == (1, b"up\n")
    running.interrupt()
    running.kill()
    assert running.wait(LONG_S).returncode == -9


def test_writing_needs_an_input(shared: Watch) -> None:
    """Writing to a command that was started without `stdin=True` says so."""
    running = shared.start(["true"])
    with pytest.raises(ValueError, match="stdin=True"):
        running.write("x")
    running.wait(LONG_S)


# asyncio


async def test_the_async_forms_do_what_the_sync_ones_do(tmp_path: Path) -> None:
    """Commands run side by side in one event loop; they can be awaited, iterated over, and checked."""
    async with Watch(workspace=tmp_path, supervisor=fake_supervisor()) as watch:
        os.mkfifo(tmp_path / "a")
        one, two = await asyncio.gather(watch.run_async("cat a"), watch.run_async("echo met > a"))
        assert (one.stdout, two.ok) == ("met\n", True)
        running = await watch.start_async("echo 1; echo 2")
        assert b"".join([data async for _, data in running]) == b"1\n2\n"
        assert (await running).ok
        got: list[bytes] = []
        await watch.run_async("echo live", on_output=lambda _, data: got.append(data))
        assert got == [b"live\n"]
        with pytest.raises(CommandFailedError):
            await watch.run_async("exit 1", check=True)
    assert watch.has_ended
    with pytest.raises(SessionEndedError):
        await watch.run_async("true")


async def test_cancelling_kills_the_command(watch: Watch) -> None:
    """A cancelled `run_async` leaves no command behind, and the watch goes on."""
    pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        watch.run_async("echo $$; exec sleep 600", on_output=lambda _, data: pid.set_result(int(data)))
    )
    process = await asyncio.wait_for(pid, LONG_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(wait_for_end, process)
    assert (await watch.run_async("true")).ok


# Control


def test_a_suspended_watch_starts_nothing_until_it_is_resumed(watch: Watch) -> None:
    """`suspend` shows in the status and holds a new command; `resume` lets it run."""
    watch.suspend()
    assert watch.status().state == "frozen"
    running = watch.start("echo late")
    assert not running.has_ended
    watch.resume()
    assert running.wait(LONG_S).stdout == "late\n"


def test_kill_is_final_and_says_what_it_did(watch: Watch) -> None:
    """Kill ends what runs, closes the log and reports; a second kill reports the same; nothing runs afterwards."""
    pid = pid_of(watch)
    running = watch.start("echo $$; exec sleep 600")
    process = int(next(iter(running))[1])
    killed = watch.kill("enough")
    assert (killed.killed, killed.survivors, killed.note) == (1, 0, "")
    wait_for_end(process)
    wait_for_end(pid)
    assert watch.kill("again") == killed
    assert closing_reason(watch.log) == "enough"
    assert killed.head == watch.head == verify_log(watch.log).head
    assert running.wait(LONG_S).outcome == "killed"
    assert watch.has_ended
    assert "ended" in repr(watch)
    for call in (watch.status, watch.suspend, lambda: watch.run("true"), lambda: watch.start("true"), watch.shell):
        with pytest.raises(SessionEndedError):
            call()
    watch.close()


def test_a_watch_that_somebody_else_killed_knows_the_result(watch: Watch) -> None:
    """After a kill from another client nothing can be run, and `kill` tells what the log says of it."""
    supervisor = pid_of(watch)
    started = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            assert watch.run("echo up; sleep 600", on_output=lambda *_: started.set()).outcome == "killed"
            watch.run("true")
        except SessionEndedError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(LONG_S)
    ask(control_socket(watch.id), Kill(reason="from the shell"), Killed)
    thread.join(LONG_S)
    assert len(errors) == 1
    wait_for_end(supervisor)
    killed = watch.kill("too late")
    assert (killed.killed, killed.survivors, killed.note) == (1, 0, "had ended before: from the shell")


def test_a_deaf_supervisor_is_killed_itself(tmp_path: Path) -> None:
    """Where Kill is not answered, the supervisor is killed, the note says so, and survivors are counted honestly."""
    watch = Watch(workspace=tmp_path, supervisor=fake_supervisor("--deaf"))
    pid = pid_of(watch)
    # The fake has no sandbox that would end with it, so its command survives, and that must show.
    process = int(next(iter(watch.start("echo $$; exec sleep 600")))[1])
    try:
        killed = watch.kill("now")
        assert psutil.pid_exists(process)
    finally:
        os.kill(process, signal.SIGKILL)
    assert (killed.killed, killed.survivors) == (0, 1)
    assert "did not answer within 2 s; the supervisor was killed with SIGKILL" in killed.note
    assert not psutil.pid_exists(pid)
    assert watch.has_ended


def test_the_death_of_the_supervisor_is_told(watch: Watch) -> None:
    """A supervisor that is killed in mid-command ends `run` with an error that names the signal; nobody hangs."""
    pid = pid_of(watch)
    children: list[int] = []

    def shoot(_: int, data: bytes) -> None:
        children.append(int(data))
        os.kill(pid, signal.SIGKILL)

    try:
        with pytest.raises(SessionEndedError, match="SIGKILL"):
            watch.run("echo $$; exec sleep 600", on_output=shoot)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
    killed = watch.kill()
    assert killed.survivors == -1
    assert "without closing its log" in killed.note


def test_diff_and_undo_speak_of_the_last_step(watch: Watch) -> None:
    """Without a number, `diff` means the last command; where there is none, or no such step, it says so."""
    with pytest.raises(ControlError, match="no command has ended"):
        watch.diff()
    watch.run("true")
    assert watch.diff() == watch.diff(1) == watch.undo(1) == []
    with pytest.raises(ControlError, match="no step 7"):
        watch.undo(7)


def test_a_watch_describes_itself(shared: Watch) -> None:
    """Id, log, rung, notes, workspace and policy can be read; the text form is one plain line."""
    assert shared.log == log_dir() / f"{shared.id}.jsonl"
    assert shared.id in live_watches()
    assert shared.rung.startswith("A")
    assert shared.notes == []
    assert shared.policy == Policy()
    assert repr(shared).startswith(f"<Watch {shared.id} live, ")
    assert not hasattr(shared, "_repr_html_")


# Opening


@pytest.mark.parametrize(
    ("report", "error", "match"),
    [
        ('{"error":"RungError","text":"user namespaces: refused"}', RungError, "user namespaces: refused"),
        ('{"error":"WorkspaceError","text":"in use by watch x"}', WorkspaceError, "in use by watch x"),
        ('{"error":"OSError","text":"boom"}', ControlError, "OSError: boom"),
        ("Traceback", ControlError, "not a report: Traceback"),
        ("\x1b[31mred", ControlError, r"\\x1b\[31mred"),
    ],
)
def test_why_a_watch_cannot_open_is_told(tmp_path: Path, report: str, error: type[Exception], match: str) -> None:
    """What the supervisor reports is raised as the class it names; what is no report is an error, too."""
    with pytest.raises(error, match=match):
        Watch(workspace=tmp_path, supervisor=fake_supervisor("--report", report))


def test_a_supervisor_that_dies_has_last_words(tmp_path: Path) -> None:
    """A supervisor that ends without a report leaves its exit code and the end of its standard error, made harmless."""
    with pytest.raises(SessionEndedError, match=r"exit code 3 .*last words were:\n.*\\x1bMemoryError"):
        Watch(workspace=tmp_path, supervisor=fake_supervisor("--die", "\x1bMemoryError\n"))
    with pytest.raises(SessionEndedError, match=r"exit code 0 before it was ready$"):
        Watch(workspace=tmp_path, supervisor=["true"])
    with pytest.raises(ControlError, match="cannot start the supervisor"):
        Watch(workspace=tmp_path, supervisor=["/no/such/program"])


def test_quiet_supervisors_leave_no_stray_files(tmp_path: Path) -> None:
    """The file of the supervisor's standard error stays only where something was written to it."""
    with Watch(workspace=tmp_path, supervisor=fake_supervisor()) as watch:
        log = watch.log
    assert not log.with_name(log.name + ".stderr").exists()
    assert watch.id not in live_watches()


def test_the_workspace_must_be_a_project_folder(tmp_path: Path) -> None:
    """A missing folder, a file, a symbolic link, the root and the home are refused with what to do."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    for folder, match in {
        tmp_path / "none": "make the folder first",
        tmp_path / "file": "is not a folder",
        tmp_path / "link": f"symbolic link to {tmp_path}; name that folder itself",
        Path("/"): "choose a project folder",
        Path.home(): "choose a project folder",
        log_dir(): "choose a project folder",
        log_dir().parent: "choose a project folder",
    }.items():
        with pytest.raises(WorkspaceError, match=match):
            Watch(workspace=folder, supervisor=fake_supervisor())


def test_policies_come_in_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapping and a YAML file mean the same; what is malformed or missing names the file."""
    home = tmp_path / "home"
    workspace = tmp_path / "project"
    home.mkdir()
    workspace.mkdir()
    monkeypatch.setenv("HOME", str(home))
    path = home / "policy.yaml"
    path.write_text("limits:\n  output_bytes: 2000\n")
    for policy in ({"limits": {"output_bytes": 2000}}, path, str(path), "~/policy.yaml"):
        with Watch(policy, workspace, supervisor=fake_supervisor()) as watch:
            assert watch.policy.limits.output_bytes == 2000
    path.write_bytes(b"\xff")
    with pytest.raises(PolicyError, match=r"policy\.yaml: cannot read the policy: not UTF-8 text at byte"):
        Watch(path, workspace, supervisor=fake_supervisor())
    path.write_text("limits:\n  outputbytes: 2000\n")
    with pytest.raises(PolicyError, match=r"policy\.yaml"):
        Watch(path, workspace, supervisor=fake_supervisor())
    with pytest.raises(PolicyError, match=r"none\.yaml: cannot read the policy: No such file"):
        Watch(tmp_path / "none.yaml", workspace, supervisor=fake_supervisor())
    with pytest.raises(TypeError, match="not int"):
        Watch(3, workspace, supervisor=fake_supervisor())  # type: ignore[arg-type]


def test_nothing_planted_in_the_workspace_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor finds no module in the workspace, which the agent can write, whatever the kernel's path is."""
    for name in ("msgspec", "json", "sitecustomize", "jupyter_agentwatch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('planted')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f":.:{tmp_path}")
    with Watch(supervisor=fake_supervisor()) as watch:
        assert watch.run("true").ok
    assert supervisor_command()[-2:] == ("-m", "jupyter_agentwatch.supervisor")


# Events


def test_events_are_a_table(shared: Watch) -> None:
    """The log's records come as a DataFrame with their fields, a UTC time, and the filters that were asked for."""
    step = shared.run("exit 9").step
    table = shared.events(step=step)
    assert list(table["kind"]) == ["step", "step"]
    assert list(table["op"]) == ["start", "end"]
    assert list(table["cell"]) == ["cell-1", "cell-1"]
    assert table["exit_code"].iloc[1] == 9
    assert str(table["time"].dtype) == "datetime64[ns, UTC]"
    assert table["time"].iloc[0].value == table["t_wall_ns"].iloc[0]
    assert set(shared.events(kind="session")["workspace"]) == {str(shared.workspace)}
    assert len(shared.events(verdict="deny")) == 0
    assert len(shared.events(cell="no-such-cell")) == 0
    assert len(shared.events()) > 2
    with pytest.raises(ValueError, match="known: agent, breaker"):
        shared.events(kind="sessions")


def test_an_empty_table_has_its_columns(shared: Watch) -> None:
    """Where nothing matches, the columns and their types are there all the same."""
    empty = shared.events(kind="connect")
    assert len(empty) == 0
    assert list(empty.columns) == list(event_columns("connect"))
    assert {"time", "kind", "addr", "port", "rule", "flow", "watch"} <= set(empty.columns)
    full = event_table([event("connect", seq=4, port=80), event("exec", seq=5, argv=["a"])])
    assert list(full.columns) == list(event_columns())
    assert list(full["port"].isna()) == [False, True]
    assert (full.dtypes == event_table([]).dtypes).all()


def test_a_module_planted_in_the_current_folder_is_not_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor never gets the workspace on its path, even where a library that it needs seems to lie there."""
    for name in ("dns", "msgspec"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    assert str(tmp_path) not in supervisor_command()
