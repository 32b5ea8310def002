/** The audit table: every record that this page has, filtered and searched, with only the visible rows in the page. */

import { element, fill, say } from "../core/dom";
import { number, text, texts, type AuditEvent } from "../core/events";
import { bytes, count, oneLine } from "../core/text";
import type { Feed } from "./feed";
import { Panel } from "./panel";
import { time } from "./store";

const ROW_PX = 22;
const WINDOW_PX = 286;
const AROUND = 8;
const COLUMNS = ["seq", "time", "kind", "step", "pid", "verdict", "basis", "what"];

/** The panel with the table. */
export class AuditPanel extends Panel {
  readonly #search = element("input", { type: "search", placeholder: "search", "aria-label": "search the records" });
  readonly #kind = element("select", { "aria-label": "kind" });
  readonly #verdict = element("select", { "aria-label": "verdict" });
  readonly #note = element("span", { class: "aw-audit-note", role: "status" });
  readonly #rows = element("div", { class: "aw-grid-rows", role: "none" });
  readonly #scroll = element("div", { class: "aw-grid-scroll", tabindex: 0, role: "rowgroup" });
  readonly #grid: HTMLElement;
  #kinds = "";
  #found: AuditEvent[] = [];
  #key = "";
  #seen = -1;

  constructor(feed: Feed) {
    super("audit", "Audit log", feed, 500);
    const head = row(COLUMNS.map((name) => element("span", { role: "columnheader" }, name)), 1, "aw-grid-head");
    this.#scroll.append(this.#rows);
    const headGroup = element("div", { role: "rowgroup" }, head);
    this.#grid = element("div", { class: "aw-grid", role: "table", "aria-label": "audit log" }, headGroup, this.#scroll);
    fill(this.#verdict, ...["", "allow", "deny", "ask", "kill"].map((each) => option(each, "every verdict")));
    fill(this.#kind, option("", "every kind"));
    const filters = element("div", { class: "aw-filters" }, this.#search, this.#kind, this.#verdict, this.#note);
    fill(this.body, filters, this.#grid);
    this.#scroll.style.height = `${WINDOW_PX}px`;
    this.#scroll.addEventListener("scroll", () => {
      this.#show();
    });
    for (const control of [this.#search, this.#kind, this.#verdict]) {
      control.addEventListener("input", () => {
        this.draw();
      });
    }
    this.touch();
  }

  protected override draw(): void {
    const { rows, missing } = this.feed.store;
    const isAtEnd = this.#scroll.scrollTop + WINDOW_PX + ROW_PX >= this.#found.length * ROW_PX;
    const wanted = { kind: this.#kind.value, verdict: this.#verdict.value, search: this.#search.value.toLowerCase() };
    const key = JSON.stringify(wanted);
    const first = rows[0]?.seq ?? 0;
    if (key !== this.#key) {
      this.#key = key;
      this.#seen = -1;
      this.#found = [];
    }
    // Records only ever come at the end, so that only new ones are looked at.
    const fresh = rows.slice(firstAfter(rows, this.#seen));
    this.#found = this.#found.filter((event) => event.seq >= first);
    this.#found.push(...fresh.filter((event) => fits(event, wanted)));
    this.#seen = rows.at(-1)?.seq ?? this.#seen;
    this.#offer(fresh);
    const lost = missing === 0 ? "" : `, ${missing} never reached this page: see the log`;
    say(this.#note, `${this.#found.length} of ${count(rows.length, "record")}${lost}`);
    this.#show();
    if (isAtEnd) {
      this.#scroll.scrollTop = this.#found.length * ROW_PX;
      this.#show();
    }
  }

  #offer(fresh: readonly AuditEvent[]): void {
    const known = new Set(this.#kinds.split(" "));
    const added = [...new Set(fresh.map((event) => event.kind))].filter((kind) => /^[a-z]+$/.test(kind) && !known.has(kind));
    if (added.length > 0) {
      this.#kinds = `${this.#kinds} ${added.join(" ")}`;
      this.#kind.append(...added.map((kind) => option(kind, "")));
    }
  }

  #show(): void {
    const from = Math.max(0, Math.floor(this.#scroll.scrollTop / ROW_PX) - AROUND);
    const to = Math.min(this.#found.length, from + Math.ceil(WINDOW_PX / ROW_PX) + 2 * AROUND);
    this.#grid.setAttribute("aria-rowcount", String(this.#found.length + 1));
    this.#rows.style.paddingTop = `${from * ROW_PX}px`;
    this.#rows.style.height = `${this.#found.length * ROW_PX}px`;
    fill(this.#rows, ...this.#found.slice(from, to).map((event, i) => record(event, from + i + 2)));
  }
}

/** Return what a record says, in one line. */
export function gist(event: AuditEvent): string {
  switch (event.kind) {
    case "exec":
      return `${text(event, "exe") || text(event, "path")} ${texts(event, "argv").slice(1).join(" ")}`;
    case "connect":
    case "listen":
      return `${text(event, "transport")} ${destination(event)} ${text(event, "rule")}`;
    case "flow":
      return [text(event, "op"), destination(event), text(event, "protocol"), text(event, "reason")].join(" ");
    case "dns":
      return `${text(event, "qname")} ${text(event, "qtype")} ${text(event, "rcode")}`;
    case "file":
      return `${text(event, "op")} ${text(event, "path")} ${text(event, "path2")}`;
    case "step":
      return `${text(event, "op")} ${texts(event, "argv").join(" ")} ${text(event, "outcome")}`;
    case "agent":
      return agent(event);
    case "reward":
      return `run ${text(event, "run")} turn ${number(event, "turn")} earned ${number(event, "total")}`;
    case "finding":
      return `${text(event, "severity")}: ${text(event, "title")} (${text(event, "rule")})`;
    case "breaker":
      return `${text(event, "before")} → ${text(event, "after")}: ${text(event, "cause")}`;
    case "resources":
      return resources(event);
    case "gpu":
      return gpu(event);
    default:
      return rest(event);
  }
}

function agent(event: AuditEvent): string {
  const said = ["agent", "action", "outcome", "text"].map((name) => text(event, name)).filter((word) => word !== "");
  const tokens = number(event, "tokens_in") + number(event, "tokens_out");
  const cost = tokens === 0 ? [] : [`(${tokens} tokens, ${number(event, "cost_usd").toFixed(4)} USD)`];
  const op = text(event, "op");
  const when = op === "turn" ? `turn ${number(event, "turn")}` : op;
  return [`run ${text(event, "run")} ${when}:`, ...said, ...cost].join(" ");
}

function resources(event: AuditEvent): string {
  const interval = number(event, "interval_s");
  const cpu = interval > 0 ? `${((100 * number(event, "cpu_s")) / interval).toFixed(0)} % of one core` : "";
  const moved = `read ${bytes(number(event, "read_bytes"))}, wrote ${bytes(number(event, "write_bytes"))}`;
  const alive = `${count(number(event, "processes"), "process", "processes")}, ${count(number(event, "threads"), "thread")}`;
  return [cpu, `memory ${bytes(number(event, "rss_bytes"))}`, alive, moved].filter((word) => word !== "").join(" · ");
}

function gpu(event: AuditEvent): string {
  const op = text(event, "op");
  if (op === "lease" || op === "release") {
    return `${op} of ${text(event, "device")} ${text(event, "purpose")}`;
  }
  const name = `GPU ${number(event, "index")}${event.simulated === true ? " SIMULATED" : ""} ${op}`;
  const units: [string, (value: number) => string][] = [
    ["utilization", (value) => `${value.toFixed(0)} %`],
    ["memory_bytes", bytes],
    ["power_w", (value) => `${value.toFixed(0)} W`],
    ["temperature_c", (value) => `${value.toFixed(0)} °C`],
    ["outside_s", (value) => (value > 0 ? `${value.toFixed(1)} s outside a lease` : "")],
  ];
  const values = units.flatMap(([field, told]) => {
    const value = event[field];
    return typeof value === "number" ? [told(value)] : [];
  });
  return [name, text(event, "state"), text(event, "reason"), ...values].filter((word) => word !== "").join(" · ");
}

const COMMON = new Set(["kind", "seq", "t_wall_ns", "t_mono_ns", "step", "pid", "verdict", "basis", "watch", "cell"]);

function rest(event: AuditEvent): string {
  const fields = Object.entries(event).filter(([name]) => !COMMON.has(name));
  return fields.map(([name, value]) => `${name}=${typeof value === "string" ? value : JSON.stringify(value)}`).join(" ");
}

function destination(event: AuditEvent): string {
  const host = text(event, "host");
  const addr = text(event, "addr");
  const name = host === "" ? addr : `${host} (${addr})`;
  return number(event, "port") === 0 ? name : `${name} port ${number(event, "port")}`;
}

function fits(event: AuditEvent, wanted: { kind: string; verdict: string; search: string }): boolean {
  return (
    (wanted.kind === "" || event.kind === wanted.kind) &&
    (wanted.verdict === "" || event.verdict === wanted.verdict) &&
    (wanted.search === "" || `${event.seq} ${event.kind} ${event.pid} ${gist(event)}`.toLowerCase().includes(wanted.search))
  );
}

function firstAfter(rows: readonly AuditEvent[], seq: number): number {
  let low = 0;
  let high = rows.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((rows[middle]?.seq ?? 0) <= seq) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

function record(event: AuditEvent, index: number): HTMLElement {
  const when = new Date(time(event)).toISOString().slice(11, 23);
  const what = oneLine(gist(event));
  const values = [event.seq, when, event.kind, event.step, event.pid, event.verdict, event.basis].map(String);
  const cells = values.map((value) => element("span", { role: "cell" }, value));
  cells.push(element("span", { role: "cell", class: "aw-what" }, what));
  return row(cells, index, `aw-verdict-${event.verdict}`);
}

function row(cells: HTMLElement[], index: number, kind: string): HTMLElement {
  return element("div", { class: `aw-grid-row ${kind}`, role: "row", "aria-rowindex": index }, ...cells);
}

function option(value: string, empty: string): HTMLOptionElement {
  return element("option", { value }, value || empty);
}
