import { describe, expect, it, vi } from "vitest";
import type { Curve } from "../src/view/curves";

vi.mock("plotly.js-basic-dist-min", () => ({ default: {} })); // it needs a canvas, and nothing here draws
const { spanOf } = await import("../src/view/charts");
const { isLight } = await import("../src/view/theme");

function curve(...t: number[]): Curve {
  return { chart: "gpu", panel: 0, group: "GPU 0", part: "", t, y: t.map(() => 1) };
}

describe("the span of a panel's charts", () => {
  it("is the last minute of the newest line, the same for all of them", () => {
    expect(spanOf([curve(0, 200_000), curve(100_000, 150_000)], false)).toEqual([140_000, 200_000]);
  });

  it("begins with the first measurement where that is less than a minute ago", () => {
    expect(spanOf([curve(190_000, 200_000), curve(180_000)], false)).toEqual([180_000, 200_000]);
  });

  it("is everything that is there of a run that has ended", () => {
    expect(spanOf([curve(0, 200_000)], true)).toEqual([0, 200_000]);
  });

  it("has a length where nothing was measured, or once only", () => {
    for (const [from, until] of [spanOf([], false), spanOf([curve(5000)], false)]) {
      expect(until).toBeGreaterThan(from);
    }
  });
});

describe("the ground that a text stands on", () => {
  it("is dark where the text is light", () => {
    expect(["rgba(255, 255, 255, 0.87)", "rgb(224 224 224)"].map(isLight)).toEqual([true, true]);
    expect(["rgba(0, 0, 0, 0.87)", "rgb(33, 33, 33)", ""].map(isLight)).toEqual([false, false, false]);
  });
});
