/** The connection graph: laid out by d3-force, drawn by plotly.js, with a table of the same beside it. */

import { forceLink, forceManyBody, forceSimulation, forceX, forceY, type SimulationNodeDatum } from "d3-force";
import Plotly, { type Plot, type Trace } from "plotly.js-basic-dist-min";
import { element, fill, say } from "../core/dom";
import type { Verdict } from "../core/events";
import { bytes, count, plotted } from "../core/text";
import { graphOf, type Edge, type Graph, type GraphLink, type GraphNode } from "./connections";
import type { Feed } from "./feed";
import { Panel } from "./panel";
import { onTheme, PLOT_CONFIG, plotLayout, themeOf, type Theme } from "./theme";

const TABLE_ROWS = 200;
const TICKS_AT_FIRST = 120;
const TICKS_LATER = 12;
const HEIGHT = 320;
const LABELLED = 60;

interface Place extends SimulationNodeDatum {
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

/** The panel with graph and table. */
export class GraphPanel extends Panel {
  readonly #plot = element("div", { class: "aw-graph", role: "img", "aria-label": "connection graph" });
  readonly #empty = element("p", { class: "aw-empty" }, "no connection so far");
  readonly #chosen = element("p", { class: "aw-chosen", role: "status" });
  readonly #table = element("tbody");
  readonly #caption = element("caption");
  readonly #layout = new Layout();
  readonly #stop: () => void;
  #version = -1;
  #width = 0;
  #isListening = false;

  constructor(feed: Feed) {
    super("connections", "Connections", feed);
    const head = ["process", "endpoint", "verdict", "calls", "protocol", "sent", "received"];
    const row = element("tr", {}, ...head.map((name) => element("th", { scope: "col" }, name)));
    const table = element("table", { class: "aw-table" }, this.#caption, element("thead", {}, row), this.#table);
    const details = element("details", {}, element("summary", {}, "as a table"), scroller("connections", table));
    fill(this.body, this.#empty, this.#plot, this.#chosen, details);
    this.#stop = onTheme(() => {
      this.#version = -1;
      this.touch();
    });
    this.touch();
  }

  override close(): void {
    super.close();
    this.#stop();
    Plotly.purge(this.#plot);
  }

  protected override draw(): void {
    const { connections } = this.feed.store;
    const hasAny = connections.edges.size > 0;
    this.#empty.hidden = hasAny;
    this.#plot.hidden = !hasAny;
    const width = this.#plot.clientWidth;
    if (connections.version === this.#version && width === this.#width) {
      return;
    }
    this.#version = connections.version;
    this.#width = width;
    const edges = [...connections.edges.values()];
    this.#list(edges);
    const graph = graphOf(edges);
    this.#plot.setAttribute("aria-label", summary(edges, graph));
    if (!hasAny) {
      return;
    }
    void this.#show(graph, width || 480);
  }

  async #show(graph: Graph, width: number): Promise<void> {
    const theme = themeOf(this.#plot);
    const isStill = typeof matchMedia !== "undefined" && matchMedia("(prefers-reduced-motion: reduce)").matches;
    const places = this.#layout.place(graph, isStill);
    const across = [...places.values()].map((each) => each.x ?? 0);
    // Room on both sides for the names, which plotly.js does not count when it chooses a range.
    const range = [Math.min(-150, ...across) - 160, Math.max(150, ...across) + 160];
    const axis = { visible: false, fixedrange: true };
    const common = plotLayout(theme);
    const margin = { l: 8, r: 8, t: 8, b: 8 };
    const layout = { ...common, height: HEIGHT, width, margin, xaxis: { ...axis, range }, yaxis: axis, hovermode: "closest" };
    const traces = [...lines(graph, places, theme), ...marks(graph, places, theme)];
    const plot = await Plotly.react(this.#plot, traces, layout, PLOT_CONFIG);
    if (!this.#isListening) {
      this.#isListening = true;
      this.#listen(plot);
    }
  }

  #listen(plot: Plot): void {
    plot.on("plotly_click", (event) => {
      const id = event.points.find((point) => typeof point.customdata === "string")?.customdata;
      if (typeof id === "string") {
        say(this.#chosen, this.#describe(id));
      }
    });
  }

  #describe(id: string): string {
    const edges = [...this.feed.store.connections.edges.values()];
    const name = id.slice(id.indexOf(":") + 1);
    if (id.startsWith("endpoint:")) {
      const users = edges.filter((edge) => edge.endpoint === name);
      return `${name}: ${users.map((edge) => `${edge.program} (${edge.pid}) ${edge.verdict}`).join(", ") || "folded"}`;
    }
    const own = edges.filter((edge) => `${edge.program} (${edge.pid})` === name || edge.program === name);
    const process = this.feed.store.processes.get(own[0]?.pid ?? -1);
    const command = process === undefined ? "" : `, step ${process.step}: ${process.argv || process.exe}`;
    return `${name}${command} → ${own.map((edge) => edge.endpoint).join(", ")}`;
  }

  #list(edges: readonly Edge[]): void {
    const order: Record<Verdict, number> = { kill: 0, deny: 1, ask: 2, allow: 3 };
    const sorted = [...edges].sort((a, b) => order[a.verdict] - order[b.verdict] || b.count - a.count);
    const more = edges.length - TABLE_ROWS;
    say(this.#caption, `${count(edges.length, "connection")}${more > 0 ? `; the first ${TABLE_ROWS} are shown` : ""}`);
    fill(this.#table, ...sorted.slice(0, TABLE_ROWS).map(tableRow));
  }
}

/** Wrap what may be wider than the page, so that it can be scrolled by keyboard. */
export function scroller(name: string, ...children: Node[]): HTMLElement {
  return element("div", { class: "aw-scroll", role: "region", "aria-label": name, tabindex: 0 }, ...children);
}

function tableRow(edge: Edge): HTMLElement {
  const cells = [
    `${edge.program} (${edge.pid})`,
    edge.endpoint,
    edge.reason === "" ? edge.verdict : `${edge.verdict}: ${edge.reason}`,
    String(edge.count),
    edge.protocol,
    bytes(edge.bytesOut),
    bytes(edge.bytesIn),
  ];
  return element("tr", { class: `aw-verdict-${edge.verdict}` }, ...cells.map((text) => element("td", {}, text)));
}

function summary(edges: readonly Edge[], graph: Graph): string {
  const denied = edges.filter((edge) => edge.verdict === "deny").length;
  const folded = graph.isFolded ? ", neighbours folded together" : "";
  return `connection graph: ${count(edges.length, "connection")}, ${denied} with a refused call${folded}; a table follows`;
}

function start(node: GraphNode): Place {
  // The same graph is laid out the same way in each browser: no chance in it.
  let hash = 0;
  for (const char of node.id) {
    hash = (hash * 31 + (char.codePointAt(0) ?? 0)) | 0;
  }
  return { id: node.id, side: node.side, x: node.side === "process" ? -150 : 150, y: (hash % 200) + hash / 2 ** 32 };
}

function lines(graph: Graph, places: Map<string, Place>, theme: Theme): Trace[] {
  const groups = new Map<string, GraphLink[]>();
  for (const link of graph.links) {
    const width = link.bytes > 1e6 ? 4 : link.bytes > 1e4 ? 2.5 : 1.2;
    const key = `${link.verdict} ${width}`;
    groups.set(key, [...(groups.get(key) ?? []), link]);
  }
  return [...groups].map(([key, links]) => {
    const [verdict, width] = key.split(" ");
    const ends = links.flatMap((link) => [places.get(link.source), places.get(link.target), undefined]);
    return {
      type: "scatter",
      mode: "lines",
      x: ends.map((end) => end?.x ?? null),
      y: ends.map((end) => end?.y ?? null),
      line: { color: colour(verdict, theme), width: Number(width), dash: verdict === "deny" ? "dot" : "solid" },
      hoverinfo: "skip",
    };
  });
}

function marks(graph: Graph, places: Map<string, Place>, theme: Theme): Trace[] {
  const protocols = new Map<string, string>();
  for (const link of graph.links) {
    protocols.set(link.target, link.protocol);
  }
  return (["process", "endpoint"] as const).map((side) => {
    const nodes = graph.nodes.filter((node) => node.side === side);
    const isProcess = side === "process";
    return {
      type: "scatter",
      mode: nodes.length <= LABELLED ? "markers+text" : "markers",
      x: nodes.map((node) => places.get(node.id)?.x ?? 0),
      y: nodes.map((node) => places.get(node.id)?.y ?? 0),
      text: nodes.map((node) => plotted(named(node), 32)),
      textposition: isProcess ? "middle left" : "middle right",
      hovertext: nodes.map((node) => plotted(hover(node, protocols.get(node.id) ?? ""), 200)),
      hoverinfo: "text",
      customdata: nodes.map((node) => node.id),
      cliponaxis: false,
      marker: {
        symbol: nodes.map((node) => (isProcess ? "square" : node.members > 1 ? "diamond" : "circle")),
        size: nodes.map((node) => 9 + Math.min(12, 3 * Math.log2(node.members || 1))),
        color: nodes.map((node) => (isProcess && node.verdict !== "deny" ? theme.process : colour(node.verdict, theme))),
      },
    };
  });
}

function named(node: GraphNode): string {
  return node.members > 1 ? `${node.label} +${node.members - 1} more` : node.label;
}

function hover(node: GraphNode, protocol: string): string {
  return [named(node), node.verdict, protocol].filter((text) => text !== "").join(" · ");
}

function colour(verdict: string | undefined, theme: Theme): string {
  return verdict === "allow" ? theme.allow : verdict === "ask" ? theme.ask : theme.deny;
}
