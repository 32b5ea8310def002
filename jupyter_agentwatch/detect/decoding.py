"""What echo, printf, base64 and the like would print, so that text hidden behind them can be read.

Pure and bounded: nothing is run, and what is not plainly one of these forms has no answer.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Sequence
from typing import Final

from jupyter_agentwatch.detect.expressions import lazy_pattern

__all__ = ["MAX_TEXT", "ansi_c", "braces", "decoded", "printed", "range_size"]

MAX_TEXT: Final = 1 << 14
"""Characters of a script, and of anything decoded from one, that are looked at."""

_MAX_LIST: Final = 64
_MAX_WORD: Final = 512
_MAX_SET: Final = 128
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "e": "\x1b"}
_ESCAPE: Final = lazy_pattern(
    r"\\(?:x([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{1,4})|U([0-9a-fA-F]{1,8})|([0-7]{1,4})|(.))", re.DOTALL
)
_ANSI_END: Final = lazy_pattern(r"(?:[^'\\]|\\.)*", re.DOTALL)
_RANGE: Final = lazy_pattern(r"\{(-?\d{1,9})\.\.(-?\d{1,9})(?:\.\.(-?\d{1,9}))?\}")
_LIST: Final = lazy_pattern(r"\{([^{}]*,[^{}]*)\}")
_FORMAT: Final = lazy_pattern(r"%(?:-?\d*)?([sbdc%])")

_Stage = tuple[Sequence[str], str | None]


def ansi_c(text: str, at: int) -> tuple[str, int]:
    """Decode `$'…'` from just after its opening quote; returns the value and the position after the closing one."""
    found = _ANSI_END.match(text, at)
    end = found.end() if found else at
    return _unescape(text[at:end]), end + 1


def _unescape(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        hexadecimal = match[1] or match[2] or match[3]
        if hexadecimal or match[4]:
            code = int(hexadecimal, 16) if hexadecimal else int(match[4], 8) & 0xFF
            return chr(code) if code < 0x110000 else ""
        return _ESCAPES.get(match[5], match[5] if match[5] in "\\'\"?" else "\\" + match[5])

    return _ESCAPE.sub(one, text)


def range_size(word: str) -> int:
    """Return how many words a brace range such as `{1..254}` stands for; 1 for any other word."""
    found = _RANGE.search(word)
    if found is None:
        return 1
    step = abs(int(found[3])) if found[3] else 1
    return abs(int(found[2]) - int(found[1])) // max(1, step) + 1


def braces(word: str) -> list[str]:
    """Expand `{a,b}` and short `{1..9}`; a long range stays as it is written, so that its size can be told."""
    words = [word]
    if len(word) > _MAX_WORD:
        return words
    for _ in range(4):
        expanded: list[str] = []
        for each in words:
            items, match = _alternatives(each)
            if match is None or len(items) + len(expanded) > _MAX_LIST:
                expanded.append(each)
            else:
                expanded += [each[: match.start()] + item + each[match.end() :] for item in items]
        if expanded == words:
            break
        words = expanded
    return words


def _alternatives(word: str) -> tuple[list[str], re.Match[str] | None]:
    found = _LIST.search(word)
    if found and not word[: found.start()].endswith("$"):
        return found[1].split(","), found
    found = _RANGE.search(word)
    if found and range_size(word) <= _MAX_LIST:
        first, last = int(found[1]), int(found[2])
        step = max(1, abs(int(found[3] or 1))) * (1 if last >= first else -1)
        return [str(n) for n in range(first, last + (1 if step > 0 else -1), step)], found
    return [], None


def decoded(stages: Sequence[_Stage]) -> str | None:
    """Return what a pipeline prints, where its last stages are known pure text tools; else None.

    Args:
        stages: Words of each command, and the text of its here-document or here-string if it has one.
    """
    text: str | None = None
    for words, given in stages:
        text = printed(words, text if given is None else given)
    return text


def printed(words: Sequence[str], given: str | None) -> str | None:
    """Return what one command prints, where it is a known pure text tool; else None.

    Args:
        words: The command.
        given: What it reads, None where that is not known.
    """
    if not words:
        return None
    name, args = words[0].rpartition("/")[2], list(words[1:])
    text: str | None = None
    if name in _SOURCES:  # they read nothing
        text = _SOURCES[name](args)
    elif given is not None:
        text = _filtered(name, args, given)
    return text if text is None or len(text) <= MAX_TEXT else None


def _echo(args: list[str]) -> str | None:
    escapes = False
    while args and re.fullmatch(r"-[neE]+", args[0]):
        escapes = escapes or "e" in args[0]
        args = args[1:]
    text = " ".join(args)
    return None if _is_open(text) else _unescape(text) if escapes else text


def _printf(args: list[str]) -> str | None:
    if args[:1] == ["--"]:
        args = args[1:]
    if not args or _is_open(" ".join(args)):
        return None
    pattern, values = _unescape(args[0]), args[1:]
    slots = len([kind for kind in _FORMAT.findall(pattern) if kind != "%"])
    rounds = max(1, -(-len(values) // slots)) if slots else 1
    rounds = min(rounds, MAX_TEXT // max(1, len(pattern)) + 1)
    left = iter(values)

    def one(match: re.Match[str]) -> str:
        if match[1] == "%":
            return "%"
        value = next(left, "")
        return _unescape(value) if match[1] == "b" else value[:1] if match[1] == "c" else value

    return "".join(_FORMAT.sub(one, pattern) for _ in range(rounds))


def _seq(args: list[str]) -> str | None:
    numbers = [arg for arg in args if re.fullmatch(r"-?\d{1,9}", arg)]
    if len(numbers) != len(args) or not 1 <= len(args) <= 3:
        return None
    first, step, last = ("1", "1", numbers[0]) if len(args) == 1 else (numbers[0], numbers[1], numbers[-1])
    text = f"{{{first}..{last}}}" if len(args) < 3 else f"{{{first}..{last}..{step}}}"
    return " ".join(braces(text))


def _is_open(text: str) -> bool:
    return "$(" in text or "${" in text


_SOURCES: Final = {"echo": _echo, "printf": _printf, "seq": _seq}


def _filtered(name: str, args: list[str], given: str) -> str | None:
    joined = " ".join(args)
    if name == "base64" or (name == "openssl" and "base64" in joined):
        return _base64(given) if re.search(r"(?:^|\s)(?:-\w*[dD]\w*|--d\w*)\b", joined) else None
    if name == "base32":
        return _text(lambda: base64.b32decode("".join(given.split()))) if re.search(r"-d|--d", joined) else None
    if name == "xxd":
        return _text(lambda: bytes.fromhex("".join(given.split()))) if re.search(r"-\w*r|-revert", joined) else None
    if name == "rev":
        return "\n".join(line[::-1] for line in given.split("\n"))
    if name == "tr":
        return _tr(args, given)
    if name in ("gunzip", "zcat") or (name == "gzip" and "d" in joined):
        return _text(lambda: _inflate(given))
    return given if name in ("cat", "tee") and all(arg.startswith("-") for arg in args) else None


def _text(decode: object) -> str | None:
    try:
        data: bytes = decode()  # type: ignore[operator]
    except (ValueError, binascii.Error, zlib.error):
        return None
    return data.decode("latin-1")


def _base64(given: str) -> str | None:
    kept = re.sub(r"[^A-Za-z0-9+/]", "", given)
    return _text(lambda: base64.b64decode(kept + "=" * (-len(kept) % 4)))


def _inflate(given: str) -> bytes:
    # `given` holds one character for each byte that an earlier stage decoded. The limit stops a decompression bomb.
    return zlib.decompressobj(wbits=47).decompress(given.encode("latin-1", "replace"), MAX_TEXT)


def _tr(args: list[str], given: str) -> str | None:
    plain = [arg for arg in args if not arg.startswith("-")]
    if args[:1] == ["-d"] and len(plain) == 1:
        dropped = frozenset(_set(plain[0]))
        return "".join(char for char in given if char not in dropped)
    if len(plain) != 2 or len(plain) != len(args):
        return None
    source, target = _set(plain[0]), _set(plain[1])
    target += target[-1:] * (len(source) - len(target))
    return given.translate({ord(a): b for a, b in reversed(list(zip(source, target, strict=False)))})


def _set(text: str) -> str:
    def span(match: re.Match[str]) -> str:
        return "".join(chr(n) for n in range(ord(match[1]), min(ord(match[2]), ord(match[1]) + 255) + 1))

    return re.sub(r"(.)-(.)", span, _unescape(text[:_MAX_SET]), flags=re.DOTALL)
