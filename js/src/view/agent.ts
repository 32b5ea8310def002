/** The panel that shows how far an agent is: step, action, verdicts, cost and reward of each of its runs. */

import { element, fill, say } from "../core/dom";
import { count, oneLine } from "../core/text";
import { rewardOf, signed, verdictsOf, type AgentRun, type Turn } from "./agents";
import type { Feed } from "./feed";
import { scroller } from "./graph";
import { Panel } from "./panel";

const SHOWN = 3;
const TURNS = 100;
const HEAD = ["turn", "action", "what", "outcome", "verdicts", "tokens", "cost", "reward"];

/** The newest runs, the newest one first. */
export class AgentPanel extends Panel {
  readonly #empty = element("p", { class: "aw-empty" });
  readonly #runs = element("div", { class: "aw-agents" });
  readonly #views = new Map<AgentRun, RunView>();

  constructor(feed: Feed) {
    super("agent", "Agent", feed, 500);
    fill(this.body, this.#empty, this.#runs);
    this.touch();
  }

  protected override draw(): void {
    const { agents, state, hasEnded } = this.feed.store;
    const all = [...agents.runs.values()].reverse();
    const shown = all.slice(0, SHOWN);
    const older = all.length > shown.length ? `; ${count(all.length - shown.length, "older one")} in the audit log` : "";
    say(this.#empty, all.length === 0 ? "no agent has run in this watch" : `${count(all.length, "run")}${older}`);
    for (const run of this.#views.keys()) {
      if (!shown.includes(run)) {
        this.#views.delete(run);
      }
    }
    const held = state?.state === "frozen" || state?.state === "throttled" ? `paused: the watch is ${state.state}` : "";
    const views = shown.map((run) => {
      const view = this.#views.get(run) ?? new RunView(run);
      this.#views.set(run, view);
      view.show(run.outcome || (hasEnded ? "ended with the watch" : held || "running"));
      return view.node;
    });
    if (views.length !== this.#runs.childElementCount || views.some((node, i) => this.#runs.children[i] !== node)) {
      fill(this.#runs, ...views); // only then: a list that is put in anew loses where it was scrolled to
    }
  }
}

/** One run: its head, and a table of its turns in which only what changes is replaced. */
class RunView {
  readonly node: HTMLElement;
  readonly #state = element("strong", { class: "aw-agent-state", role: "status" });
  readonly #place = element("span", { class: "aw-agent-place" });
  readonly #progress: HTMLProgressElement;
  readonly #facts = element("dl", { class: "aw-facts" });
  readonly #rows = element("tbody");
  readonly #known = new Map<number, { key: string; row: HTMLElement }>();
  readonly #scroll: HTMLElement;
  #version = -1;
  #told = "";

  constructor(private readonly run: AgentRun) {
    const name = run.agent || run.id;
    this.#progress = element("progress", { max: Math.max(1, run.maxSteps), "aria-label": `progress of ${name}` });
    this.#progress.hidden = run.maxSteps === 0;
    const head = element("tr", {}, ...HEAD.map((each) => element("th", { scope: "col" }, each)));
    const caption = element("caption", {}, `turns of ${name}`);
    const table = element("table", { class: "aw-table aw-turns" }, caption, element("thead", {}, head), this.#rows);
    this.#scroll = scroller(`turns of ${name}`, table);
    const line = element("div", { class: "aw-agent-line" }, this.#state, this.#place, this.#progress);
    const title = element("h4", { class: "aw-agent-name" }, name);
    this.node = element("article", { class: "aw-agent", "aria-label": `run of ${name}` }, title, line, this.#facts, this.#scroll);
  }

  show(state: string): void {
    const { run } = this;
    if (run.version === this.#version && state === this.#told) {
      return;
    }
    this.#version = run.version;
    this.#told = state;
    say(this.#state, state);
    this.node.setAttribute("data-outcome", run.outcome);
    say(this.#place, run.maxSteps > 0 ? `step ${run.steps} of ${run.maxSteps}` : `step ${run.steps}`);
    this.#progress.value = Math.min(run.steps, run.maxSteps);
    const facts: [string, string][] = [
      ["task", oneLine(run.task)],
      ["tokens", run.tokens === 0 ? "" : String(run.tokens)],
      ["cost", run.cost === 0 ? "" : run.cost.toFixed(4)],
      ["reward", rewardOf(run)],
      ["answer", oneLine(run.answer)],
    ];
    const known = facts.filter(([, value]) => value !== "");
    fill(this.#facts, ...known.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
    this.#list();
  }

  #list(): void {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroll;
    const isAtEnd = scrollTop + clientHeight + 2 >= scrollHeight;
    const turns = [...this.run.turns.values()].slice(-TURNS);
    this.#scroll.toggleAttribute("data-no-tokens", turns.every((turn) => turn.tokens === 0 && turn.cost === 0));
    this.#scroll.toggleAttribute("data-no-reward", turns.every((turn) => turn.reward === null));
    const kept = new Set(turns.map((turn) => turn.number));
    for (const [which, { row }] of this.#known) {
      if (!kept.has(which)) {
        row.remove();
        this.#known.delete(which);
      }
    }
    for (const turn of turns) {
      const cells = cellsOf(turn);
      const key = JSON.stringify(cells);
      const known = this.#known.get(turn.number);
      if (known?.key !== key) {
        const row = rowOf(turn, cells);
        if (known === undefined) {
          this.#rows.append(row);
        } else {
          known.row.replaceWith(row);
        }
        this.#known.set(turn.number, { key, row });
      }
    }
    if (isAtEnd) {
      this.#scroll.scrollTop = this.#scroll.scrollHeight;
    }
  }
}

function cellsOf(turn: Turn): string[] {
  return [
    String(turn.number),
    turn.action || "\u2026",
    oneLine(turn.text),
    turn.outcome || "running",
    verdictsOf(turn),
    turn.tokens === 0 ? "" : String(turn.tokens),
    turn.cost === 0 ? "" : turn.cost.toFixed(4),
    turn.reward === null ? "" : signed(turn.reward),
  ];
}

function rowOf(turn: Turn, cells: readonly string[]): HTMLElement {
  const isBad = turn.denied > 0 || turn.findings > 0;
  const [first = "", ...rest] = cells;
  const head = element("th", { scope: "row" }, first);
  return element("tr", { class: isBad ? "aw-verdict-deny" : "" }, head, ...rest.map((cell) => element("td", {}, cell)));
}
