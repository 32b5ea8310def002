"""The program that edits files for an agent. It runs inside the sandbox, alone, with what the agent wants on its input.

It has the rights of the agent's own commands and no more, so that a link leads nowhere that they could not go. It may
import nothing but the standard library: its text is what is run.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import sys
from collections.abc import Mapping

__all__ = ["EditError", "apply_patch", "main", "replace_once", "shown_diff"]

_HUNK = re.compile(r"@@(?: -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? )?@@?")
_MOST_BYTES = 16 * 1024 * 1024
_EXIT_REFUSED = 1

_Lines = list[str]
_Hunk = tuple[int, _Lines, _Lines]


class EditError(Exception):
    """The edit does not fit; nothing was changed, and the text says why."""


def replace_once(text: str, old: str, new: str) -> str:
    """Return a text with a passage replaced that stands in it exactly once.

    Raises:
        EditError: It stands there not at all, or more than once.
    """
    found = text.count(old)
    if found != 1:
        near = _nearest(text, old) if not found else ""
        msg = f"the passage stands {found} times in the file, not once{near}"
        raise EditError(msg)
    return text.replace(old, new)


def apply_patch(diff: str, files: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return what files become by a unified diff.

    Where the line numbers of a hunk are wrong, the one place in the file that reads as the hunk says is taken.

    Args:
        diff: The diff.
        files: The files that `paths_in` names; None for one that does not exist.

    Raises:
        EditError: A hunk fits nowhere, or in more than one place.
    """
    become: dict[str, str | None] = {}
    for before, after, hunks in _parse(diff):
        path = after if before is None else before
        text = become.get(path or "", files.get(path or ""))
        if before is None:
            if text is not None:
                msg = f"{path}: the diff makes this file, and it exists"
                raise EditError(msg)
            text = ""
        elif text is None:
            msg = f"{path}: there is no such file"
            raise EditError(msg)
        changed = _changed(path or "", text, hunks)
        if after is None and changed:
            msg = f"{path}: the diff removes this file, and {len(changed)} characters of it would be left"
            raise EditError(msg)
        if before is not None and after != before:
            become[before] = None
        if after is not None:
            become[after] = changed
    return become


def shown_diff(before: Mapping[str, str | None], after: Mapping[str, str | None]) -> str:
    """Return what changes, as a unified diff."""
    parts: list[str] = []
    for path, text in after.items():
        old = before.get(path)
        names = ("/dev/null" if old is None else f"a/{path}", "/dev/null" if text is None else f"b/{path}")
        lines = ((old or "").splitlines(), (text or "").splitlines())
        parts += difflib.unified_diff(*lines, *names, lineterm="")
    return "\n".join(parts)


def main() -> int:
    """Do what the JSON on standard input says; the diff goes to standard output, a refusal to standard error."""
    try:
        wanted = json.loads(sys.stdin.buffer.read())
        root = os.path.realpath(".")
        if "diff" in wanted:
            paths = [path for before, after, _ in _parse(wanted["diff"]) for path in (before, after) if path]
            before = {path: _read(root, path) for path in paths}
            after = apply_patch(wanted["diff"], before)
        else:
            path = wanted["path"]
            before = {path: _read(root, path)}
            after = {path: _edited(path, before[path], wanted["old"], wanted["new"])}
        _write(root, before, after)
    except EditError as error:
        sys.stderr.write(f"nothing was changed: {error}\n")
        return _EXIT_REFUSED
    except OSError as error:
        sys.stderr.write(f"nothing was changed: {error.filename}: {error.strerror}\n")
        return _EXIT_REFUSED
    sys.stdout.buffer.write((shown_diff(before, after) or "no change").encode("utf-8", "replace") + b"\n")
    return 0


def _edited(path: str, text: str | None, old: str, new: str) -> str:
    if old:
        if text is None:
            msg = f"{path}: there is no such file"
            raise EditError(msg)
        return replace_once(text, old, new)
    if text:
        msg = f"{path}: the file exists and is not empty; say which passage of it to replace"
        raise EditError(msg)
    return new


def _nearest(text: str, old: str) -> str:
    wanted = next((line.strip() for line in old.splitlines() if line.strip()), "")
    lines = text.splitlines()[:2000]
    near = difflib.get_close_matches(wanted, [line.strip() for line in lines], n=1, cutoff=0.8)
    if not near:
        return ""
    place = next(number for number, line in enumerate(lines, 1) if line.strip() == near[0])
    return f"; the nearest to its first line is line {place}: {lines[place - 1][:200]!r}"


def _parse(diff: str) -> list[tuple[str | None, str | None, list[_Hunk]]]:
    """Return for each file its names before and after (None: it is made, or removed) and its hunks."""
    lines = _lines(diff)
    files: list[tuple[str | None, str | None, list[_Hunk]]] = []
    at = 0
    while at < len(lines):
        if _is_header(lines, at):
            files.append((_name(lines[at], "a/"), _name(lines[at + 1], "b/"), []))
            at += 2
        elif lines[at].startswith("@@") and files:
            hunk, at = _hunk(lines, at)
            files[-1][2].append(hunk)
        else:
            at += 1  # "diff --git", "index" and what else tools write between files
    if not any(hunks for _, _, hunks in files):
        msg = "this is no unified diff: it needs lines that begin with ---, +++ and @@"
        raise EditError(msg)
    if any(before is None and after is None for before, after, _ in files):
        msg = "the diff names /dev/null on both sides of a file"
        raise EditError(msg)
    return files


def _is_header(lines: _Lines, at: int) -> bool:
    return lines[at].startswith("--- ") and at + 1 < len(lines) and lines[at + 1].startswith("+++ ")


def _name(line: str, prefix: str) -> str | None:
    name = line[4:].rstrip("\n").partition("\t")[0].rstrip()
    return None if name == "/dev/null" else name.removeprefix(prefix)


def _hunk(lines: _Lines, at: int) -> tuple[_Hunk, int]:
    """Return the hunk that begins at a line, and the number of the line after it."""
    numbers = _HUNK.match(lines[at])
    start, had, gets = numbers.groups() if numbers else (None, None, None)
    old: _Lines = []
    new: _Lines = []
    at += 1
    while at < len(lines):
        line = lines[at]
        # What was asked to be removed may itself begin with two dashes: only a full hunk ends at a header.
        is_full = len(old) >= int(had or 1) and len(new) >= int(gets or 1)
        if line.startswith(("@@", "diff --")) or (_is_header(lines, at) and (is_full or start is None)):
            break
        mark, rest = (" ", line) if line == "\n" else (line[:1], line[1:])
        if mark == "\\":
            _drop_newline(old, new, lines[at - 1][:1])
        elif mark in " -+":
            if mark != "+":
                old.append(rest)
            if mark != "-":
                new.append(rest)
        else:
            msg = f"line {at + 1} of the diff begins with none of space, + and -: {line[:80]!r}"
            raise EditError(msg)
        at += 1
    return (int(start or 0), old, new), at


def _drop_newline(old: _Lines, new: _Lines, mark: str) -> None:
    for side, others in ((old, "+"), (new, "-")):
        if side and mark != others:
            side[-1] = side[-1].removesuffix("\n")


def _changed(path: str, text: str, hunks: list[_Hunk]) -> str:
    lines = _lines(text)
    shift = 0
    for number, (start, old, new) in enumerate(hunks, 1):
        place = _place(lines, old, start + shift, f"{path}: hunk {number}")
        lines[place : place + len(old)] = new
        shift += len(new) - len(old)
    return "".join(lines)


def _place(lines: _Lines, old: _Lines, start: int, what: str) -> int:
    if not old:  # then the number is that of the line before
        return min(start, len(lines))
    wanted = max(start - 1, 0)
    if lines[wanted : wanted + len(old)] == old:
        return wanted
    places = [at for at in range(len(lines) - len(old) + 1) if lines[at : at + len(old)] == old]
    if len(places) != 1:
        msg = f"{what} fits in {len(places)} places of the file, and not where its line number says"
        raise EditError(msg)
    return places[0]


def _lines(text: str) -> _Lines:
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _inside(root: str, path: str) -> str:
    _bytes(path, "the path")
    full = root if "\0" in path else os.path.realpath(os.path.join(root, path))
    if not path or not full.startswith(root.rstrip("/") + "/"):
        msg = f"{path!r} does not lie in the workspace"
        raise EditError(msg)
    return full


def _read(root: str, path: str) -> str | None:
    full = _inside(root, path)
    if not os.path.lexists(full):
        return None
    if not os.path.isfile(full):
        msg = f"{path}: this is no regular file"
        raise EditError(msg)
    with open(full, "rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        msg = f"{path}: the file is larger than {_MOST_BYTES} bytes"
        raise EditError(msg)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        msg = f"{path}: the file is not UTF-8 text at byte {error.start}"
        raise EditError(msg) from error


def _write(root: str, before: Mapping[str, str | None], after: Mapping[str, str | None]) -> None:
    written: list[str] = []
    for path, text in after.items():
        _bytes(text or "", path)
    try:
        for path, text in after.items():
            written.append(path)
            _put(_inside(root, path), text)
    except OSError:
        for path in written:
            with contextlib.suppress(OSError):
                _put(_inside(root, path), before.get(path))
        raise


def _put(full: str, text: str | None) -> None:
    if text is None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(full)
        return
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "wb") as file:
        file.write(_bytes(text, full))


def _bytes(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        msg = f"{what}: the text is no valid Unicode at position {error.start}"
        raise EditError(msg) from error


if __name__ == "__main__":
    sys.exit(main())
