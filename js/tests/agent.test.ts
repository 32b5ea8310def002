// @vitest-environment jsdom
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { readEvents, type AuditEvent } from "../src/core/events";
import { AgentPanel } from "../src/view/agent";
import { Agents, rewardOf, verdictsOf } from "../src/view/agents";
import { Feed } from "../src/view/feed";

const HOSTILE = '<img src=x onerror="alert(1)">\u202E';
let seq = 0;

function event(kind: string, fields: Record<string, unknown> = {}): AuditEvent {
  const common = { kind, seq: (seq += 1), t_wall_ns: seq * 1e9, verdict: "allow", basis: "post", pid: 7, step: 0 };
  return readEvents([{ ...common, ...fields }])[0]!;
}

function aRun(name = "mine"): AuditEvent[] {
  return [
    event("agent", { op: "begin", run: "r1", agent: name, text: `say ${name}`, max_steps: 9 }),
    event("step", { op: "start", step: 1, run: "r1", turn: 1, argv: ["sh", "-c", "curl x"] }),
    event("exec", { step: 1, basis: "claimed", argv: ["sh"] }),
    event("exec", { step: 1, argv: ["sh"] }),
    event("connect", { step: 1, verdict: "ask" }),
    event("connect", { step: 1, verdict: "deny" }),
    event("finding", { step: 1, verdict: "deny", severity: "high" }),
    event("agent", { op: "turn", run: "r1", turn: 1, step: 1, action: "shell", text: "curl x\ncurl y", outcome: "exit 7", tokens_in: 10, tokens_out: 5, cost_usd: 0.25 }),
    event("reward", { run: "r1", turn: 1, total: -0.5, terms: { task: 1, penalty: -1.5 } }),
  ];
}

function agents(...events: AuditEvent[]): Agents {
  const found = new Agents();
  for (const each of events) {
    found.add(each);
  }
  return found;
}

describe("the runs of agents", () => {
  it("join what an agent says with what was seen of its commands", () => {
    const run = agents(...aRun()).runs.get("r1")!;
    expect([run.agent, run.maxSteps, run.steps, run.tokens, run.cost]).toEqual(["mine", 9, 1, 15, 0.25]);
    expect(verdictsOf(run.turns.get(1)!)).toBe("1 allowed, 1 denied, 1 held, 1 found");
    expect(rewardOf(run)).toBe("\u22120.5 = task +1, penalty \u22121.5");
  });

  it("count a program inside that asks a model by itself as one", () => {
    const about = { step: 4, pid: 9 };
    const found = agents(
      event("step", { op: "start", step: 4, argv: ["mini", "-t", "fix"] }),
      event("model", { ...about, op: "request", model: "m" }),
      event("model", { ...about, op: "response", tool_calls: ["bash ls"], input_tokens: 3, output_tokens: 4, cost: 0.5 }),
      event("model", { ...about, op: "refused", verdict: "deny", reason: "over the budget" }),
      event("step", { op: "end", step: 4, exit_code: 0 }),
    );
    const run = found.runs.get("step 4")!;
    expect([run.agent, run.task, run.outcome, run.tokens, run.cost]).toEqual(["program inside", "mini -t fix", "exit 0", 7, 0.5]);
    expect([...run.turns.values()].map((turn) => [turn.text, turn.outcome, verdictsOf(turn)])).toEqual([
      ["bash ls", "done", "1 allowed"],
      ["", "over the budget", "1 denied"],
    ]);
  });

  it("stay within their bounds, and pass over turns of a run that nobody began", () => {
    const many = Array.from({ length: 50 }, (_, i) => event("agent", { op: "begin", run: `r${i}` }));
    const turns = Array.from({ length: 1000 }, (_, i) => event("agent", { op: "turn", run: "r49", turn: i + 1 }));
    const found = agents(...many, ...turns, event("agent", { op: "turn", run: "stranger", turn: 1 }));
    expect([found.runs.size, found.runs.get("r49")!.turns.size, found.runs.get("r49")!.steps]).toEqual([20, 500, 1000]);
    expect(found.runs.has("stranger")).toBe(false);
  });
});

describe("the agent panel", () => {
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] });
    document.body.replaceChildren();
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  const shown = (...events: AuditEvent[]): [Feed, AgentPanel] => {
    const feed = new Feed("0123abcd", null, null);
    const panel = new AgentPanel(feed);
    document.body.append(panel.node);
    more(feed, ...events);
    return [feed, panel];
  };
  const more = (feed: Feed, ...events: AuditEvent[]): void => {
    feed.take({ type: "events", events });
    vi.advanceTimersByTime(2000);
  };

  it("shows step, action, verdicts, cost and reward, and how it ended", () => {
    const [feed, panel] = shown(...aRun());
    const text = (): string => panel.node.textContent;
    expect(panel.node.querySelector("progress")).toMatchObject({ value: 1, max: 9 });
    for (const words of ["running", "step 1 of 9", "curl x \u23ce curl y", "exit 7", "1 denied, 1 held, 1 found", "0.2500"]) {
      expect(text()).toContain(words);
    }
    more(feed, event("agent", { op: "end", run: "r1", turn: 1, outcome: "finished", text: "it is done" }));
    expect(panel.node.querySelector("[role=status]")!.textContent).toBe("finished");
    expect(text()).toContain("it is done");
    panel.close();
  });

  it("says that a run waits while the watch is frozen", () => {
    const [feed, panel] = shown(...aRun());
    feed.take({ type: "state", run: { watch: "0123abcd", state: "frozen" } });
    vi.advanceTimersByTime(2000);
    expect(panel.node.querySelector("[role=status]")!.textContent).toBe("paused: the watch is frozen");
    panel.close();
  });

  it("replaces only the rows that change, and says that there is none", () => {
    const [feed, panel] = shown();
    expect(panel.node.textContent).toContain("no agent has run");
    more(feed, ...aRun());
    const [first] = panel.node.querySelectorAll("tbody tr");
    more(feed, event("agent", { op: "turn", run: "r1", turn: 2, action: "say", text: "hello" }));
    const rows = [...panel.node.querySelectorAll("tbody tr")];
    expect([rows.length, rows[0] === first]).toEqual([2, true]);
    expect(panel.node.querySelectorAll("th[scope=row]").length).toBe(2);
    panel.close();
  });

  it("shows hostile names as text", () => {
    const [, panel] = shown(...aRun(HOSTILE));
    expect(panel.node.querySelector("img")).toBeNull();
    expect(panel.node.textContent).toContain('<img src=x onerror="alert(1)">\\u202e');
    panel.close();
  });
});
