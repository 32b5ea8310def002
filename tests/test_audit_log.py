"""The writer of the log: what stands in the file after every success and after every failure."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from jupyter_agentwatch.audit.chain import MAX_LINE, decode_anchor, open_line
from jupyter_agentwatch.audit.log import AuditLog, LogWriteError, anchor_path
from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.audit.verify import verify_log
from jupyter_agentwatch.errors import AgentwatchError
from jupyter_agentwatch.events import AnyEvent, decode_event
from tests.strategies import a_close, an_exec, an_open, log_events, sealed

ROOT = Path(__file__).parent.parent


def descriptor(path: Path) -> int:
    """Return this process's descriptor of an open file, found from outside the object that holds it."""
    for name in os.listdir("/proc/self/fd"):
        if os.path.realpath(f"/proc/self/fd/{name}") == str(path):
            return int(name)
    raise AssertionError(path)


def child(script: str, *arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter."""
    argv = [*before, sys.executable, "-c", script, *arguments]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def log(tmp_path: Path) -> Any:
    """A log with its first record."""
    opened = AuditLog.create(tmp_path / "log.jsonl", an_open())
    yield opened
    opened.close()


def test_a_new_log_is_private_and_has_its_first_record_and_an_anchor(log: AuditLog) -> None:
    """File and side file have mode 0600, and a watch that dies at once leaves a log that verifies."""
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(anchor_path(log.path).stat().st_mode) == 0o600
    assert list(read_events(log.path)) == [an_open()]
    assert decode_anchor(anchor_path(log.path).read_bytes()).seq == 0
    assert verify_log(log.path).ok


def test_the_descriptor_appends_and_is_not_inherited(log: AuditLog) -> None:
    """A program started by the supervisor gets no way to write into the log."""
    fd = descriptor(log.path)
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND


def test_an_existing_file_is_never_written_to(tmp_path: Path) -> None:
    """A second log of the same name, also through a symbolic link, is an error, and the first stays as it is."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for taken in (path, tmp_path / "link"):
        with pytest.raises(LogWriteError, match="File exists") as raised:
            AuditLog.create(taken, an_open())
        assert raised.value.errno == errno.EEXIST
        assert isinstance(raised.value, AgentwatchError)
    assert path.read_bytes() == b"precious"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("changes", [{"op": "close"}, {"seq": 1}, {"format": 0}, {"format": 2}, {"rung": "\ud800"}])
def test_a_wrong_first_record_leaves_no_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    """A log begins with a session-open record of this format, or does not come into being."""
    with pytest.raises(ValueError):  # noqa: PT011 -- the last case has the codec's text
        AuditLog.create(tmp_path / "log.jsonl", an_open(**changes))
    assert list(tmp_path.iterdir()) == []


@settings(deadline=None, max_examples=40)
@given(log_events())
def test_the_file_holds_what_was_appended(tmp_path_factory: pytest.TempPathFactory, records: list[AnyEvent]) -> None:
    """After each append the record stands in the file, sealed, and its JSON is what was returned."""
    opened = AuditLog.create(tmp_path_factory.mktemp("log") / "log.jsonl", records[0])  # type: ignore[arg-type]
    for seq, event in enumerate(records[1:], 1):
        assert opened.next_seq == seq
        assert decode_event(opened.append(event)) == event
        assert opened.path.read_bytes() == b"".join(sealed(records)[: seq + 1])
    assert opened.head == open_line(sealed(records)[-1]).hash.decode()
    opened.close()


def test_a_record_out_of_turn_is_refused_and_nothing_is_written(log: AuditLog) -> None:
    """A wrong number, another watch, a second opening and a text that is no Unicode change nothing."""
    before = log.path.read_bytes()
    for wrong in (an_exec(0), an_exec(2), an_exec(1, watch="ffffffff"), an_open(seq=1), an_exec(1, path="\ud800")):
        with pytest.raises(ValueError):  # noqa: PT011 -- one text for each case is tested below
            log.append(wrong)
    assert log.path.read_bytes() == before
    log.append(an_exec(1))
    assert verify_log(log.path).records == 2


def test_nothing_follows_the_close_record(log: AuditLog) -> None:
    """A closed session's log takes no record, and says why; so does a log whose file was released."""
    log.append_synced(a_close(1))
    with pytest.raises(ValueError, match="session-close record"):
        log.append(an_exec(2))
    log.close()
    log.close()
    assert verify_log(log.path).closed


def test_a_released_log_takes_no_record(log: AuditLog) -> None:
    """After `close` an append is an error instead of a write to whatever has the descriptor's number now."""
    log.close()
    with pytest.raises(ValueError, match="it was closed"):
        log.append(an_exec(1))


def test_sync_moves_the_anchor_to_the_last_record(log: AuditLog) -> None:
    """The anchor names the last record that was synced, stays when nothing is new, and no scratch file is left."""
    log.append(an_exec(1))
    assert verify_log(log.path).anchored == 0
    log.append_synced(an_exec(2))
    anchor = decode_anchor(anchor_path(log.path).read_bytes())
    assert (anchor.seq, anchor.hash) == (2, log.head)
    inode = anchor_path(log.path).stat().st_ino
    log.sync()
    assert anchor_path(log.path).stat().st_ino == inode
    names = sorted(path.name for path in log.path.parent.iterdir())
    assert names == ["log.jsonl", "log.jsonl.anchor"]


def test_a_record_too_long_to_be_read_is_not_written(log: AuditLog) -> None:
    """What readers would refuse is refused by the writer, and the log goes on."""
    with pytest.raises(LogWriteError, match="longer than"):
        log.append(an_exec(1, argv=["x" * MAX_LINE]))
    log.append(an_exec(1))
    assert verify_log(log.path).records == 2


def test_a_full_device_is_an_error_and_the_same_record_can_be_tried_again(log: AuditLog) -> None:
    """ENOSPC from the kernel reaches the caller as such; once there is room, the chain goes on as if nothing was."""
    fd = descriptor(log.path)
    kept = os.dup(fd)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, fd, inheritable=False)
    with pytest.raises(LogWriteError, match="No space left on device; free space") as raised:
        log.append(an_exec(1))
    assert raised.value.errno == errno.ENOSPC
    assert log.next_seq == 1
    os.dup2(kept, fd, inheritable=False)
    for spare in (full, kept):
        os.close(spare)
    log.append(an_exec(1))
    assert verify_log(log.path).records == 2


FULL = """
import json, os, resource, sys
from pathlib import Path
from jupyter_agentwatch.audit.log import AuditLog, LogWriteError, anchor_scratch
from jupyter_agentwatch.audit.verify import verify_log
from tests.strategies import a_close, an_exec, an_open

folder, by_limit = Path(sys.argv[1]), sys.argv[2] == "limit"
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
log = AuditLog.create(folder / "log.jsonl", an_open())
log.append_synced(an_exec(1))
filler = folder / "filler"
if by_limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
else:
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
report = {}
try:
    while log.next_seq < 5_000:
        log.append(an_exec(log.next_seq))
except LogWriteError as error:
    report["errno"], report["text"] = error.errno, str(error)
report["failed_at"] = log.next_seq
report["size_fits"] = log.path.read_bytes().endswith(b'"}\\n')
report["valid_when_full"] = verify_log(log.path).ok and verify_log(log.path).records == log.next_seq
try:
    log.append(an_exec(log.next_seq))
except LogWriteError:
    report["full_again"] = log.path.read_bytes().endswith(b'"}\\n')
if by_limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
try:
    log.sync()
except LogWriteError as error:
    report["sync"] = str(error)
report["anchor_kept"] = verify_log(log.path).anchored
report["no_scratch"] = not anchor_scratch(log.path).exists()
try:
    AuditLog.create(folder / "second.jsonl", an_open())
except LogWriteError:
    report["second_left"] = (folder / "second.jsonl").exists()
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
filler.unlink(missing_ok=True)
log.append(an_exec(log.next_seq))
log.append_synced(a_close(log.next_seq))
last = verify_log(log.path)
report["end"] = [last.ok, last.closed, last.records - report["failed_at"], last.anchored == last.records - 1]
print(json.dumps(report))
"""


def check_full(done: subprocess.CompletedProcess[str], number: set[int]) -> None:
    """Assert what a log promises on a full disk, from the report of a process that had one."""
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["errno"] in number
    assert "free space" in report["text"]
    assert 2 < report["failed_at"] < 5_000
    assert report["size_fits"]
    assert report["valid_when_full"]
    assert report["full_again"]
    assert "cannot write its anchor" in report["sync"]
    assert report["anchor_kept"] == 1
    assert report["no_scratch"]
    assert report["second_left"] is False
    assert report["end"] == [True, True, 2, True]


def test_a_limit_on_the_file_size_leaves_a_valid_log(tmp_path: Path) -> None:
    """Where the kernel takes only a part of a record it is cut off again; with room again, the log goes on."""
    check_full(child(FULL, str(tmp_path), "limit"), {errno.ENOSPC, errno.EFBIG})


def test_a_full_disk_leaves_a_valid_log(tmp_path: Path) -> None:
    """On a file system without space the same holds; without the right to mount one, a file-size limit stands in."""
    inside = ("unshare", "--user", "--map-root-user", "--mount", "--")
    mount = "mount -t tmpfs -o size=128k,mode=700 none "
    disk = tmp_path / "disk"
    disk.mkdir()
    probe = subprocess.run([*inside, "sh", "-c", f'{mount} "$1"', "sh", str(disk)], capture_output=True, check=False)
    if probe.returncode == 0:
        before = (*inside, "sh", "-c", f'{mount} "$1" && shift && exec "$@"', "sh", str(disk))
        check_full(child(FULL, str(disk), "tmpfs", before=before), {errno.ENOSPC})
    else:
        check_full(child(FULL, str(disk), "limit"), {errno.ENOSPC, errno.EFBIG})


TORN = """
import fcntl, json, os, resource, sys
from pathlib import Path
from jupyter_agentwatch.audit.log import AuditLog, LogWriteError
from tests.strategies import an_exec, an_open

log = AuditLog.create(Path(sys.argv[1]) / "log.jsonl", an_open())
fd = next(int(n) for n in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{n}") == str(log.path))
memory = os.memfd_create("log", os.MFD_ALLOW_SEALING)
os.write(memory, log.path.read_bytes())
fcntl.fcntl(memory, fcntl.F_SETFL, os.O_APPEND)
fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
os.dup2(memory, fd)
size = os.fstat(fd).st_size
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, hard))
texts = []
for attempt in range(2):
    try:
        log.append(an_exec(1))
    except LogWriteError as error:
        texts.append(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print(json.dumps({"texts": texts, "grown": os.fstat(fd).st_size - size, "next": log.next_seq}))
"""


def test_a_record_that_cannot_be_cut_off_stops_the_log(tmp_path: Path) -> None:
    """While half a record stands at the end, nothing is written behind it, though there would be room again."""
    done = child(TORN, str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["texts"]) == 2
    assert all("cannot cut off the half-written record 1" in text for text in report["texts"])
    assert (report["grown"], report["next"]) == (50, 1)


def test_a_failed_write_never_lengthens_a_log_that_somebody_shortened(log: AuditLog) -> None:
    """Cutting back fills no hole with zeros; the loss stays visible."""
    fd = descriptor(log.path)
    os.truncate(log.path, 10)
    kept = os.dup(fd)
    reading = os.open(log.path, os.O_RDONLY)
    os.dup2(reading, fd, inheritable=False)
    with pytest.raises(LogWriteError, match="cannot write record 1"):
        log.append(an_exec(1))
    assert log.path.stat().st_size == 10
    for spare in (reading, kept):
        os.close(spare)


KILLED = """
import os, signal, sys
from pathlib import Path
from jupyter_agentwatch.audit.log import AuditLog
from tests.strategies import an_exec, an_open
log = AuditLog.create(Path(sys.argv[1]) / "log.jsonl", an_open())
for seq in range(1, 500):
    log.append(an_exec(seq))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_every_record_that_it_appended(tmp_path: Path) -> None:
    """After SIGKILL, without any sync, all records are there and the log verifies as open."""
    assert child(KILLED, str(tmp_path)).returncode == -9
    result = verify_log(tmp_path / "log.jsonl")
    assert (result.ok, result.closed, result.records) == (True, False, 500)


def test_the_writer_loads_neither_sqlite_nor_the_readers() -> None:
    """The supervisor, which only writes, stays small."""
    script = (
        "import sys, jupyter_agentwatch.audit.log\nprint(*(n for n in sys.modules if 'sqlite' in n or 'audit' in n))"
    )
    loaded = child(script).stdout.split()
    assert loaded == [f"jupyter_agentwatch.audit{part}" for part in ("", ".chain", ".log")]
