import { describe, expect, it } from "vitest";
import { graphOf, type Edge } from "../src/view/connections";
import { Layout } from "../src/view/layout";
import { sceneOf, type Scene } from "../src/view/scene";
import type { Theme } from "../src/view/theme";

const THEME: Theme = { text: "t", muted: "m", grid: "g", allow: "green", ask: "amber", deny: "red", process: "blue" };

function edge(pid: number, endpoint: string, verdict: Edge["verdict"]): Edge {
  const counts = { count: 1, denied: 0, bytesOut: 1, bytesIn: 1 };
  return { pid, program: "<b>curl", endpoint, verdict, protocol: "", reason: "", ...counts };
}

function drawn(edges: Edge[]): Scene {
  const graph = graphOf(edges);
  return sceneOf(graph, new Layout().place(graph, true), THEME, [600, 300]);
}

describe("the drawing of a graph", () => {
  it("has an element for each node while it is small, its name without a tag", () => {
    const scene = drawn([edge(1, "a.example:443", "allow"), edge(1, "b.example:22", "deny")]);
    expect(scene.traces.map((trace) => [trace.mode, (trace.x as number[]).length])).toEqual([
      ["markers+text", 1],
      ["markers+text", 2],
    ]);
    expect(scene.traces[0]!.text).toEqual(["&lt;b&gt;curl (1)"]);
    const looks = scene.shapes.map((shape) => shape.line as { color: string; dash: string });
    expect(looks.map(({ color, dash }) => [color, dash])).toEqual([["green", "solid"], ["red", "dot"]]);
  });

  it("has few elements when it is large, and every node can still be pointed at where it is drawn", () => {
    const edges = Array.from({ length: 280 }, (_, i) => edge(1 + (i % 9), `host${i}.example:443`, i % 2 ? "deny" : "allow"));
    const scene = drawn(edges);
    expect(scene.shapes.length).toBeLessThan(10);
    expect(scene.traces.map((trace) => [trace.mode, (trace.customdata as string[]).length])).toEqual([["none", 9], ["none", 280]]);
    const outlines = scene.shapes.filter((shape) => shape.fillcolor !== "rgba(0,0,0,0)");
    const count = outlines.reduce((sum, shape) => sum + (shape.path as string).split("Z").length - 1, 0);
    expect(count).toBe(289);
    const inside = (value: number, [low, high]: [number, number]): boolean => value > low && value < high;
    const [x, y] = [scene.traces[1]!.x, scene.traces[1]!.y] as [number[], number[]];
    expect(x.every((value) => inside(value, scene.x)) && y.every((value) => inside(value, scene.y))).toBe(true);
  });
});
