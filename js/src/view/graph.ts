/** The panel of the connection graph, drawn by plotly.js, with a table of the same beside it. */

import Plotly, { type Plot } from "plotly.js-basic-dist-min";
import { element, fill, say } from "../core/dom";
import type { Verdict } from "../core/events";
import { bytes, count, oneLine } from "../core/text";
import { graphOf, type Edge, type Graph } from "./connections";
import type { Feed } from "./feed";
import { Layout } from "./layout";
import { Panel } from "./panel";
import { heightOf, sceneOf, widthOf } from "./scene";
import { onTheme, PLOT_CONFIG, plotLayout, themeOf } from "./theme";

const TABLE_ROWS = 200;
const MARGIN = 8;

/** The panel with graph and table. */
export class GraphPanel extends Panel {
  readonly #plot = element("div", { class: "aw-graph", role: "img", "aria-label": "connection graph" });
  readonly #empty = element("p", { class: "aw-empty" }, "no connection so far");
  readonly #chosen = element("p", { class: "aw-chosen", role: "status" });
  readonly #table = element("tbody");
  readonly #caption = element("caption");
  readonly #details: HTMLDetailsElement;
  readonly #layout = new Layout();
  readonly #stop: () => void;
  #version = -1;
  #width = 0;
  #look = "";
  #isListening = false;

  constructor(feed: Feed) {
    super("connections", "Connections", feed);
    const head = ["process", "endpoint", "verdict", "calls", "protocol", "sent", "received"];
    const row = element("tr", {}, ...head.map((name) => element("th", { scope: "col" }, name)));
    const table = element("table", { class: "aw-table" }, this.#caption, element("thead", {}, row), this.#table);
    this.#details = element("details", {}, element("summary", {}, "as a table"), scroller("connections", table));
    fill(this.body, this.#empty, this.#plot, this.#chosen, this.#details);
    const again = (): void => {
      this.#version = -1;
      this.#look = "";
      this.touch();
    };
    this.#details.addEventListener("toggle", again);
    this.#stop = onTheme(again);
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
    this.#plot.setAttribute("data-nodes", String(graph.nodes.length));
    // A further call along a line that is there changes nothing that can be seen.
    const look = `${width} ${lookOf(graph)}`;
    if (hasAny && look !== this.#look) {
      this.#look = look;
      void this.#show(graph, width || 480);
    }
  }

  async #show(graph: Graph, width: number): Promise<void> {
    const theme = themeOf(this.#plot);
    const isStill = typeof matchMedia !== "undefined" && matchMedia("(prefers-reduced-motion: reduce)").matches;
    const places = this.#layout.place(graph, isStill);
    const common = plotLayout(theme);
    const inner = heightOf(graph, places);
    const { traces, shapes, x, y } = sceneOf(graph, places, theme, [width - 2 * MARGIN, inner]);
    const axis = { visible: false, fixedrange: true };
    const margin = { l: MARGIN, r: MARGIN, t: MARGIN, b: MARGIN };
    const axes = { xaxis: { ...axis, range: x }, yaxis: { ...axis, range: y } };
    const layout = { ...common, ...axes, height: inner + 2 * MARGIN, width, margin, shapes, hovermode: "closest" };
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
    const command = process === undefined ? "" : `, step ${process.step}: ${oneLine(process.argv || process.exe)}`;
    return `${name}${command} → ${own.map((edge) => edge.endpoint).join(", ")}`;
  }

  #list(edges: readonly Edge[]): void {
    const more = edges.length - TABLE_ROWS;
    say(this.#caption, `${count(edges.length, "connection")}${more > 0 ? `; the first ${TABLE_ROWS} are shown` : ""}`);
    if (!this.#details.open) {
      return; // it is filled when somebody opens it
    }
    const order: Record<Verdict, number> = { kill: 0, deny: 1, ask: 2, allow: 3 };
    const sorted = [...edges].sort((a, b) => order[a.verdict] - order[b.verdict] || b.count - a.count);
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

/** Return everything of a graph that is drawn or said of a node, but the places, which follow from it. */
function lookOf(graph: Graph): string {
  const nodes = graph.nodes.map((node) => `${node.id}\t${node.members}\t${node.verdict}`);
  const links = graph.links.map((link) => [link.source, link.target, link.verdict, widthOf(link.bytes), link.protocol].join("\t"));
  return [...nodes, ...links].join("\n");
}

function summary(edges: readonly Edge[], graph: Graph): string {
  const denied = edges.filter((edge) => edge.verdict === "deny").length;
  const folded = graph.isFolded ? ", neighbours folded together" : "";
  return `connection graph: ${count(edges.length, "connection")}, ${denied} with a refused call${folded}; a table follows`;
}
