/** Loads the big part of the widget once per page: by address where a server has it, else from the kernel. */

import { isObject, type Server } from "./server";
import type { Messages } from "./routes";
import type { Request } from "../view/index";

/** What the big part offers. */
export interface ViewBundle {
  mount(request: Request): () => void;
}

const PATIENCE_MS = 60_000;
const HASH = /^[0-9a-f]{16}$/;

const shelf = globalThis as { __agentwatchViews?: Map<string, Promise<ViewBundle>> };

/** Return the bundle with a hash. */
export async function loadView(server: Server | null, hash: string, model: Messages): Promise<ViewBundle> {
  if (!HASH.test(hash)) {
    throw new Error("the kernel's part names no bundle");
  }
  shelf.__agentwatchViews ??= new Map();
  const known = shelf.__agentwatchViews;
  let loading = known.get(hash);
  if (loading === undefined) {
    loading = fetchView(server, hash, model);
    known.set(hash, loading);
    loading.catch(() => known.delete(hash)); // the next view tries again
  }
  return await loading;
}

async function fetchView(server: Server | null, hash: string, model: Messages): Promise<ViewBundle> {
  if (server !== null && server.extensions !== "") {
    try {
      return await imported(`${server.extensions}/jupyter-agentwatch/static/view.${hash}.js`);
    } catch {
      // The server may have another version of this package than the kernel: the kernel has what fits it.
    }
  }
  return await fromKernel(hash, model);
}

async function fromKernel(hash: string, model: Messages): Promise<ViewBundle> {
  const code = await new Promise<DataView>((resolve, reject) => {
    const timer = setTimeout(() => {
      model.off("msg:custom", listen);
      reject(new Error("the kernel is busy; run the cell again when it is idle"));
    }, PATIENCE_MS);
    const listen = (message: unknown, buffers: DataView[]): void => {
      const [buffer] = buffers;
      if (isObject(message) && message.type === "bundle" && message.hash === hash && buffer !== undefined) {
        clearTimeout(timer);
        model.off("msg:custom", listen);
        resolve(buffer);
      }
    };
    model.on("msg:custom", listen);
    model.send({ type: "bundle" });
  });
  const url = URL.createObjectURL(new Blob([code as BlobPart], { type: "text/javascript" }));
  try {
    return await imported(url);
  } finally {
    URL.revokeObjectURL(url);
  }
}

async function imported(url: string): Promise<ViewBundle> {
  return (await import(/* @vite-ignore */ url)) as ViewBundle;
}
