"""Trapped calls that can change files: each is put on record, and what it may change is kept, before it proceeds.

The kernel reads the names again after us, so that every record is a claim; what may be written where is held by the
mounts alone.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from jupyter_agentwatch.events import FileOp, from_bytes, from_path
from jupyter_agentwatch.sandbox.history import WorkspaceHistory, follows
from jupyter_agentwatch.sandbox.notify import Gone, Listener, Notification, TargetMemory, as_int
from jupyter_agentwatch.sandbox.paths import AT_FDCWD, Root, base_folder
from jupyter_agentwatch.sandbox.programs import claimed_path
from jupyter_agentwatch.sandbox.tasks import Task, TaskTable
from jupyter_agentwatch.sandbox.truename import TrueNames
from jupyter_agentwatch.supervisor.gate import Gate
from jupyter_agentwatch.supervisor.metadata import Metadata, read_times
from jupyter_agentwatch.supervisor.record import Recorder

__all__ = ["WriteWatch"]

_KEPT_NAMES: Final = 4096
_OPENING: Final = ("open", "openat", "creat", "truncate")
_LINKING: Final = ("link", "linkat")
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_EMPTY_PATH: Final = 0x1000


@dataclass(frozen=True, slots=True)
class _Where:
    """Numbers of the registers that hold a call's arguments; None where it has no such argument."""

    path: int | None = None
    dirfd: int | None = None
    path2: int | None = None
    dirfd2: int | None = None
    mode: int | None = None


_CALLS: Final[Mapping[str, _Where]] = MappingProxyType(
    {
        **dict.fromkeys(("open", "creat", "unlink", "mkdir", "rmdir", "truncate", "mknod"), _Where(0)),
        **dict.fromkeys(("openat", "unlinkat", "mkdirat", "mknodat"), _Where(1, dirfd=0)),
        **dict.fromkeys(("rename", "link"), _Where(0, path2=1)),
        **dict.fromkeys(("renameat", "renameat2", "linkat"), _Where(1, dirfd=0, path2=3, dirfd2=2)),
        "symlink": _Where(1),
        "symlinkat": _Where(2, dirfd=1),
        "chmod": _Where(0, mode=1),
        "fchmod": _Where(dirfd=0, mode=1),
        **dict.fromkeys(("fchmodat", "fchmodat2"), _Where(1, dirfd=0, mode=2)),
    }
)


@dataclass(frozen=True, slots=True)
class _Times:
    """The same of a call that sets times; `scale`: nanoseconds in a unit of the smaller number (0: there is none)."""

    path: int
    times: int
    scale: int
    dirfd: int | None = None
    flags: int | None = None


_TIME_CALLS: Final = MappingProxyType(
    {
        "utime": _Times(0, 1, 0),
        "utimes": _Times(0, 1, 1000),
        "futimesat": _Times(1, 2, 1000, dirfd=0),
        "utimensat": _Times(1, 2, 1, dirfd=0, flags=3),
    }
)


@dataclass(frozen=True, slots=True)
class _Owner:
    """The same of a call that sets an owner: the register of the user, behind which is that of the group."""

    path: int | None
    owner: int
    dirfd: int | None = None
    flags: int | None = None


_OWNER_CALLS: Final = MappingProxyType(
    {
        "chown": _Owner(0, 1),
        "lchown": _Owner(0, 1),
        "fchown": _Owner(None, 1, dirfd=0),
        "fchownat": _Owner(1, 2, dirfd=0, flags=4),
    }
)


class WriteWatch:
    """Follows the calls that can change files. Used by the notification thread only.

    Args:
        listener: Answers calls.
        tasks: Who makes them.
        root: The sandbox's root.
        memory: Reads the caller's memory.
        recorder: Where records go.
        gate: Shut where a record has tripped the breaker.
        history: Keeps what a step is about to change.
        metadata: Sets modes and times where no mounts hold the files; None: the kernel does.
    """

    def __init__(
        self,
        *,
        listener: Listener,
        tasks: TaskTable,
        root: Root,
        memory: TargetMemory,
        recorder: Recorder,
        gate: Gate,
        history: WorkspaceHistory,
        metadata: Metadata | None,
    ) -> None:
        self._listener = listener
        self._tasks = tasks
        self._root = root
        self._names = TrueNames(root)
        self._memory = memory
        self._recorder = recorder
        self._gate = gate
        self._history = history
        self._metadata = metadata
        self._touched: dict[tuple[int, str], str] = {}

    def handlers(self) -> dict[str, Callable[[Notification], None]]:
        """Return what handles each call, by the call's name; a machine need not have all of them."""
        plain = {name: self._handler(name, where) for name, where in _CALLS.items()}
        timers = {name: self._timer(name, at) for name, at in _TIME_CALLS.items()}
        return plain | timers | {name: self._owning(name, at) for name, at in _OWNER_CALLS.items()}

    def forget_touched(self) -> None:
        """Ask the history again about every name: an undo may have dropped what was kept."""
        self._touched.clear()

    def _handler(self, op: str, where: _Where) -> Callable[[Notification], None]:
        if op in _OPENING:
            return lambda n: self._open(n, op, where)
        return lambda n: self._change(n, op, where)

    def _owning(self, op: str, at: _Owner) -> Callable[[Notification], None]:
        return lambda n: self._owner(n, op, at)

    def _timer(self, op: str, at: _Times) -> Callable[[Notification], None]:
        return lambda n: self._times(n, op, at)

    def _open(self, n: Notification, op: str, where: _Where) -> None:
        task = self._tasks.get(n.tid)
        path = self._claimed(n, where.dirfd, where.path)
        if path is None or not self._listener.is_valid(n.id):
            return
        key = (task.step, path)
        resolved = self._touched.get(key)
        if resolved is None:
            resolved = self._keep(n, task, path, op, touch_as=op)
            if resolved is None:
                return
        shown, pid = from_path(path), task.tgid
        self._recorder.record(FileOp, basis="claimed", step=task.step, pid=pid, op=op, path=shown, resolved=resolved)
        self._gate.check()
        self._listener.proceed(n.id)

    def _change(self, n: Notification, op: str, where: _Where) -> None:
        task = self._tasks.get(n.tid)
        paths = [self._claimed(n, where.dirfd, where.path)]
        if where.path2 is not None and paths[0] is not None:
            paths.append(self._claimed(n, where.dirfd2, where.path2))
        if None in paths or not self._listener.is_valid(n.id):
            return
        if where.mode is None:
            self._touched.clear()  # a name may lead elsewhere from now on
        fields: dict[str, Any] = {}
        for suffix, path in zip(("", "2"), paths, strict=False):
            # A new name (hard link) is made of what a magic link leads to, and a write through it changes the old one.
            name = path or ""
            resolved = self._keep(n, task, name, op, touch_as="open" if op in _LINKING and not suffix else op)
            if resolved is None:
                return
            fields |= {f"path{suffix}": name, f"resolved{suffix}": resolved}
        if where.mode is not None:
            fields["mode"] = n.args[where.mode] & 0o7777
            change = self._metadata.set_mode if self._metadata is not None else self._set_group_id
            if self._metadata is not None or fields["mode"] & stat.S_ISGID:
                self._answer(n, task, op, fields, lambda true: change(true, fields["mode"]), follow=follows(op))
                return
        self._record(task, op, **fields)
        self._gate.check()
        self._listener.proceed(n.id)

    def _times(self, n: Notification, op: str, at: _Times) -> None:
        task, times, specs = self._tasks.get(n.tid), n.args[at.times], None
        try:
            path, follow = self._meant(n, at)
            if times != 0 and self._metadata is not None:
                specs = read_times(self._memory, n, times, at.scale)
        except OSError as refusal:
            self._listener.finish(n.id, refusal.errno or errno.EFAULT)
            return
        if not self._listener.is_valid(n.id):
            return
        resolved = self._keep(n, task, path, op, touch_as=op if follow else f"l{op}")
        if resolved is None:
            return
        fields = {"path": path, "resolved": resolved}
        if self._metadata is not None:
            change = self._metadata.set_times
            self._answer(n, task, op, fields, lambda true: change(true, specs), follow=follow)
            return
        self._record(task, op, **fields)
        self._gate.check()
        self._listener.proceed(n.id)

    def _owner(self, n: Notification, op: str, at: _Owner) -> None:
        """Answer as the kernel would, to a caller without rights, but for files that are another user's: EPERM too."""
        task = self._tasks.get(n.tid)
        owner, group = (as_int(n.args[index]) for index in (at.owner, at.owner + 1))
        try:
            path, follow = self._meant(n, at)
            true, _ = self._names.resolve(os.fsencode(path), n.tid, follow=follow and op != "lchown")
        except OSError as refusal:
            self._listener.finish(n.id, refusal.errno or errno.EPERM)
            return
        if not self._listener.is_valid(n.id):
            return
        error = errno.EPERM
        if self._metadata is not None:
            error = errno.ENOENT if true is None else self._metadata.keep_owner(true, owner, group)
        if error in {errno.EPERM, errno.EACCES}:
            self._record(task, op, path=path, basis="verified", verdict="deny")
        self._listener.finish(n.id, error)

    def _meant(self, n: Notification, at: _Times | _Owner) -> tuple[str, bool]:
        """Return what a call names, and whether a link at its end is followed; without a name, the descriptor is meant.

        Raises:
            OSError: EFAULT; Gone: the caller, or the descriptor, is gone.
        """
        dirfd = AT_FDCWD if at.dirfd is None else as_int(n.args[at.dirfd])
        flags = 0 if at.flags is None else n.args[at.flags]
        name = 0 if at.path is None else n.args[at.path]
        if name == 0 or (flags & _AT_EMPTY_PATH and not self._memory.string(n.tid, name, 2)):
            return base_folder(n.tid, dirfd), False
        return claimed_path(self._memory, n.tid, dirfd, name), not flags & _AT_SYMLINK_NOFOLLOW

    def _claimed(self, n: Notification, dirfd_index: int | None, path_index: int | None) -> str | None:
        """Return the name that a call gives, or None where that has answered it already."""
        dirfd = AT_FDCWD if dirfd_index is None else as_int(n.args[dirfd_index])
        try:
            if path_index is None:
                return self._opened(n, dirfd)
            return claimed_path(self._memory, n.tid, dirfd, n.args[path_index])
        except OSError:
            # A bad address, or one that only the caller can read (PROT_WRITE alone): it must not go unrecorded.
            self._listener.finish(n.id, errno.EFAULT)
            return None

    def _opened(self, n: Notification, fd: int) -> str | None:
        try:
            if fd >= 0:
                return base_folder(n.tid, fd)
        except Gone:
            pass  # or only the descriptor is not open: a caller that still waits gets its answer
        self._listener.finish(n.id, errno.EBADF)
        return None

    def _keep(self, n: Notification, task: Task, path: str, op: str, *, touch_as: str) -> str | None:
        """Keep what a name leads to.

        Args:
            n: The call.
            task: Who makes it.
            path: The name, absolute.
            op: Name of the call.
            touch_as: Name of a call that changes, of what the name leads to, what this one does.

        Returns:
            What it leads to as text, "" where that is the name itself, None where the call has been answered.
        """
        resolved, is_fixed = "", True
        if not self._history.touch(task.step, path, op=touch_as):
            raw = os.fsencode(path)
            try:
                true, is_fixed = self._names.resolve(raw, n.tid, follow=follows(touch_as))
            except OSError as error:
                # What it leads to cannot be kept, hence nobody could undo it.
                self._record(task, op, verdict="deny", path=path)
                self._listener.finish(n.id, error.errno or errno.EPERM)
                return None
            if true is not None and true != raw:
                self._history.touch(task.step, true, op=touch_as)
                resolved = from_bytes(true)
        if op in _OPENING and is_fixed:
            if len(self._touched) >= _KEPT_NAMES:
                self._touched.clear()
            self._touched[task.step, path] = resolved
        return resolved

    def _answer(
        self,
        n: Notification,
        task: Task,
        op: str,
        fields: dict[str, Any],
        change: Callable[[bytes], int],
        *,
        follow: bool,
    ) -> None:
        """Make the call ourselves, on what was looked at."""
        try:
            true, _ = self._names.resolve(os.fsencode(fields["path"]), n.tid, follow=follow)
        except OSError as refusal:  # a link that is no link any more, as somebody changes it all the time
            error = refusal.errno or errno.EPERM
        else:
            error = errno.ENOENT if true is None else change(true)
        self._record(task, op, basis="verified", verdict="deny" if error else "allow", **fields)
        self._listener.finish(n.id, error)

    def _set_group_id(self, true: bytes, mode: int) -> int:
        """Set the bit on a folder, where it means something else, and refuse it on a file; return the errno.

        A setgid file outlives the watch: others on the machine could run it with the user's group. Only a look at what
        the name leads to can tell the two apart.
        """
        if true.startswith(b"/proc/"):
            return errno.EPERM
        try:
            fd = self._root.open_true(true)
        except OSError as refused:
            return refused.errno or errno.EPERM
        try:
            info = os.fstat(fd)
            # The sandbox's user is ours, without capabilities: root here must not lend its own.
            if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
                return errno.EPERM
            os.chmod(f"/proc/self/fd/{fd}", mode)
        except OSError as refused:
            return refused.errno or errno.EPERM
        finally:
            os.close(fd)
        return 0

    def _record(
        self,
        task: Task,
        op: str,
        *,
        path: str,
        path2: str = "",
        verdict: str = "allow",
        basis: str = "claimed",
        **more: Any,
    ) -> None:
        shown, shown2 = from_path(path), from_path(path2)
        self._recorder.record(
            FileOp, verdict=verdict, basis=basis, step=task.step, pid=task.tgid, op=op, path=shown, path2=shown2, **more
        )
