/** Where the nodes of the connection graph lie: of a small one in two columns, else found by d3-force. */

import { forceLink, forceManyBody, forceSimulation, forceX, forceY, type SimulationNodeDatum } from "d3-force";
import type { Graph, GraphNode } from "./connections";

/** Nodes up to which each has its name beside it, and the two sides are columns. */
export const LABELLED = 48;

/** Half of what lies between the two columns. */
export const COLUMN = 150;

/** Between two names in one column; of a graph with names a unit is a pixel. */
const GAP = 16;

const TICKS_AT_FIRST = 120;
const TICKS_LATER = 12;

/** A node's place. */
export interface Place extends SimulationNodeDatum {
  readonly id: string;
  readonly side: "process" | "endpoint";
}

/** Remembers where nodes lie, so that a change moves only what it must. */
export class Layout {
  #places = new Map<string, Place>();

  /** Return positions for a graph; `isStill` asks for as little motion as can be. */
  place(graph: Graph, isStill: boolean): Map<string, Place> {
    if (graph.nodes.length <= LABELLED) {
      this.#places.clear();
      return columns(graph);
    }
    const before = this.#places;
    const isNew = graph.nodes.some((node) => !before.has(node.id));
    const hasLeft = before.size > graph.nodes.length;
    this.#places = new Map(graph.nodes.map((node) => [node.id, before.get(node.id) ?? start(node)]));
    if (!isNew && !hasLeft) {
      return this.#places;
    }
    const places = [...this.#places.values()];
    const links = graph.links.map((link) => ({ source: link.source, target: link.target }));
    const simulation = forceSimulation(places)
      .force("charge", forceManyBody().strength(-40).distanceMax(300))
      .force("link", forceLink<Place, { source: string; target: string }>(links).id((node) => node.id).distance(90))
      .force("x", forceX<Place>((node) => (node.side === "process" ? -COLUMN : COLUMN)).strength(0.25))
      .force("y", forceY<Place>(0).strength(0.04))
      .alpha(before.size === 0 ? 1 : 0.15)
      .stop();
    simulation.tick(before.size === 0 || isStill ? TICKS_AT_FIRST : TICKS_LATER);
    return this.#places;
  }
}

/** Two columns: endpoints near whom they belong to and then by name, processes in the middle of where they went. */
function columns(graph: Graph): Map<string, Place> {
  const processes = graph.nodes.filter((node) => node.side === "process").map((node) => node.id);
  const rank = new Map(processes.map((id, i) => [id, i]));
  const from = neighbours(graph, "target", "source");
  const to = neighbours(graph, "source", "target");
  const weight = new Map([...from].map(([id, ids]) => [id, mean(ids.map((each) => rank.get(each) ?? 0))]));
  const endpoints = graph.nodes.filter((node) => node.side === "endpoint");
  const byName = (one: GraphNode, other: GraphNode): number => one.label.localeCompare(other.label, "en", { numeric: true });
  endpoints.sort((one, other) => (weight.get(one.id) ?? 0) - (weight.get(other.id) ?? 0) || byName(one, other));
  const rows = new Map(endpoints.map((node, i) => [node.id, GAP * ((endpoints.length - 1) / 2 - i)]));
  const middle = new Map(processes.map((id) => [id, mean((to.get(id) ?? []).map((each) => rows.get(each) ?? 0))]));
  const ordered = [...processes].sort((one, other) => (middle.get(other) ?? 0) - (middle.get(one) ?? 0));
  const places = endpoints.map((node): Place => ({ id: node.id, side: "endpoint", x: COLUMN, y: rows.get(node.id) ?? 0 }));
  const apart = spread(ordered.map((id) => -(middle.get(id) ?? 0)));
  places.push(...ordered.map((id, i): Place => ({ id, side: "process", x: -COLUMN, y: -(apart[i] ?? 0) })));
  return new Map(places.map((place) => [place.id, place]));
}

/** Move what is sorted apart until none is nearer to the next than a name is high, about the same middle. */
function spread(sorted: readonly number[]): number[] {
  let last = -Infinity;
  const moved = sorted.map((y) => (last = Math.max(y, last + GAP)));
  const shift = mean(moved) - mean(sorted);
  return moved.map((y) => y - shift);
}

function neighbours(graph: Graph, of: "source" | "target", which: "source" | "target"): Map<string, string[]> {
  const found = new Map<string, string[]>();
  for (const link of graph.links) {
    found.set(link[of], [...(found.get(link[of]) ?? []), link[which]]);
  }
  return found;
}

function mean(values: readonly number[]): number {
  return values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length;
}

function start(node: GraphNode): Place {
  // The same graph is laid out the same way in each browser: no chance in it.
  let hash = 0;
  for (const char of node.id) {
    hash = (hash * 31 + (char.codePointAt(0) ?? 0)) | 0;
  }
  return { id: node.id, side: node.side, x: node.side === "process" ? -COLUMN : COLUMN, y: (hash % 200) + hash / 2 ** 32 };
}
