"""What a browser sees live: a picture, then every record or how many are missing, and at the end how the run ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.server.curves import Packed
from jupyter_agentwatch.server.handlers import SETTING
from jupyter_agentwatch.server.viewers import pump
from jupyter_agentwatch.wire.runtime import control_socket
from tests.outside import hold, wait_all_ended
from tests.server.scenes import Browser, Stream, scene

if TYPE_CHECKING:
    from collections.abc import Callable

    from jupyter_agentwatch import Watch

pytestmark = pytest.mark.sandbox

HOSTILE = "<img src=x onerror=alert(1)>\x1b]0;owned\x07\u202e\u2066" + "h" * 10_000


def sequence(messages: list[Any]) -> list[int]:
    """Return the `seq` of all events in messages, in their order."""
    return [event["seq"] for message in messages if message["type"] == "events" for event in message["events"]]


def has_ended(message: Any) -> bool:
    """Say whether a message tells of a command's end."""
    return any(event["kind"] == "step" and event["op"] == "end" for event in message.get("events", []))


def missing(messages: list[Any]) -> int:
    """Return how many records the messages say are missing."""
    return sum(message["lost"] for message in messages if message["type"] == "gap")


async def opened(browser: Browser, watch: Watch) -> tuple[Stream, Any]:
    """Begin to look at a run; return the stream and its first message."""
    stream = await browser.stream("stream", params={"run": watch.id})
    return stream, await stream.next()


def connections(watch: Watch) -> int:
    """Return how many sockets there are with the name of a watch's control socket, the listening one included."""
    path = str(control_socket(watch.id))
    return sum(line.split()[-1] == path for line in Path("/proc/net/unix").read_text().splitlines())


async def wait_connections(watch: Watch, count: int) -> None:
    """Wait until there are this many; each look gives the loop a turn."""
    for _ in range(2000):
        if connections(watch) == count:
            return
        await asyncio.sleep(0.005)  # the kernel tells nobody when a row of this file changes
    pytest.fail(f"{connections(watch)} connections, not {count}")


@scene
async def test_a_stream_is_a_picture_then_every_record_then_the_end(browser: Browser, watch: Watch) -> None:
    """The first message is the state; all records of the log follow in order without a gap; `ended` is the last."""
    stream, first = await opened(browser, watch)
    assert (first["type"], first["run"]["watch"], first["run"]["state"]) == ("state", watch.id, "closed")
    await asyncio.to_thread(watch.run, "for i in 1 2 3 4 5 6 7 8 9; do echo > file$i; done")
    await browser.post("api", "runs", watch.id, "suspend")
    assert (await stream.until("state", lambda message: message["run"]["state"] == "frozen"))["run"]["steps"] == 1
    stream.connection.close()
    stream, first = await opened(browser, watch)
    assert first["run"]["state"] == "frozen"
    await browser.post("api", "runs", watch.id, "resume")
    await asyncio.to_thread(watch.run, ["true"])
    await browser.post("api", "runs", watch.id, "kill", body={"reason": "seen enough"})
    messages = await stream.rest()
    log = [event.seq for event in read_events(watch.log)]
    seen = sequence(messages)
    assert seen == log[log.index(seen[0]) :]
    assert missing(messages) == 0
    ended = messages[-1]
    assert (ended["type"], ended["run"]["state"], ended["run"]["survivors"]) == ("ended", "ended", 0)
    assert ended["run"]["note"] == "it has ended: seen enough"
    assert stream.connection.close_code == 1000


@scene
async def test_hostile_text_arrives_as_harmless_text(browser: Browser, watch: Watch) -> None:
    """Escapes, bidirectional overrides and 10 kB names become short visible text; mark-up stays text in JSON."""
    stream, _ = await opened(browser, watch)
    await asyncio.to_thread(watch.run, ["true", HOSTILE])
    event = await stream.until("events", lambda m: any(e["kind"] == "exec" and e.get("argv") for e in m["events"]))
    (argv,) = {tuple(e["argv"]) for e in event["events"] if e["kind"] == "exec" and e.get("argv")}
    assert argv[1].startswith("<img src=x onerror=alert(1)>\\x1b]0;owned\\x07\\u202e\\u2066hhh")
    assert len(argv[1]) < 1100
    assert "characters)" in argv[1]
    assert [c for c in str(event) if unicodedata.category(c) in {"Cc", "Cf"}] == []
    stream.connection.close()


@scene
async def test_a_slow_reader_misses_records_and_is_told_how_many(
    jp_serverapp: Any, watches: Callable[..., Watch]
) -> None:
    """While a browser takes nothing, the supervisor goes on at its own pace; then the gap is exactly what it missed."""
    watch = watches({"limits": {"command_s": 60}})
    feeds = jp_serverapp.web_app.settings[SETTING].feeds
    viewer = await feeds.join(watch.id)
    messages: list[Any] = []
    may_take = asyncio.Event()

    async def take(message: bytes) -> None:
        messages.append(message)
        await may_take.wait()

    pumping = asyncio.ensure_future(pump(viewer, take, feeds.threads))
    script = "for i in {1..3000}; do : > file; done"
    assert (await asyncio.to_thread(watch.run, script)).ok
    assert len(messages) <= 1
    may_take.set()
    await asyncio.to_thread(watch.kill, "done")
    await pumping
    feeds.leave(watch.id, viewer)
    shown = [json.loads(message) for message in messages if not isinstance(message, Packed)]
    log = [event.seq for event in read_events(watch.log)]
    assert len(log) > 3000
    assert missing(shown) > 0
    assert len(sequence(shown)) + missing(shown) == len(log) - 1  # but for the first record, which was there before
    assert sequence(shown)[-1] == log[-1]


@scene
async def test_a_browser_that_never_reads_harms_nobody(
    browser: Browser, watch: Watch, jp_http_port: int, jp_base_url: str, jp_auth_header: dict[str, str]
) -> None:
    """With a full connection to one browser, another one gets every record, and commands run on."""
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, ("127.0.0.1", jp_http_port))
        head = {
            **jp_auth_header,
            "Host": f"127.0.0.1:{jp_http_port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        }
        lines = [f"GET {jp_base_url}agentwatch/stream?run={watch.id} HTTP/1.1", *(f"{k}: {v}" for k, v in head.items())]
        await loop.sock_sendall(raw, "\r\n".join([*lines, "", ""]).encode())
        assert (await loop.sock_recv(raw, 12)) == b"HTTP/1.1 101"
        stream, _ = await opened(browser, watch)
        script = "for i in {1..400}; do /bin/true {1..2000}; done"
        running = asyncio.ensure_future(asyncio.to_thread(watch.run, script))
        seen: list[Any] = [await stream.until("events")]
        while not has_ended(seen[-1]):
            seen.append(await stream.next())
        assert (await running).ok
        numbers = sequence(seen)
        assert len(numbers) + missing(seen) == numbers[-1] - numbers[0] + 1
        stream.connection.close()


@scene
async def test_a_supervisor_that_dies_ends_the_stream(browser: Browser, watch: Watch) -> None:
    """SIGKILL to the supervisor in the middle: the stream says that the run is over and that nobody counted."""
    stream, first = await opened(browser, watch)
    running = watch.start(["sleep", "600"])
    await stream.until("events")
    os.kill(first["run"]["pid"], signal.SIGKILL)
    (ended,) = [message for message in await stream.rest() if message["type"] == "ended"]
    assert (ended["run"]["state"], ended["run"]["survivors"]) == ("ended", None)
    assert "without closing the log" in ended["run"]["note"]
    assert stream.connection.close_code == 1000
    assert (await browser.get("api", "runs", watch.id)).content["state"] == "ended"
    killed = (await browser.post("api", "runs", watch.id, "kill")).content
    assert (killed["final"], killed["survivors"]) == (True, None)
    with pytest.raises(Exception, match="supervisor"):
        await asyncio.to_thread(running.wait)


@scene
async def test_a_supervisor_that_falls_silent_is_shown_as_silent(browser: Browser, watch: Watch) -> None:
    """A stopped supervisor turns the picture to `silent`, in the run's stream and in the summary, and back again."""
    stream, first = await opened(browser, watch)
    summary = await browser.stream("summary")
    os.kill(first["run"]["pid"], signal.SIGSTOP)
    assert await stream.until("state", lambda message: message["run"]["state"] == "silent")
    assert await summary.until("runs", lambda message: message["runs"][0]["state"] == "silent")
    os.kill(first["run"]["pid"], signal.SIGCONT)
    assert await stream.until("state", lambda message: message["run"]["state"] == "closed")
    assert await summary.until("runs", lambda message: message["runs"][0]["state"] == "closed")
    stream.connection.close()
    summary.connection.close()


@scene
async def test_many_browsers_cost_a_supervisor_one_connection(browser: Browser, watch: Watch) -> None:
    """Three browsers look at one run over one connection to its supervisor, which ends with the last of them."""
    await wait_connections(watch, 2)  # the listening socket and the owner's
    streams = [stream for stream, _ in await asyncio.gather(*(opened(browser, watch) for _ in range(3)))]
    await wait_connections(watch, 3)
    streams.pop().connection.close()
    await asyncio.to_thread(watch.run, ["true"])
    for stream in streams:
        assert await stream.until("events")
    assert connections(watch) == 3
    for stream in streams:
        stream.connection.close()
    await wait_connections(watch, 2)
    stream, first = await opened(browser, watch)
    assert first["run"]["steps"] == 1
    stream.connection.close()


@scene
async def test_a_stream_of_what_is_over_says_how_it_ended(browser: Browser, watch: Watch) -> None:
    """A page that is opened again later gets one message, `ended`; an id of nothing is refused."""
    await asyncio.to_thread(watch.kill, "long ago")
    (ended,) = await (await browser.stream("stream", params={"run": watch.id})).rest()
    assert (ended["type"], ended["run"]["note"]) == ("ended", "it has ended: long ago")
    for run, status in {"0badcafe": 404, "../../x": 400, "": 400}.items():
        assert await browser.refused_stream("stream", params={"run": run}) == status


@scene
async def test_the_summary_follows_all_runs(browser: Browser, watches: Callable[..., Watch]) -> None:
    """A status bar gets the list at once and whenever something changes: a new run, a freeze, an end."""
    summary = await browser.stream("summary")
    assert await summary.next() == {"type": "runs", "runs": []}
    one = watches()
    message = await summary.until("runs")
    assert [(run["watch"], run["state"]) for run in message["runs"]] == [(one.id, "closed")]
    two = watches()
    await browser.post("api", "runs", one.id, "suspend")
    states = {one.id: "frozen", two.id: "closed"}
    await summary.until("runs", lambda m: {run["watch"]: run["state"] for run in m["runs"]} == states)
    inside = hold([one.status().pid])
    await browser.post("api", "kill-all")
    await summary.until("runs", lambda m: m["runs"] == [])
    wait_all_ended(inside)
    summary.connection.close()
