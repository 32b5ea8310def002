"""Denials gathered by destination, and what would have to be allowed for each.

Pure: it keeps bounded evidence for each destination, and the agent's text leaves it only in a form that is safe to
show.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import msgspec

from jupyter_agentwatch.errors import PolicyError
from jupyter_agentwatch.events import Connect, Dns, Flow, printable
from jupyter_agentwatch.policy.match import Decision, NetworkMatcher, decide_protocol, unix_allowed
from jupyter_agentwatch.policy.model import NetworkRule, Policy
from jupyter_agentwatch.policy.names import HOST_LOOPBACK, LOOPBACK_NAME, host_pattern, normal_address, normal_name

__all__ = ["Candidate", "Collector", "LeftOut"]

_MAX_SEQS = 32
_MAX_PORTS = 16
"""More ports than this on one host are a scan, which nobody wants to allow by a click."""

_GUESSED_PORT = 443
_ALLOWED = "allowed by the policy already, or denied for another reason than the policy"

# Parts of the paths of sockets that run commands as somebody else, hold keys or see the display.
_POWERFUL_SOCKETS = (
    "docker",
    "podman",
    "containerd",
    "crio",
    "/lxd/",
    "/incus/",
    "libvirt",
    "snapd",
    "/systemd/",
    "dbus",
    "/bus",
    "/.X11-unix/",
    "/wayland-",
    "/ssh-",
    "ssh-agent",
    "gpg-agent",
    "/keyring/",
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing that would have to be allowed.

    Attributes:
        rule: A network rule, or the path of an AF_UNIX socket for `unix_sockets`.
        reason: What was denied, in words that are safe to show.
        seqs: Positions in the log of the first denials (at most 32).
        count: How many denials there were.
        overrides: The base policy's rule that must not decide first ("network.rules[2]"); "" where none matched.
    """

    rule: NetworkRule | str
    reason: str
    seqs: list[int]
    count: int
    overrides: str = ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Denials for which nothing is suggested, and why; attributes as in `Candidate`."""

    reason: str
    seqs: list[int]
    count: int


@dataclass(slots=True)
class _Evidence:
    seqs: list[int] = field(default_factory=list)
    count: int = 0
    ports: dict[int, None] = field(default_factory=dict)
    protocols: dict[str, None] = field(default_factory=dict)

    def add(self, seq: int) -> None:
        self.count += 1
        if len(self.seqs) < _MAX_SEQS:
            self.seqs.append(seq)

    def merge(self, other: _Evidence) -> None:
        self.seqs = sorted([*self.seqs, *other.seqs])[:_MAX_SEQS]
        self.count += other.count


@dataclass(frozen=True, slots=True)
class _Target:
    """A destination to be allowed: by name, else by address, else the path of a socket."""

    host: str = ""
    address: str = ""
    path: str = ""
    overrides: str = ""


class Collector:
    """Takes denied events one by one.

    Args:
        base: The policy that would be extended; it must have been checked.
    """

    def __init__(self, base: Policy) -> None:
        self._base = base
        self._matcher = NetworkMatcher(base.network)
        # Names the rule behind a "private-answer", which itself says only why.
        self._lenient = NetworkMatcher(msgspec.structs.replace(base.network, private_answers=True))
        self._found: dict[_Target, _Evidence] = {}
        self._queried: dict[str, _Evidence] = {}
        self._left_out: dict[str, _Evidence] = {}
        self._settled: dict[tuple[str, int, str, str], _Evidence] = {}

    def add_connect(self, event: Connect) -> None:
        """Take a refused connection."""
        if event.transport == "unix":
            self._add_unix(event)
        elif event.transport == "udp":
            self._leave("UDP is never passed on; names are resolved by the stub", event.seq)
        else:
            self._add_tcp(event, "")

    def add_flow(self, event: Flow) -> None:
        """Take a connection that was refused by its first bytes."""
        if event.rule.startswith("server-name-"):
            self._leave(
                "the flow named another server than the host that it was allowed for, or hid its name", event.seq
            )
        elif decide_protocol(Decision("allow", ""), event.protocol).verdict == "deny":
            self._leave(f"{printable(event.protocol, 40)} is never passed on", event.seq)
        else:
            self._add_tcp(event, event.protocol)

    def add_dns(self, event: Dns) -> None:
        """Take a refused name."""
        name = normal_name(event.qname)
        if name is None:
            self._leave("not a host name", event.seq)
        elif event.qtype not in ("A", "AAAA"):
            self._leave("only addresses of names (A, AAAA) are ever answered", event.seq)
        else:
            self._queried.setdefault(name, _Evidence()).add(event.seq)

    def result(self) -> tuple[list[Candidate], list[LeftOut]]:
        """Return what would have to be allowed, in the order of first denial, and what is not proposed."""
        for name, evidence in self._queried.items():
            self._settle_name(name, evidence)
        candidates: list[Candidate] = []
        for target, evidence in self._found.items():
            if len(evidence.ports) > _MAX_PORTS:
                text = f"{len(evidence.ports)} ports of {target.host or target.address}: this looks like a port scan"
                self._left_out[text] = evidence
            else:
                candidates.append(_candidate(target, evidence))
        candidates.sort(key=lambda candidate: candidate.seqs[0])
        left_out = [LeftOut(reason, found.seqs, found.count) for reason, found in self._left_out.items()]
        return candidates, left_out

    def _left(self, reason: str) -> _Evidence:
        return self._left_out.setdefault(reason, _Evidence())

    def _leave(self, reason: str, seq: int) -> None:
        self._left(reason).add(seq)

    def _add_unix(self, event: Connect) -> None:
        path = event.addr
        if unix_allowed(self._base.unix_sockets, path):
            self._leave(_ALLOWED, event.seq)
        elif any(part in path for part in _POWERFUL_SOCKETS):
            self._leave("sockets that hand over the machine, its display or its keys are never suggested", event.seq)
        elif not unix_allowed([path], path) or printable(path, len(path)) != path:
            self._leave("not a plain absolute path of a socket", event.seq)
        else:
            self._found.setdefault(_Target(path=path), _Evidence()).add(event.seq)

    def _add_tcp(self, event: Connect | Flow, protocol: str) -> None:
        place = (event.addr, event.port, event.host, protocol)
        evidence = self._settled.get(place)
        if evidence is None:
            evidence = self._settled[place] = self._settle(*place)
        evidence.add(event.seq)

    def _settle(self, addr: str, port: int, host: str, protocol: str) -> _Evidence:
        """Find out once for each destination what its denials are evidence of."""
        parsed = normal_address(addr)
        if parsed is None or not 1 <= port <= 65535:
            return self._left("not an address and port")
        address, name = str(parsed), normal_name(host) or ""
        decided = self._matcher.decide_connect(address, port, [name])
        if decided.verdict == "allow" and decide_protocol(decided, protocol or decided.protocol).verdict == "allow":
            return self._left(_ALLOWED)
        way = self._way(address, port, name)
        if way is None:
            return self._left("loopback is the sandbox's own, never a destination outside")
        overrides = _rule_label(self._lenient.decide_connect(address, port, [name])) or self._closed_by(way)
        evidence = self._found.setdefault(replace(way, overrides=overrides), _Evidence())
        evidence.ports[port] = None
        if protocol:
            evidence.protocols[printable(protocol, 40)] = None
        return evidence

    def _way(self, address: str, port: int, name: str) -> _Target | None:
        """Return the first way to allow a destination that the matcher itself accepts."""
        if address == HOST_LOOPBACK:
            return _Target(host=LOOPBACK_NAME)
        for target in (_Target(host=name), _Target(address=address)):
            alone = msgspec.structs.replace(self._base.network, rules=[_rule(target, [port])])
            try:
                matcher = NetworkMatcher(alone)
            except PolicyError:
                continue
            if matcher.decide_connect(address, port, [name]).verdict == "allow":
                return target
        return None

    def _closed_by(self, target: _Target) -> str:
        """Name the base's rule that keeps the target's name from being resolved, whatever its ports."""
        decided = self._matcher.decide_name(target.host)
        return "" if decided.verdict == "allow" else _rule_label(decided)

    def _settle_name(self, name: str, evidence: _Evidence) -> None:
        """Join a refused name to its connections; guess a port only where it has none."""
        seen = [found for target, found in self._found.items() if target.host == name]
        decided = self._matcher.decide_name(name)
        if seen:
            seen[0].merge(evidence)
        elif decided.verdict == "allow":
            self._left(_ALLOWED).merge(evidence)
        elif name == LOOPBACK_NAME:
            self._left(f"{LOOPBACK_NAME} was refused before its port showed: add a rule by hand").merge(evidence)
        elif not _can_be_given(name):
            self._left("this name cannot be given in a rule").merge(evidence)
        else:
            self._found[_Target(host=name, overrides=_rule_label(decided))] = evidence


def _rule_label(decided: Decision) -> str:
    return decided.rule if decided.rule.startswith("network.rules[") else ""


def _can_be_given(name: str) -> bool:
    try:
        return host_pattern(name) == name
    except ValueError:
        return False


def _rule(target: _Target, ports: list[int]) -> NetworkRule:
    if target.host:
        return NetworkRule(host=target.host, ports=ports)
    return NetworkRule(cidr=target.address, ports=ports)


def _candidate(target: _Target, evidence: _Evidence) -> Candidate:
    times = f"denied {evidence.count} time" + ("" if evidence.count == 1 else "s")
    if target.path:
        return Candidate(target.path, f"socket {target.path} {times}", evidence.seqs, evidence.count)
    ports = sorted(evidence.ports)
    where = f"{target.host or target.address} " + (f"port {', '.join(map(str, ports))} " if ports else "")
    notes = [f"{where}{times}"]
    if not ports:
        notes.append(f"the port is a guess: the name was refused before any connection, {_GUESSED_PORT} is assumed")
    if evidence.protocols:
        notes.append(f"spoke {', '.join(evidence.protocols)}, which the rule did not name: any protocol would pass")
    if target.overrides:
        notes.append(f"{target.overrides} decides otherwise")
    rule = _rule(target, ports or [_GUESSED_PORT])
    return Candidate(rule, "; ".join(notes), evidence.seqs, evidence.count, target.overrides)
