/** Panels that are lists: the timeline of steps, the process tree, and the feed of findings. */

import { element, fill, say } from "../core/dom";
import { text, type AuditEvent } from "../core/events";
import { count, oneLine, shown } from "../core/text";
import type { Feed } from "./feed";
import { scroller } from "./graph";
import { Panel } from "./panel";
import { time, type Process, type Step } from "./store";

const STEPS = 100;
const NODES = 300;
const FINDINGS = 100;
const DEPTH = 40;

/** The commands of the run, each a bar on a common scale of time. */
export class TimelinePanel extends Panel {
  readonly #list = element("ol", { class: "aw-timeline" });
  readonly #empty = element("p", { class: "aw-empty" });
  readonly #scroll = scroller("steps", this.#list);

  constructor(feed: Feed) {
    super("timeline", "Steps", feed);
    fill(this.body, this.#empty, this.#scroll);
    this.touch();
  }

  protected override draw(): void {
    const { steps, rows } = this.feed.store;
    const all = [...steps.values()];
    const last = rows.at(-1);
    const until = last === undefined ? 0 : time(last);
    const from = all[0]?.start ?? until;
    say(this.#empty, all.length === 0 ? "no command yet" : "");
    this.#empty.hidden = all.length > 0;
    const { scrollTop, scrollHeight, clientHeight } = this.#scroll;
    const isAtEnd = scrollTop + clientHeight + 2 >= scrollHeight;
    fill(this.#list, ...all.slice(-STEPS).map((step) => bar(step, from, Math.max(until, from + 1))));
    this.#scroll.scrollTop = isAtEnd ? this.#scroll.scrollHeight : scrollTop;
  }
}

/** The processes, by who started whom. */
export class ProcessPanel extends Panel {
  readonly #tree = element("ul", { class: "aw-tree" });
  readonly #note = element("p", { class: "aw-empty" });

  constructor(feed: Feed) {
    super("processes", "Processes", feed);
    fill(this.body, this.#note, scroller("processes", this.#tree));
    this.touch();
  }

  protected override draw(): void {
    const all = [...this.feed.store.processes.values()];
    const shown = all.slice(-NODES);
    const children = new Map<number, Process[]>();
    const known = new Set(shown.map((process) => process.pid));
    for (const process of shown) {
      const parent = known.has(process.ppid) && process.ppid !== process.pid ? process.ppid : 0;
      children.set(parent, [...(children.get(parent) ?? []), process]);
    }
    const { state } = this.feed.store;
    const live = state === null ? "" : `, ${state.processes} alive now`;
    const left = all.length > NODES ? `; the newest ${NODES} are shown` : "";
    say(this.#note, all.length === 0 ? "no process yet" : `${count(all.length, "process", "processes")} seen${live}${left}`);
    fill(this.#tree, ...(children.get(0) ?? []).map((process) => branch(process, children, 0)));
  }
}

/** What a person should look at, newest first. */
export class FindingsPanel extends Panel {
  readonly #list = element("ol", { class: "aw-findings" });
  readonly #empty = element("p", { class: "aw-empty" });
  #shown = -1;

  constructor(feed: Feed) {
    super("findings", "Findings", feed, 1000); // slower than the charts: each change is read out
    // Around the list and not its role: a list with another role has items that are none.
    const said = { class: "aw-log", role: "log", "aria-live": "polite", "aria-label": "findings", tabindex: 0 };
    fill(this.body, this.#empty, element("div", said, this.#list));
    this.touch();
  }

  protected override draw(): void {
    const { findings } = this.feed.store;
    say(this.#empty, findings.length === 0 ? "nothing so far" : "");
    this.#empty.hidden = findings.length > 0;
    const newer = findings.filter((finding) => finding.seq > this.#shown);
    this.#shown = findings.at(-1)?.seq ?? this.#shown;
    this.#list.prepend(...newer.reverse().map(finding));
    while (this.#list.childElementCount > FINDINGS) {
      this.#list.lastElementChild?.remove();
    }
  }
}

function bar(step: Step, from: number, until: number): HTMLElement {
  const end = step.end ?? until;
  const whole = until - from;
  const seconds = ((end - step.start) / 1000).toFixed(2);
  const outcome = step.end === null ? "running" : step.outcome;
  const drawn = element("span", { class: "aw-bar", "aria-hidden": "true" });
  drawn.style.setProperty("--aw-from", `${(100 * (step.start - from)) / whole}%`);
  drawn.style.setProperty("--aw-long", `${Math.max(0.5, (100 * (end - step.start)) / whole)}%`);
  const good = outcome === "exit 0" ? "good" : outcome === "running" ? "running" : "bad";
  const words = element(
    "span",
    { class: "aw-step-words", title: shown(step.argv) },
    element("b", {}, String(step.number)),
    element("code", {}, oneLine(step.command)),
    element("span", { class: "aw-step-end" }, `${outcome}, ${seconds} s`),
  );
  return element("li", { class: `aw-step aw-step-${good}` }, words, element("span", { class: "aw-track" }, drawn));
}

function branch(process: Process, children: Map<number, Process[]>, depth: number): HTMLElement {
  const words = `${process.pid} · step ${process.step} · ${oneLine(process.argv || process.exe)}`;
  const item = element(
    "li",
    { class: process.ended ? "aw-process aw-ended" : "aw-process" },
    element("span", { title: shown(process.exe) }, process.ended ? `${words} (ended)` : words),
  );
  const below = depth < DEPTH ? (children.get(process.pid) ?? []) : [];
  if (below.length > 0) {
    item.append(element("ul", {}, ...below.map((child) => branch(child, children, depth + 1))));
  }
  return item;
}

function finding(event: AuditEvent): HTMLElement {
  const severity = text(event, "severity");
  const when = new Date(time(event)).toLocaleTimeString();
  const rule = [text(event, "rule"), text(event, "technique")].filter((each) => each !== "").join(", ");
  return element(
    "li",
    { class: `aw-finding aw-severity-${/^[a-z]+$/.test(severity) ? severity : "unknown"}`, "data-seq": event.seq },
    element("strong", {}, severity),
    ` ${oneLine(text(event, "title"))} `,
    element("small", {}, `${when}, step ${event.step}, ${rule}`),
  );
}
