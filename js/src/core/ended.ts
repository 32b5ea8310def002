/** Learns that a run has ended by another hand, for kill switches that stand alone and hear of nothing else. */

import type { KillButton } from "./button";
import { isObject, get, type Server } from "./server";
import type { Messages } from "./routes";

/** How often is asked, milliseconds. */
const PAUSE_MS = 3000;

/** Brings what is known of a run, in the form of the server's `api/runs/ID`. */
export type Ask = () => Promise<Record<string, unknown>>;

/** Ask the server. */
export function askServer(server: Server, run: string, signal?: AbortSignal): Ask {
  return async () => {
    const { status, body } = await get(server, `api/runs/${encodeURIComponent(run)}`, signal);
    return status === 200 ? body : {};
  };
}

/** Ask the kernel; while it is busy nothing is asked a second time. */
export function askKernel(model: Messages): Ask {
  return async () =>
    await new Promise((resolve) => {
      const listen = (message: unknown): void => {
        if (isObject(message) && message.type === "outcome") {
          model.off("msg:custom", listen);
          resolve(isObject(message.run) ? message.run : {});
        }
      };
      model.on("msg:custom", listen);
      model.send({ type: "outcome" });
    });
}

/** Ask again and again until the button knows how its run ended, or the view has gone. */
export function followEnd(kill: KillButton, ask: Ask, gone: AbortSignal, pause = PAUSE_MS): void {
  const look = async (): Promise<void> => {
    if (!document.hidden) {
      try {
        const body = await ask();
        if (body.state === "ended") {
          kill.ended(body);
        }
      } catch {
        // The button says by itself what becomes of it; the next question may be answered.
      }
    }
    if (!gone.aborted && !kill.isSettled) {
      setTimeout(() => void look(), pause);
    }
  };
  void look();
}
