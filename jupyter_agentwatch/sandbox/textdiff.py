"""Unified diffs of texts that an agent wrote, in bounded time.

The standard library's matcher is cubic on texts made for it; this one gives up after a fixed number of steps and then
shows the differing part as replaced, which is still a valid diff.
"""

from __future__ import annotations

import difflib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import Match

__all__ = ["DiffBudget", "unified_diff"]

_CONTEXT = 3
_STEPS_EACH = 500_000  # about a quarter of a second; up to some 1,000 changed lines are told apart


@dataclass(slots=True)
class DiffBudget:
    """What one answer may cost, over all its files.

    Attributes:
        steps: Inner steps of the search (10 million are about 5 s of one core).
        characters: Text of all diffs together.
    """

    steps: int = 10_000_000
    characters: int = 4 << 20


def unified_diff(before: str, after: str, names: tuple[str, str], budget: DiffBudget) -> str:
    """Return the unified diff of two texts, "" where they are equal or the budget has no room for it.

    Lines end at a line feed only. Source of the search: E. W. Myers, "An O(ND) Difference Algorithm and Its
    Variations", 1986.

    Args:
        before: Old text.
        after: New text.
        names: What the two header lines call them; must not contain line feeds.
        budget: Is charged.
    """
    old, new = _lines(before), _lines(after)
    out = [f"--- {names[0]}\n", f"+++ {names[1]}\n"]
    for group in _Matcher(old, new, budget).get_grouped_opcodes(_CONTEXT):
        first, last = group[0], group[-1]
        out.append(f"@@ -{_range(first[1], last[2])} +{_range(first[3], last[4])} @@\n")
        for tag, i1, i2, j1, j2 in group:
            if tag == "equal":
                out += _marked(" ", old[i1:i2])
            else:
                out += _marked("-", old[i1:i2])
                out += _marked("+", new[j1:j2])
    text = "".join(out) if len(out) > 2 else ""
    if len(text) > budget.characters:
        return ""
    budget.characters -= len(text)
    return text


class _Matcher(difflib.SequenceMatcher[str]):
    """The standard library's grouping into hunks over our own search."""

    def __init__(self, old: list[str], new: list[str], budget: DiffBudget) -> None:
        super().__init__(None, old, new, autojunk=True)
        self._matches = _matches(old, new, budget)

    def get_matching_blocks(self) -> list[Match]:
        """Return what both texts have in common, in order."""
        return self._matches


def _matches(old: list[str], new: list[str], budget: DiffBudget) -> list[Match]:
    shorter = min(len(old), len(new))
    head = next((i for i in range(shorter) if old[i] != new[i]), shorter)
    rest = shorter - head
    tail = next((i for i in range(rest) if old[-1 - i] != new[-1 - i]), rest)
    ids: dict[str, int] = {}
    a, b = ([ids.setdefault(line, len(ids)) for line in side[head : len(side) - tail]] for side in (old, new))
    found = [Match(0, 0, head)] if head else []
    found += [Match(head + i, head + j, size) for i, j, size in _search(a, b, budget)]
    if tail:
        found.append(Match(len(old) - tail, len(new) - tail, tail))
    return [*found, Match(len(old), len(new), 0)]


def _search(a: Sequence[int], b: Sequence[int], budget: DiffBudget) -> list[tuple[int, int, int]]:
    """Return the common runs of a shortest edit script, or none where finding it would take too long."""
    n, m = len(a), len(b)
    allowed = min(_STEPS_EACH, budget.steps)
    reach = array("i", [0]) * (2 * min(n + m, allowed) + 3)
    trace: list[array[int]] = []
    middle, steps = len(reach) // 2, 0
    for d in range(n + m + 1):
        trace.append(reach[middle - d : middle + d + 1])
        for k in range(-d, d + 1, 2):
            down = k == -d or (k != d and reach[middle + k - 1] < reach[middle + k + 1])
            x = start = reach[middle + k + 1] if down else reach[middle + k - 1] + 1
            while x < n and x - k < m and a[x] == b[x - k]:
                x += 1
            reach[middle + k] = x
            steps += 1 + x - start
            if x >= n and x - k >= m:
                budget.steps -= steps
                return list(_backtrack(trace, n, m))[::-1]
        if steps > allowed:
            break
    budget.steps -= steps
    return []


def _backtrack(trace: list[array[int]], x: int, y: int) -> Iterator[tuple[int, int, int]]:
    for d in range(len(trace) - 1, 0, -1):
        row, k = trace[d], x - y
        down = k == -d or (k != d and row[k - 1 + d] < row[k + 1 + d])
        px = row[k + 1 + d] if down else row[k - 1 + d]
        py = px - (k + 1 if down else k - 1)
        start = px if down else px + 1
        if x > start:
            yield start, py + 1 if down else py, x - start
        x, y = px, py
    if x:
        yield 0, 0, x


def _lines(text: str) -> list[str]:
    pieces = text.split("\n")
    last = pieces.pop()
    return [piece + "\n" for piece in pieces] + ([last] if last else [])


def _marked(mark: str, lines: list[str]) -> Iterator[str]:
    for line in lines:
        yield f"{mark}{line}" if line.endswith("\n") else f"{mark}{line}\n\\ No newline at end of file\n"


def _range(start: int, stop: int) -> str:
    size = stop - start
    if size == 1:
        return f"{start + 1}"
    return f"{start + 1 if size else start},{size}"
