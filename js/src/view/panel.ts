/** What every panel of the dashboard is: a labelled region that draws itself from the store, a few times a second. */

import { element } from "../core/dom";
import type { Feed, Topic } from "./feed";
import { Pace, PACE_MS } from "./pace";

/** A part of the dashboard. */
export abstract class Panel {
  readonly node: HTMLElement;
  protected readonly body: HTMLElement;
  readonly #pace: Pace;
  readonly #leave: () => void;

  constructor(
    name: string,
    title: string,
    protected readonly feed: Feed,
    pace = PACE_MS,
    topic: Topic = "records",
  ) {
    const id = `aw-${name}-${(Panel.#made += 1)}`;
    this.body = element("div", { class: "aw-panel-body" });
    this.node = element(
      "section",
      { class: `aw-panel aw-panel-${name}`, "aria-labelledby": id },
      element("h3", { id, class: "aw-panel-title" }, title),
      this.body,
    );
    this.#pace = new Pace(this.node, () => {
      this.draw();
    }, pace);
    this.#leave = feed.subscribe(() => {
      this.#pace.touch();
    }, topic);
  }

  static #made = 0;

  /** Draw soon. */
  touch(): void {
    this.#pace.touch();
  }

  /** Let go of everything. */
  close(): void {
    this.#pace.close();
    this.#leave();
  }

  /** Show what the store holds now. */
  protected abstract draw(): void;
}
