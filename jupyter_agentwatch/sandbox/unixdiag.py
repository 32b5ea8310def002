"""Which file each bound UNIX socket of this network namespace belongs to, as the kernel says it (sock_diag(7)).

By sockets and files, never by names: a name can come to stand for another file at any time.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final

__all__ = ["bound_files", "kernel_device", "read_files"]

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_DUMP: Final = 0x301
_ERROR, _DONE = 2, 3
_ALL_STATES: Final = 0xFFFFFFFF
_SHOW_VFS: Final = 2
_ATTRIBUTE_VFS: Final = 1
_HEADER = struct.Struct("=IHHII")
_QUESTION = struct.Struct("=BBHIIIQ")
_ANSWER = struct.Struct("=BBBBIQ")
_ATTRIBUTE = struct.Struct("=HH")
_FILE = struct.Struct("=II")
_NUMBER = struct.Struct("=i")
_ERRORS: Final = 4096
_TIMEOUT_S: Final = 2.0
_RECEIVE: Final = 1 << 16


def kernel_device(device: int) -> int:
    """Return a device number as the kernel keeps it, from one that `stat` gives."""
    return os.major(device) << 20 | os.minor(device)


def bound_files() -> dict[int, tuple[int, int]]:
    """Return, by the inode of each socket that is bound to a file: that file's inode (32 bits) and kernel device.

    Raises:
        OSError: The kernel does not say (no unix_diag).
    """
    found: dict[int, tuple[int, int]] = {}
    question = _QUESTION.pack(socket.AF_UNIX, 0, 0, _ALL_STATES, 0, _SHOW_VFS, 0)
    request = _HEADER.pack(_HEADER.size + len(question), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + question
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as asked:
        asked.settimeout(_TIMEOUT_S)
        asked.sendto(request, (0, 0))
        while not read_files(asked.recv(_RECEIVE), found):
            pass
    return found


def read_files(data: bytes, found: dict[int, tuple[int, int]]) -> bool:
    """Add what one of the kernel's answers says of sockets and files; return whether it was the last.

    Args:
        data: One datagram.
        found: As `bound_files` returns it.

    Raises:
        OSError: The answer is an error, or none that can be understood.
    """
    while len(data) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(data)
        body = data[_HEADER.size : length]
        if kind == _DONE:
            return True
        if kind == _ERROR and len(body) >= _NUMBER.size:
            number = abs(int(_NUMBER.unpack_from(body)[0])) % _ERRORS
            raise OSError(number, os.strerror(number), "unix_diag")
        if length < _HEADER.size or len(body) < _ANSWER.size:
            raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG), "unix_diag")
        _take(body, found)
        data = data[(length + 3) & ~3 :]
    return False


def _take(body: bytes, found: dict[int, tuple[int, int]]) -> None:
    inode, at = int(_ANSWER.unpack_from(body)[4]), _ANSWER.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            return
        if kind == _ATTRIBUTE_VFS and at + _ATTRIBUTE.size + _FILE.size <= len(body):
            found[inode] = _FILE.unpack_from(body, at + _ATTRIBUTE.size)
        at += (length + 3) & ~3
