"""`report`: a log made into a document for people; the log itself is never written."""

from __future__ import annotations

import argparse
from pathlib import Path

from jupyter_agentwatch.cli.logs import find_log
from jupyter_agentwatch.cli.output import remark, say
from jupyter_agentwatch.events import from_path, printable

__all__ = ["report"]


def report(options: argparse.Namespace) -> int:
    """Write a run as one document, to a file or to standard output; 0."""
    from jupyter_agentwatch.watch.report import make_report

    made = make_report(find_log(options.log))
    if options.output is None:
        say((made.html if options.format == "html" else made.markdown).rstrip("\n"))
        return 0
    saved = made.save(Path(options.output), form=options.format)
    remark(f"written: {printable(from_path(str(saved)), 4096)}")
    return 0
