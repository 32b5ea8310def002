"""The one writer of an audit log: a record is complete in the file before the verdict that it records is returned.

Nothing here decides what a failure means; it only makes sure that a failed write leaves a valid log and is
never silent. The supervisor turns `LogWriteError` into deny and trip.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from jupyter_agentwatch.audit.chain import FORMAT, GENESIS, MAX_LINE, Anchor, encode_anchor, seal
from jupyter_agentwatch.errors import AgentwatchError
from jupyter_agentwatch.events import Event, Session, encode_event, from_bytes, printable

__all__ = ["AuditLog", "LogWriteError", "anchor_path", "anchor_scratch"]

_PRIVATE = 0o600


class LogWriteError(AgentwatchError):
    """A record could not be written, or not be made durable.

    Attributes:
        errno: The system's error number; `ENOSPC` where only a part of the record was taken, `EFBIG` where the
            record is longer than `chain.MAX_LINE`, `EDQUOT` where the log may not grow any more.
    """

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.errno = number


def anchor_path(log: Path) -> Path:
    """Return the path of a log's side file, which holds number and hash of a record known to be safe."""
    return log.with_name(log.name + ".anchor")


def anchor_scratch(log: Path) -> Path:
    """Return the path of an anchor that is being written; a supervisor that is killed may leave it behind."""
    return log.with_name(log.name + ".anchor.tmp")


class AuditLog:
    """An open log. Make one with `create`; there is no way to reopen a log for writing.

    Not thread-safe: one thread appends, or the callers share a lock. A signal handler that raises must not run
    in that thread: between the write and the new head it would make the next record contradict this one.
    """

    __slots__ = (
        "_anchor",
        "_anchored",
        "_fd",
        "_head",
        "_next_seq",
        "_over",
        "_path",
        "_scratch",
        "_size",
        "_torn",
        "_watch",
    )

    def __init__(self, fd: int, path: Path, watch: str) -> None:
        """Take over `fd`, an empty file opened for appending; for `create` only."""
        self._fd = fd
        self._path = path
        # Text, made once: an anchor is written at each finding, and a path's parts cost more than the two calls.
        self._anchor = str(anchor_path(path))
        self._scratch = str(anchor_scratch(path))
        self._watch = watch
        self._head = GENESIS
        self._next_seq = 0
        self._size = 0
        self._anchored = -1
        self._torn = False
        self._over = ""

    @classmethod
    def create(cls, path: Path, first: Session) -> AuditLog:
        """Make a new log with mode 0600, write its first record and its anchor (not yet synced to the disk).

        Args:
            path: Where; the file must not exist, and its folder must be one that only the user can enter.
            first: The session's open record, with `seq` 0 and `format` equal to `chain.FORMAT`.

        Raises:
            ValueError: `first` is not such a record.
            LogWriteError: The file exists, cannot be made, or the disk is full; no new file is left behind.
        """
        if (first.op, first.seq, first.format) != ("open", 0, FORMAT):
            msg = f"a log begins with a session-open record, seq 0, format {FORMAT}; not {first.op!r}, seq {first.seq}"
            raise ValueError(msg)
        path = Path(os.path.abspath(path))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, _PRIVATE)
        except OSError as error:
            raise _failed(path, "cannot make the log", error) from error
        log = cls(fd, path, first.watch)
        try:
            log.append(first)
            log._write_anchor(durable=False)
        except BaseException:
            log.close()
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        return log

    @property
    def path(self) -> Path:
        """Absolute path of the log."""
        return self._path

    @property
    def head(self) -> str:
        """Hash of the last record, 64 hexadecimal digits."""
        return self._head.decode()

    @property
    def next_seq(self) -> int:
        """The `seq` that the next event must bear."""
        return self._next_seq

    @property
    def size(self) -> int:
        """Bytes of all records."""
        return self._size

    def append(self, event: Event) -> bytes:
        """Write one record with one `write`; it is complete in the file when this returns.

        Complete means: it outlives this process. It outlives the machine only after `sync`.

        Args:
            event: The next event; its `seq` equals `next_seq` and its `watch` is the log's.

        Returns:
            The event's JSON as it was written, without the chain's members: what `events.decode_event` takes.

        Raises:
            ValueError: Wrong `seq` or `watch`, a text that is not Unicode, or the log is over; nothing was written.
            LogWriteError: The disk is full or the write failed. Nothing of the record is left in the log, the
                chain stands as before, and the same event may be tried again.
        """
        if event.seq != self._next_seq or event.watch != self._watch or self._over:
            raise ValueError(self._refusal(event))
        ends = isinstance(event, Session) and event.op == "close"
        if isinstance(event, Session) and not ends and self._next_seq:
            msg = "a log has one session-open record, its first"
            raise ValueError(msg)
        body = encode_event(event)
        line, own = seal(body, self._head)
        self._write(line)
        self._size += len(line)
        self._head = own
        self._next_seq += 1
        if ends:
            self._over = "it has its session-close record"
        return body

    def append_synced(self, event: Event) -> bytes:
        """Append one record and `sync`: for findings, breaker changes, kills and the session's close.

        Raises:
            ValueError: As `append`.
            LogWriteError: As `append` or `sync`; `next_seq` tells which: it has grown when the record stands in
                the log and only could not be made durable.
        """
        body = self.append(event)
        self.sync()
        return body

    def sync(self) -> None:
        """Force all records to the disk, then name the last one in the anchor. Does nothing when nothing is new.

        Raises:
            LogWriteError: The disk did not take it; the records stand in the log, the anchor is the former one.
        """
        if self._anchored == self._next_seq - 1:
            return
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise _failed(self._path, "cannot force the log to the disk", error) from error
        self._write_anchor(durable=True)
        self._anchored = self._next_seq - 1

    def close(self) -> None:
        """Release the file without a sync; idempotent. Nothing can be appended afterwards."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._over = self._over or "it was closed"
            os.close(fd)

    def _refusal(self, event: Event) -> str:
        if self._over:
            return f"audit log {_shown(self._path)} takes no further record: {self._over}"
        return (
            f"the next record has seq {self._next_seq} and watch {self._watch}; "
            f"not seq {event.seq} and watch {printable(event.watch)}"
        )

    def _write(self, line: bytes) -> None:
        if len(line) > MAX_LINE:
            msg = f"audit log {_shown(self._path)}: record {self._next_seq} is longer than {MAX_LINE} bytes"
            raise LogWriteError(msg, errno.EFBIG)
        if self._torn:
            self._cut_back()
        try:
            written = os.write(self._fd, line)
        except OSError as error:
            self._cut_back()
            raise _failed(self._path, f"cannot write record {self._next_seq}", error) from error
        if written != len(line):
            self._cut_back()
            what = f"cannot write record {self._next_seq}: only {written} of {len(line)} bytes were taken"
            raise _failed(self._path, what, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def _cut_back(self) -> None:
        """Take a half-written record off again; until that succeeds, nothing more is written."""
        self._torn = True
        try:
            # Never beyond the end: somebody may have shortened the file, and zeros would hide that.
            if os.fstat(self._fd).st_size > self._size:
                os.ftruncate(self._fd, self._size)
        except OSError as error:
            raise _failed(self._path, f"cannot cut off the half-written record {self._next_seq}", error) from error
        self._torn = False

    def _write_anchor(self, *, durable: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        data = encode_anchor(Anchor(seq=self._next_seq - 1, hash=self.head))
        try:
            fd = os.open(self._scratch, flags, _PRIVATE)
            try:
                written = os.write(fd, data)
                # Before the rename: else a power cut may leave an empty anchor under the right name.
                if durable:
                    os.fsync(fd)
            finally:
                os.close(fd)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301 -- one way out
            os.rename(self._scratch, self._anchor)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(self._scratch)
            raise _failed(self._path, "cannot write its anchor", error) from error


def _failed(path: Path, what: str, error: OSError) -> LogWriteError:
    reason = error.strerror or str(error)
    hint = "; free space" if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} else ""
    return LogWriteError(f"audit log {_shown(path)}: {what}: {reason}{hint}", error.errno or errno.EIO)


def _shown(path: Path) -> str:
    return printable(from_bytes(os.fsencode(path)))
