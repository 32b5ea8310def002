"""Probing as connections show it: how many hosts and ports a step asks in a while, private ones included."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

import msgspec

from jupyter_agentwatch.detect.bounded import Recent, Said
from jupyter_agentwatch.detect.endpoints import Zone, is_address, zone_of
from jupyter_agentwatch.detect.model import Draft
from jupyter_agentwatch.detect.rule import Rule, draft
from jupyter_agentwatch.events import AnyEvent, Connect, Dns, Severity

__all__ = ["PROBING_WINDOW_RULES", "ProbingDetector"]

METADATA: Final = Rule(
    id="probing.metadata_connect",
    title="a connection to the cloud's metadata service is tried",
    severity="high",
    technique="T1552.005",
    rationale="It hands out the machine's own credentials to whoever asks.",
    false_positives=("cloud libraries that look there for a default identity",),
)
PORT_SCAN: Final = Rule(
    id="probing.port_scan",
    title="many ports of one host are tried",
    severity="high",
    technique="T1046",
    rationale="A client knows which port it wants.",
    false_positives=("a test of port ranges on a host of one's own",),
)
HOST_SWEEP: Final = Rule(
    id="probing.host_sweep",
    title="many hosts are tried",
    severity="high",
    technique="T1018",
    rationale=(
        "Private addresses are counted from eight on (granted ones that answered half), bare outside addresses from "
        "twenty on."
    ),
    false_positives=("a client of a large peer-to-peer network", "a job on more than sixteen nodes"),
)
FAILURES: Final = Rule(
    id="probing.failures",
    title="most of many connections fail",
    severity="high",
    technique="T1046",
    rationale="Who knows the network does not meet so many closed doors at so many places.",
    false_positives=("a crawler over a list of dead links",),
)
INNER_DENIED: Final = Rule(
    id="probing.inner_denied",
    title="private addresses that the policy does not name are tried",
    severity="medium",
    technique="T1018",
    rationale="From four on it is no misconfigured client, and high.",
    false_positives=("a proxy or mirror from a configuration file",),
)
NAME_GUESSING: Final = Rule(
    id="probing.name_guessing",
    title="many names that do not exist are looked up",
    severity="high",
    technique="T1590.002",
    rationale="Names are guessed, or made by an algorithm.",
    false_positives=("a list of dead links",),
)

_WINDOW_NS: Final = 60 * 1_000_000_000
_MAX_TRIES: Final = 2048
_PORTS: Final = 12
_PRIVATE_HOSTS: Final = 8
_OUTSIDE_HOSTS: Final = 20
_FAILED: Final = 20
_FAILED_SHARE: Final = 0.8
_DENIED_INNER: Final = 4
_SLOW_PLACES: Final = 24
_GUESSES: Final = 40

PROBING_WINDOW_RULES: Final = (METADATA, PORT_SCAN, HOST_SWEEP, FAILURES, INNER_DENIED, NAME_GUESSING)
"""Every rule of this detector."""


class _Try(msgspec.Struct, frozen=True):
    t_ns: int
    seq: int
    addr: str
    port: int
    zone: Zone
    named: bool
    failed: bool
    answered: bool


class _Tries(msgspec.Struct):
    """Connections of one step: those of the last minute; what private places denied it, or were closed, at any time."""

    recent: deque[_Try] = msgspec.field(default_factory=lambda: deque(maxlen=_MAX_TRIES))
    ports: dict[str, dict[int, int]] = msgspec.field(default_factory=dict)
    hosts: dict[str, _Try] = msgspec.field(default_factory=dict)
    inner_denied: dict[str, int] = msgspec.field(default_factory=dict)
    closed: dict[str, int] = msgspec.field(default_factory=dict)
    since_ns: int = 0


class ProbingDetector:
    """Counts places for each step, and for the watch as a whole (step -1), so that a scan split over steps shows."""

    name = "probing windows"
    kinds = frozenset({"connect", "dns"})

    def __init__(self) -> None:
        self._said = Said()
        self._steps: Recent[int, _Tries] = Recent(_Tries, 256)
        self._guesses: Recent[int, dict[str, int]] = Recent(dict, 256)

    def feed(self, event: AnyEvent) -> Iterable[Draft]:
        """Return findings that this connection or look-up completes; one of a kind for each step and host."""
        if isinstance(event, Dns):
            return self._guess(event)
        if not isinstance(event, Connect) or event.transport == "unix":
            return ()
        return self._connect(event)

    def _connect(self, event: Connect) -> Iterable[Draft]:
        zone = zone_of(event.addr)
        if zone == "metadata" or zone_of(event.host) == "metadata":
            if self._said.first("metadata", event.step):
                yield draft(METADATA, event, f"{event.host or event.addr}:{event.port}")
            return
        if event.transport == "udp" and event.port == 53:
            return
        failed = event.verdict == "deny" or event.errno > 0
        one = _Try(
            event.t_mono_ns,
            event.seq,
            event.addr,
            event.port,
            zone,
            bool(event.host),
            failed,
            not failed and _is_granted(event),
        )
        for step, factor in ((event.step, 1), (-1, 2)):
            tries = self._steps[step]
            _remember(tries, one)
            yield from self._judge(event, step, tries, one, factor)

    def _judge(self, event: Connect, step: int, tries: _Tries, one: _Try, factor: int) -> Iterable[Draft]:
        """`factor` raises what is asked of the whole watch, in which honest steps add up."""
        ports = tries.ports.get(one.addr, {})
        if len(ports) >= _PORTS * factor * (2 if one.zone == "loopback" else 1) and self._said.first(
            "ports", step, one.addr
        ):
            weak = one.zone == "loopback"
            detail = f"{len(ports)} ports of {event.host or one.addr}"
            yield draft(
                PORT_SCAN, event, detail, severity="low" if weak else None, evidence=tuple(ports.values())[-16:]
            )
        if one.zone == "loopback":
            return
        # A job on several nodes knows them: one that the policy grants and that answered counts half.
        reached = [t for t in tries.hosts.values() if t.zone in ("private", "link-local")]
        inner = [t for t in reached if not t.answered] + [t for t in reached if t.answered][::2]
        bare = [t for t in tries.hosts.values() if t.zone == "outside" and not t.named]
        if (len(inner) >= _PRIVATE_HOSTS * factor or len(bare) >= _OUTSIDE_HOSTS * factor) and self._said.first(
            "hosts", step
        ):
            wide = inner if len(inner) >= _PRIVATE_HOSTS * factor else bare
            yield draft(HOST_SWEEP, event, f"{len(wide)} hosts", evidence=tuple(t.seq for t in wide)[-16:])
        if one.failed and one.zone != "outside" and event.verdict == "deny":
            tries.inner_denied.setdefault(f"{one.addr}:{one.port}", one.seq)
            count = len(tries.inner_denied)
            if factor == 1 and count in (1, _DENIED_INNER) and self._said.first("inner", step, count):
                severity: Severity | None = "high" if count >= _DENIED_INNER else None
                yield draft(
                    INNER_DENIED,
                    event,
                    f"{one.addr}:{one.port}",
                    severity=severity,
                    evidence=tuple(tries.inner_denied.values())[-16:],
                )
        if one.failed and one.zone != "outside":
            yield from self._slowly(event, step, tries, _SLOW_PLACES * factor)
        if one.failed and factor == 1:
            yield from self._failures(event, step, tries)

    def _slowly(self, event: Connect, step: int, tries: _Tries, enough: int) -> Iterable[Draft]:
        """A scan that takes its time is known by the private places that it found closed, however long that takes."""
        if len(tries.closed) < 2 * enough:
            tries.closed.setdefault(f"{event.addr}:{event.port}", event.seq)
        if len(tries.closed) >= enough and self._said.first("slowly", step):
            detail = f"{len(tries.closed)} private places, over time"
            yield draft(FAILURES, event, detail, evidence=tuple(tries.closed.values())[-16:])

    def _failures(self, event: Connect, step: int, tries: _Tries) -> Iterable[Draft]:
        failed = [t for t in tries.recent if t.failed and t.zone != "loopback"]
        places = {(t.addr, t.port) for t in failed}
        enough = len(failed) >= _FAILED and len(places) >= _FAILED // 2
        if enough and len(failed) >= _FAILED_SHARE * len(tries.recent) and self._said.first("failures", step):
            yield draft(
                FAILURES, event, f"{len(failed)} of {len(tries.recent)}", evidence=tuple(t.seq for t in failed)[-16:]
            )

    def _guess(self, event: Dns) -> Iterable[Draft]:
        if zone_of(event.qname) == "metadata" and not is_address(event.qname):
            if self._said.first("metadata name", event.step):
                yield draft(METADATA, event, event.qname)
            return
        if event.rcode not in ("NXDOMAIN", "REFUSED"):
            return
        guesses = self._guesses[event.step]
        if len(guesses) < 4 * _GUESSES:
            guesses.setdefault(event.qname.lower(), event.seq)
        if len(guesses) >= _GUESSES and self._said.first("guesses", event.step):
            yield draft(NAME_GUESSING, event, f"{len(guesses)} names", evidence=tuple(guesses.values())[-16:])


def _is_granted(event: Connect) -> bool:
    return event.verdict == "allow" and event.errno == 0 and event.rule.startswith("network.rules[")


def _remember(tries: _Tries, one: _Try) -> None:
    tries.recent.append(one)
    if len(tries.hosts) < 512:
        tries.hosts.setdefault(one.addr, one)
    ports = tries.ports.setdefault(one.addr, {}) if len(tries.ports) < 512 else tries.ports.get(one.addr, {})
    if len(ports) < 128:
        ports.setdefault(one.port, one.seq)
    if one.t_ns - tries.since_ns > _WINDOW_NS:
        # What is older than the window is dropped in one go, once for each window, so that the work stays constant.
        while tries.recent and one.t_ns - tries.recent[0].t_ns > _WINDOW_NS:
            tries.recent.popleft()
        tries.hosts = {t.addr: t for t in tries.recent}
        tries.ports = {}
        for t in tries.recent:
            tries.ports.setdefault(t.addr, {}).setdefault(t.port, t.seq)
        tries.since_ns = one.t_ns
