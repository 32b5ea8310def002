"""What each step changed in the workspace, and the way back: pre-images kept before a call can change anything.

`touch` runs in the thread that answers the sandbox's trapped calls, so that it must stay short and must not raise for
anything that an agent can do. Paths were read from the agent's memory: what is told here is a claim, never a proof, and
what changed without a claim is looked for when somebody asks.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from jupyter_agentwatch.errors import UndoConflictError, WorkspaceError
from jupyter_agentwatch.events import from_bytes, printable
from jupyter_agentwatch.sandbox.beneath import (
    MAX_DEPTH,
    MAX_PATH,
    TOO_DEEP,
    NotKeptError,
    WorkspaceTree,
    is_beyond,
    lstat,
    why,
)
from jupyter_agentwatch.sandbox.comparison import Comparison, Effect, StepChange, Survey
from jupyter_agentwatch.sandbox.preimage import ABSENT, BlobStore, Image, bytes_text
from jupyter_agentwatch.sandbox.restore import restore
from jupyter_agentwatch.sandbox.steplog import Entry, StepLog, known, later_steps
from jupyter_agentwatch.sandbox.unclaimed import Ledger, Window, find_unclaimed, stamp_now

__all__ = ["WorkspaceHistory", "follows"]

_TREE_PATHS = 10_000  # kept below one directory that goes away
_LOOKED_AT = 100_000  # paths that are looked at for changes without a claim
_INDEX_BYTES = 32 << 20  # memory for all that was touched in one watch
_ENTRY_BYTES = 600  # an entry with its image, besides its path
_NO_CONTENT = frozenset({"mode", "times"})
_NAMED = 10  # paths named in one refusal
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})

# Calls that act on a name itself; all others (open, creat, truncate, chmod …) follow a symbolic link at the end.
_NAME_OPS = ("unlink", "rmdir", "rename", "symlink", "link", "mkdir", "mknod", "lutime")
_TREE_OPS = ("rename", "rmdir", "unlink")
_TIME_OPS = ("utime", "futimes", "lutime")  # lutimensat is what we call one that does not follow


_NO_CLAIM = (
    "changed while the step ran, by no call on record: somebody outside, a change of owner, or a "
    "call whose name was changed after it was recorded; undo leaves it as it is"
)
_OTHER_NAME = "another name (hard link) of a file that is on record: its content is the same"


class WorkspaceHistory:
    """Pre-images of everything that the steps of a watch touch in its workspace.

    `touch` may run in one thread while `changes` and `undo` run in another.

    Args:
        workspace: Absolute path of the directory; the same inside and outside the sandbox.
        store: Folder for pre-images, outside the workspace and invisible to the agent: is created with mode 0700, or
            exists so and is empty. `close` removes it.
        file_bytes: A larger file is not kept; its change is listed all the same.
        total_bytes: Bytes kept in one watch.

    Raises:
        WorkspaceError: The workspace is not a directory, or the store is not ours alone or lies in the workspace.
    """

    def __init__(self, workspace: Path, store: Path, *, file_bytes: int, total_bytes: int) -> None:
        if store.resolve().is_relative_to(workspace.resolve()):
            msg = f"store {store} lies in the workspace {workspace}, where the agent could write it"
            raise WorkspaceError(msg)
        self._tree = WorkspaceTree(workspace)
        try:
            self._store = BlobStore(store, file_bytes=file_bytes, total_bytes=total_bytes)
        except BaseException:
            self._tree.close()
            raise
        self._comparison = Comparison(self._tree, self._store)
        self._logs: dict[int, StepLog] = {}
        self._windows: dict[int, Window] = {}
        self._open_windows: list[Window] = []
        self._windows_lock = threading.Lock()  # guards these two, and is held for moments only
        self._stamps: dict[bytes, int] = {}  # change times that undo itself made
        self._moment = 0
        self._room = _INDEX_BYTES
        self._closed = False
        self._lock = threading.Lock()  # guards all of the above; held for moments only, except while an undo writes
        self._readers = threading.Lock()  # keeps contents in place while they are compared; never taken by `touch`

    def touch(self, step: int, path: str | bytes, *, op: str) -> bool:
        """Keep what a path is now, if this is the step's first touch of it. Call it before the call takes effect.

        Never raises for what the agent did: what cannot be kept is told by `changes`. A path that lies outside the
        workspace or cannot exist is not kept. Of `rename` and `link`, touch both paths.

        Args:
            step: The step that made the call.
            path: Absolute path; a string is one that `os.fsdecode` made.
            op: Name of the system call. It tells whether a symbolic link at the end is followed (see `follows`), and
                whether what is below a directory goes away with it.

        Returns:
            False where the path is not, or may not be, a true name in the workspace: it goes through a link or dots,
            ends in a link that is followed, or lies outside. Then touch what it leads to as well.
        """
        try:
            raw = os.fsencode(path)
        except UnicodeEncodeError:
            return True
        if b"\0" in raw:
            return True
        rel = self._tree.inside(raw)
        if step not in self._windows:
            self._open_window(step)
        if not rel:
            return rel is not None
        with self._lock:
            if self._closed:
                return True
            self._moment += 1
            log = self._logs.setdefault(step, {})
            try:
                return self._touch(log, rel, op)
            except OSError as error:
                if error.errno not in _GONE:
                    self._lose(log, rel, why(error))
                return True

    def quiet(self, moment_ns: int) -> None:
        """Take note that no process lived inside at a moment, in ns of Unix time: what comes later is no step's."""
        with self._windows_lock:
            for window in self._open_windows:
                if window.since < moment_ns:
                    window.until = moment_ns
            self._open_windows = [window for window in self._open_windows if window.until is None]

    def changes(self, step: int) -> list[StepChange]:
        """Return what a step changed in effect, sorted by path; [] for a step that touched nothing.

        The other side of the comparison is what the next step that touched the path found, else the path as it is.
        What changed while the step ran and no call on record explains, is listed as "unclaimed".
        """
        with self._readers:
            if self._closed:
                return []
            return _merged(self._comparison.describe(self._survey(step)), self._unclaimed(step))

    def undo(self, step: int) -> list[StepChange]:
        """Put back what a step changed, and forget the step. Undo later steps first.

        Let no command run meanwhile: touches wait, but calls that were let through before do not.

        Returns:
            The changes that were taken back, and those that were left as they are: the "unclaimed" ones.

        Raises:
            UndoConflictError: Nothing was undone: another step touched a path since, a pre-image was not kept, or
                something that is not the step's is in the way.
            WorkspaceError: The system refused one of the changes half-way; the text names the path.
        """
        with self._readers:
            if self._closed:
                return []
            survey = self._survey(step)
            _refuse(step, list(self._conflicts(survey)))
            done = _merged(self._comparison.describe(survey), self._unclaimed(step))
            with self._lock:
                _refuse(step, list(self._busy(survey)))
                try:
                    restore(self._tree, self._store, {rel: _wanted(effect) for rel, effect in survey.effects.items()})
                finally:
                    self._stamp(survey)
                self._forget(step)
            return done

    def steps(self) -> list[int]:
        """Return the steps for which anything is kept, in ascending order."""
        with self._lock:
            return sorted(step for step, log in self._logs.items() if log)

    def close(self) -> None:
        """Remove all that was kept. Later calls do nothing and find nothing."""
        with self._readers, self._lock:
            if not self._closed:
                self._closed = True
                self._logs.clear()
                self._store.close()
                self._tree.close()

    def _open_window(self, step: int) -> None:
        with self._windows_lock:
            window = self._windows[step] = Window(stamp_now())
            self._open_windows.append(window)

    def _touch(self, log: StepLog, rel: bytes, op: str) -> bool:
        if not _is_plain(rel):
            return False
        if is_beyond(rel):
            self._lose_deep(log, rel)
            return True
        folder, _, name = rel.rpartition(b"/")
        try:
            fd = self._tree.open(folder)
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.ENOTDIR}:
                return False
            raise
        try:
            info = self._keep(log, rel, fd, name, below=op.startswith(_TREE_OPS))
            if op.startswith(_TIME_OPS) and rel in log:
                log[rel].timed = True
        finally:
            os.close(fd)
        return info is None or not stat.S_ISLNK(info.st_mode) or not follows(op)

    def _keep(self, log: StepLog, rel: bytes, folder: int, name: bytes, *, below: bool) -> os.stat_result | None:
        info = lstat(folder, name)
        told = known(log, rel)
        if told is not None:
            told[0].last = self._moment
        elif self._has_room(log, rel):
            self._add(log, rel, ABSENT if info is None else self._store.keep(folder, name, info))
        if below and info is not None and stat.S_ISDIR(info.st_mode):
            self._keep_below(log, rel)
        return info

    def _keep_below(self, log: StepLog, top: bytes) -> None:
        entry = log.get(top)
        if entry is None or entry.image.kind != "directory" or entry.below is not None:
            return
        try:
            for rel, folder, info in self._tree.walk(top, _TREE_PATHS):
                if known(log, rel) is None:
                    if not self._has_room(log, rel):
                        entry.below = _no_room()
                        return
                    self._add(log, rel, self._store.keep(folder, rel.rpartition(b"/")[2], info))
        except NotKeptError as error:
            entry.below = str(error)
        else:
            entry.below = ""

    def _add(self, log: StepLog, rel: bytes, image: Image) -> None:
        self._room -= _ENTRY_BYTES + len(rel)
        log[rel] = Entry(self._moment, self._moment, image)

    def _lose(self, log: StepLog, rel: bytes, reason: str) -> None:
        if known(log, rel) is None and self._has_room(log, rel):
            self._add(log, rel, Image("unknown", lost=reason))

    def _lose_deep(self, log: StepLog, rel: bytes) -> None:
        """Mark the last directory on the way that is not too deep as one below which not everything is known."""
        top = b"/".join(rel.split(b"/", MAX_DEPTH)[:-1])[:MAX_PATH].rpartition(b"/")[0]
        entry = log.get(top)
        if entry is None:
            self._lose(log, top, TOO_DEEP)
        elif entry.image.kind == "directory":
            entry.below = TOO_DEEP

    def _has_room(self, log: StepLog, rel: bytes) -> bool:
        """Whether the index may grow; where it may not, the whole log is marked as incomplete."""
        if self._room > _ENTRY_BYTES + len(rel):
            return True
        log.setdefault(b"", Entry(self._moment, self._moment, Image("directory"), _no_room()))
        return False

    def _forget(self, step: int) -> None:
        for rel, entry in self._logs.pop(step, {}).items():
            self._room += _ENTRY_BYTES + len(rel) if rel else 0
            if entry.image.blob is not None:
                self._store.drop(entry.image.blob)

    def _stamp(self, survey: Survey) -> None:
        """Remember the change times of what an undo wrote: it was no step."""
        folders = {rel.rpartition(b"/")[0] for rel in survey.effects}
        for rel in (*survey.effects, *folders):
            info = self._tree.info(rel)
            if info is not None:
                self._stamps[rel] = info.st_ctime_ns

    def _unclaimed(self, step: int) -> list[StepChange]:
        window = self._windows.get(step)
        with self._lock:
            logs = [dict(log) for log in self._logs.values()]
        if window is None:
            return []
        ledger = Ledger(
            claimed=lambda rel: any(known(log, rel) is not None for log in logs),
            folders={rel.rpartition(b"/")[0] for log in logs for rel in log},
            inodes={e.image.ident[:2] for log in logs for e in log.values() if e.image.names > 1},
            stamps=self._stamps,
        )
        found, is_whole = find_unclaimed(self._tree, window, ledger, _LOOKED_AT)
        rows = [
            StepChange(from_bytes(each.rel) or ".", "unclaimed", note=_OTHER_NAME if each.is_other_name else _NO_CLAIM)
            for each in found
        ]
        note = f"more than {_LOOKED_AT} paths: not all were looked at for changes that no call on record explains"
        return rows if is_whole else [*rows, StepChange(".", "unclaimed", note=note)]

    def _survey(self, step: int) -> Survey:
        with self._lock:
            moment, logs = self._moment, {number: dict(log) for number, log in self._logs.items()}
        return self._comparison.survey(moment, logs.pop(step, {}), logs)

    def _conflicts(self, survey: Survey) -> Iterator[str]:
        for rel, effect in sorted(survey.effects.items()):
            obstacle = self._obstacle(rel, effect, survey)
            if obstacle:
                yield f"{_shown(rel)} ({obstacle})"
        for rel in sorted(survey.present.keys() - survey.effects.keys()):
            folder = survey.effects.get(rel.rpartition(b"/")[0])
            goes = folder is not None and folder.after.kind == "directory" != folder.before.kind
            if goes and survey.present[rel].kind != "absent":
                yield f"{_shown(rel)} (in the way, {_touched_by(later_steps(survey.others, rel, -1))})"

    def _obstacle(self, rel: bytes, effect: Effect, survey: Survey) -> str:
        before, after = effect.before, effect.after
        later = later_steps(survey.others, rel, effect.first)
        if later:
            return _touched_by(later)
        if rel in survey.incomplete:
            return survey.incomplete[rel]
        if "unknown" in {before.kind, after.kind}:
            return f"not known what it was: {before.lost or after.lost}"
        if before.kind == "absent" or effect.change in _NO_CONTENT:
            return ""
        if before.lost:
            return f"pre-image not kept: {before.lost}"
        if before.kind == "special":
            return "a FIFO, socket or device cannot be made again"
        folder = rel.rpartition(b"/")[0]
        above = survey.effects[folder].before if folder in survey.effects else self._comparison.now(survey, folder)
        return "" if above.kind == "directory" else "the directory that held it is gone"

    def _busy(self, survey: Survey) -> Iterator[str]:
        for rel in sorted(survey.effects):
            later = later_steps(self._logs, rel, survey.moment)
            if later:
                yield f"{_shown(rel)} ({_touched_by(later)} this very moment)"


def follows(op: str) -> bool:
    """Whether a system call, by its name, follows a symbolic link at the end of its path (O_NOFOLLOW aside)."""
    return not op.startswith(_NAME_OPS)


def _merged(changes: list[StepChange], unclaimed: list[StepChange]) -> list[StepChange]:
    return sorted([*changes, *unclaimed], key=lambda change: change.path) if unclaimed else changes


def _refuse(step: int, conflicts: list[str]) -> None:
    if conflicts:
        rest = f"; and {len(conflicts) - _NAMED} more" if len(conflicts) > _NAMED else ""
        msg = f"step {step} cannot be undone: {'; '.join(conflicts[:_NAMED])}{rest}"
        raise UndoConflictError(msg)


def _wanted(effect: Effect) -> tuple[Image, Image]:
    want = replace(effect.before, blob=None) if effect.change in _NO_CONTENT else effect.before
    return want, effect.after


def _no_room() -> str:
    return f"the {bytes_text(_INDEX_BYTES)} of memory for touched paths are used up"


def _is_plain(rel: bytes) -> bool:
    """Whether a path has no empty, "." or ".." component."""
    path = b"/%b/" % rel
    return b"//" not in path and (b"/." not in path or (b"/./" not in path and b"/../" not in path))


def _shown(rel: bytes) -> str:
    return printable(from_bytes(rel)) or "."


def _touched_by(steps: list[int]) -> str:
    if not steps:
        return "made by no step"
    return f"touched by step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))}"
