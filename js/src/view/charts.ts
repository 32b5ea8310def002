/** Lines over time, drawn by plotly.js and fed with what is new only. */

import Plotly, { type Plot, type Trace } from "plotly.js-basic-dist-min";
import { element, fill, say } from "../core/dom";
import { plotted } from "../core/text";
import { CHARTS, POINTS, type Curve } from "./curves";
import type { Feed } from "./feed";
import { Panel } from "./panel";
import { linesOf, onTheme, PLOT_CONFIG, plotLayout, themeOf } from "./theme";

/** Points come every 0.3 to 0.4 s: a longer pace of our own would only add to that. */
const POINTS_PACE_MS = 200;
const SUMMARY_MS = 5000;
const LEGEND = 8;
const HEIGHT = 116;
const WINDOW_MS = 60_000;
const SIMULATED = " SIMULATED";

/** One chart: its title with what each line is and has now, and below it the lines. */
export class Strip {
  readonly node: HTMLElement;
  readonly #plot: HTMLElement;
  readonly #mark = element("span", { class: "aw-mark" });
  readonly #keys = element("ul", { class: "aw-keys" });
  readonly #values: HTMLElement[] = [];
  #drawn: number[] = [];
  #names = "";
  #width = 0;
  #saidAt = -Infinity;
  #isZoomed = false;
  #isListening = false;
  #range: [number, number] = [0, 1];
  readonly #stop: () => void;

  constructor(
    private readonly title: string,
    changed: () => void,
  ) {
    this.#plot = element("div", { class: "aw-strip", role: "img", "aria-label": title });
    const head = element("div", { class: "aw-strip-head" }, element("span", {}, title), this.#mark, this.#keys);
    this.node = element("div", { class: "aw-strip-box" }, head, this.#plot);
    this.#stop = onTheme(() => {
      this.#names = ""; // plotly.js keeps the colours that it was given
      changed(); // and of a run that has ended no point comes any more that would have it drawn
    });
  }

  /** Show lines; `groups` are all that the charts beside it show, so that each has one colour in all of them. */
  draw(lines: readonly Curve[], groups: readonly string[], range: [number, number]): void {
    this.#range = range;
    const names = JSON.stringify(lines.map(nameOf));
    if (names !== this.#names || this.#plot.clientWidth !== this.#width) {
      this.#names = names;
      this.#width = this.#plot.clientWidth;
      const colours = linesOf(this.#plot);
      const colourOf = (line: Curve): string => colours[Math.max(0, groups.indexOf(line.group)) % colours.length] ?? "";
      this.#legend(lines, colourOf);
      void this.#react(lines, colourOf);
      this.#drawn = lines.map(latest);
    } else {
      this.#extend(lines);
    }
    this.#describe(lines);
  }

  /** Let go of everything. */
  close(): void {
    this.#stop();
    Plotly.purge(this.#plot);
  }

  async #react(lines: readonly Curve[], colourOf: (line: Curve) => string): Promise<void> {
    const traces = lines.map((line) => trace(line, colourOf(line)));
    const plot = await Plotly.react(this.#plot, traces, this.#layout(), PLOT_CONFIG);
    if (!this.#isListening) {
      this.#isListening = true;
      plot.on("plotly_relayout", (change) => {
        this.#isZoomed = "xaxis.range[0]" in change; // a double click takes it back, and names another thing
      });
    }
  }

  #extend(lines: readonly Curve[]): void {
    const from = lines.map((line, i) => firstAfter(line.t, this.#drawn[i] ?? -Infinity));
    const indices = lines.flatMap((line, i) => ((from[i] ?? 0) < line.t.length ? [i] : []));
    if (indices.length === 0) {
      return;
    }
    const x = indices.map((i) => lines[i]?.t.slice(from[i]) ?? []);
    const y = indices.map((i) => lines[i]?.y.slice(from[i]) ?? []);
    const axis = (this.#plot as Partial<Plot>).layout?.xaxis;
    if (axis !== undefined && !this.#isZoomed) {
      // Read by the drawing that follows: a `relayout` would be a second one.
      axis.range = this.#range;
      axis.autorange = false;
    }
    void Plotly.extendTraces(this.#plot, { x, y }, indices, POINTS);
    this.#drawn = lines.map(latest);
  }

  #layout(): Record<string, unknown> {
    const common = plotLayout(themeOf(this.#plot));
    const time = { type: "date", nticks: 4, tickformat: "%H:%M:%S", ticklabeloverflow: "hide past div" };
    const isShare = this.title.endsWith(", %");
    const height = isShare ? { range: [0, 105], tickvals: [0, 50, 100] } : { rangemode: "tozero", nticks: 4 };
    return {
      ...common,
      margin: { l: 40, r: 10, t: 6, b: 20 },
      height: HEIGHT,
      width: this.#plot.clientWidth || 300,
      xaxis: { ...(common.xaxis as object), ...time, range: this.#range },
      yaxis: { ...(common.yaxis as object), ...height, fixedrange: true, ticklabeloverflow: "allow" },
    };
  }

  /** What plotly.js has for this would cover the lines, and cost a layout of its own at each drawing. */
  #legend(lines: readonly Curve[], colourOf: (line: Curve) => string): void {
    say(this.#mark, lines.some((line) => line.group.endsWith(SIMULATED)) ? SIMULATED.trim() : "");
    const wholes = lines.filter((line) => line.part === "");
    const isNamed = wholes.length > 1;
    const keys = wholes.slice(0, LEGEND).map((line) => {
      const swatch = element("span", { class: "aw-swatch", "aria-hidden": "true" });
      swatch.style.background = colourOf(line);
      const name = isNamed ? [swatch, shortOf(line.group)] : [];
      return element("li", { "data-group": line.group }, ...name, element("b"));
    });
    const more = wholes.length > LEGEND ? [element("li", {}, `and ${wholes.length - LEGEND} more`)] : [];
    fill(this.#keys, ...keys, ...more);
    this.#values.splice(0, Infinity, ...keys.flatMap((key) => [...key.querySelectorAll("b")]));
  }

  #describe(lines: readonly Curve[]): void {
    const wholes = lines.filter((line) => line.part === "");
    this.#values.forEach((value, i) => {
      say(value, round(wholes[i]?.y.at(-1)));
    });
    const now = performance.now();
    if (now - this.#saidAt < SUMMARY_MS) {
      return; // a screen reader must not be told ten times a second
    }
    this.#saidAt = now;
    const values = lines.map((line) => `${nameOf(line)} ${round(line.y.at(-1))}`);
    this.#plot.setAttribute("aria-label", plotted(`${this.title}: ${values.join(", ") || "no data"}`, 400));
  }
}

/** Charts over one span of time, and what must be said beside them. */
abstract class ChartPanel extends Panel {
  readonly #strips: Strip[];
  readonly #notice = element("p", { class: "aw-empty" });
  readonly #strokes = element("p", { class: "aw-empty" }, "solid: the whole GPU; dotted: what of it is the sandbox's");

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
    const strips = element("div", { class: "aw-strips" }, ...this.#strips.map((strip) => strip.node));
    fill(this.body, this.#notice, this.#strokes, strips);
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
    this.#strokes.hidden = lines.every((line) => line.part === "");
    this.node.toggleAttribute("data-empty", lines.length === 0);
    const range = spanOf(lines, this.feed.store.hasEnded);
    const groups = [...new Set(lines.map((line) => line.group))];
    this.#strips.forEach((strip, panel) => {
      const own = lines.filter((line) => line.panel === panel);
      strip.node.hidden = own.length === 0;
      if (own.length > 0) {
        strip.draw(own, groups, range);
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

/** Return the span that all charts of a panel show: the last minute, or all that is there of a run that has ended. */
export function spanOf(lines: readonly Curve[], isWhole: boolean): [number, number] {
  const ends = lines.flatMap((line) => line.t.at(-1) ?? []);
  const starts = lines.flatMap((line) => line.t[0] ?? []);
  const until = Math.max(...ends, 1);
  const first = Math.min(...starts, until - 1000);
  return [isWhole ? first : Math.max(first, until - WINDOW_MS), until];
}

function shortOf(group: string): string {
  return group.endsWith(SIMULATED) ? group.slice(0, -SIMULATED.length) : group; // the title says it of all of them
}

function nameOf(line: Curve): string {
  return line.part === "" ? line.group : `${line.group}, ${line.part}`;
}

function trace(line: Curve, colour: string): Trace {
  return {
    type: "scatter",
    mode: "lines",
    name: plotted(nameOf(line)),
    x: [...line.t],
    y: [...line.y],
    line: { color: colour, width: 1.5, dash: line.part === "" ? "solid" : "dot" },
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
