"""What a watch shows of itself: by its methods, by the magics, and not at all where there is no notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.manager import start_new_kernel

from jupyter_agentwatch import Watch
from jupyter_agentwatch.errors import ControlError
from jupyter_agentwatch.notebook.kill_routes import REQUEST
from jupyter_agentwatch.testing import fake_supervisor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jupyter_client.blocking.client import BlockingKernelClient

LONG_S = 60.0
VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def client() -> Iterator[BlockingKernelClient]:
    """A real kernel with the extension loaded, and with nothing of ours imported but by that."""
    manager, client = start_new_kernel()
    try:
        assert run(client, "%load_ext jupyter_agentwatch") == []
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def run(client: BlockingKernelClient, code: str) -> list[dict[str, Any]]:
    """Run a cell that must not fail; return the data of what it displayed."""
    shown: list[dict[str, Any]] = []

    def hear(message: dict[str, Any]) -> None:
        if message["msg_type"] in {"display_data", "execute_result"}:
            shown.append(message["content"]["data"])

    reply = client.execute_interactive(code, timeout=LONG_S, output_hook=hear)
    assert reply["content"]["status"] == "ok", reply["content"].get("evalue")
    return shown


def test_outside_of_a_notebook_a_watch_says_what_to_do_instead(tmp_path: Path) -> None:
    """In a script, dashboard, kill switch and panels are refused with the commands that do the same in a terminal."""
    with Watch(workspace=tmp_path, supervisor=fake_supervisor()) as watch:
        for show in (watch.dashboard, watch.kill_switch, lambda: watch.panel("gpu")):
            with pytest.raises(ControlError, match=rf"jupyter agentwatch kill {watch.id}"):
                show()


def test_a_kernel_answers_kills_as_soon_as_the_extension_is_loaded(client: BlockingKernelClient) -> None:
    """No widget has to be made first: the control message of a page that shows an older run is answered, too."""
    client.control_channel.send(client.session.msg(REQUEST, {"run": "00000000"}))
    reply = client.get_control_msg(timeout=LONG_S)
    assert reply["content"]["via"] == "control"
    assert "00000000" in reply["content"]["message"]


def test_a_watch_shows_dashboard_button_and_panels(client: BlockingKernelClient, tmp_path: Path) -> None:
    """Each method's widget is shown as a cell's last expression, and there is no panel of another name."""
    made = (
        "from jupyter_agentwatch import Watch\n"
        "from jupyter_agentwatch.testing import fake_supervisor\n"
        f"w = Watch(workspace={str(tmp_path)!r}, supervisor=fake_supervisor())"
    )
    assert run(client, made) == []
    for expression in ("w.dashboard()", "w.kill_switch()", "w.panel('audit')"):
        shown = run(client, expression)
        assert sum(VIEW in data for data in shown) == 1, expression
    reply = client.execute_interactive("w.panel('x')", timeout=LONG_S, output_hook=lambda _: None)
    assert "there are agent, incidents" in reply["content"]["evalue"]
    run(client, "w.close()")


@pytest.mark.sandbox
def test_the_magics_show_the_dashboard(client: BlockingKernelClient, tmp_path: Path) -> None:
    """`start` shows it unless it is told not to; `dashboard` shows it again, or that of any run."""
    started = run(client, f"%agentwatch start --workspace {tmp_path} --out mine")
    assert "started: rung" in started[0]["text/plain"]
    assert [VIEW in data for data in started[1:2]] == [True]
    assert any(VIEW in data for data in run(client, "%agentwatch dashboard"))
    assert any(VIEW in data for data in run(client, "%agentwatch dashboard 0123abcd"))
    run(client, "%agentwatch kill")
    quiet = run(client, f"%agentwatch start --no-dashboard --workspace {tmp_path}")
    assert not any(VIEW in data for data in quiet)
    run(client, "%agentwatch kill")
    reply = client.execute_interactive("%agentwatch dashboard ../x", timeout=LONG_S, output_hook=lambda _: None)
    assert (reply["content"]["ename"], "8 hexadecimal" in reply["content"]["evalue"]) == ("UsageError", True)
