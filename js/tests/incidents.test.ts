// @vitest-environment jsdom
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Feed } from "../src/view/feed";
import { IncidentsPanel } from "../src/view/incidents";

const INCIDENT = {
  ...{ family: "mining", severity: "critical", title: "spoke to a pool", step: 3, command: "sh -c mine", findings: 2 },
  ...{ began_ms: 1, ended_ms: 2, duration_s: 9, ancestry: ["12 mine"], prevented: ["stratum to a.example denied"] },
  ...{ breaker: ["closed → frozen: trip"], last_bytes: ["a.example:1 ended out '{\"method\":\"login\"}' in ''"] },
  ...{ turn: 7, thought: "<b>pays for itself</b>", leaked_out: 1500, leaked_in: 0, leaked_s: 2.5, slowdown: 0.25 },
  ...{ cpu_s: 2, gpu_s: 1.5, bytes_out: 1500, money: 6 },
};

describe("the panel of incidents", () => {
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] });
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  const shown = (...incidents: unknown[]): string => {
    const feed = new Feed("0123abcd", null, null);
    const panel = new IncidentsPanel(feed);
    document.body.replaceChildren(panel.node);
    feed.take({ type: "incidents", incidents });
    vi.advanceTimersByTime(4000);
    panel.close();
    return panel.node.textContent;
  };

  it("tells the agent's turn, what leaked, the last bytes, and the slowdown of the leased job", () => {
    const text = shown(INCIDENT);
    for (const words of [
      "turn 7: <b>pays for itself</b>",
      "1.5 kB out, 0 B in, in 2.5 s",
      "{\"method\":\"login\"}",
      "6.00 in money, the leased job 25 % slower",
    ]) {
      expect(text).toContain(words);
    }
  });

  it("says nothing of what there was none of", () => {
    const text = shown({ ...INCIDENT, turn: 0, thought: "", leaked_out: 0, last_bytes: [], slowdown: null });
    for (const words of ["turn", "leaked", "last bytes", "slower"]) {
      expect(text).not.toContain(words);
    }
  });
});
