/** What is known of one run, put together from its records; pure, bounded, and drawn by nobody here. */

import { number, text, texts, type AuditEvent, type Incident, type RunState, type StreamMessage } from "../core/events";
import { Agents } from "./agents";
import { Connections } from "./connections";
import { Curves } from "./curves";

/** A command of the run; times in milliseconds since 1970, `end` null while it runs. */
export interface Step {
  readonly number: number;
  readonly argv: string;
  /** What a shell was given to run, else the same as `argv`. */
  readonly command: string;
  readonly start: number;
  end: number | null;
  outcome: string;
}

/** A process of the run. */
export interface Process {
  readonly pid: number;
  readonly ppid: number;
  readonly step: number;
  exe: string;
  argv: string;
  ended: boolean;
}

const ROWS = 20_000;
const PROCESSES = 5000;
const FINDINGS = 500;
const STEPS = 2000;
const MIB = 2 ** 20;
const GIB = 2 ** 30;

/** All that a dashboard shows of one run. */
export class Store {
  /** The newest records, oldest first. */
  rows: AuditEvent[] = [];
  readonly steps = new Map<number, Step>();
  readonly processes = new Map<number, Process>();
  readonly findings: AuditEvent[] = [];
  readonly agents = new Agents();
  readonly connections = new Connections();
  readonly curves = new Curves();
  incidents: readonly Incident[] = [];
  /** Why there are no incidents to show, or "". */
  incidentsProblem = "";
  /** Hash of the policy, as it stands in the first record; "" where that is not here. */
  policy = "";
  /** The last move of the breaker; null before the first. */
  moved: AuditEvent | null = null;
  state: RunState | null = null;
  /** Clock of the page, milliseconds, when `state` came. */
  stateAt = 0;
  /** Why nothing more comes for now, or "". */
  lost = "";
  hasEnded = false;
  /** Records that never reached this page. */
  missing = 0;
  /** `seq` of the newest record; -1 before the first. */
  last = -1;
  /** Grows with each change. */
  version = 0;

  /** Take a message of the stream. */
  take(message: StreamMessage, now: number): void {
    this.version += 1;
    switch (message.type) {
      case "state":
        this.state = message.run;
        this.stateAt = now;
        this.lost = "";
        if (message.run.processes === 0) {
          this.#end(); // also those whose end only their own parent has seen
        }
        break;
      case "ended":
        this.state = this.state === null ? message.run : { ...this.state, ...endOf(message.run) };
        this.hasEnded = true;
        this.#end();
        this.lost = "";
        break;
      case "gap":
        break;
      case "incidents":
        this.incidents = message.incidents;
        this.incidentsProblem = message.message;
        break;
      case "lines":
        this.curves.name(message.lines, message.notes);
        break;
      case "lost":
        this.lost = message.message;
        break;
      case "events":
        for (const event of message.events) {
          this.add(event);
        }
    }
  }

  /** Take a record; one that is here already, or older than what is here, is passed over. */
  add(event: AuditEvent): void {
    if (event.seq <= this.last) {
      return;
    }
    this.missing += event.seq - this.last - 1; // a `gap` says the same of the same records
    this.last = event.seq;
    this.rows.push(event);
    if (this.rows.length > ROWS * 1.25) {
      this.rows = this.rows.slice(-ROWS);
    }
    this.agents.add(event);
    this.#sort(event);
  }

  #end(): void {
    for (const process of this.processes.values()) {
      process.ended = true;
    }
  }

  #sort(event: AuditEvent): void {
    switch (event.kind) {
      case "step":
        this.#step(event);
        break;
      case "exec":
        this.#exec(event);
        break;
      case "exit":
        this.#exit(event);
        break;
      case "session":
        this.policy ||= text(event, "policy_sha256");
        break;
      case "finding":
        keep(this.findings, event, FINDINGS);
        break;
      case "breaker":
        this.moved = event;
        break;
      case "connect":
      case "flow":
        this.connections.add(event, this.processes.get(event.pid));
        break;
      case "resources":
        this.#resources(event);
        break;
      case "gpu":
        this.#gpu(event);
        break;
    }
  }

  #step(event: AuditEvent): void {
    const known = this.steps.get(event.step);
    if (text(event, "op") === "start") {
      const argv = texts(event, "argv");
      const told = { number: event.step, argv: argv.join(" "), command: commandOf(argv) };
      this.steps.set(event.step, { ...told, start: time(event), end: null, outcome: "" });
      forget(this.steps, STEPS);
    } else if (known !== undefined) {
      known.end = time(event);
      const code = event.exit_code;
      known.outcome = typeof code === "number" ? `exit ${code}` : text(event, "outcome");
    }
  }

  #exec(event: AuditEvent): void {
    if (event.basis !== "post") {
      return; // what was asked for; what runs is in the record that answers it
    }
    const exe = text(event, "exe");
    const argv = texts(event, "argv").join(" ");
    const known = this.processes.get(event.pid);
    if (known !== undefined && !known.ended) {
      known.exe = exe;
      known.argv = argv;
    } else {
      const ppid = number(event, "ppid");
      this.processes.delete(event.pid);
      this.processes.set(event.pid, { pid: event.pid, ppid, step: event.step, exe, argv, ended: false });
      forget(this.processes, PROCESSES);
    }
  }

  #exit(event: AuditEvent): void {
    const process = this.processes.get(event.pid);
    if (process !== undefined) {
      process.ended = true;
    }
  }

  #resources(event: AuditEvent): void {
    const interval = number(event, "interval_s");
    if (event.pid !== 0 || interval <= 0) {
      return;
    }
    const t = time(event);
    const record = (panel: number, group: string, value: number): void => {
      this.curves.record({ chart: "resources", panel, group, part: "" }, t, value);
    };
    record(0, "CPU", (100 * number(event, "cpu_s")) / interval);
    record(1, "resident memory", number(event, "rss_bytes") / MIB);
    record(2, "processes", number(event, "processes"));
    record(3, "read", number(event, "read_bytes") / interval / 1e6);
    record(3, "written", number(event, "write_bytes") / interval / 1e6);
  }

  #gpu(event: AuditEvent): void {
    const op = text(event, "op");
    const group = `GPU ${number(event, "index")}${event.simulated === true ? " SIMULATED" : ""}`;
    if (op === "state") {
      const state = text(event, "state");
      this.curves.note(group, state === "ok" ? "" : `${group}: ${state} ${text(event, "reason")}`);
    }
    if (op !== "device") {
      return;
    }
    if (event.simulated === true) {
      this.curves.note("", "SIMULATED");
    }
    const memory = optional(event, "memory_bytes");
    const values = [
      optional(event, "utilization"),
      memory === null ? null : memory / GIB,
      optional(event, "power_w"),
      optional(event, "temperature_c"),
    ];
    values.forEach((value, panel) => {
      this.curves.record({ chart: "gpu", panel, group, part: "" }, time(event), value);
    });
  }
}

/** Return when a record was made, in milliseconds since 1970. */
export function time(event: AuditEvent): number {
  return event.t_wall_ns / 1e6;
}

function commandOf(argv: readonly string[]): string {
  const [program = "", option, script] = argv;
  const isScript = argv.length === 3 && option === "-c" && /(^|\/)(ba|da|z|k)?sh$/.test(program);
  return isScript && script !== undefined ? script : argv.join(" ");
}

function optional(event: AuditEvent, field: string): number | null {
  const value = event[field];
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

function endOf(run: RunState): Partial<RunState> {
  return { state: run.state, killed: run.killed, survivors: run.survivors, note: run.note, processes: 0, asks: [] };
}

function keep<T>(list: T[], item: T, most: number): void {
  list.push(item);
  if (list.length > most) {
    list.shift();
  }
}

function forget<K>(map: Map<K, unknown>, most: number): void {
  if (map.size > most) {
    const [oldest] = map.keys();
    map.delete(oldest as K);
  }
}
