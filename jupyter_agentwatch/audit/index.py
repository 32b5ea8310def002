"""A SQLite index over many logs, for questions that span runs; never the truth, and thrown away without a loss.

It runs in the kernel or on the command line, never in the supervisor, and vouches for nothing: `verify` reads the
log itself.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Final, Self, TypeVar, get_args

import msgspec

from jupyter_agentwatch.audit.chain import MAX_LINE, SEAL_END, open_line
from jupyter_agentwatch.audit.reader import (
    KINDS,
    check_among,
    decode_line,
    kind_of,
    list_logs,
    open_log,
    read_header,
    read_line,
    shown,
)
from jupyter_agentwatch.errors import LogError
from jupyter_agentwatch.events import AnyEvent, Event, Verdict, decode_event

__all__ = ["AuditIndex", "Refreshed"]

T = TypeVar("T")

_APPLICATION: Final = 0x41577864
_SCHEMA: Final = 1
_BATCH: Final = 5000
_INT64: Final = range(-(2**63), 2**63)
_COMMON: Final = frozenset(Event.__struct_fields__)
_VERDICTS: Final = frozenset(get_args(Verdict))
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TABLES: Final = """
    CREATE TABLE logs (id INTEGER PRIMARY KEY, path BLOB UNIQUE NOT NULL, watch TEXT NOT NULL, identity TEXT NOT NULL,
        head TEXT NOT NULL DEFAULT '', offset INTEGER NOT NULL DEFAULT 0, records INTEGER NOT NULL DEFAULT 0);
    CREATE TABLE events (log INTEGER NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL, verdict TEXT NOT NULL,
        step INTEGER NOT NULL, wall_ns INTEGER NOT NULL, json TEXT NOT NULL, PRIMARY KEY (log, seq));
    CREATE INDEX by_kind ON events (kind, verdict);
    CREATE INDEX by_step ON events (log, step);
    CREATE INDEX by_time ON events (wall_ns)
"""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What a refresh did.

    Attributes:
        added: Number of records that are new in the index.
        logs: Number of logs that were looked at.
        problems: Logs that could not be read to their end, and why; what could be read is in the index.
    """

    added: int
    logs: int
    problems: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _State:
    """How far a log is indexed, and by what it is known to be still the same file."""

    id: int
    identity: str
    head: str
    offset: int
    records: int


class _OutdatedError(Exception):
    """The file is an index of another version, or holds what no version of ours writes."""


class AuditIndex:
    """An index file. One object belongs to one thread; several processes may use the same file."""

    def __init__(self, path: str | Path) -> None:
        """Open the index, or make it with mode 0600. One of another version is thrown away.

        A file that is not readable as a database is moved aside to `<path>.broken`.

        Raises:
            LogError: The file cannot be made or opened, or is another program's database.
        """
        self.path = Path(os.path.abspath(path))
        self._known: dict[Path, None] = {}
        self._db = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; idempotent."""
        self._db.close()

    def refresh(self, source: str | Path | Iterable[str | Path]) -> Refreshed:
        """Index what is new since the last refresh; a log that was replaced or shortened is indexed afresh.

        A log that is damaged, or gone in the meantime, hinders no other one.

        Args:
            source: A folder of logs, or the paths of logs.

        Raises:
            LogError: The folder or the index cannot be read or written.
        """
        paths = self._paths(source)
        return self._healing(lambda: self._refresh(paths), self._refresh_known)

    def rebuild(self) -> Refreshed:
        """Throw the index away and index every log again that it knew.

        Raises:
            LogError: The index cannot be made.
        """
        with contextlib.suppress(sqlite3.Error):
            self._learn()

        def work() -> Refreshed:
            self._discard()
            return self._refresh_known()

        return self._healing(work, work)

    def query(
        self,
        *,
        kinds: Collection[str] | None = None,
        verdicts: Collection[str] | None = None,
        watch: str | None = None,
        step: int | None = None,
        since: datetime | None = None,
        text: str | None = None,
        newest: bool = False,
        limit: int = 1000,
    ) -> list[dict[str, Any]]:
        """Return records that meet every condition, log by log, each log in the order of its `seq`.

        Args:
            kinds: Kinds of events; empty means none, None means all.
            verdicts: Verdicts; empty means none, None means all.
            watch: Id of a watch.
            step: Number of a step.
            since: Only records whose wall clock, as recorded, was not before; must have a time zone.
            text: Part of a text of the event (path, argument, host, title …), ASCII letters in either case.
            newest: Return the last `limit` records, the latest first.
            limit: Most records to return, 1 or more.

        Returns:
            One dict per record: `log` (path), the fields that every event bears, `kind`, and `json` (what
            `events.decode_event` takes).

        Raises:
            ValueError: An unknown kind or verdict, a `since` without time zone, a limit below 1.
            LogError: The index cannot be read.
        """
        if limit < 1 or (step or 0) not in _INT64:
            msg = f"limit {limit} is below 1, or step {step} beyond 64 bits"
            raise ValueError(msg)
        conditions = {
            "events.kind IN (SELECT value FROM json_each(?))": _listed(check_among("kinds", kinds, KINDS)),
            "events.verdict IN (SELECT value FROM json_each(?))": _listed(check_among("verdicts", verdicts, _VERDICTS)),
            "logs.watch = ?": watch,
            "events.step = ?": step,
            "events.wall_ns >= ?": None if since is None else _wall_ns(since),
            # Only a first sieve: it also finds field names. Escapes are as in the stored JSON.
            "instr(lower(events.json), ?) > 0": text and _folded(msgspec.json.encode(text).decode()[1:-1]),
        }
        used = {clause: value for clause, value in conditions.items() if value is not None}
        way = "DESC" if newest else "ASC"
        statement = (
            "SELECT logs.path, events.json FROM events JOIN logs ON logs.id = events.log"  # noqa: S608 -- constants
            f" WHERE {' AND '.join(['1', *used])} ORDER BY events.log {way}, events.seq {way}"
        )
        values = list(used.values())

        def again() -> list[dict[str, Any]]:
            self._refresh_known()
            return self._rows(statement, values, text, limit)

        return self._healing(lambda: self._rows(statement, values, text, limit), again)

    def _rows(self, statement: str, values: Sequence[str | int], text: str | None, limit: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        with contextlib.closing(self._db.execute(statement, values)) as cursor:
            for path, json in cursor:
                try:
                    event = decode_event(json.encode())
                except ValueError as error:
                    raise _OutdatedError from error
                if text is None or _has_text(event, text):
                    found.append(_row(Path(os.fsdecode(path)), event, json))
                    if len(found) == limit:
                        break
        return found

    def _paths(self, source: str | Path | Iterable[str | Path]) -> list[Path]:
        if isinstance(source, str | Path):
            paths = [info.path for info in list_logs(source)]
        else:
            paths = [Path(path) for path in source]
        absolute = [Path(os.path.abspath(path)) for path in paths]
        self._known.update(dict.fromkeys(absolute))
        return absolute

    def _refresh(self, paths: list[Path]) -> Refreshed:
        self._learn()
        with self._transaction():
            for path in [path for path in self._known if not os.path.exists(path)]:
                del self._known[path]
                self._forget(path)
        problems: dict[Path, str] = {}
        added = 0
        for path in paths:
            try:
                for count in self._index(path):
                    added += count
            except LogError as error:
                problems[path] = str(error)
        return Refreshed(added, len(paths), problems)

    def _refresh_known(self) -> Refreshed:
        return self._refresh([path for path in self._known if os.path.exists(path)])

    def _index(self, path: Path) -> Iterator[int]:
        """Index one log in batches and yield the size of each.

        All that is known is read anew in each batch, because another process may index the same log.
        """
        count = _BATCH
        while count == _BATCH:
            with open_log(path) as file, self._transaction():
                try:
                    count, failure = self._take_batch(self._state(file, path), file, path)
                except LogError as error:
                    # Not a log any more: what was indexed under its name must not outlive it.
                    self._forget(path)
                    count, failure = 0, error
            yield count
            if failure is not None:
                raise failure

    def _take_batch(self, state: _State, file: BinaryIO, path: Path) -> tuple[int, LogError | None]:
        rows: list[tuple[int | str, ...]] = []
        offset, head = state.offset, state.head
        failure: LogError | None = None
        file.seek(offset)
        while len(rows) < _BATCH:
            line = read_line(file, path)
            if len(line) <= MAX_LINE and not line.endswith(b"\n"):
                break
            seq = state.records + len(rows)
            try:
                event = decode_line(line, path, f"line {seq + 1}")
                sealed = open_line(line)
                rows.append((state.id, *_columns(event, seq, path), sealed.body.decode()))
            except LogError as error:
                failure = error
                break
            offset += len(line)
            head = sealed.hash.decode()
        self._db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        done = (offset, state.records + len(rows), head, state.id)
        self._db.execute("UPDATE logs SET offset = ?, records = ?, head = ? WHERE id = ?", done)
        return len(rows), failure

    def _state(self, file: BinaryIO, path: Path) -> _State:
        """Return how far a log is indexed; from its start where it is new or not the one that was indexed."""
        line = read_line(file, path)
        watch = read_header(line, path).watch
        info = os.fstat(file.fileno())
        identity = f"{info.st_dev} {info.st_ino} {open_line(line).hash.decode()}"
        key = os.fsencode(path)
        select = "SELECT id, identity, head, offset, records FROM logs WHERE path = ?"
        row = self._db.execute(select, (key,)).fetchone()
        state = None if row is None else _State(*row)
        if state is not None and state.identity == identity and _ends_with(file, state, info.st_size):
            return state
        self._forget(path)
        self._db.execute("INSERT INTO logs (path, watch, identity) VALUES (?, ?, ?)", (key, watch, identity))
        return _State(*self._db.execute(select, (key,)).fetchone())

    def _forget(self, path: Path) -> None:
        key = (os.fsencode(path),)
        self._db.execute("DELETE FROM events WHERE log = (SELECT id FROM logs WHERE path = ?)", key)
        self._db.execute("DELETE FROM logs WHERE path = ?", key)

    def _learn(self) -> None:
        """Remember which logs the index knows, so that a later loss of the file loses nothing."""
        rows = self._db.execute("SELECT path FROM logs").fetchall()
        self._known.update((Path(os.fsdecode(path)), None) for (path,) in rows)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            # A corrupt file may have ended the transaction already; its error is the one to report.
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _healing(self, work: Callable[[], T], again: Callable[[], T]) -> T:
        """Do `work`; where the index turns out to be corrupt, throw it away and do `again`."""
        try:
            try:
                return work()
            except (sqlite3.DatabaseError, _OutdatedError) as error:
                if not _is_corrupt(error):
                    raise
                self._discard()
                return again()
        except (sqlite3.Error, _OutdatedError) as error:
            raise self._unusable(error) from error

    def _discard(self) -> None:
        self._db.close()
        self._remove()
        self._db = self._connect()

    def _open(self) -> sqlite3.Connection:
        try:
            try:
                return self._connect()
            except _OutdatedError:
                self._remove()
            except sqlite3.DatabaseError as error:
                if not _is_corrupt(error):
                    raise
                # Perhaps it never was an index: what a person may miss is moved, not removed.
                self.path.replace(self.path.with_name(self.path.name + ".broken"))
                self._remove()
            return self._connect()
        except (OSError, sqlite3.Error, _OutdatedError) as error:
            raise self._unusable(error) from error

    def _connect(self) -> sqlite3.Connection:
        # SQLite gives its side files the mode of the database: the index repeats what the logs hold.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(self.path, isolation_level=None)
        try:
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not application and not tables:
            for statement in _TABLES.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {_APPLICATION}")
            db.execute(f"PRAGMA user_version = {_SCHEMA}")
        elif application != _APPLICATION:
            msg = f"{shown(self.path)}: this is another program's database; choose another path for the index"
            raise LogError(msg)
        elif version != _SCHEMA:
            raise _OutdatedError
        db.execute("COMMIT")
        # Another process may hold the file at this moment; the index works without it, only slower.
        with contextlib.suppress(sqlite3.OperationalError):
            db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm", "-journal"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _unusable(self, error: Exception) -> LogError:
        return LogError(f"{shown(self.path)}: cannot use the index: {error}; delete it, it can be rebuilt")


def _is_corrupt(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, _OutdatedError) or code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _ends_with(file: BinaryIO, state: _State, size: int) -> bool:
    """Tell whether what was indexed still ends with the record that it ended with."""
    if state.offset == 0 or state.offset > size:
        return state.offset == 0
    file.seek(state.offset - SEAL_END)
    return file.read(SEAL_END) == f'{state.head}"}}\n'.encode()


def _columns(event: AnyEvent, seq: int, path: Path) -> tuple[int, str, str, int, int]:
    if event.seq != seq:
        msg = f"{shown(path)}: line {seq + 1} holds record {event.seq}, not {seq}; verify the log"
        raise LogError(msg)
    if event.step not in _INT64 or event.t_wall_ns not in _INT64:
        msg = f"{shown(path)}: line {seq + 1} holds a number beyond 64 bits: not a record of ours"
        raise LogError(msg)
    return seq, kind_of(event), event.verdict, event.step, event.t_wall_ns


def _listed(words: frozenset[str] | None) -> str | None:
    return None if words is None else msgspec.json.encode(sorted(words)).decode()


def _wall_ns(moment: datetime) -> int:
    if moment.tzinfo is None:
        msg = f"since: {moment.isoformat()} has no time zone"
        raise ValueError(msg)
    return min((moment - _EPOCH) // timedelta(microseconds=1) * 1000, _INT64[-1])


def _folded(text: str) -> str:
    """Lower ASCII letters only, as SQLite's `lower` does."""
    return text.encode().lower().decode()


def _has_text(event: AnyEvent, text: str) -> bool:
    needle = _folded(text)
    for name in event.__struct_fields__:
        if name not in _COMMON:
            value = getattr(event, name)
            texts = value if isinstance(value, list) else [value]
            if any(isinstance(item, str) and needle in _folded(item) for item in texts):
                return True
    return False


def _row(path: Path, event: AnyEvent, json: str) -> dict[str, Any]:
    common = {name: getattr(event, name) for name in Event.__struct_fields__}
    return {"log": path, "kind": kind_of(event), **common, "json": json}
