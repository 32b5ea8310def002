import { describe, expect, it } from "vitest";
import { readState } from "../src/core/events";
import type { AppUtils } from "../src/lab/host";
import { Notices } from "../src/lab/notices";
import { stillHolds, tripOf } from "../src/lab/runs";

const run = (more: object = {}): ReturnType<typeof readState> => readState({ watch: "0123abcd", state: "closed", ...more });
const told = (before: object, now: object): string => tripOf(run(before), run(now))?.what ?? "";

describe("a trip", () => {
  it("is told when a run is frozen, asks, has a finding or falls silent, and once", () => {
    expect(told({}, { state: "frozen" })).toBe("is frozen");
    const notes = ["GPUs are SIMULATED", "frozen: high: old", "frozen: critical: a miner"];
    expect(told({}, { state: "frozen", notes })).toBe("is frozen: critical: a miner");
    expect(told({ state: "frozen" }, { state: "frozen" })).toBe("");
    expect(told({}, { asks: [{ ask: 1, text: "connect a.example" }] })).toBe("asks: connect a.example");
    expect(told({}, { state: "silent" })).toBe("does not answer");
    expect(told({}, { processes: 9 })).toBe("");
  });

  it("names the finding, and of several the gravest of those that are new", () => {
    const findings = ["critical: old (r.old)", "low: a (r.a)", "high: b (r.b)", "medium: c (r.c)"];
    const counts = { "finding:allow": 1 };
    expect(told({ counts }, { counts: { "finding:allow": 2 }, findings })).toBe("has a new finding: medium: c (r.c)");
    const more = { "finding:allow": 3, "finding:deny": 1 };
    expect(told({ counts }, { counts: more, findings })).toBe("has 3 new findings: high: b (r.b), and 2 more");
    expect(told({}, { counts })).toBe("has a new finding: see its log");
  });

  it("is over when what it was about is", () => {
    const frozen = run({ state: "frozen" });
    expect(["stop", "silence", "question", "finding"].map((matter) => stillHolds(matter as "stop", frozen))).toEqual([
      true, false, false, true,
    ]);
    expect(stillHolds("stop", run())).toBe(false);
    expect(stillHolds("question", run({ asks: [{ ask: 1, text: "x" }] }))).toBe(true);
    expect(stillHolds("stop", undefined)).toBe(false);
  });
});

describe("notices", () => {
  /** JupyterLab's toasts, as a list of messages by id. */
  function page(): { toasts: AppUtils["Notification"]; shown: Map<string, string>; notices: Notices } {
    const shown = new Map<string, string>();
    let last = 0;
    const add = (message: string): string => {
      shown.set(String(++last), message);
      return String(last);
    };
    const update = ({ id, message }: { id: string; message: string }): boolean => shown.has(id) && Boolean(shown.set(id, message));
    const toasts = { error: add, success: add, update, dismiss: (id: string) => void shown.delete(id) };
    return { toasts, shown, notices: new Notices(toasts, () => undefined) };
  }

  it("of a frozen run goes when the run goes on, or has ended", () => {
    for (const after of [[run()], []]) {
      const { shown, notices } = page();
      const frozen = run({ state: "frozen" });
      notices.tell({ run: frozen, matter: "stop", what: "is frozen" });
      notices.settle([frozen]);
      expect([...shown.values()]).toEqual(["Agent run 0123abcd is frozen"]);
      notices.settle(after);
      expect(shown.size).toBe(0);
    }
  });

  it("of findings is one for a run, the newest, of harmless text, and stays after the run's end", () => {
    const { shown, notices } = page();
    notices.tell({ run: run(), matter: "finding", what: "has a new finding: low: a (r.a)" });
    notices.tell({ run: run(), matter: "finding", what: "has a new finding: high: \u202e<img src=x> (r.b)" });
    notices.settle([]);
    expect([...shown.values()]).toEqual(["Agent run 0123abcd has a new finding: high: \\u202e<img src=x> (r.b)"]);
    notices.tell({ run: run({ watch: "89abcdef" }), matter: "finding", what: "has a new finding: low: c (r.c)" });
    expect(shown.size).toBe(2);
  });

  it("comes again where a person has closed the one before", () => {
    const { shown, notices } = page();
    notices.tell({ run: run(), matter: "finding", what: "one" });
    shown.clear();
    notices.tell({ run: run(), matter: "finding", what: "two" });
    expect([...shown.values()]).toEqual(["Agent run 0123abcd two"]);
  });
});
