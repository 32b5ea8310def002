/** How runs of agents stand, turn by turn: what they say of themselves, with what was seen of their commands. Pure. */

import { number, text, texts, type AuditEvent } from "../core/events";

/** One turn of a run. */
export interface Turn {
  readonly number: number;
  action: string;
  text: string;
  /** "" while it goes on. */
  outcome: string;
  allowed: number;
  denied: number;
  held: number;
  findings: number;
  tokens: number;
  cost: number;
  /** null: nobody said. */
  reward: number | null;
}

/** One run of an agent, or a program inside that asks a model by itself. */
export interface AgentRun {
  readonly id: string;
  readonly agent: string;
  readonly task: string;
  /** 0: nobody said. */
  readonly maxSteps: number;
  /** "" while it goes on. */
  outcome: string;
  answer: string;
  steps: number;
  tokens: number;
  cost: number;
  readonly terms: Map<string, number>;
  readonly turns: Map<number, Turn>;
  /** Grows with each change. */
  version: number;
}

const RUNS = 20;
const TURNS = 500;
const STEPS = 5000;
const TERMS = 64;
const CALLS: ReadonlySet<string> = new Set(["exec", "connect", "listen", "dns", "file", "model"]);

/** The runs of agents in one watch. */
export class Agents {
  readonly runs = new Map<string, AgentRun>();
  readonly #turnOf = new Map<number, [AgentRun, Turn]>();
  readonly #commands = new Map<number, string>();

  /** Take the next record. */
  add(event: AuditEvent): void {
    const run = this.runs.get(text(event, "run"));
    switch (event.kind) {
      case "agent":
        this.#note(event, run);
        return;
      case "reward":
        if (run !== undefined) {
          pay(run, event);
        }
        return;
      case "step":
        this.#step(event, run);
        return;
      case "model":
        if (event.step !== 0 && !this.#turnOf.has(event.step)) {
          this.#inside(event);
        }
    }
    this.#count(event);
  }

  #note(event: AuditEvent, known: AgentRun | undefined): void {
    const op = text(event, "op");
    if (op === "begin") {
      this.#begin(text(event, "run"), text(event, "agent"), text(event, "text"), number(event, "max_steps"));
      return;
    }
    if (known === undefined) {
      return;
    }
    known.version += 1;
    if (op === "end") {
      known.outcome = text(event, "outcome") || "ended";
      known.answer = text(event, "text");
      return;
    }
    const turn = turnOf(known, number(event, "turn"));
    turn.action = text(event, "action");
    turn.text = text(event, "text");
    turn.outcome = text(event, "outcome") || "done";
    spend(known, turn, number(event, "tokens_in") + number(event, "tokens_out"), number(event, "cost_usd"));
    this.#belongs(event.step, known, turn);
  }

  #step(event: AuditEvent, run: AgentRun | undefined): void {
    if (text(event, "op") === "start") {
      const command = texts(event, "argv").join(" ");
      keep(this.#commands, event.step, command, STEPS);
      if (run !== undefined) {
        const turn = turnOf(run, number(event, "turn"));
        turn.text ||= command;
        run.version += 1;
        this.#belongs(event.step, run, turn);
      }
      return;
    }
    const inside = this.runs.get(insideOf(event.step));
    if (inside !== undefined) {
      inside.version += 1;
      const code = event.exit_code;
      inside.outcome = typeof code === "number" ? `exit ${code}` : text(event, "outcome") || "ended";
    }
  }

  /** A program that asks a model by itself is a run of its own: each answer is a turn. */
  #inside(event: AuditEvent): void {
    const id = insideOf(event.step);
    const run = this.runs.get(id) ?? this.#begin(id, "program inside", this.#commands.get(event.step) ?? "", 0);
    const op = text(event, "op");
    if (op === "request") {
      return;
    }
    const turn = turnOf(run, run.steps + 1);
    turn.action = op === "refused" ? "refused" : "model";
    turn.text = texts(event, "tool_calls").join("; ") || [text(event, "endpoint"), text(event, "model")].join(" ").trim();
    turn.outcome = text(event, "reason") || String(number(event, "status") || "done");
    turn.denied += op === "refused" ? 1 : 0;
    turn.allowed += op === "refused" ? 0 : 1;
    spend(run, turn, number(event, "input_tokens") + number(event, "output_tokens"), number(event, "cost"));
    run.version += 1;
  }

  #begin(id: string, agent: string, task: string, maxSteps: number): AgentRun {
    const counts = { outcome: "", answer: "", steps: 0, tokens: 0, cost: 0, version: 0 };
    const run = { id, agent, task, maxSteps, ...counts, terms: new Map<string, number>(), turns: new Map<number, Turn>() };
    keep(this.runs, id, run, RUNS);
    return run;
  }

  #count(event: AuditEvent): void {
    const [run, turn] = this.#turnOf.get(event.step) ?? [];
    if (run === undefined || turn === undefined) {
      return;
    }
    run.version += 1;
    if (event.kind === "finding") {
      turn.findings += 1;
    } else if (event.verdict === "deny" || event.verdict === "kill") {
      turn.denied += 1;
    } else if (event.verdict === "ask") {
      turn.held += 1;
    } else if (CALLS.has(event.kind) && !(event.kind === "exec" && event.basis === "post")) {
      turn.allowed += 1; // an allowed exec has two records: the claim, and what was found running
    }
    if (event.kind === "model" && text(event, "op") === "response") {
      spend(run, turn, number(event, "input_tokens") + number(event, "output_tokens"), number(event, "cost"));
    }
  }

  #belongs(step: number, run: AgentRun, turn: Turn): void {
    if (step !== 0 && !this.#turnOf.has(step)) {
      keep(this.#turnOf, step, [run, turn], STEPS);
    }
  }
}

/** Return what was allowed, denied, held and found in a turn, in words. */
export function verdictsOf(turn: Turn): string {
  const told: [number, string][] = [
    [turn.allowed, "allowed"],
    [turn.denied, "denied"],
    [turn.held, "held"],
    [turn.findings, "found"],
  ];
  return told
    .filter(([many]) => many > 0)
    .map(([many, word]) => `${many} ${word}`)
    .join(", ");
}

/** Return a number with its sign. */
export function signed(value: number): string {
  const rounded = String(Math.round(value * 1000) / 1000);
  return value < 0 ? rounded.replace("-", "\u2212") : `+${rounded}`;
}

/** Return what a run has earned, as a sum of its parts; "" where nothing was paid. */
export function rewardOf(run: AgentRun): string {
  const parts = [...run.terms].map(([name, value]) => `${name} ${signed(value)}`);
  const sum = [...run.terms.values()].reduce((all, value) => all + value, 0);
  return parts.length === 0 ? "" : `${signed(sum)} = ${parts.join(", ")}`;
}

function insideOf(step: number): string {
  return `step ${step}`; // no id of a run has a space in it
}

function turnOf(run: AgentRun, which: number): Turn {
  const known = run.turns.get(which);
  if (known !== undefined) {
    return known;
  }
  const counts = { allowed: 0, denied: 0, held: 0, findings: 0, tokens: 0, cost: 0, reward: null };
  const turn: Turn = { number: which, action: "", text: "", outcome: "", ...counts };
  keep(run.turns, which, turn, TURNS);
  run.steps = Math.max(run.steps, which);
  return turn;
}

function spend(run: AgentRun, turn: Turn, tokens: number, cost: number): void {
  turn.tokens += tokens;
  turn.cost += cost;
  run.tokens += tokens;
  run.cost += cost;
}

function pay(run: AgentRun, event: AuditEvent): void {
  const turn = turnOf(run, number(event, "turn"));
  turn.reward = (turn.reward ?? 0) + number(event, "total");
  for (const [name, value] of Object.entries(event.terms ?? {})) {
    if (typeof value === "number" && (run.terms.has(name) || run.terms.size < TERMS)) {
      run.terms.set(name, (run.terms.get(name) ?? 0) + value);
    }
  }
  run.version += 1;
}

function keep<K, V>(map: Map<K, V>, key: K, value: V, most: number): void {
  map.set(key, value);
  if (map.size > most) {
    const [oldest] = map.keys();
    map.delete(oldest as K);
  }
}
