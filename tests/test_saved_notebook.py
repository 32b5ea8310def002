"""What a notebook keeps of a run: a picture and tables that need neither kernel nor script, of harmless text only."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client.manager import start_new_kernel

from jupyter_agentwatch.testing import event
from jupyter_agentwatch.watch.picture import picture, saved_html
from jupyter_agentwatch.watch.story import Points, Story

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jupyter_client.blocking.client import BlockingKernelClient

    from jupyter_agentwatch.events import AnyEvent

LONG_S = 60.0
WALL = 1_800_000_000 * 10**9
HOSTILE = "</text><script>alert(1)</script>\x1b[31m\u202e]]>&<img src=x onerror=alert(1)>\x00\ufffe"
SVG = "{http://www.w3.org/2000/svg}"


def told(*events: AnyEvent) -> Story:
    """Return the story of records."""
    story = Story("0123abcd")
    for each in events:
        story.feed(each)
    return story


def a_run(text: str = "x") -> list[AnyEvent]:
    """Return the records of a run in which everything that an agent may name is a text."""
    made = [
        event("session", op="open", rung="A", workspace=f"/{text}"),
        event("step", step=1, op="start", argv=["sh", "-c", text]),
        event("exec", step=1, pid=7, path=text, exe=f"/bin/{text}", argv=[text], basis="post"),
        event("connect", step=1, pid=7, transport="tcp", host=text, addr="192.0.2.1", port=443, verdict="deny"),
        event("connect", step=1, pid=7, transport="unix", addr=f"/run/{text}", verdict="allow"),
        event("resources", interval_s=2.0, cpu_s=1.0, rss_bytes=2**20),
        event("resources", interval_s=2.0, cpu_s=3.0, rss_bytes=2**21),
        event("finding", step=1, rule="mining.x", title=text, severity="critical", family="mining"),
        event("breaker", before="closed", after="frozen", cause=f"trip: {text}"),
        event("step", step=1, op="end", outcome="exited", exit_code=3),
        event("session", op="close", reason=text, killed=1, survivors=0),
    ]
    return [msgspec.structs.replace(each, t_wall_ns=WALL + i * 10**9) for i, each in enumerate(made)]


def an_agent(text: str = "x") -> list[AnyEvent]:
    """Return the records of an agent's run that a finding was about, where everything that it says is a text."""
    return [
        event("agent", op="begin", run="r1", agent=text, text=f"task {text}", max_steps=9),
        event("step", step=5, op="start", run="r1", turn=1, argv=["sh", "-c", text]),
        event("exec", step=5, path=text, argv=[text], basis="claimed"),
        event("connect", step=5, transport="tcp", addr="192.0.2.1", verdict="deny"),
        event("finding", step=5, rule="r", title=text, severity="high"),
        event("agent", op="turn", run="r1", turn=1, step=5, action="shell", text=text, outcome="exited 1", tokens_in=9),
        event("reward", run="r1", turn=1, total=-0.5, terms={text: -0.5}),
        event("agent", op="end", run="r1", turn=1, outcome="finished", text=f"answer {text}"),
    ]


def image(content: str) -> ET.Element:
    """Return the picture in what is saved, parsed."""
    (data,) = re.findall(r'src="data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)"', content)
    return ET.fromstring(base64.b64decode(data))  # noqa: S314 -- that it parses is the point; our own bytes


def texts(root: ET.Element) -> str:
    """Return all text of a picture."""
    return "\n".join(root.itertext())


def test_a_picture_tells_state_steps_connections_and_findings() -> None:
    """The head says how the run stands; each command, endpoint and finding is named, and refused lines are dashed."""
    story = told(*a_run("word"))
    root = image(saved_html(story, "ab" * 32, "/logs/0123abcd.jsonl"))
    shown = texts(root)
    assert "agent run 0123abcd · ended" in shown
    assert "isolation A · 1 step, 1 refused call, 1 finding, 0 processes left" in shown
    assert "1 · sh -c word · exit 3," in shown
    assert "word:443" in shown
    assert "critical: word [mining.x]" in shown
    assert "CPU, % of one core: at most 150" in shown
    assert "head " + "ab" * 32 in shown
    assert {line.get("stroke-dasharray") for line in root.iter(f"{SVG}line")} == {"4 3", "none"}


def test_a_picture_tells_how_far_an_agent_was() -> None:
    """Step, action, verdicts, tokens and reward of an agent's run are in the picture and in a table."""
    content = saved_html(told(*a_run("word"), *an_agent("word")), "", "")
    shown = texts(image(content))
    assert "agent word: finished · step 1 of 9 · 9 tokens · reward -0.5 = word -0.5" in shown
    assert "1 shell · word · exited 1 · 1 allowed, 1 denied, 1 found" in shown
    assert "<td>answer word</td>" in content
    assert "<td>1</td><td>shell</td><td>word</td><td>exited 1</td><td>1 allowed, 1 denied, 1 found</td>" in content
    running = texts(image(saved_html(told(*an_agent("word")[:2]), "", "")))
    assert "agent word: goes on · step 1 of 9" in running
    assert "1 · sh -c word · goes on" in running


def test_a_run_that_is_frozen_says_why_until_it_goes_on() -> None:
    """State and cause are those of the last move, and of a run that goes on nothing is said of its end."""
    frozen = told(*a_run("word")[:9])
    assert (frozen.state, frozen.why, frozen.has_ended) == ("frozen", "trip: word", False)
    shown = texts(image(saved_html(frozen, "", "")))
    assert "agent run 0123abcd · FROZEN" in shown
    assert "left" not in shown
    assert "running" in shown


@given(st.one_of(st.just(HOSTILE), st.text(max_size=2000)))
def test_whatever_an_agent_names_is_text(text: str) -> None:
    """Picture and tables stay what they are around any text: no element, attribute or control character comes of it."""
    safe = text.encode("utf-8", "replace").decode()
    story = told(*a_run(safe), *an_agent(safe))
    plain = told(*a_run("word"), *an_agent("word"))
    content = saved_html(story, "ab" * 32, "/logs/x")
    root, other = image(content), image(saved_html(plain, "ab" * 32, "/logs/x"))
    assert {each.tag for each in root.iter()} == {each.tag for each in other.iter()}
    names = [{name for each in one.iter() for name in each.attrib} for one in (root, other)]
    assert names[0] == names[1]
    kinds = "<div|<img|<details|<summary|<table|<tr|<th|<td"
    assert set(re.findall("<[a-z!?]+", content)) <= set(kinds.split("|"))
    assert (
        re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", content + "".join(root.itertext())) is None
    )


def test_a_scan_is_drawn_host_by_host() -> None:
    """Many ports of few hosts are one end of a line each; many hosts are folded into one."""
    scan = [
        event("connect", pid=7, transport="tcp", addr=f"10.77.0.{host}", port=port, verdict="deny")
        for host in range(2, 8)
        for port in range(1, 11)
    ]
    shown = texts(image(saved_html(told(*scan), "", "")))
    assert [f"10.77.0.{host}: 10 ports" in shown for host in range(2, 8)] == [True] * 6
    assert "more endpoints" not in shown
    many = [event("connect", pid=7, transport="tcp", addr=f"10.0.0.{host}", port=1) for host in range(90)]
    assert "67 more endpoints" in texts(image(saved_html(told(*many), "", "")))


def test_a_long_run_stays_small() -> None:
    """However many commands, connections, findings and measurements there are, what is saved has a bounded size."""
    story = Story("0123abcd")
    for number in range(1, 3000):
        story.feed(event("step", step=number, op="start", argv=["x" * 1000]))
        story.feed(
            event("connect", step=number, pid=number, transport="tcp", addr=f"192.0.2.{number % 250}", port=number)
        )
        story.feed(event("finding", rule="r", title="t" * 1000, severity="high"))
        run = str(number // 100)
        story.feed(event("agent", op="begin" if number % 100 == 1 else "turn", run=run, turn=number, text="t" * 1000))
        story.feed(event("reward", run=run, turn=number, terms={"n" * 100 + str(number): 1.0}))
        story.feed(event("resources", interval_s=1.0, cpu_s=0.5))
    assert story.steps == 2999
    assert len(saved_html(story, "", "")) < 200_000


def test_a_long_measurement_is_drawn_from_its_beginning() -> None:
    """Of many measurements some are left out, never the first ones alone: the line begins where the run began."""
    points = Points()
    for number in range(5000):
        points.add(number, float(number))
    assert points[0] == (0, 0.0)
    assert points[-1][0] > 4990
    assert 200 < len(points) <= 600
    assert points == sorted(points)


def test_gpus_are_drawn_under_their_names() -> None:
    """Each GPU has a line of its own in one chart, and one that is not real says so."""
    measured = [
        event("gpu", op="device", device=f"g{i}", index=i, simulated=True, utilization=10.0 * t)
        for t in range(3)
        for i in range(2)
    ]
    spaced = [msgspec.structs.replace(each, t_wall_ns=WALL + place * 10**9) for place, each in enumerate(measured)]
    root = image(saved_html(told(*spaced), "", ""))
    assert "GPU 0 SIMULATED, GPU 1 SIMULATED used, %: at most 20" in texts(root)
    assert len({line.get("stroke") for line in root.iter(f"{SVG}polyline")}) == 2


def test_a_run_without_anything_has_a_picture() -> None:
    """Before the first record there is a picture all the same."""
    assert "agent run 0123abcd · running" in texts(ET.fromstring(picture(Story("0123abcd"))))  # noqa: S314 -- our own


@pytest.fixture
def client(tmp_path: Path) -> Iterator[BlockingKernelClient]:
    """A real kernel in a folder of its own."""
    manager, client = start_new_kernel(cwd=str(tmp_path))
    try:
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def updates(client: BlockingKernelClient) -> Iterator[dict[str, Any]]:
    """Yield what is drawn anew, as it comes."""
    while True:
        message = client.get_iopub_msg(timeout=LONG_S)
        if message["msg_type"] == "update_display_data":
            yield message["content"]


@pytest.mark.sandbox
def test_a_dashboard_keeps_its_picture_up_to_date(client: BlockingKernelClient, tmp_path: Path) -> None:
    """Beside the widget stands an output that is drawn anew, by a thread, when the run has ended."""
    (tmp_path / "project").mkdir()
    heard: list[dict[str, Any]] = []
    code = (
        "from jupyter_agentwatch import Watch\nwatch = Watch(workspace='project')\n"
        "watch.run('echo first')\nboard = watch.dashboard()\nboard"
    )
    reply = client.execute_interactive(code, timeout=LONG_S, output_hook=heard.append)
    assert reply["content"]["status"] == "ok"
    shown = [each["content"] for each in heard if each["msg_type"] == "display_data"]
    assert "application/vnd.jupyter.widget-view+json" in shown[0]["data"]
    (saved,) = [each for each in shown if "aw-saved" in each["data"].get("text/html", "")]
    assert "echo first" in texts(image(saved["data"]["text/html"]))
    head = "watch.run('echo second'); print(watch.kill('seen').head)"
    client.execute_interactive(head, timeout=LONG_S, output_hook=heard.append)
    content = next(update for update in updates(client) if "ended" in update["data"]["text/plain"])
    assert content["transient"] == saved["transient"]
    last = texts(image(content["data"]["text/html"]))
    assert "echo second" in last
    printed = "".join(each["content"]["text"] for each in heard if each["msg_type"] == "stream")
    assert f"head {printed.strip()}" in last
