/** Incidents: findings put together by the server, each with the command, what was prevented, and what it cost. */

import { element, fill, say } from "../core/dom";
import type { Incident } from "../core/events";
import { bytes, count, oneLine } from "../core/text";
import type { Feed } from "./feed";
import { Panel } from "./panel";

const PACE_MS = 3000;

/** The panel: asks anew whenever there is a finding more, or a step or the breaker has moved since the last one. */
export class IncidentsPanel extends Panel {
  readonly #list = element("ol", { class: "aw-findings", "aria-label": "incidents", tabindex: 0 });
  readonly #empty = element("p", { class: "aw-empty", role: "status" });
  #asked = "";
  #shown = "";

  constructor(feed: Feed) {
    super("incidents", "Incidents", feed, PACE_MS); // each question makes the server read the log
    fill(this.body, this.#empty, this.#list);
    this.touch();
  }

  protected override draw(): void {
    const { findings, incidents, incidentsProblem, moved, hasEnded, steps } = this.feed.store;
    const running = [...steps.values()].filter((step) => step.end === null).length;
    const asked = `${findings.at(-1)?.seq ?? -1} ${moved?.seq ?? -1} ${running} ${String(hasEnded)}`;
    if (findings.length > 0 && asked !== this.#asked) {
      this.#asked = asked;
      void this.feed.askIncidents();
    }
    say(this.#empty, incidents.length > 0 ? "" : incidentsProblem || "nothing so far");
    this.#empty.hidden = incidents.length > 0;
    const key = JSON.stringify(incidents);
    if (key !== this.#shown) {
      this.#shown = key; // one that a person has opened must not be closed by a redrawing that changes nothing
      this.#fill(incidents);
    }
  }

  /** The newest first and open, but what a person opened or closed, or stands on, stays so. */
  #fill(incidents: readonly Incident[]): void {
    const before = new Map([...this.#list.querySelectorAll("details")].map((each) => [each.dataset.incident, each]));
    const focused = document.activeElement?.parentElement;
    const items = [...incidents].reverse().map((each, i) => {
      const key = `${each.family} ${each.step} ${each.began}`;
      return told(each, before.get(key)?.open ?? i === 0, key);
    });
    const kept = focused instanceof HTMLDetailsElement && this.#list.contains(focused) ? focused.dataset.incident : undefined;
    fill(this.#list, ...items);
    if (kept !== undefined) {
      const same = [...this.#list.querySelectorAll("details")].find((each) => each.dataset.incident === kept);
      (same?.querySelector("summary") ?? this.#list).focus({ preventScroll: true });
    }
  }
}

function told(incident: Incident, isOpen: boolean, key: string): HTMLElement {
  const severity = /^[a-z]+$/.test(incident.severity) ? incident.severity : "unknown";
  const state = incident.ended === null ? "goes on" : `over after ${incident.duration.toFixed(1)} s`;
  const facts: [string, string[]][] = [
    ["command", [incident.step === 0 ? "" : `step ${incident.step}: ${incident.command}`]],
    ["agent", [agent(incident)]],
    ["process", incident.ancestry.slice(0, 3)],
    ["prevented", [...incident.prevented]],
    ["leaked", [leaked(incident)]],
    ["breaker", [...incident.breaker]],
    ["last bytes", [...incident.lastBytes]],
    ["cost", [cost(incident)]],
  ];
  const rows = facts
    .map(([name, lines]): [string, string[]] => [name, lines.filter((line) => line !== "")])
    .filter(([, lines]) => lines.length > 0)
    .map(([name, lines]) => row(name, lines));
  const words = [`${incident.family || "unknown"}: ${oneLine(incident.title)}`, state, count(incident.findings, "finding")];
  const summary = element("summary", {}, element("strong", {}, severity), ` ${words.join(" · ")}`);
  const details = element("details", { open: isOpen, "data-incident": key }, summary, element("dl", { class: "aw-facts aw-story" }, ...rows));
  return element("li", { class: `aw-finding aw-incident aw-severity-${severity}` }, details);
}

function row(name: string, lines: readonly string[]): HTMLElement {
  return element("div", {}, element("dt", {}, name), element("dd", {}, ...lines.map((line) => element("span", {}, oneLine(line)))));
}

function agent(incident: Incident): string {
  return incident.turn === 0 ? "" : `turn ${incident.turn}${incident.thought === "" ? "" : `: ${incident.thought}`}`;
}

function leaked(incident: Incident): string {
  if (incident.leakedOut === 0 && incident.leakedIn === 0) return "";
  return `${bytes(incident.leakedOut)} out, ${bytes(incident.leakedIn)} in, in ${incident.leakedFor.toFixed(1)} s`;
}

function cost(incident: Incident): string {
  const slowdown = incident.slowdown ?? 0;
  const parts = [
    incident.cpu > 0 ? `${incident.cpu.toFixed(1)} s CPU` : "",
    incident.gpu > 0 ? `${incident.gpu.toFixed(1)} s GPU` : "",
    incident.bytesOut > 0 ? `${bytes(incident.bytesOut)} out` : "",
    incident.money > 0 ? `${incident.money.toFixed(2)} in money` : "",
    slowdown > 0 ? `the leased job ${(100 * slowdown).toFixed(0)} % slower` : "",
  ];
  return parts.filter((part) => part !== "").join(", ");
}
