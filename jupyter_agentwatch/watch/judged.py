"""The part of `Watch` that is about findings: as a table, put together as incidents, and which rules do not run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from jupyter_agentwatch.audit.reader import read_events
from jupyter_agentwatch.detect.sigma_form import Problem
from jupyter_agentwatch.events import Finding, Severity
from jupyter_agentwatch.watch.exports import ExportForm, export_lines
from jupyter_agentwatch.watch.incidents import Incident, find_incidents
from jupyter_agentwatch.watch.report import Report, make_report
from jupyter_agentwatch.watch.rules import CompiledFiles, problem_notes
from jupyter_agentwatch.watch.table import event_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["WatchFindings"]


class WatchFindings:
    """What `Watch` inherits. It needs the path of the log, and the rules that the watch began with."""

    _rules: CompiledFiles

    @property
    def log(self) -> Path:
        """Path of the audit log."""
        raise NotImplementedError

    @property
    def rule_problems(self) -> tuple[Problem, ...]:
        """Each Sigma rule of the policy that does not run, with file, line and reason."""
        return self._rules.problems

    def findings(self, at_least: Severity = "info") -> pd.DataFrame:
        """Return what the detectors have found, as a table; also after the watch has ended.

        Args:
            at_least: Only findings of this severity or above.

        Raises:
            LogError: The log cannot be read.
            ValueError: There is no such severity.
        """
        known = get_args(Severity)
        if at_least not in known:
            msg = f"at_least: {at_least!r} is no severity; known: {', '.join(known)}"
            raise ValueError(msg)
        wanted = known[known.index(at_least) :]
        found = read_events(self.log, kinds={"finding"})
        return event_table((each for each in found if isinstance(each, Finding) and each.severity in wanted), "finding")

    def incidents(self) -> list[Incident]:
        """Return each incident as one object: what, when, by which cell and process, what was prevented, what it cost.

        Raises:
            LogError: The log cannot be read.
        """
        return find_incidents(self.log)

    def report(self, path: str | os.PathLike[str] | None = None) -> Report:
        """Return this run as one document, with plots, incidents, steps and the head of its record.

        In a notebook it shows itself; as HTML it is one file that needs nothing else, and runs nothing.

        Args:
            path: Also write it there: HTML where the name ends in .html or .htm, else Markdown, which has no plots.

        Raises:
            LogError: The log cannot be read.
            OSError: The file cannot be written.

        Example:
            >>> watch.report("run.html")  # doctest: +SKIP
        """
        report = make_report(self.log)
        if path is not None:
            report.save(path)
        return report

    def export(self, form: ExportForm) -> Iterator[bytes]:
        """Yield this run's records as lines of another system's JSON.

        Args:
            form: "ocsf", one event of the Open Cybersecurity Schema Framework in each line; "otel", lines of
                OpenTelemetry's OTLP with up to 512 records each.

        Raises:
            LogError: The log cannot be read.
            ValueError: There is no such form.

        Example:
            >>> pathlib.Path("run.ocsf.jsonl").write_bytes(b"".join(watch.export("ocsf")))  # doctest: +SKIP
        """
        return export_lines(self.log, form)

    def _rule_notes(self) -> list[str]:
        return problem_notes(self._rules.problems)
