/** The head of the dashboard: which run, in which state, what it is allowed to ask, and buttons for a person's word. */

import { element, fill, say } from "../core/dom";
import type { Ask, RunState } from "../core/events";
import { post, type Server } from "../core/server";
import { clock, count } from "../core/text";
import type { Feed } from "./feed";
import { Panel } from "./panel";

/** What a breaker's state is called where people read it. */
export const STATES: Readonly<Record<string, string>> = {
  closed: "running",
  throttled: "THROTTLED: nothing new may start or connect",
  frozen: "FROZEN: every process is stopped",
  killed: "killed",
  ended: "ended",
  silent: "SILENT: its supervisor does not answer",
  gone: "gone",
};

/** Sends a person's decisions: over HTTP where there is a server, else by the kernel. */
export type Act = (action: string, body: object) => Promise<string>;

/** Return how decisions are sent to a server; the text that comes back is "" or what went wrong. */
export function actOver(server: Server, run: string): Act {
  return async (action, body) => {
    try {
      const reply = await post(server, `api/runs/${encodeURIComponent(run)}/${action}`, body);
      const message = reply.body.message;
      return reply.status === 200 ? "" : typeof message === "string" ? message : `the server answered ${reply.status}`;
    } catch (error) {
      return error instanceof Error ? error.message : String(error);
    }
  };
}

/** The head. */
export class HeaderPanel extends Panel {
  readonly #facts = element("dl", { class: "aw-facts" });
  readonly #state = element("p", { class: "aw-state", role: "status" });
  readonly #problem = element("p", { class: "aw-problem", role: "alert" });
  readonly #asks = element("ul", { class: "aw-asks", "aria-label": "calls that wait for you" });
  readonly #suspend: HTMLButtonElement;
  readonly #resume: HTMLButtonElement;
  readonly #clock: ReturnType<typeof setInterval>;
  #shownAsks = "";

  constructor(
    feed: Feed,
    private readonly act: Act | null,
    private readonly onEnd: (state: RunState) => void,
  ) {
    super("header", "Run", feed, 250);
    this.#suspend = this.#button("Suspend", "suspend");
    this.#resume = this.#button("Resume", "resume");
    const buttons = element("div", { class: "aw-buttons" }, this.#suspend, this.#resume);
    fill(this.body, this.#state, this.#facts, buttons, this.#problem, this.#asks);
    this.#clock = setInterval(() => {
      this.touch(); // a picture comes only when something changes; time passes all the same
    }, 1000);
    this.touch();
  }

  override close(): void {
    super.close();
    clearInterval(this.#clock);
  }

  protected override draw(): void {
    const { state, stateAt, lost, hasEnded } = this.feed.store;
    if (state === null) {
      say(this.#state, lost || "asking…");
      return;
    }
    say(this.#state, `${STATES[state.state] ?? state.state}${lost === "" ? "" : ` · ${lost}`}`);
    this.node.setAttribute("data-state", state.state);
    const open = !hasEnded && this.act !== null;
    this.#suspend.hidden = !open || state.state === "frozen";
    this.#resume.hidden = !open || state.state !== "frozen";
    this.#list(state, hasEnded ? 0 : performance.now() - stateAt);
    this.#ask(state.asks);
    if (hasEnded) {
      this.onEnd(state);
    }
  }

  #list(state: RunState, since: number): void {
    const denied = Object.entries(state.counts).reduce((sum, [key, n]) => (key.endsWith(":deny") ? sum + n : sum), 0);
    const facts: [string, string][] = [
      ["run", state.watch],
      ["isolation", state.rung],
      ["elapsed", clock(state.elapsed_s + since / 1000)],
      ["now", count(state.processes, "process", "processes")],
      ["so far", `${count(state.steps, "step")}, ${count(denied, "refused call")}`],
      ["workspace", state.workspace],
      ["head", state.head.slice(0, 16)],
      ["notes", state.notes.join(" · ")],
    ];
    const known = facts.filter(([, value]) => value !== "");
    fill(
      this.#facts,
      ...known.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
    );
  }

  #ask(asks: readonly Ask[]): void {
    const key = JSON.stringify(asks);
    if (key === this.#shownAsks) {
      return; // a button that is about to be pressed must not be replaced
    }
    this.#shownAsks = key;
    fill(this.#asks, ...asks.map((ask) => this.#question(ask)));
  }

  #question(ask: Ask): HTMLElement {
    const words = (verb: string): string => `${verb} call ${ask.ask}: ${ask.text}`;
    const item = element("li", { class: "aw-ask", role: "alert" }, element("span", {}, ask.text));
    if (this.act !== null) {
      for (const [label, decision] of [["Allow", "allow"], ["Deny", "deny"]] as const) {
        const button = element("button", { type: "button", "aria-label": words(label), "data-decision": decision }, label);
        button.addEventListener("click", () => {
          void this.#send(`asks/${ask.ask}`, { decision });
        });
        item.append(button);
      }
    }
    return item;
  }

  #button(label: string, action: string): HTMLButtonElement {
    const button = element("button", { type: "button", "data-action": action }, label);
    button.hidden = true;
    button.addEventListener("click", () => {
      void this.#send(action, {});
    });
    return button;
  }

  async #send(action: string, body: object): Promise<void> {
    say(this.#problem, this.act === null ? "" : await this.act(action, body));
  }
}
