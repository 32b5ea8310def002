/** Telemetry as lines: coarse ones from the records of the log, fine ones from the live samples, without a seam. */

import type { LineName } from "../core/events";

/** Names and units of the charts' panels, as the kernel's figures have them. */
export const CHARTS: Readonly<Record<string, readonly (readonly [string, string])[]>> = {
  gpu: [
    ["utilisation", "%"],
    ["memory", "GiB"],
    ["power", "W"],
    ["temperature", "°C"],
  ],
  resources: [
    ["CPU", "% of one core"],
    ["memory", "MiB"],
    ["alive", "count"],
    ["storage", "MB/s"],
  ],
};

/** One line: times in milliseconds since 1970, growing, and values, null where they are not known. */
export interface Curve extends LineName {
  readonly t: number[];
  readonly y: (number | null)[];
}

/** Points that are kept of each line. */
export const POINTS = 600;

const LINES = 512;
const VERSION = 1;
const HEAD = 16;

/** The lines of one run. */
export class Curves {
  readonly #known = new Map<string, Curve>();
  #order: Curve[] = [];
  #notes: Readonly<Record<string, readonly string[]>> = {};
  readonly #recorded = new Map<string, string>();
  /** Grows with each change. */
  version = 0;
  #liveFrom = Infinity;

  /** The lines of a chart, in the order in which they appeared. */
  of(chart: string): Curve[] {
    return [...this.#known.values()].filter((curve) => curve.chart === chart);
  }

  /** What must be said beside a chart. */
  notes(chart: string): readonly string[] {
    const recorded = chart === "gpu" ? [...this.#recorded.values()].filter((note) => note !== "") : [];
    return this.#notes[chart] ?? recorded;
  }

  /** Learn which lines the numbers of further points stand for. */
  name(lines: readonly LineName[], notes: Readonly<Record<string, readonly string[]>>): void {
    this.version += 1;
    this.#order = lines.slice(0, LINES).map((line) => this.#curve(line));
    this.#notes = notes;
  }

  /** Say something of a GPU, "" to take it back, as long as nobody says it live. */
  note(device: string, words: string): void {
    this.version += 1;
    if (this.#recorded.size < LINES || this.#recorded.has(device)) {
      this.#recorded.set(device, words);
    }
  }

  /** Take a value from a record of the log; where there are live samples, these are finer. */
  record(line: LineName, t: number, value: number | null): void {
    if (t < this.#liveFrom) {
      this.version += 1;
      append(this.#curve(line), t, value);
    }
  }

  /** Take points as the server packs them; what is not understood is passed over. */
  unpack(message: ArrayBuffer | DataView): void {
    const view = message instanceof DataView ? message : new DataView(message);
    if (view.byteLength < HEAD || view.getUint32(0, true) !== VERSION) {
      return;
    }
    this.version += 1;
    const runs = view.getUint32(4, true);
    const base = view.getFloat64(8, true);
    this.#begin(base);
    let at = HEAD;
    for (let run = 0; run < runs && at + 8 <= view.byteLength; run += 1) {
      const curve = this.#order[view.getUint32(at, true)];
      const count = view.getUint32(at + 4, true);
      const times = at + 8;
      const values = times + 4 * count;
      at = values + 4 * count;
      if (at > view.byteLength) {
        return;
      }
      for (let i = 0; curve !== undefined && i < count; i += 1) {
        const value = view.getFloat32(values + 4 * i, true);
        append(curve, base + view.getFloat32(times + 4 * i, true), Number.isNaN(value) ? null : value);
      }
    }
  }

  /** From the first live sample on, what the log says more coarsely is left out. */
  #begin(t: number): void {
    if (this.#liveFrom !== Infinity) {
      return;
    }
    this.#liveFrom = t;
    for (const curve of this.#known.values()) {
      while ((curve.t.at(-1) ?? -Infinity) >= t) {
        curve.t.pop();
        curve.y.pop();
      }
    }
  }

  #curve(line: LineName): Curve {
    const key = JSON.stringify([line.chart, line.panel, line.group, line.part]);
    const known = this.#known.get(key);
    if (known !== undefined) {
      return known;
    }
    const made: Curve = { ...line, t: [], y: [] };
    if (this.#known.size < LINES) {
      this.#known.set(key, made);
    }
    return made;
  }
}

function append(curve: Curve, t: number, value: number | null): void {
  if (t <= (curve.t.at(-1) ?? -Infinity)) {
    return; // it is here already: a connection that was lost begins with what is kept
  }
  curve.t.push(t);
  curve.y.push(value);
  if (curve.t.length > POINTS * 1.25) {
    curve.t.splice(0, curve.t.length - POINTS);
    curve.y.splice(0, curve.y.length - POINTS);
  }
}
