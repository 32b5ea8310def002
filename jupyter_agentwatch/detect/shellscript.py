"""Reads shell text into the commands that it would run.

Quoting, variables and decoding are resolved where the text alone says what comes out. It is a hint, never the truth:
what cannot be told stays as it is written, and nothing runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from jupyter_agentwatch.detect.decoding import MAX_TEXT, decoded, range_size
from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.shellwords import Scope, WordReader

__all__ = ["Command", "Loop", "Pipeline", "Redirect", "read_script"]

_MAX_DEPTH: Final = 12
_MAX_COMMANDS: Final = 500
_MAX_FIELDS: Final = 512
_MAX_FED: Final = 512

_OPERATOR: Final = lazy_pattern(r"&&|\|\||;;&?|;&|\|&|[;&|\n()]")
_REDIRECT: Final = lazy_pattern(r"([0-9]{0,4}|\{\w{1,32}\})(&>>|&>|<<<|<<-|<<|<>|<&|>&|>>|>\||<(?!\()|>(?!\())")
# Most commands are named plainly. A name that a bracket follows is a function's.
_NAME: Final = lazy_pattern(r"[A-Za-z./][\w./+-]*(?=[\s;|)]|\Z)")
# Most of a text is arguments without anything to expand: they are taken many at a time.
_ARGUMENTS: Final = lazy_pattern(r"(?:[^\s;&|<>()$`'\"\\{#][^\s;&|<>()$`'\"\\{]*(?=[\s;|)]|\Z)[ \t\r]*)+")
_REDIRECTING: Final = frozenset("0123456789{<>&")
_ASSIGNMENT: Final = lazy_pattern(r"([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL)
_ARITHMETIC: Final = lazy_pattern(r"\(\(.{0,512}?\)\)", re.DOTALL)
_TEST: Final = lazy_pattern(r"\[\[(?=\s).{0,1024}?(?<=\s)\]\]", re.DOTALL)

_SKIPPED: Final = frozenset({"if", "then", "else", "elif", "fi", "do", "{", "}", "!", "time", "coproc", "esac"})
_KEYWORDS: Final = _SKIPPED | {"while", "until", "select", "for", "case", "done", "function"}
_DECLARING: Final = frozenset({"export", "declare", "local", "readonly", "typeset", "let"})


class Redirect(msgspec.Struct, frozen=True):
    """`fd` is -1 where the operator's own is meant; `body` is the text of a here-document or here-string."""

    fd: int
    op: str
    target: str
    body: str = ""


class Loop(msgspec.Struct, frozen=True):
    """What a `for` variable runs over: its first value and how many there are (0: the text does not tell).

    The loops of `while` and `until` are called "", and their first value is what feeds them, as `$(…)`.
    """

    first: str
    count: int


class Command(msgspec.Struct, frozen=True):
    """One simple command.

    Attributes:
        words: The words after expansion; what could not be told is still there as `${name}` or `$(…)`. A group whose
            output goes on (`(a; b) | c`) is the single word "(", and what it runs is `inner`.
        redirects: Redirections in order.
        assigned: Variables set for this command alone.
        loops: The `for` variables around it.
        inner: Pipelines of command and process substitutions in its words.
        background: It ends in `&`.
    """

    words: tuple[str, ...]
    redirects: tuple[Redirect, ...] = ()
    assigned: Mapping[str, str] = msgspec.field(default_factory=dict)
    loops: Mapping[str, Loop] = msgspec.field(default_factory=dict)
    inner: tuple[Pipeline, ...] = ()
    background: bool = False


Pipeline = tuple[Command, ...]
"""Commands joined by `|`, in order."""


def read_script(text: str, scope: Mapping[str, str] | None = None) -> list[Pipeline]:
    """Return the pipelines of a script in the order of its text, those of substitutions before what holds them.

    Branches and function bodies are read as if they ran. Work is linear in the text, and bounded: what lies beyond
    16 KiB, 500 commands or 12 levels of nesting is not read.

    Args:
        text: The script, hostile.
        scope: Variables known from outside (positional parameters as "1", "2", "@").
    """
    reader = _Reader(text[:MAX_TEXT], dict(scope or {}))
    reader.script("")
    return reader.pipelines


class _Building:
    """A command while its words are read."""

    __slots__ = ("assigned", "group", "inner", "redirects", "words")

    def __init__(self) -> None:
        self.words: list[str] = []
        self.redirects: list[Redirect] = []
        self.assigned: Scope = {}
        self.inner: list[Pipeline] = []
        self.group: list[Pipeline] = []

    @property
    def is_empty(self) -> bool:
        return not (self.words or self.redirects or self.assigned)

    def stand_for_group(self) -> None:
        """Become a stage of its own where it stands for a group that has ended."""
        if self.group and not self.words:
            self.words = ["("]
            self.inner += self.group


class _Reader(WordReader):
    def __init__(self, text: str, scope: Scope, depth: int = 0) -> None:
        super().__init__(text, scope)
        self._building = _Building()
        self.depth = depth
        self.pipelines: list[Pipeline] = []
        self._loops: list[tuple[str, Loop]] = []
        self._stages: list[_Building] = []
        self._starts: list[int] = []
        self._heredocs: list[tuple[str, bool, _Building, int]] = []
        self._peeked = self._peeked_to = 0

    # --- commands ---

    def script(self, end: str) -> None:
        """Read commands up to the unmatched `end` ("" for the end of the text), which is consumed."""
        text = self.text
        stages: list[_Building] = []
        command = self._building
        parens = 0
        while self.at < len(text) and len(self.pipelines) < _MAX_COMMANDS:
            self.skip_space()
            if command.words:
                arguments = _ARGUMENTS.match(text, self.at)
                if arguments:
                    command.words += arguments[0].split()[: max(0, _MAX_FIELDS - len(command.words))]
                    self.at = arguments.end()
                    continue
            else:
                name = _NAME.match(text, self.at)
                if name and name[0] not in _KEYWORDS:
                    command.words.append(name[0])
                    self.at = name.end()
                    continue
            operator = _OPERATOR.match(text, self.at)
            if operator is None:
                if self.at < len(text):
                    self._word_or_redirect(command)
                continue
            sign = operator[0]
            if sign == "&" and text.startswith("&>", self.at):
                self._word_or_redirect(command)
                continue
            self.at = operator.end()
            if sign == "(":
                parens += 1
                self._starts.append(len(self.pipelines))
                continue
            stages = self._stages = self._end_command(command, stages, sign)
            command = self._building = _Building()
            if sign != ")":
                continue
            if end and not parens:
                return
            parens = max(0, parens - 1)
            command.group = self._group()
        if not command.is_empty:
            stages.append(command)
        self._close(stages, background=False)

    def _end_command(self, command: _Building, stages: list[_Building], sign: str) -> list[_Building]:
        """Take a command that an operator ends; returns the stages of the pipeline that goes on."""
        goes_on = sign in ("|", "|&")
        if goes_on:
            command.stand_for_group()
        if not command.is_empty:
            stages.append(command)
        if goes_on:
            return stages
        self._close(stages, background=sign == "&")
        if sign == "\n":
            self._read_heredocs()
        return []

    def _group(self) -> list[Pipeline]:
        return self.pipelines[self._starts.pop() :] if self._starts else []

    def _close(self, stages: list[_Building], *, background: bool) -> None:
        if not stages:
            return
        if len(self._heredocs) > self._peeked:
            self._read_heredocs(peek=True)
        loops = dict(self._loops)
        commands = tuple(
            Command(
                tuple(stage.words),
                tuple(stage.redirects),
                stage.assigned,
                loops,
                tuple(stage.inner),
                background,
            )
            for stage in stages
        )
        if len(stages) == 1:
            self._assign(stages[0])
        self.pipelines.append(commands)

    def _assign(self, stage: _Building) -> None:
        if not stage.words:
            self.scope.update(stage.assigned)
        elif stage.words[0] in _DECLARING:
            for word in stage.words[1:]:
                found = _ASSIGNMENT.fullmatch(word)
                if found:
                    self.scope[found[1]] = found[3]

    def _word_or_redirect(self, command: _Building) -> None:
        text = self.text
        begin = text[self.at]
        redirect = _REDIRECT.match(text, self.at) if begin in _REDIRECTING else None
        if redirect:
            self._redirect(command, redirect)
            return
        if not command.words and begin in "([":
            block = _ARITHMETIC.match(text, self.at) or _TEST.match(text, self.at)
            if block:
                self.at = block.end()
                command.words.append("[[" if block[0].startswith("[[") else "((")
                return
        start = self.at
        fields = self.word()
        if self.at == start:  # a character that no rule takes: it must not hold the reader up
            self.at += 1
            return
        raw = text[start : self.at]
        if command.words:
            command.words += fields[: _MAX_FIELDS - len(command.words)]
        elif raw in _KEYWORDS:
            self._keyword(raw, command)
        else:
            self._first_word(command, raw, fields)

    def _first_word(self, command: _Building, raw: str, fields: list[str]) -> None:
        found = _ASSIGNMENT.match(raw)
        if found and fields and _ASSIGNMENT.match(" ".join(fields)):
            value = _ASSIGNMENT.match(" ".join(fields))
            before = self.scope.get(found[1], "") if found[2] else ""
            command.assigned[found[1]] = before + (value[3] if value else "")
            return
        if self.text.startswith("()", self.at):  # a function's name: its body is read as if it ran
            self.at += 2
            return
        command.words += fields[:_MAX_FIELDS]

    def _keyword(self, word: str, command: _Building) -> None:
        if word in ("done", "}"):
            if word == "done" and self._loops:
                self._loops.pop()
            command.group = self._group()
        elif word == "{":
            self._starts.append(len(self.pipelines))
        elif word in ("while", "until"):
            self._starts.append(len(self.pipelines))
            fed = " | ".join(" ".join(stage.words[:16]) for stage in self._stages[-4:])
            self._loops.append(("", Loop(f"$({fed})"[:_MAX_FED] if fed else "", 0)))
        elif word in ("for", "select"):
            self._for()
        elif word == "case":
            self._case()
        elif word == "function":
            self.skip_space()
            self.word()
            if self.text.startswith("()", self.at):
                self.at += 2

    def _for(self) -> None:
        self._starts.append(len(self.pipelines))
        self.skip_space()
        block = _ARITHMETIC.match(self.text, self.at)
        if block:  # for ((i=1; i<=254; i++))
            self.at = block.end()
            found = re.search(r"(\w+)\s*=\s*(\d+)\s*;\s*\w+\s*<=?\s*(\d{1,9})", block[0])
            loop = Loop(found[2], max(0, int(found[3]) - int(found[2][:9]) + 1)) if found else Loop("", 0)
            self._loops.append((found[1] if found else "", loop))
            return
        name = "".join(self.word())
        values: list[str] = []
        while self.at < len(self.text):
            self.skip_space()
            if _OPERATOR.match(self.text, self.at):
                break
            start = self.at
            values += self.word()
            self.at += self.at == start
        values = values[1:] if values[:1] == ["in"] else []
        counts = [range_size(value) for value in values]
        count = 0 if not values or any("$" in value or "*" in value for value in values) else sum(counts)
        first = values[0] if values else ""
        edge = re.match(r"\{(\d+)\.\.", first)
        first = edge[1] if edge and first.endswith("}") else first
        self._loops.append((name, Loop(first, count)))
        if len(values) == 1 and counts == [1] and "$" not in first:
            self.scope[name] = first
        else:
            self.scope.pop(name, None)

    def _case(self) -> None:
        """Skip to the first branch; the patterns of later ones end in `)` and read as a command of their own."""
        found = re.compile(r"\s+in\b[^)]{0,256}\)").search(self.text, self.at, self.at + 1024)
        if found:
            self.at = found.end()

    # --- redirections ---

    def _redirect(self, command: _Building, match: re.Match[str]) -> None:
        self.at = match.end()
        op = match[2]
        fd = int(match[1]) if match[1].isdigit() else -1
        self.skip_space()
        start = self.at
        target = " ".join(self.word())
        if op in ("<<", "<<-"):
            raw = self.text[start : self.at]
            delimiter = re.sub(r"[\\'\"]", "", raw)
            self._heredocs.append((delimiter, op == "<<-", command, len(command.redirects)))
            command.redirects.append(Redirect(fd, "<<", delimiter))
        elif op == "<<<":
            command.redirects.append(Redirect(fd, op, "", target))
        else:
            command.redirects.append(Redirect(fd, op, target))

    def _read_heredocs(self, *, peek: bool = False) -> None:
        """Read the bodies that begin at the next line; `peek` leaves them to be skipped when the line ends."""
        at = self.at
        new = self._heredocs[self._peeked :] if peek else self._heredocs
        if peek and self._peeked:
            at = self._peeked_to
        elif peek:
            at = self.text.find("\n", self.at - 1) + 1 if self.text[self.at - 1 : self.at] != "\n" else self.at
            if at == 0:
                return
        for delimiter, strips, command, index in new:
            lines: list[str] = []
            while at < len(self.text):
                end = self.text.find("\n", at)
                end = len(self.text) if end < 0 else end
                line = self.text[at:end]
                at = end + 1
                line = line.lstrip("\t") if strips else line
                if line.rstrip("\r") == delimiter:
                    break
                lines.append(line)
            old = command.redirects[index]
            command.redirects[index] = Redirect(old.fd, old.op, old.target, "\n".join(lines))
        self._peeked, self._peeked_to = len(self._heredocs), at
        if not peek:
            self.at = min(at, len(self.text))
            self._heredocs.clear()
            self._peeked = 0

    # --- substitutions ---

    def substitution(self) -> str:
        """Read to the matching `)`."""
        start = self.at
        if self.depth >= _MAX_DEPTH:
            self.at = len(self.text)
            return "$(…)"
        inner = self._nested(self.text)
        inner.at = start
        inner.script(")")
        self.at = inner.at
        return self._take(inner, self.text[start : max(start, inner.at - 1)])

    def backquoted(self, text: str) -> str:
        """Read a script of its own."""
        if self.depth >= _MAX_DEPTH:
            return "$(…)"
        inner = self._nested(text)
        inner.script("")
        return self._take(inner, text)

    def _nested(self, text: str) -> _Reader:
        inner = _Reader(text, dict(self.scope), self.depth + 1)
        inner.growth_left = self.growth_left
        return inner

    def _take(self, inner: _Reader, text: str) -> str:
        self.growth_left = inner.growth_left
        self.pipelines += inner.pipelines
        self._building.inner += inner.pipelines
        if len(inner.pipelines) == 1:
            stages = inner.pipelines[0]
            known = decoded([(stage.words, _given(stage)) for stage in stages])
            if known is not None:
                return known.rstrip("\n")
        return f"$({text})"


def _given(command: Command) -> str | None:
    """Return the text of a here-document or here-string on a command's standard input."""
    bodies = [r.body for r in command.redirects if r.op in ("<<", "<<<") and r.fd in (-1, 0)]
    return bodies[-1] if bodies else None
