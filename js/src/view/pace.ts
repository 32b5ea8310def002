/** When to draw: a few times a second, only what changed, and never what nobody can see. */

/** Shortest time between two drawings, milliseconds: 2 to 4 a second cost a quarter of what 10 do. */
export const PACE_MS = 300;

/** A drawing that takes long comes less often, so that a panel has a third of the page's time at most … */
const REST = 3;

/** … but this often in any case, milliseconds: on a loaded machine a drawing's time is not its own. */
const LONGEST_MS = 1000;

/** Calls a drawing function after changes, at a bounded rate and only while its element can be seen. */
export class Pace {
  #isDirty = false;
  #isSeen = true;
  #next = -Infinity;
  #timer: ReturnType<typeof setTimeout> | undefined;
  readonly #observer: IntersectionObserver | null;
  readonly #onVisible = (): void => {
    this.#plan();
  };

  constructor(
    place: Element,
    private readonly draw: () => void,
    private readonly pace = PACE_MS,
  ) {
    this.#observer =
      typeof IntersectionObserver === "undefined"
        ? null
        : new IntersectionObserver((entries) => {
            this.#isSeen = entries.some((entry) => entry.isIntersecting);
            this.#plan();
          });
    this.#observer?.observe(place);
    document.addEventListener("visibilitychange", this.#onVisible);
  }

  /** Something changed. */
  touch(): void {
    this.#isDirty = true;
    this.#plan();
  }

  /** Draw no more. */
  close(): void {
    clearTimeout(this.#timer);
    this.#observer?.disconnect();
    document.removeEventListener("visibilitychange", this.#onVisible);
  }

  #plan(): void {
    if (!this.#isDirty || !this.#isSeen || document.hidden || this.#timer !== undefined) {
      return;
    }
    const wait = Math.max(0, this.#next - performance.now());
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      if (!this.#isSeen || document.hidden) {
        return; // planned again when it is seen
      }
      this.#isDirty = false;
      const begun = performance.now();
      this.draw();
      this.#next = begun + Math.max(this.pace, Math.min(LONGEST_MS, REST * (performance.now() - begun)));
    }, wait);
  }
}
