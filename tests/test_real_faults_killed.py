"""Any part of a running watch killed at random points: nothing lives on, the log holds, and no file is forgotten.

The moments are random, from a seed that each failure shows. `AGENTWATCH_FAULTS` says how many there are on each rung.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.request import Request, urlopen

import psutil
import pytest
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

import jupyter_agentwatch
from jupyter_agentwatch import Policy, Watch
from jupyter_agentwatch.audit.verify import verify_log
from jupyter_agentwatch.cli import main
from jupyter_agentwatch.errors import AgentwatchError
from jupyter_agentwatch.supervisor.claims import forget_silence, sweep
from jupyter_agentwatch.watch.process import supervisor_command
from jupyter_agentwatch.wire.framing import encode_frame
from jupyter_agentwatch.wire.messages import Launch
from jupyter_agentwatch.wire.runtime import audit_log, control_socket, log_dir, new_watch_id, runtime_dir
from tests.outside import LONG_S, Inside, closing, hold, members, stop, wait_all_ended
from tests.servers import free_port, wait_listens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.sandbox, pytest.mark.rungs("A", "B")]

KILLS: Final = int(os.environ.get("AGENTWATCH_FAULTS", "100"))
"""Kills on each rung, shared out among the victims."""

SEED: Final = os.environ.get("AGENTWATCH_SEED", "1")
"""Say it again to see the same moments; what the machine does in between is its own."""

STARTING_S: Final = 0.3
"""A session's start takes about as long."""

BUSY: Final = """
n=0
while :; do
  n=$((n+1)); echo line $n >file; cat file; mv file moved; rm moved
  [ $n -gt 8 ] || (setsid sleep 1000 &)
done
"""
"""Writes, renames and removes files, execs, and leaves processes in sessions of their own."""

OWNER: Final = """
import json, sys
from jupyter_agentwatch import Watch
watch = Watch({"isolation": RUNG}, WORKSPACE)
running = watch.start(BUSY)
print(json.dumps({"watch": watch.id, "supervisor": watch.status().pid}), flush=True)
"""
GOES_ON: Final = """
for _, piece in running:
    print(piece, flush=True)
"""


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Folders of one test's own; after it, one more watch begins and ends, and then nothing may be left."""
    for variable, name in {"AGENTWATCH_RUNTIME_DIR": "run", "AGENTWATCH_LOG_DIR": "log"}.items():
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(tmp_path / name))
    yield
    with Watch(workspace=workspace(tmp_path)) as watch:
        assert watch.run(["true"]).ok
    assert os.listdir(runtime_dir()) == []
    kept = {path.name for path in log_dir().iterdir()}
    logs = {name for name in kept if name.endswith(".jsonl")}
    assert {name for name in kept - logs if name.removesuffix(".anchor") not in logs} == set()


def workspace(tmp_path: Path) -> Path:
    """Return a new folder."""
    made = tmp_path / f"work-{new_watch_id()}"
    made.mkdir()
    return made


def rounds(victim: str, rung: str, share: float) -> Iterator[random.Random]:
    """Yield a source of randomness for each of a victim's rounds, and name the one that failed."""
    for number in range(max(1, round(KILLS * share))):
        name = f"{SEED} {victim} {rung} {number}"
        try:
            yield random.Random(name)  # noqa: S311 -- moments, not secrets
        except BaseException as error:
            error.add_note(f"round: {name}")
            raise


def inside_of_supervisor(pid: int, watch: str) -> Inside:
    """Return how to tell a watch's processes from all others."""
    own = os.stat("/proc/self/ns/pid").st_ino
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(OSError):
            inode = os.stat(f"/proc/{child.pid}/ns/pid").st_ino
            if inode != own:
                return Inside(inode, child, b"")
    (init, *_) = psutil.Process(pid).children()
    return Inside(0, init, os.fsencode(control_socket(watch).with_suffix(".fresh")))


def read_lines(running: Any, count: int) -> None:
    """Read so many lines of a command's output, or what comes before its end."""
    seen = 0
    with contextlib.suppress(AgentwatchError):
        for _, piece in running:
            seen += piece.count(b"\n")
            if seen >= count:
                return


def check_torn(log: Path, *, has_begun: bool = True) -> None:
    """Check the log of a supervisor that was killed: whole up to its end, but for a record that it was writing."""
    found = verify_log(log)
    allowed = {None, "partial-line"} if has_begun else {None, "partial-line", "truncated"}
    assert found.problem in allowed, found.message
    assert found.anchored < found.records, found.message
    assert not found.closed


# The supervisor


def kill_busy(tmp_path: Path, dice: random.Random, victim: Callable[[int, Inside], int]) -> tuple[Watch, list[int]]:
    """Kill a part of a watch at a random line of a busy command, running or frozen; return what is left."""
    watch = Watch(workspace=workspace(tmp_path))
    with watch:
        supervisor = watch.status().pid
        inside = inside_of_supervisor(supervisor, watch.id)
        read_lines(watch.start(BUSY), dice.randrange(1, 8))
        if dice.random() < 0.3:
            watch.suspend()
            if dice.random() < 0.5:
                watch.resume()
        held = hold([supervisor, *members(inside)])
        os.kill(victim(supervisor, inside), signal.SIGKILL)
        wait_all_ended(held)
        left = members(inside)
    return watch, left


def test_a_supervisor_killed_in_mid_command_takes_all_along(tmp_path: Path, rung: str) -> None:
    """The supervisor is killed: no process is left, and the log is whole up to the last record."""
    for dice in rounds("supervisor", rung, 0.25):
        watch, left = kill_busy(tmp_path, dice, lambda supervisor, _: supervisor)
        assert left == []
        check_torn(watch.log)


STAYS: Final = """
mkfifo never begun
(setsid sh -c 'exec 3<>never; echo >begun; read word <&3' &)
read word <begun
"""
"""Leaves a process that makes no call any more which somebody would have to answer."""


def test_what_outlives_supervisor_and_init_is_ended_by_whoever_comes_next(
    tmp_path: Path, rung: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are killed at one moment: the command line, the owner's kill and the next watch each end what is left."""
    left = 1 if rung == "B" else 0
    for end in ("shell", "owner", "next"):
        with Watch(workspace=workspace(tmp_path)) as watch:
            supervisor = watch.status().pid
            inside = inside_of_supervisor(supervisor, watch.id)
            watch.run(STAYS, check=True)
            held = hold([supervisor, *members(inside)])
            stop(supervisor)
            inside.init.kill()
            wait_all_ended(hold([inside.init.pid]))
            os.kill(supervisor, signal.SIGKILL)
            wait_all_ended(hold([supervisor]))
            assert len(members(inside)) == left
            if end == "shell":
                assert main(["kill", watch.id]) == 0
                said = capsys.readouterr().out
                assert ("killed 1 process, 0 left" in said) == (rung == "B")
                assert ("it had ended before, and nothing of it is found" in said) == (rung == "A")
            elif end == "owner":
                assert watch.kill().killed == left
            else:
                sweep()
            wait_all_ended(held)


def start_supervisor(tmp_path: Path, rung: str, watch: str) -> subprocess.Popen[bytes]:
    """Start a supervisor as an owner does; its standard error names its family."""
    launch = Launch(
        watch=watch,
        policy=Policy(isolation=rung),  # type: ignore[arg-type]
        workspace=str(workspace(tmp_path)),
        socket=str(control_socket(watch)),
        log=str(audit_log(watch)),
        owner_pid=os.getpid(),
    )
    with said(watch).open("wb") as stderr:
        process = subprocess.Popen(
            supervisor_command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
            cwd="/",
        )
    assert process.stdin is not None
    with process.stdin as stdin, contextlib.suppress(BrokenPipeError):
        stdin.write(encode_frame(launch))
    return process


def said(watch: str) -> Path:
    """Return the file of a supervisor's standard error, which init and bubblewrap write to as well."""
    return Path(f"{audit_log(watch)}.stderr")


def family(path: str) -> list[int]:
    """Return the processes that have a file as standard error: a watch's own, before any command was run."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and os.readlink(f"/proc/{name}/fd/2").removesuffix(" (deleted)") == path:
                found.append(int(name))
    return found


def wait_family_ended(watch: str) -> None:
    """Wait until nobody of it is left: who is about to end may have had a child meanwhile."""
    path = str(said(watch))
    for _ in range(1000):
        pids = family(path)
        if not pids:
            forget_silence(audit_log(watch))  # as its owner would
            return
        wait_all_ended(hold(pids))
    pytest.fail(f"{family(path)} live on")


def let_start(process: subprocess.Popen[bytes], dice: random.Random) -> None:
    """Let a supervisor go on for a random time. That is the moment of the fault; nothing waits for it to be right."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(dice.uniform(0, STARTING_S))


def test_a_supervisor_killed_while_starting_leaves_nothing(tmp_path: Path, rung: str) -> None:
    """The supervisor is killed on its way up: neither bubblewrap nor init is left when the next one has looked."""
    for dice in rounds("starting supervisor", rung, 0.28):
        watch = new_watch_id()
        with start_supervisor(tmp_path, rung, watch) as process:
            let_start(process, dice)
            process.kill()
        sweep()  # bubblewrap has a moment in which it outlives the end of its parent for ever
        wait_family_ended(watch)
        log = audit_log(watch)
        if log.exists() and log.stat().st_size:
            check_torn(log, has_begun=False)


# Init


def test_an_init_killed_in_mid_command_ends_the_watch(tmp_path: Path, rung: str) -> None:
    """Init is killed: no process is left, and the supervisor closes the log and says why."""
    for dice in rounds("init", rung, 0.15):
        watch, left = kill_busy(tmp_path, dice, lambda _, inside: inside.init.pid)
        assert left == []
        end = closing(watch.log)
        assert end.survivors == 0
        assert end.reason in {"the sandbox ended by itself", "init could not freeze the sandbox"}


def test_an_init_killed_while_starting_ends_the_start(tmp_path: Path, rung: str) -> None:
    """What the supervisor has started is killed before all stands: the supervisor ends, too, and nothing is left."""
    for dice in rounds("starting init", rung, 0.2):
        watch = new_watch_id()
        with start_supervisor(tmp_path, rung, watch) as process:
            let_start(process, dice)
            # On A, init is below bubblewrap; on B it is our child, and what is below it has come to look at /proc.
            below = psutil.Process(process.pid).children(recursive=rung == "A")
            (below[-1] if below else process).kill()
            process.wait(LONG_S)
        if not below:
            sweep()  # it was the supervisor, and bubblewrap may have come into its moment since we looked
        wait_family_ended(watch)


# The owner


def test_a_killed_owner_takes_its_watch_along(tmp_path: Path, rung: str) -> None:
    """The process that owns the watch is killed at any moment: all is gone, and the log of what began is closed."""
    for dice in rounds("owner", rung, 0.11):
        place = workspace(tmp_path)
        names = f"RUNG, WORKSPACE, BUSY = {rung!r}, {str(place)!r}, {BUSY!r}"
        with owner([sys.executable, "-c", names + OWNER + GOES_ON]) as process:
            assert process.stdout is not None
            if dice.random() < 0.3:
                let_start(process, dice)
                process.kill()
                wait_supervisors_ended()
                continue  # what has begun is looked at below
            told = json.loads(process.stdout.readline())
            inside = inside_of_supervisor(told["supervisor"], told["watch"])
            for _ in range(dice.randrange(12)):
                process.stdout.readline()
            held = hold([told["supervisor"], *members(inside)])
            process.kill()
            wait_all_ended(held)
            assert members(inside) == []
    for log in log_dir().glob("*.jsonl"):
        assert closing(log).survivors == 0


@contextlib.contextmanager
def owner(argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that can import what this one can."""
    environment = {**os.environ, "PYTHONPATH": str(Path(jupyter_agentwatch.__file__).parents[1])}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_supervisors_ended() -> None:
    """Wait until no supervisor of this test is left."""
    mine = f"AGENTWATCH_RUNTIME_DIR={runtime_dir()}".encode()
    for _ in range(1000):
        pids = [p.pid for p in psutil.process_iter() if is_supervisor_with(p.pid, mine)]
        if not pids:
            return
        wait_all_ended(hold(pids))
    pytest.fail("supervisors live on")


def is_supervisor_with(pid: int, setting: bytes) -> bool:
    """Say whether a process is a supervisor with this setting in its environment."""
    with contextlib.suppress(OSError):
        is_ours = setting in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return is_ours and b"jupyter_agentwatch.supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


# The Jupyter server


async def test_a_killed_server_takes_its_kernels_watches_along_and_no_other(tmp_path: Path, rung: str) -> None:
    """The Jupyter server is killed: its kernel ends, hence that one's watch; a watch that it only showed goes on."""
    for dice in rounds("server", rung, 0.01):
        place = workspace(tmp_path)
        source = f"RUNG, WORKSPACE, BUSY = {rung!r}, {str(place)!r}, {BUSY!r}" + OWNER
        with Watch(workspace=workspace(tmp_path)) as other, jupyter_server() as (server, base):
            address = f"{base.replace('http', 'ws')}agentwatch/stream?run={other.id}&token=t"
            shown = await websocket_connect(HTTPRequest(address))
            assert await shown.read_message() is not None
            told = json.loads(await run_in_kernel(base, source))
            inside = inside_of_supervisor(told["supervisor"], told["watch"])
            for _ in range(dice.randrange(20)):
                assert other.run(["true"]).ok
            held = hold([told["supervisor"], *members(inside)])
            server.kill()
            await asyncio.to_thread(wait_all_ended, held)
            assert members(inside) == []
            assert closing(audit_log(told["watch"])).survivors == 0
            assert other.run(["true"]).ok
            await hang_up(shown)


@contextlib.contextmanager
def jupyter_server() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start a real Jupyter server with the extension and no other; yield it and its address."""
    others = ("jupyter_lsp", "jupyter_server_terminals", "jupyterlab", "notebook", "notebook_shim")
    options: dict[str, Any] = {
        "ServerApp.jpserver_extensions": {"jupyter_agentwatch": True, **dict.fromkeys(others, False)},
        "ServerApp.port": free_port(),
        "ServerApp.port_retries": 0,
        "ServerApp.allow_root": True,
        "ServerApp.open_browser": False,
        "ServerApp.disable_check_xsrf": True,
        "IdentityProvider.token": "t",
    }
    argv = [sys.executable, "-m", "jupyter_server", *(f"--{name}={value}" for name, value in options.items())]
    environment = {**os.environ, "PYTHONPATH": str(Path(jupyter_agentwatch.__file__).parents[1])}
    with subprocess.Popen(argv, stderr=subprocess.PIPE, env=environment) as server:
        try:
            assert server.stderr is not None
            heard = b""
            for line in server.stderr:
                heard += line
                if b"is running at" in line:
                    break
            else:
                pytest.fail(heard.decode())
            wait_listens(options["ServerApp.port"])  # it says so a moment before
            yield server, f"http://127.0.0.1:{options['ServerApp.port']}/"
        finally:
            server.kill()


async def run_in_kernel(base: str, source: str) -> str:
    """Start a kernel, run code in it as a front-end does, and return the first thing that it prints."""
    request = Request(f"{base}api/kernels?token=t", data=b"{}", method="POST")  # noqa: S310 -- of loopback
    answer = await asyncio.to_thread(lambda: urlopen(request, timeout=LONG_S).read())  # noqa: S310 -- as above
    kernel = json.loads(answer)["id"]
    address = f"{base.replace('http', 'ws')}api/kernels/{kernel}/channels?token=t"
    channels = await websocket_connect(HTTPRequest(address))
    header = {"msg_id": "1", "msg_type": "execute_request", "session": "s", "username": "", "version": "5.3"}
    content = {"code": source, "silent": False, "allow_stdin": False}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
    await channels.write_message(json.dumps(message))
    while True:
        text = await asyncio.wait_for(channels.read_message(), LONG_S)
        assert text, "the kernel has ended"
        reply = json.loads(text)
        assert reply["msg_type"] != "error", reply["content"]
        if reply["msg_type"] == "stream" and reply["content"]["name"] == "stdout":
            await hang_up(channels)
            return str(reply["content"]["text"])


async def hang_up(connection: WebSocketClientConnection) -> None:
    """Close a WebSocket, which tornado wants to hear from both sides."""
    connection.close()
    while await asyncio.wait_for(connection.read_message(), LONG_S) is not None:
        pass
