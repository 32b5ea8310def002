"""Hostile bytes made safe to show while they arrive: what a sandboxed program prints may attack who reads it.

Must not change bytes that no person reads directly: pipes and files get the output as it came.
"""

from __future__ import annotations

import codecs
import re

from jupyter_agentwatch.events import printable

__all__ = ["RESET", "SafeText", "safe_text"]

RESET = "\x1b[0m"
"""Ends every colour."""

_KEPT = re.compile(r"([\n\t\r]|\x1b\[[0-9;:]{0,32}m)")
_UNFINISHED = re.compile(r"\x1b(?:\[[0-9;:]{0,32})?\Z")


class SafeText:
    """Decodes one stream of bytes, in pieces of any size, into text that is safe on a terminal or in a cell.

    Newlines, tabs, carriage returns and SGR colours pass; every other control, bidirectional or invisible
    character becomes visible as `\\x..` or `\\u....`; bytes that are not UTF-8 become U+FFFD.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._coloured = False

    def feed(self, data: bytes) -> str:
        """Return what of `data` can be shown now; a character or colour cut in two waits for the next piece."""
        text = self._held + self._decoder.decode(data)
        unfinished = _UNFINISHED.search(text)
        self._held = unfinished.group() if unfinished else ""
        return self._shown(text.removesuffix(self._held))

    def finish(self) -> str:
        """Return what was held back, and end a colour that the program left on."""
        text = self._held + self._decoder.decode(b"", final=True)
        self._held = ""
        rest = self._shown(text)
        return rest + RESET if self._coloured else rest

    def _shown(self, text: str) -> str:
        parts = _KEPT.split(text)
        parts[::2] = [printable(part, len(part)) for part in parts[::2]]
        self._coloured = self._coloured or any(part[0] == "\x1b" for part in parts[1::2])
        return "".join(parts)


def safe_text(text: str) -> str:
    """Return text of several lines (a diff, an error) with everything but newlines and tabs made visible."""
    return "\n".join("\t".join(printable(part, len(part)) for part in line.split("\t")) for line in text.split("\n"))
