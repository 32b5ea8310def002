import { describe, expect, it } from "vitest";
import { readEvents, readMessage, type AuditEvent } from "../src/core/events";
import { graphOf, MOST_NODES, network, type Edge } from "../src/view/connections";
import { Curves } from "../src/view/curves";
import { gist } from "../src/view/audit";
import { readState } from "../src/core/events";
import { leftOf } from "../src/view/header";
import { Store } from "../src/view/store";

let seq = 0;
function event(kind: string, fields: Record<string, unknown> = {}): AuditEvent {
  const common = { kind, seq: (seq += 1), t_wall_ns: seq * 1e9, verdict: "allow", basis: "post", pid: 7, step: 1 };
  return readEvents([{ ...common, ...fields }])[0]!;
}

function filled(...events: AuditEvent[]): Store {
  const store = new Store();
  store.last = events[0]!.seq - 1;
  store.take({ type: "events", events }, 0);
  return store;
}

describe("the store", () => {
  it("makes of records the steps, the processes and where they connected to", () => {
    const store = filled(
      event("step", { op: "start", argv: ["make", "test"] }),
      event("exec", { exe: "/usr/bin/curl", argv: ["curl", "x"], ppid: 5 }),
      event("connect", { transport: "tcp", addr: "192.0.2.1", host: "a.example", port: 443, flow: 3 }),
      event("flow", { op: "named", flow: 3, addr: "192.0.2.1", port: 443, protocol: "tls" }),
      event("flow", { op: "closed", flow: 3, addr: "192.0.2.1", port: 443, bytes_out: 10, bytes_in: 20 }),
      event("exit", { exit_code: 2 }),
      event("step", { op: "end", exit_code: 2 }),
    );
    expect(store.steps.get(1)).toMatchObject({ argv: "make test", outcome: "exit 2" });
    expect(store.processes.get(7)).toMatchObject({ exe: "/usr/bin/curl", ppid: 5, ended: true });
    expect([...store.connections.edges.values()]).toMatchObject([
      { program: "curl", endpoint: "a.example:443", verdict: "allow", protocol: "tls", bytesOut: 10, bytesIn: 20 },
    ]);
    expect(store.missing).toBe(0);
  });

  it("shows of a shell's step what the shell was given, and knows the end of that process only of which it is told", () => {
    const store = filled(
      event("step", { op: "start", argv: ["/bin/bash", "-c", "make | tail"], step: 9 }),
      event("exec", { exe: "/bin/bash", argv: ["bash"], ppid: 5, pid: 20, step: 9 }),
      event("exec", { exe: "/usr/bin/make", argv: ["make"], ppid: 20, pid: 21, step: 9 }),
      event("exit", { exit_code: 0, step: 9, pid: 20 }),
      event("step", { op: "end", exit_code: 0, step: 9, pid: 0 }),
      event("step", { op: "start", argv: ["python3", "-c", "pass"], step: 10 }),
    );
    expect(store.steps.get(9)).toMatchObject({ argv: "/bin/bash -c make | tail", command: "make | tail" });
    expect(store.steps.get(10)).toMatchObject({ command: "python3 -c pass" });
    expect([20, 21].map((pid) => store.processes.get(pid)?.ended)).toEqual([true, false]);
  });

  it("passes over what it has, and counts what never came", () => {
    const first = event("file");
    const store = filled(first, first);
    seq += 4;
    store.add(event("file"));
    expect([store.rows.length, store.missing]).toEqual([2, 4]);
  });

  it("has the hash of the policy from the first record", () => {
    const store = filled(event("session", { op: "open", policy_sha256: "68ee" }), event("session", { op: "close" }));
    expect(store.policy).toBe("68ee");
  });

  it("knows of every process that it has ended where none is left, whoever saw its end", () => {
    const store = filled(event("exec", { argv: ["sort"], exe: "/usr/bin/sort", ppid: 3 }));
    const state = (processes: number) => ({ type: "state", run: readState({ state: "closed", processes }) }) as const;
    store.take(state(1), 0);
    expect(store.processes.get(7)!.ended).toBe(false);
    store.take(state(0), 0);
    expect(store.processes.get(7)!.ended).toBe(true);
  });

  it("takes a claim for no process: what ran is in the record after it", () => {
    expect(filled(event("exec", { basis: "claimed", path: "/bin/true" })).processes.size).toBe(0);
  });

  it("shows a refused call whatever else the same process was allowed there", () => {
    const place = { transport: "tcp", addr: "192.0.2.1", port: 22 };
    const store = filled(event("connect", place), event("connect", { ...place, verdict: "deny" }), event("connect", place));
    expect([...store.connections.edges.values()]).toMatchObject([{ verdict: "deny", count: 3, denied: 1 }]);
  });

  it("reads measurements, simulated ones as such, and unknown numbers as none", () => {
    const store = filled(
      event("resources", { pid: 0, interval_s: 2, cpu_s: 1, rss_bytes: 5 * 2 ** 20 }),
      event("gpu", { op: "device", device: "GPU-1", index: 0, utilization: 50, simulated: true, interval_s: 1 }),
      event("gpu", { op: "state", device: "GPU-1", simulated: false, state: "error", reason: "fell off the bus" }),
    );
    const values = store.curves.of("resources").map((curve) => [curve.group, curve.y]);
    expect(Object.fromEntries(values)).toMatchObject({ CPU: [50], "resident memory": [5] });
    expect(store.curves.notes("gpu")).toEqual(["SIMULATED", "GPU 0: error fell off the bus"]);
    expect(store.curves.of("gpu").map((curve) => [curve.panel, curve.y])).toEqual([[0, [50]], [1, [null]], [2, [null]], [3, [null]]]);
  });

  it("stays within its bounds", () => {
    const store = new Store();
    for (let i = 0; i < 30_000; i += 1) {
      store.add({ ...event("exec", { exe: "/bin/x" }), pid: i, seq: i });
    }
    expect(store.rows.length).toBeLessThanOrEqual(25_000);
    expect(store.processes.size).toBe(5000);
    expect(store.rows.at(-1)?.seq).toBe(29_999);
  });
});

/** Pack points as the server does. */
function packed(base: number, ...runs: [number, number[], (number | null)[]][]): ArrayBuffer {
  const size = runs.reduce((sum, [, t]) => sum + 8 + 8 * t.length, 16);
  const view = new DataView(new ArrayBuffer(size));
  view.setUint32(0, 1, true);
  view.setUint32(4, runs.length, true);
  view.setFloat64(8, base, true);
  let at = 16;
  for (const [line, t, y] of runs) {
    view.setUint32(at, line, true);
    view.setUint32(at + 4, t.length, true);
    t.forEach((each, i) => {
      view.setFloat32(at + 8 + 4 * i, each, true);
    });
    y.forEach((each, i) => {
      view.setFloat32(at + 8 + 4 * (t.length + i), each ?? NaN, true);
    });
    at += 8 + 8 * t.length;
  }
  return view.buffer;
}

describe("live samples", () => {
  const cpu = { chart: "resources", panel: 0, group: "CPU", part: "" };
  const ours = { chart: "gpu", panel: 0, group: "GPU 0", part: "sandbox" };

  it("take over from the records of the log, without a seam and without a point twice", () => {
    const curves = new Curves();
    curves.record(cpu, 1000, 1);
    curves.record(cpu, 2000, 2);
    curves.name([ours, cpu], { gpu: ["No GPU: none"] });
    curves.unpack(packed(1500, [1, [0, 100], [7, null]], [0, [50], [9]]));
    curves.record(cpu, 3000, 3);
    curves.unpack(packed(1500, [1, [100, 200], [8, 8]]));
    expect(curves.of("resources")).toMatchObject([{ t: [1000, 1500, 1600, 1700], y: [1, 7, null, 8] }]);
    expect(curves.of("gpu")).toMatchObject([{ part: "sandbox", t: [1550], y: [9] }]);
    expect(curves.notes("gpu")).toEqual(["No GPU: none"]);
  });

  it("are passed over where they are not understood", () => {
    const curves = new Curves();
    curves.name([cpu], {});
    const whole = packed(0, [0, [1], [1]], [5, [1], [1]]);
    curves.unpack(new ArrayBuffer(3));
    curves.unpack(new Uint8Array(32).buffer);
    curves.unpack(whole.slice(0, 44));
    expect(curves.of("resources")).toMatchObject([{ t: [1], y: [1] }]);
  });

  it("stay within their bounds", () => {
    const curves = new Curves();
    curves.name(Array.from({ length: 2000 }, (_, i) => ({ ...cpu, group: `CPU ${i}` })), {});
    expect(curves.of("resources").length).toBe(512);
    for (let i = 0; i < 2000; i += 1) {
      curves.unpack(packed(i, [0, [0], [i]]));
    }
    expect(curves.of("resources")[0]!.t.length).toBeLessThanOrEqual(750);
    expect(curves.of("resources")[0]!.y.at(-1)).toBe(1999);
  });
});

describe("a message", () => {
  it.each([null, 3, "x", [], {}, { type: "state" }, { type: "events" }, { type: "telemetry" }])(
    "that is not understood is passed over: %j",
    (data) => {
      expect(readMessage(data)).toBeNull();
    },
  );

  it("without a verdict counts as refused, never as allowed", () => {
    expect(readEvents([{ kind: "connect" }])[0]?.verdict).toBe("deny");
  });
});

describe("the graph", () => {
  const edge = (pid: number, endpoint: string, verdict: Edge["verdict"] = "allow"): Edge => ({
    ...{ pid, program: "curl", endpoint, verdict, count: 1, denied: 0, bytesOut: 1, bytesIn: 1 },
    ...{ protocol: "", reason: "" },
  });

  it("is drawn as it is while it is small", () => {
    const graph = graphOf([edge(1, "a.example:443"), edge(1, "b.example:443"), edge(2, "a.example:443")]);
    expect([graph.nodes.length, graph.links.length, graph.isFolded]).toEqual([4, 3, false]);
  });

  it("is folded until it can be read, and what was refused stays in it", () => {
    const edges = Array.from({ length: 5000 }, (_, i) => edge(i % 900, `198.51.${i % 250}.${i % 200}:22`));
    edges.push(edge(4242, "203.0.113.9:3333", "deny"));
    const graph = graphOf(edges);
    expect(graph.nodes.length).toBeLessThanOrEqual(MOST_NODES);
    expect(graph.isFolded).toBe(true);
    expect(graph.links.filter((link) => link.verdict === "deny").map((link) => link.target)).toEqual([
      "endpoint:203.0.113.0/24",
    ]);
  });

  it.each([
    ["198.51.100.7:22", "198.51.100.0/24"],
    ["www.deep.example.org:443", "*.example.org"],
    ["[2001:db8:1:2::5]:443", "2001:db8:1::/48"],
    ["/run/user/0/bus", "/run/user/0/…"],
  ])("folds %s into %s", (endpoint, folded) => {
    expect(network(endpoint)).toBe(folded);
  });
});

describe("a line of the audit table", () => {
  it.each([
    [event("dns", { qname: "a.example", qtype: "A", rcode: "REFUSED" }), "a.example A REFUSED"],
    [
      event("agent", { op: "turn", run: "ab", turn: 2, action: "shell", text: "ls", tokens_in: 10, tokens_out: 5 }),
      "run ab turn 2: shell ls (15 tokens, 0.0000 USD)",
    ],
    [event("reward", { run: "ab", turn: 2, total: -0.5, terms: { task: -0.5 } }), "run ab turn 2 earned -0.5"],
    [event("limit", { limit: "memory", value: 3 }), "limit=memory value=3"],
    [
      event("resources", { interval_s: 2, cpu_s: 0.38000000000000006, rss_bytes: 40_513_536, processes: 3, threads: 1 }),
      "19 % of one core · memory 40.5 MB · 3 processes, 1 thread · read 0 B, wrote 0 B",
    ],
    [
      event("gpu", { op: "device", index: 0, simulated: true, utilization: 42.4, power_w: 120, temperature_c: 38 }),
      "GPU 0 SIMULATED device · 42 % · 120 W · 38 °C",
    ],
    [event("gpu", { op: "lease", device: "GPU-1", lease: "l", purpose: "training" }), "lease of GPU-1 training"],
    [event("connect", { transport: "tcp", addr: "192.0.2.1", port: 22, rule: "r" }), "tcp 192.0.2.1 port 22 r"],
  ])("says what happened", (found, words) => {
    expect(gist(found)).toBe(words);
  });
});

describe("what a person must decide", () => {
  it("comes with the time that is left, and unknown times as none", () => {
    const run = { asks: [{ ask: 1, text: "a" }, { ask: 2, text: "b" }], asks_left_s: { 1: 9.5 }, state: "frozen" };
    expect(readState(run).asks).toEqual([{ ask: 1, text: "a", left: 9.5 }, { ask: 2, text: "b", left: null }]);
    expect(leftOf(readState(run), 0)).toBe("");
    const frozen = readState({ ...run, frozen_left_s: 75, on_expiry: "kill" });
    expect(leftOf(frozen, 5)).toBe("will be killed in 0:01:10 unless a person resumes or kills it");
    expect(leftOf({ ...frozen, onExpiry: "resume" }, 100)).toBe("goes on by itself in 0:00:00 unless a person resumes or kills it");
  });

  it("is put together as incidents, whatever else the server may send", () => {
    const store = new Store();
    const message = readMessage({ type: "incidents", incidents: [null, { severity: "high", ended_ms: "x", prevented: [1, "p"], slowdown: "much" }] });
    store.take(message!, 0);
    expect(store.incidents).toMatchObject([{ severity: "high", ended: null, prevented: ["p"], title: "", slowdown: null, lastBytes: [], leakedOut: 0 }]);
  });
});
