/** Who connected where, as edges with counts and bytes, and the same folded to as many nodes as a person can read. */

import { number, text, type AuditEvent, type Verdict } from "../core/events";
import type { Process } from "./store";

/** Where a process connected to, all its calls together. */
export interface Edge {
  readonly pid: number;
  readonly program: string;
  /** Host name or address with its port, or a socket's path. */
  readonly endpoint: string;
  verdict: Verdict;
  count: number;
  denied: number;
  bytesOut: number;
  bytesIn: number;
  protocol: string;
  reason: string;
}

/** A node of the drawn graph; `members` counts what was folded into it. */
export interface GraphNode {
  readonly id: string;
  readonly label: string;
  readonly side: "process" | "endpoint";
  members: number;
  verdict: Verdict;
}

/** A line of the drawn graph. */
export interface GraphLink {
  readonly source: string;
  readonly target: string;
  verdict: Verdict;
  count: number;
  bytes: number;
  protocol: string;
}

/** What is drawn. */
export interface Graph {
  readonly nodes: GraphNode[];
  readonly links: GraphLink[];
  readonly isFolded: boolean;
}

/** Nodes beyond which a graph is folded: legibility ends before speed does. */
export const MOST_NODES = 300;

const EDGES = 20_000;
const WORST: Record<Verdict, number> = { allow: 0, ask: 1, deny: 2, kill: 3 };

/** The edges of one run. */
export class Connections {
  readonly edges = new Map<string, Edge>();
  readonly #flows = new Map<number, string>();
  /** Grows with each change. */
  version = 0;

  /** Take a `connect` or `flow` record; `process` is who made it, where that is known. */
  add(event: AuditEvent, process: Process | undefined): void {
    this.version += 1;
    if (event.kind === "flow") {
      this.#flow(event);
      return;
    }
    const where = place(event);
    const key = `${event.pid} ${where}`;
    const edge = this.edges.get(key) ?? newEdge(event, where, process);
    this.edges.set(key, edge);
    edge.count += 1;
    edge.denied += event.verdict === "deny" ? 1 : 0;
    edge.verdict = WORST[event.verdict] > WORST[edge.verdict] || edge.verdict === "ask" ? event.verdict : edge.verdict;
    edge.reason = text(event, "rule") || edge.reason;
    const flow = number(event, "flow");
    if (flow !== 0) {
      this.#flows.set(flow, key);
    }
    drop(this.edges);
    drop(this.#flows);
  }

  #flow(event: AuditEvent): void {
    const edge = this.edges.get(this.#flows.get(number(event, "flow")) ?? "");
    if (edge === undefined) {
      return;
    }
    edge.protocol = text(event, "protocol") || edge.protocol;
    edge.bytesOut += number(event, "bytes_out");
    edge.bytesIn += number(event, "bytes_in");
    if (event.verdict === "deny") {
      edge.verdict = "deny";
      edge.denied += 1;
      edge.reason = text(event, "reason") || text(event, "rule") || edge.reason;
    }
  }
}

/** Return the graph of some edges, folded until it has no more nodes than `most`. */
export function graphOf(edges: Iterable<Edge>, most = MOST_NODES): Graph {
  const list = [...edges];
  const ways = [
    [program, endpoint],
    [program, neighbours],
    [named, neighbours],
  ] as const;
  // Counted before it is built: this happens a few times a second.
  const fitting = ways.findIndex(([from, to]) => distinct(list, from) + distinct(list, to) <= most);
  const [from, to] = ways[fitting] ?? [named, neighbours];
  const graph = build(list, from, to, fitting !== 0);
  return graph.nodes.length > most ? cut(graph, most) : graph;
}

/** Return the part of an endpoint that neighbours share: a domain, a /24 or a /48, a folder. */
export function network(endpoint: string): string {
  const host = endpoint.replace(/:\d+$/, "");
  const four = /^(\d+\.\d+\.\d+)\.\d+$/.exec(host);
  if (four !== null) {
    return `${four[1] ?? ""}.0/24`;
  }
  if (host.startsWith("/") || host.startsWith("@")) {
    return `${host.slice(0, Math.max(1, host.lastIndexOf("/")))}/…`;
  }
  if (host.includes(":")) {
    return `${host.replace(/[[\]]/g, "").split(":").slice(0, 3).join(":")}::/48`;
  }
  const labels = host.split(".");
  return labels.length > 2 ? `*.${labels.slice(-2).join(".")}` : host;
}

function distinct(edges: readonly Edge[], name: (edge: Edge) => string): number {
  return new Set(edges.map(name)).size;
}

function endpoint(edge: Edge): string {
  return edge.endpoint;
}

function neighbours(edge: Edge): string {
  return network(edge.endpoint);
}

function named(edge: Edge): string {
  return edge.program;
}

function program(edge: Edge): string {
  return `${edge.program} (${edge.pid})`;
}

function place(event: AuditEvent): string {
  const name = text(event, "host") || text(event, "addr");
  const port = number(event, "port");
  return port === 0 ? name : `${name.includes(":") ? `[${name}]` : name}:${port}`;
}

function newEdge(event: AuditEvent, where: string, process: Process | undefined): Edge {
  const name = process?.exe.split("/").pop() ?? "";
  return {
    pid: event.pid,
    program: name === "" ? "process" : name,
    endpoint: where,
    verdict: "allow",
    count: 0,
    denied: 0,
    bytesOut: 0,
    bytesIn: 0,
    protocol: "",
    reason: "",
  };
}

function build(
  edges: readonly Edge[],
  from: (edge: Edge) => string,
  to: (edge: Edge) => string,
  isFolded: boolean,
): Graph {
  const nodes = new Map<string, GraphNode>();
  const links = new Map<string, GraphLink>();
  const members = new Map<string, Set<string>>();
  for (const edge of edges) {
    const source = node(nodes, members, "process", from(edge), String(edge.pid), edge.verdict);
    const target = node(nodes, members, "endpoint", to(edge), edge.endpoint, edge.verdict);
    const key = `${source} ${target}`;
    const link = links.get(key) ?? { source, target, verdict: edge.verdict, count: 0, bytes: 0, protocol: "" };
    link.verdict = worse(link.verdict, edge.verdict);
    link.count += edge.count;
    link.bytes += edge.bytesOut + edge.bytesIn;
    link.protocol = edge.protocol || link.protocol;
    links.set(key, link);
  }
  return { nodes: [...nodes.values()], links: [...links.values()], isFolded };
}

function node(
  nodes: Map<string, GraphNode>,
  members: Map<string, Set<string>>,
  side: "process" | "endpoint",
  label: string,
  member: string,
  verdict: Verdict,
): string {
  const id = `${side}:${label}`;
  const found = nodes.get(id) ?? { id, label, side, members: 0, verdict };
  const inside = members.get(id) ?? new Set();
  inside.add(member);
  members.set(id, inside);
  found.members = inside.size;
  found.verdict = worse(found.verdict, verdict);
  nodes.set(id, found);
  return id;
}

/** Keep what was refused, then what is busiest; the table beside the graph has the rest. */
function cut(graph: Graph, most: number): Graph {
  const weight = new Map<string, number>();
  for (const link of graph.links) {
    for (const id of [link.source, link.target]) {
      weight.set(id, (weight.get(id) ?? 0) + link.count + 1e6 * WORST[link.verdict]);
    }
  }
  const byWeight = [...graph.nodes].sort((a, b) => (weight.get(b.id) ?? 0) - (weight.get(a.id) ?? 0));
  const nodes = byWeight.slice(0, most);
  const kept = new Set(nodes.map((each) => each.id));
  const links = graph.links.filter((link) => kept.has(link.source) && kept.has(link.target));
  return { nodes, links, isFolded: true };
}

function worse(one: Verdict, other: Verdict): Verdict {
  return WORST[one] >= WORST[other] ? one : other;
}

function drop(map: Map<unknown, unknown>): void {
  if (map.size > EDGES) {
    const [oldest] = map.keys();
    map.delete(oldest);
  }
}
