"""The keys of the policy's model upstreams: read by the notebook's process, handed to the supervisor, never kept."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from jupyter_agentwatch.errors import PolicyError
from jupyter_agentwatch.events import from_path, printable
from jupyter_agentwatch.policy import ModelUpstream, Policy
from jupyter_agentwatch.watch.rules import expanded

__all__ = ["model_keys"]

_MAX_KEY: Final = 8192
_KEY: Final = re.compile(r"[\x21-\x7e]+")


def model_keys(policy: Policy, workspace: Path) -> list[str]:
    """Return the key of each upstream, "" where the policy names none.

    Args:
        policy: The policy, checked.
        workspace: The watch's, absolute.

    Raises:
        PolicyError: A key is not there, is no key, or could be seen from inside.
    """
    found = []
    for position, upstream in enumerate(policy.models.upstreams):
        where = f"models.upstreams[{position}]"
        if upstream.key_file:
            key = _from_file(upstream, policy, workspace, f"{where}.key_file")
        else:
            key = _from_variable(upstream.key_env, f"{where}.key_env")
        found.append(key)
    return found


def _from_variable(name: str, where: str) -> str:
    if not name:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        msg = f"{where}: the variable {name} is not set: set it in the notebook's environment, or leave key_env out"
        raise PolicyError(msg)
    return _checked(key, where)


def _from_file(upstream: ModelUpstream, policy: Policy, workspace: Path, where: str) -> str:
    path = Path(os.path.realpath(expanded(upstream.key_file)))
    name = printable(from_path(str(path)), 4096)
    for folder in _visible(policy, workspace):
        if path.is_relative_to(os.path.realpath(folder)):
            msg = (
                f"{where}: {name} can be seen from inside (in {printable(from_path(str(folder)), 4096)}): move the key"
            )
            raise PolicyError(msg)
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_KEY + 1)
    except OSError as error:
        msg = f"{where}: cannot read {name}: {error.strerror}"
        raise PolicyError(msg) from error
    return _checked(raw.decode("utf-8", "replace").strip(), where)


def _visible(policy: Policy, workspace: Path) -> Iterator[Path]:
    yield workspace
    for text in (*policy.filesystem.read, *policy.filesystem.write):
        yield workspace / expanded(text)
    for text in (sys.prefix, sys.base_prefix, "/usr", "/etc", "/opt"):
        yield Path(text)


def _checked(key: str, where: str) -> str:
    if len(key) > _MAX_KEY or _KEY.fullmatch(key) is None:
        # Never the key itself: what is wrong about it may be one letter.
        msg = f"{where}: what is there is no key: one word of visible ASCII characters, at most {_MAX_KEY}"
        raise PolicyError(msg)
    return key
