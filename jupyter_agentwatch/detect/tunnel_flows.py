"""Tunnels as the network shows them: protocols at places where they do not belong, and names that carry data."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final

import msgspec

from jupyter_agentwatch.detect.bounded import Recent, Said
from jupyter_agentwatch.detect.endpoints import is_address, zone_of
from jupyter_agentwatch.detect.listed import listed
from jupyter_agentwatch.detect.model import NOTHING_DECLARED, Declared, Draft
from jupyter_agentwatch.detect.rule import Rule, draft
from jupyter_agentwatch.events import AnyEvent, Connect, Dns, Flow, Listen

__all__ = ["TUNNEL_FLOW_RULES", "TunnelFlowDetector", "label_entropy"]

_T: Final = "T1572"

SSH_PORT: Final = Rule(
    id="tunnel.ssh_port",
    title="ssh is spoken on a port that is not its own",
    severity="high",
    technique="T1571",
    rationale="ssh on 443 or 53 is there to pass where ssh may not.",
    false_positives=(
        "code hosts that offer git over ssh on port 443",
        "a second port of an ssh server, such as 2222 (medium)",
        "a host and port that a rule of the policy names (medium; not reported where the rule's protocol is ssh)",
    ),
)
SOCKS_FLOW: Final = Rule(
    id="tunnel.socks_flow",
    title="a SOCKS proxy is spoken to",
    severity="high",
    technique="T1090",
    rationale="Where the connection really goes is said inside it.",
    false_positives=("a proxy that the policy should name",),
)
WEBSOCKET: Final = Rule(
    id="tunnel.websocket",
    title="a long WebSocket carries much in both directions",
    severity="medium",
    technique=_T,
    rationale="Tunnels that pass web proxies look like this; to a bare address it is high.",
    false_positives=("remote notebooks and streaming interfaces",),
)
DNS_TUNNEL: Final = Rule(
    id="tunnel.dns",
    title="names of one domain carry data",
    severity="high",
    technique="T1071.004",
    rationale="Many different long labels without any word in them are data, and whoever owns the domain reads them.",
    false_positives=("content networks and virus scanners look up hashes",),
)
BEACON: Final = Rule(
    id="tunnel.beacon",
    title="one place is connected to at even intervals",
    severity="medium",
    technique="T1071",
    rationale="Programs that wait for orders ask for them by the clock.",
    false_positives=("health checks and pollers",),
)
SERVICE: Final = Rule(
    id="tunnel.service",
    title="a tunnelling service is reached",
    severity="high",
    technique="T1572",
    rationale="The name belongs to a service that publishes local ports or relays connections.",
    false_positives=("reading the service's documentation (a bare domain counts only where clients connect to it)",),
)

_OWN_PORTS: Final = frozenset({22})
# What administrators move sshd to, and what Bitbucket, Gerrit and Teleport speak it on.
_SECOND_PORTS: Final = frozenset({*range(2200, 2300), 7999, 22222, 29418})
_LIVELY: Final = 64 * 1024
_LONG_S: Final = 120.0
_MAX_DOMAINS: Final = 512
_LABEL: Final = 24
_UNIQUE: Final = 12
_SHORT_LABEL: Final = 12
_SHORT_ENTROPY: Final = 3.0
_MANY_SHORT: Final = 100
"""Names of content networks look like data as well; no program needs so many different ones of one domain."""

_ENTROPY: Final = 3.3
_BEATS: Final = 7
_GAP_S: Final = 4.0
_SPREAD: Final = 0.1
_SERVICES: Final = frozenset(
    listed(
        "ngrok.io ngrok.com ngrok.app ngrok-free.app ngrok-agent.com argotunnel.com trycloudflare.com cftunnel.com "
        "bore.pub loca.lt localtunnel.me loclx.io "
        "serveo.net localhost.run lhr.life lhr.rocks pinggy.io pinggy.link pagekite.me telebit.io localxpose.io "
        "playit.gg tunnelto.dev "
        "tunnelmole.net zrok.io inlets.dev packetriot.net localtonet.com devtunnels.ms "
        "tunnels.api.visualstudio.com "
        "portmap.io remote.it ts.net tailscale.com zerotier.com jprq.io "
        "gsocket.io srv.us tuns.sh tunnl.gg localcan.dev ngrok.dev "
        "expose.dev tunnelin.com homeip.io burrow.io"
    )
)
# Their clients connect to the bare name.
_ENDPOINTS: Final = frozenset({"serveo.net", "localhost.run", "bore.pub", "srv.us", "tuns.sh", "gsocket.io"})
_BARE: Final = frozenset({"", "www", "docs", "blog", "status", "dashboard", "help"})

TUNNEL_FLOW_RULES: Final = (SSH_PORT, SOCKS_FLOW, WEBSOCKET, DNS_TUNNEL, BEACON, SERVICE)
"""Every rule of this detector."""


def label_entropy(text: str) -> float:
    """Return the Shannon entropy of a text in bits for each character."""
    if not text:
        return 0.0
    counts = Counter(text)
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values())


def _domains_of(name: str) -> Iterator[str]:
    """Yield the domains that a name stands in, the largest first, and at last the name itself."""
    dot = name.rfind(".")
    while dot >= 0:
        yield name[dot + 1 :]
        dot = name.rfind(".", 0, dot)
    yield name


class _Domain(msgspec.Struct):
    names: dict[str, int] = msgspec.field(default_factory=dict)
    carried: int = 0
    short: set[str] = msgspec.field(default_factory=set)


class TunnelFlowDetector:
    """Looks at protocols, look-ups and the rhythm of connections.

    Args:
        declared: What the policy names itself.
    """

    name = "tunnel flows"
    kinds = frozenset({"connect", "dns", "flow", "listen"})

    def __init__(self, declared: Declared = NOTHING_DECLARED) -> None:
        self._declared = declared
        self._said = Said()
        self._domains: Recent[str, _Domain] = Recent(_Domain, _MAX_DOMAINS)
        self._beats: Recent[tuple[str, int], deque[tuple[int, int]]] = Recent(lambda: deque(maxlen=_BEATS))

    def feed(self, event: AnyEvent) -> Iterable[Draft]:
        """Return findings that this event completes; one for each cause and step."""
        if isinstance(event, Flow):
            return [*self._flow(event), *self._service(event, event.server_name or event.host)]
        if isinstance(event, Dns):
            return [*self._name(event), *self._service(event, event.qname)]
        if isinstance(event, Connect) and event.transport == "tcp":
            return self._rhythm(event)
        if isinstance(event, Listen):
            return self._listens(event)
        return ()

    def _flow(self, event: Flow) -> Iterable[Draft]:
        where = f"{event.host or event.addr}:{event.port}"
        if event.protocol == "ssh" and event.port not in _OWN_PORTS:
            if event.rule not in self._declared.ssh and self._said.first("ssh", event.step, where):
                usual = (
                    event.rule in self._declared.hosts
                    or event.port in _SECOND_PORTS
                    or str(event.port).endswith("022")
                    or (event.port == 443 and event.host.startswith(("ssh.", "altssh.")))
                )
                yield draft(SSH_PORT, event, where, severity="medium" if usual else None)
        elif event.protocol.startswith("socks"):
            if self._said.first("socks", event.step, where):
                yield draft(SOCKS_FLOW, event, where)
        elif event.protocol == "websocket" and event.op == "closed":
            lively = min(event.bytes_in, event.bytes_out) > _LIVELY and event.duration_s > _LONG_S
            if lively and zone_of(event.addr) != "loopback" and self._said.first("websocket", event.step, where):
                bare = is_address(event.server_name or event.host or event.addr)
                yield draft(WEBSOCKET, event, where, severity="high" if bare else None)

    def _service(self, event: Flow | Dns, name: str) -> Iterable[Draft]:
        name = name.lower().rstrip(".")
        domain = next((d for d in _domains_of(name) if d in _SERVICES), "")
        below = name[: -len(domain)].rstrip(".") if domain else ""
        counts = below not in _BARE or (not below and domain in _ENDPOINTS)
        if domain and counts and self._said.first("service", event.step, domain):
            yield draft(SERVICE, event, name)

    def _name(self, event: Dns) -> Iterable[Draft]:
        labels = event.qname.lower().rstrip(".").split(".")
        data = "".join(labels[:-2])
        longest = max((len(label) for label in labels[:-2]), default=0)
        plain = longest < _LABEL or label_entropy(data) < _ENTROPY
        if plain and longest >= _SHORT_LABEL:
            yield from self._short_name(event, labels, data)
        if plain and event.qtype not in ("TXT", "NULL", "PRIVATE", "KEY"):
            return
        domain = self._domains[".".join(labels[-2:])]
        if event.qname in domain.names or len(domain.names) >= 4 * _UNIQUE:
            return
        if not plain:
            domain.names[event.qname] = event.seq
            domain.carried += len(data)
        if len(domain.names) >= _UNIQUE and self._said.first("dns", labels[-2:][0], labels[-1]):
            detail = f"{len(domain.names)} names, {domain.carried} characters under {'.'.join(labels[-2:])}"
            yield draft(DNS_TUNNEL, event, detail, evidence=tuple(domain.names.values())[-16:])
        elif (
            longest >= 50
            and not plain
            and event.qtype in ("TXT", "NULL", "CNAME", "MX")
            and self._said.first("dns label", labels[-2])
        ):
            yield draft(DNS_TUNNEL, event, event.qname, severity="medium")

    def _short_name(self, event: Dns, labels: list[str], data: str) -> Iterable[Draft]:
        if label_entropy(data) < _SHORT_ENTROPY or not any(char.isdecimal() for char in data):
            return
        domain = self._domains[".".join(labels[-2:])]
        if len(domain.short) < _MANY_SHORT:
            domain.short.add(data)
        if len(domain.short) >= _MANY_SHORT and self._said.first("dns short", labels[-2], labels[-1]):
            yield draft(DNS_TUNNEL, event, f"{_MANY_SHORT} short names under {'.'.join(labels[-2:])}")

    def _rhythm(self, event: Connect) -> Iterable[Draft]:
        if zone_of(event.addr) == "loopback":
            return
        beats = self._beats[(event.host or event.addr, event.port)]
        beats.append((event.t_mono_ns, event.seq))
        if len(beats) < _BEATS:
            return
        times = [t for t, _ in beats]
        gaps = [(b - a) / 1e9 for a, b in pairwise(times)]
        mean = sum(gaps) / len(gaps)
        even = mean >= _GAP_S and math.sqrt(sum((g - mean) ** 2 for g in gaps) / len(gaps)) <= _SPREAD * mean
        where = f"{event.host or event.addr}:{event.port}"
        if even and self._said.first("beacon", where):
            yield draft(BEACON, event, f"{where} every {mean:.0f} s", evidence=tuple(seq for _, seq in beats))

    def _listens(self, event: Listen) -> Iterable[Draft]:
        """A SOCKS server's usual port is worth a note; what speaks on it decides."""
        if (
            event.op == "listen"
            and event.port in (1080, 9050, 1055)
            and self._said.first("listen", event.step, event.port)
        ):
            yield draft(SOCKS_FLOW, event, f"a server on port {event.port}", severity="medium")
