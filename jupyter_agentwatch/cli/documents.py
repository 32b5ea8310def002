"""`report` and `export`: a log made into a document for people, or into another system's records."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jupyter_agentwatch.cli.logs import find_log
from jupyter_agentwatch.cli.output import ByteSink, remark, say
from jupyter_agentwatch.events import from_path, printable

__all__ = ["export", "report"]


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


def export(options: argparse.Namespace) -> int:
    """Write a log's records in another system's form, to a file or to standard output; 0."""
    from jupyter_agentwatch.watch.exports import export_lines, write_whole

    lines = export_lines(find_log(options.log), options.format)
    if options.output is None:
        sink = ByteSink(sys.stdout.buffer)
        for line in lines:
            sink.write(line)
        sink.finish()
        return 0
    target = write_whole(Path(options.output), lines)
    remark(f"written: {printable(from_path(str(target)), 4096)}")
    return 0
