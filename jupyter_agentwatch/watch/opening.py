"""What has to be known before a watch can open: policy, private folders, names of socket and log."""

from __future__ import annotations

import contextlib
import os
import pwd
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from jupyter_agentwatch.errors import PolicyError
from jupyter_agentwatch.events import from_path, printable
from jupyter_agentwatch.policy import Policy, check_policy, parse_policy, policy_from_mapping
from jupyter_agentwatch.watch.model_keys import model_keys
from jupyter_agentwatch.wire.messages import Launch
from jupyter_agentwatch.wire.runtime import control_socket, log_dir, new_watch_id, runtime_dir

__all__ = ["load_policy", "plan_launch", "private_folders", "with_simulated_gpus"]

_MAX_POLICY = 1 << 20


def load_policy(policy: Policy | Mapping[str, Any] | str | os.PathLike[str] | None) -> Policy:
    """Return the policy that a caller means; None means the default. A path may begin with `~`.

    Raises:
        PolicyError: It is malformed, or its file cannot be read; the text names file, line and field.
        TypeError: It is none of these.
    """
    if policy is None:
        return Policy()
    if isinstance(policy, Policy):
        return check_policy(policy)
    if isinstance(policy, Mapping):
        return policy_from_mapping(policy)
    path = _policy_path(policy)
    name = from_path(str(path))
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_POLICY + 1).decode()
    except OSError as error:
        msg = f"{printable(name, 4096)}: cannot read the policy: {error.strerror}"
        raise PolicyError(msg) from error
    except UnicodeDecodeError as error:
        msg = f"{printable(name, 4096)}: cannot read the policy: not UTF-8 text at byte {error.start}"
        raise PolicyError(msg) from error
    return parse_policy(text, name)


def with_simulated_gpus(policy: Policy, count: int | None) -> Policy:
    """Return a policy in which so many simulated GPUs stand for the machine's; None leaves it as it is.

    Raises:
        PolicyError: The policy has a recorded trace in their place, or names a GPU beyond the count.
    """
    if count is None:
        return policy
    telemetry = msgspec.structs.replace(policy.telemetry, simulate_gpus=count)
    return check_policy(msgspec.structs.replace(policy, telemetry=telemetry))


def _policy_path(policy: object) -> Path:
    if isinstance(policy, (str, os.PathLike)):
        return Path(os.path.expanduser(policy))
    msg = f"policy must be a Policy, a mapping or the path of a YAML file, not {type(policy).__name__}"
    raise TypeError(msg)


def plan_launch(policy: Policy, workspace: Path, cell: str, rules: bytes = b"") -> Launch:
    """Choose an id that no log bears yet, and say what a supervisor must be told.

    Args:
        policy: What the commands may do.
        workspace: Where they work.
        cell: Notebook cell that opens the watch, or "".
        rules: Compiled Sigma rules, b"" for none.

    Raises:
        ControlError: A folder of ours is not private, or its name is too long.
        PolicyError: A model's key is not there, or could be seen from inside.
    """
    logs = log_dir()
    watch = next(name for name in iter(new_watch_id, "") if not (logs / f"{name}.jsonl").exists())
    return Launch(
        watch=watch,
        policy=policy,
        workspace=str(workspace),
        socket=str(control_socket(watch)),
        log=str(logs / f"{watch}.jsonl"),
        owner_pid=os.getpid(),
        cell=cell,
        environ={name: os.environ[name] for name in policy.environment.passed if name in os.environ},
        python=list(dict.fromkeys((sys.prefix, sys.base_prefix, str(Path(sys.executable).parent)))),
        rules=rules,
        model_keys=model_keys(policy, workspace),
    )


def private_folders() -> tuple[Path, ...]:
    """Return the folders that no workspace may contain: the user's home, control sockets, audit logs.

    Raises:
        ControlError: A folder of ours is not private.
    """
    homes = [Path.home()]
    with contextlib.suppress(KeyError):
        homes.append(Path(pwd.getpwuid(os.getuid()).pw_dir))
    return (*homes, runtime_dir(), log_dir())
