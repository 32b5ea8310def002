"""The SQLite index: what it finds, how it keeps up with its logs, and that losing it loses nothing."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from jupyter_agentwatch.audit import index as index_module
from jupyter_agentwatch.audit.index import AuditIndex
from jupyter_agentwatch.audit.log import AuditLog
from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.errors import LogError
from jupyter_agentwatch.events import AnyEvent, Connect, decode_event, encode_event
from tests.strategies import WATCH, a_close, a_run, an_exec, an_open, log_events, sealed, written

OTHER = "ffffffff"


def a_connect(seq: int, **changes: Any) -> Connect:
    """A denied connection."""
    fields: dict[str, Any] = {
        "seq": seq,
        "t_mono_ns": seq,
        "t_wall_ns": 1_700_000_100_000_000_000,
        "watch": WATCH,
        "verdict": "deny",
        "basis": "verified",
        "step": 2,
        "transport": "tcp",
        "addr": "192.0.2.7",
        "host": "Pool.example",
    }
    return Connect(**{**fields, **changes})


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A folder with two logs."""
    folder = tmp_path / "logs"
    folder.mkdir()
    written(
        folder / "one.jsonl", [an_open(), an_exec(1), a_connect(2), an_exec(3, argv=["sh", 'say "hi"\n']), a_close(4)]
    )
    opened = an_open(watch=OTHER, t_wall_ns=1_700_000_000_000_000_001)
    written(folder / "two.jsonl", [opened, an_exec(1, watch=OTHER, step=2)])
    return folder


@pytest.fixture
def index(tmp_path: Path) -> Iterator[AuditIndex]:
    """An empty index."""
    with AuditIndex(tmp_path / "index.sqlite") as opened:
        yield opened


def found(index: AuditIndex, **conditions: Any) -> list[tuple[str, int]]:
    """Return (watch, seq) of what a query finds."""
    return [(row["watch"], row["seq"]) for row in index.query(**conditions)]


def test_a_row_holds_the_log_the_common_fields_and_the_json(index: AuditIndex, logs: Path) -> None:
    """What a query returns can be decoded to the event as the log holds it."""
    index.refresh(logs)
    (row,) = index.query(kinds=["connect"])
    assert row["log"] == logs / "one.jsonl"
    assert (row["kind"], row["verdict"], row["basis"], row["step"]) == ("connect", "deny", "verified", 2)
    assert decode_event(row["json"].encode()) == a_connect(2)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, [(WATCH, 0), (WATCH, 1), (WATCH, 2), (WATCH, 3), (WATCH, 4), (OTHER, 0), (OTHER, 1)]),
        ({"kinds": {"exec"}}, [(WATCH, 1), (WATCH, 3), (OTHER, 1)]),
        ({"kinds": []}, []),
        ({"verdicts": ["deny", "kill"]}, [(WATCH, 2), (WATCH, 4)]),
        ({"verdicts": ()}, []),
        ({"watch": OTHER}, [(OTHER, 0), (OTHER, 1)]),
        ({"watch": "' OR 1 --"}, []),
        ({"step": 2}, [(WATCH, 2), (OTHER, 1)]),
        ({"step": 2, "kinds": ["exec"]}, [(OTHER, 1)]),
        ({"since": datetime(2023, 11, 14, 22, 15, tzinfo=UTC)}, [(WATCH, 2)]),
        ({"since": datetime(9999, 1, 1, tzinfo=UTC)}, []),
        ({"text": "pool.EXAMPLE"}, [(WATCH, 2)]),
        ({"text": 'say "hi"\n'}, [(WATCH, 3)]),
        ({"text": "transport"}, []),
        ({"text": "deny"}, []),
        ({"text": "%"}, []),
        ({"text": "sys.version", "limit": 1}, [(WATCH, 1)]),
        ({"newest": True, "limit": 3}, [(OTHER, 1), (OTHER, 0), (WATCH, 4)]),
    ],
)
def test_a_query_returns_what_meets_every_condition(
    index: AuditIndex, logs: Path, conditions: dict[str, Any], expected: list[tuple[str, int]]
) -> None:
    """Conditions narrow down together; text is looked for in values only, and nothing in it is SQL or a pattern."""
    index.refresh(logs)
    assert found(index, **conditions) == expected


@pytest.mark.parametrize(
    "conditions",
    [
        {"kinds": ["teleport"]},
        {"kinds": "exec"},
        {"verdicts": ["DENY"]},
        {"limit": 0},
        {"step": 2**63},
        {"since": datetime(2023, 1, 1)},  # noqa: DTZ001 -- the missing zone is the point
        {"text": "\ud800"},
    ],
)
def test_a_condition_that_cannot_be_meant_is_an_error(index: AuditIndex, conditions: dict[str, Any]) -> None:
    """A mistyped word, an empty limit, a time without zone: refused instead of finding nothing."""
    with pytest.raises(ValueError):  # noqa: PT011 -- the texts differ
        index.query(**conditions)


@settings(deadline=None, max_examples=40)
@given(log_events())
def test_the_index_holds_exactly_what_the_log_holds(
    tmp_path_factory: pytest.TempPathFactory, records: list[AnyEvent]
) -> None:
    """Whatever the events hold, the rows' JSON is theirs, in their order."""
    folder = tmp_path_factory.mktemp("index")
    path = written(folder / "log.jsonl", records)
    with AuditIndex(folder / "index.sqlite") as opened:
        refreshed = opened.refresh([path])
        assert (refreshed.added, refreshed.problems) == (len(records), {})
        assert [row["json"].encode() for row in opened.query()] == [encode_event(event) for event in records]


def test_a_refresh_takes_only_what_is_new(index: AuditIndex, tmp_path: Path) -> None:
    """A growing log is read on from where it was, and an incomplete line waits."""
    log = AuditLog.create(tmp_path / "log.jsonl", an_open())
    log.append(an_exec(1))
    assert index.refresh([log.path]).added == 2
    assert index.refresh([log.path]).added == 0
    log.append(an_exec(2))
    log.close()
    with log.path.open("ab") as file:
        file.write(b'{"kind":"exec"')
    refreshed = index.refresh([log.path])
    assert (refreshed.added, refreshed.problems) == (1, {})
    assert found(index) == [(WATCH, 0), (WATCH, 1), (WATCH, 2)]


def test_a_long_log_is_indexed_in_several_batches(
    index: AuditIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits of batches lose and double nothing, also where the log ends on one."""
    monkeypatch.setattr(index_module, "_BATCH", 7)
    path = written(tmp_path / "log.jsonl", a_run(21))
    assert index.refresh([path]).added == 21
    assert [seq for _, seq in found(index)] == list(range(21))


@pytest.mark.parametrize(
    "how", ["replaced", "replaced by a copy", "rewritten in place", "shortened", "shortened and grown again"]
)
def test_a_log_that_changed_under_the_index_is_indexed_afresh(index: AuditIndex, tmp_path: Path, how: str) -> None:
    """Rows of the former content never mix with those of the new one."""
    path = written(tmp_path / "log.jsonl", a_run(6))
    index.refresh([path])
    now: list[AnyEvent] = [an_open(), an_exec(1), an_exec(2, path="/new")]
    if how == "replaced":
        written(tmp_path / "new.jsonl", now).replace(path)
    elif how == "replaced by a copy":
        now = a_run(6)
        written(tmp_path / "new.jsonl", now).replace(path)
    elif how == "rewritten in place":
        now = [an_open(rung="B"), *(an_exec(seq) for seq in range(1, 9))]
        path.write_bytes(b"".join(sealed(now)))
    elif how == "shortened":
        now = a_run(6)[:3]
        os.truncate(path, len(b"".join(sealed(now))))
    else:
        now = [*now, *(an_exec(seq) for seq in range(3, 12))]
        path.write_bytes(b"".join(sealed(now)))
    assert index.refresh([path]).added == len(now)
    assert [row["json"].encode() for row in index.query()] == [encode_event(event) for event in now]


def test_the_rows_of_a_lost_log_go_with_it(index: AuditIndex, logs: Path) -> None:
    """A log that was deleted is not found any more after the next refresh, and is no problem."""
    index.refresh(logs)
    (logs / "one.jsonl").unlink()
    assert index.refresh(logs).problems == {}
    assert {watch for watch, _ in found(index)} == {OTHER}


def test_the_rows_of_a_log_that_became_something_else_go_too(index: AuditIndex, logs: Path) -> None:
    """Garbage under a log's name is a problem that is told, and the former rows are not kept."""
    index.refresh(logs)
    (logs / "one.jsonl").write_bytes(b"garbage\n")
    problems = index.refresh(logs).problems
    assert "not an audit log" in problems[logs / "one.jsonl"]
    assert {watch for watch, _ in found(index)} == {OTHER}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"junk\n", "line 3 is not a record"),
        (sealed([an_open(), an_exec(1), an_exec(2), an_exec(3)])[3], "line 3 holds record 3, not 2"),
        (sealed([an_open(), an_exec(1), an_exec(2, step=2**63)])[2], "beyond 64 bits"),
    ],
)
def test_a_damaged_log_hinders_no_other_one(index: AuditIndex, logs: Path, bad: bytes, reason: str) -> None:
    """What stands before the damage is indexed, the damage is told, the other logs are complete."""
    (logs / "one.jsonl").write_bytes(b"".join(sealed([an_open(), an_exec(1)])) + bad)
    for added in (4, 0):
        refreshed = index.refresh(logs)
        assert (refreshed.added, refreshed.logs) == (added, 2)
        assert reason in refreshed.problems[logs / "one.jsonl"]
    assert found(index) == [(WATCH, 0), (WATCH, 1), (OTHER, 0), (OTHER, 1)]


def test_a_missing_log_is_a_problem_and_a_missing_folder_an_error(index: AuditIndex, tmp_path: Path) -> None:
    """Asked for by name, a log that is not there is told."""
    missing = tmp_path / "missing.jsonl"
    assert "No such file" in index.refresh([missing]).problems[missing]
    with pytest.raises(LogError, match="cannot list the logs"):
        index.refresh(tmp_path / "nowhere")


def test_the_index_is_private_and_lasts(tmp_path: Path, logs: Path) -> None:
    """Database and side files have mode 0600, and what was indexed is there when it is opened again."""
    path = tmp_path / "index.sqlite"
    with AuditIndex(path) as first:
        first.refresh(logs)
        files = [item for item in tmp_path.iterdir() if item.name.startswith("index.sqlite")]
        assert len(files) == 3
        assert {stat.S_IMODE(item.stat().st_mode) for item in files} == {0o600}
    with AuditIndex(path) as second:
        assert len(second.query()) == 7
        assert second.refresh(logs).added == 0


def test_two_users_of_one_index_do_not_disturb_each_other(tmp_path: Path, logs: Path) -> None:
    """Kernel and command line may both refresh; each record is in the index once."""
    with AuditIndex(tmp_path / "index.sqlite") as one, AuditIndex(tmp_path / "index.sqlite") as two:
        assert one.refresh(logs).added == 7
        assert two.refresh(logs).added == 0
        assert found(one) == found(two)
        assert len(found(two)) == 7


def test_rebuilding_gives_the_same_index(index: AuditIndex, logs: Path) -> None:
    """The index holds nothing that the logs do not."""
    index.refresh(logs)
    before = index.query()
    assert index.rebuild().added == len(before)
    assert index.query() == before


def test_an_index_of_another_version_is_thrown_away(tmp_path: Path, logs: Path) -> None:
    """An older or newer schema is never read; the next refresh fills the new one."""
    path = tmp_path / "index.sqlite"
    with AuditIndex(path) as old:
        old.refresh(logs)
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with AuditIndex(path) as new:
        assert new.query() == []
        assert new.refresh(logs).added == 7


@pytest.mark.parametrize("content", [b"not a database at all" * 50, b"SQLite format 3\0" + b"\xff" * 4080])
def test_a_file_that_is_no_database_is_moved_aside(tmp_path: Path, logs: Path, content: bytes) -> None:
    """A wrecked index is replaced; since it may have been something else, it is kept under another name."""
    path = tmp_path / "index.sqlite"
    path.write_bytes(content)
    with AuditIndex(path) as opened:
        assert opened.refresh(logs).added == 7
    assert (tmp_path / "index.sqlite.broken").read_bytes() == content


def wreck(path: Path) -> None:
    """Overwrite every page of a database but the first, and take away what could mend it."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


def test_an_index_that_turns_out_to_be_corrupt_heals_in_a_query(tmp_path: Path, logs: Path) -> None:
    """The query that meets the damage answers from an index that was built again."""
    path = tmp_path / "index.sqlite"
    with AuditIndex(path) as opened:
        opened.refresh(logs)
    wreck(path)
    with AuditIndex(path) as opened:
        opened.refresh(logs)
        assert len(opened.query()) == 7


def test_an_index_that_becomes_corrupt_while_it_is_open_heals(tmp_path: Path) -> None:
    """Logs that were indexed by this object are found again without being named again."""
    log = written(tmp_path / "log.jsonl", a_run(2000))
    path = tmp_path / "index.sqlite"
    with AuditIndex(path) as opened:
        opened.refresh([log])
        opened._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        opened._db.execute("PRAGMA shrink_memory")
        wreck(path)
        assert len(opened.query(limit=5000)) == 2000


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    """A path given by mistake costs nobody their data."""
    path = tmp_path / "mine.sqlite"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE precious (x)")
    db.commit()
    db.close()
    before = path.read_bytes()
    with pytest.raises(LogError, match="another program's database"):
        AuditIndex(path)
    assert path.read_bytes() == before


def test_a_place_where_no_index_can_be_is_an_error(tmp_path: Path) -> None:
    """A folder in its place or a missing folder is told with its path."""
    for path in (tmp_path, tmp_path / "missing" / "index.sqlite"):
        with pytest.raises(LogError, match="cannot use the index"):
            AuditIndex(path)


def test_indexing_trusts_the_log_and_not_the_clock(index: AuditIndex, tmp_path: Path) -> None:
    """Records come back in the order of the log when the wall clock stepped back."""
    records = [an_open(), *(an_exec(seq, t_wall_ns=10**18 - seq) for seq in range(1, 6))]
    path = written(tmp_path / "log.jsonl", records)
    index.refresh([path])
    assert [seq for _, seq in found(index)] == [event.seq for event in read_events(path)]
