"""Shell text that programs are told to run by an option, a variable or their input: `git -c core.sshCommand=…`.

It knows where such text stands, and judges nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Final

from jupyter_agentwatch.detect.argv import Grammar, parse
from jupyter_agentwatch.detect.expressions import lazy_pattern

__all__ = ["carried"]

_MOST: Final = 16
_VARIABLES: Final = frozenset(
    {
        "GIT_SSH_COMMAND",
        "GIT_PAGER",
        "GIT_EDITOR",
        "PROMPT_COMMAND",
        "PAGER",
        "EDITOR",
        "VISUAL",
        "RSYNC_RSH",
        "BROWSER",
    }
)
_GIT_KEYS: Final = lazy_pattern(r"core\.(?:sshcommand|pager|editor|fsmonitor)|(?:diff|merge)tool\..*\.cmd|alias\..*")
_SSH_COMMAND: Final = lazy_pattern(r"(?i:proxycommand|localcommand|knownhostscommand)\s*[=\s]\s*(.+)", re.DOTALL)
_RECIPE: Final = lazy_pattern(r"^\t[@+-]*(.+)|^[^\t#\n:=]+:[^=\n;]*;(.+)", re.MULTILINE)
_SPAWN: Final = lazy_pattern(r"(?:^|[;{\n\[])\s{0,16}(?:spawn|exec)\s+([^;}\n\]]{1,512})")
_BACKQUOTED: Final = lazy_pattern(r"`([^`]{1,512})`|%x[({\[]([^)}\]]{1,512})|\bqw[({\[/]([^)}\]/]{1,512})")

Texts = Iterable[str]


def carried(name: str, argv: Sequence[str], assigned: Mapping[str, str], stdin: str, code: str) -> Iterator[str]:
    """Yield the shell texts that a program would run beside its own work, a bounded number of them.

    Args:
        name: The program, as `unwrap.program_name` gives it.
        argv: Its arguments, its own name first.
        assigned: Variables set for it.
        stdin: What it would read, where that is known.
        code: The program text that it got, if it is an interpreter.
    """
    yield from (
        value for variable, value in assigned.items() if value and (variable in _VARIABLES or "/dev/tcp/" in value)
    )
    by_name = _CARRIERS.get(name)
    if by_name is not None:
        yield from islice(filter(None, by_name(argv, stdin, code)), _MOST)


def _values(*options: str) -> Callable[[Sequence[str], str, str], Texts]:
    """Return a carrier whose options are followed by the text: as the next word, attached, or after `=`."""

    def texts(argv: Sequence[str], _stdin: str, _code: str) -> Texts:
        for at, word in enumerate(argv[1:], 1):
            for option in options:
                if word == option:
                    yield from argv[at + 1 : at + 2]
                elif word.startswith(f"{option}=" if option.startswith("--") else option):
                    yield word[len(option) :].removeprefix("=")

    return texts


def _git(argv: Sequence[str], _stdin: str, _code: str) -> Texts:
    for before, word in pairwise(argv):
        key, _, value = word.partition("=")
        is_own = not key.lower().startswith("alias.") or value.startswith("!")
        if before == "-c" and is_own and _GIT_KEYS.fullmatch(key.lower()):
            yield value.removeprefix("!")


def _ssh(argv: Sequence[str], _stdin: str, _code: str) -> Texts:
    for option in _values("-o")(argv, "", ""):
        found = _SSH_COMMAND.match(option)
        if found:
            yield found[1]


def _editor(argv: Sequence[str], _stdin: str, _code: str) -> Texts:
    for word in argv[1:]:
        text = word.removeprefix("-c").removeprefix("+").removeprefix(":")
        if text.startswith("!"):
            yield text[1:]


def _words_after(*marks: str) -> Callable[[Sequence[str], str, str], Texts]:
    """Return a carrier whose words that begin so are commands of its own that run a shell."""

    def texts(argv: Sequence[str], stdin: str, _code: str) -> Texts:
        for word in (*argv[1:], *stdin.splitlines()[:64]):
            for mark in marks:
                if word.startswith(mark):
                    yield word[len(mark) :]

    return texts


def _make(argv: Sequence[str], stdin: str, _code: str) -> Texts:
    if any(word in ("-f-", "--file=-") for word in argv) or ("-f", "-") in pairwise(argv):
        for match in islice(_RECIPE.finditer(stdin), _MOST):
            yield match[1] or match[2]
    for text in _values("--eval", "-E")(argv, "", ""):
        for match in islice(_RECIPE.finditer(text), _MOST):
            yield match[1] or match[2]


def _spawning(_argv: Sequence[str], stdin: str, code: str) -> Texts:
    for match in islice(_SPAWN.finditer(code or stdin), _MOST):
        yield match[1]


def _backquoted(_argv: Sequence[str], stdin: str, code: str) -> Texts:
    for match in islice(_BACKQUOTED.finditer(code or stdin), _MOST):
        yield match[1] or match[2] or match[3]


def _operands(argv: Sequence[str], _stdin: str, _code: str) -> Texts:
    grammar = Grammar(valued="wmMrpncuLS", long_valued=frozenset({"warmup", "runs", "prepare", "export-json"}))
    return parse(argv, grammar).operands


def _alias(argv: Sequence[str], _stdin: str, _code: str) -> Texts:
    return [word.partition("=")[2] for word in argv[1:]]


def _tar(argv: Sequence[str], _stdin: str, _code: str) -> Texts:
    for text in _values("--checkpoint-action", "--to-command", "--use-compress-program", "--rsh-command")(argv, "", ""):
        yield text.removeprefix("exec=")


_CARRIERS: Final[Mapping[str, Callable[[Sequence[str], str, str], Texts]]] = {
    "git": _git,
    "tar": _tar,
    "rsync": _values("-e", "--rsh"),
    "ssh": _ssh,
    "scp": _ssh,
    "sftp": _ssh,
    "mosh": _values("--ssh"),
    "vim": _editor,
    "vi": _editor,
    "nvim": _editor,
    "ex": _editor,
    "ed": _words_after("!"),
    "gdb": _words_after("shell ", "!"),
    "sqlite3": _words_after(".shell ", ".system "),
    "make": _make,
    "gmake": _make,
    "expect": _spawning,
    "tclsh": _spawning,
    "ruby": _backquoted,
    "perl": _backquoted,
    "php": _backquoted,
    "julia": _backquoted,
    "hyperfine": _operands,
    "alias": _alias,
    "sg": _values("-c"),
    "runuser": _values("-c", "--command"),
    "capsh": _values("-c"),
}
