"""Long lists of names as text: a name for each program would fill pages with quotation marks."""

from __future__ import annotations

__all__ = ["listed"]


def listed(text: str, separator: str | None = None) -> tuple[str, ...]:
    """Return the words of a text, in order.

    Args:
        text: Names with blanks between them.
        separator: What stands between them instead.
    """
    return tuple(text.split(separator))
