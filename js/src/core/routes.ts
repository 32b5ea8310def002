/** The three ways of a kill. Each works where the others do not: HTTP needs no kernel, the other two need no server. */

import { isObject, post, type Server } from "./server";
import { killAnswer, type KillAnswer, type Route } from "./kill";

/** The part of a comm that we use. */
export interface Comm {
  onMsg: (message: { content: { data: unknown } }) => void;
  onClose: (message: unknown) => void;
  open(data: object): unknown;
}

/** The part of JupyterLab's kernel connection that we use; other front-ends have less, and are asked first. */
export interface Kernel {
  readonly clientId?: string;
  sendControlMessage?(message: object, expectReply: boolean, disposeOnDone: boolean): ControlFuture;
  createComm?(target: string): Comm;
}

/** What JupyterLab returns for a control message. */
export interface ControlFuture {
  onReply: (message: { content: unknown }) => void;
  readonly done: Promise<unknown>;
}

/** Comm target that the kernel's part registers, and prefix of its control messages. */
export const TARGET = "agentwatch";

const REASON = "the button in the notebook";

/** By the Jupyter server: works whatever the kernel does. */
export function httpRoute(server: Server): Route {
  return {
    via: "http",
    async send(run) {
      const { status, body } = await post(server, `api/runs/${encodeURIComponent(run)}/kill`, { reason: REASON });
      const answer = killAnswer(body, "http");
      if (status !== 200) {
        return { ...answer, final: false, message: answer.message || `the server answered ${status}` };
      }
      return answer;
    },
  };
}

/** By the kernel's control channel: works while a cell runs, but not while C code holds the interpreter. */
export function controlRoute(kernel: Kernel): Route {
  return {
    via: "control",
    send: async (run) =>
      await new Promise((resolve, reject) => {
        if (kernel.sendControlMessage === undefined) {
          throw new Error("this front-end has no control channel");
        }
        const future = kernel.sendControlMessage(controlMessage(kernel, run), true, true);
        future.onReply = (message) => {
          settle(message.content, "control", resolve, reject);
        };
        future.done.catch(() => {
          reject(new Error("the kernel did not answer"));
        });
      }),
  };
}

/** By a comm of our own: not behind the callbacks of other widgets, and all that some front-ends have. */
export function commRoute(kernel: Kernel): Route {
  return {
    via: "comm",
    send: async (run) =>
      await new Promise((resolve, reject) => {
        if (kernel.createComm === undefined) {
          throw new Error("this front-end opens no comm");
        }
        const comm = kernel.createComm(TARGET);
        comm.onMsg = (message) => {
          settle(message.content.data, "comm", resolve, reject);
        };
        comm.onClose = () => {
          reject(new Error("the kernel knows no such comm"));
        };
        comm.open({ op: "kill", run });
      }),
  };
}

/** By the widget's own messages, for front-ends that give a widget nothing else. */
export function modelRoute(model: Messages): Route {
  return {
    via: "comm",
    send: async (run) =>
      await new Promise((resolve, reject) => {
        const listen = (message: unknown): void => {
          if (isObject(message) && message.type === "killed" && message.run === run) {
            model.off("msg:custom", listen);
            settle(message.answer, "comm", resolve, reject);
          }
        };
        model.on("msg:custom", listen);
        model.send({ type: "kill", run });
      }),
  };
}

/** The part of a widget's model that carries messages. */
export interface Messages {
  on(event: string, callback: (message: unknown, buffers: DataView[]) => void): void;
  off(event: string, callback: (message: unknown, buffers: DataView[]) => void): void;
  send(content: unknown): void;
}

/** Return every way that is open from here, the surest first. */
export function routes(server: Server | null, kernel: Kernel | null, model: Messages | null): Route[] {
  const found: Route[] = [];
  if (server !== null) {
    found.push(httpRoute(server));
  }
  if (kernel?.sendControlMessage !== undefined) {
    found.push(controlRoute(kernel));
  }
  if (kernel?.createComm !== undefined) {
    found.push(commRoute(kernel));
  } else if (model !== null) {
    found.push(modelRoute(model));
  }
  return found;
}

function settle(
  content: unknown,
  via: "control" | "comm",
  resolve: (answer: KillAnswer) => void,
  reject: (error: Error) => void,
): void {
  if (isObject(content)) {
    resolve(killAnswer(content, via));
  } else {
    reject(new Error("the kernel's answer was not understood"));
  }
}

function controlMessage(kernel: Kernel, run: string): object {
  return {
    header: {
      msg_id: identifier(),
      msg_type: "agentwatch_kill_request",
      username: "",
      session: kernel.clientId ?? "",
      date: new Date().toISOString(),
      version: "5.4",
    },
    metadata: {},
    content: { run },
    parent_header: {},
    channel: "control",
    buffers: [],
  };
}

function identifier(): string {
  // crypto.randomUUID exists in secure contexts only, and a Jupyter server on plain HTTP is none.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
