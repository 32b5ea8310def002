"""Things that go wrong around a watch, and everyday use of its history and shells: nothing is lost, all is said."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from jupyter_agentwatch import Policy, Watch
from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.audit.verify import verify_log
from jupyter_agentwatch.errors import WorkspaceError
from jupyter_agentwatch.events import Exec, FileOp, Finding, Step
from jupyter_agentwatch.watch.process import supervisor_command
from jupyter_agentwatch.wire.framing import encode_frame
from jupyter_agentwatch.wire.messages import Launch
from jupyter_agentwatch.wire.runtime import control_socket, log_dir
from tests.outside import LONG_S, closing, last_step, recorded, wait_for_line

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.sandbox

ROOT = Path(__file__).parent.parent


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """A watch of the test's own."""
    with Watch(workspace=tmp_path) as watch:
        yield watch


# Workspaces


def test_two_watches_cannot_share_a_workspace(watch: Watch) -> None:
    """The second watch on a workspace is refused by the first one's id; when that has ended, it is free again."""
    with pytest.raises(WorkspaceError, match=watch.id):
        Watch(workspace=watch.workspace)
    assert watch.run(["true"]).ok
    watch.close()
    with Watch(workspace=watch.workspace) as later:
        assert later.run(["true"]).ok


@pytest.mark.parametrize("way", ["missing", "file", "link", "home", "log", "system"])
def test_a_folder_that_cannot_be_a_workspace_is_refused(tmp_path: Path, way: str) -> None:
    """Missing, no folder, a link, the home, above the log, or the system's: refused by name before anything starts."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    folders = {"home": Path.home(), "log": log_dir().parent, "system": Path("/usr/share")}
    folder = folders.get(way, tmp_path / way)
    with pytest.raises(WorkspaceError, match=str(folder)):
        Watch(workspace=folder)


# A supervisor that cannot begin


def test_a_supervisor_without_an_owner_does_not_stay(tmp_path: Path) -> None:
    """An owner that is gone before the watch stands leaves no supervisor behind."""
    with subprocess.Popen(["true"]) as owner:
        owner.wait()
    watch = "0badf00d"
    launch = Launch(
        watch=watch,
        policy=Policy(),
        workspace=str(tmp_path),
        socket=str(control_socket(watch)),
        log=str(log_dir() / f"{watch}.jsonl"),
        owner_pid=owner.pid,
    )
    with subprocess.Popen(
        supervisor_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as supervisor:
        try:
            supervisor.communicate(encode_frame(launch), timeout=LONG_S)
        finally:
            supervisor.kill()
    assert verify_log(log_dir() / f"{watch}.jsonl").first_bad is None


# The log


FULL_DISK = """
import contextlib, json, os, sys
from pathlib import Path
from jupyter_agentwatch import Watch
from jupyter_agentwatch.errors import AgentwatchError, ControlError

logs = Path(os.environ["AGENTWATCH_LOG_DIR"])
told = {}
with Watch(workspace=sys.argv[1]) as watch:
    told["before"] = watch.run(["true"]).outcome
    running = watch.start(["python3", "-c", "import os\\nprint('up', flush=True)\\nos.read(0, 1)\\n"
                           "for n in range(300):\\n"
                           "  try: open('new', 'w').close(); print('made')\\n"
                           "  except OSError as error: print(error.errno, flush=True)"], stdin=True)
    for _, piece in running:
        if b"up" in piece:
            break
    with contextlib.suppress(OSError), (logs / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))
    for size in (512, 64, 8, 1):
        with contextlib.suppress(OSError), (logs / f"more-{size}").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(size))
    running.write(b"x")
    while watch.status().state == "closed":
        pass
    told["state"], told["notes"] = watch.status().state, watch.status().notes
    try:
        watch.run(["true"])
    except ControlError as error:
        told["refused"] = str(error)
    watch.resume()
    while watch.status().state == "closed":
        pass
    told["full"] = []
    for _ in range(20):
        try:
            told["full"].append(watch.run(["touch", "while-full"]).outcome)
        except AgentwatchError as error:
            told["full"].append(type(error).__name__)
    told["still full"] = watch.status().state
    for file in [*logs.glob("more-*"), logs / "ballast"]:
        file.unlink()
    if watch.status().state == "frozen":
        watch.resume()
    told["output"] = running.wait(20).stdout.split()
    told["after"] = watch.run(["true"]).outcome
    told["log"] = str(watch.log)
from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.audit.verify import verify_log
told["verified"] = verify_log(watch.log).ok
told["gaps"] = [event.lost for event in read_events(watch.log, kinds={"gap"})]
told["made"] = os.path.exists(sys.argv[1] + "/while-full")
print(json.dumps(told))
"""


def test_a_full_disk_denies_and_freezes_and_is_said(tmp_path: Path) -> None:
    """No room for the log: calls are denied, the watch freezes with a note, and after it the loss is on record."""
    workspace, logs = tmp_path / "project", tmp_path / "logs"
    workspace.mkdir()
    logs.mkdir()
    script = f'mount -t tmpfs -o size=256k,mode=700 tmpfs {logs}\nexec "$@"'
    argv = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", script, "sh"]
    environment = {**os.environ, "AGENTWATCH_LOG_DIR": str(logs), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        [*argv, sys.executable, "-c", FULL_DISK, str(workspace)],
        capture_output=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["before"], told["after"], told["verified"]) == ("exited", "exited", True)
    assert told["state"] == "frozen"
    assert any("log" in note for note in told["notes"])
    assert "frozen" in told["refused"]
    assert "exited" not in told["full"]
    assert told["still full"] == "frozen"
    assert not told["made"]
    assert "1" in told["output"]  # EPERM
    assert sum(told["gaps"]) > 0


CLOCK = """
import itertools, runpy, sys, time
_, root = sys.argv[:2]
sys.path.append(root)
sys.argv[:] = ["supervisor"]
real, calls = time.time_ns, itertools.count()
time.time_ns = lambda: real() - 3_600_000_000_000 * (next(calls) // 8)
runpy.run_module("jupyter_agentwatch.supervisor", run_name="__main__", alter_sys=True)
"""


def test_a_clock_that_steps_back_disturbs_nothing(tmp_path: Path) -> None:
    """The wall clock goes back by hours again and again: the order is the number's, and the log verifies."""
    with Watch(workspace=tmp_path, supervisor=[sys.executable, "-P", "-c", CLOCK, str(ROOT)]) as watch:
        for _ in range(5):
            assert watch.run("touch a b c").ok
    closing(watch.log)
    events = list(read_events(watch.log))
    assert [event.seq for event in events] == list(range(len(events)))
    assert any(after.t_wall_ns < before.t_wall_ns for before, after in itertools.pairwise(events))
    assert all(after.t_mono_ns >= before.t_mono_ns for before, after in itertools.pairwise(events))


# Files that could trap the monitor


def test_files_that_block_or_never_end_do_not_hold_the_monitor_up(watch: Watch) -> None:
    """A named pipe, a sparse file of a terabyte, a device and a loop of links can be written to without harm."""
    script = """
mkfifo pipe; ln -s loop loop; ln -s /dev/zero endless; truncate -s 1T huge
(cat <pipe &) ; echo through >pipe
echo x >>huge; echo x 2>/dev/null >loop; echo x >endless; rm huge pipe
"""
    result = watch.run(script, timeout=15)
    assert result.outcome == "exited", result
    assert "through" in result.stdout
    assert watch.run(["true"], timeout=5).ok
    assert recorded(watch, Finding) == []


# History


def test_diff_and_undo_of_what_a_real_command_did(watch: Watch) -> None:
    """What a shell script changed is listed, and taken back byte by byte."""
    workspace = watch.workspace
    (workspace / "kept").write_text("one\ntwo\n")
    (workspace / "gone").write_bytes(b"\0binary\xff")
    (workspace / "gone").chmod(0o640)
    (workspace / "moved").write_text("m")
    step = watch.run("sed -i s/two/three/ kept; rm gone; mkdir -p d/e; echo new >d/e/new; mv moved renamed").step
    changes = {change.path: change for change in watch.diff(step)}
    assert {"kept", "gone", "d/e/new", "moved", "renamed"} <= set(changes)
    assert "+three" in changes["kept"].diff
    assert "-two" in changes["kept"].diff
    watch.undo(step)
    assert (workspace / "kept").read_text() == "one\ntwo\n"
    assert (workspace / "gone").read_bytes() == b"\0binary\xff"
    assert (workspace / "gone").stat().st_mode & 0o777 == 0o640
    assert (workspace / "moved").read_text() == "m"
    assert not (workspace / "d").exists()
    assert not (workspace / "renamed").exists()


def test_undo_does_not_follow_links_out(watch: Watch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A folder that a later step replaced by a link to the outside is not written through."""
    beyond = tmp_path_factory.mktemp("outside")
    (beyond / "file").write_text("outside")
    (watch.workspace / "folder").mkdir()
    (watch.workspace / "folder" / "file").write_text("before")
    step = watch.run("echo changed >folder/file").step
    watch.run(f"rm -r folder; ln -s {beyond} folder")
    with contextlib.suppress(Exception):
        watch.undo(step)
    assert (beyond / "file").read_text() == "outside"
    assert [path.name for path in beyond.iterdir()] == ["file"]


# Shells and several commands at once


def test_a_shell_keeps_folder_and_variables(watch: Watch) -> None:
    """Folder, variables and functions last; exit codes, both streams and the step are right."""
    with watch.shell() as shell:
        assert shell.run("mkdir sub; cd sub; kept=value").ok
        assert shell.run("pwd; echo $kept").stdout == f"{watch.workspace}/sub\nvalue\n"
        failed = shell.run("echo to-error >&2; (exit 7)")
        assert (failed.exit_code, failed.stderr) == (7, "to-error\n")
        shell.run("touch made")
        step = shell.running.step
    made = [event for event in recorded(watch, FileOp) if event.path == f"{watch.workspace}/sub/made"]
    assert {event.step for event in made} == {step}


def test_a_terminal_is_a_terminal(watch: Watch) -> None:
    """On a terminal, programs see one, of the right size, with job control; Ctrl-C interrupts."""
    with watch.shell(pty=True) as terminal:
        terminal.resize(33, 99)
        # The job says itself that it runs: a Ctrl-C between two commands would meet neither.
        terminal.write("stty size; tty; sh -c 'echo run''ning; exec sleep 100'\n")
        seen = b""
        while b"running" not in seen:
            seen += terminal.read(LONG_S)
        assert b"33 99" in seen
        assert b"/dev/pts/" in seen
        terminal.write("\x03")
        terminal.write("echo in''terrupted $?\n")
        while b"interrupted 130" not in seen:
            seen += terminal.read(LONG_S)
        assert b"job control" not in seen


def test_commands_at_once_keep_their_events_apart(watch: Watch) -> None:
    """Eight threads, five commands each: every file and program is on record under the step that caused it."""
    steps: dict[int, str] = {}

    def work(number: int) -> None:
        for turn in range(5):
            name = f"file-{number}-{turn}"
            result = watch.run(f"sh -c '(setsid touch {name}) & wait'; cat {name}")
            assert result.ok
            steps[result.step] = name

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(steps) == list(range(1, 41))
    seen = {event.step: Path(event.path).name for event in recorded(watch, FileOp) if "/file-" in event.path}
    assert seen == steps
    touched = {e.step: e.argv[1] for e in recorded(watch, Exec) if e.argv[:1] == ["touch"]}
    assert touched == steps


def test_events_of_a_cell_are_its_own(tmp_path: Path) -> None:
    """Each record bears the cell of the command that caused it, also where commands of two cells run at once."""
    local = threading.local()
    with Watch(workspace=tmp_path, cell=lambda: getattr(local, "cell", "")) as watch:

        def work(cell: str) -> None:
            local.cell = cell
            assert watch.run(f"touch {cell}").ok

        threads = [threading.Thread(target=work, args=(f"cell-{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        made = {(e.cell, Path(e.path).name) for e in recorded(watch, FileOp) if "/cell-" in e.path}
    assert made == {(f"cell-{n}", f"cell-{n}") for n in range(4)}


def test_a_broken_client_does_not_hurt_a_watch(watch: Watch) -> None:
    """Noise on the control socket ends that connection; the watch and its commands go on."""
    import socket

    running = watch.start(["sh", "-c", "echo up; read x"], stdin=True)
    wait_for_line(running, b"up")
    for noise in (b"\0", b"\xff" * 64, b"\x00\x00\x00\x05hello", msgspec.msgpack.encode({"type": "hello"})):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(LONG_S)
            client.connect(str(control_socket(watch.id)))
            client.sendall(noise)
            client.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while client.recv(4096):
                    pass
    assert watch.run(["true"]).ok
    running.write(b"x\n")
    assert running.wait(LONG_S).outcome == "exited"


def test_what_is_asked_of_a_result_is_on_record(watch: Watch) -> None:
    """A command's start and end stand in the log with its arguments, folder, times and sizes."""
    result: Any = watch.run(["sh", "-c", "printf four; exit 3"], cwd=".")
    start, end = recorded(watch, Step, last_step(watch))
    assert (start.op, start.argv, start.cwd) == ("start", list(result.argv), f"{watch.workspace}/.")
    assert (end.op, end.exit_code, end.stdout_bytes, end.outcome) == ("end", 3, 4, "exited")
    assert end.duration_s > 0
