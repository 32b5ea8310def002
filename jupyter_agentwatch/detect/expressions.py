"""Regular expressions that are compiled when they are first used: all at once would hold up the first command."""

from __future__ import annotations

import re
from typing import Any, Final, cast

__all__ = ["lazy_pattern"]


class _Lazy:
    """Stands for a compiled pattern: the first use of a method compiles, and keeps what was used as its own."""

    __slots__ = (
        "_compiled",
        "_flags",
        "_pattern",
        "findall",
        "finditer",
        "fullmatch",
        "match",
        "search",
        "split",
        "sub",
    )

    def __init__(self, pattern: str, flags: int) -> None:
        self._pattern = pattern
        self._flags = flags

    def __getattr__(self, name: str) -> Any:
        # Asked only for what has not been set yet.
        if name == "_compiled":
            self._compiled = re.compile(self._pattern, self._flags)
            return self._compiled
        method = getattr(self._compiled, name)
        if name in _METHODS:
            setattr(self, name, method)
        return method


_METHODS: Final = frozenset(name for name in _Lazy.__slots__ if not name.startswith("_"))


def lazy_pattern(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """Return what behaves as `re.compile(pattern, flags)`; a mistake in the pattern shows at its first use.

    Args:
        pattern: Regular expression over text.
        flags: As for `re.compile`.
    """
    return cast("re.Pattern[str]", _Lazy(pattern, flags))
