"""Feeds each event to the detectors that want it; one that fails is a finding, never silence.

The engine reads no clock of its own: the caller passes one in, and it is used only to notice detectors that are slow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, get_args

from jupyter_agentwatch.detect.model import Detector, Divisible, Draft
from jupyter_agentwatch.detect.slowness import Meter
from jupyter_agentwatch.events import AnyEvent

if TYPE_CHECKING:
    from jupyter_agentwatch.detect.sigma_form import CompiledRules

__all__ = ["FAILED", "KINDS", "Engine"]

FAILED: Final = "agentwatch.detector_failed"
"""Rule id of the finding that a detector is out of service."""

KINDS: Final = MappingProxyType({kind.__struct_config__.tag: kind for kind in get_args(AnyEvent)})
"""Every kind of event by its name in the log."""


class Engine:
    """All detectors of one watch. Not thread-safe: events have one order, and it decides.

    Args:
        detectors: The project's own, each with a name of its own.
        sigma_rules: Compiled Sigma rules to run beside them.
        clock: Nanoseconds that the calling thread has spent, as `time.thread_time_ns`; CPU time, so that a machine
            under load does not put detectors out of service.
        glance: Nanoseconds on a clock that runs at least as fast and costs less, as `time.perf_counter_ns`: asking for
            CPU time is a system call, and only who is slow by this clock can be slow by that one.
        limit_ns: What one detector, or one part of a divisible one, may spend on one event.
        strikes: How many times it may spend more before it is disabled. Of a divisible detector only the part is.

    Raises:
        ValueError: Two detectors have one name, or a detector wants a kind of event that does not exist.
    """

    def __init__(
        self,
        detectors: Iterable[Detector],
        sigma_rules: CompiledRules | None = None,
        *,
        clock: Callable[[], int],
        glance: Callable[[], int] | None = None,
        limit_ns: int = 50_000_000,
        strikes: int = 3,
    ) -> None:
        everyone = list(detectors)
        if sigma_rules is not None:
            # Without such rules a watch need not wait for RE2 and what builds upon it.
            from jupyter_agentwatch.detect.sigma_detector import SigmaDetector

            everyone.append(SigmaDetector(sigma_rules))
        _check(everyone)
        self._clock = clock
        self._glance = glance or clock
        self._limit_ns = limit_ns
        self._meter = Meter(clock, limit_ns, strikes)
        self._strikes = strikes
        self._everyone = tuple(everyone)
        self.restore()

    def restore(self) -> None:
        """Take every detector into service again: for a person who has seen why one was out of it."""
        self._strikes_left = {each.name: self._strikes for each in self._everyone}
        self._wanting: dict[type, tuple[Detector, ...]] = {
            kind: tuple(each for each in self._everyone if tag in each.kinds) for tag, kind in KINDS.items()
        }
        self._disabled: list[str] = []
        for each in self._everyone:
            if isinstance(each, Divisible):
                each.restore()

    @property
    def disabled(self) -> tuple[str, ...]:
        """Names of the detectors that are out of service, in the order in which they failed."""
        return tuple(self._disabled)

    def feed(self, event: AnyEvent) -> list[Draft]:
        """Show one event to every detector that wants it.

        Args:
            event: The next event of the watch, in the order of `seq`.

        Returns:
            Drafts of findings, in the order of the detectors.
        """
        drafts: list[Draft] = []
        clock, glance = self._clock, self._glance
        before, started = clock(), glance()
        for detector in self._wanting[type(event)]:
            try:
                found = list(detector.feed(event))
            except Exception as error:  # noqa: BLE001 - whatever it is: a blind monitor has to show as blind
                drafts.append(self._disable(detector, event, f"{type(error).__name__}: {error}"))
                started = glance()
                continue
            if found:
                if all(isinstance(draft, Draft) for draft in found):
                    drafts += found
                else:
                    drafts.append(self._disable(detector, event, "it returned something else than drafts"))
            ended = glance()
            if ended - started > self._limit_ns:
                spent = min(ended - started, clock() - before)
                if spent > self._limit_ns:
                    drafts += self._slow(detector, event, spent)
                before, ended = clock(), glance()
            started = ended
        return drafts

    def _slow(self, detector: Detector, event: AnyEvent, spent_ns: int) -> list[Draft]:
        if not isinstance(detector, Divisible):
            return self._strike(detector, event, spent_ns)
        try:
            return list(detector.narrow(event, self._meter))
        except Exception as error:  # noqa: BLE001 - as above
            return [self._disable(detector, event, f"{type(error).__name__}: {error}")]

    def _strike(self, detector: Detector, event: AnyEvent, spent_ns: int) -> list[Draft]:
        self._strikes_left[detector.name] -= 1
        if self._strikes_left[detector.name] > 0 or detector.name in self._disabled:
            return []
        reason = f"it took {spent_ns / 1e6:.0f} ms for one event, and was too slow before"
        return [self._disable(detector, event, reason)]

    def _disable(self, detector: Detector, event: AnyEvent, reason: str) -> Draft:
        self._disabled.append(detector.name)
        for kind, wanting in self._wanting.items():
            self._wanting[kind] = tuple(each for each in wanting if each is not detector)
        return Draft(
            rule=FAILED,
            title=f"the detector {detector.name} is out of service: {reason[:200]}",
            severity="high",
            family="monitor",
            technique="T1685",
            rationale=(
                "Until somebody lets the watch go on, nothing of what this detector looks for is noticed, so the watch "
                "is suspended. The evidence is the event on which it failed: a defect of the detector, or an agent "
                "that has found one."
            ),
            evidence=(event.seq,),
            step=event.step,
            pid=event.pid,
        )


def _check(detectors: list[Detector]) -> None:
    names = [each.name for each in detectors]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        msg = f"two detectors have the name {twice[0]!r}"
        raise ValueError(msg)
    for each in detectors:
        unknown = sorted(each.kinds - KINDS.keys())
        if unknown:
            msg = f"the detector {each.name!r} wants events of the kind {unknown[0]!r}, which does not exist"
            raise ValueError(msg)
