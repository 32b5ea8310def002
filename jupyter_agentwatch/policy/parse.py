"""Policies from YAML or plain data and back, with errors that name source, line, field and remedy.

Nothing is read from disk here and nothing is silently coerced: what is not exactly right is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from jupyter_agentwatch.errors import PolicyError
from jupyter_agentwatch.events import printable
from jupyter_agentwatch.policy.check import FieldError, Path, checked, path_text, quoted
from jupyter_agentwatch.policy.document import TextError, read_document
from jupyter_agentwatch.policy.model import Policy

__all__ = ["check_policy", "parse_policy", "policy_digest", "policy_from_mapping", "policy_to_yaml"]

_MAX_INT = 2**63 - 1


def parse_policy(text: str, source: str = "<policy>") -> Policy:
    """Read a policy from YAML.

    Args:
        text: One YAML document of at most 1 MiB. Anchors, aliases, tags, keys given twice and ambiguous scalars
            (yes, 010, 1:20) are refused.
        source: Name of the file, for errors.

    Returns:
        The policy, with host names in lower-case ASCII. Paths stand as they were written.

    Raises:
        PolicyError: "source:line: field: reason".
    """
    lines: dict[Path, int] = {}
    try:
        document = read_document(text)
        lines = document.lines
        return checked(_convert(Policy, document.data, ()))
    except FieldError as error:
        raise _policy_error(error, source, lines) from None


def policy_from_mapping(data: Mapping[str, object], source: str = "<policy>") -> Policy:
    """Make a policy from nested mappings and lists, as YAML or JSON would give them.

    Args:
        data: The fields; parts may be structs of the model already.
        source: Where the data came from, for errors.

    Raises:
        PolicyError: "source: field: reason"; there are no lines.
    """
    try:
        return checked(_convert(Policy, data, ()))
    except FieldError as error:
        raise _policy_error(error, source, {}) from None


def check_policy(policy: Policy, source: str = "<policy>") -> Policy:
    """Check a policy that was made in Python or came over a pipe; the model's constructors check nothing.

    Returns:
        A copy that shares no list with the argument, with host names in lower-case ASCII.

    Raises:
        PolicyError: "source: field: reason".
    """
    try:
        return checked(_convert(Policy, policy, ()))
    except FieldError as error:
        raise _policy_error(error, source, {}) from None


def policy_to_yaml(policy: Policy, *, defaults: bool = False) -> str:
    """Write a policy as YAML that `parse_policy` reads back as an equal policy.

    Args:
        policy: What to write.
        defaults: Also write the fields that have their default value.
    """
    import yaml

    # Both ways copy every list, so that no list shared by two rules is written as an alias, which is not read back.
    data = msgspec.to_builtins(policy) if defaults else {"version": policy.version, **_changed(policy)}
    return str(yaml.safe_dump(data, sort_keys=False, default_flow_style=False, width=100))


def policy_digest(policy: Policy) -> str:
    """Return the SHA-256 in hex of the canonical JSON of a policy, its defaults included.

    The same policy gives the same digest however it was written: order of fields, 30 or 30.0, YAML or Python.
    """
    canonical = msgspec.convert(msgspec.to_builtins(policy), Policy)
    return hashlib.sha256(msgspec.json.encode(canonical, order="sorted")).hexdigest()


def _policy_error(error: FieldError, source: str, lines: dict[Path, int]) -> PolicyError:
    line = error.line if isinstance(error, TextError) else _nearest_line(error.path, lines)
    place = printable(source) + (f":{line}" if line else "")
    field = path_text(error.path)
    return PolicyError(f"{place}: {field}: {error.reason}" if field else f"{place}: {error.reason}")


def _nearest_line(path: Path, lines: dict[Path, int]) -> int:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 0)


def _convert(kind: Any, value: object, path: Path) -> Any:
    """Convert field by field, so that every error knows its place: msgspec's own path leaves out mapping keys."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _struct(kind, value, path)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is list:
        if not isinstance(value, list | tuple):
            raise FieldError(path, f"expected a list, got {quoted(value)}{_null_hint(value)}")
        return [_convert(arguments[0], item, (*path, position)) for position, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise FieldError(path, f"expected a mapping of names to values, got {quoted(value)}{_null_hint(value)}")
        return {_leaf(str, key, path): _convert(arguments[1], item, (*path, key)) for key, item in value.items()}
    return _leaf(kind, value, path)


def _struct(kind: type[msgspec.Struct], value: object, path: Path) -> msgspec.Struct:
    if isinstance(value, kind):
        value = {name: getattr(value, name) for name in value.__struct_fields__}
    if not isinstance(value, Mapping):
        raise FieldError(path, f"expected a mapping of fields to values, got {quoted(value)}{_null_hint(value)}")
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    for key in value:
        if key not in fields:
            raise FieldError((*path, key if isinstance(key, str) else str(key)), _unknown(str(key), list(fields)))
    missing = [name for name, field in fields.items() if field.required and name not in value]
    if missing:
        raise FieldError(path, f"{missing[0]} is missing")
    return kind(**{key: _convert(fields[key].type, item, (*path, key)) for key, item in value.items()})


def _unknown(key: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.5)
    return f"unknown field; did you mean {near[0]}?" if near else f"unknown field; known here: {', '.join(known)}"


def _leaf(kind: Any, value: object, path: Path) -> Any:
    if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
        raise FieldError(path, f"{quoted(value)}: not valid Unicode text")
    if isinstance(value, int) and abs(value) > _MAX_INT:
        raise FieldError(path, "the number is too large")
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        raise FieldError(path, f"{_expected(kind, error)}, got {quoted(value)}{_quote_hint(kind, value)}") from None


def _expected(kind: Any, error: Exception) -> str:
    if get_origin(kind) is Literal:
        return "expected " + " or ".join(quoted(choice) for choice in get_args(kind))
    return str(error).partition(", got ")[0].replace("Expected", "expected", 1).replace("`", "")


def _quote_hint(kind: Any, value: object) -> str:
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if str in kinds and isinstance(value, bool | int | float):
        return "; put it in quotes"
    if NoneType not in kinds:
        return _null_hint(value)
    return ""


def _null_hint(value: object) -> str:
    return "; leave the field out for its default" if value is None else ""


def _changed(part: msgspec.Struct) -> dict[str, object]:
    return {
        field.name: _plain(getattr(part, field.name))
        for field in msgspec.structs.fields(part)
        if field.required or getattr(part, field.name) != _default(field)
    }


def _default(field: msgspec.structs.FieldInfo) -> object:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def _plain(value: object) -> object:
    if isinstance(value, msgspec.Struct):
        return _changed(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
