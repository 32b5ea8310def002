"""Reads an argument vector as the tool that gets it would: bundled flags, attached values, `=`, `--`, operands.

It knows grammars, not tools; what an option means is the business of the detector that asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

__all__ = ["Grammar", "Options", "parse"]


class Grammar(msgspec.Struct, frozen=True):
    """How a tool reads its options.

    Attributes:
        valued: Single letters that take a value, attached or as the next word.
        attached: Single letters that take a value only where it is attached (`sed -i.bak`).
        long_valued: Long names, without dashes, that take a value.
        long_flags: Long names without a value, known so that an abbreviation can be told.
        single_dash: Long names have one dash as well (`-url x`, as Go's flag package); no bundling then.
        operands: Options are read until so many operands have been seen; None: to the end. What follows is `rest`.
    """

    valued: str = ""
    attached: str = ""
    long_valued: frozenset[str] = frozenset()
    long_flags: frozenset[str] = frozenset()
    single_dash: bool = False
    operands: int | None = None


class Options(msgspec.Struct):
    """What a tool would have understood.

    Attributes:
        values: Option name (without dashes) to its values, in order.
        flags: Options without a value.
        operands: Words that are no option.
        rest: Words after the operands that the grammar allows, not read as options.
    """

    values: dict[str, list[str]] = msgspec.field(default_factory=dict)
    flags: set[str] = msgspec.field(default_factory=set)
    operands: list[str] = msgspec.field(default_factory=list)
    rest: list[str] = msgspec.field(default_factory=list)

    def all(self, *names: str) -> list[str]:
        """Return the values of options, in the order of `names`."""
        return [value for name in names for value in self.values.get(name, ())]

    def last(self, *names: str) -> str:
        """Return the value that wins for an option with several names, or ""."""
        found = self.all(*names)
        return found[-1] if found else ""

    def has(self, *names: str) -> bool:
        """Return whether any of the options is given, with or without a value."""
        return any(name in self.flags or name in self.values for name in names)


def parse(argv: Sequence[str], grammar: Grammar) -> Options:
    """Read everything after the program's name. Nothing raises: a value that is missing is "".

    Args:
        argv: Arguments with the program's name first.
        grammar: How the tool reads them.
    """
    options = Options()
    words = list(argv[1:])
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if word == "--":
            _operands(options, words[at:], grammar)
            break
        if len(word) < 2 or word[0] != "-":
            if grammar.operands is not None and len(options.operands) >= grammar.operands:
                options.rest = words[at - 1 :]
                break
            options.operands.append(word)
        elif word.startswith("--") or (grammar.single_dash and len(word) > 2):
            at += _long(options, word.lstrip("-"), words[at : at + 1], grammar)
        else:
            at += _short(options, word[1:], words[at : at + 1], grammar)
    return options


def _operands(options: Options, words: list[str], grammar: Grammar) -> None:
    room = len(words) if grammar.operands is None else max(0, grammar.operands - len(options.operands))
    options.operands += words[:room]
    options.rest = words[room:]


def _long(options: Options, word: str, following: list[str], grammar: Grammar) -> int:
    """Take a long option; returns how many of the following words were its value."""
    name, equals, value = word.partition("=")
    name = _full_name(name, grammar.long_valued, grammar.long_flags)
    if equals:
        options.values.setdefault(name, []).append(value)
        return 0
    if name in grammar.long_valued:
        options.values.setdefault(name, []).append(following[0] if following else "")
        return len(following)
    options.flags.add(name)
    return 0


def _full_name(name: str, *known: Iterable[str]) -> str:
    """Return the long option that getopt_long would take an abbreviation for."""
    if len(name) < 3 or any(name in names for names in known):
        return name
    matches = {full for names in known for full in names if full.startswith(name)}
    return matches.pop() if len(matches) == 1 else name


def _short(options: Options, letters: str, following: list[str], grammar: Grammar) -> int:
    """Take a cluster of short options; returns how many of the following words were its value."""
    if grammar.single_dash and letters in grammar.long_valued:
        return _long(options, letters, following, grammar)
    for at, letter in enumerate(letters):
        rest = letters[at + 1 :]
        if letter in grammar.valued:
            value = rest or (following[0] if following else "")
            options.values.setdefault(letter, []).append(value)
            return 0 if rest else len(following)
        if letter in grammar.attached:
            options.values.setdefault(letter, []).append(rest)
            return 0
        options.flags.add(letter)
    return 0
