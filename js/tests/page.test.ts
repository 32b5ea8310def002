// @vitest-environment jsdom
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { KillButton } from "../src/core/button";
import { element } from "../src/core/dom";
import type { KillAnswer } from "../src/core/kill";
import { commRoute, controlRoute, httpRoute, routes, type Comm, type ControlFuture } from "../src/core/routes";
import { findServer, socketUrl, type Server } from "../src/core/server";
import { bytes, clock, oneLine, plotted, shown } from "../src/core/text";

const RUN = "0123abcd";
const SERVER: Server = { base: "https://hub.example/user/me/", token: "t", extensions: "" };
const HOSTILE = '<img src=x onerror="alert(1)">\u202Eevil\u001B[31m\u200B';

describe("hostile text", () => {
  it("is text in an element, with what is invisible made visible", () => {
    const made = element("p", { title: "x" }, HOSTILE);
    expect(made.children.length).toBe(0);
    expect(made.textContent).toBe('<img src=x onerror="alert(1)">\\u202eevil\\x1b[31m\\u200b');
  });

  it("is cut, and what was cut is counted", () => {
    expect(shown("a".repeat(10_000), 5)).toBe("aaaaa… (+9995 characters)");
  });

  it("has no tag and no entity left for plotly.js", () => {
    expect(plotted("<a href='javascript:1'>&lt;b&gt;")).toBe("&lt;a href='javascript:1'&gt;&amp;lt;b&amp;gt;");
    expect(plotted("$\\href{javascript:1}{x}$")).toBe("&#36;\\href{javascript:1}{x}&#36;");
  });

  it("has its line breaks as a sign, made visible before or not", () => {
    expect(oneLine("\\x0aa\\x0ab\nc\r\n  d\\x0a\n")).toBe("a \u23ce b \u23ce c \u23ce d");
  });

  it("shows what is no text at all", () => {
    expect([shown(undefined), shown(3), shown({ a: 1 })]).toEqual(["", "3", '{"a":1}']);
  });
});

describe("numbers", () => {
  it("are written as people write them", () => {
    expect([bytes(999), bytes(1500), bytes(2e9)]).toEqual(["999 B", "1.5 kB", "2.0 GB"]);
    expect([clock(59.9), clock(3661)]).toEqual(["0:00:59", "1:01:01"]);
  });
});

describe("the server of a page", () => {
  const configure = (config: unknown): void => {
    const script = element("script", { id: "jupyter-config-data", type: "application/json" });
    script.textContent = typeof config === "string" ? config : JSON.stringify(config);
    document.head.append(script);
  };
  afterEach(() => {
    document.head.replaceChildren();
  });

  it("is found with its prefix and its token", () => {
    configure({ baseUrl: "/user/me/", token: "secret", fullLabextensionsUrl: "/user/me/lab/extensions" });
    expect(findServer()).toEqual({
      base: `${location.origin}/user/me/`,
      token: "secret",
      extensions: `${location.origin}/user/me/lab/extensions`,
    });
  });

  it.each([["no configuration", null], ["a broken one", "{"], ["one without a base", "{}"]])(
    "is not found with %s",
    (_name, config) => {
      if (config !== null) {
        configure(config);
      }
      expect(findServer()).toBeNull();
    },
  );

  it("has WebSockets beside it", () => {
    expect(socketUrl(SERVER, "stream?run=1")).toBe("wss://hub.example/user/me/agentwatch/stream?run=1&token=t");
  });
});

describe("the routes of a kill", () => {
  afterEach(() => {
    vi.unstubAllGlobals();
  });

  const answering = (status: number, body: unknown): ReturnType<typeof vi.fn> => {
    const fetched = vi.fn(async () => await Promise.resolve(new Response(JSON.stringify(body), { status })));
    vi.stubGlobal("fetch", fetched);
    return fetched;
  };

  it("over HTTP: a POST with token and XSRF, below the prefix", async () => {
    document.cookie = "_xsrf=2|abc";
    const fetched = answering(200, { final: true, killed: 1, survivors: 0 });
    const answer = await httpRoute(SERVER).send(RUN);
    const [url, init] = fetched.mock.calls[0] as [string, RequestInit];
    expect(url).toBe("https://hub.example/user/me/agentwatch/api/runs/0123abcd/kill");
    expect(init).toMatchObject({ method: "POST", keepalive: true, credentials: "same-origin" });
    expect(init.headers).toMatchObject({ Authorization: "token t", "X-XSRFToken": "2|abc" });
    expect(answer).toMatchObject({ final: true, killed: 1, survivors: 0, via: "http" });
  });

  it("over HTTP: no status but 200 is an acknowledgement, whatever the body says", async () => {
    answering(502, { final: true, killed: 1, survivors: 0 });
    expect((await httpRoute(SERVER).send(RUN)).final).toBe(false);
  });

  it("over the control channel: what the reply says, or that none came", async () => {
    const future: ControlFuture = { onReply: () => undefined, done: Promise.resolve() };
    const sendControlMessage = vi.fn(() => future);
    const sent = controlRoute({ clientId: "me", sendControlMessage }).send(RUN);
    future.onReply({ content: { final: true, killed: 2, survivors: 0 } });
    expect(await sent).toMatchObject({ final: true, via: "control" });
    const [message] = sendControlMessage.mock.calls[0] as unknown as [{ content: unknown; header: { msg_type: string } }];
    expect([message.header.msg_type, message.content]).toEqual(["agentwatch_kill_request", { run: RUN }]);
    const dead = controlRoute({ sendControlMessage: () => ({ ...future, done: Promise.reject(new Error("gone")) }) });
    await expect(dead.send(RUN)).rejects.toThrow("did not answer");
  });

  it("over a comm: a kernel that knows no such target closes it", async () => {
    const open = vi.fn();
    const comm: Comm = { onMsg: () => undefined, onClose: () => undefined, open };
    const sent = commRoute({ createComm: () => comm }).send(RUN);
    comm.onClose({});
    await expect(sent).rejects.toThrow("no such comm");
    expect(open).toHaveBeenCalledWith({ op: "kill", run: RUN });
  });

  it("are all that are open, the surest first", () => {
    const kernel = { sendControlMessage: vi.fn(), createComm: vi.fn() };
    const model = { on: vi.fn(), off: vi.fn(), send: vi.fn() };
    expect(routes(SERVER, kernel, model).map((route) => route.via)).toEqual(["http", "control", "comm"]);
    expect(routes(null, null, model).map((route) => route.via)).toEqual(["comm"]);
    expect(routes(null, null, null)).toEqual([]);
  });
});

describe("the button", () => {
  let answer: (answer: KillAnswer) => void;
  const route = {
    via: "http" as const,
    send: async () =>
      await new Promise<KillAnswer>((resolve) => {
        answer = resolve;
      }),
  };
  let button: KillButton;
  const node = (): HTMLElement => button.node;
  const words = (): string | null => node().querySelector("[role=alert]")!.textContent;

  beforeEach(() => {
    button = new KillButton(RUN, [route], "Kill");
  });

  it("is a button with a name, and keeps the focus while it sends", () => {
    const real = node().querySelector("button")!;
    expect(real.type).toBe("button");
    expect(real.getAttribute("aria-label")).toBe(`Kill agent run ${RUN} and all its processes`);
    real.click();
    expect([real.disabled, real.getAttribute("aria-disabled")]).toEqual([false, "true"]);
    expect([node().dataset.phase, words()]).toEqual(["sending", "sending…"]);
    button.close();
  });

  it("is green only for an acknowledgement with a count of none left", async () => {
    node().querySelector("button")!.click();
    answer({ final: true, killed: 0, survivors: null, via: "http", note: "", message: "" });
    await vi.waitFor(() => {
      expect(node().dataset.phase).toBe("done");
    });
  });

  it("is not green for an end that it did not cause", () => {
    button.ended({ state: "ended", killed: 1, survivors: 0 });
    expect([node().dataset.phase, words()]).toEqual(["ended", "ended, 0 processes left"]);
  });
});
