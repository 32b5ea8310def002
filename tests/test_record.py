"""The supervisor's recorder on a real log: what is refused, what still goes in, and what is said when room runs out."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jupyter_agentwatch.audit.chain import FORMAT
from jupyter_agentwatch.audit.log import LogWriteError
from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.audit.verify import verify_log
from jupyter_agentwatch.events import BreakerChanged, Control, FileOp, Finding, Gap, LimitHit, Session, Step
from jupyter_agentwatch.supervisor.record import Recorder, open_log

if TYPE_CHECKING:
    from collections.abc import Iterator

BOUND = 100_000
ONE_RECORD = 5_000
"""More bytes than any record here takes."""


class Ground:
    """A recorder with a small bound, and what it told of failures."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[str] = []
        self.log = open_log(path, watch="w", format=FORMAT)
        self.recorder = Recorder(self.log, "w", self.told.append, max_bytes=BOUND)

    def fill(self) -> int:
        """Record calls until one is refused; return how many went in."""
        for count in range(BOUND):
            try:
                self.recorder.record(FileOp, op="openat", path="x" * 400)
            except LogWriteError as error:
                if error.errno != errno.EDQUOT:
                    raise
                return count
        raise AssertionError(BOUND)

    def found(self, kind: type) -> list:
        """Return the records of a kind."""
        return [event for event in read_events(self.path) if isinstance(event, kind)]


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    """Yield a recorder on a new log."""
    made = Ground(tmp_path / "log.jsonl")
    yield made
    made.recorder.close()


def test_a_log_of_full_size_takes_no_further_call(ground: Ground) -> None:
    """At `max_bytes` calls are refused, the failure is told once with the key's name, and the log stays right."""
    assert ground.fill() > 50
    assert BOUND <= ground.path.stat().st_size < BOUND + ONE_RECORD
    size = ground.path.stat().st_size
    assert ground.fill() == ground.fill() == 0
    assert ground.path.stat().st_size == size
    (told,) = ground.told
    assert "audit.max_bytes (100000)" in told
    assert str(ground.path) in told
    assert ground.recorder.lost == 3
    assert verify_log(ground.path).first_bad is None


def test_nine_tenths_of_the_size_warn_once(ground: Ground) -> None:
    """One `limit` record says how full the log is, before anything is refused."""
    ground.fill()
    (warning,) = ground.found(LimitHit)
    assert (warning.limit, warning.action, warning.verdict) == ("audit.max_bytes", "warn", "allow")
    assert BOUND * 0.9 <= warning.value <= BOUND * 0.9 + ONE_RECORD
    assert warning.maximum == BOUND
    assert any(event.seq > warning.seq for event in ground.found(FileOp))


def test_a_log_of_full_size_takes_what_ends_the_watch(ground: Ground) -> None:
    """Findings, the breaker, a person's acts, ends of commands and the close are recorded; the gap comes first."""
    ground.fill()
    ground.fill()
    record = ground.recorder.record
    record(BreakerChanged, before="closed", after="frozen", cause="trip: full")
    record(Control, op="kill", by="kernel")
    record(Finding, rule="r", title="t", severity="critical")
    record(Step, op="end", step=1, outcome="killed")
    with pytest.raises(LogWriteError):
        record(Step, op="start", step=2, argv=["true"])
    record(Session, verdict="kill", op="close", reason="over", sync=True)
    assert [gap.lost for gap in ground.found(Gap)] == [2, 1]
    kinds = [type(event) for event in read_events(ground.path)][-7:]
    assert kinds == [Gap, BreakerChanged, Control, Finding, Step, Gap, Session]
    assert verify_log(ground.path).ok


def test_a_resume_lets_the_log_grow_by_a_tenth(ground: Ground) -> None:
    """After `rearm` a full log takes another tenth of its bound, then refuses and tells again; it never warns again."""
    ground.fill()
    for _ in range(3):
        size = ground.path.stat().st_size
        ground.recorder.rearm()
        assert ground.fill() > 5
        assert BOUND / 10 <= ground.path.stat().st_size - size < BOUND / 10 + ONE_RECORD
    assert len(ground.told) == 4
    assert len(ground.found(LimitHit)) == 1


def test_a_resume_of_a_log_with_room_changes_nothing(ground: Ground) -> None:
    """Who suspends and resumes a watch again and again does not raise the bound of its log."""
    for _ in range(20):
        ground.recorder.rearm()
    ground.fill()
    assert ground.path.stat().st_size < BOUND + ONE_RECORD
