"""Whether a command is worth reading, told from its text as it is written: most shell text says nothing to any rule.

The answer may be "yes" too often, never "no" where a check could find something that stands in the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from jupyter_agentwatch.detect.decoding import MAX_TEXT
from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.listed import listed
from jupyter_agentwatch.detect.rule import Ruleset
from jupyter_agentwatch.detect.shapes import Shape, Shapes
from jupyter_agentwatch.detect.unwrap import SHELLS, program_name
from jupyter_agentwatch.detect.wrappers import CODE_FLAGS, REARRANGING, WRAPPERS

__all__ = ["READERS", "TEXT_TOOLS", "Interest", "Look"]

READERS: Final = SHELLS | WRAPPERS | frozenset(CODE_FLAGS) | {"eval", "source", "."}
"""Programs whose arguments hold other programs."""

TEXT_TOOLS: Final = frozenset(
    listed(
        "grep egrep fgrep zgrep rg ag ack sed echo printf cat less more head tail man info apropos whatis tldr which "
        "whereis "
        "type test [ [[ git jq yq vim vi nano emacs diff sort uniq wc ls stat file touch mkdir rm cp mv ln tee cut "
        "tr expr "
        "apt apt-get dnf yum apk brew snap pip pip3 dpkg rpm gcc cc g++ c++ clang cargo rustc make cmake pytest"
    )
)
"""Programs whose arguments are text to look for, to write or to fetch, not something that they do."""

# What a dash stands before is an option, or the rest of a longer name.
_PIECE: Final = lazy_pattern(r"-?[a-z0-9_+]+")
# Text whose command names cannot be seen before it is expanded. One expression for each literal that has to be there:
# looking for literals costs a tenth of looking for an expression.
_HIDING: Final = (
    ("base", lazy_pattern(r"base(?:64|32)\s+(?:-\w*[dDi]|--d)|-base64")),
    ("b64decode", lazy_pattern(r"b64decode")),
    ("xxd", lazy_pattern(r"\bxxd\s+-\w*r")),
    ("eval", lazy_pattern(r"\beval[\s(]")),
    ("\\x", lazy_pattern(r"\\x[0-9a-fA-F]{2}")),
    ("{", lazy_pattern(r"\{[\w./]+,[-\w./:,]+\}(?:\s*$|;)")),
    ("`", lazy_pattern(r"`\s*(?:echo|printf|rev)\b")),
    ("$(", lazy_pattern(r"\$\(\s*(?:echo|printf|rev)\b")),
    (
        "$",
        lazy_pattern(
            r"\$'|\$\{?IFS|\$\{?\w{1,64}(?::\d[^}$]{0,64})?\}?\$|(?:^|[;&|(]\s*|\$ )\$\{?[a-zA-Z]",
        ),
    ),
)
_INTO_SHELL: Final = lazy_pattern(r"\|\s{0,16}(?:[^\s|]{0,64}/)?(?:ba|da|z)?sh\b")
_SAYS: Final = lazy_pattern(r"\brev\b|\btr\b|zcat|gunzip|\bprintf\b|\becho\b")

# What makes words of a program that stand nowhere in the text: expansions, escapes, and redirections to a quoted name,
# which cannot be told from what follows once quotation marks are off.
_EXPANDS: Final = lazy_pattern(
    r"[$`\\]|\{(?:[^\s{},.]|\.(?!\.))*+(?:,|\.\.)|\}[<>]|(?:>|(?<!<)<(?!<))[&|]?[ \t]*[^\s;&|<>'\"]*['\"]"
)
_DECODERS: Final = frozenset(listed("rev tr base64 base32 xxd printf gunzip zcat gzip openssl"))
# What puts words of a program together that do not stand side by side.
_JOINS: Final = lazy_pattern(r"<<|[\[(]\s*[rbuf]?['\"]")
# Where a script or a module is named, that is what runs.
_PYTHONS: Final = frozenset({"python", "pypy"})
_ASKED_PYTHON: Final = lazy_pattern(r"(?:python|pypy)[\w.]*+(?!\s+(?:-m\s|[a-z_./~]))")
_FEW: Final = 2
"""Rulesets of which honest text has marks by chance; where there are more, a closer look would be for nothing."""

_SHORT: Final = 512
"""Characters of a text for which expressions are tried on the whole of it: some take the square of its length."""

_DOT: Final = lazy_pattern(r"[\s;&|(]\.\s")
_OPERATOR: Final = lazy_pattern(r"[;&|()]")
_BLANK_TARGET: Final = lazy_pattern(r"([<>][&|]?) ")
_REDIRECTION: Final = lazy_pattern(r"(?: [0-9]{1,4})?(?:&>>?|>>|>\||>&|<&|<>|>|<) ?[^\s;&|<>]+")


class Look(NamedTuple):
    """How a command is to be looked at.

    Attributes:
        shapes: Shapes that what it would start can have.
        inside: Whether its text is to be read; otherwise only the program itself is looked at.
    """

    shapes: Sequence[Shape]
    inside: bool = True


class Interest:
    """Which commands the families want to see.

    Args:
        rulesets: What the families know.

    Attributes:
        shapes: The shapes of all.
    """

    def __init__(self, rulesets: Sequence[Ruleset]) -> None:
        self.shapes = Shapes(rulesets)
        self._names: frozenset[str] = frozenset().union(*(each.by_name for each in rulesets))
        loud = frozenset[str]().union(*(each.by_name.keys() - each.quiet for each in rulesets))
        self._loud = frozenset(map(_piece, loud))
        self._quiet = tuple(frozenset(map(_piece, each.quiet)) for each in rulesets)
        self._heads = frozenset().union(*(each.by_name.keys() & SHELLS for each in rulesets))

    def of(self, program: str, argv: Sequence[str]) -> Look | None:
        """Return how a command is to be looked at, or None where nothing at all can be found in it.

        Args:
            program: What is run.
            argv: Its arguments, hostile, at least its own name.
        """
        name = program_name(program)
        # What a program is called by its own name says nothing: /bin/bash would be a mark of every command.
        text = " ".join(argv[1:] if argv[0] in (name, f"/bin/{name}", f"/usr/bin/{name}") else argv)[:MAX_TEXT]
        plain = text.replace("'", "").replace('"', "").replace("\\", "").lower()
        shapes = self.shapes.marked(plain) if plain else ()
        if name not in READERS:
            if name in self._names:
                return Look(shapes)
            return Look(shapes) if shapes and name not in TEXT_TOOLS else None
        if _may_hide(text):
            return Look(self.shapes.all)
        if not shapes:
            return None if self._loud.isdisjoint(_PIECE.findall(plain)) else Look(shapes)
        # Marks are in more text than what they stand for.
        if name not in SHELLS or len(shapes) > _FEW or len(text) > _SHORT or not text.isascii():
            return Look(shapes)
        if _EXPANDS.search(text):
            return Look(shapes)
        pieces = _PIECE.findall(plain)
        if self._names_asker(plain, pieces, shapes) or _can_have(text, plain, pieces, shapes):
            return Look(shapes)
        return Look((), inside=False) if name in self._heads else None

    def _names_asker(self, plain: str, pieces: Sequence[str], marked: Sequence[Shape]) -> bool:
        """Whether a text may name a program that is asked about only beside a mark of its ruleset."""
        if not self._loud.isdisjoint(pieces):
            return True
        # Versions and platforms are no part of a program's name.
        bare = [
            piece.partition("_")[0].rstrip("0123456789")
            for piece in pieces
            if piece[-1] in "0123456789" or "_" in piece
        ]
        if not self._loud.isdisjoint(bare):
            return True
        for each in marked:
            quiet = self._quiet[each.place]
            found = quiet.intersection(pieces).union(quiet.intersection(filter(None, bare)))
            if found and (not found <= _PYTHONS or _ASKED_PYTHON.search(plain)):
                return True
            if "" in quiet and _DOT.search(plain):  # the piece of ".", which has no letter
                return True
        return False


def _can_have(text: str, plain: str, pieces: Sequence[str], marked: Sequence[Shape]) -> bool:
    """Whether a program in a text can have one of some shapes."""
    if "|" in text and not _DECODERS.isdisjoint(pieces):
        return True
    if not REARRANGING.isdisjoint(pieces) or _JOINS.search(text):
        return any(shape.is_named_in(plain) for shape in marked)
    flat = " ".join(plain.split())
    whole = f"{text.lower()}\n{flat}\n{_OPERATOR.sub(' ', flat)} "
    if "<" in flat or ">" in flat:
        # A program's redirections are looked at after its words, wherever they stand.
        words = _OPERATOR.sub(" ", _REDIRECTION.sub(" ", flat)).split()
        targets = _BLANK_TARGET.sub(r"\1", flat)
        whole = f"{whole}\n{' '.join(words)} \n{targets} "
    return any(shape.may_fit_in(whole) for shape in marked)


def _piece(name: str) -> str:
    """Return the longest piece of a program's name that is looked for in texts."""
    pieces: list[str] = _PIECE.findall(name)
    return max(pieces, key=len, default="")


def _may_hide(text: str) -> bool:
    for literal, pattern in _HIDING:  # a generator would take three times as long, and this runs for every exec
        if literal in text and pattern.search(text):
            return True
    if "|" not in text or not _INTO_SHELL.search(text):
        return False
    said = _SAYS.search(text)
    return said is not None and _INTO_SHELL.search(text, said.end()) is not None
