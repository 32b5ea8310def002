"""Records that were lost: what happened in a gap nobody has looked at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from jupyter_agentwatch.detect.model import Draft
from jupyter_agentwatch.events import AnyEvent, Gap

__all__ = ["RECORDS_LOST", "LossDetector"]

RECORDS_LOST: Final = "agentwatch.records_lost"
"""Rule id of the finding that records are missing."""


class LossDetector:
    """Makes a finding of each gap in the record."""

    name = "losses"
    kinds = frozenset({"gap"})

    def feed(self, event: AnyEvent) -> Iterable[Draft]:
        """Return a finding for a gap."""
        if isinstance(event, Gap):
            yield Draft(
                rule=RECORDS_LOST,
                title=f"{event.lost} records were lost: {event.reason[:200]}",
                severity="high",
                family="monitor",
                technique="T1685",
                rationale=(
                    "The calls that they were about were refused, but what else happened meanwhile is not on record. "
                    "A full disk can be an accident, and can be made."
                ),
                evidence=(event.seq,),
                step=event.step,
                pid=event.pid,
            )
