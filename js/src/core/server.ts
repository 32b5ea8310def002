/** The Jupyter server that served this page: where it is, and how it lets us in. No kernel has a part in it. */

/** A server, as the page's own configuration names it. */
export interface Server {
  /** Base URL with a slash at its end; absolute. */
  readonly base: string;
  /** Token for the Authorization header; "" where cookies are enough. */
  readonly token: string;
  /** Where prebuilt extensions are served, without a slash at its end; "" where the page does not say. */
  readonly extensions: string;
}

/** An answer of the server; `body` is {} where it was no JSON object. */
export interface Reply {
  readonly status: number;
  readonly body: Record<string, unknown>;
}

/** Return the server of this page, or null in front-ends that have none (VS Code, Colab, a saved HTML file). */
export function findServer(page: Document = document): Server | null {
  const text = page.getElementById("jupyter-config-data")?.textContent;
  if (text === undefined || page.location.protocol === "file:") {
    return null;
  }
  let config: unknown;
  try {
    config = JSON.parse(text);
  } catch {
    return null;
  }
  if (!isObject(config) || typeof config.baseUrl !== "string") {
    return null;
  }
  const base = new URL(config.baseUrl, page.location.href).href;
  const named = config.fullLabextensionsUrl;
  return {
    base: base.endsWith("/") ? base : `${base}/`,
    token: typeof config.token === "string" ? config.token : "",
    extensions: typeof named === "string" && named !== "" ? new URL(named, base).href : "",
  };
}

/** Ask for something. */
export async function get(server: Server, path: string, signal?: AbortSignal): Promise<Reply> {
  return await request(server, path, { method: "GET", ...(signal && { signal }) });
}

/** Do something; `keepalive`, so that a page that is being closed still sends it. */
export async function post(server: Server, path: string, body: object, signal?: AbortSignal): Promise<Reply> {
  const more = signal ? { signal } : {};
  return await request(server, path, { method: "POST", body: JSON.stringify(body), keepalive: true, ...more });
}

/** Return the address of a WebSocket. */
export function socketUrl(server: Server, path: string): string {
  const url = new URL(`${server.base}agentwatch/${path}`);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  if (server.token !== "") {
    url.searchParams.set("token", server.token);
  }
  return url.href;
}

/** Say whether a value is a JSON object. */
export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

async function request(server: Server, path: string, init: RequestInit): Promise<Reply> {
  const headers: Record<string, string> = { "Content-Type": "application/json" };
  const xsrf = /(?:^|;\s*)_xsrf=([^;]*)/.exec(document.cookie)?.[1];
  if (xsrf !== undefined) {
    headers["X-XSRFToken"] = xsrf;
  }
  if (server.token !== "") {
    headers.Authorization = `token ${server.token}`;
  }
  const answer = await fetch(`${server.base}agentwatch/${path}`, {
    ...init,
    headers,
    credentials: "same-origin",
    cache: "no-store",
  });
  const body: unknown = await answer.json().catch(() => ({}));
  return { status: answer.status, body: isObject(body) ? body : {} };
}
