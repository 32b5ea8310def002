/**
 * The kill as a state machine: every route at once, the first acknowledgement wins, green only on one.
 *
 * It knows neither buttons nor networks; routes and clock are passed in.
 */

import { count } from "./text";

/** Which way an answer came. */
export type Via = "http" | "control" | "comm";

/** What a route brought back. `final`: nothing of the watch goes on. */
export interface KillAnswer {
  readonly final: boolean;
  readonly killed: number;
  /** null: nobody could count. */
  readonly survivors: number | null;
  readonly via: Via;
  readonly note: string;
  readonly message: string;
}

/** One way to the supervisor. Rejects where it cannot be gone; the error's message says why. */
export interface Route {
  readonly via: Via;
  send(run: string): Promise<KillAnswer>;
}

/** Where the button stands. */
export type KillPhase =
  | { readonly name: "armed" }
  | { readonly name: "sending" }
  | { readonly name: "done"; readonly answer: KillAnswer; readonly ms: number }
  | { readonly name: "unconfirmed"; readonly why: string; readonly command: string };

/** Milliseconds without an acknowledgement after which a person must act; one that comes later still counts. */
export const PATIENCE_MS = 6000;

/** One kill switch of one run. */
export class Kill {
  #phase: KillPhase = { name: "armed" };
  #timer: ReturnType<typeof setTimeout> | undefined;
  #attempt = 0;

  constructor(
    readonly run: string,
    private readonly routes: readonly Route[],
    private readonly changed: (phase: KillPhase) => void,
    private readonly now: () => number = () => performance.now(),
    private readonly patience = PATIENCE_MS,
  ) {}

  /** Where it stands. */
  get phase(): KillPhase {
    return this.#phase;
  }

  /** Fire all routes; pressing again while they are under way changes nothing, after a failure it fires again. */
  press(): void {
    if (this.#phase.name === "sending" || this.#phase.name === "done") {
      return;
    }
    const attempt = (this.#attempt += 1);
    const began = this.now();
    const reasons: string[] = [];
    this.#enter({ name: "sending" });
    this.#timer = setTimeout(() => {
      this.#fail(["no acknowledgement", ...reasons]);
    }, this.patience);
    let open = this.routes.length;
    const lose = (via: Via, why: string): void => {
      open -= 1;
      reasons.push(`${via}: ${why}`);
      if (open === 0 && attempt === this.#attempt) {
        this.#fail(reasons);
      }
    };
    for (const route of this.routes) {
      attempted(route, this.run).then(
        (answer) => {
          if (answer.final) {
            this.#finish(answer, this.now() - began);
          } else {
            lose(route.via, answer.message || "something is left");
          }
        },
        (error: unknown) => {
          lose(route.via, error instanceof Error ? error.message : String(error));
        },
      );
    }
    if (open === 0) {
      this.#fail(["this page has no way to the supervisor"]);
    }
  }

  /** Take what another source proves: the run has ended. */
  acknowledge(answer: KillAnswer): void {
    this.#finish(answer, 0);
  }

  /** Forget the timer. */
  close(): void {
    clearTimeout(this.#timer);
  }

  #finish(answer: KillAnswer, ms: number): void {
    if (this.#phase.name !== "done") {
      clearTimeout(this.#timer);
      this.#enter({ name: "done", answer, ms });
    }
  }

  #fail(reasons: readonly string[]): void {
    if (this.#phase.name === "sending") {
      clearTimeout(this.#timer);
      this.#enter({ name: "unconfirmed", why: reasons.join("; "), command: killCommand(this.run) });
    }
  }

  #enter(phase: KillPhase): void {
    this.#phase = phase;
    this.changed(phase);
  }
}

/** Return what a person types to kill a run without this page; made here, so that no answer can choose it. */
export function killCommand(run: string): string {
  return `jupyter agentwatch kill ${/^[0-9a-f]{8}$/.test(run) ? run : "--all"}`;
}

/** Return what to say of a phase. */
export function phaseText(phase: KillPhase): string {
  switch (phase.name) {
    case "armed":
      return "";
    case "sending":
      return "sending…";
    case "done": {
      const { answer } = phase;
      if (answer.survivors === null) {
        return `ended; ${answer.note || "nobody counted what it left"} (via ${answer.via})`;
      }
      const ended = `killed ${count(answer.killed, "process", "processes")}, ${answer.survivors} left`;
      const how = `${Math.round(phase.ms)} ms, via ${answer.via}`;
      return answer.note === "" ? `${ended}, ${how}` : `${ended}, ${how} (${answer.note})`;
    }
    case "unconfirmed":
      return `NOT confirmed (${phase.why}). In a terminal: `;
  }
}

/** Read an answer of the server, or of the kernel, which has the same form. */
export function killAnswer(body: Record<string, unknown>, via: Via): KillAnswer {
  const survivors = body.survivors;
  const left = typeof survivors === "number" ? survivors : null;
  return {
    // Two fields must agree before a button turns green.
    final: body.final === true && (left === null || left === 0),
    killed: typeof body.killed === "number" ? body.killed : 0,
    survivors: left,
    via,
    note: typeof body.note === "string" ? body.note : "",
    message: typeof body.message === "string" ? body.message : "",
  };
}

async function attempted(route: Route, run: string): Promise<KillAnswer> {
  return await route.send(run);
}
