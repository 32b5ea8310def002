"""Where things lie on the host: the runtime folder with control sockets, and the folder of audit logs.

Both are owned by the user with mode 0700 and are never visible inside a sandbox. Anything that does not
look like ours is refused, because these folders decide who may kill what.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from jupyter_agentwatch.errors import ControlError

__all__ = [
    "audit_log",
    "control_socket",
    "find_watch",
    "is_watch_id",
    "live_watches",
    "log_dir",
    "new_watch_id",
    "runtime_dir",
]

_ID = re.compile(r"[0-9a-f]{8}")
_MAX_SOCKET_PATH = 107


def new_watch_id() -> str:
    """Return a fresh watch id: 8 hexadecimal characters."""
    return os.urandom(4).hex()


def is_watch_id(text: str) -> bool:
    """Say whether a text has the form of a watch id; only then may it become part of a path."""
    return _ID.fullmatch(text) is not None


def runtime_dir() -> Path:
    """Return the folder of control sockets, made with mode 0700 on first use.

    `$AGENTWATCH_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/agentwatch`, else `/tmp/agentwatch-<uid>`.

    Raises:
        ControlError: The folder exists and is not ours alone.
    """
    named = os.environ.get("AGENTWATCH_RUNTIME_DIR")
    base = os.environ.get("XDG_RUNTIME_DIR")
    if named:
        path = Path(named)
    elif base and os.access(base, os.W_OK):
        path = Path(base) / "agentwatch"
    else:
        path = Path(f"/tmp/agentwatch-{os.getuid()}")  # noqa: S108 -- ownership and mode are checked below
    return _private(path)


def log_dir() -> Path:
    """Return the folder of audit logs: `$AGENTWATCH_LOG_DIR`, else `$XDG_STATE_HOME/agentwatch/logs`.

    Raises:
        ControlError: The folder exists and is not ours alone.
    """
    named = os.environ.get("AGENTWATCH_LOG_DIR")
    if named:
        return _private(Path(named))
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return _private(Path(state) / "agentwatch" / "logs")


def audit_log(watch: str) -> Path:
    """Return the path of a watch's audit log.

    Raises:
        ControlError: The folder of audit logs is not ours alone.
    """
    return log_dir() / f"{watch}.jsonl"


def control_socket(watch: str) -> Path:
    """Return the path of a watch's control socket.

    Raises:
        ControlError: The folder of control sockets is not ours alone, or its name is too long for a socket.
    """
    path = runtime_dir() / f"{watch}.sock"
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        msg = f"{path} is longer than {_MAX_SOCKET_PATH} bytes: set AGENTWATCH_RUNTIME_DIR to a shorter folder"
        raise ControlError(msg)
    return path


def live_watches() -> list[str]:
    """Return the ids of all watches of this user that have a control socket."""
    found = (p.name.removesuffix(".sock") for p in runtime_dir().glob("*.sock"))
    return sorted(name for name in found if is_watch_id(name))


def find_watch(prefix: str) -> str:
    """Return the one live watch whose id begins with `prefix`.

    Raises:
        ControlError: None does, or more than one.
    """
    matches = [watch for watch in live_watches() if watch.startswith(prefix)]
    if len(matches) == 1:
        return matches[0]
    running = ", ".join(live_watches()) or "none"
    what = "no live watch" if not matches else "more than one live watch"
    msg = f"{what} with an id beginning {prefix!r}; live: {running}"
    raise ControlError(msg)


def _private(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.lstat()
    except OSError as error:
        msg = f"{path} cannot be made: {error.strerror}; set another one"
        raise ControlError(msg) from error
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or stat.S_IMODE(info.st_mode) & 0o077:
        msg = f"{path} must be a folder of yours with mode 0700; remove it or set another one"
        raise ControlError(msg)
    return path
