/** What plotly.js is given to draw a graph; of a large one few elements, each with many nodes or lines in it. Pure. */

import { plotted } from "../core/text";
import type { Graph, GraphLink, GraphNode } from "./connections";
import { COLUMN, LABELLED, type Place } from "./layout";
import type { Theme } from "./theme";

const CORNERS = { square: 4, diamond: 4, circle: 10 } as const;
const NAMES = 160;
const EDGE = 20;
const LETTER_PX = 6.3;
const NAME = 32;
const BETWEEN_PX = 560;
const LEAST_PX = 90;
const MARK_PX = 20;
const LOW = 120;
const HIGH = 320;

type Mark = keyof typeof CORNERS;
type Item = Record<string, unknown>;

/** Traces and shapes, and the ranges of both axes. */
export interface Scene {
  readonly traces: Item[];
  readonly shapes: Item[];
  readonly x: [number, number];
  readonly y: [number, number];
}

/** Return how high the plot of a graph is, in pixels: with names, as high as they need. */
export function heightOf(graph: Graph, places: ReadonlyMap<string, Place>): number {
  if (graph.nodes.length > LABELLED) {
    return HIGH;
  }
  const [top, bottom] = down(places);
  return Math.max(LOW, bottom - top);
}

/** Return how a graph is drawn on so many pixels. */
export function sceneOf(graph: Graph, places: ReadonlyMap<string, Place>, theme: Theme, size: [number, number]): Scene {
  const isSmall = graph.nodes.length <= LABELLED;
  const across = [...places.values()].map((each) => each.x ?? 0);
  const spread: [number, number] = [Math.min(-COLUMN, ...across) - NAMES, Math.max(COLUMN, ...across) + NAMES];
  const x = isSmall ? named(graph.nodes, size[0]) : spread;
  const y = down(places);
  const scale: [number, number] = [(x[1] - x[0]) / size[0], (y[1] - y[0]) / size[1]];
  const marks = isSmall ? [] : outlines(graph.nodes, places, theme, scale);
  const letters = Math.min(NAME, Math.floor(((size[0] - LEAST_PX) / 2 - MARK_PX) / LETTER_PX));
  const traces = points(graph, places, theme, isSmall ? Math.max(6, letters) : 0);
  return { traces, shapes: [...lines(graph.links, places, theme), ...marks], x, y };
}

function down(places: ReadonlyMap<string, Place>): [number, number] {
  const all = [...places.values()].map((each) => each.y ?? 0);
  return [Math.min(...all, -EDGE) - EDGE, Math.max(...all, EDGE) + EDGE];
}

/** Room on both sides for the names, which plotly.js does not count when it chooses a range. */
function named(nodes: readonly GraphNode[], width: number): [number, number] {
  const [left = 0, right = 0] = (["process", "endpoint"] as const).map((side) => {
    const letters = nodes.filter((node) => node.side === side).map((node) => Math.min(nameOf(node).length, NAME));
    return MARK_PX + LETTER_PX * Math.max(4, ...letters);
  });
  const between = Math.min(BETWEEN_PX, Math.max(LEAST_PX, width - left - right));
  const spare = Math.max(0, (width - between - left - right) / 2);
  const unit = (2 * COLUMN) / between;
  return [-COLUMN - unit * (left + spare), COLUMN + unit * (right + spare)];
}

/** Return how broad a line is for so many bytes, in pixels. */
export function widthOf(bytes: number): number {
  return bytes > 1e6 ? 4 : bytes > 1e4 ? 2.5 : 1.2;
}

/** One path for all lines that look alike: a thousand elements would take a thousand times as long to style. */
function lines(links: readonly GraphLink[], places: ReadonlyMap<string, Place>, theme: Theme): Item[] {
  const paths = new Map<string, string[]>();
  for (const link of links) {
    const [from, to] = [places.get(link.source), places.get(link.target)];
    if (from !== undefined && to !== undefined) {
      add(paths, `${link.verdict} ${widthOf(link.bytes)}`, `M${at(from.x, from.y)}L${at(to.x, to.y)}`);
    }
  }
  const isCrowded = links.length > LABELLED;
  const dots = isCrowded ? "dash" : "dot"; // each dot is work for whoever paints it
  return [...paths].map(([look, pieces]) => {
    const [verdict, width] = look.split(" ");
    const dash = verdict === "allow" || verdict === "ask" ? "solid" : dots;
    return shape(pieces, { opacity: isCrowded ? 0.5 : 1, line: { color: colourOf(verdict, theme), width: Number(width), dash } });
  });
}

function outlines(
  nodes: readonly GraphNode[],
  places: ReadonlyMap<string, Place>,
  theme: Theme,
  scale: [number, number],
): Item[] {
  const paths = new Map<string, string[]>();
  const smaller = Math.max(0.5, Math.sqrt(LABELLED / nodes.length));
  for (const node of nodes) {
    const place = places.get(node.id);
    if (place !== undefined) {
      add(paths, fillOf(node, theme), polygon(place.x ?? 0, place.y ?? 0, symbolOf(node), smaller * sizeOf(node), scale));
    }
  }
  return [...paths].map(([fill, pieces]) => shape(pieces, { fillcolor: fill, line: { width: 0 } }));
}

function shape(pieces: readonly string[], look: Item): Item {
  return { type: "path", path: pieces.join(""), layer: "below", fillcolor: "rgba(0,0,0,0)", ...look };
}

function polygon(x: number, y: number, symbol: Mark, size: number, [across, down]: [number, number]): string {
  const corners = CORNERS[symbol];
  const turn = symbol === "square" ? Math.PI / 4 : 0;
  const radius = (size / 2) * (symbol === "circle" ? 1 : Math.SQRT2);
  const found = Array.from({ length: corners }, (_, i) => {
    const angle = turn + (2 * Math.PI * i) / corners;
    return at(x + radius * across * Math.cos(angle), y + radius * down * Math.sin(angle));
  });
  return `M${found.join("L")}Z`;
}

/** The nodes as plotly.js knows them, for hovering and clicking; of a small graph also what is seen, with names. */
function points(graph: Graph, places: ReadonlyMap<string, Place>, theme: Theme, letters: number): Item[] {
  const protocols = new Map(graph.links.map((link) => [link.target, link.protocol]));
  return (["process", "endpoint"] as const).map((side) => {
    const nodes = graph.nodes.filter((node) => node.side === side);
    const common = {
      type: "scatter",
      x: nodes.map((node) => places.get(node.id)?.x ?? 0),
      y: nodes.map((node) => places.get(node.id)?.y ?? 0),
      hovertext: nodes.map((node) => plotted(hover(node, protocols.get(node.id) ?? ""), 200)),
      hoverinfo: "text",
      hoverlabel: { bgcolor: side === "process" ? theme.process : theme.muted },
      customdata: nodes.map((node) => node.id),
    };
    if (letters === 0) {
      return { ...common, mode: "none" };
    }
    return {
      ...common,
      mode: "markers+text",
      text: nodes.map((node) => plotted(cut(nameOf(node), letters), 2 * NAME)),
      textposition: side === "process" ? "middle left" : "middle right",
      cliponaxis: false,
      marker: {
        symbol: nodes.map(symbolOf),
        size: nodes.map(sizeOf),
        color: nodes.map((node) => fillOf(node, theme)),
      },
    };
  });
}

function symbolOf(node: GraphNode): Mark {
  return node.side === "process" ? "square" : node.members > 1 ? "diamond" : "circle";
}

function sizeOf(node: GraphNode): number {
  return 9 + Math.min(12, 3 * Math.log2(node.members || 1));
}

function fillOf(node: GraphNode, theme: Theme): string {
  return node.side === "process" && node.verdict !== "deny" ? theme.process : colourOf(node.verdict, theme);
}

function cut(name: string, letters: number): string {
  return name.length > letters ? `${name.slice(0, letters - 1)}\u2026` : name;
}

function nameOf(node: GraphNode): string {
  return node.members > 1 ? `${node.label} +${node.members - 1} more` : node.label;
}

function hover(node: GraphNode, protocol: string): string {
  return [nameOf(node), node.verdict, protocol].filter((text) => text !== "").join(" · ");
}

function colourOf(verdict: string | undefined, theme: Theme): string {
  return verdict === "allow" ? theme.allow : verdict === "ask" ? theme.ask : theme.deny;
}

function at(x = 0, y = 0): string {
  return `${x.toFixed(1)},${y.toFixed(1)}`;
}

function add(paths: Map<string, string[]>, look: string, piece: string): void {
  const known = paths.get(look);
  if (known === undefined) {
    paths.set(look, [piece]);
  } else {
    known.push(piece);
  }
}
