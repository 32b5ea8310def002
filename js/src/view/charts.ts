/** Lines over time, drawn by plotly.js and fed with what is new only. */

import Plotly, { type Trace } from "plotly.js-basic-dist-min";
import { element, fill, say } from "../core/dom";
import { plotted } from "../core/text";
import type { Feed } from "./feed";
import { Panel } from "./panel";
import type { Device, Sample } from "./store";
import { LINES, onTheme, PLOT_CONFIG, plotLayout, themeOf } from "./theme";

const POINTS = 600;
const SUMMARY_MS = 5000;

/** Lines of one chart: which samples, which of their values, and what to call them. */
export interface Line {
  readonly name: string;
  readonly samples: readonly Sample[];
  readonly value: string;
}

/** One chart. */
export class Strip {
  readonly node: HTMLElement;
  #drawn: number[] = [];
  #names = "";
  #latest = 0;
  #saidAt = -Infinity;
  readonly #stop: () => void;

  constructor(private readonly title: string) {
    this.node = element("div", { class: "aw-strip", role: "img", "aria-label": title });
    this.#stop = onTheme(() => {
      this.#names = ""; // plotly.js keeps the colours that it was given
    });
  }

  /** Show lines. */
  draw(lines: readonly Line[]): void {
    const names = lines.map((line) => line.name).join("\n");
    if (names !== this.#names || this.node.clientWidth !== this.#latest) {
      this.#names = names;
      this.#latest = this.node.clientWidth;
      void Plotly.react(this.node, lines.map(trace), this.#layout(), PLOT_CONFIG);
      this.#drawn = lines.map((line) => line.samples.at(-1)?.t ?? -Infinity);
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

  #extend(lines: readonly Line[]): void {
    const fresh = lines.map((line, i) => newer(line.samples, this.#drawn[i] ?? -Infinity));
    const indices = fresh.flatMap((samples, i) => (samples.length > 0 ? [i] : []));
    if (indices.length === 0) {
      return;
    }
    const x = indices.map((i) => (fresh[i] ?? []).map((sample) => sample.t));
    const y = indices.map((i) => (fresh[i] ?? []).map((sample) => sample.values[lines[i]?.value ?? ""] ?? null));
    void Plotly.extendTraces(this.node, { x, y }, indices, POINTS);
    for (const i of indices) {
      this.#drawn[i] = fresh[i]?.at(-1)?.t ?? -Infinity;
    }
  }

  #layout(): Record<string, unknown> {
    const common = plotLayout(themeOf(this.node));
    return {
      ...common,
      title: { text: plotted(this.title), x: 0.01, y: 0.97, font: { size: 12 } },
      height: 140,
      width: this.node.clientWidth || 300,
      xaxis: { ...(common.xaxis as object), type: "date", nticks: 4, tickformat: "%H:%M:%S" },
      yaxis: { ...(common.yaxis as object), rangemode: "tozero", nticks: 4 },
    };
  }

  #describe(lines: readonly Line[]): void {
    const now = performance.now();
    if (now - this.#saidAt < SUMMARY_MS) {
      return; // a screen reader must not be told ten times a second
    }
    this.#saidAt = now;
    const values = lines.map((line) => `${line.name} ${round(line.samples.at(-1)?.values[line.value])}`);
    this.node.setAttribute("aria-label", plotted(`${this.title}: ${values.join(", ") || "no data"}`, 400));
  }
}

/** What the sandbox as a whole uses. */
export class ResourcesPanel extends Panel {
  readonly #strips = {
    cpu: new Strip("CPU, % of one core"),
    memory: new Strip("memory, MB"),
    io: new Strip("storage, MB/s"),
  };
  readonly #empty = element("p", { class: "aw-empty" });

  constructor(feed: Feed) {
    super("resources", "CPU, memory, storage", feed);
    fill(this.body, this.#empty, ...Object.values(this.#strips).map((strip) => strip.node));
    this.touch();
  }

  override close(): void {
    super.close();
    Object.values(this.#strips).forEach((strip) => {
      strip.close();
    });
  }

  protected override draw(): void {
    const samples = this.feed.store.resources;
    const hasAny = samples.length > 0;
    say(this.#empty, hasAny ? "" : "no measurements yet");
    this.#empty.hidden = hasAny;
    Object.values(this.#strips).forEach((strip) => {
      strip.node.hidden = !hasAny;
    });
    if (hasAny) {
      this.#strips.cpu.draw([{ name: "CPU", samples, value: "cpu" }]);
      this.#strips.memory.draw([{ name: "memory", samples, value: "memory" }]);
      const read = { name: "read", samples, value: "read" };
      this.#strips.io.draw([read, { name: "written", samples, value: "write" }]);
    }
  }
}

/** What each GPU does. */
export class GpuPanel extends Panel {
  readonly #strips = {
    utilization: new Strip("utilisation, %"),
    memory: new Strip("memory, GB"),
    power: new Strip("power, W"),
    temperature: new Strip("temperature, °C"),
  };
  readonly #notice = element("p", { class: "aw-empty" });

  constructor(feed: Feed) {
    super("gpu", "GPU", feed);
    fill(this.body, this.#notice, ...Object.values(this.#strips).map((strip) => strip.node));
    this.touch();
  }

  override close(): void {
    super.close();
    Object.values(this.#strips).forEach((strip) => {
      strip.close();
    });
  }

  protected override draw(): void {
    const devices = [...this.feed.store.devices.values()];
    const notice = noticeOf(devices);
    say(this.#notice, notice);
    this.#notice.hidden = notice === "";
    for (const [value, strip] of Object.entries(this.#strips)) {
      strip.node.hidden = devices.length === 0;
      if (devices.length > 0) {
        strip.draw(devices.map((device) => ({ name: label(device), samples: device.samples, value })));
      }
    }
  }
}

function noticeOf(devices: readonly Device[]): string {
  if (devices.length === 0) {
    return "no GPU was measured in this run";
  }
  const simulated = devices.some((device) => device.simulated) ? ["SIMULATED: these GPUs are not real"] : [];
  const broken = devices.filter((device) => device.error !== "").map((device) => `${device.label}: ${device.error}`);
  return [...simulated, ...broken].join(" · ");
}

function label(device: Device): string {
  return device.simulated ? `${device.label} (SIMULATED)` : device.label;
}

function trace(line: Line, index: number): Trace {
  return {
    type: "scatter",
    mode: "lines",
    name: plotted(line.name),
    x: line.samples.map((sample) => sample.t),
    y: line.samples.map((sample) => sample.values[line.value] ?? null),
    line: { color: LINES[index % LINES.length], width: 1.5 },
    hoverinfo: "x+y+name",
  };
}

function newer(samples: readonly Sample[], than: number): Sample[] {
  let first = samples.length;
  while (first > 0 && (samples[first - 1]?.t ?? 0) > than) {
    first -= 1;
  }
  return samples.slice(first);
}

function round(value: number | null | undefined): string {
  return value === null || value === undefined ? "unknown" : String(Math.round(value * 10) / 10);
}
