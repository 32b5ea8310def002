import { describe, expect, it, vi } from "vitest";
import { Kill, killAnswer, killCommand, phaseText, type KillAnswer, type Route, type Via } from "../src/core/kill";

const RUN = "0123abcd";

/** A route that a test answers by hand. */
class HeldRoute implements Route {
  sent = 0;
  answer: (answer: KillAnswer) => void = () => undefined;
  fail: (error: Error) => void = () => undefined;

  constructor(readonly via: Via) {}

  async send(): Promise<KillAnswer> {
    this.sent += 1;
    return await new Promise((resolve, reject) => {
      this.answer = resolve;
      this.fail = reject;
    });
  }
}

const good = (via: Via): KillAnswer => killAnswer({ final: true, killed: 3, survivors: 0 }, via);
const bad = (via: Via): KillAnswer => killAnswer({ final: false, survivors: 2, message: "2 processes are left" }, via);

function scene(...vias: Via[]): { kill: Kill; routes: HeldRoute[]; phases: string[] } {
  const routes = vias.map((via) => new HeldRoute(via));
  const phases: string[] = [];
  let time = 0;
  const kill = new Kill(RUN, routes, (phase) => phases.push(phase.name), () => (time += 10), 1000);
  return { kill, routes, phases };
}

const settled = async (): Promise<void> => {
  for (let turn = 0; turn < 5; turn += 1) {
    await Promise.resolve();
  }
};

describe("a kill", () => {
  it("fires every route at once, and once, however often it is pressed", () => {
    const { kill, routes } = scene("http", "control", "comm");
    for (let press = 0; press < 50; press += 1) {
      kill.press();
    }
    expect(routes.map((route) => route.sent)).toEqual([1, 1, 1]);
    expect(kill.phase.name).toBe("sending");
    kill.close();
  });

  it("is confirmed by the first acknowledgement, and by no other", async () => {
    const { kill, routes, phases } = scene("http", "control", "comm");
    kill.press();
    routes[0]!.fail(new Error("refused"));
    await settled();
    expect(kill.phase.name).toBe("sending");
    routes[1]!.answer(good("control"));
    await settled();
    routes[2]!.answer(good("comm"));
    await settled();
    expect(phases).toEqual(["sending", "done"]);
    expect(phaseText(kill.phase)).toBe("killed 3 processes, 0 left, 10 ms, via control");
  });

  it("is not confirmed while something is left", async () => {
    const { kill, routes } = scene("http", "control");
    kill.press();
    routes[0]!.answer(bad("http"));
    routes[1]!.fail(new Error("the kernel did not answer"));
    await settled();
    expect(kill.phase).toMatchObject({ name: "unconfirmed", command: `jupyter agentwatch kill ${RUN}` });
    expect(phaseText(kill.phase)).toContain("http: 2 processes are left; control: the kernel did not answer");
  });

  it("asks a person to act when nobody answers in time, and still takes an answer that comes later", async () => {
    vi.useFakeTimers();
    try {
      const { kill, routes } = scene("http");
      kill.press();
      vi.advanceTimersByTime(1000);
      expect(kill.phase.name).toBe("unconfirmed");
      routes[0]!.answer(good("http"));
      await settled();
      expect(kill.phase.name).toBe("done");
    } finally {
      vi.useRealTimers();
    }
  });

  it("fires again after a failure", async () => {
    const { kill, routes } = scene("http");
    kill.press();
    routes[0]!.fail(new Error("offline"));
    await settled();
    kill.press();
    expect(routes[0]!.sent).toBe(2);
    routes[0]!.answer(good("http"));
    await settled();
    expect(kill.phase.name).toBe("done");
  });

  it("fails at once where there is no way at all", () => {
    const { kill } = scene();
    kill.press();
    expect(kill.phase.name).toBe("unconfirmed");
  });
});

describe("an answer", () => {
  it.each([
    [{ final: true, survivors: 1 }, false],
    [{ final: true, survivors: 0 }, true],
    [{ final: true, survivors: null }, true],
    [{ final: "true", survivors: 0 }, false],
    [{ survivors: 0 }, false],
    [{}, false],
  ])("%j is final: %s", (body, isFinal) => {
    expect(killAnswer(body, "http").final).toBe(isFinal);
  });

  it("that nobody counted is said to be that", () => {
    const answer = killAnswer({ final: true, survivors: null }, "http");
    expect(phaseText({ name: "done", answer, ms: 5 })).toBe("ended; nobody counted what it left (via http)");
  });

  it("cannot choose the command that a person is told to type", () => {
    expect(killCommand("; rm -rf ~")).toBe("jupyter agentwatch kill --all");
  });
});
