"""What `verify_log` finds: every single change to a log, at the right record, and files that are not ours."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_agentwatch.audit.chain import FORMAT, MAX_LINE, Anchor, digest, encode_anchor, open_line, seal
from jupyter_agentwatch.audit.log import AuditLog, anchor_path
from jupyter_agentwatch.audit.verify import Verification, verify_log
from jupyter_agentwatch.errors import LogError
from jupyter_agentwatch.events import AnyEvent, encode_event
from tests.strategies import a_close, a_run, an_exec, an_open, log_events, sealed, written

ROOT = Path(__file__).parent.parent
PREFIX = len('{"kind":"session"')
relaxed = settings(deadline=None, max_examples=120)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file name that examples may overwrite."""
    return tmp_path_factory.mktemp("verify") / "log.jsonl"


def put(path: Path, lines: list[bytes], *, anchor: list[bytes]) -> None:
    """Write a log's lines, and the anchor that a whole log would have."""
    path.write_bytes(b"".join(lines))
    last = open_line(anchor[-1])
    anchor_path(path).write_bytes(encode_anchor(Anchor(seq=len(anchor) - 1, hash=last.hash.decode())))


def bad_seq(result: Verification) -> int:
    """Return the number of the first bad record, and check that what is told about it agrees."""
    assert not result.ok
    assert result.first_bad is not None
    assert result.first_bad.line == result.first_bad.seq + 1
    assert result.records == result.first_bad.seq
    assert f"record {result.first_bad.seq} (line {result.first_bad.line})" in result.message
    return result.first_bad.seq


@relaxed
@given(log_events())
def test_a_log_as_it_was_written_is_whole(scratch: Path, records: list[AnyEvent]) -> None:
    """Nothing is found in a log that nobody touched, whatever its events hold."""
    lines = sealed(records)
    put(scratch, lines, anchor=lines)
    result = verify_log(scratch, head=open_line(lines[-1]).hash.decode())
    assert (result.ok, result.records, result.problem, result.first_bad) == (True, len(lines), None, None)
    assert result.head == open_line(lines[-1]).hash.decode()
    assert result.closed == (getattr(records[-1], "op", "") == "close")


@relaxed
@given(log_events(), st.data())
def test_any_changed_byte_is_found_at_its_record(scratch: Path, records: list[AnyEvent], data: st.DataObject) -> None:
    """One flipped byte anywhere makes exactly the record that holds it the first bad one."""
    lines = sealed(records)
    seq = data.draw(st.integers(0, len(lines) - 1), label="record")
    at = data.draw(st.integers(0, len(lines[seq]) - 1), label="byte")
    value = data.draw(st.integers(0, 255).filter(lambda value: value != lines[seq][at]), label="value")
    changed = lines[seq][:at] + bytes([value]) + lines[seq][at + 1 :]
    put(scratch, [*lines[:seq], changed, *lines[seq + 1 :]], anchor=lines)
    if seq == 0 and at < PREFIX and value == ord("\n"):
        with pytest.raises(LogError, match="not an audit log"):
            verify_log(scratch)
        return
    result = verify_log(scratch)
    assert bad_seq(result) == seq
    ends_open = seq == len(lines) - 1 and at == len(lines[seq]) - 1
    assert result.problem == ("partial-line" if ends_open else "edited")


@relaxed
@given(log_events(min_size=2), st.data())
def test_a_removed_record_is_named(scratch: Path, records: list[AnyEvent], data: st.DataObject) -> None:
    """A record that was taken out is named by its number; without the last one the log is truncated."""
    lines = sealed(records)
    seq = data.draw(st.integers(0, len(lines) - 1), label="record")
    put(scratch, lines[:seq] + lines[seq + 1 :], anchor=lines)
    result = verify_log(scratch)
    assert bad_seq(result) == seq
    assert result.problem == ("truncated" if seq == len(lines) - 1 else "removed")


@relaxed
@given(log_events(min_size=2), st.data())
def test_two_swapped_records_are_found_at_the_first(
    scratch: Path, records: list[AnyEvent], data: st.DataObject
) -> None:
    """Two records that changed places are reported where the earlier one belongs."""
    lines = sealed(records)
    first = data.draw(st.integers(0, len(lines) - 2), label="first")
    second = data.draw(st.integers(first + 1, len(lines) - 1), label="second")
    swapped = list(lines)
    swapped[first], swapped[second] = lines[second], lines[first]
    put(scratch, swapped, anchor=lines)
    result = verify_log(scratch)
    assert bad_seq(result) == first
    assert result.problem == "reordered"


@relaxed
@given(log_events(), st.data())
def test_a_repeated_record_is_found_where_it_stands(
    scratch: Path, records: list[AnyEvent], data: st.DataObject
) -> None:
    """A copy of a record, put in anywhere, is the first bad one."""
    lines = sealed(records)
    copied = data.draw(st.integers(0, len(lines) - 1), label="copied")
    at = data.draw(st.integers(0, len(lines)), label="at")
    put(scratch, [*lines[:at], lines[copied], *lines[at:]], anchor=lines)
    result = verify_log(scratch)
    assert bad_seq(result) == (at + 1 if at == copied else at)
    assert result.problem == "reordered"


@relaxed
@given(log_events(), st.data())
def test_a_log_cut_off_anywhere_is_found_at_the_cut(
    scratch: Path, records: list[AnyEvent], data: st.DataObject
) -> None:
    """Cut between records it is truncated, cut inside one it ends with a partial line; both name the first one lost."""
    lines = sealed(records)
    whole = b"".join(lines)
    cut = data.draw(st.integers(1, len(whole) - 1), label="cut")
    put(scratch, [whole[:cut]], anchor=lines)
    if cut < PREFIX:
        with pytest.raises(LogError, match="not an audit log"):
            verify_log(scratch)
        return
    result = verify_log(scratch)
    assert bad_seq(result) == whole[:cut].count(b"\n")
    assert result.problem == ("truncated" if whole[cut - 1] == ord("\n") else "partial-line")


def test_a_closed_log_needs_no_anchor(tmp_path: Path) -> None:
    """A log that was handed on without its side file is whole when it has its close record."""
    path = written(tmp_path / "log.jsonl", a_run(5))
    anchor_path(path).unlink()
    result = verify_log(path)
    assert (result.ok, result.closed, result.records, result.anchored) == (True, True, 5, -1)


def test_an_open_log_is_whole_only_where_an_anchor_or_a_head_agrees(tmp_path: Path) -> None:
    """Without a close record, and with nothing to compare, the log counts as cut off; the text says what is known."""
    log = AuditLog.create(tmp_path / "log.jsonl", an_open())
    log.append(an_exec(1))
    log.sync()
    anchored = log.head
    log.append(an_exec(2))
    log.close()
    result = verify_log(log.path)
    assert (result.ok, result.closed, result.records, result.anchored) == (True, False, 3, 1)
    assert "no close record" in result.message
    assert "after record 1," in result.message
    assert verify_log(log.path, head=anchored, anchor=False).ok
    alone = verify_log(log.path, anchor=False)
    assert bad_seq(alone) == 3
    assert alone.problem == "truncated"


def test_a_head_that_was_kept_elsewhere_shows_a_lost_end(tmp_path: Path) -> None:
    """The head from the notebook's output proves that records are missing, even when the anchor was lost, too."""
    run = a_run(6)
    path = written(tmp_path / "log.jsonl", run)
    heads = [open_line(line).hash.decode() for line in sealed(run)]
    assert verify_log(path, head=heads[-1]).ok
    assert verify_log(path, head=f" {heads[3].upper()}\n").ok
    path.write_bytes(b"".join(sealed(run)[:4]))
    anchor_path(path).unlink()
    assert verify_log(path, head=heads[3]).ok
    result = verify_log(path, head=heads[-1])
    assert (bad_seq(result), result.problem) == (4, "truncated")


@pytest.mark.parametrize("head", ["", "abc", "0" * 63, "g" * 64, "0" * 65])
def test_a_head_that_is_no_hash_is_an_error(tmp_path: Path, head: str) -> None:
    """A shortened or mistyped head is refused instead of being reported as a broken log."""
    with pytest.raises(LogError, match="64 hexadecimal digits"):
        verify_log(written(tmp_path / "log.jsonl", a_run(2)), head=head)


def test_a_log_that_was_rewritten_as_a_whole_contradicts_its_anchor(tmp_path: Path) -> None:
    """Who edits a record and computes the whole chain anew is found by the hash in the anchor."""
    path = written(tmp_path / "log.jsonl", a_run(6))
    forged = a_run(6)
    forged[2] = an_exec(2, path="/usr/bin/true")
    path.write_bytes(b"".join(sealed(forged)))
    result = verify_log(path)
    assert (bad_seq(result), result.problem) == (5, "edited")
    assert "anchor" in result.message
    assert verify_log(path, anchor=False).ok


def test_a_record_that_was_resealed_alone_breaks_at_the_next_one(tmp_path: Path) -> None:
    """A record edited together with its own hash fits no longer under the record after it."""
    path = written(tmp_path / "log.jsonl", a_run(6))
    lines = sealed(a_run(6))
    lines[2] = seal(encode_event(an_exec(2, path="/usr/bin/true")), open_line(lines[2]).prev)[0]
    path.write_bytes(b"".join(lines))
    result = verify_log(path)
    assert (bad_seq(result), result.problem) == (3, "edited")
    assert "one of both was replaced" in result.message


def test_a_gap_in_the_numbers_is_found_under_hashes_that_fit(tmp_path: Path) -> None:
    """Who leaves a record out and computes the rest of the chain anew still leaves the gap."""
    path = tmp_path / "log.jsonl"
    lines = sealed([an_open(), an_exec(1), an_exec(3)])
    put(path, lines, anchor=lines)
    result = verify_log(path)
    assert (bad_seq(result), result.problem) == (2, "removed")


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        ([a_close(3), an_exec(4)], "after the session's close"),
        ([an_exec(3, watch="ffffffff")], "belongs to watch ffffffff"),
        ([an_open(seq=3)], "opens a session a second time"),
    ],
)
def test_a_record_that_does_not_belong_to_the_session_is_not_ours(
    tmp_path: Path, tail: list[AnyEvent], reason: str
) -> None:
    """Records behind the close, of another watch or of a second session are bad, though their hashes fit."""
    records = [an_open(), an_exec(1), an_exec(2), *tail]
    path = tmp_path / "log.jsonl"
    put(path, sealed(records), anchor=sealed(records))
    result = verify_log(path)
    assert (bad_seq(result), result.problem) == (len(records) - 1, "not-ours")
    assert reason in result.message


UNKNOWN = {
    "kind": b'{"kind":"teleport","seq":1}',
    "not UTF-8": b'{"kind":"gap","reason":"\xff\xfe"}',
    "not JSON": b"[[[}",
    "nothing": b"}",
    "deep": b'{"x":' + b"[" * 100_000 + b"}",
}


@pytest.mark.parametrize("body", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_a_sealed_record_that_this_version_does_not_know_is_named(tmp_path: Path, body: bytes) -> None:
    """A record whose hash fits but which is no event of this version is a finding, never a traceback."""
    lines = sealed([an_open()])
    lines.append(seal(body, open_line(lines[0]).hash)[0])
    path = tmp_path / "log.jsonl"
    put(path, lines, anchor=lines)
    result = verify_log(path)
    assert (bad_seq(result), result.problem) == (1, "version")


def test_hostile_text_in_a_log_does_not_reach_the_message(tmp_path: Path) -> None:
    """Terminal escapes in a damaged log or in its name are shown as escapes."""
    lines = sealed([an_open()])
    body = '{"kind":"gap","\x1b[2J\u202e":1}'.encode()
    lines.append(seal(body, open_line(lines[0]).hash)[0])
    path = tmp_path / "log\x1b[31m.jsonl"
    put(path, lines, anchor=lines)
    message = verify_log(path).message
    assert message.isprintable()
    assert "\\x1b[31m" in message


def test_a_line_too_long_for_a_record_is_bad_where_it_stands(tmp_path: Path) -> None:
    """A line beyond the limit behind good records is damage at that record; it is not read into memory whole."""
    lines = sealed(a_run(3))
    path = tmp_path / "log.jsonl"
    put(path, [*lines[:2], b"x" * (MAX_LINE + 1) + b"\n", lines[2]], anchor=lines)
    assert bad_seq(verify_log(path)) == 2


FOREIGN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "binary": (os.urandom(64).replace(b"\n", b"") + b"\n" + bytes(100), "no session-open record"),
    "text": (b"hello\nworld\n", "no session-open record"),
    "other JSON Lines": (b'{"level":"info","prev":"x"}\n', "no session-open record"),
    "another program's session": (b'{"kind":"session","user":"ada"}\n', "declares format none"),
    "a later format": (b'{"kind":"session","format":2,"seal":"x"}\n', "declares format 2"),
    "a later format, sealed as ours": (sealed([an_open(format=FORMAT + 1)])[0], "declares format 2"),
    "no session": (sealed([an_exec(0)])[0], "no session-open record"),
    "a close first": (sealed([a_close(0)])[0], "no session-open record|declares format none"),
    "sealed, but no event": (seal(b'{"a":1}', b"0" * 64)[0], "is not a record"),
    "one huge line": (b'{"kind":"session"' + b" " * (MAX_LINE + 10), "longer than"),
    "one huge line of zeros": (bytes(MAX_LINE + 10), "no session-open record"),
    "deep JSON": (b'{"kind":"session","format":1,"a":' + b"[" * 100_000 + b"\n", ""),
}


@pytest.mark.parametrize("name", [name for name in FOREIGN if name != "deep JSON"])
def test_a_file_that_is_not_ours_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    """A foreign file is an error that names the file and the reason; there is no result to misread."""
    content, reason = FOREIGN[name]
    path = tmp_path / "log.jsonl"
    path.write_bytes(content)
    with pytest.raises(LogError, match=reason) as raised:
        verify_log(path)
    assert str(path) in str(raised.value)


def test_deeply_nested_json_is_damage_and_no_recursion(tmp_path: Path) -> None:
    """A first line that begins like ours and goes on with 100,000 brackets is a bad record 0."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(FOREIGN["deep JSON"][0])
    assert bad_seq(verify_log(path)) == 0


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    """A folder, a missing file, a named pipe and an impossible name are errors, and the pipe is not waited for."""
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (("", "a folder"), ("missing", "No such file"), ("pipe", "not a regular file"), ("\0", "null")):
        with pytest.raises(LogError, match=reason):
            verify_log(tmp_path / name, anchor=False)


def test_a_log_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    """A file of somebody else is an error with the system's reason."""
    path = written(tmp_path / "log.jsonl", a_run(2))
    path.chmod(0)
    script = (
        "import os, sys\n"
        "from jupyter_agentwatch.audit.verify import verify_log\n"
        "from jupyter_agentwatch.errors import LogError\n"
        "os.geteuid() or os.seteuid(65534)\n"
        "try:\n    verify_log(sys.argv[1], anchor=False)\n"
        "except LogError as error:\n    print(error)\n"
    )
    argv = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert "Permission denied" in done.stdout


@pytest.mark.parametrize("content", [b"{", b'{"seq":1}', b"x" * 10_000, b'{"seq":"1","hash":"ab"}'])
def test_an_anchor_that_is_not_ours_is_an_error(tmp_path: Path, content: bytes) -> None:
    """A broken side file is neither believed nor passed over; the error says how to go on without it."""
    path = written(tmp_path / "log.jsonl", a_run(3))
    anchor_path(path).write_bytes(content)
    with pytest.raises(LogError, match="verify the log without it"):
        verify_log(path)
    assert verify_log(path, anchor=False).ok


def test_an_empty_anchor_counts_as_none(tmp_path: Path) -> None:
    """What a power cut can leave of the first anchor takes nothing away from a closed log."""
    path = written(tmp_path / "log.jsonl", a_run(3))
    anchor_path(path).write_bytes(b"")
    assert verify_log(path).anchored == -1


def test_a_clock_that_steps_back_changes_nothing(tmp_path: Path) -> None:
    """The order of a log is that of `seq`; times that run backwards are no damage."""
    records = [an_exec(seq, t_mono_ns=-seq, t_wall_ns=10**18 - seq * 10**15) for seq in range(1, 20)]
    assert verify_log(written(tmp_path / "log.jsonl", [an_open(), *records, a_close(20)])).ok


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    """A log of many megabytes is verified in about one of memory, also when it is searched to its end."""
    lines = sealed(a_run(20_000))
    path = tmp_path / "log.jsonl"
    put(path, lines[:1] + lines[2:], anchor=lines)
    size = path.stat().st_size
    del lines
    tracemalloc.start()
    try:
        assert bad_seq(verify_log(path)) == 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 8_000_000
    assert peak < 1_500_000


def test_the_hash_is_over_bytes_not_over_values(tmp_path: Path) -> None:
    """The same JSON value with one more space is an edited record."""
    lines = sealed(a_run(3))
    body, prev, own = open_line(lines[1])
    spaced = body.replace(b":", b": ", 1)
    assert msgspec.json.decode(spaced) == msgspec.json.decode(body)
    assert digest(prev, spaced) != own
    path = tmp_path / "log.jsonl"
    put(path, [lines[0], lines[1].replace(b":", b": ", 1), lines[2]], anchor=lines)
    assert bad_seq(verify_log(path)) == 1
