"""Whether a name may be resolved, a destination reached and a protocol spoken: pure decisions over a compiled policy.

Every input may come from the sandbox. What cannot be understood is denied, and nothing here raises on it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jupyter_agentwatch.errors import PolicyError
from jupyter_agentwatch.policy.check import FieldError, checked_rule
from jupyter_agentwatch.policy.model import Network, NetworkRule, Protocol
from jupyter_agentwatch.policy.names import (
    HOST_LOOPBACK,
    LOOPBACK_NAME,
    Address,
    AddressRange,
    is_own,
    is_public,
    normal_address,
    normal_name,
    parse_range,
)

__all__ = ["Decision", "NetworkMatcher", "decide_protocol", "unix_allowed"]

_LOOPBACK_ADDRESS = normal_address(HOST_LOOPBACK)


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy says about one name, destination or flow.

    Attributes:
        verdict: "allow", "deny", or "ask" a person first.
        rule: The rule that decided ("network.rules[2]"), or why none did: "no-rule", "unresolved-name" (an address
            that the DNS stub had not answered, where rules go by name), "private-answer" (a name that led to an
            address that is not public), "own-address" (loopback or unspecified), "invalid-name", "invalid-address",
            "protocol:NAME". Callers add reasons of their own with `refuse`.
        protocol: What the first bytes must be.
        host: The name by which a host rule matched; "" where none did or a cidr rule decided.
    """

    verdict: Literal["allow", "deny", "ask"]
    rule: str
    protocol: Protocol = "any"
    host: str = ""

    @classmethod
    def refuse(cls, reason: str, host: str = "") -> Decision:
        """Return a denial for a reason that is no rule, such as "udp"."""
        return cls("deny", reason, "any", host)


@dataclass(frozen=True, slots=True)
class _Compiled:
    """One rule with its position. `suffix` is ".example.org" for a wildcard, else ""."""

    rule: NetworkRule
    label: str
    name: str = ""
    suffix: str = ""
    network: AddressRange | None = None

    def has_name(self, name: str) -> bool:
        return name == self.name if self.name else bool(self.suffix) and name.endswith(self.suffix)

    def decision(self, host: str = "") -> Decision:
        return Decision(self.rule.verdict, self.label, self.rule.protocol, host)


class NetworkMatcher:
    """The network part of a policy, compiled once. The first rule that matches decides; where none does: deny.

    Args:
        network: The rules; later changes to its lists have no effect.

    Raises:
        PolicyError: A rule makes no sense (a matcher that skipped it would not enforce what was written).
    """

    def __init__(self, network: Network) -> None:
        self._private_answers = network.private_answers
        compiled = [_compile(rule, position) for position, rule in enumerate(network.rules) if rule.ports]
        self._named = tuple(item for item in compiled if item.network is None)
        self._by_port: dict[int, list[_Compiled]] = {}
        for item in compiled:
            for port in dict.fromkeys(item.rule.ports):
                self._by_port.setdefault(port, []).append(item)

    def decide_name(self, qname: str) -> Decision:
        """Decide whether a name may be resolved: the first host rule with any port that matches it decides.

        An earlier deny rule closes the name whatever its ports, since a query alone can carry data out. An `ask` rule
        gives "ask": a person has to agree before the query leaves.

        Args:
            qname: Name as queried, in any case, with or without its final dot; hostile names are "invalid-name".
        """
        name = normal_name(qname)
        if name is None:
            return Decision.refuse("invalid-name")
        for item in self._named:
            if item.has_name(name):
                return item.decision(name)
        return Decision.refuse("no-rule")

    def decide_connect(self, address: str, port: int, names: Sequence[str]) -> Decision:
        """Decide about a connection out of the sandbox.

        Args:
            address: Address literal; a scope id is ignored and IPv4-mapped IPv6 is judged as IPv4.
            port: TCP port.
            names: Names which the DNS stub had answered with this address to this sandbox. Where several match the
                deciding rule, the first of them becomes the decision's host, so the latest answer should come first.
        """
        destination = normal_address(address)
        if destination is None:
            return Decision.refuse("invalid-address")
        rules = self._by_port.get(port, ())
        if destination == _LOOPBACK_ADDRESS:
            return _decide_loopback(rules)
        known = [name for name in map(normal_name, names) if name is not None and name != LOOPBACK_NAME]
        for item in rules:
            if item.network is not None:
                if destination in item.network and not is_own(destination):
                    return item.decision()
                continue
            host = next(filter(item.has_name, known), "")
            if host:
                return self._decide_host(item, host, destination)
        return Decision.refuse(_no_match(rules, known, destination))

    def _decide_host(self, item: _Compiled, host: str, destination: Address) -> Decision:
        if item.rule.verdict == "deny" or is_public(destination):
            return item.decision(host)
        if self._private_answers and not is_own(destination):
            return item.decision(host)
        return Decision.refuse("private-answer", host)


def _compile(rule: NetworkRule, position: int) -> _Compiled:
    try:
        good = checked_rule(rule, ("network", "rules", position))
    except FieldError as error:
        raise PolicyError(str(error)) from None
    label = f"network.rules[{position}]"
    if good.host is None:
        return _Compiled(good, label, network=parse_range(good.cidr or ""))
    if good.host.startswith("*."):
        return _Compiled(good, label, suffix=good.host[1:])
    return _Compiled(good, label, name=good.host)


def _decide_loopback(rules: Sequence[_Compiled]) -> Decision:
    for item in rules:
        if item.name == LOOPBACK_NAME:
            return item.decision(LOOPBACK_NAME)
    return Decision.refuse("no-rule", LOOPBACK_NAME)


def _no_match(rules: Sequence[_Compiled], known: Sequence[str], destination: Address) -> str:
    if is_own(destination):
        return "own-address"
    has_names = any(item.network is None and item.name != LOOPBACK_NAME for item in rules)
    return "unresolved-name" if has_names and not known else "no-rule"


_NEVER = ("stratum", "socks")


def decide_protocol(decision: Decision, protocol: str) -> Decision:
    """Judge a flow again once its first bytes have named its protocol.

    A rule's protocol passes exactly itself: "http" does not pass "websocket", "any" passes everything, "unknown" too.
    Mining logins and SOCKS never pass, not even "any": they tunnel or mine whatever the destination.

    Args:
        decision: What was decided about the destination.
        protocol: Name from the gateway: "tls", "http", "ssh", "stratum", "socks4", "socks5", "unknown" and so on.

    Returns:
        The same decision, or a denial with the rule "protocol:NAME".
    """
    if decision.verdict == "deny":
        return decision
    if not protocol.startswith(_NEVER) and decision.protocol in ("any", protocol):
        return decision
    return replace(decision, verdict="deny", rule=f"protocol:{protocol}")


def unix_allowed(policy_paths: Collection[str], path: str) -> bool:
    """Say whether an AF_UNIX socket on the host may be connected to: only by its exact, canonical name.

    Args:
        policy_paths: The policy's `unix_sockets`, made absolute.
        path: Absolute path with every link resolved, or "@name" for an abstract socket. A path that is not in
            canonical form (//, ., .., a final /, NUL) is refused, since it could name something else.
    """
    # Compared one by one: `in` would look for a part of the text if a lone string were passed.
    if not any(path == listed for listed in policy_paths) or "\x00" in path:
        return False
    if path.startswith("@"):
        return len(path) > 1
    return path.startswith("/") and all(part not in ("", ".", "..") for part in path[1:].split("/"))
