"""POSIX shared memory and semaphores where /dev/shm is everybody's: the sandbox's names lead to a folder of its own.

The C library opens each of these objects for writing, so every name comes by here; what is performed is performed on
the name that was copied, and nothing of the machine's /dev/shm can be named at all.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import Final

from jupyter_agentwatch.events import FileOp, from_path
from jupyter_agentwatch.sandbox.notify import Listener, Notification, TargetMemory, as_int
from jupyter_agentwatch.sandbox.paths import AT_FDCWD
from jupyter_agentwatch.sandbox.programs import claimed_path
from jupyter_agentwatch.sandbox.tasks import TaskTable
from jupyter_agentwatch.supervisor.record import Recorder

__all__ = ["SharedMemory"]

Handler = Callable[[Notification], None]

_SHM: Final = "/dev/shm/"  # noqa: S108 -- the name that is led elsewhere
_PREFIX: Final = _SHM.encode()
_FLAGS: Final = os.O_ACCMODE | os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_APPEND
_PATHS: Final[Mapping[str, tuple[tuple[int | None, int], ...]]] = {
    "open": ((None, 0),),
    "openat": ((0, 1),),
    "unlink": ((None, 0),),
    "unlinkat": ((0, 1),),
    "link": ((None, 0), (None, 1)),
    "linkat": ((0, 1), (2, 3)),
}
"""Call → for each of its names, the registers of the folder (or None) and of the name."""


class SharedMemory:
    """Performs what is asked of names in /dev/shm. Used by the notification thread.

    Args:
        listener: Answers calls.
        tasks: Who makes them.
        recorder: Where records go.
        folder: Where the objects are kept; commands cannot reach it by name.
    """

    def __init__(self, listener: Listener, tasks: TaskTable, recorder: Recorder, folder: str) -> None:
        self._listener = listener
        self._tasks = tasks
        self._recorder = recorder
        self._folder = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._memory = TargetMemory()

    def before(self, handlers: Mapping[str, Handler]) -> dict[str, Handler]:
        """Return handlers that perform what concerns /dev/shm, and leave everything else to those that are given."""
        return {name: self._handler(name, handlers[name]) for name in _PATHS if name in handlers}

    def _handler(self, op: str, otherwise: Handler) -> Handler:
        def handle(n: Notification) -> None:
            names = self._names(n, op)
            if names is None:
                otherwise(n)
            elif self._listener.is_valid(n.id):
                self._perform(n, op, names)

        return handle

    def _names(self, n: Notification, op: str) -> list[str] | None:
        """Return the objects' names, or None where not all of them are in /dev/shm."""
        names = []
        for folder, place in _PATHS[op]:
            dirfd = AT_FDCWD if folder is None else as_int(n.args[folder])
            try:
                # One look that costs little, for what nearly all names are not.
                if self._memory.read(n.tid, n.args[place], len(_PREFIX)) != _PREFIX:
                    return None
                path = claimed_path(self._memory, n.tid, dirfd, n.args[place])
            except OSError:
                return None
            name = path.removeprefix(_SHM)
            if name == path or "/" in name or name in {"", ".", ".."}:
                return None
            names.append(name)
        return names

    def _perform(self, n: Notification, op: str, names: list[str]) -> None:
        task = self._tasks.get(n.tid)
        path, path2 = (from_path(_SHM + name) for name in (*names, "")[:2])
        path2 = path2 if len(names) > 1 else ""
        step, pid = task.step, task.tgid
        self._recorder.record(FileOp, basis="verified", step=step, pid=pid, op=op, path=path, path2=path2)
        try:
            if op in {"open", "openat"}:
                self._open(n, names[0], as_int(n.args[1 if op == "open" else 2]))
                return
            if op in {"unlink", "unlinkat"}:
                os.unlink(names[0], dir_fd=self._folder)
            else:
                os.link(names[0], names[1], src_dir_fd=self._folder, dst_dir_fd=self._folder, follow_symlinks=False)
        except OSError as refusal:
            self._listener.finish(n.id, refusal.errno or errno.EPERM)
        else:
            self._listener.finish(n.id)

    def _open(self, n: Notification, name: str, flags: int) -> None:
        opened = os.open(name, flags & _FLAGS | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._folder)
        try:
            self._listener.inject(n.id, opened, cloexec=bool(flags & os.O_CLOEXEC))
        finally:
            os.close(opened)
