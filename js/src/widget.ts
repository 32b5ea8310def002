/**
 * What anywidget loads for every view: the kill switch, at once and without anything else; then the rest of the view,
 * which the whole page loads once, from the server or, where there is none, from the kernel.
 */

import { KillButton } from "./core/button";
import { dress, element, say } from "./core/dom";
import { askKernel, askServer, followEnd } from "./core/ended";
import { loadView } from "./core/loader";
import { routes, type Kernel, type Messages } from "./core/routes";
import { findServer } from "./core/server";
import sheet from "./style.css";

interface Model extends Messages {
  get(name: string): unknown;
  readonly widget_manager?: { readonly kernel?: Kernel };
}

const THROUGH_KERNEL = "no Jupyter server here: the kill goes through the kernel, and waits where the kernel hangs";

/** Render a view into an output; anywidget calls what this returns when the output goes away. */
function render({ model, el }: { model: Model; el: HTMLElement }): () => void {
  const run = String(model.get("run"));
  const view = String(model.get("view"));
  const server = findServer();
  const kernel = model.widget_manager?.kernel ?? null;
  const ways = routes(server, kernel, model);
  const kill = new KillButton(run, ways, "Kill", server === null ? THROUGH_KERNEL : "");
  const root = element("div", { class: "aw-root", "data-view": view, "data-run": run });
  el.append(root);
  dress(root, sheet);
  const isWhole = view === "dashboard";
  if (isWhole || view === "kill") {
    root.append(element("div", { class: "aw-top" }, element("strong", {}, `agent run ${run}`), kill.node));
  }
  const gone = new AbortController();
  let unmount: (() => void) | null = null;
  if (view !== "kill") {
    const note = element("p", { class: "aw-empty", role: "status" }, "loading…");
    root.append(note);
    loadView(server, String(model.get("bundle")), model).then(
      (bundle) => {
        note.remove();
        if (!gone.signal.aborted) {
          unmount = bundle.mount({ place: root, run, view, server, model: server === null ? model : null, kill });
        }
      },
      (error: unknown) => {
        say(note, `the dashboard could not be loaded: ${error instanceof Error ? error.message : String(error)}`);
      },
    );
  } else {
    followEnd(kill, server === null ? askKernel(model) : askServer(server, run, gone.signal), gone.signal);
  }
  return () => {
    gone.abort();
    kill.close();
    unmount?.();
    root.remove();
  };
}

export default { render };
