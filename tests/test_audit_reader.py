"""Reading logs whole, as they grow, and as a list."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jupyter_agentwatch.audit.chain import MAX_LINE
from jupyter_agentwatch.audit.log import AuditLog, anchor_path
from jupyter_agentwatch.audit.reader import LogTail, list_logs, read_events
from jupyter_agentwatch.errors import LogError
from jupyter_agentwatch.events import AnyEvent, Gap
from tests.strategies import WATCH, a_close, a_run, an_exec, an_open, sealed, written


def a_gap(seq: int) -> Gap:
    """A record of another kind, without a step."""
    return Gap(
        seq=seq, t_mono_ns=1, t_wall_ns=1, watch=WATCH, verdict="allow", basis="verified", lost=2, reason="slow reader"
    )


MIXED: list[AnyEvent] = [an_open(), an_exec(1), an_exec(2, step=2), a_gap(3), an_exec(4, step=2), a_close(5)]


@pytest.mark.parametrize(
    ("filters", "seqs"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"kinds": ["exec"]}, [1, 2, 4]),
        ({"kinds": {"gap", "session"}}, [0, 3, 5]),
        ({"kinds": []}, []),
        ({"step": 2}, [2, 4]),
        ({"step": 0}, [0, 3, 5]),
        ({"after_seq": 3}, [4, 5]),
        ({"kinds": ("exec",), "step": 2, "after_seq": 2}, [4]),
    ],
)
def test_filters_keep_what_meets_all_of_them(tmp_path: Path, filters: dict, seqs: list[int]) -> None:
    """Kinds, step and position narrow the events down together; an empty collection means nothing."""
    path = written(tmp_path / "log.jsonl", MIXED)
    assert [event.seq for event in read_events(path, **filters)] == seqs


@pytest.mark.parametrize("kinds", [["teleport"], "exec", ["exec", "Exec"]])
def test_an_unknown_kind_is_an_error_before_anything_is_read(tmp_path: Path, kinds: list[str]) -> None:
    """A mistyped filter is refused instead of finding nothing, and the known words are named."""
    with pytest.raises(ValueError, match=r"kinds: .* breaker, connect, "):
        read_events(tmp_path / "missing", kinds=kinds)


def test_a_file_that_is_not_ours_is_refused_at_the_call(tmp_path: Path) -> None:
    """The error comes from the call, not from the first step of the iteration."""
    (tmp_path / "log.jsonl").write_bytes(b"{}\n")
    with pytest.raises(LogError, match="no session-open record"):
        read_events(tmp_path / "log.jsonl")


def test_a_damaged_line_is_an_error_with_its_number(tmp_path: Path) -> None:
    """Reading stops loudly at a line that is no record."""
    lines = sealed(a_run(4))
    (tmp_path / "log.jsonl").write_bytes(lines[0] + lines[1] + b"junk\n" + lines[2])
    events = read_events(tmp_path / "log.jsonl")
    assert [next(events).seq, next(events).seq] == [0, 1]
    with pytest.raises(LogError, match=r"line 3 is not a record: .*verify the log"):
        next(events)


def test_a_line_in_the_making_is_not_read(tmp_path: Path) -> None:
    """A record without its newline does not exist yet."""
    lines = sealed(a_run(3))
    (tmp_path / "log.jsonl").write_bytes(lines[0] + lines[1][:-1])
    assert [event.seq for event in read_events(tmp_path / "log.jsonl")] == [0]


def test_a_tail_returns_each_event_once_as_the_log_grows(tmp_path: Path) -> None:
    """Every call returns what is new, in order, and nothing when nothing is new."""
    log = AuditLog.create(tmp_path / "log.jsonl", an_open())
    tail = LogTail(log.path)
    assert [event.seq for event in tail.read_new()] == [0]
    assert tail.read_new() == []
    log.append(an_exec(1))
    log.append(an_exec(2))
    assert [event.seq for event in tail.read_new(limit=1)] == [1]
    assert [event.seq for event in tail.read_new()] == [2]
    log.append(a_close(3))
    assert tail.read_lines() == [sealed([an_open(), an_exec(1), an_exec(2), a_close(3)])[3]]
    log.close()


def test_a_tail_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    """Whatever part of a line is there, also of the first one, it is returned once it is complete."""
    data = b"".join(sealed(a_run(3)))
    path = tmp_path / "log.jsonl"
    path.touch()
    tail = LogTail(path)
    seen: list[int] = []
    for at in range(0, len(data), 37):
        with path.open("ab") as file:
            file.write(data[at : at + 37])
        seen += [event.seq for event in tail.read_new()]
    assert seen == [0, 1, 2]


def test_a_tail_hands_out_the_good_events_before_a_bad_line(tmp_path: Path) -> None:
    """Events before a line that cannot be read are not lost; every further call names the line."""
    lines = sealed(a_run(5))
    path = tmp_path / "log.jsonl"
    path.write_bytes(lines[0] + lines[1] + b"junk\n" + lines[3])
    tail = LogTail(path)
    assert [event.seq for event in tail.read_new()] == [0, 1]
    for _ in range(2):
        with pytest.raises(LogError, match="line 3 is not a record"):
            tail.read_new()


def test_a_tail_notices_that_its_log_was_exchanged(tmp_path: Path) -> None:
    """A log that became shorter, or another file under the same name, is an error and not silence."""
    path = written(tmp_path / "log.jsonl", a_run(4))
    shortened = LogTail(path)
    replaced = LogTail(path)
    shortened.read_new()
    replaced.read_new()
    os.truncate(path, 400)
    with pytest.raises(LogError, match="replaced or shortened"):
        shortened.read_new()
    written(tmp_path / "other.jsonl", a_run(9)).replace(path)
    with pytest.raises(LogError, match="replaced or shortened"):
        replaced.read_new()


@pytest.mark.parametrize("first", [b"junk\n", b"x" * (MAX_LINE + 1)])
def test_a_tail_of_a_foreign_file_is_an_error(tmp_path: Path, first: bytes) -> None:
    """Neither another file's first line nor an endless one is taken for a log in the making."""
    (tmp_path / "log.jsonl").write_bytes(first)
    with pytest.raises(LogError):
        LogTail(tmp_path / "log.jsonl").read_new()


def test_logs_are_listed_by_their_opening_with_what_their_ends_say(tmp_path: Path) -> None:
    """Open, closed and long-lined logs are described from first and last lines, the earliest first."""
    late = a_run(4)
    late[0] = an_open(t_wall_ns=20)
    written(tmp_path / "a.jsonl", late)
    huge = an_exec(1, argv=["x" * 100_000])
    written(tmp_path / "b.jsonl", [an_open(t_wall_ns=10, workspace="/w"), huge])
    first, second = list_logs(tmp_path)
    assert (first.path.name, first.watch, first.workspace, first.rung) == ("b.jsonl", WATCH, "/w", "A")
    assert (first.closed, first.records, first.problem) == (False, 2, "")
    assert first.size_bytes == (tmp_path / "b.jsonl").stat().st_size
    assert (second.path.name, second.closed, second.records, second.opened_wall_ns) == ("a.jsonl", True, 4, 20)


def test_a_record_in_the_making_does_not_hide_a_log_from_the_list(tmp_path: Path) -> None:
    """The last complete line counts, whatever follows it."""
    lines = sealed(a_run(4))
    (tmp_path / "log.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:-20])
    (info,) = list_logs(tmp_path)
    assert (info.records, info.closed, info.problem) == (3, False, "")


def test_other_files_are_not_listed_and_damaged_logs_are(tmp_path: Path) -> None:
    """What lies beside logs is passed over; a log of ours that cannot be read is shown with the reason."""
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    bad_end = written(tmp_path / "bad-end.jsonl", a_run(3))
    bad_end.write_bytes(bad_end.read_bytes() + b"junk\n")
    bad_start = written(tmp_path / "bad-start.jsonl", a_run(3))
    bad_start.write_bytes(b"x" + bad_start.read_bytes()[1:])
    emptied = written(tmp_path / "emptied.jsonl", a_run(3))
    emptied.write_bytes(b"")
    found = {info.path.name: info for info in list_logs(tmp_path)}
    assert sorted(found) == ["bad-end.jsonl", "bad-start.jsonl", "emptied.jsonl"]
    assert "last complete line is not a record" in found["bad-end.jsonl"].problem
    assert (found["bad-end.jsonl"].watch, found["bad-end.jsonl"].records) == (WATCH, 1)
    assert "line 1 is not a record" in found["bad-start.jsonl"].problem
    assert "it is empty" in found["emptied.jsonl"].problem
    assert anchor_path(emptied).exists()


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """A missing folder is not the same as one without logs."""
    with pytest.raises(LogError, match="cannot list the logs"):
        list_logs(tmp_path / "missing")
    assert list_logs(tmp_path) == []
