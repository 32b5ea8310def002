/** All runs at a glance, as the server's summary stream tells them; asks nothing of any kernel. */

import { readState, type RunState } from "../core/events";
import { isObject, socketUrl, type Server } from "../core/server";

const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 30_000;

/** How a run changed in a way that a person must hear of. */
export interface Trip {
  readonly run: RunState;
  readonly what: string;
}

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
      const what = tripOf(before.get(run.watch), run);
      if (what !== "" && (!isFirst || run.state !== "closed")) {
        this.tripped({ run, what });
      }
    }
    this.changed();
  }
}

/** Return what happened to a run that a person must hear of, or "". */
export function tripOf(before: RunState | undefined, now: RunState): string {
  if (now.state !== before?.state && (now.state === "frozen" || now.state === "throttled")) {
    // The supervisor notes why it tripped; a person's own suspension needs no reason.
    const why = now.notes.filter((note) => note.startsWith(`${now.state}: `)).at(-1) ?? now.state;
    return `is ${why}`;
  }
  if (now.state === "silent" && before !== undefined && before.state !== "silent") {
    return "does not answer";
  }
  if (now.asks.length > (before?.asks.length ?? 0)) {
    return `asks: ${now.asks.at(-1)?.text ?? ""}`;
  }
  const findings = (run: RunState): number =>
    Object.entries(run.counts).reduce((sum, [key, n]) => (key.startsWith("finding") ? sum + n : sum), 0);
  return before !== undefined && findings(now) > findings(before) ? "has a new finding" : "";
}
