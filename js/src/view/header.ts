/** The head of the dashboard: which run, in which state, what it is allowed to ask, and buttons for a person's word. */

import { element, fill, say } from "../core/dom";
import { text, type Ask, type AuditEvent, type RunState } from "../core/events";
import { post, type Server } from "../core/server";
import { clock, count } from "../core/text";
import type { Feed } from "./feed";
import { Panel } from "./panel";
import { time } from "./store";

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

/** Return what moved the breaker last, in words. */
export function whyOf(moved: AuditEvent | null): string {
  if (moved === null) {
    return "";
  }
  const when = new Date(time(moved)).toLocaleTimeString();
  return `${text(moved, "cause")} · by ${text(moved, "by")} · ${when}`;
}

/** Return what happens to a frozen run where nobody decides, and when. */
export function leftOf(state: RunState, since: number): string {
  if (state.frozenLeft === null || state.state !== "frozen") {
    return "";
  }
  const what = state.onExpiry === "resume" ? "goes on by itself" : "will be killed";
  return `${what} in ${clock(state.frozenLeft - since)} unless a person resumes or kills it`;
}

/** The head. */
export class HeaderPanel extends Panel {
  readonly #facts = element("dl", { class: "aw-facts" });
  readonly #values = new Map<string, HTMLElement>();
  readonly #state = element("p", { class: "aw-state", role: "status", tabindex: -1 });
  readonly #why = element("p", { class: "aw-why", role: "status" });
  readonly #left = element("p", { class: "aw-left", role: "timer" });
  readonly #timers = new Map<number, HTMLElement>();
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
    fill(this.body, this.#state, this.#why, this.#left, this.#facts, buttons, this.#problem, this.#asks);
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
    const { state, stateAt, lost, hasEnded, moved } = this.feed.store;
    if (state === null) {
      say(this.#state, lost || "asking…");
      return;
    }
    say(this.#state, `${STATES[state.state] ?? state.state}${lost === "" ? "" : ` · ${lost}`}`);
    this.node.setAttribute("data-state", state.state);
    const open = !hasEnded && this.act !== null;
    const hadFocus = this.node.contains(document.activeElement);
    this.#suspend.hidden = !open || state.state === "frozen";
    this.#resume.hidden = !open || state.state !== "frozen";
    const since = hasEnded ? 0 : (performance.now() - stateAt) / 1000;
    this.#list(state, since);
    say(this.#why, state.state === "closed" || hasEnded ? "" : whyOf(moved));
    say(this.#left, leftOf(state, since));
    this.#ask(state.asks, since);
    if (hadFocus) {
      this.#keepFocus();
    }
    if (hasEnded) {
      this.onEnd(state);
    }
  }

  /**
   * A button that was pressed goes with what it decided, and a keyboard would start over at the top of the page. Not to
   * the next button: whoever presses Enter twice must not decide twice.
   */
  #keepFocus(): void {
    const focused = document.activeElement;
    if (!this.node.contains(focused) || focused?.closest("[hidden]") !== null) {
      this.#state.focus({ preventScroll: true });
    }
  }

  #list(state: RunState, since: number): void {
    const denied = Object.entries(state.counts).reduce((sum, [key, n]) => (key.endsWith(":deny") ? sum + n : sum), 0);
    const facts: [string, string][] = [
      ["run", state.watch],
      ["isolation", state.rung],
      ["policy", this.feed.store.policy.slice(0, 12)],
      ["elapsed", clock(state.elapsed_s + since)],
      ["now", count(state.processes, "process", "processes")],
      ["so far", `${count(state.steps, "step")}, ${count(denied, "refused call")}`],
      ["workspace", state.workspace],
      ["head", state.head.slice(0, 16)],
      // Why it is frozen or throttled stands above.
      ["notes", state.notes.filter((note) => !/^(frozen|throttled): /.test(note)).join(" · ")],
    ];
    for (const [name, value] of facts) {
      this.#fact(name, value);
    }
  }

  /** Each fact keeps its element: one that is replaced each second cannot be selected and copied. */
  #fact(name: string, value: string): void {
    let place = this.#values.get(name);
    if (place === undefined) {
      place = element("dd");
      this.#values.set(name, place);
      this.#facts.append(element("div", {}, element("dt", {}, name), place));
    }
    say(place, value);
    if (place.parentElement !== null) {
      place.parentElement.hidden = value === "";
    }
  }

  #ask(asks: readonly Ask[], since: number): void {
    const key = JSON.stringify(asks.map(({ ask, text }) => [ask, text]));
    if (key !== this.#shownAsks) {
      this.#shownAsks = key; // else a button that is about to be pressed would be replaced
      this.#timers.clear();
      this.#fillAsks(asks);
    }
    for (const { ask, left } of asks) {
      const timer = this.#timers.get(ask);
      if (timer !== undefined && left !== null) {
        say(timer, `denied in ${clock(left - since)} unless somebody answers`);
      }
    }
  }

  #fillAsks(asks: readonly Ask[]): void {
    fill(this.#asks, ...asks.map((ask) => this.#question(ask)));
  }

  #question(ask: Ask): HTMLElement {
    const words = (verb: string): string => `${verb} call ${ask.ask}: ${ask.text}`;
    // Time passes outside of the alert, or a screen reader would say it each second.
    const timer = element("span", { role: "timer" });
    this.#timers.set(ask.ask, timer);
    const item = element("li", { class: "aw-ask" }, element("span", { role: "alert" }, ask.text), timer);
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
