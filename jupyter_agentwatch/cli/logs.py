"""`tail`, `verify` and `policy suggest`'s source: audit logs found by id or path, shown and checked; never written."""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from jupyter_agentwatch.audit.reader import LogInfo, LogTail, decode_line, list_logs, read_events
from jupyter_agentwatch.audit.verify import verify_log
from jupyter_agentwatch.cli.output import ByteSink, remark, say
from jupyter_agentwatch.cli.words import event_line
from jupyter_agentwatch.errors import LogError
from jupyter_agentwatch.events import Session, printable
from jupyter_agentwatch.wire.force import supervisors_of
from jupyter_agentwatch.wire.runtime import control_socket, log_dir

__all__ = ["find_log", "tail", "verify"]

_BATCH = 4096
_POLL_S = 0.1
_POLLS_PER_CHECK = 20


def find_log(text: str | None) -> Path:
    """Return the log that a person means: a file, a watch's id or its beginning; None means the newest log.

    Raises:
        LogError: There is none, or more than one.
    """
    if text is not None and ("/" in text or Path(text).is_file()):
        return Path(text)
    logs = [info for info in list_logs(log_dir()) if info.watch.startswith(text or "")]
    if text is None and logs:
        return logs[-1].path
    if len(logs) == 1:
        return logs[0].path
    msg = _not_one(text, logs)
    raise LogError(msg)


def _not_one(text: str | None, logs: list[LogInfo]) -> str:
    if text is None:
        return f"no audit log in {log_dir()} yet"
    if not logs:
        return f"{printable(text)}: neither a file nor the id of a watch with a log in {log_dir()}"
    return f"{printable(text)}: more than one log begins so: {', '.join(printable(info.watch) for info in logs)}"


def tail(options: argparse.Namespace) -> int:
    """Show the last records of a log and, with `--follow`, those that come, until the watch ends."""
    log = LogTail(find_log(options.log))
    watch = next(read_events(log.path)).watch
    sink = ByteSink(sys.stdout.buffer)
    last = deque(_lines(log), maxlen=max(options.lines, 1))
    _show(list(last)[-options.lines :] if options.lines else [], log.path, sink, raw=options.json)
    if options.follow and not (last and _closes(last[-1], log.path)):
        _follow(log, control_socket(watch), sink, raw=options.json)
    return 0


def verify(options: argparse.Namespace) -> int:
    """Check a log; 0 when it is whole, 1 when a record is bad."""
    found = verify_log(find_log(options.log), head=options.head)
    say(f"{'ok' if found.ok else 'BAD'}: {found.message}")
    return 0 if found.ok else 1


def _lines(log: LogTail) -> Iterator[bytes]:
    while lines := log.read_lines(_BATCH):
        yield from lines


def _show(lines: list[bytes], path: Path, sink: ByteSink, *, raw: bool) -> None:
    if raw:
        sink.write(b"".join(lines))
    else:
        for line in lines:
            say(event_line(decode_line(line, path, "a line")))


def _closes(line: bytes, path: Path) -> bool:
    event = decode_line(line, path, "a line")
    return isinstance(event, Session) and event.op == "close"


def _follow(log: LogTail, socket: Path, sink: ByteSink, *, raw: bool) -> None:
    idle = 0
    while True:
        # A supervisor that was killed writes no close record. Asked before the read: what it wrote last is shown.
        gone = idle == _POLLS_PER_CHECK and not supervisors_of(socket)
        lines = log.read_lines(_BATCH)
        if lines:
            _show(lines, log.path, sink, raw=raw)
            if _closes(lines[-1], log.path):
                return
        elif gone:
            remark("the watch has no supervisor any more, and its log no close record")
            return
        else:
            time.sleep(_POLL_S)
        idle = 0 if lines or idle == _POLLS_PER_CHECK else idle + 1
