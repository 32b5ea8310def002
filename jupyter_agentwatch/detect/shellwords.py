"""Reads one word of a shell script: quotes, variables and what they expand to, as far as the text alone tells."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Final

from jupyter_agentwatch.detect.decoding import MAX_TEXT, ansi_c, braces
from jupyter_agentwatch.detect.expressions import lazy_pattern

__all__ = ["Scope", "WordReader"]

Scope = dict[str, str]
"""Variables with a value that the text alone tells."""

_GAP: Final = lazy_pattern(r"(?:[ \t\r]+|\\\r?\n|#[^\n]*)*")
_PLAIN: Final = lazy_pattern(r"[^\s;&|<>()$`'\"\\]+")
_IN_DOUBLE: Final = lazy_pattern(r'[^"\\$`]+')
_NAME: Final = lazy_pattern(r"[A-Za-z_]\w*|[0-9@*#?$!-]")
_BRACED: Final = lazy_pattern(r"\$\{([!#]?)(\w+|[@*])(?:(:?[-=+?])([^{}]*)|:(-?\d+)(?::(\d+))?|([^{}]*))\}")
_ARITHMETIC: Final = lazy_pattern(r"\(\(.{0,512}?\)\)", re.DOTALL)


class WordReader(ABC):
    """Reads words at a position in a text.

    Attributes:
        text: The script, hostile.
        at: Position of the next character.
        scope: Variables that are known.
        growth_left: Characters that variables may still add; a reader inside another one has no more than that.
    """

    def __init__(self, text: str, scope: Scope) -> None:
        # `a=$a$a` doubles: what variables add is bounded as the text itself is.
        self.text = text
        self.at = 0
        self.scope = scope
        self.growth_left = MAX_TEXT

    @abstractmethod
    def substitution(self) -> str:
        """Read a script to its matching `)`; return what it prints, or a placeholder that holds its text."""

    @abstractmethod
    def backquoted(self, text: str) -> str:
        """Return the same for a script between backquotes."""

    def skip_space(self) -> None:
        """Go past blanks, line continuations and comments."""
        found = _GAP.match(self.text, self.at)
        if found:
            self.at = found.end()

    def word(self) -> list[str]:
        """Read one word; returns the fields that it expands to."""
        text = self.text
        fields: list[str] = []
        buffer: list[str] = []
        quoted = False
        while self.at < len(text):
            plain = _PLAIN.match(text, self.at)
            if plain:
                buffer.append(plain[0])
                self.at = plain.end()
                continue
            char = text[self.at]
            if char == "'":
                quoted = True
                end = text.find("'", self.at + 1)
                end = len(text) if end < 0 else end
                buffer.append(text[self.at + 1 : end])
                self.at = end + 1
            elif char == '"':
                quoted = True
                buffer.append(self._double())
            elif char == "\\":
                quoted = True
                buffer.append(text[self.at + 1 : self.at + 2].replace("\n", ""))
                self.at += 2
            elif char in "$`":
                quoted = self._unquoted_expansion(fields, buffer) or quoted
            elif text.startswith(("<(", ">("), self.at):
                self.at += 2
                self.substitution()
                buffer.append("/dev/fd/63")
            else:
                break
        whole = "".join(buffer)
        if whole or quoted:
            fields += [whole] if quoted or "{" not in whole else braces(whole)
        return fields

    def _unquoted_expansion(self, fields: list[str], buffer: list[str]) -> bool:
        """Expand at `$` or a backtick; white space in the value ends fields. Returns whether it counts as quoted."""
        if self.text.startswith("$'", self.at):
            value, self.at = ansi_c(self.text, self.at + 2)
            buffer.append(value)
            return True
        if self.text.startswith('$"', self.at):
            self.at += 1
            buffer.append(self._double())
            return True
        value = self._expansion()
        if not re.search(r"[ \t\n]", value) or value.startswith(("$(", "${")):
            buffer.append(value)
            return False
        parts = value.split()
        if value[0].isspace() or not parts:
            parts.insert(0, "")
        if value[-1].isspace() and len(parts) > 0 and value.strip():
            parts.append("")
        head = "".join([*buffer, parts[0]])
        fields += [part for part in (head, *parts[1:-1]) if part] if len(parts) > 1 else []
        buffer[:] = [parts[-1]] if len(parts) > 1 else [head]
        if not value.strip() and head:
            fields.append(head)
            buffer.clear()
        return False

    def _double(self) -> str:
        text = self.text
        self.at += 1
        parts: list[str] = []
        while self.at < len(text) and text[self.at] != '"':
            plain = _IN_DOUBLE.match(text, self.at)
            if plain:
                parts.append(plain[0])
                self.at = plain.end()
            elif text[self.at] == "\\":
                after = text[self.at + 1 : self.at + 2]
                parts.append("" if after == "\n" else after if after in '$`"\\' else "\\" + after)
                self.at += 2
            else:
                parts.append(self._expansion())
        self.at += 1
        return "".join(parts)

    def _expansion(self) -> str:
        """Expand at `$` or a backtick, as between double quotes."""
        text = self.text
        if text[self.at] == "`":
            end = re.compile(r"(?<!\\)`").search(text, self.at + 1)
            stop = end.start() if end else len(text)
            inner = text[self.at + 1 : stop].replace("\\`", "`")
            self.at = stop + 1
            return self.backquoted(inner)
        if text.startswith("$((", self.at):
            block = _ARITHMETIC.match(text, self.at + 1)
            if block:
                self.at = block.end()
                return "$((…))"
        if text.startswith("$(", self.at):
            self.at += 2
            return self.substitution()
        braced = _BRACED.match(text, self.at)
        if braced:
            self.at = braced.end()
            return self._parameter(braced)
        name = _NAME.match(text, self.at + 1)
        if name is None:
            self.at += 1
            return "$"
        self.at = name.end()
        return self._value(name[0])

    def _parameter(self, match: re.Match[str]) -> str:
        prefix, name, operator, word, offset, length, other = match.groups()
        value = self._value(name)
        if prefix or other or (value.startswith("${") and operator is None and offset is not None):
            return match[0]
        if operator and "-" in operator + "=" and operator[-1] in "-=":
            return str(word) if value.startswith("${") else value
        if offset is not None:
            start = int(offset[:6])
            return value[start:][: int(length[:6])] if length else value[start:]
        return value

    def _value(self, name: str) -> str:
        if name == "IFS" and name not in self.scope:
            return " "
        if name == "HOME" and name not in self.scope:
            return "~"
        if name in ("@", "*") or name.isdigit():
            return self.scope.get(name, "")
        value = self.scope.get(name)
        if value is None or len(value) > self.growth_left:
            return "${" + name + "}"
        self.growth_left -= len(value)
        return value
