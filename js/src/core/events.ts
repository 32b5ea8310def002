/** What the server's stream carries, as far as the page reads it. Fields that are left out have their default. */

import { isObject } from "./server";

/** What was answered to a call. */
export type Verdict = "allow" | "deny" | "ask" | "kill";

/** One record of the audit log; the further fields depend on `kind`. */
export interface AuditEvent {
  readonly kind: string;
  readonly seq: number;
  readonly t_wall_ns: number;
  readonly step: number;
  readonly pid: number;
  readonly verdict: Verdict;
  readonly basis: string;
  readonly [field: string]: unknown;
}

/** A call that is held for a person; after `left` seconds without an answer it is denied (null: nobody says). */
export interface Ask {
  readonly ask: number;
  readonly text: string;
  readonly left: number | null;
}

/** Findings of one kind about one step, with what came of it. */
export interface Incident {
  readonly family: string;
  readonly severity: string;
  readonly title: string;
  readonly step: number;
  readonly command: string;
  /** Turn and thought of the agent's run that asked for it; 0 and "" where none did, or said none. */
  readonly turn: number;
  readonly thought: string;
  readonly findings: number;
  readonly began: number;
  /** null: it goes on. */
  readonly ended: number | null;
  readonly duration: number;
  readonly ancestry: readonly string[];
  readonly prevented: readonly string[];
  readonly breaker: readonly string[];
  readonly lastBytes: readonly string[];
  readonly leakedOut: number;
  readonly leakedIn: number;
  readonly leakedFor: number;
  /** Share of its GPU time that the leased job lost; null: not known. */
  readonly slowdown: number | null;
  readonly cpu: number;
  readonly gpu: number;
  readonly bytesOut: number;
  readonly money: number;
}

/** A picture of a run; `state` is "closed" (normal), "throttled", "frozen", "killed", "ended", "silent" or "unknown". */
export interface RunState {
  readonly watch: string;
  readonly state: string;
  readonly rung: string;
  readonly workspace: string;
  readonly elapsed_s: number;
  readonly processes: number;
  readonly steps: number;
  readonly head: string;
  readonly log: string;
  readonly kernel: string;
  readonly notes: readonly string[];
  readonly counts: Readonly<Record<string, number>>;
  readonly asks: readonly Ask[];
  /** The latest few, as "severity: title (rule)", the newest last. */
  readonly findings: readonly string[];
  /** Seconds until `onExpiry` ("kill" or "resume") happens to a frozen run; null where it is not frozen. */
  readonly frozenLeft: number | null;
  readonly onExpiry: string;
  readonly killed: number;
  readonly survivors: number | null;
  readonly note: string;
}

/** A line of a chart: what it is about, and which part of that ("" for the whole, "sandbox" for what is the run's own). */
export interface LineName {
  readonly chart: string;
  readonly panel: number;
  readonly group: string;
  readonly part: string;
}

/** A message of a run's stream. */
export type StreamMessage =
  | { readonly type: "lines"; readonly lines: readonly LineName[]; readonly notes: Readonly<Record<string, readonly string[]>> }
  | { readonly type: "state"; readonly run: RunState }
  | { readonly type: "events"; readonly events: readonly AuditEvent[] }
  | { readonly type: "gap"; readonly lost: number }
  | { readonly type: "incidents"; readonly incidents: readonly Incident[]; readonly message: string }
  | { readonly type: "ended"; readonly run: RunState }
  | { readonly type: "lost"; readonly message: string };

/** Return a field as text, "" where it is none. */
export function text(event: Record<string, unknown>, field: string): string {
  const value = event[field];
  return typeof value === "string" ? value : "";
}

/** Return a field as a number, 0 where it is none. */
export function number(event: Record<string, unknown>, field: string): number {
  const value = event[field];
  return typeof value === "number" && Number.isFinite(value) ? value : 0;
}

/** Return a field as a list of texts. */
export function texts(event: Record<string, unknown>, field: string): string[] {
  const value = event[field];
  return Array.isArray(value) ? value.filter((each): each is string => typeof each === "string") : [];
}

/** Read a message; null where it is of a kind that this version does not know. */
export function readMessage(data: unknown): StreamMessage | null {
  if (!isObject(data)) {
    return null;
  }
  switch (data.type) {
    case "state":
    case "ended":
      return isObject(data.run) ? { type: data.type, run: readState(data.run) } : null;
    case "events":
      return Array.isArray(data.events) ? { type: "events", events: readEvents(data.events) } : null;
    case "lines":
      return readLines(data);
    case "incidents":
      return { type: "incidents", incidents: readIncidents(data.incidents), message: text(data, "message") };
    case "gap":
      return { type: "gap", lost: number(data, "lost") };
    case "lost":
      return { type: "lost", message: text(data, "message") };
    default:
      return null;
  }
}

function readIncidents(found: unknown): Incident[] {
  return (Array.isArray(found) ? found.filter(isObject) : []).map((each) => ({
    family: text(each, "family"),
    severity: text(each, "severity"),
    title: text(each, "title"),
    step: number(each, "step"),
    command: text(each, "command"),
    turn: number(each, "turn"),
    thought: text(each, "thought"),
    findings: number(each, "findings"),
    began: number(each, "began_ms"),
    ended: seconds(each.ended_ms),
    duration: number(each, "duration_s"),
    ancestry: texts(each, "ancestry"),
    prevented: texts(each, "prevented"),
    breaker: texts(each, "breaker"),
    lastBytes: texts(each, "last_bytes"),
    leakedOut: number(each, "leaked_out"),
    leakedIn: number(each, "leaked_in"),
    leakedFor: number(each, "leaked_s"),
    slowdown: seconds(each.slowdown),
    cpu: number(each, "cpu_s"),
    gpu: number(each, "gpu_s"),
    bytesOut: number(each, "bytes_out"),
    money: number(each, "money"),
  }));
}

function seconds(value: unknown): number | null {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

function readLines(data: Record<string, unknown>): StreamMessage {
  const lines = Array.isArray(data.lines) ? data.lines.filter(isObject) : [];
  const notes = isObject(data.notes) ? data.notes : {};
  return {
    type: "lines",
    lines: lines.map((line) => ({
      chart: text(line, "chart"),
      panel: number(line, "panel"),
      group: text(line, "group"),
      part: text(line, "part"),
    })),
    notes: Object.fromEntries(Object.keys(notes).map((chart) => [chart, texts(notes, chart)])),
  };
}

/** Read a picture of a run. */
export function readState(run: Record<string, unknown>): RunState {
  const asks = Array.isArray(run.asks) ? run.asks.filter(isObject) : [];
  const counts = isObject(run.counts) ? Object.entries(run.counts) : [];
  return {
    watch: text(run, "watch"),
    state: text(run, "state"),
    rung: text(run, "rung"),
    workspace: text(run, "workspace"),
    elapsed_s: number(run, "elapsed_s"),
    processes: number(run, "processes"),
    steps: number(run, "steps"),
    head: text(run, "head"),
    log: text(run, "log"),
    kernel: text(run, "kernel"),
    notes: texts(run, "notes"),
    counts: Object.fromEntries(counts.filter((pair): pair is [string, number] => typeof pair[1] === "number")),
    asks: asks.map((each) => {
      const ask = number(each, "ask");
      return { ask, text: text(each, "text"), left: seconds(isObject(run.asks_left_s) ? run.asks_left_s[ask] : null) };
    }),
    findings: texts(run, "findings"),
    frozenLeft: seconds(run.frozen_left_s),
    onExpiry: text(run, "on_expiry"),
    killed: number(run, "killed"),
    survivors: typeof run.survivors === "number" ? run.survivors : null,
    note: text(run, "note"),
  };
}

/** Read records; what is none is left out. */
export function readEvents(found: readonly unknown[]): AuditEvent[] {
  return found.filter(isObject).map((event) => ({
    ...event,
    kind: text(event, "kind"),
    seq: number(event, "seq"),
    t_wall_ns: number(event, "t_wall_ns"),
    step: number(event, "step"),
    pid: number(event, "pid"),
    verdict: verdict(event.verdict),
    basis: text(event, "basis"),
  }));
}

function verdict(value: unknown): Verdict {
  return value === "allow" || value === "ask" || value === "kill" ? value : "deny";
}
