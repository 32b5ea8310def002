"""Where in a YAML file a document and a key stand, so that a problem can name its line."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import yaml

__all__ = ["Places"]


class Places:
    """Lines of one file, from 1.

    Args:
        text: The file.

    Raises:
        yaml.YAMLError: It is not YAML.
    """

    def __init__(self, text: str) -> None:
        self._starts: list[int] = []
        self._keys: list[dict[str, int]] = []
        self._documents: dict[str, int] = {}
        for node in yaml.compose_all(text, Loader=yaml.SafeLoader):
            if not isinstance(node, yaml.MappingNode):
                continue
            line = _line(node)
            self._starts.append(line)
            self._keys.append(_key_lines(node))
            for key, value in node.value:
                if key.value in ("id", "title") and isinstance(value, yaml.ScalarNode):
                    self._documents.setdefault(value.value, line)

    def of_document(self, title: str, identifier: object) -> int:
        """Return where the document with this id, else with this title, begins; 1 where there is none."""
        return self._documents.get(str(identifier)) or self._documents.get(title, 1)

    def of_key(self, document_line: int, name: str) -> int:
        """Return where a key stands, with or without modifiers.

        Args:
            document_line: Where the document begins; returned where the key is not in it.
            name: The key, as "Image" for "Image|endswith"; or a modifier, as "|endswith".
        """
        place = bisect_right(self._starts, document_line) - 1
        return self._keys[place].get(name, document_line) if place >= 0 else document_line


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _key_lines(document: yaml.Node) -> dict[str, int]:
    """Map each key without its modifiers, and each modifier, to its first line. Aliases are followed once."""
    lines: dict[str, int] = {}
    waiting: list[Any] = [document]
    known = {id(document)}
    while waiting:
        node = waiting.pop()
        children = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    key_name, *modifiers = key.value.split("|")
                    for name in (key_name, *[f"|{each}" for each in modifiers]):
                        lines[name] = min(_line(key), lines.get(name, _line(key)))
            children = [value for _, value in node.value]
        for child in children:
            if id(child) not in known and not isinstance(child, yaml.ScalarNode):
                known.add(id(child))
                waiting.append(child)
    return lines
