"""Landlock rulesets: what a process that takes one on may still do with files, TCP ports and its neighbours.

Every version of the kernel interface restricts a little more. What an older one lacks is named by `missing_rights`, and
never quietly forgotten: whoever builds a rung on it must close the gap in another way or say so.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from jupyter_agentwatch.sandbox.syscalls import X86_64

__all__ = ["NEWEST_ABI", "READ", "WRITE", "landlock_abi", "make_ruleset", "missing_rights"]

NEWEST_ABI: Final = 7
"""The newest interface whose rights are known here (Linux 6.15). Of a later one, these rights are used."""

_CREATE: Final = X86_64.numbers["landlock_create_ruleset"]  # 444 on every machine of our tables
_ADD_RULE: Final = _CREATE + 1
_VERSION: Final = 1
_PATH_BENEATH: Final = 1

# linux/landlock.h
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_CHAR, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8
_MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK, _MAKE_SYM, _REFER = 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15

_ON_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
"""Rights that a rule for a file, and not a folder, may hold."""

READ: Final = _EXECUTE | _READ_FILE | _READ_DIR
"""Look at, list and run what is beneath."""

WRITE: Final = (READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG) | (
    _MAKE_SOCK | _MAKE_FIFO | _MAKE_SYM | _REFER | _TRUNCATE | _IOCTL_DEV
)
"""Everything beneath but device nodes."""

_NET: Final = 1 | 2  # bind and connect of TCP
_SCOPES: Final = 1 | 2  # abstract UNIX sockets and signals

_BY_ABI: Final = {1: (1 << 13) - 1, 2: _REFER, 3: _TRUNCATE, 5: _IOCTL_DEV}

_LACKS: Final = (
    (2, "refer", "a file cannot be renamed or linked into another folder, also within the workspace (EXDEV)"),
    (3, "truncate", "truncate(2) by name is refused altogether, because Landlock would not restrict it"),
    (4, "network", "no second line behind the filter for TCP: connect and bind are judged by the supervisor alone"),
    (
        5,
        "ioctl_dev",
        "device files that the policy opens can be told anything by ioctl, also where only reading is granted",
    ),
    (6, "scope", "signals and abstract UNIX sockets are held by the supervisor alone, which looks at each of them"),
)

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def landlock_abi() -> int:
    """Return the version of the kernel's Landlock interface, 0 where there is none or it is switched off.

    What the kernel announces is tried: one that takes features back from a later version may know a part of them only.
    """
    version = int(_syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION)))
    while version > 0:
        try:
            os.close(_begin(version))
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.E2BIG}:
                raise
            version -= 1
        else:
            return version
    return 0


def missing_rights(abi: int) -> list[tuple[str, str]]:
    """Return what an interface of this version lacks: the right, and what that means for a watch on rung B.

    Args:
        abi: As `landlock_abi` returned it.
    """
    return [(right, meaning) for since, right, meaning in _LACKS if abi < since]


def make_ruleset(grants: Iterable[tuple[str, int]], abi: int) -> int:
    """Return a descriptor of a ruleset that allows what is granted, and refuses everything else that it can.

    Whoever takes it on (`landlock_restrict_self`) can neither reach TCP ports by itself, nor connect to abstract
    sockets or signal processes outside of its domain, as far as the interface knows these rights. A place that does
    not exist grants nothing.

    Args:
        grants: Files and folders, each with `READ` or `WRITE`; what lies beneath a folder is granted with it.
        abi: Version of the interface to use, 1 to `landlock_abi()`.

    Raises:
        OSError: The kernel refused the ruleset, or a rule.
    """
    handled = _handled(abi)
    ruleset = _begin(abi)
    try:
        for path, rights in grants:
            with _held(path) as place:
                if place >= 0:
                    fits = rights if stat.S_ISDIR(os.fstat(place).st_mode) else rights & _ON_FILES
                    rule = struct.pack("=Qi", fits & handled, place)
                    _checked(_syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, ctypes.c_uint32(0)))
    except BaseException:
        os.close(ruleset)
        raise
    return ruleset


def _handled(abi: int) -> int:
    return sum(rights for since, rights in _BY_ABI.items() if abi >= since)


def _begin(abi: int) -> int:
    attributes = struct.pack("=Q", _handled(abi))
    if abi >= 4:
        attributes += struct.pack("=Q", _NET)
    if abi >= 6:
        attributes += struct.pack("=Q", _SCOPES)
    return _checked(_syscall(_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "landlock")
    return int(result)


@contextlib.contextmanager
def _held(path: str) -> Iterator[int]:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.EACCES, errno.ENOTDIR}:
            raise
        yield -1
        return
    try:
        yield place
    finally:
        os.close(place)
