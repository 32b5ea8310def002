"""Whose a UNIX socket with a path is: the sandbox's own, one of the host's that the policy names, or neither.

A path can come to mean another file at any time, so files are known by device and inode, and held open.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from jupyter_agentwatch.policy import unix_allowed
from jupyter_agentwatch.sandbox.notify import another
from jupyter_agentwatch.sandbox.paths import Root
from jupyter_agentwatch.sandbox.sockaddr import Address
from jupyter_agentwatch.sandbox.unixdiag import bound_files, kernel_device
from jupyter_agentwatch.supervisor.closer import Closer

__all__ = ["SharedUnixSockets", "UnixSockets"]

_SIOCUNIXFILE: Final = 0x89E0
"""linux/un.h: gives an O_PATH descriptor of the file that a UNIX socket is bound to."""
_BOUND_NAMES: Final = 1024


class UnixSockets:
    """Judges UNIX sockets by path. Used by the notification thread alone.

    Args:
        root: The sandbox's root.
        allowed: Host paths that the policy names.
        private_folders: Folders inside that only the sandbox has, for sockets that cannot be the host's.
        closer: Closes our descriptors of callers' sockets.
    """

    def __init__(self, root: Root, allowed: Sequence[str], private_folders: Sequence[str], closer: Closer) -> None:
        self._root = root
        self._closer = closer
        self._allowed = tuple(allowed)
        # Where the policy grants one of these folders, it is the host's.
        outer = {os.stat(folder).st_dev for folder in private_folders if os.path.exists(folder)}
        self._private = frozenset(root.identity(folder)[0] for folder in private_folders) - outer
        # Each with a descriptor of it: while that is open, no other file can get its inode.
        self._inside: dict[tuple[int, int], int] = {}
        self._just_bound: list[socket.socket] = []

    def bound(self, sock: socket.socket) -> None:
        """Note a socket that a caller binds to a path, or listens on: the kernel makes the file after our answer."""
        self._learn()
        self._just_bound.append(another(sock))

    def open_path(self, path: str) -> int:
        """Return an O_PATH descriptor of an absolute name inside.

        Raises:
            OSError: As the kernel gives it.
        """
        return self._root.open_path(path)

    def rule(self, held: int) -> str:
        """Return why the file of an O_PATH descriptor may be connected to: "inside", "unix_sockets", or "" (not)."""
        self._learn()
        info = os.fstat(held)
        if not stat.S_ISSOCK(info.st_mode):
            return "inside"  # the call gets ECONNREFUSED, as ever
        if self._is_inside(info):
            return "inside"
        return "unix_sockets" if unix_allowed(self._allowed, os.readlink(f"/proc/self/fd/{held}")) else ""

    def _is_inside(self, info: os.stat_result) -> bool:
        return info.st_dev in self._private or (info.st_dev, info.st_ino) in self._inside

    def abstract_rule(self, address: Address, *, is_inside: bool) -> str:
        """Return why an abstract name may be connected to: "inside", "unix_sockets", or "" (not)."""
        if is_inside:
            return "inside"
        return "unix_sockets" if unix_allowed(self._allowed, address.host) else ""

    def _learn(self) -> None:
        while self._just_bound:
            sock = self._just_bound.pop()
            with contextlib.suppress(OSError):
                # By the socket and never by its name, which may stand for something else by now.
                held = fcntl.ioctl(sock.fileno(), _SIOCUNIXFILE)
                info = os.fstat(held)
                before = self._inside.pop((info.st_dev, info.st_ino), -1)
                self._inside[info.st_dev, info.st_ino] = held
                if before < 0 and len(self._inside) > _BOUND_NAMES:
                    before = self._inside.pop(next(iter(self._inside)))
                if before >= 0:
                    os.close(before)
            self._closer.close(sock)


class SharedUnixSockets(UnixSockets):
    """The same without a network namespace of the sandbox's own, where nobody gives us the file of a socket.

    Known are the sockets that callers bound; which of them stands behind a file is asked when it matters.
    """

    def __init__(self, root: Root, allowed: Sequence[str], closer: Closer) -> None:
        super().__init__(root, allowed, (), closer)
        self._bound: OrderedDict[int, None] = OrderedDict()

    def bound(self, sock: socket.socket) -> None:
        """See `UnixSockets`."""
        self._bound[os.fstat(sock.fileno()).st_ino] = None
        while len(self._bound) > _BOUND_NAMES:
            self._bound.popitem(last=False)

    def _is_inside(self, info: os.stat_result) -> bool:
        file = (info.st_ino & 0xFFFFFFFF, kernel_device(info.st_dev))
        try:
            there = [inode for inode, bound in bound_files().items() if bound == file]
        except OSError:
            return False  # then the policy has to name it
        # The kernel gives only half of a file's number here: of two files that share it, one could be the host's.
        return bool(there) and all(inode in self._bound for inode in there)
