"""What waits for a browser is bounded, the newest picture wins, and nobody who puts something there waits."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_agentwatch.audit.reader import read_last
from jupyter_agentwatch.errors import ControlError, LogError
from jupyter_agentwatch.events import Session, encode_event
from jupyter_agentwatch.server.viewers import Backlog, Viewer, pump
from jupyter_agentwatch.testing import event
from tests.strategies import a_run, written

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Where records are made safe."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


def body(seq: int) -> bytes:
    """Return a record."""
    return encode_event(event("gap", seq=seq, lost=1, reason="x"))


@given(st.lists(st.binary(max_size=60), max_size=80), st.integers(1, 20), st.integers(60, 400))
def test_a_backlog_keeps_the_newest_that_fit(bodies: list[bytes], most: int, most_bytes: int) -> None:
    """Never more records or bytes than allowed; what is kept is the end of what came, in order, and all comes out."""
    backlog = Backlog(most, most_bytes)
    for each in bodies:
        backlog.put(each)
    kept = []
    while taken := backlog.take():
        kept += taken
    assert kept == bodies[len(bodies) - len(kept) :]
    assert len(kept) <= most
    assert sum(map(len, kept)) <= most_bytes
    assert len(backlog) == 0
    if len(kept) < len(bodies):
        left_out = bodies[len(bodies) - len(kept) - 1]
        assert len(kept) == most or sum(map(len, kept)) + len(left_out) > most_bytes


async def test_the_picture_comes_first_and_the_end_last(threads: ThreadPoolExecutor) -> None:
    """Records that came before the first picture wait for it; after the end nothing is lost that was there."""
    viewer = Viewer()
    for seq in (4, 5, 9):
        viewer.put(body(seq))
    sent: list[Any] = []
    has_begun = asyncio.Event()

    async def send(message: bytes) -> None:
        sent.append(json.loads(message))
        has_begun.set()

    pumping = asyncio.ensure_future(pump(viewer, send, threads))
    await asyncio.sleep(0)  # it waits for a picture now
    assert sent == []
    viewer.show({"n": 1})
    viewer.show({"n": 2})
    await has_begun.wait()
    viewer.finish("over")
    assert await pumping == "over"
    kinds = [message["type"] for message in sent]
    assert kinds == ["state", "events", "gap", "events"]
    assert sent[0]["run"] == {"n": 2}
    assert sent[2] == {"type": "gap", "lost": 3, "before": 9}


async def test_an_end_without_a_picture_is_an_end(threads: ThreadPoolExecutor) -> None:
    """A supervisor that goes before it said anything leaves nobody waiting."""
    viewer = Viewer()
    viewer.finish("gone")

    async def send(message: bytes) -> None:
        pytest.fail(f"nothing should be sent, not {message!r}")

    assert await pump(viewer, send, threads) == "gone"


async def test_what_is_no_record_ends_the_stream(threads: ThreadPoolExecutor) -> None:
    """A record that cannot be read is an error for whoever relays, not silence."""
    viewer = Viewer()
    viewer.show({})
    viewer.put(b"{}")

    async def send(message: bytes) -> None:
        assert json.loads(message)["type"] == "state"

    with pytest.raises(ControlError, match="not a record"):
        await pump(viewer, send, threads)


def test_the_last_record_of_a_log_is_found_from_its_end(tmp_path: Path) -> None:
    """Also of a long log, and past a line that is still being written; what is no log is refused."""
    log = tmp_path / "0badcafe.jsonl"
    written(log, a_run(200))
    last = read_last(log)
    assert isinstance(last, Session)
    assert last.op == "close"
    with log.open("ab") as file:
        file.write(b'{"kind":"exec","seq"')
    assert read_last(log) == last
    other = tmp_path / "other"
    other.write_text("hello\n")
    with pytest.raises(LogError):
        read_last(other)
