/** Lines over time, drawn by plotly.js and fed with what is new only. */

import Plotly, { type Trace } from "plotly.js-basic-dist-min";
import { element, fill, say } from "../core/dom";
import { plotted } from "../core/text";
import { CHARTS, POINTS, type Curve } from "./curves";
import type { Feed } from "./feed";
import { Panel } from "./panel";
import { LINES, onTheme, PLOT_CONFIG, plotLayout, themeOf } from "./theme";

/** Points come every 0.3 to 0.4 s: a longer pace of our own would only add to that. */
const POINTS_PACE_MS = 200;
const SUMMARY_MS = 5000;
const LEGEND = 6;
const HEIGHT = 140;

/** One chart. */
export class Strip {
  readonly node: HTMLElement;
  #drawn: number[] = [];
  #names = "";
  #width = 0;
  #saidAt = -Infinity;
  readonly #stop: () => void;

  constructor(
    private readonly title: string,
    changed: () => void,
  ) {
    this.node = element("div", { class: "aw-strip", role: "img", "aria-label": title });
    this.#stop = onTheme(() => {
      this.#names = ""; // plotly.js keeps the colours that it was given
      changed(); // and of a run that has ended no point comes any more that would have it drawn
    });
  }

  /** Show lines; `groups` are all that the panels beside it show, so that each has one colour in all of them. */
  draw(lines: readonly Curve[], groups: readonly string[]): void {
    const names = JSON.stringify(lines.map(nameOf));
    if (names !== this.#names || this.node.clientWidth !== this.#width) {
      this.#names = names;
      this.#width = this.node.clientWidth;
      const traces = lines.map((line) => trace(line, Math.max(0, groups.indexOf(line.group))));
      void Plotly.react(this.node, traces, this.#layout(lines.length), PLOT_CONFIG);
      this.#drawn = lines.map(latest);
    } else {
      this.#extend(lines);
    }
    this.#describe(lines);
  }

  /** Let go of everything. */
  close(): void {
    this.#stop();
    Plotly.purge(this.node);
  }

  #extend(lines: readonly Curve[]): void {
    const from = lines.map((line, i) => firstAfter(line.t, this.#drawn[i] ?? -Infinity));
    const indices = lines.flatMap((line, i) => ((from[i] ?? 0) < line.t.length ? [i] : []));
    if (indices.length === 0) {
      return;
    }
    const x = indices.map((i) => lines[i]?.t.slice(from[i]) ?? []);
    const y = indices.map((i) => lines[i]?.y.slice(from[i]) ?? []);
    void Plotly.extendTraces(this.node, { x, y }, indices, POINTS);
    this.#drawn = lines.map(latest);
  }

  #layout(lines: number): Record<string, unknown> {
    const common = plotLayout(themeOf(this.node));
    return {
      ...common,
      title: { text: plotted(this.title), x: 0.01, y: 0.97, font: { size: 12 } },
      height: HEIGHT,
      width: this.node.clientWidth || 300,
      showlegend: lines > 1 && lines <= LEGEND,
      legend: { orientation: "h", x: 1, xanchor: "right", y: 1.02, yanchor: "bottom", font: { size: 10 } },
      xaxis: { ...(common.xaxis as object), type: "date", nticks: 4, tickformat: "%H:%M:%S", ticklabeloverflow: "allow" },
      yaxis: { ...(common.yaxis as object), rangemode: "tozero", nticks: 4, ticklabeloverflow: "allow" },
    };
  }

  #describe(lines: readonly Curve[]): void {
    const now = performance.now();
    if (now - this.#saidAt < SUMMARY_MS) {
      return; // a screen reader must not be told ten times a second
    }
    this.#saidAt = now;
    const values = lines.map((line) => `${nameOf(line)} ${round(line.y.at(-1))}`);
    this.node.setAttribute("aria-label", plotted(`${this.title}: ${values.join(", ") || "no data"}`, 400));
  }
}

/** Charts one below the other, and what must be said beside them. */
abstract class ChartPanel extends Panel {
  readonly #strips: Strip[];
  readonly #notice = element("p", { class: "aw-empty" });

  constructor(
    private readonly chart: "gpu" | "resources",
    title: string,
    feed: Feed,
  ) {
    super(chart, title, feed, POINTS_PACE_MS, "curves");
    this.#strips = (CHARTS[chart] ?? []).map(([name, unit]) => {
      const again = (): void => {
        this.touch();
      };
      return new Strip(`${name}, ${unit}`, again);
    });
    fill(this.body, this.#notice, ...this.#strips.map((strip) => strip.node));
    this.touch();
  }

  override close(): void {
    super.close();
    this.#strips.forEach((strip) => {
      strip.close();
    });
  }

  protected override draw(): void {
    const lines = this.feed.store.curves.of(this.chart);
    const notes = this.feed.store.curves.notes(this.chart);
    const notice = notes.join(" · ") || (lines.length === 0 ? this.nothing : "");
    say(this.#notice, notice.startsWith("SIMULATED") ? `SIMULATED: these GPUs are not real${notice.slice(9)}` : notice);
    this.#notice.hidden = notice === "";
    const groups = [...new Set(lines.map((line) => line.group))];
    this.#strips.forEach((strip, panel) => {
      const own = lines.filter((line) => line.panel === panel);
      strip.node.hidden = own.length === 0;
      if (own.length > 0) {
        strip.draw(own, groups);
      }
    });
  }

  /** What is said where nothing was measured. */
  protected abstract readonly nothing: string;
}

/** What the sandbox as a whole uses. */
export class ResourcesPanel extends ChartPanel {
  protected override readonly nothing = "no measurements yet";

  constructor(feed: Feed) {
    super("resources", "CPU, memory, storage", feed);
  }
}

/** What each GPU does, and what of it is the sandbox's. */
export class GpuPanel extends ChartPanel {
  protected override readonly nothing = "no GPU was measured in this run";

  constructor(feed: Feed) {
    super("gpu", "GPU", feed);
  }
}

function nameOf(line: Curve): string {
  return line.part === "" ? line.group : `${line.group}, ${line.part}`;
}

function trace(line: Curve, colour: number): Trace {
  return {
    type: "scatter",
    mode: "lines",
    name: plotted(nameOf(line)),
    x: [...line.t],
    y: [...line.y],
    line: { color: LINES[colour % LINES.length], width: 1.5, dash: line.part === "" ? "solid" : "dot" },
    hoverinfo: "x+y+name",
  };
}

function latest(line: Curve): number {
  return line.t.at(-1) ?? -Infinity;
}

function firstAfter(times: readonly number[], t: number): number {
  let first = times.length;
  while (first > 0 && (times[first - 1] ?? 0) > t) {
    first -= 1;
  }
  return first;
}

function round(value: number | null | undefined): string {
  return value === null || value === undefined ? "unknown" : String(Math.round(value * 10) / 10);
}
