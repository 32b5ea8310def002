"""The kernel's part without a browser: kills by control message and by comm, and what widgets answer."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.manager import KernelManager

from jupyter_agentwatch import Watch
from jupyter_agentwatch.errors import ControlError
from jupyter_agentwatch.notebook.dashboard import Dashboard
from jupyter_agentwatch.notebook.follower import Follower
from jupyter_agentwatch.notebook.kill_routes import REQUEST, TARGET, answer_kill
from jupyter_agentwatch.notebook.kill_switch import KillSwitch
from jupyter_agentwatch.notebook.panels import Panel
from jupyter_agentwatch.notebook.view import View
from tests.outside import LONG_S, wait_for_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jupyter_client.blocking.client import BlockingKernelClient

KERNEL_S = 60.0
LISTEN = "from jupyter_agentwatch.notebook.kill_routes import listen; assert listen(get_ipython())"


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """A watch in which something runs."""
    with Watch(workspace=tmp_path) as watch:
        wait_for_line(watch.start("sleep 60 & echo runs; sleep 60"), b"runs")  # or there is nothing to count yet
        yield watch


@pytest.fixture
def client() -> Iterator[BlockingKernelClient]:
    """A real kernel that listens for kills."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=KERNEL_S)
    reply = client.execute_interactive(LISTEN, timeout=KERNEL_S)
    assert reply["content"]["status"] == "ok"
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def wait_until_busy(client: BlockingKernelClient) -> None:
    """Wait until the kernel says that the cell has begun."""
    while True:
        message = client.get_iopub_msg(timeout=KERNEL_S)
        if message["msg_type"] == "execute_input":
            return


@pytest.mark.sandbox
@pytest.mark.parametrize(
    "code", ["pass", "import time; time.sleep(60)", "while True: pass"], ids=["idle", "sleep", "loop"]
)
def test_a_control_message_kills_whatever_the_cell_does(client: BlockingKernelClient, watch: Watch, code: str) -> None:
    """A kernel that is idle, sleeps or loops answers the kill on its control channel, with a count of none left."""
    client.execute(code)
    wait_until_busy(client)
    message = client.session.msg(REQUEST, {"run": watch.id})
    client.control_channel.send(message)
    reply = client.get_control_msg(timeout=KERNEL_S)
    assert reply["parent_header"]["msg_id"] == message["header"]["msg_id"]
    answer = reply["content"]
    assert (answer["final"], answer["survivors"], answer["via"]) == (True, 0, "control")
    assert answer["killed"] >= 1
    assert watch.kill().survivors == 0


@pytest.mark.sandbox
def test_a_comm_of_its_own_kills(client: BlockingKernelClient, watch: Watch) -> None:
    """A comm that the page opens gets one answer, and is closed by the kernel."""
    opened = client.session.msg("comm_open", {"comm_id": "1", "target_name": TARGET, "data": {"run": watch.id}})
    client.shell_channel.send(opened)
    said: list[tuple[str, Any]] = []
    while not any(kind == "comm_close" for kind, _ in said):
        message = client.get_iopub_msg(timeout=KERNEL_S)
        said.append((message["msg_type"], message["content"].get("data")))
    (answer,) = [data for kind, data in said if kind == "comm_msg"]
    assert (answer["final"], answer["survivors"], answer["via"]) == (True, 0, "comm")


@pytest.mark.parametrize("run", [None, 7, "", "../../x", "zzzzzzzz", "00000000", ["0123abcd"]])
def test_what_is_no_run_is_not_confirmed(run: object) -> None:
    """Whatever a page sends instead of an id gets an answer, never an acknowledgement and never an exception."""
    answer = answer_kill(run, "control")
    assert answer["final"] is False
    assert answer["message"]


@pytest.mark.parametrize("bad", ["", "x", "../etc", "0123ABCD"])
def test_a_widget_is_made_for_a_run_only(bad: str) -> None:
    """A text that cannot be a run's id is refused with the form of one; so is a panel that does not exist."""
    with pytest.raises(ControlError, match="8 hexadecimal characters"):
        KillSwitch(bad)
    with pytest.raises(ControlError, match="there are agent, incidents"):
        Panel("0123abcd", "graph")  # type: ignore[arg-type]


def sent_by(widget: View, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Return the list to which everything goes that a widget sends."""
    sent: list[tuple[Any, Any]] = []
    monkeypatch.setattr(widget, "send", lambda content, buffers=None: sent.append((content, buffers)))
    return sent


def test_a_widget_brings_the_big_module_when_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a page without a server the kernel sends the module as bytes, with the hash that it asked for."""
    widget = Dashboard("0123abcd")
    sent = sent_by(widget, monkeypatch)
    widget._on_message(widget, {"type": "bundle"}, [])
    ((content, buffers),) = sent
    assert content == {"type": "bundle", "hash": widget.bundle}
    assert len(buffers[0]) > 100_000


@pytest.mark.parametrize(
    "message", [None, 3, [], {}, {"type": "follow"}, {"type": "act", "action": 3}, {"type": "act", "action": "asks/x"}]
)
def test_what_a_widget_does_not_understand_is_passed_over(message: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A malformed message from a page does nothing, and raises nothing."""
    widget = Dashboard("0123abcd")
    sent = sent_by(widget, monkeypatch)
    widget._on_message(widget, message, [])
    assert sent == []


@pytest.mark.sandbox
def test_a_widget_can_end_only_its_own_run(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill that comes as a widget's message ends the widget's run, whatever other run the message names."""
    widget = Dashboard(watch)
    sent = sent_by(widget, monkeypatch)
    widget._on_message(widget, {"type": "kill", "run": "ffffffff"}, [])
    ((content, _),) = sent
    assert (content["run"], content["answer"]["final"]) == (watch.id, True)


@pytest.mark.sandbox
def test_a_kill_switch_alone_learns_how_its_run_ended(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked by a page without a server, it says nothing while the run goes on, and afterwards what was left."""
    widget = KillSwitch(watch)
    sent = sent_by(widget, monkeypatch)
    widget._on_message(widget, {"type": "outcome"}, [])
    watch.kill()
    widget._on_message(widget, {"type": "outcome"}, [])
    before, after = [content for content, _ in sent]
    assert before == {"type": "outcome", "run": {"watch": watch.id, "state": "unknown"}}
    assert (after["run"]["state"], after["run"]["survivors"]) == ("ended", 0)


@pytest.mark.sandbox
def test_a_follower_tells_state_records_and_end(tmp_path: Path) -> None:
    """A page without a server gets the state, every record once and in order, and the end."""
    told: list[dict[str, Any]] = []
    has_state = threading.Event()

    def hear(message: dict[str, Any], _buffers: Any) -> None:
        told.append(message)
        if message["type"] == "state":
            has_state.set()

    with Watch(workspace=tmp_path) as watch:
        follower = Follower(watch.id, hear)
        watch.run("true")
        assert has_state.wait(LONG_S)
        watch.kill()
    assert follower.join(LONG_S)
    seqs = [event["seq"] for each in told if each["type"] == "events" for event in each["events"]]
    assert seqs == list(range(len(seqs)))
    assert seqs
    assert told[-1]["type"] == "ended"
    assert told[-1]["run"]["survivors"] == 0
    assert {each["run_id"] for each in told} == {watch.id}


def test_the_static_copy_is_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a saved notebook holds has no markup of anybody else's, wherever the logs lie."""
    folder = tmp_path / "<b>logs"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("AGENTWATCH_LOG_DIR", str(folder))
    bundle, _ = Dashboard("0123abcd")._repr_mimebundle_()
    assert "&lt;b&gt;logs" in bundle["text/html"]
    assert "<b>" not in bundle["text/html"]
