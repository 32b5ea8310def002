/** When to draw: a few times a second, only what changed, and never what nobody can see. */

/** Shortest time between two drawings, milliseconds: 2 to 4 a second cost a quarter of what 10 do. */
export const PACE_MS = 300;

/** Calls a drawing function after changes, at a bounded rate and only while its element can be seen. */
export class Pace {
  #isDirty = false;
  #isSeen = true;
  #last = -Infinity;
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
    const wait = Math.max(0, this.#last + this.pace - performance.now());
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      if (!this.#isSeen || document.hidden) {
        return; // planned again when it is seen
      }
      this.#isDirty = false;
      this.#last = performance.now();
      this.draw();
    }, wait);
  }
}
