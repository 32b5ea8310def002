/**
 * Keeps what a notebook saves of a run up to date after the page was loaded anew.
 *
 * JupyterLab forgets then which output a kernel's later pictures belong to, and drops them; each picture bears an id.
 */

import { isObject } from "../core/server";

const MARK = /^<div class="aw-saved" data-picture="([0-9a-f]{8}-[0-9a-f]{8})">/;
const LOOK_MS = 2000;

interface Signal<T> {
  connect(slot: (sender: unknown, args: T) => void): unknown;
}

interface Output {
  readonly data: Readonly<Record<string, unknown>>;
}

interface Outputs {
  readonly length: number;
  get(index: number): Output;
  set(index: number, value: { output_type: "display_data"; data: object; metadata: object }): void;
}

interface Cells {
  readonly length: number;
  get(index: number): { readonly outputs?: Outputs };
}

/** A notebook, as far as it is one. */
export interface Book {
  readonly content?: { readonly model?: { readonly cells?: Cells } | null };
  readonly sessionContext?: { readonly iopubMessage?: Signal<unknown> };
}

/** Where notebooks are opened. */
export interface Shelf {
  widgets(area: "main"): Iterable<Book>;
}

/** Look after each notebook that is open or will be; returns how to stop. */
export function keepPictures(shell: Shelf): () => void {
  const known = new WeakSet<Book>();
  const look = (): void => {
    for (const book of shell.widgets("main")) {
      const messages = book.sessionContext?.iopubMessage;
      if (messages !== undefined && !known.has(book)) {
        known.add(book);
        messages.connect((_sender, message) => {
          replace(book, message);
        });
      }
    }
  };
  look();
  const timer = setInterval(look, LOOK_MS);
  return () => {
    clearInterval(timer);
  };
}

/** Put a newer picture in the place of the older one with the same id; one that is there already stays. */
function replace(book: Book, message: unknown): void {
  if (!isObject(message) || !isObject(message.header) || message.header.msg_type !== "update_display_data") {
    return;
  }
  const content = isObject(message.content) ? message.content : {};
  const id = idOf(content.data);
  const cells = book.content?.model?.cells;
  if (id === "" || cells === undefined || !isObject(content.data)) {
    return;
  }
  for (let cell = 0; cell < cells.length; cell += 1) {
    const outputs = cells.get(cell).outputs;
    for (let place = 0; outputs !== undefined && place < outputs.length; place += 1) {
      const there = outputs.get(place).data;
      if (idOf(there) === id && there["text/html"] !== content.data["text/html"]) {
        outputs.set(place, { output_type: "display_data", data: content.data, metadata: {} });
      }
    }
  }
}

function idOf(data: unknown): string {
  const html = isObject(data) ? data["text/html"] : "";
  const text = Array.isArray(html) ? html.join("") : html;
  return typeof text === "string" ? (MARK.exec(text)?.[1] ?? "") : "";
}
