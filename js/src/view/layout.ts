/** Where the nodes of the connection graph lie: found by d3-force, the same in each browser. */

import { forceLink, forceManyBody, forceSimulation, forceX, forceY, type SimulationNodeDatum } from "d3-force";
import type { Graph, GraphNode } from "./connections";

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
      .force("x", forceX<Place>((node) => (node.side === "process" ? -150 : 150)).strength(0.25))
      .force("y", forceY<Place>(0).strength(0.04))
      .alpha(before.size === 0 ? 1 : 0.15)
      .stop();
    simulation.tick(before.size === 0 || isStill ? TICKS_AT_FIRST : TICKS_LATER);
    return this.#places;
  }
}

function start(node: GraphNode): Place {
  // The same graph is laid out the same way in each browser: no chance in it.
  let hash = 0;
  for (const char of node.id) {
    hash = (hash * 31 + (char.codePointAt(0) ?? 0)) | 0;
  }
  return { id: node.id, side: node.side, x: node.side === "process" ? -150 : 150, y: (hash % 200) + hash / 2 ** 32 };
}
