import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { keepPictures, type Book } from "../src/lab/pictures";

const ID = "0123abcd-89abcdef";

function picture(words: string, id = ID): Record<string, string> {
  return { "text/html": `<div class="aw-saved" data-picture="${id}">${words}</div>`, "text/plain": words };
}

function notebook(...held: object[]): { book: Book; held: object[]; send: (message: unknown) => void } {
  const slots: ((sender: unknown, message: unknown) => void)[] = [];
  const outputs = {
    length: held.length,
    get: (index: number) => ({ data: held[index] as Record<string, unknown> }),
    set: (index: number, value: { data: object }) => {
      held[index] = value.data;
    },
  };
  const cells = { length: 2, get: (index: number) => (index === 0 ? {} : { outputs }) };
  const send = (message: unknown): void => {
    slots.forEach((slot) => {
      slot(null, message);
    });
  };
  return { book: { content: { model: { cells } }, sessionContext: { iopubMessage: { connect: (slot) => slots.push(slot) } } }, held, send };
}

function update(data: unknown, type = "update_display_data"): object {
  return { header: { msg_type: type }, content: { data, metadata: {}, transient: {} } };
}

describe("what a notebook keeps", () => {
  let stop = (): void => undefined;
  beforeEach(() => {
    vi.useFakeTimers();
  });
  afterEach(() => {
    stop();
    vi.useRealTimers();
  });

  it("is replaced by the newer picture with its id, and nothing else is", () => {
    const { book, held, send } = notebook(picture("old"), picture("other", "0123abcd-00000000"), { "text/html": "<b>mine</b>" });
    stop = keepPictures({ widgets: () => [book, {}] });
    send(update(picture("new")));
    expect(held).toEqual([picture("new"), picture("other", "0123abcd-00000000"), { "text/html": "<b>mine</b>" }]);
  });

  it("is found in a notebook that is opened later, and listened to once", () => {
    const { book, held, send } = notebook(picture("old"));
    const open: Book[] = [];
    stop = keepPictures({ widgets: () => open });
    open.push(book);
    vi.advanceTimersByTime(10_000);
    const set = vi.spyOn(book.content!.model!.cells!.get(1).outputs!, "set");
    send(update(picture("new")));
    send(update(picture("new")));
    expect([held, set.mock.calls.length]).toEqual([[picture("new")], 1]);
  });

  it.each([
    ["another kind of message", update(picture("new"), "display_data")],
    ["no message", null],
    ["one without data", { header: { msg_type: "update_display_data" } }],
    ["another output's update", update({ "text/html": "<p>aw-saved</p>" })],
    ["an id that is none", update(picture("new", "x"))],
  ])("stays as it is at %s", (_name, message) => {
    const { book, held, send } = notebook(picture("old"), picture("bad", "x"));
    stop = keepPictures({ widgets: () => [book] });
    send(message);
    expect(held).toEqual([picture("old"), picture("bad", "x")]);
  });
});
