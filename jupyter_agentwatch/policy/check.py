"""What the types of the model cannot say: which values make sense, and which would not mean what they seem to.

Pure: it sees no file system, so whether a path exists is for whoever mounts it to say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

import msgspec

from jupyter_agentwatch.events import printable
from jupyter_agentwatch.policy.model import (
    Detect,
    Environment,
    Filesystem,
    Gpu,
    Models,
    ModelUpstream,
    NetworkRule,
    Notify,
    Policy,
)
from jupyter_agentwatch.policy.names import host_pattern, parse_range

__all__ = ["FieldError", "Path", "checked", "checked_rule", "path_text", "quoted"]

Path = tuple[str | int, ...]
"""Where in the policy: ("network", "rules", 2, "ports", 0)."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_GPU = re.compile(r"(?:GPU|MIG)-[A-Za-z0-9/-]+")
_MODEL_URL = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~%+,;=:/-]*)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MAX_VARIABLE = 128 * 1024
"""Bytes of NAME=value with its final NUL that Linux hands to a program (MAX_ARG_STRLEN with 4 KiB pages)."""


class FieldError(ValueError):
    """One field is wrong.

    Attributes:
        path: The field.
        reason: What is wrong with it, and what to write instead.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path_text(path)}: {reason}")
        self.path = path
        self.reason = reason


def path_text(path: Path) -> str:
    """Return a path as people write it: `network.rules[2].ports[0]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _VARIABLE.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{quoted(part)}]"
    return text


def quoted(value: object, limit: int = 60) -> str:
    """Return a value for an error text: quoted where it is text, safe to show, cut to `limit` characters."""
    if isinstance(value, str):
        return f'"{printable(value, limit)}"'
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return printable(str(value), limit)
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else type(value).__name__


def checked(policy: Policy) -> Policy:
    """Return the policy with its host names in normal form.

    Raises:
        FieldError: The first field that makes no sense.
    """
    for path, reason in _problems(policy):
        raise FieldError(path, reason)
    rules = [checked_rule(rule, ("network", "rules", position)) for position, rule in enumerate(policy.network.rules)]
    return msgspec.structs.replace(policy, network=msgspec.structs.replace(policy.network, rules=rules))


def checked_rule(rule: NetworkRule, path: Path) -> NetworkRule:
    """Return one rule with its host name in normal form.

    Args:
        rule: The rule.
        path: Where it stands, for errors.

    Raises:
        FieldError: The rule makes no sense.
    """
    if (rule.host is None) == (rule.cidr is None):
        raise FieldError(path, "a rule gives exactly one of host and cidr")
    if rule.verdict == "deny" and not rule.ports:
        raise FieldError(
            (*path, "ports"), "a deny rule without ports denies nothing: list the ports that a later rule allows"
        )
    if rule.host is not None:
        try:
            return msgspec.structs.replace(rule, host=host_pattern(rule.host))
        except ValueError as error:
            raise FieldError((*path, "host"), f"{quoted(rule.host)}: {error}") from None
    try:
        parse_range(rule.cidr or "")
    except ValueError as error:
        raise FieldError((*path, "cidr"), f"{quoted(rule.cidr)}: {error}") from None
    return rule


def _problems(policy: Policy) -> Iterator[tuple[Path, str]]:
    yield from _not_finite(policy, ())
    yield from _filesystem(policy.filesystem)
    yield from _unix_sockets(policy.unix_sockets)
    yield from _gpus(policy.gpus)
    yield from _telemetry(policy)
    yield from _environment(policy.environment)
    yield from _notify(policy.breaker.notify)
    yield from _detect(policy.detect)
    yield from _models(policy.models, policy.environment)
    limits = policy.limits
    if limits.command_s is not None and limits.session_s is not None and limits.command_s > limits.session_s:
        yield ("limits", "command_s"), f"one command ({limits.command_s} s) outlives session_s ({limits.session_s} s)"


def _not_finite(part: msgspec.Struct, path: Path) -> Iterator[tuple[Path, str]]:
    for name in part.__struct_fields__:
        value = getattr(part, name)
        if isinstance(value, msgspec.Struct):
            yield from _not_finite(value, (*path, name))
        elif isinstance(value, float) and not math.isfinite(value):
            yield (*path, name), f"{value} is not a number of seconds; leave the field out for its default"


def _filesystem(filesystem: Filesystem) -> Iterator[tuple[Path, str]]:
    for name in ("read", "write", "hide"):
        paths: list[str] = getattr(filesystem, name)
        for position, text in enumerate(paths):
            reason = _path_fault(text)
            if reason:
                yield ("filesystem", name, position), reason


def _path_fault(text: str) -> str:
    if not text.strip():
        return "a path is missing"
    if _CONTROL.search(text):
        return f"{quoted(text)}: a path cannot have control characters"
    head, *rest = text.split("/")
    if ".." in (head, *rest):
        return f'{quoted(text)}: write the path without ".."'
    if (head.startswith("~") and head != "~") or (head.startswith("$") and head != "$HOME"):
        return f"{quoted(text)}: only ~ and $HOME in front are replaced; write the path in full"
    if not text.strip("/"):
        return "the root folder would grant everything, the audit log too: name the folders that are needed"
    return ""


def _unix_sockets(sockets: list[str]) -> Iterator[tuple[Path, str]]:
    for position, text in enumerate(sockets):
        path: Path = ("unix_sockets", position)
        if text.startswith("@"):
            if text == "@" or _CONTROL.search(text):
                yield path, f"{quoted(text)}: an abstract socket is @ and a name without control characters"
        elif not text.startswith(("/", "~", "$HOME")):
            yield path, f'{quoted(text)}: give an absolute path, one that begins with ~, or "@name"'
        elif reason := _path_fault(text):
            yield path, reason


def _gpus(gpus: list[Gpu]) -> Iterator[tuple[Path, str]]:
    seen: dict[int | str, int] = {}
    for position, gpu in enumerate(gpus):
        path: Path = ("gpus", position, "device")
        if isinstance(gpu.device, int):
            if gpu.device < 0:
                yield path, f"{gpu.device}: an index counts from 0"
        elif gpu.device.isdecimal():
            yield path, f"{quoted(gpu.device)}: write an index without quotes"
        elif _GPU.fullmatch(gpu.device) is None:
            yield path, f"{quoted(gpu.device)}: give an index (0) or a UUID that begins with GPU- or MIG-"
        if gpu.device in seen:
            yield path, f"given before, in gpus[{seen[gpu.device]}]"
        seen[gpu.device] = position
        if gpu.max_gpu_seconds is not None and not math.isfinite(gpu.max_gpu_seconds):
            yield ("gpus", position, "max_gpu_seconds"), "leave the field out for no budget"


def _telemetry(policy: Policy) -> Iterator[tuple[Path, str]]:
    telemetry = policy.telemetry
    if telemetry.trace is not None:
        path: Path = ("telemetry", "trace")
        if telemetry.simulate_gpus:
            yield path, "simulate_gpus and trace cannot both stand for the GPUs: leave one of them out"
        if not telemetry.trace.startswith(("/", "~", "$HOME")):
            yield path, f"{quoted(telemetry.trace)}: give an absolute path, or one that begins with ~"
        elif reason := _path_fault(telemetry.trace):
            yield path, reason
    for position, gpu in enumerate(policy.gpus):
        if telemetry.simulate_gpus and isinstance(gpu.device, int) and gpu.device >= telemetry.simulate_gpus:
            only = f"only {telemetry.simulate_gpus} GPUs are simulated, and their indices count from 0"
            yield ("gpus", position, "device"), f"{gpu.device}: {only}"
        if telemetry.trace is not None and gpu.max_gpu_seconds is not None:
            reason = "a recorded trace is nobody's use, so no budget can be held: leave the field out"
            yield ("gpus", position, "max_gpu_seconds"), reason


def _environment(environment: Environment) -> Iterator[tuple[Path, str]]:
    for position, name in enumerate(environment.passed):
        if _VARIABLE.fullmatch(name) is None:
            yield ("environment", "passed", position), f"{quoted(name)}: {_VARIABLE_RULE}"
    for name, value in environment.set.items():
        path: Path = ("environment", "set", name)
        if _VARIABLE.fullmatch(name) is None:
            yield path, _VARIABLE_RULE
        elif "\x00" in value:
            yield path, "a value cannot have a NUL character"
        elif len(name) + len(value.encode()) + 2 > _MAX_VARIABLE:
            yield path, f"NAME=value is longer than the {_MAX_VARIABLE} bytes that Linux hands to a program"


_VARIABLE_RULE = "a variable's name is letters, digits and underscores, and does not begin with a digit"


def _notify(notify: Notify) -> Iterator[tuple[Path, str]]:
    path: Path = ("breaker", "notify", "command")
    for position, word in enumerate(notify.command):
        if "\x00" in word:
            yield (*path, position), "an argument cannot have a NUL character"
    if notify.command and not notify.command[0].startswith("/"):
        yield (*path, 0), f"{quoted(notify.command[0])}: give the program by its absolute path; there is no shell"
    if notify.url and (not re.match(r"https?://[^/\s]", notify.url) or _CONTROL.search(notify.url)):
        yield (
            ("breaker", "notify", "url"),
            f"{quoted(notify.url)}: give an address that begins with https:// or http://",
        )


def _detect(detect: Detect) -> Iterator[tuple[Path, str]]:
    for position, text in enumerate(detect.rules):
        path: Path = ("detect", "rules", position)
        if not text.startswith(("/", "~", "$HOME")):
            yield path, f"{quoted(text)}: give an absolute path, or one that begins with ~"
        elif reason := _path_fault(text):
            yield path, reason
    for position, rule in enumerate(detect.disabled):
        if not rule.strip() or _CONTROL.search(rule):
            yield ("detect", "disabled", position), f"{quoted(rule)}: give the id of a rule"


def _models(models: Models, environment: Environment) -> Iterator[tuple[Path, str]]:
    seen: set[tuple[str, str]] = set()
    for position, upstream in enumerate(models.upstreams):
        path: Path = ("models", "upstreams", position)
        yield from _upstream(upstream, path)
        if upstream.key_env and upstream.key_env in (*environment.passed, *environment.set):
            yield (*path, "key_env"), f"{quoted(upstream.key_env)}: the key may not be a variable inside, too"
        for place, model in enumerate(upstream.models):
            here: Path = (*path, "models", place, "name")
            if not model.name.strip() or _CONTROL.search(model.name):
                yield here, f"{quoted(model.name)}: give a model's name"
            if (upstream.shape, model.name) in seen:
                yield here, f"{quoted(model.name)}: given before, in an upstream of the same shape"
            seen.add((upstream.shape, model.name))
    priced = any(model.price_in or model.price_out for each in models.upstreams for model in each.models)
    if models.max_cost is not None and not priced:
        yield ("models", "max_cost"), "nothing costs anything: give price_in and price_out of models, too"


def _upstream(upstream: ModelUpstream, path: Path) -> Iterator[tuple[Path, str]]:
    if _CONTROL.search(upstream.url) or not _MODEL_URL.fullmatch(upstream.url):
        advice = 'give an address such as "https://api.example.org/v1", without user, query or fragment'
        yield (*path, "url"), f"{quoted(upstream.url)}: {advice}"
    if upstream.key_env and _VARIABLE.fullmatch(upstream.key_env) is None:
        yield (*path, "key_env"), f"{quoted(upstream.key_env)}: {_VARIABLE_RULE}"
    if upstream.key_file and upstream.key_env:
        yield (*path, "key_file"), "give key_env or key_file, not both"
    elif upstream.key_file and not upstream.key_file.startswith(("/", "~", "$HOME")):
        yield (*path, "key_file"), f"{quoted(upstream.key_file)}: give an absolute path, or one that begins with ~"
    elif upstream.key_file and (reason := _path_fault(upstream.key_file)):
        yield (*path, "key_file"), reason
