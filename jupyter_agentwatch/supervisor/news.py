"""Turns what the gateway, the dialer and the DNS stub tell into events."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jupyter_agentwatch.events import Dns, Flow, from_path
from jupyter_agentwatch.policy import Decision
from jupyter_agentwatch.sandbox.flow import FlowSpec
from jupyter_agentwatch.sandbox.protocol import Naming
from jupyter_agentwatch.supervisor.askers import DnsAskers
from jupyter_agentwatch.supervisor.record import Recorder

if TYPE_CHECKING:  # the stub is loaded when somebody asks it
    from jupyter_agentwatch.sandbox.dns import Client

__all__ = ["NetworkRecords"]


class NetworkRecords:
    """Puts names and flows on record; raises where the log cannot be written, so that nothing passes unrecorded."""

    def __init__(self, recorder: Recorder, askers: DnsAskers) -> None:
        self._askers = askers
        self._recorder = recorder
        self._refused: dict[int, str] = {}

    def named(self, spec: FlowSpec, naming: Naming, decision: Decision, bytes_out: int, bytes_in: int) -> None:
        """Record a flow's protocol, before its first byte passes."""
        named: dict[str, Any] = {"protocol": naming.protocol, "server_name": naming.server_name}
        named |= {"bytes_out": bytes_out, "bytes_in": bytes_in}
        if naming.payment is not None:
            named |= {"payment": naming.payment.kind, "amount": naming.payment.amount}
        if decision.verdict != "allow":
            self._refused[spec.flow] = decision.rule
        self._record(spec, "named", decision.verdict, rule=decision.rule, **named)

    def closed(
        self, spec: FlowSpec, protocol: str, bytes_out: int, bytes_in: int, duration_s: float, reason: str
    ) -> None:
        """Record a flow's end."""
        counted = {"protocol": protocol, "bytes_out": bytes_out, "bytes_in": bytes_in, "duration_s": duration_s}
        refused = self._refused.pop(spec.flow, "")
        verdict, rule = ("deny", refused) if refused else ("allow", spec.decision.rule)
        self._record(spec, "closed", verdict, rule=rule, reason=reason, **counted)

    def failed(self, spec: FlowSpec, number: int) -> None:
        """Record a dial that failed."""
        reason = f"{errno.errorcode.get(number, number)}: {os.strerror(number)}"
        with contextlib.suppress(ValueError):  # the log is closed: the watch has ended meanwhile
            self._record(spec, "failed", "allow", rule=spec.decision.rule, reason=reason)

    def resolved(
        self, qname: str, qtype: str, rcode: str, answers: Sequence[str], decision: Decision, client: Client
    ) -> None:
        """Record a query."""
        asker = self._askers.who(client.port, is_udp=client.is_udp)
        name = from_path(qname)
        found: dict[str, Any] = {"qname": name, "qtype": qtype, "rcode": rcode, "answers": list(answers)}
        who: dict[str, Any] = {"step": asker.step, "pid": asker.tgid}
        self._recorder.record(Dns, verdict=decision.verdict, rule=decision.rule, **who, **found)

    def _record(self, spec: FlowSpec, op: str, verdict: str, **fields: Any) -> None:
        where: dict[str, Any] = {"flow": spec.flow, "addr": spec.addr, "port": spec.port, "host": spec.host}
        self._recorder.record(Flow, op=op, verdict=verdict, step=spec.step, pid=spec.pid, **where, **fields)
