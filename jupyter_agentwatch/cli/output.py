"""Where the command line writes: text on standard output, remarks on standard error, other people's bytes as they are.

A terminal is read by a person, so what the sandbox wrote is made safe there; a pipe gets every byte unchanged.
"""

from __future__ import annotations

import sys
from typing import IO

import msgspec

from jupyter_agentwatch.cli.terminal import SafeText

__all__ = ["ByteSink", "remark", "say", "say_json"]


def say(text: str) -> None:
    """Write a line of our own to standard output, at once: whoever follows a log wants it now."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say_json(document: object) -> None:
    """Write a document to standard output as one line of JSON, which leaves C1 controls and bidi as they are.

    Args:
        document: What msgspec can encode, hostile text in it.
    """
    sys.stdout.flush()
    sink = ByteSink(sys.stdout.buffer)
    sink.write(msgspec.json.encode(document) + b"\n")
    sink.finish()


def remark(text: str) -> None:
    """Write a line to standard error, marked as ours: a command's own errors go there as well."""
    sys.stderr.write(f"agentwatch: {text}\n")
    sys.stderr.flush()


class ByteSink:
    """Passes hostile bytes to a stream of ours, unbuffered: made safe on a terminal, untouched elsewhere."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._safe = SafeText() if stream.isatty() else None

    def write(self, data: bytes) -> None:
        """Write a piece.

        Raises:
            BrokenPipeError: Nobody reads any more.
        """
        self._put(self._safe.feed(data).encode() if self._safe else data)

    def finish(self) -> None:
        """Write what was held back because it could have been half a character."""
        if self._safe:
            self._put(self._safe.finish().encode())

    def _put(self, data: bytes) -> None:
        self._stream.write(data)
        self._stream.flush()
