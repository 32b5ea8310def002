"""What a rule of our own is: its name, its severity, why it exists and what it takes for an attack by mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from jupyter_agentwatch.detect.expressions import lazy_pattern
from jupyter_agentwatch.detect.model import Draft, Family
from jupyter_agentwatch.detect.unwrap import Invocation
from jupyter_agentwatch.events import AnyEvent, Severity

__all__ = ["SEVERITIES", "Check", "Hit", "Rule", "Ruleset", "by_pattern", "draft"]

SEVERITIES: tuple[Severity, ...] = ("info", "low", "medium", "high", "critical")
"""From the least to the greatest."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule of our own.

    Attributes:
        id: Stable id, "family.name".
        title: What was seen, in one line without a final stop.
        severity: What it is worth when nothing weakens it.
        technique: MITRE ATT&CK id.
        rationale: Why this matters for an agent in a sandbox.
        false_positives: What honest work it can be.
    """

    id: str
    title: str
    severity: Severity
    technique: str
    rationale: str
    false_positives: tuple[str, ...]

    @property
    def family(self) -> Family:
        """What it is a sign of: the first part of its id."""
        return self.id.partition(".")[0]  # type: ignore[return-value]


class Hit(msgspec.Struct, frozen=True):
    """A rule that holds for a command.

    Attributes:
        rule: Which.
        detail: What exactly was seen, hostile text.
        severity: Instead of the rule's own, where this case is worth more or less.
    """

    rule: Rule
    detail: str = ""
    severity: Severity | None = None


Check = Callable[[Invocation], Iterable[Hit]]
"""Looks at one program that is to run; pure."""


class Ruleset(msgspec.Struct, frozen=True):
    """What one family knows about commands.

    Attributes:
        rules: Every rule that its checks can give.
        by_name: Program name to the checks for it.
        shapes: Checks for programs of any name, asked where `shape_pattern` is found in the joined arguments.
        shape_pattern: Regular expression over arguments joined by blanks, "" for never.
        marks: Lower-case literals, one of which stands in every text that `shape_pattern` or a check for a quiet name
            can care about: looking for literals costs a tenth of looking for a pattern.
        quiet: Names in `by_name` that are too common to make a script worth reading without one of the marks.
    """

    rules: Sequence[Rule]
    by_name: Mapping[str, Sequence[Check]] = msgspec.field(default_factory=dict)
    shapes: Sequence[Check] = ()
    shape_pattern: str = ""
    marks: Sequence[str] = ()
    quiet: frozenset[str] = frozenset()


def by_pattern(table: Mapping[str, tuple[str, Rule, Severity | None]]) -> Check:
    """Return a check that finds a regular expression in a program's arguments, joined by blanks.

    Args:
        table: Program name to the expression, the rule, and the severity where it is not the rule's own.
    """
    compiled = {name: (lazy_pattern(pattern), rule, severity) for name, (pattern, rule, severity) in table.items()}

    def check(run: Invocation) -> Iterable[Hit]:
        pattern, rule, severity = compiled[run.name]
        if pattern.search(" ".join(run.argv[1:])):
            yield Hit(rule, severity=severity)

    return check


_MAX_DETAIL = 200


def draft(
    rule: Rule,
    event: AnyEvent,
    detail: str = "",
    *,
    severity: Severity | None = None,
    evidence: tuple[int, ...] = (),
) -> Draft:
    """Make the draft of a finding that `event` completes.

    Args:
        rule: The rule.
        event: The record that completed it.
        detail: What exactly was seen; cut at 200 characters.
        severity: Instead of the rule's own.
        evidence: Earlier records that it rests on; the event's own is added.
    """
    return Draft(
        rule=rule.id,
        title=f"{rule.title}: {detail[:_MAX_DETAIL]}" if detail else rule.title,
        severity=severity or rule.severity,
        family=rule.family,
        technique=rule.technique,
        rationale=f"{rule.rationale} Honest cases: {'; '.join(rule.false_positives)}.",
        evidence=(*(seq for seq in evidence if seq != event.seq), event.seq),
        step=event.step,
        pid=event.pid,
    )
