"""The one way out for text that an agent could choose.

Terminal escapes, bidirectional overrides and huge names are how a monitored program attacks the person
who reads the monitor; everything shown passes `printable`.
"""

from __future__ import annotations

import unicodedata

__all__ = ["from_bytes", "from_path", "printable"]

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def from_bytes(raw: bytes) -> str:
    """Decode bytes that the kernel handed over; bytes that are not UTF-8 become `\\xNN`, so that nothing is lost."""
    return raw.decode("utf-8", "backslashreplace")


def from_path(path: str) -> str:
    """Return text that came through `os.fsdecode` as `from_bytes` gives it: without lone surrogates."""
    return path if path.isascii() else from_bytes(path.encode("utf-8", "surrogateescape"))


def printable(text: str, limit: int = 400) -> str:
    """Return text that is safe to show: controls, bidi and invisible characters as `\\u....`, cut to `limit`.

    Args:
        text: Hostile text.
        limit: Characters kept of the original; what is cut is counted in the result.
    """
    kept = text[:limit]
    if not kept.isascii() or not kept.isprintable():
        kept = "".join(_shown(c) for c in kept)
    rest = len(text) - limit
    return f"{kept}… (+{rest} characters)" if rest > 0 else kept


def _shown(char: str) -> str:
    if unicodedata.category(char) not in _HIDDEN:
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
