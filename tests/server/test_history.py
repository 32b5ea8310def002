"""The end of a log over HTTP: what a page asks for that begins to look at a run later than it began."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from jupyter_agentwatch.server import history
from jupyter_agentwatch.server.history import recent_events
from tests.server.scenes import Browser, scene

if TYPE_CHECKING:
    from jupyter_agentwatch import Watch

pytestmark = pytest.mark.sandbox


@scene
async def test_a_page_gets_what_was_recorded_before_it_looked(browser: Browser, watch: Watch) -> None:
    """All records come in order, from a number on where that is asked for, and also after the run has ended."""
    watch.run("true")
    found = (await browser.get("api", "runs", watch.id, "events")).content["events"]
    assert [event["seq"] for event in found] == list(range(len(found)))
    assert {"session", "step", "exec"} <= {event["kind"] for event in found}
    watch.kill()
    later = (await browser.get("api", "runs", watch.id, "events", params={"after": str(found[-1]["seq"])})).content
    assert later["events"][0]["seq"] == len(found)
    assert later["events"][-1]["kind"] == "session"


@pytest.mark.parametrize("query", [{"after": "x"}, {"limit": "1e9"}, {"after": "1;2"}])
def test_what_is_no_number_is_refused(browser: Browser, watch: Watch, query: dict[str, str]) -> None:
    """A malformed query is answered with 400 and which words are meant."""

    @scene
    async def ask() -> None:
        answer = await browser.get("api", "runs", watch.id, "events", params=query)
        assert answer.status == 400
        assert "`after` and `limit`" in answer.content["message"]

    ask()


@scene
async def test_a_page_gets_only_the_kinds_that_it_asks_for(browser: Browser, watch: Watch) -> None:
    """History and stream leave out other records and call none of them missing; what names no kind is refused."""
    stream = await browser.stream("stream", params={"run": watch.id, "kinds": "step,session"})
    assert (await stream.next())["type"] == "state"
    watch.run("true")
    events = await browser.get("api", "runs", watch.id, "events", params={"kinds": "step,session"})
    assert [event["kind"] for event in events.content["events"]] == ["session", "step", "step"]
    watch.kill()
    told = [message for message in await stream.rest() if message["type"] in {"events", "gap"}]
    assert [event["kind"] for message in told for event in message["events"]] == ["step", "step", "session"]
    refused = await browser.get("api", "runs", watch.id, "events", params={"kinds": 'step"'})
    assert (refused.status, "`kinds`" in refused.content["message"]) == (400, True)
    assert await browser.refused_stream("stream", params={"run": watch.id, "kinds": "a;b"}) == 400


def test_only_the_end_of_a_long_log_is_read(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a log is, a bounded piece is read, and a line that this piece cuts is left out."""
    watch.run("true")
    whole = recent_events(watch.log, -1)
    monkeypatch.setattr(history, "MOST_BYTES", watch.log.stat().st_size // 2)
    half = recent_events(watch.log, -1)
    assert half == whole[-len(half) :]
    assert 0 < len(half) < len(whole)
    assert recent_events(watch.log, -1, 2) == whole[-2:]
    assert recent_events(watch.log, whole[-1]["seq"]) == []
