/** Ends every run of this user at once: by one request to the server, and by each run's kernel at the same time. */

import { killAnswer, killCommand, type KillAnswer } from "../core/kill";
import { controlRoute } from "../core/routes";
import { isObject, post, type Server } from "../core/server";
import { count, shown } from "../core/text";
import type { RunState } from "../core/events";
import type { Application } from "./host";

/** What to tell the person. */
export interface Outcome {
  readonly isConfirmed: boolean;
  readonly text: string;
}

/** Kill every run; never raises. */
export async function killAll(server: Server, app: Application, runs: readonly RunState[]): Promise<Outcome> {
  const began = performance.now();
  const byKernel = Promise.all(runs.map(async (run) => await throughKernel(app, run)));
  const byServer = await throughServer(server);
  const ms = Math.round(performance.now() - began);
  if (byServer !== null) {
    const killed = byServer.reduce((sum, answer) => sum + answer.killed, 0);
    const what = `${count(byServer.length, "run")}, killed ${count(killed, "process", "processes")}, 0 left`;
    return { isConfirmed: true, text: `${what}, ${ms} ms, via http` };
  }
  const answers = await byKernel;
  const open = runs.filter((_run, i) => answers[i]?.final !== true);
  if (runs.length > 0 && open.length === 0) {
    const killed = answers.reduce((sum, answer) => sum + (answer?.killed ?? 0), 0);
    const what = `${count(runs.length, "run")}, killed ${count(killed, "process", "processes")}`;
    return { isConfirmed: true, text: `${what}, 0 left, via control` };
  }
  return { isConfirmed: false, text: `kill NOT confirmed. In a terminal: ${killCommand("")}` };
}

/** Return the answers for all runs, or null where one of them is not final. */
async function throughServer(server: Server): Promise<KillAnswer[] | null> {
  try {
    const { status, body } = await post(server, "api/kill-all", { reason: "the kill-all button" });
    const results = Array.isArray(body.results) ? body.results.filter(isObject) : [];
    const answers = results.map((result) => killAnswer(result, "http"));
    return status === 200 && body.final === true && answers.every((answer) => answer.final) ? answers : null;
  } catch {
    return null;
  }
}

async function throughKernel(app: Application, run: RunState): Promise<KillAnswer | null> {
  if (run.kernel === "") {
    return null;
  }
  const kernel = app.serviceManager.kernels.connectTo({ model: { id: run.kernel, name: "" } });
  try {
    return await Promise.race([controlRoute(kernel).send(run.watch), later(8000)]);
  } catch {
    return null;
  } finally {
    kernel.dispose();
  }
}

async function later(ms: number): Promise<null> {
  return await new Promise((resolve) => {
    setTimeout(() => {
      resolve(null);
    }, ms);
  });
}

/** Return what the confirmation asks. */
export function question(runs: readonly RunState[]): string {
  const names = runs.map((run) => `${shown(run.watch)} (${count(run.processes, "process", "processes")})`);
  return `This ends every process of ${count(runs.length, "agent run")} of yours: ${names.join(", ")}.`;
}
