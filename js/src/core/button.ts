/** The kill switch that a person sees: a real button, what became of it, and the shell command where it failed. */

import { element, fill, say } from "./dom";
import { Kill, killAnswer, killCommand, phaseText, type KillPhase, type Route } from "./kill";
import { shown } from "./text";

/** A kill switch in the page. */
export class KillButton {
  readonly node: HTMLElement;
  readonly #kill: Kill;
  readonly #button: HTMLButtonElement;
  readonly #result: HTMLElement;

  /**
   * @param run - id of the run
   * @param routes - the ways of a kill
   * @param label - what stands on the button
   * @param hint - said beside the armed button, such as that there is no server here
   */
  constructor(
    run: string,
    routes: readonly Route[],
    label: string,
    private readonly hint = "",
  ) {
    this.#button = element(
      "button",
      { type: "button", class: "aw-kill", "aria-label": `Kill agent run ${shown(run)} and all its processes` },
      label,
    );
    // An empty alert region must be there before it speaks, or screen readers miss what it says.
    this.#result = element("span", { class: "aw-kill-result", role: "alert" });
    this.node = element("span", { class: "aw-kill-switch", "data-run": run }, this.#button, this.#result);
    this.#kill = new Kill(run, routes, (phase) => {
      this.#show(phase);
    });
    this.#button.addEventListener("click", () => {
      this.#kill.press();
    });
    this.#show(this.#kill.phase);
  }

  /** It is known how the run ended. */
  get isSettled(): boolean {
    return this.#kill.phase.name === "done";
  }

  /** Say that the run has ended, by whatever hand: there is nothing left to kill. */
  ended(body: Record<string, unknown>): void {
    if (this.#kill.phase.name === "sending" || this.#kill.phase.name === "done") {
      return; // its own answer comes, or came, and says more
    }
    const answer = killAnswer({ ...body, final: body.survivors === 0 || body.survivors === null }, "http");
    if (answer.final) {
      this.#kill.acknowledge(answer);
      const left = answer.survivors === null ? "nobody counted what it left" : `${answer.survivors} processes left`;
      say(this.#result, `ended, ${left}`);
      this.node.setAttribute("data-phase", "ended"); // green is for what this button did
    }
  }

  /** Stop waiting. */
  close(): void {
    this.#kill.close();
  }

  #show(phase: KillPhase): void {
    const isGreen = phase.name === "done" && phase.answer.survivors === 0;
    this.node.setAttribute("data-phase", isGreen ? "confirmed" : phase.name);
    // Not `disabled`: that would take the focus away and hide the button from screen readers.
    this.#button.setAttribute("aria-disabled", String(phase.name === "sending" || phase.name === "done"));
    if (phase.name === "unconfirmed") {
      fill(this.#result, phaseText(phase), element("code", {}, killCommand(this.#kill.run)));
    } else {
      say(this.#result, phase.name === "armed" ? this.hint : phaseText(phase));
    }
  }
}
