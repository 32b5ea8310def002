"""The part of `Watch` that is about findings: as a table, put together as incidents, and which rules do not run."""

from __future__ import annotations

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

    def report(self) -> Report:
        """Return this run as one document: in a notebook it shows itself, `save` writes it as HTML or Markdown.

        Raises:
            LogError: The log cannot be read.

        Example:
            >>> watch.report().save("run.html")  # doctest: +SKIP
        """
        return make_report(self.log)

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
