"""An agent that makes real changes in a workspace whose history is kept, and what a folder holds at a moment."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from jupyter_agentwatch.sandbox import history
from jupyter_agentwatch.sandbox.comparison import StepChange
from jupyter_agentwatch.sandbox.history import WorkspaceHistory
from jupyter_agentwatch.sandbox.paths import Root
from jupyter_agentwatch.sandbox.truename import TrueNames

KIB = 1024
SECRET = "s3cret that lies outside"
HOST = Root(os.getpid())


class Agent:
    """Makes real changes in a workspace as the supervisor sees them: touched first, then done, failures ignored."""

    def __init__(self, root: Path, kept: WorkspaceHistory) -> None:
        self.root, self.kept, self.step = root, kept, 1
        self.names = TrueNames(HOST)

    def at(self, path: str) -> str:
        return os.path.join(self.root, path)

    def touch(self, path: str | bytes, *, op: str) -> None:
        """Keep a path as the supervisor does: what it leads to, as well, where it is no true name."""
        if not self.kept.touch(self.step, path, op=op):
            true = self.names.resolve(os.fsencode(path), os.getpid(), follow=history.follows(op)).path
            if true is not None:
                self.kept.touch(self.step, true, op=op)

    def _call(self, op: str, paths: list[str], action: Callable) -> None:
        for path in paths:
            self.touch(path, op=op)
        with suppress(OSError):
            action(*paths)

    def write(self, path: str, content: str | bytes = "") -> None:
        raw = content.encode() if isinstance(content, str) else content
        self._call("openat", [self.at(path)], lambda p: Path(p).write_bytes(raw))

    def append(self, path: str, content: str) -> None:
        def action(p: str) -> None:
            with open(p, "a") as file:
                file.write(content)

        self._call("openat", [self.at(path)], action)

    def unlink(self, path: str) -> None:
        self._call("unlinkat", [self.at(path)], os.unlink)

    def mkdir(self, path: str) -> None:
        self._call("mkdirat", [self.at(path)], os.mkdir)

    def rmdir(self, path: str) -> None:
        self._call("rmdir", [self.at(path)], os.rmdir)

    def rename(self, path: str, new: str) -> None:
        self._call("renameat2", [self.at(path), self.at(new)], os.rename)

    def link(self, path: str, new: str) -> None:
        self._call("linkat", [self.at(path), self.at(new)], os.link)

    def symlink(self, target: str, path: str) -> None:
        self._call("symlinkat", [self.at(path)], lambda p: os.symlink(target, p))

    def truncate(self, path: str, size: int) -> None:
        self._call("truncate", [self.at(path)], lambda p: os.truncate(p, size))

    def chmod(self, path: str, mode: int) -> None:
        self._call("fchmodat", [self.at(path)], lambda p: os.chmod(p, mode))

    def utime(self, path: str, seconds: int) -> None:
        self._call("utimensat", [self.at(path)], lambda p: os.utime(p, (seconds, seconds)))

    def lutime(self, path: str, seconds: int) -> None:
        self._call("lutimensat", [self.at(path)], lambda p: os.utime(p, (seconds, seconds), follow_symlinks=False))

    def mkfifo(self, path: str) -> None:
        self._call("mknodat", [self.at(path)], os.mkfifo)

    def changes(self) -> dict[str, str]:
        return {change.path: change.change for change in self.told(self.step)}

    def told(self, step: int) -> list[StepChange]:
        """What is told of a step but for the unclaimed: a test's own preparations may fall into the same clock tick."""
        return [change for change in self.kept.changes(step) if change.change != "unclaimed"]


def make(base: Path, **limits: int) -> Agent:
    root = base / "ws"
    root.mkdir(exist_ok=True)
    sizes = {"file_bytes": 1024 * KIB, "total_bytes": 64 * 1024 * KIB, **limits}
    return Agent(root, WorkspaceHistory(root, base / "store", **sizes))


def make_deep(folder: Path, levels: int) -> None:
    """Nest folders deeper than a path may be long."""
    fd = os.open(folder, os.O_PATH)
    for _ in range(levels):
        os.mkdir("n", dir_fd=fd)
        inner = os.open("n", os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


def snapshot(root: Path) -> dict[str, tuple[str, int, bytes]]:
    """Kind, mode and content of everything below a folder, following nothing."""
    found = {}
    for folder, names, files in os.walk(root):
        for name in names + files:
            path = os.path.join(folder, name)
            info = os.lstat(path)
            if stat.S_ISLNK(info.st_mode):
                entry = ("symlink", 0, os.fsencode(os.readlink(path)))
            elif stat.S_ISREG(info.st_mode):
                entry = ("file", stat.S_IMODE(info.st_mode), Path(path).read_bytes())
            else:
                entry = ("directory" if stat.S_ISDIR(info.st_mode) else "special", stat.S_IMODE(info.st_mode), b"")
            found[os.path.relpath(path, root)] = entry
    return found
