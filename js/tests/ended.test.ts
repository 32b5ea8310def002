// @vitest-environment jsdom
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { KillButton } from "../src/core/button";
import { askKernel, followEnd } from "../src/core/ended";

type Listener = (message: unknown, buffers: DataView[]) => void;

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

const phaseOf = (kill: KillButton): string | null => kill.node.getAttribute("data-phase");
const ENDED = { state: "ended", killed: 2, survivors: 0, note: "" };

describe("a kill switch that stands alone", () => {
  it("asks until its run has ended, says so without green, and asks no more", async () => {
    const kill = new KillButton("0123abcd", [], "Kill");
    const answers = [{ state: "closed" }, {}, ENDED, ENDED];
    const ask = vi.fn(async () => await Promise.resolve(answers.shift() ?? {}));
    followEnd(kill, ask, new AbortController().signal, 10);
    await vi.advanceTimersByTimeAsync(15);
    expect(phaseOf(kill)).toBe("armed");
    await vi.advanceTimersByTimeAsync(1000);
    expect(phaseOf(kill)).toBe("ended");
    expect(ask).toHaveBeenCalledTimes(3);
  });

  it("is no longer red once the run that it could not reach is known to have ended", async () => {
    const kill = new KillButton("0123abcd", [], "Kill");
    kill.node.querySelector("button")?.click();
    expect(phaseOf(kill)).toBe("unconfirmed");
    followEnd(kill, async () => await Promise.resolve(ENDED), new AbortController().signal, 10);
    await vi.advanceTimersByTimeAsync(1);
    expect(phaseOf(kill)).toBe("ended");
    expect(kill.node.textContent).toBe("Killended, 0 processes left");
  });

  it("stays armed where something was left, and asks no more when its view has gone", async () => {
    const kill = new KillButton("0123abcd", [], "Kill");
    const gone = new AbortController();
    const ask = vi.fn(async () => await Promise.resolve({ ...ENDED, survivors: 1 }));
    followEnd(kill, ask, gone.signal, 10);
    await vi.advanceTimersByTimeAsync(25);
    expect(phaseOf(kill)).toBe("armed");
    gone.abort();
    const asked = ask.mock.calls.length;
    await vi.advanceTimersByTimeAsync(1000);
    expect(ask.mock.calls.length).toBeLessThanOrEqual(asked + 1);
  });

  it("asks a kernel that is busy once only", async () => {
    const listeners = new Set<Listener>();
    const sent: unknown[] = [];
    const model = {
      on: (_: string, listen: Listener): void => void listeners.add(listen),
      off: (_: string, listen: Listener): void => void listeners.delete(listen),
      send: (content: unknown): void => void sent.push(content),
    };
    const kill = new KillButton("0123abcd", [], "Kill");
    followEnd(kill, askKernel(model), new AbortController().signal, 10);
    await vi.advanceTimersByTimeAsync(1000);
    expect(sent).toEqual([{ type: "outcome" }]);
    [...listeners].forEach((listen) => {
      listen({ type: "outcome", run: ENDED }, []);
    });
    await vi.advanceTimersByTimeAsync(1);
    expect(phaseOf(kill)).toBe("ended");
    expect(listeners.size).toBe(0);
  });
});
