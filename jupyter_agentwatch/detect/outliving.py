"""Diversion as the record shows it: GPUs used without a lease, processes that work on after their step has ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from jupyter_agentwatch.detect.bounded import Recent, Said
from jupyter_agentwatch.detect.model import Draft
from jupyter_agentwatch.detect.rule import Rule, draft
from jupyter_agentwatch.events import AnyEvent, Connect, Exec, Gpu, Listen, Resources, Severity, Step

__all__ = ["DIVERSION_RULES", "DiversionDetector"]

UNLEASED: Final = Rule(
    id="diversion.unleased_gpu",
    title="a GPU is used that nobody has leased",
    severity="high",
    technique="T1496",
    rationale="A lease says when a GPU's use is expected; this use was not. Weak attribution makes it medium.",
    false_positives=("a lease that was given up too early",),
)
OUTLIVES: Final = Rule(
    id="diversion.outlives",
    title="a process goes on after its step has ended",
    severity="medium",
    technique="T1496",
    rationale=(
        "What it does is no longer tied to what was asked. A connection outside makes it worth more than computing."
    ),
    false_positives=("a server that was started for later steps",),
)
BUSY: Final = Rule(
    id="diversion.busy_after_end",
    title="a process computes on after its step has ended",
    severity="high",
    technique="T1496",
    rationale="A server waits; this one works.",
    false_positives=("a training run that was put into the background on purpose",),
)

TOGETHER: Final = Rule(
    id="diversion.busy_together",
    title="processes compute on together after every step has ended",
    severity="high",
    technique="T1496",
    rationale=(
        "Nothing that was asked for runs any more. Work that is split over many small processes, or throttled, shows "
        "in the sum alone."
    ),
    false_positives=("a server that many clients use", "a job that was put into the background on purpose"),
)

_UNLEASED_S: Final = 5.0
_BUSY_S: Final = 60.0
_BUSY: Final = 0.5
_TOGETHER: Final = 0.25

DIVERSION_RULES: Final = (UNLEASED, OUTLIVES, BUSY, TOGETHER)
"""Every rule of this detector."""


class _Outside:
    def __init__(self) -> None:
        self.seconds = 0.0
        self.seqs: list[int] = []


class DiversionDetector:
    """Adds up GPU time outside leases for each process and device, and remembers which steps have ended."""

    name = "diversion"
    kinds = frozenset({"connect", "exec", "gpu", "listen", "resources", "step"})

    def __init__(self) -> None:
        self._said = Said()
        self._outside: Recent[tuple[str, int], _Outside] = Recent(_Outside)
        self._ended: Recent[int, list[int]] = Recent(list, 4096)
        self._busy: Recent[int, _Outside] = Recent(_Outside)
        self._running: set[int] = set()
        self._last_end: list[int] = []
        self._last_step = 0
        self._together = _Outside()

    def feed(self, event: AnyEvent) -> Iterable[Draft]:
        """Return findings that this event completes; one for each process and device, or step."""
        if isinstance(event, Gpu):
            return self._gpu(event)
        if isinstance(event, Step):
            self._step(event)
            return ()
        if isinstance(event, Resources) and not event.pid:
            return self._compute_together(event)
        if not event.step or event.step not in self._ended:
            return ()
        if isinstance(event, Resources):
            return self._computes(event)
        return self._acts(event)

    def _gpu(self, event: Gpu) -> Iterable[Draft]:
        if event.op != "process" or event.outside_s <= 0 or event.member is False:
            return
        total = self._outside[(event.device, event.pid or event.driver_pid)]
        total.seconds += event.outside_s
        total.seqs = [*total.seqs[-15:], event.seq]
        if total.seconds >= _UNLEASED_S and self._said.first("gpu", event.device, event.pid or event.driver_pid):
            sure = event.attribution == "exact" and event.member is True
            detail = f"{total.seconds:.0f} s on {event.device}"
            yield draft(UNLEASED, event, detail, severity=None if sure else "medium", evidence=tuple(total.seqs))

    def _computes(self, event: Resources) -> Iterable[Draft]:
        if not event.pid or event.interval_s <= 0 or event.cpu_s < _BUSY * event.interval_s:
            return
        total = self._busy[event.pid]
        total.seconds += event.interval_s
        total.seqs = [*total.seqs[-15:], event.seq]
        if total.seconds >= _BUSY_S and self._said.first("busy", event.step, event.pid):
            detail = f"{event.name}: {total.seconds:.0f} s"
            yield draft(BUSY, event, detail, evidence=(*self._ended[event.step][-1:], *total.seqs))

    def _step(self, event: Step) -> None:
        if event.op == "end":
            self._ended[event.step].append(event.seq)
            self._running.discard(event.step)
            self._last_end, self._last_step = [event.seq], event.step
        else:
            self._running.add(event.step)
        self._together = _Outside()

    def _compute_together(self, event: Resources) -> Iterable[Draft]:
        """Add up what all processes use while no step runs; a minute of it, without a pause, is a finding."""
        if self._running or not self._last_end or event.interval_s <= 0 or event.cpu_s < _TOGETHER * event.interval_s:
            self._together = _Outside()
            return
        total = self._together
        total.seconds += event.interval_s
        total.seqs = [*total.seqs[-15:], event.seq]
        if total.seconds >= _BUSY_S and self._said.first("together", self._last_end[0]):
            detail = f"{event.processes} processes, {event.threads} threads, {total.seconds:.0f} s"
            found = draft(TOGETHER, event, detail, evidence=(*self._last_end, *total.seqs))
            # A sum belongs to no step; the last one that ended is the nearest that can be said.
            yield msgspec.structs.replace(found, step=self._last_step)

    def _acts(self, event: AnyEvent) -> Iterable[Draft]:
        if not isinstance(event, Connect | Listen | Exec) or getattr(event, "transport", "") == "unix":
            return
        if isinstance(event, Exec) and event.claim_seq >= 0:
            return  # what became of a claim may be on record later than the step's end
        severity: Severity | None = None if isinstance(event, Connect) else "low"
        if self._said.first("outlives", event.step, severity):
            yield draft(OUTLIVES, event, severity=severity, evidence=tuple(self._ended[event.step][-1:]))
