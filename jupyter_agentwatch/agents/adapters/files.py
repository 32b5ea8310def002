"""Files of a watch, for frameworks that read and write them by name: always by a command inside, never from outside.

Seen from inside, a link can lead nowhere that the commands themselves could not reach, and every access is on record as
a step.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from jupyter_agentwatch.watch import CommandResult, Watch

__all__ = ["FileTooLargeError", "read_file", "write_file"]

_PIECE_BYTES: Final = 8 << 20
_PATIENCE_S: Final = 120.0
"""Seconds for one piece: a name that turns into a pipe must not hold its reader for ever."""

# Opened once for its own sake: what stands before a pipe cannot say that it failed, and Landlock refuses an open of
# what `[ -r` takes for readable.
_READ: Final = f"""
[ -d "$1" ] && exit {errno.EISDIR}
[ -e "$1" ] || exit {errno.ENOENT}
[ -f "$1" ] || exit {errno.EINVAL}
(exec 3< "$1") || exit {errno.EACCES}
tail -c "+$2" < "$1" | head -c "$3"
"""
_WRITE: Final = f"""
[ -d "$1" ] && exit {errno.EISDIR}
[ -e "$1" ] && ! [ -f "$1" ] && exit {errno.EINVAL}
[ -e "$1" ] && ! [ -w "$1" ] && exit {errno.EACCES}
case "$1" in */*) mkdir -p -- "${{1%/*}}/" || exit {errno.EACCES} ;; esac
cat > "$1" || exit {errno.EACCES}
[ "$(wc -c < "$1")" -eq "$2" ] || exit {errno.EIO}
"""
_ERRORS: Final = frozenset((errno.EISDIR, errno.ENOENT, errno.EINVAL, errno.EACCES))


class FileTooLargeError(Exception):
    """A file holds more than its reader takes."""


async def read_file(watch: Watch, path: str, *, limit: int) -> bytes:
    """Return what a regular file holds.

    Args:
        watch: The watch.
        path: Name inside, relative to the workspace or absolute.
        limit: Bytes, at most.

    Raises:
        FileTooLargeError: It holds more than `limit` bytes.
        FileNotFoundError: There is no such file.
        IsADirectoryError: It is a folder.
        PermissionError: It cannot be read.
        OSError: It is no regular file, or could not be read whole.
        TimeoutError: It could not be read in time.
        SessionEndedError: The watch was killed.
        ControlError: The supervisor refused.
    """
    piece_bytes = min(_PIECE_BYTES, watch.policy.limits.output_bytes)
    held = bytearray()
    while True:
        argv = ["/bin/sh", "-c", _READ, "sh", _plain(path), str(len(held) + 1), str(piece_bytes)]
        result = await watch.run_async(argv, timeout=_PATIENCE_S)
        _raise_error(result, path)
        held += result.stdout_bytes
        if len(held) > limit:
            msg = f"{path!a} holds more than {limit} bytes"
            raise FileTooLargeError(msg)
        if len(result.stdout_bytes) < piece_bytes:
            return bytes(held)


async def write_file(watch: Watch, path: str, data: bytes) -> None:
    """Make a file, and the folders that lead to it, or replace what it holds.

    Args:
        watch: The watch.
        path: Name inside, relative to the workspace or absolute.
        data: What it is to hold.

    Raises:
        IsADirectoryError: There is a folder of this name.
        PermissionError: It cannot be written.
        OSError: What stands there is no regular file, or not everything was written.
        TimeoutError: It could not be written in time.
        SessionEndedError: The watch was killed.
        ControlError: The supervisor refused.
    """
    argv = ["/bin/sh", "-c", _WRITE, "sh", _plain(path), str(len(data))]
    _raise_error(await watch.run_async(argv, stdin=data, timeout=_PATIENCE_S), path)


def _plain(path: str) -> str:
    # `[` would take a name that begins with a hyphen or an exclamation mark for a part of its expression.
    return path if path.startswith("/") else f"./{path}"


def _raise_error(result: CommandResult, path: str) -> None:
    if result.ok:
        return
    if result.outcome == "timeout":
        msg = f"{path!a}: not within {_PATIENCE_S:g} s"
        raise TimeoutError(msg)
    number = result.exit_code if result.exit_code in _ERRORS else errno.EIO
    raise OSError(number, os.strerror(number or errno.EIO), path)
