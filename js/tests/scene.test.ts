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

  it("has no name nearer to the next one than it is high, whatever was connected", () => {
    const edges = Array.from({ length: 40 }, (_, i) => edge(1 + (i % 5), `198.51.100.${(i * 7) % 40}:443`, "deny"));
    const scene = drawn(edges);
    for (const trace of scene.traces) {
      const y = [...(trace.y as number[])].sort((one, other) => one - other);
      expect(y.slice(1).every((value, i) => value - (y[i] ?? 0) >= 15.9)).toBe(true);
    }
    const columns = scene.traces.map((trace) => new Set(trace.x as number[]).size);
    expect(columns).toEqual([1, 1]);
  });

  it("puts the endpoints of one process in the order of their names, the first one on top", () => {
    const scene = drawn([10, 2, 1, 30].map((i) => edge(1, `198.51.100.${i}:443`, "allow")));
    const { text, y } = scene.traces[1] as { text: string[]; y: number[] };
    const down = text.map((name, i): [number, string] => [-(y[i] ?? 0), name]).sort(([one], [other]) => one - other);
    expect(down.map(([, name]) => name)).toEqual([1, 2, 10, 30].map((i) => `198.51.100.${i}:443`));
  });

  it("cuts names rather than letting them leave a narrow plot", () => {
    const graph = graphOf([edge(1, `${"h".repeat(300)}.example:443`, "allow")]);
    const scene = sceneOf(graph, new Layout().place(graph, true), THEME, [300, 120]);
    const room = 300 / (scene.x[1] - scene.x[0]);
    const [name = ""] = scene.traces[1]!.text as string[];
    expect(name.endsWith("\u2026")).toBe(true);
    expect((scene.x[1] - 150) * room).toBeGreaterThan(6 * name.length);
  });
});
