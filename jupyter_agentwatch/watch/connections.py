"""Who talked to whom: a graph of processes and endpoints, made of events alone. Pure; knows nothing of how it is drawn.

Every name in it (programs, hosts, paths) is hostile text, as it came.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from jupyter_agentwatch.events import AnyEvent, Connect, Dns, Exec, Flow, Verdict

__all__ = [
    "ConnectionGraph",
    "ConnectionGrapher",
    "Edge",
    "EndpointNode",
    "ProcessNode",
    "connection_graph",
    "folded_by_host",
]

_MANY: Final = 20_000
_SHOWN_NODES: Final = 300
_READABLE_ENDPOINTS: Final = 24
_ELSEWHERE: Final = "elsewhere"


@dataclass(frozen=True, slots=True)
class ProcessNode:
    """A process that named an endpoint.

    Attributes:
        key: Names it in this graph.
        pid: As the host numbers it; 0 where it is not known.
        step: Its step; 0 where it is not known.
        program: Path of the program that it ran then, or "".
    """

    key: str
    pid: int
    step: int
    program: str


@dataclass(frozen=True, slots=True)
class EndpointNode:
    """Something that was connected to, or was to be.

    Attributes:
        key: Names it in this graph.
        transport: "tcp", "udp", "unix", "dns" (a name that was refused), or "" for endpoints folded into one.
        host: Name that led to it, or "".
        addr: Address literal or path.
        port: Port; 0 where there is none, or where it stands for several of one host.
        folded: Endpoints that this one stands for, beyond itself.
    """

    key: str
    transport: str
    host: str
    addr: str
    port: int
    folded: int = 0

    @property
    def port_text(self) -> str:
        """What stands behind the host: ":443", ": 10 ports" or ""."""
        if self.folded and self.transport:
            return f": {self.folded + 1} ports"
        return f":{self.port}" if self.port else ""


@dataclass(slots=True)
class Edge:
    """What one process had to do with one endpoint.

    Attributes:
        process: Key of the process.
        endpoint: Key of the endpoint.
        allowed: Attempts that were allowed.
        denied: Attempts, and flows under way, that were refused.
        asked: Attempts that a person was asked about.
        bytes_out: Bytes from the sandbox, of ended flows and of first bytes.
        bytes_in: Bytes to the sandbox, likewise.
        protocols: Protocols that the first bytes named.
        rules: Rules that decided.
        last_ns: Unix time of the last event, nanoseconds.
    """

    process: str
    endpoint: str
    allowed: int = 0
    denied: int = 0
    asked: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    protocols: set[str] = field(default_factory=set)
    rules: set[str] = field(default_factory=set)
    last_ns: int = 0

    @property
    def verdict(self) -> Verdict:
        """The worst that was answered: a refusal is never hidden by what was allowed before or after."""
        if self.denied:
            return "deny"
        return "allow" if self.allowed or not self.asked else "ask"

    def add(self, other: Edge) -> None:
        """Count what another edge counts, too."""
        self.allowed += other.allowed
        self.denied += other.denied
        self.asked += other.asked
        self.bytes_out += other.bytes_out
        self.bytes_in += other.bytes_in
        self.protocols |= other.protocols
        self.rules |= other.rules
        self.last_ns = max(self.last_ns, other.last_ns)


@dataclass(frozen=True, slots=True)
class ConnectionGraph:
    """Processes, endpoints, and what they had to do with each other.

    Attributes:
        processes: In the order in which they appeared.
        endpoints: Likewise; the last one may stand for many.
        edges: At most one for each pair.
    """

    processes: tuple[ProcessNode, ...]
    endpoints: tuple[EndpointNode, ...]
    edges: tuple[Edge, ...]


@dataclass(slots=True)
class _Flowing:
    edge: Edge
    bytes_out: int = 0
    bytes_in: int = 0


class ConnectionGrapher:
    """Makes the graph of a watch, event by event. What it remembers is bounded, whatever the agent does."""

    def __init__(self) -> None:
        """Begin with an empty graph."""
        self._programs: OrderedDict[int, str] = OrderedDict()
        self._processes: dict[str, ProcessNode] = {}
        self._endpoints: dict[str, EndpointNode] = {}
        self._edges: dict[tuple[str, str], Edge] = {}
        self._flows: OrderedDict[int, _Flowing] = OrderedDict()

    def feed(self, event: AnyEvent) -> bool:
        """Take the next event of the log; tells whether the graph has changed."""
        match event:
            case Exec() if event.exe:
                self._programs[event.pid] = event.exe
                _trim(self._programs)
            case Connect():
                self._connect(event)
                return True
            case Flow():
                self._flow(event)
                return True
            case Dns() if event.verdict != "allow":
                node = EndpointNode(f"dns {event.qname}", "dns", event.qname, "", 0)
                self._count(self._edge(event, node), event.verdict, event.rule, event.t_wall_ns)
                return True
            case _:
                pass
        return False

    def graph(self, max_nodes: int = _SHOWN_NODES) -> ConnectionGraph:
        """Return the graph as it is now.

        Args:
            max_nodes: Nodes shown at most. Of more processes than half of that, and of endpoints beyond the rest, the
                ones with refusals and with most bytes are kept, and the others are folded into one of each side.
        """
        edges = list(self._edges.values())
        processes = _chosen([edge.process for edge in edges], edges, max(1, max_nodes // 2))
        endpoints = _chosen([edge.endpoint for edge in edges], edges, max(1, max_nodes - len(processes)))
        folded: dict[tuple[str, str], Edge] = {}
        for edge in edges:
            key = (
                edge.process if edge.process in processes else _ELSEWHERE,
                edge.endpoint if edge.endpoint in endpoints else _ELSEWHERE,
            )
            folded.setdefault(key, Edge(*key)).add(edge)
        left_processes = len(self._processes.keys() - processes - {_ELSEWHERE})
        left_endpoints = len(self._endpoints.keys() - endpoints - {_ELSEWHERE})
        shown_processes = [node for key, node in self._processes.items() if key in processes]
        shown_endpoints = [node for key, node in self._endpoints.items() if key in endpoints]
        if any(edge.process == _ELSEWHERE for edge in folded.values()):
            shown_processes = [node for node in shown_processes if node.key != _ELSEWHERE]
            shown_processes.append(ProcessNode(_ELSEWHERE, 0, 0, f"{max(1, left_processes)} more processes"))
        if any(edge.endpoint == _ELSEWHERE for edge in folded.values()):
            shown_endpoints = [node for node in shown_endpoints if node.key != _ELSEWHERE]
            count = max(1, left_endpoints)
            shown_endpoints.append(EndpointNode(_ELSEWHERE, "", f"{count} more endpoints", "", 0, count))
        return ConnectionGraph(tuple(shown_processes), tuple(shown_endpoints), tuple(folded.values()))

    def _connect(self, event: Connect) -> None:
        where = event.host or event.addr
        node = EndpointNode(
            f"{event.transport} {where} {event.port}", event.transport, event.host, event.addr, event.port
        )
        edge = self._edge(event, node)
        self._count(edge, event.verdict, event.rule, event.t_wall_ns)
        if event.flow:
            self._flows[event.flow] = _Flowing(edge)
            _trim(self._flows)

    def _flow(self, event: Flow) -> None:
        flowing = self._flows.get(event.flow)
        if flowing is None:
            where = event.host or event.addr
            node = EndpointNode(f"tcp {where} {event.port}", "tcp", event.host, event.addr, event.port)
            flowing = self._flows[event.flow] = _Flowing(self._edge(event, node))
            _trim(self._flows)
        edge = flowing.edge
        # Each record of a flow says how many bytes there were by then.
        edge.bytes_out += max(0, event.bytes_out - flowing.bytes_out)
        edge.bytes_in += max(0, event.bytes_in - flowing.bytes_in)
        flowing.bytes_out = max(flowing.bytes_out, event.bytes_out)
        flowing.bytes_in = max(flowing.bytes_in, event.bytes_in)
        edge.last_ns = max(edge.last_ns, event.t_wall_ns)
        if event.protocol:
            edge.protocols.add(event.protocol)
        if event.op == "named" and event.verdict != "allow":
            self._count(edge, event.verdict, event.rule, event.t_wall_ns)
        if event.op != "named":
            self._flows.pop(event.flow, None)

    def _edge(self, event: Connect | Flow | Dns, endpoint: EndpointNode) -> Edge:
        program = self._programs.get(event.pid, "")
        process = ProcessNode(f"{event.step} {event.pid} {program}", event.pid, event.step, program)
        key = (process.key, endpoint.key)
        if key not in self._edges and len(self._edges) >= _MANY:
            process = ProcessNode(_ELSEWHERE, 0, 0, "other processes")
            endpoint = EndpointNode(_ELSEWHERE, "", "other endpoints", "", 0)
            key = (_ELSEWHERE, _ELSEWHERE)
        self._processes.setdefault(process.key, process)
        self._endpoints.setdefault(endpoint.key, endpoint)
        return self._edges.setdefault(key, Edge(*key))

    def _count(self, edge: Edge, verdict: Verdict, rule: str, t_ns: int) -> None:
        if verdict == "allow":
            edge.allowed += 1
        elif verdict == "ask":
            edge.asked += 1
        else:
            edge.denied += 1
        if rule and len(edge.rules) < 64:
            edge.rules.add(rule)
        edge.last_ns = max(edge.last_ns, t_ns)


def connection_graph(events: Iterable[AnyEvent], max_nodes: int = _SHOWN_NODES) -> ConnectionGraph:
    """Return the graph of all events.

    Args:
        events: The events of one watch, in the order of the log.
        max_nodes: See `ConnectionGrapher.graph`.
    """
    grapher = ConnectionGrapher()
    for event in events:
        grapher.feed(event)
    return grapher.graph(max_nodes)


def folded_by_host(graph: ConnectionGraph, most: int = _READABLE_ENDPOINTS) -> ConnectionGraph:
    """Return a graph in which each host is one endpoint, whatever its ports; the same where it can be read as it is.

    Args:
        graph: The graph.
        most: Endpoints that can be read one below the other.
    """
    if len(graph.endpoints) <= most:
        return graph
    hosts: dict[str, list[EndpointNode]] = {}
    for node in graph.endpoints:
        hosts.setdefault(f"{node.transport} {node.host or node.addr}", []).append(node)
    endpoints: list[EndpointNode] = []
    places: dict[str, str] = {}
    for key, nodes in hosts.items():
        first = nodes[0]
        whole = first
        if len(nodes) > 1:
            whole = replace(first, key=key, port=0, folded=len(nodes) - 1 + sum(node.folded for node in nodes))
        endpoints.append(whole)
        places |= dict.fromkeys((node.key for node in nodes), whole.key)
    edges: dict[tuple[str, str], Edge] = {}
    for edge in graph.edges:
        pair = (edge.process, places[edge.endpoint])
        edges.setdefault(pair, Edge(*pair)).add(edge)
    return ConnectionGraph(graph.processes, tuple(endpoints), tuple(edges.values()))


def _chosen(keys: list[str], edges: list[Edge], number: int) -> set[str]:
    """Return those of the keys that matter most: first refusals, then bytes, then attempts."""
    weights: dict[str, list[int]] = {}
    for key, edge in zip(keys, edges, strict=True):
        weight = weights.setdefault(key, [0, 0, 0])
        weight[0] += edge.denied
        weight[1] += edge.bytes_out + edge.bytes_in
        weight[2] += edge.allowed + edge.asked
    ordered = sorted(weights, key=lambda key: weights[key], reverse=True)
    return set(ordered[:number])


def _trim(known: OrderedDict[int, str] | OrderedDict[int, _Flowing]) -> None:
    while len(known) > _MANY:
        known.popitem(last=False)
