"""What a browser can do to runs, against real supervisors; above all: a kill that needs no kernel."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jupyter_agentwatch.events import Control, Session
from jupyter_agentwatch.policy.names import HOST_LOOPBACK
from jupyter_agentwatch.wire.runtime import control_socket
from tests.outside import closing, hold, inside_of, marked, members, recorded, state_of, stop, wait_all_ended
from tests.server.scenes import LONG_S, Browser, scene
from tests.servers import network, rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from jupyter_agentwatch import Watch

pytestmark = pytest.mark.sandbox

UNKNOWN = ["0badcafe", "0BADCAFE", "0badcafe0", "..", "%2e%2e", "x y", "0badcaf\u00e9"]
KERNEL = """
from jupyter_agentwatch import Watch
watch = Watch(workspace={workspace!r})
running = watch.start(["sleep", "600"])
print(watch.id)
"""


async def in_background(work: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Do what blocks beside the server's loop."""
    return await asyncio.to_thread(work, *args, **options)


async def busy(watch: Watch) -> tuple[Any, list[int]]:
    """Start two processes that leave their parent; return the command, and pidfds of all in the sandbox then."""
    script = f": {watch.id}; setsid sleep 600 & setsid sleep 601 & echo ready; wait"
    running = watch.start(["bash", "-c", script])
    output = iter(running)
    assert await in_background(next, output) == (1, b"ready\n")
    return (running, output), hold(members(await in_background(inside_of, watch)))


@scene
async def test_runs_are_listed_and_described(browser: Browser, watches: Callable[..., Watch]) -> None:
    """Every live watch of this user is listed with its state, and each can be asked for by id."""
    one, two = watches(), watches()
    listed = (await browser.get("api", "runs")).content["runs"]
    assert sorted(run["watch"] for run in listed) == sorted([one.id, two.id])
    run = (await browser.get("api", "runs", one.id)).content
    shown = {name: run[name] for name in ("watch", "state", "workspace", "log", "owner_pid", "asks", "kernel")}
    assert shown == {
        "watch": one.id,
        "state": "closed",
        "workspace": str(one.workspace),
        "log": str(one.log),
        "owner_pid": os.getpid(),
        "asks": [],
        "kernel": "",
    }


@scene
async def test_a_run_is_suspended_and_goes_on(browser: Browser, watch: Watch) -> None:
    """Suspend and resume act and are on record with who asked; what makes no sense now is 409 with the reason."""
    assert (await browser.post("api", "runs", watch.id, "suspend")).content == {"watch": watch.id, "done": True}
    assert (await browser.get("api", "runs", watch.id)).content["state"] == "frozen"
    again = await browser.post("api", "runs", watch.id, "suspend")
    assert (again.status, again.content["message"]) == (409, "cannot suspend: the watch is frozen")
    assert (await browser.post("api", "runs", watch.id, "resume")).status == 200
    assert (await in_background(watch.run, ["true"])).ok
    assert (await browser.post("api", "runs", watch.id, "resume")).status == 409


@scene
async def test_a_held_call_gets_a_persons_answer(browser: Browser, watches: Callable[..., Watch]) -> None:
    """A call that the policy holds is shown with its number; the decision is carried out once, and named on record."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        watch = watches(network(rule(port, verdict="ask")))
        for decision, code in (("deny", 1), ("allow", 0)):
            running = watch.start(["bash", "-c", f"exec 3<>/dev/tcp/{HOST_LOOPBACK}/{port}"])
            stream = await browser.stream("stream", params={"run": watch.id})
            state = await stream.until("state", lambda message: message["run"]["asks"])
            stream.connection.close()
            (ask,) = state["run"]["asks"]
            assert str(port) in ask["text"]
            place = ("api", "runs", watch.id, "asks", str(ask["ask"]))
            assert (await browser.post(*place, body={"decision": decision})).status == 200
            assert (await in_background(running.wait)).exit_code == code
            late = await browser.post(*place, body={"decision": "allow"})
            assert (late.status, "no open question" in late.content["message"]) == (409, True)
        answers = [event for event in recorded(watch, Control) if event.op == "answer"]
        assert ["jupyter server: " in event.by for event in answers] == [True, True]


@pytest.mark.parametrize("run", UNKNOWN)
@scene
async def test_what_never_was_is_not_found(browser: Browser, run: str) -> None:
    """An id that no watch of this user bears, or that is no id, is 404 for every verb."""
    for verb in ("kill", "suspend", "resume"):
        assert (await browser.post("api", "runs", run, verb)).status == 404
    assert (await browser.post("api", "runs", run, "asks", "1", body={"decision": "deny"})).status == 404
    assert (await browser.get("api", "runs", run)).status == 404


@pytest.mark.parametrize(
    ("verb", "body", "says"),
    [
        ("kill", b"{", "malformed body"),
        ("kill", b"[]", "Expected `object`, got `array`"),
        ("kill", b'{"reason": 3}', "Expected `str`, got `int` - at `$.reason`"),
        ("kill", b'{"reasons": "x"}', "unknown field `reasons`"),
        ("kill", b'{"reason": "\xff"}', "malformed body"),
        ("kill", b'{"reason": "' + b"x" * 20_000 + b'"}', "the limit is"),
        ("kill", b"[" * 10_000, "malformed body"),
        ("suspend", b'{"reason": "x"}', "unknown field `reason`"),
        ("resume", b"null", "malformed body"),
        ("asks/1", b"", "missing required field `decision`"),
        ("asks/1", b'{"decision": "perhaps"}', "Invalid enum value 'perhaps' - at `$.decision`"),
        ("asks/1", b'{"decision": true}', "at `$.decision`"),
    ],
)
@scene
async def test_a_malformed_body_is_refused_and_changes_nothing(
    browser: Browser, watch: Watch, verb: str, body: bytes, says: str
) -> None:
    """What is not exactly the body that an action takes is 400 with the field, and the run goes on."""
    answer = await browser.post("api", "runs", watch.id, *verb.split("/"), body=body)
    assert (answer.status, says in answer.content["message"]) == (400, True), answer.content
    assert watch.status().state == "closed"


@scene
async def test_a_kill_leaves_nothing_and_says_so(browser: Browser, watch: Watch) -> None:
    """The answer counts what ended, nothing is left outside, and the log names the reason and who it was."""
    _running, inside = await busy(watch)
    answer = await browser.post("api", "runs", watch.id, "kill", body={"reason": "it mines"})
    wait_all_ended(inside)
    assert marked(watch.id) == []
    content = answer.content
    assert (answer.status, content["final"], content["survivors"], content["via"]) == (200, True, 0, "http")
    assert content["killed"] >= 3
    assert content["ms"] > 0
    assert closing(watch.log).reason == "it mines"
    (breaker,) = [e for e in recorded(watch, Session) if e.op == "close"]
    assert breaker.survivors == 0
    again = await browser.post("api", "runs", watch.id, "kill")
    assert (again.status, again.content) == (200, content)
    assert (await browser.get("api", "runs")).content == {"runs": []}


@scene
async def test_ten_kills_at_once_get_one_answer(browser: Browser, watch: Watch) -> None:
    """However many press the button: one kill, one record, the same words for everybody."""
    _running, inside = await busy(watch)
    answers = await asyncio.gather(*(browser.post("api", "runs", watch.id, "kill") for _ in range(10)))
    wait_all_ended(inside)
    assert {answer.status for answer in answers} == {200}
    assert [answer.content for answer in answers] == [answers[0].content] * 10
    assert answers[0].content["survivors"] == 0


@scene
async def test_kill_all_ends_every_run(browser: Browser, watches: Callable[..., Watch]) -> None:
    """One request ends all watches of this user; with none left it is still final."""
    all_of_them = [watches() for _ in range(3)]
    commands = [await busy(watch) for watch in all_of_them]
    inside = [pidfd for _, pidfds in commands for pidfd in pidfds]
    answer = await browser.post("api", "kill-all", body={"reason": "enough"})
    wait_all_ended(inside)
    assert (answer.status, answer.content["final"]) == (200, True)
    assert sorted(each["watch"] for each in answer.content["results"]) == sorted(watch.id for watch in all_of_them)
    assert {(each["killed"] >= 3, each["survivors"]) for each in answer.content["results"]} == {(True, 0)}
    assert (await browser.post("api", "kill-all")).content == {"final": True, "results": []}


@scene
async def test_what_has_ended_says_how(browser: Browser, watch: Watch) -> None:
    """A run that its owner ended: a look and a kill say how it ended, every other action is 410."""
    await in_background(watch.kill, "done with it")
    run = (await browser.get("api", "runs", watch.id)).content
    assert (run["state"], run["survivors"], run["note"]) == ("ended", 0, "it has ended: done with it")
    killed = await browser.post("api", "runs", watch.id, "kill")
    assert (killed.status, killed.content["final"], killed.content["survivors"]) == (200, True, 0)
    for verb in ("suspend", "resume"):
        assert (await browser.post("api", "runs", watch.id, verb)).status == 410
    assert (await browser.post("api", "runs", watch.id, "asks", "1", body={"decision": "allow"})).status == 410


@scene
async def test_a_stopped_kernel_does_not_stop_a_kill(browser: Browser, jp_serverapp: Any, tmp_path: Path) -> None:
    """A real kernel that owns a watch is stopped by SIGSTOP: its run bears its id, and the kill is complete."""
    manager = jp_serverapp.kernel_manager
    kernel = await manager.start_kernel(kernel_name="python3")
    client = manager.get_kernel(kernel).client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=3 * LONG_S)
        said: list[str] = []
        (tmp_path / "project").mkdir()
        code = KERNEL.format(workspace=str(tmp_path / "project"))
        keep = {"output_hook": lambda message: said.append(message["content"].get("text", ""))}
        await client.execute_interactive(code, timeout=3 * LONG_S, allow_stdin=False, **keep)
        watch = "".join(said).strip()
        pid = manager.get_kernel(kernel).provisioner.pid
        stop(pid)
        run = (await browser.get("api", "runs", watch)).content
        assert (run["kernel"], run["owner_pid"]) == (kernel, pid)
        answer = await browser.post("api", "runs", watch, "kill")
        assert (answer.status, answer.content["final"], answer.content["survivors"]) == (200, True, 0)
        assert answer.content["killed"] >= 1
        assert state_of(pid) == "T"
        os.kill(pid, signal.SIGCONT)
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(kernel, now=True)


@scene
async def test_a_silent_supervisor_is_ended_itself(browser: Browser, watch: Watch) -> None:
    """Where the supervisor does not answer, a look says so, and the kill ends it with its sandbox and says how."""
    _running, inside = await busy(watch)
    stop(watch.status().pid)
    assert (await browser.get("api", "runs", watch.id)).status == 502
    (run,) = (await browser.get("api", "runs")).content["runs"]
    assert (run["state"], "did not answer" in run["error"]) == ("silent", True)
    answer = await browser.post("api", "runs", watch.id, "kill")
    wait_all_ended(inside)
    assert (answer.status, answer.content["final"], answer.content["survivors"]) == (200, True, 0)
    assert "SIGKILL to the supervisor" in answer.content["note"]


@scene
async def test_a_run_whose_socket_was_removed_is_killed_all_the_same(browser: Browser, watch: Watch) -> None:
    """Without its name in the file system the supervisor still holds the socket, and is found by it."""
    _running, inside = await busy(watch)
    control_socket(watch.id).unlink()
    answer = await browser.post("api", "runs", watch.id, "kill")
    wait_all_ended(inside)
    assert (answer.status, answer.content["final"], answer.content["survivors"]) == (200, True, 0)


@scene
async def test_no_end_is_claimed_that_nobody_has_seen(
    browser: Browser, watch: Watch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run whose log has no end and whose socket is elsewhere (another folder or machine) is `unknown`, not over."""
    elsewhere = tmp_path / "run"
    elsewhere.mkdir(mode=0o700)
    with monkeypatch.context() as moved:
        moved.setenv("AGENTWATCH_RUNTIME_DIR", str(elsewhere))
        run = (await browser.get("api", "runs", watch.id)).content
        assert (run["state"], "another machine" in run["error"]) == ("unknown", True)
        answer = await browser.post("api", "runs", watch.id, "kill")
        assert (answer.status, answer.content["final"]) == (502, False)
        assert "another machine" in answer.content["message"]
        (lost,) = await (await browser.stream("stream", params={"run": watch.id})).rest()
        assert lost["type"] == "lost"
    assert (await in_background(watch.run, ["true"])).ok
    killed = await browser.post("api", "runs", watch.id, "kill")
    assert (killed.status, killed.content["survivors"]) == (200, 0)


@contextmanager
def a_strangers_socket(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have another user listen on a socket in our folder; without root there is none, so then we are not ourselves."""
    here, there = os.pipe(), os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(path))
            if os.getuid() == 0:
                os.setuid(65534)
            listener.listen(8)
            os.write(here[1], b"1")
            os.read(there[0], 1)
        finally:
            os._exit(0)
    try:
        assert os.read(here[0], 1) == b"1"
        if os.getuid() != 0:
            monkeypatch.setattr("jupyter_agentwatch.wire.peer.os", _Elsewhere())
        yield
    finally:
        os.write(there[1], b"1")
        os.waitpid(child, 0)
        for descriptor in (*here, *there):
            os.close(descriptor)


class _Elsewhere:
    """The module `os` of somebody else."""

    def getuid(self) -> int:
        return os.getuid() + 1

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


@scene
async def test_another_users_supervisor_is_not_spoken_to(
    browser: Browser, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket of another user is shown as not ours; nothing is sent to it, and a kill says that it killed nothing."""
    with a_strangers_socket(runtime / "0badcafe.sock", monkeypatch):
        (run,) = (await browser.get("api", "runs")).content["runs"]
        assert (run["state"], "not yours" in run["error"]) == ("silent", True)
        assert (await browser.post("api", "runs", "0badcafe", "suspend")).status == 502
        answer = await browser.post("api", "runs", "0badcafe", "kill")
        assert (answer.status, answer.content["final"]) == (502, False)
        assert "nothing was killed" in answer.content["message"]
        assert answer.content["command"] == "jupyter agentwatch kill 0badcafe"
        everything = await browser.post("api", "kill-all")
        assert (everything.status, everything.content["command"]) == (502, "jupyter agentwatch kill --all")
        stream = await browser.stream("stream", params={"run": "0badcafe"})
        (lost,) = await stream.rest()
        assert (lost["type"], "not yours" in lost["message"]) == ("lost", True)


@scene
async def test_no_silent_run_stands_before_a_kill(browser: Browser, runtime: Path, watch: Watch) -> None:
    """Sixty sockets that never answer keep a list and every thread that asks waiting; a kill waits for none of them."""
    silent = [socket.socket(socket.AF_UNIX) for _ in range(60)]
    held: list[socket.socket] = []
    try:
        for number, each in enumerate(silent):
            each.bind(str(runtime / f"{number:08x}.sock"))
            each.listen(8)
            each.setblocking(False)
        listing = asyncio.ensure_future(browser.get("api", "runs"))
        loop = asyncio.get_running_loop()
        held += [(await loop.sock_accept(each))[0] for each in silent[:32]]  # as many as are asked at once
        answer = await browser.post("api", "runs", watch.id, "kill")
        with pytest.raises(BlockingIOError):
            silent[32].accept()  # nobody else has been asked yet: none of those threads was free
        assert answer.content["final"]
        assert not listing.done()
        await listing
        assert len(listing.result().content["runs"]) >= 60
    finally:
        for each in (*held, *silent):
            each.close()


TOKEN = "0123456789abcdef"
SERVER = [sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root", "--port=0"]


def test_servers_come_and_go_and_runs_stay(watch: Watch, tmp_path: Path) -> None:
    """A server that finds our configuration file loads the extension unasked; its end and restart touch no run."""
    root = Path(__file__).parents[2]
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    places = {installed: root / source for source, installed in wheel["shared-data"].items()}
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "JUPYTER_CONFIG_PATH": str(places["etc/jupyter/jupyter_server_config.d"].parent),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "jupyter"),
        "JUPYTER_TOKEN": TOKEN,
        "PYTHONPATH": os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    for _ in range(2):
        with subprocess.Popen(SERVER, env=environment, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            try:
                said = list(iter_until(server.stderr, "http://127.0.0.1"))
                assert "http://127.0.0.1" in said[-1], "".join(said)
                assert listed_by(int(said[-1].split("http://127.0.0.1:")[1].partition("/")[0])) == [watch.id]
            finally:
                server.terminate()
            server.stderr.read()
            assert server.wait(LONG_S) == 0
        assert watch.run(["true"]).ok


def iter_until(lines: Iterable[str], text: str) -> Iterator[str]:
    """Yield lines up to the first that holds a text."""
    for line in lines:
        yield line
        if text in line:
            return


def listed_by(port: int) -> list[str]:
    """Return the ids of the runs that the server at a port lists; it says where it is before it listens there."""
    for _ in range(400):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG_S)
        try:
            connection.request("GET", "/agentwatch/api/runs", headers={"Authorization": f"token {TOKEN}"})
            return [run["watch"] for run in json.loads(connection.getresponse().read())["runs"]]
        except ConnectionRefusedError:
            time.sleep(0.05)  # nothing tells when it begins to listen
        finally:
            connection.close()
    return pytest.fail(f"nobody listens at port {port}")
