"""What a page is told of a person's part: which calls wait, for how long, and what came of a trip."""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from jupyter_agentwatch.cli.words import status_text
from jupyter_agentwatch.errors import LogError
from jupyter_agentwatch.server import incidents
from jupyter_agentwatch.server.incidents import recent_incidents
from jupyter_agentwatch.watch.incidents import find_incidents
from tests.server.scenes import Browser, scene

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from jupyter_agentwatch import Watch

pytestmark = pytest.mark.sandbox

MINER = ["./work <b>\u202e", "-o", "stratum+tcp://pool.example:3333", "-u", "4" + "A" * 94, "--donate-level", "1"]
ASKED = {"network": {"rules": [{"cidr": "192.0.2.0/24", "ports": [443], "verdict": "ask"}], "ask_timeout_s": 40}}


def mine(watch: Watch) -> None:
    """Start what looks like a miner, and is a copy of `true` with a hostile name."""
    shutil.copy(shutil.which("true") or "/bin/true", watch.workspace / MINER[0])
    watch.start(MINER)


@scene
async def test_what_is_held_comes_with_the_time_that_is_left(browser: Browser, watches: Callable[..., Watch]) -> None:
    """A held call has at most the policy's seconds left; the status in words says so, too, and an answer ends it."""
    watch = watches(ASKED)
    stream = await browser.stream("stream", params={"run": watch.id})
    code = "import socket; socket.socket().connect_ex(('192.0.2.9', 443))"
    await asyncio.to_thread(watch.start, ["python3", "-c", code])
    run = (await stream.until("state", lambda message: bool(message["run"]["asks"])))["run"]
    ((number, left),) = run["asks_left_s"].items()
    assert int(number) == run["asks"][0]["ask"]
    assert 0 < left <= 40
    status = await asyncio.to_thread(watch.status)
    assert f"(denied in {status.asks_left_s[int(number)]:.0f} s unless a person decides)" in status_text(status)
    await browser.post("api", "runs", watch.id, "asks", number, body={"decision": "deny"})
    assert (await stream.until("state", lambda message: not message["run"]["asks"]))["run"]["asks_left_s"] == {}
    stream.connection.close()


@scene
async def test_a_trip_is_an_incident_with_what_was_prevented(browser: Browser, watches: Callable[..., Watch]) -> None:
    """After a trip a page learns when the run will be killed, and of one incident with command and what was held."""
    watch = watches({"breaker": {"frozen_s": 600}})
    stream = await browser.stream("stream", params={"run": watch.id})
    await asyncio.to_thread(mine, watch)
    frozen = (await stream.until("state", lambda message: message["run"]["state"] == "frozen"))["run"]
    assert (frozen["on_expiry"], 0 < frozen["frozen_left_s"] <= 600) == ("kill", True)
    answer = await browser.get("api", "runs", watch.id, "incidents")
    (mining,) = [each for each in answer.content["incidents"] if each["family"] == "mining"]
    assert (answer.status, mining["severity"], mining["step"]) == (200, "critical", 1)
    assert mining["command"].startswith("./work <b>\\u202e -o stratum+tcp://pool.example:3333")
    assert mining["prevented"][0].startswith("refused before it ran: ./work <b>\\u202e")
    assert any("frozen: trip" in line for line in mining["breaker"])
    status = await asyncio.to_thread(watch.status)
    assert "killed in" in status_text(status)
    assert "\u202e" not in json.dumps(answer.content, ensure_ascii=False)
    stream.connection.close()


@scene
async def test_a_run_that_is_none_has_no_incidents(browser: Browser) -> None:
    """An unknown run is 404; what cannot be an id never becomes a path."""
    for name in ("0123abcd", "..%2F..%2Fetc"):
        assert (await browser.get("api", "runs", name, "incidents")).status == 404


def test_a_log_that_is_too_long_for_a_page_is_not_read(
    watch: Watch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The refusal says how long the log is and what to ask instead; a log that is missing is named."""
    monkeypatch.setattr(incidents, "MOST_LOG", 10)
    with pytest.raises(LogError, match=r"watch\.incidents\(\)"):
        recent_incidents(watch.log)
    with pytest.raises(LogError, match="No such file"):
        recent_incidents(tmp_path / "none")


def test_of_many_incidents_the_newest_are_told(monkeypatch: pytest.MonkeyPatch, watch: Watch) -> None:
    """A page gets so many incidents, and of each so many lines, however much there is."""
    mine(watch)
    while watch.status().state != "frozen":  # each question is a round of the supervisor's loop
        pass
    (whole,) = find_incidents(watch.log)
    many: list[Any] = [whole] * (incidents.MOST_INCIDENTS + 5)
    monkeypatch.setattr(incidents, "find_incidents", lambda _log: many)
    assert len(recent_incidents(watch.log)) == incidents.MOST_INCIDENTS
    assert incidents._first(str(i) for i in range(20))[-1] == "… and 12 more"
