"""YAML text to plain data with the line of every field, for errors that a person can act on.

Stricter than YAML: what two readers could take for two different things (yes, 010, 1:20, anchors, tags) is an
error, never a guess. PyYAML is loaded only when this is called.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from jupyter_agentwatch.policy.check import FieldError, Path, quoted

if TYPE_CHECKING:
    import yaml

__all__ = ["MAX_BYTES", "Document", "TextError", "read_document"]

MAX_BYTES = 1 << 20
"""Longest policy text, in bytes of UTF-8."""

_MAX_DEPTH = 16
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,40})")
_FLOAT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\.[0-9]*(?:[eE][-+][0-9]+)?")
# Compiled at first use: that takes milliseconds, and the supervisor, which imports this room, reads no YAML.
_UNPRINTABLE = "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
_STAR_HINT = 'text that begins with "*" or "&" must stand in quotes, as "*.example.org"'
_TAG = "tag:yaml.org,2002:"


class Document(NamedTuple):
    """What a text says.

    Attributes:
        data: Mappings, lists, text, numbers, truth values and None.
        lines: The line of each field, from 1; the whole document is ().
    """

    data: object
    lines: dict[Path, int]


class TextError(FieldError):
    """The text cannot be read at one line.

    Attributes:
        line: The line, from 1.
    """

    def __init__(self, line: int, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.line = line


def read_document(text: str) -> Document:
    """Read one YAML document.

    Raises:
        TextError: The text is too long, not YAML, says a key twice, or has something that is ambiguous.
    """
    _check_characters(text)
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        return _Builder(loader).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        hint = f"; {_STAR_HINT}" if error.context in _NAMING else ""
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise TextError(mark.line + 1 if mark else 1, (), f"not YAML: {reason}{hint}") from None
    except yaml.YAMLError as error:
        raise TextError(1, (), f"not YAML: {quoted(str(error), 200)}") from None
    finally:
        loader.dispose()


_NAMING = frozenset({"while scanning an alias", "while scanning an anchor"})


def _check_characters(text: str) -> None:
    found = re.search(_UNPRINTABLE, text)
    if found:
        line = text.count("\n", 0, found.start() + 1) + 1
        raise TextError(line, (), f"the character U+{ord(found[0]):04X} cannot stand in a policy")
    if len(text) > MAX_BYTES or len(text.encode()) > MAX_BYTES:
        raise TextError(1, (), f"the policy is longer than {MAX_BYTES} bytes")


class _Builder:
    """Events to data. It recurses, which the limit on depth makes safe."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        from yaml import events, nodes

        self._loader = loader
        self._events = events
        self._scalar_node = nodes.ScalarNode
        self._lines: dict[Path, int] = {}

    def document(self) -> Document:
        kind = self._events
        event = self._next()
        while isinstance(event, kind.StreamStartEvent | kind.DocumentStartEvent):
            event = self._next()
        if isinstance(event, kind.StreamEndEvent):
            raise TextError(1, (), "the policy is empty; `version: 1` alone is the default policy")
        self._lines[()] = _line(event)
        data = self._value(event, ())
        self._next()
        event = self._next()
        if not isinstance(event, kind.StreamEndEvent):
            raise TextError(_line(event), (), "a second document begins here; a policy is one document")
        return Document(data, self._lines)

    def _next(self) -> yaml.events.Event:
        event: yaml.events.Event = self._loader.get_event()  # type: ignore[no-untyped-call]
        return event

    def _value(self, event: yaml.events.Event, path: Path) -> object:
        kind = self._events
        if isinstance(event, kind.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise TextError(_line(event), path, f"anchors and aliases are not allowed; {_STAR_HINT}")
        if getattr(event, "tag", None) is not None:
            raise TextError(_line(event), path, 'tags are not allowed; text that begins with "!" must stand in quotes')
        if len(path) > _MAX_DEPTH:
            raise TextError(_line(event), path[:3], f"nested deeper than {_MAX_DEPTH} levels")
        if isinstance(event, kind.SequenceStartEvent):
            return self._list(path)
        if isinstance(event, kind.MappingStartEvent):
            return self._mapping(path)
        return self._scalar(event, path)

    def _list(self, path: Path) -> list[object]:
        items: list[object] = []
        while not isinstance(event := self._next(), self._events.SequenceEndEvent):
            inner = (*path, len(items))
            self._lines[inner] = _line(event)
            items.append(self._value(event, inner))
        return items

    def _mapping(self, path: Path) -> dict[str, object]:
        found: dict[str, object] = {}
        while not isinstance(event := self._next(), self._events.MappingEndEvent):
            # Only a scalar: a mapping as a key would nest without its path growing, past the limit on depth.
            if not isinstance(event, self._events.ScalarEvent):
                raise TextError(_line(event), path, "a field's name is text, not a list or mapping")
            key = self._value(event, path)
            if not isinstance(key, str):
                raise TextError(_line(event), path, f"{quoted(key)} is not a name; put it in quotes")
            inner = (*path, key)
            if key in found:
                raise TextError(_line(event), inner, f"given twice; the first is on line {self._lines[inner]}")
            self._lines[inner] = _line(event)
            found[key] = self._value(self._next(), inner)
        return found

    def _scalar(self, event: yaml.events.Event, path: Path) -> object:
        text: str = getattr(event, "value", "")
        plain, _ = getattr(event, "implicit", (False, True))
        tag = f"{_TAG}str"
        if plain:
            tag = self._loader.resolve(self._scalar_node, text, (True, False))  # type: ignore[no-untyped-call]
        match tag.removeprefix(_TAG):
            case "str":
                return text
            case "null":
                return None
            case "bool" if text.lower() in ("true", "false"):
                return text.lower() == "true"
            case "int" if _INT.fullmatch(text):
                return int(text)
            case "float" if _FLOAT.fullmatch(text):
                return float(text)
        advice = "put it in quotes where text is meant; numbers are written in decimal, truth values as true or false"
        raise TextError(_line(event), path, f"{quoted(text)} is ambiguous: {advice}")


def _line(event: yaml.events.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1
