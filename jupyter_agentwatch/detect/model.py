"""What every detector gives and takes: drafts of findings, and the protocol between detectors and the engine.

A draft knows no clock, no id and no position in the log; whoever records it gives it those.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, Protocol, runtime_checkable

import msgspec

from jupyter_agentwatch.detect.slowness import Meter
from jupyter_agentwatch.events import AnyEvent, Severity

__all__ = ["NOTHING_DECLARED", "RULE_FAILED", "Declared", "Detector", "Divisible", "Draft", "Family"]

RULE_FAILED: Final = "agentwatch.rule_failed"
"""Rule id of the finding that one rule is out of service."""

Family = Literal[
    "mining",
    "tunnel",
    "shell",
    "probing",
    "exfiltration",
    "diversion",
    "tampering",
    "payment",
    "policy",
    "monitor",
]
"""What a finding is a sign of. Two families are independent witnesses to the breaker, two rules of one are not.

`policy` is whatever a laboratory's own rule forbids without naming a technique that we know; `monitor` is the state of
the monitor itself (a detector that failed, records that were lost).
"""


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A finding before it is recorded. Everything that an agent could have chosen in it is hostile text.

    Attributes:
        rule: Stable id, as "mining.stratum_login" or a Sigma rule's UUID.
        title: One line that says what was seen.
        severity: "critical" alone means that the sign is unambiguous.
        family: What it is a sign of.
        technique: MITRE ATT&CK id, as "T1496", or "".
        rationale: Why it matters and what else it could be, for the person who has to decide.
        evidence: `seq` of the records that it rests on, in order.
        step: Step of the record that completed it.
        pid: Process of that record, as the host sees it.
    """

    rule: str
    title: str
    severity: Severity
    family: Family
    technique: str = ""
    rationale: str = ""
    evidence: tuple[int, ...] = ()
    step: int = 0
    pid: int = 0


class Declared(msgspec.Struct, frozen=True):
    """Rules of the policy, by the labels that records of their decisions bear ("network.rules[0]").

    Attributes:
        hosts: Those that name one host or one address and its ports: a person meant exactly this place.
        ssh: Those that name ssh as the protocol.
    """

    hosts: frozenset[str] = frozenset()
    ssh: frozenset[str] = frozenset()


NOTHING_DECLARED: Final = Declared()
"""A policy that names nothing, or one that is not known."""


class Detector(Protocol):
    """One way of looking at the record. Its state is its own; its only clock is the events' `t_mono_ns`.

    `feed` is given events in the order of their `seq`, must not keep or change them in a way that another detector
    could see, and bounds what it remembers: the agent decides how many distinct names, hosts and processes there are.
    """

    @property
    def name(self) -> str:
        """Stable name, used when the detector itself fails."""

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of events that it wants, as in the log: "exec", "connect" …; others are never passed to it."""

    def feed(self, event: AnyEvent) -> Iterable[Draft]:
        """Take one event into account.

        Args:
            event: The next event of a kind that is wanted.

        Returns:
            Drafts of the findings that this event completes; usually none.
        """


@runtime_checkable
class Divisible(Protocol):
    """A detector of many parts, of which one can be put out of service."""

    def narrow(self, event: AnyEvent, meter: Meter) -> Iterable[Draft]:
        """Find out which part is slow, after the detector has taken too long for an event.

        Args:
            event: The event, which `feed` has just been given.
            meter: How slowness is measured.

        Returns:
            A draft of the finding that a part is out of service; nothing where no part was, or not often enough.
        """

    def restore(self) -> None:
        """Take every part into service again: a person has seen why one was out of it."""
