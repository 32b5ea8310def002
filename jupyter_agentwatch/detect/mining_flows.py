"""Mining as the network shows it: a pool's protocol or name, or a slow lasting flow beside lasting computation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from jupyter_agentwatch.detect.bounded import Recent, Said
from jupyter_agentwatch.detect.model import NOTHING_DECLARED, Declared, Draft
from jupyter_agentwatch.detect.pools import pool_domain, pool_service
from jupyter_agentwatch.detect.rule import Rule, draft
from jupyter_agentwatch.events import AnyEvent, Connect, Dns, Flow, Gpu, Resources, Severity, Step

__all__ = ["MINING_FLOW_RULES", "MiningFlowDetector"]

_T: Final = "T1496"

STRATUM: Final = Rule(
    id="mining.stratum",
    title="a mining pool's protocol is spoken",
    severity="critical",
    technique=_T,
    rationale="The first bytes of the flow are a Stratum login or job: no other protocol begins so.",
    false_positives=("a test of a Stratum client or server",),
)
POOL_NAME: Final = Rule(
    id="mining.pool_name",
    title="the name of a mining pool is looked up",
    severity="medium",
    technique=_T,
    rationale="The name is on a list of pools; service names that only miners use are high.",
    false_positives=("reading a pool's web site",),
)
POOL_FLOW: Final = Rule(
    id="mining.pool_flow",
    title="a connection to a mining pool is made",
    severity="high",
    technique=_T,
    rationale="The address was given out for a pool's name, or the name was asked for inside TLS.",
    false_positives=("reading a pool's web site (medium: a bare domain on port 80 or 443)",),
)
SLOW_FLOW: Final = Rule(
    id="mining.slow_flow",
    title="a slow, lasting connection goes with lasting computation",
    severity="high",
    technique=_T,
    rationale="Miners inside TLS show so: little data, for long, while every core or GPU works.",
    false_positives=(
        "an experiment tracker beside a training run (medium where it sends five times what it gets)",
        "a place that a rule of the policy names (medium)",
    ),
)

_SLOW_S: Final = 180.0
_SLOW_BYTES_S: Final = 1024.0
_BUSY: Final = 0.8
_SENDS: Final = 5.0
"""Trackers of experiments send much more than they get; miners get jobs."""

_TRACKED: Final = frozenset({"http", "smtp", "dns", "ftp"})

MINING_FLOW_RULES: Final = (STRATUM, POOL_NAME, POOL_FLOW, SLOW_FLOW)
"""Every rule of this detector."""


class _Work(msgspec.Struct):
    """What one step has computed and how long its slow flows have lasted."""

    busy_s: float = 0.0
    gpu_s: float = 0.0
    slow: list[int] = msgspec.field(default_factory=list)
    slow_s: float = 0.0
    unexplained: bool = False


class MiningFlowDetector:
    """Looks at names, connections, flows and computation.

    Args:
        declared: What the policy names itself.
    """

    name = "mining flows"
    kinds = frozenset({"connect", "dns", "flow", "gpu", "resources", "step"})

    def __init__(self, declared: Declared = NOTHING_DECLARED) -> None:
        self._declared = declared
        self._said = Said()
        self._work: Recent[int, _Work] = Recent(_Work)

    def feed(self, event: AnyEvent) -> Iterable[Draft]:
        """Return findings that this event completes; one for each pool and step."""
        if isinstance(event, Flow):
            return [*self._flow(event), *self._slow(event)]
        if isinstance(event, Dns):
            return self._name(event)
        if isinstance(event, Connect):
            return self._pool(event, event.host, event.port) if event.host else ()
        return self._computes(event)

    def _flow(self, event: Flow) -> Iterable[Draft]:
        if event.protocol == "stratum":
            if self._said.first("stratum", event.step, event.addr, event.port):
                yield draft(STRATUM, event, f"{event.host or event.addr}:{event.port}")
            return
        for host in filter(None, dict.fromkeys((event.host, event.server_name))):
            yield from self._pool(event, host, event.port)

    def _name(self, event: Dns) -> Iterable[Draft]:
        name = event.qname.lower().rstrip(".")
        domain = pool_domain(name)
        service = pool_service(name)
        if (domain or service) and self._said.first("name", event.step, name):
            yield draft(POOL_NAME, event, name, severity="high" if service else None)

    def _pool(self, event: Connect | Flow, host: str, port: int) -> Iterable[Draft]:
        host = host.lower().rstrip(".")
        if not (pool_domain(host) or pool_service(host)) or not self._said.first("pool", event.step, host):
            return
        reading = port in (80, 443) and not pool_service(host)
        yield draft(POOL_FLOW, event, f"{host}:{port}", severity="medium" if reading else None)

    def _slow(self, event: Flow) -> Iterable[Draft]:
        if event.op != "closed" or event.duration_s < _SLOW_S or event.protocol in _TRACKED:
            return
        rate = (event.bytes_in + event.bytes_out) / event.duration_s
        if rate > _SLOW_BYTES_S or not event.bytes_in:
            return
        work = self._work[event.step]
        work.slow = [*work.slow[-7:], event.seq]
        work.slow_s = max(work.slow_s, event.duration_s)
        explained = event.rule in self._declared.hosts or event.bytes_out > _SENDS * event.bytes_in
        work.unexplained = work.unexplained or not explained
        yield from self._together(event, work)

    def _computes(self, event: AnyEvent) -> Iterable[Draft]:
        work = self._work[event.step]
        if isinstance(event, Gpu) and event.op == "process" and event.member is not False:
            work.gpu_s += event.gpu_seconds
        elif (
            isinstance(event, Resources) and event.pid and event.interval_s and event.cpu_s >= _BUSY * event.interval_s
        ):
            work.busy_s += event.interval_s
        elif isinstance(event, Step) and event.op == "end":
            if event.cpu_user_s >= _BUSY * event.duration_s:
                work.busy_s = max(work.busy_s, event.duration_s)
        else:
            return ()
        return self._together(event, work)

    def _together(self, event: AnyEvent, work: _Work) -> Iterable[Draft]:
        enough = max(work.busy_s, work.gpu_s) >= _BUSY * _SLOW_S and work.slow_s >= _SLOW_S
        if enough and self._said.first("slow", event.step, work.unexplained):
            detail = f"{work.slow_s:.0f} s of flow, {max(work.busy_s, work.gpu_s):.0f} s of computation"
            weight: Severity | None = None if work.unexplained else "medium"
            yield draft(SLOW_FLOW, event, detail, severity=weight, evidence=tuple(work.slow))
