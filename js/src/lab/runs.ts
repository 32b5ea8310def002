/** All runs at a glance, as the server's summary stream tells them; asks nothing of any kernel. */

import { readState, type RunState } from "../core/events";
import { isObject, socketUrl, type Server } from "../core/server";

const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 30_000;

/** What a notice is about. */
export type Matter = "stop" | "silence" | "question" | "finding";

/** How a run changed in a way that a person must hear of. */
export interface Trip {
  readonly run: RunState;
  readonly matter: Matter;
  readonly what: string;
}

const SEVERITIES = ["critical", "high", "medium", "low", "info"];

/** The list of runs, kept up to date. */
export class Runs {
  runs: readonly RunState[] = [];
  /** The server has our extension. */
  isHere = false;
  /** Why the list may be stale, or "". */
  problem = "asking…";
  #pause = FIRST_PAUSE_MS;

  constructor(
    private readonly server: Server,
    private readonly changed: () => void,
    private readonly tripped: (trip: Trip) => void,
  ) {}

  /** Connect, and connect again whenever the connection is lost. */
  follow(): void {
    const socket = new WebSocket(socketUrl(this.server, "summary"));
    socket.onmessage = (event: MessageEvent<unknown>) => {
      this.#pause = FIRST_PAUSE_MS;
      this.take(typeof event.data === "string" ? JSON.parse(event.data) : null);
    };
    socket.onclose = () => {
      this.problem = "no connection to the server";
      this.changed();
      setTimeout(() => {
        this.follow();
      }, this.#pause);
      this.#pause = Math.min(LONGEST_PAUSE_MS, this.#pause * 2);
    };
  }

  /** Take a message of the stream. */
  take(message: unknown): void {
    if (!isObject(message) || !Array.isArray(message.runs)) {
      return;
    }
    const before = new Map(this.runs.map((run) => [run.watch, run]));
    const isFirst = !this.isHere;
    this.runs = message.runs.filter(isObject).map(readState);
    this.isHere = true;
    this.problem = typeof message.error === "string" ? message.error : "";
    for (const run of this.runs) {
      const trip = tripOf(before.get(run.watch), run);
      if (trip !== null && (!isFirst || run.state !== "closed")) {
        this.tripped(trip);
      }
    }
    this.changed();
  }
}

/** Return what happened to a run that a person must hear of, or null. */
export function tripOf(before: RunState | undefined, now: RunState): Trip | null {
  const trip = (matter: Matter, what: string): Trip => ({ run: now, matter, what });
  if (now.state !== before?.state && isStopped(now)) {
    // The supervisor notes why it tripped; a person's own suspension needs no reason.
    const why = now.notes.filter((note) => note.startsWith(`${now.state}: `)).at(-1) ?? now.state;
    return trip("stop", `is ${why}`);
  }
  if (now.state === "silent" && before !== undefined && before.state !== "silent") {
    return trip("silence", "does not answer");
  }
  if (now.asks.length > (before?.asks.length ?? 0)) {
    return trip("question", `asks: ${now.asks.at(-1)?.text ?? ""}`);
  }
  const fresh = before === undefined ? 0 : findings(now) - findings(before);
  return fresh > 0 ? trip("finding", foundIn(now, fresh)) : null;
}

/** Return whether what a notice was about still holds; a finding always does. */
export function stillHolds(matter: Matter, now: RunState | undefined): boolean {
  switch (matter) {
    case "stop":
      return now !== undefined && (isStopped(now) || now.state === "silent");
    case "silence":
      return now?.state === "silent";
    case "question":
      return now !== undefined && (now.asks.length > 0 || now.state === "silent");
    case "finding":
      return true;
  }
}

function isStopped(run: RunState): boolean {
  return run.state === "frozen" || run.state === "throttled";
}

function findings(run: RunState): number {
  return Object.entries(run.counts).reduce((sum, [key, n]) => (key.startsWith("finding") ? sum + n : sum), 0);
}

/** Name the finding, or of several the gravest. */
function foundIn(run: RunState, fresh: number): string {
  const rank = (told: string): number => SEVERITIES.findIndex((severity) => told.startsWith(`${severity}: `));
  const [gravest] = [...run.findings.slice(-fresh)].sort((one, other) => rank(one) - rank(other));
  if (fresh === 1) {
    return `has a new finding: ${gravest ?? "see its log"}`;
  }
  return `has ${fresh} new findings: ${gravest ?? "see its log"}, and ${fresh - 1} more`;
}
