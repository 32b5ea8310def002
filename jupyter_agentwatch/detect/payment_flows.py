"""Payments as the gateway reads them in a connection's first request, before it leaves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from jupyter_agentwatch.detect.model import Draft
from jupyter_agentwatch.detect.rule import Rule, draft
from jupyter_agentwatch.events import AnyEvent, Flow

__all__ = ["PAYMENT_FLOW_RULES", "PaymentFlowDetector"]

PAYS: Final = Rule(
    id="payment.request",
    title="a request pays",
    severity="high",
    technique="T1657",
    rationale="A signed payment, or an order to a wallet, stands in the request; what is signed cannot be taken back.",
    false_positives=("a service that the user lets the agent pay for: a budget of money bounds it",),
)

PAYMENT_FLOW_RULES: Final = (PAYS,)
"""Every rule of this detector."""


class PaymentFlowDetector:
    """Tells of each connection whose first request pays."""

    name = "payment_flows"
    kinds = frozenset({"flow"})

    def feed(self, event: AnyEvent) -> Iterable[Draft]:
        """Return a finding for a flow that was named with a payment in it."""
        if isinstance(event, Flow) and event.op == "named" and event.payment:
            amount = "an amount that it does not say" if event.amount is None else f"{event.amount:.6g}"
            where = event.server_name or event.host or event.addr
            yield draft(PAYS, event, f"{event.payment}, {amount}, to {where}:{event.port}")
