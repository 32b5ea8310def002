/** What a person is told of runs: one notice for each matter of a run, taken back when it no longer holds. */

import type { RunState } from "../core/events";
import { shown } from "../core/text";
import type { AppUtils } from "./host";
import { stillHolds, type Matter, type Trip } from "./runs";

interface Notice {
  readonly run: string;
  readonly matter: Matter;
  readonly id: string;
  readonly desktop: Notification | null;
}

/** The notices that are shown. */
export class Notices {
  readonly #shown = new Map<string, Notice>();

  /** `open` shows the list of runs. */
  constructor(
    private readonly toasts: AppUtils["Notification"],
    private readonly open: () => void,
  ) {}

  /** Tell of a trip, in the place of what was said before of the same matter. */
  tell({ run, matter, what }: Trip): void {
    const key = `${run.watch} ${matter}`;
    const message = `Agent run ${shown(run.watch)} ${shown(what)}`;
    const options = { autoClose: false, actions: [{ label: "Show", callback: this.open }] };
    const before = this.#shown.get(key);
    // One that a person has closed cannot be changed.
    const isChanged = before !== undefined && this.toasts.update({ id: before.id, message, type: "error", ...options });
    const id = isChanged ? before.id : this.toasts.error(message, options);
    this.#shown.set(key, { run: run.watch, matter, id, desktop: onDesktop(run, matter, message) ?? before?.desktop ?? null });
  }

  /** Take back what no longer holds. */
  settle(runs: readonly RunState[]): void {
    const now = new Map(runs.map((run) => [run.watch, run]));
    for (const [key, { run, matter, id, desktop }] of this.#shown) {
      if (!stillHolds(matter, now.get(run))) {
        this.#shown.delete(key);
        this.toasts.dismiss(id);
        desktop?.close();
      } else if (matter === "finding" && !now.has(run)) {
        this.#shown.delete(key); // it stays for a person to read, and nothing more will be found in that run
      }
    }
  }
}

function onDesktop(run: RunState, matter: Matter, body: string): Notification | null {
  if (typeof Notification === "undefined" || Notification.permission !== "granted" || !document.hidden) {
    return null;
  }
  return new Notification("Agent Watch", { body, tag: `agentwatch-${run.watch}-${matter}` });
}
