/** One source of records for each run of a page, however many dashboards show it. */

import { readEvents, readMessage, type AuditEvent } from "../core/events";
import { isObject, get, socketUrl, type Server } from "../core/server";
import type { Messages } from "../core/routes";
import { Store } from "./store";

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 10_000;
const HISTORY = 5000;

/** What is listened for: records and pictures of the run, or lines of charts, whichever way their points come. */
export type Topic = "records" | "curves";

/** What is asked for: all records, or only those that charts are made of. */
export type Scope = "all" | "measurements";

const KINDS: Readonly<Record<Scope, string>> = { all: "", measurements: "&kinds=gpu,resources" };

/** A run's records as they come, and who wants to hear of them. */
export class Feed {
  readonly store = new Store();
  readonly #server: Server | null;
  readonly #model: Messages | null;
  readonly #listeners = new Map<() => void, Topic>();
  readonly #ending = new AbortController();
  #held: AuditEvent[] | null = null;
  #hasRecalled = false;
  #socket: WebSocket | null = null;
  #pause = FIRST_PAUSE_MS;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #toldCurves = 0;

  constructor(
    private readonly run: string,
    server: Server | null,
    model: Messages | null,
    private readonly scope: Scope = "all",
  ) {
    this.#server = server;
    this.#model = server === null ? model : null;
    if (server !== null) {
      this.#connect(server);
    } else if (model !== null) {
      this.#follow(model);
    }
  }

  /** Hear of changes; returns how to stop. */
  subscribe(listener: () => void, topic: Topic = "records"): () => void {
    this.#listeners.set(listener, topic);
    return () => this.#listeners.delete(listener);
  }

  /** End the connection. */
  close(): void {
    this.#ending.abort();
    clearTimeout(this.#timer);
    this.#socket?.close();
  }

  /** Take a message, whichever way it came. */
  take(data: unknown): void {
    const message = readMessage(data);
    if (message === null) {
      return;
    }
    if (message.type === "events" && this.#held !== null) {
      this.#held.push(...message.events);
      return;
    }
    this.store.take(message, performance.now());
    this.#tell();
  }

  /** Ask for the incidents; they come as a message, whichever way. */
  async askIncidents(): Promise<void> {
    if (this.#server === null) {
      this.#model?.send({ type: "incidents" });
      return;
    }
    try {
      const path = `api/runs/${encodeURIComponent(this.run)}/incidents`;
      this.take({ ...(await get(this.#server, path, this.#ending.signal)).body, type: "incidents" });
    } catch {
      // The findings are there all the same, and the next one asks again.
    }
  }

  /** Take points of lines. */
  takePoints(points: ArrayBuffer | DataView): void {
    this.store.curves.unpack(points);
    this.#tellCurves();
  }

  #connect(server: Server): void {
    const socket = new WebSocket(socketUrl(server, `stream?run=${encodeURIComponent(this.run)}${KINDS[this.scope]}`));
    this.#socket = socket;
    socket.binaryType = "arraybuffer";
    this.#held = [];
    this.#hasRecalled = false;
    socket.onmessage = (event: MessageEvent<unknown>) => {
      this.#pause = FIRST_PAUSE_MS;
      if (event.data instanceof ArrayBuffer) {
        this.takePoints(event.data);
        return;
      }
      this.take(parsed(event.data));
      if (!this.#hasRecalled) {
        // Only now: the first message says that the stream has begun, so that nothing falls between it and history.
        this.#hasRecalled = true;
        void this.#recall(server);
      }
    };
    socket.onclose = () => {
      if (this.store.hasEnded || this.#ending.signal.aborted) {
        return;
      }
      this.store.take({ type: "lost", message: "no connection to the server; trying again" }, performance.now());
      this.#tell();
      this.#timer = setTimeout(() => {
        this.#connect(server);
      }, this.#pause);
      this.#pause = Math.min(LONGEST_PAUSE_MS, this.#pause * 2);
    };
  }

  /** Fetch what was recorded before the stream began; live records wait meanwhile, so that their order is kept. */
  async #recall(server: Server): Promise<void> {
    const after = this.store.last;
    try {
      const path = `api/runs/${encodeURIComponent(this.run)}/events?after=${after}&limit=${HISTORY}${KINDS[this.scope]}`;
      const { status, body } = await get(server, path, this.#ending.signal);
      if (status === 200 && Array.isArray(body.events)) {
        this.store.take({ type: "events", events: readEvents(body.events) }, performance.now());
      }
    } catch {
      // The live records are worth showing without the former ones; the audit table says from where on it has them.
    }
    const held = this.#held ?? [];
    this.#held = null;
    this.store.take({ type: "events", events: held }, performance.now());
    this.#tell();
  }

  #follow(model: Messages): void {
    const listen = (message: unknown, buffers: DataView[]): void => {
      if (!isObject(message) || message.run_id !== this.run) {
        return;
      }
      const [points] = buffers;
      if (message.type === "points" && points !== undefined) {
        this.takePoints(points);
      } else {
        this.take(message);
      }
    };
    model.on("msg:custom", listen);
    this.#ending.signal.addEventListener("abort", () => {
      model.off("msg:custom", listen);
      model.send({ type: "unfollow" });
    });
    model.send({ type: "follow", after: this.store.last });
  }

  #tell(): void {
    this.#ring("records");
    this.#tellCurves();
  }

  /** Records come at any moment: a chart that drew for each of them would make the next points wait for its pace. */
  #tellCurves(): void {
    if (this.store.curves.version !== this.#toldCurves) {
      this.#toldCurves = this.store.curves.version;
      this.#ring("curves");
    }
  }

  #ring(what: Topic): void {
    for (const [listener, topic] of this.#listeners) {
      if (topic === what) {
        listener();
      }
    }
  }
}

const feeds = new Map<string, { feed: Feed; users: number }>();

/** Return the page's feed of a run, and how to let it go; with the last user its connection ends. */
export function join(
  run: string,
  server: Server | null,
  model: Messages | null,
  wanted: Scope = "all",
): [Feed, () => void] {
  // The kernel, where there is no server, sends everything; and what has everything has the measurements.
  const scope = server === null || feeds.has(`${run} all`) ? "all" : wanted;
  const key = `${run} ${scope}`;
  const entry = feeds.get(key) ?? { feed: new Feed(run, server, model, scope), users: 0 };
  feeds.set(key, entry);
  entry.users += 1;
  let isHeld = true;
  const leave = (): void => {
    if (!isHeld) {
      return;
    }
    isHeld = false;
    entry.users -= 1;
    if (entry.users === 0) {
      entry.feed.close();
      feeds.delete(key);
    }
  };
  return [entry.feed, leave];
}

function parsed(data: unknown): unknown {
  if (typeof data !== "string") {
    return null;
  }
  try {
    return JSON.parse(data);
  } catch {
    return null;
  }
}
