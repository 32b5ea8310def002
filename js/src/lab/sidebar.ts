/** The list of all runs of this user, whichever kernel or terminal started them, each with its buttons. */

import { KillButton } from "../core/button";
import { element, fill, say } from "../core/dom";
import { askServer, followEnd } from "../core/ended";
import type { RunState } from "../core/events";
import { httpRoute } from "../core/routes";
import { post, type Server } from "../core/server";
import { count } from "../core/text";

interface Row {
  readonly node: HTMLElement;
  readonly words: HTMLElement;
  readonly suspend: HTMLButtonElement;
  readonly resume: HTMLButtonElement;
  readonly kill: KillButton;
  isGone: boolean;
}

/** The sidebar's content. */
export class Sidebar {
  readonly node: HTMLElement;
  readonly #list = element("ul", { class: "aw-run-list", "aria-label": "agent runs" });
  readonly #note = element("p", { class: "aw-empty", role: "status" });
  readonly #problem = element("p", { class: "aw-problem", role: "alert" });
  readonly #rows = new Map<string, Row>();
  readonly #never = new AbortController(); // the sidebar stays as long as the page

  constructor(private readonly server: Server) {
    this.#list.style.cssText = "list-style: none; margin: 0; padding: 0";
    const title = element("h2", { class: "aw-panel-title" }, "Agent runs");
    this.node = element("div", { class: "aw-root aw-sidebar" }, title, this.#note, this.#problem, this.#list);
  }

  /** Show runs; those that are there keep their elements, so that a button under the pointer stays. */
  show(runs: readonly RunState[], problem: string): void {
    say(this.#note, problem || (runs.length === 0 ? "no live run" : count(runs.length, "live run")));
    const live = new Set(runs.map((run) => run.watch));
    for (const [watch, row] of this.#rows) {
      // A row whose kill was just pressed stays until its answer has been read.
      const isPressed = row.kill.node.getAttribute("data-phase") !== "armed";
      if (live.has(watch)) {
        continue;
      }
      if (!isPressed) {
        row.kill.close();
        row.node.remove();
        this.#rows.delete(watch);
      } else if (!row.isGone) {
        row.isGone = true; // one that was not confirmed must not stay red when its run has ended all the same
        followEnd(row.kill, askServer(this.server, watch), this.#never.signal);
      }
    }
    for (const run of runs) {
      this.#update(this.#rows.get(run.watch) ?? this.#add(run), run);
    }
  }

  #add(run: RunState): Row {
    const kill = new KillButton(run.watch, [httpRoute(this.server)], "Kill");
    const words = element("span");
    const suspend = this.#button("Suspend", run.watch, "suspend");
    const resume = this.#button("Resume", run.watch, "resume");
    const node = element("li", { class: "aw-row", "data-run": run.watch }, words, suspend, resume, kill.node);
    const row = { node, words, suspend, resume, kill, isGone: false };
    this.#rows.set(run.watch, row);
    this.#list.append(node);
    return row;
  }

  #update(row: Row, run: RunState): void {
    const state = run.state === "closed" ? "running" : run.state;
    say(row.words, `${run.watch} · ${state} · ${count(run.processes, "process", "processes")} · ${run.workspace}`);
    if (run.state === "silent") {
      return; // late, perhaps on a loaded machine: what could be done a moment ago can still be tried
    }
    row.suspend.hidden = run.state !== "closed";
    row.resume.hidden = run.state !== "frozen";
  }

  #button(label: string, run: string, action: string): HTMLButtonElement {
    const button = element("button", { type: "button", "aria-label": `${label} agent run ${run}` }, label);
    button.addEventListener("click", () => {
      void this.#send(run, action);
    });
    return button;
  }

  async #send(run: string, action: string): Promise<void> {
    try {
      const { status, body } = await post(this.server, `api/runs/${encodeURIComponent(run)}/${action}`, {});
      fill(this.#problem, status === 200 ? "" : typeof body.message === "string" ? body.message : `${status}`);
    } catch (error) {
      fill(this.#problem, error instanceof Error ? error.message : String(error));
    }
  }
}
