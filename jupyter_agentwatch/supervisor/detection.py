"""Every record goes to the detectors before the call that it is about is answered; what they find trips the breaker.

It runs under the recorder's lock, in whichever thread records: the order of the records is the order in which they are
looked at, so that a replay of the log finds the same. Whatever fails here is told: a blind monitor must not look calm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Final

from jupyter_agentwatch.breaker import Judge, Signal, Thresholds, Trip
from jupyter_agentwatch.events import Event, Finding, LimitHit
from jupyter_agentwatch.supervisor.budgets import BudgetBook

if TYPE_CHECKING:
    from jupyter_agentwatch.detect.model import Declared, Draft
    from jupyter_agentwatch.policy import NetworkRule, Policy

__all__ = ["LOAD_FAILED", "Detection", "Detectors"]

LOAD_FAILED: Final = "agentwatch.detection_failed"
"""Rule id of the finding that nothing is looked for any more."""

_BLIND: Final = frozenset({LOAD_FAILED, "agentwatch.detector_failed"})
"""Findings that stop the watch whatever the policy says; the second one's detector is back once it may go on."""

_LIMIT_NS: Final = 250_000_000
_STRIKES: Final = 3


class Detectors:
    """Our own detectors and compiled Sigma rules, without what the policy has disabled.

    Loading takes some ten milliseconds: expressions are compiled when they are first used.

    Args:
        rules: Compiled Sigma rules as bytes, b"" for none.
        disabled: Ids of rules whose findings are dropped.
        policy: What it names itself is no surprise; None where it is not known.

    Raises:
        msgspec.DecodeError: The bytes are not compiled rules of this version.
    """

    def __init__(self, rules: bytes, disabled: Collection[str], policy: Policy | None = None) -> None:
        from jupyter_agentwatch.detect.engine import Engine
        from jupyter_agentwatch.detect.own import own_detectors

        sigma = None
        if rules:
            from jupyter_agentwatch.detect.sigma_form import decode_rules

            sigma = decode_rules(rules)
        own = own_detectors(_declared(policy)) if policy is not None else own_detectors()
        clocks = {"clock": time.thread_time_ns, "glance": time.perf_counter_ns}
        self._engine = Engine(own, sigma, **clocks, limit_ns=_LIMIT_NS, strikes=_STRIKES)
        self._disabled = frozenset(disabled)

    def restore(self) -> None:
        """Take detectors that were out of service into it again."""
        self._engine.restore()

    def feed(self, event: Any) -> list[Draft]:
        """Show the next record to every detector; return what they find."""
        drafts = self._engine.feed(event)
        if drafts and self._disabled:
            # What tells of the monitor's own state cannot be disabled.
            return [each for each in drafts if each.family == "monitor" or each.rule not in self._disabled]
        return drafts


class Detection:
    """What the recorder asks about each record. Used under its lock, but for what says otherwise.

    Args:
        policy: The policy.
        rules: Compiled Sigma rules as bytes, b"" for none.
        trip: Told what is to be done about a finding or a used-up budget; it must only set flags and queue.
    """

    def __init__(self, policy: Policy, rules: bytes, trip: Callable[[Trip], None]) -> None:
        at = policy.breaker
        self._policy = policy
        self._rules = rules
        self._trip = trip
        self._judge = Judge(
            Thresholds(
                freeze_at=at.freeze_at,
                throttle_at=at.throttle_at,
                two_families_at=at.two_families_at,
                two_families_ns=round(at.two_families_window_s * 1e9),
            )
        )
        self.budgets = BudgetBook(policy.budgets)
        self._detectors: Detectors | None = None
        self._failure = ""
        self._is_acquitted = False

    def load(self) -> None:
        """Make the detectors; nothing is found before. In any thread, without the recorder's lock."""
        try:
            self._detectors = Detectors(self._rules, self._policy.detect.disabled, self._policy)
        except Exception as error:  # noqa: BLE001 -- whatever it is: nothing would be looked for
            self._failure = f"the detectors could not be loaded: {type(error).__name__}: {error}"

    def examine(self, event: Event) -> Sequence[tuple[type[Event], dict[str, Any]]]:
        """Return what is to be recorded on account of a record: kind and fields."""
        found: list[tuple[type[Event], dict[str, Any]]] = []
        if self._detectors is not None:
            try:
                if self._is_acquitted:
                    self._is_acquitted = False
                    self._detectors.restore()
                found = [(Finding, _fields(draft)) for draft in self._detectors.feed(event)]
            except Exception as error:  # noqa: BLE001 -- as above
                self._failure = f"the detectors failed: {type(error).__name__}: {error}"
        if self._failure:
            found.append((Finding, self._blind(event)))
        found += [(LimitHit, fields) for fields in self.budgets.feed(event)]
        return found

    def weigh(self, event: Event) -> bool:
        """Take a finding or a reached limit into account; return whether it stops the watch."""
        trip: Trip | None = None
        if isinstance(event, Finding):
            trip = self._judge.weigh(
                Signal(
                    seq=event.seq,
                    t_ns=event.t_mono_ns,
                    rule=event.rule,
                    title=event.title,
                    severity=event.severity,
                    family=event.family,
                    evidence=event.evidence,
                    step=event.step,
                )
            )
            if trip is None and event.rule in _BLIND:
                trip = Trip("trip", event.title, (event.seq,), event.step)
        elif isinstance(event, LimitHit) and event.limit.startswith("budgets."):
            why = f"{event.limit} is used up: {event.value:g} of {event.maximum:g}"
            trip = Trip("trip", why, (event.seq,), event.step)
        if trip is None:
            return False
        self._trip(trip)
        return trip.cause == "trip"

    def acquit(self) -> None:
        """A person lets the watch go on: what was found has been judged, and each used-up budget gets a tenth more.

        Detectors that were out of service look again.

        Any thread.
        """
        self._judge.acquit()
        self._is_acquitted = True
        self.budgets.grant()

    def _blind(self, event: Event) -> dict[str, Any]:
        title, self._failure = self._failure[:500], ""
        self._detectors = None
        return {
            "rule": LOAD_FAILED,
            "title": title,
            "severity": "high",
            "family": "monitor",
            "technique": "T1685",
            "rationale": "From now on nothing is looked for in this watch, so it is suspended.",
            "evidence": [event.seq],
            "step": event.step,
            "pid": event.pid,
        }


def _declared(policy: Policy) -> Declared:
    from jupyter_agentwatch.detect.model import Declared

    rules = {f"network.rules[{place}]": rule for place, rule in enumerate(policy.network.rules)}
    return Declared(
        hosts=frozenset(label for label, rule in rules.items() if _names_one_place(rule)),
        ssh=frozenset(label for label, rule in rules.items() if rule.protocol == "ssh"),
    )


def _names_one_place(rule: NetworkRule) -> bool:
    if rule.host is not None:
        return not rule.host.startswith("*")
    return rule.cidr is not None and ("/" not in rule.cidr or rule.cidr.endswith(("/32", "/128")))


def _fields(draft: Draft) -> dict[str, Any]:
    return {
        "rule": draft.rule,
        "title": draft.title,
        "severity": draft.severity,
        "family": draft.family,
        "technique": draft.technique,
        "rationale": draft.rationale,
        "evidence": list(draft.evidence),
        "step": draft.step,
        "pid": draft.pid,
    }
