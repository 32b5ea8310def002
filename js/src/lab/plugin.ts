/** The JupyterLab and Notebook 7 extension: how many agents run, and how to end them, always in sight. */

import { dress, element, fill, say } from "../core/dom";
import { findServer, get, type Server } from "../core/server";
import { count } from "../core/text";
import sheet from "../style.css";
import type { Application, Host, Palette, Plugin, StatusBar } from "./host";
import { killAll, question } from "./killall";
import { Notices } from "./notices";
import { keepPictures } from "./pictures";
import { Runs } from "./runs";
import { Sidebar } from "./sidebar";

const CATEGORY = "Agent Watch";
const PANEL = "agentwatch-runs";

/** Return the extension for a host. */
export function plugin(host: Host): Plugin {
  return {
    id: "jupyter-agentwatch:plugin",
    description: "Live agent runs of this user, with a kill switch that needs no kernel.",
    autoStart: true,
    optional: [host.apputils.ICommandPalette, ...(host.statusbar === null ? [] : [host.statusbar.IStatusBar])],
    activate(app, palette, statusBar) {
      const server = findServer();
      if (server !== null) {
        void begin(host, app, server, palette as Palette | null, (statusBar ?? null) as StatusBar | null);
      }
    },
  };
}

/** Show nothing where the server has no part of ours (JupyterLite, or another environment): there is nothing to kill. */
async function begin(
  host: Host,
  app: Application,
  server: Server,
  palette: Palette | null,
  statusBar: StatusBar | null,
): Promise<void> {
  const { status } = await get(server, "api/runs").catch(() => ({ status: 0 }));
  if (status === 404) {
    return;
  }
  new Extension(host, app, server).start(palette, statusBar);
}

class Extension {
  readonly #button = element("button", { type: "button", class: "aw-status-button" });
  readonly #result = element("span", { class: "aw-status-result", role: "status" });
  readonly #sidebar: Sidebar;
  readonly #notices: Notices;
  readonly #runs: Runs;
  #isAsking = false;

  constructor(
    private readonly host: Host,
    private readonly app: Application,
    private readonly server: Server,
  ) {
    this.#sidebar = new Sidebar(server);
    this.#notices = new Notices(host.apputils.Notification, () => {
      app.shell.activateById(PANEL);
    });
    this.#runs = new Runs(
      server,
      () => {
        this.#draw();
      },
      (trip) => {
        this.#notices.tell(trip);
      },
    );
  }

  start(palette: Palette | null, statusBar: StatusBar | null): void {
    dress(document.body, sheet);
    this.#addStatus(statusBar);
    this.#addSidebar();
    this.#addCommands(palette);
    this.#button.addEventListener("click", () => {
      void this.#askAndKill();
    });
    this.#draw();
    this.#runs.follow();
    keepPictures(this.app.shell);
  }

  #addStatus(statusBar: StatusBar | null): void {
    const item = new this.host.Widget({ node: element("div", { class: "aw-status" }, this.#button, this.#result) });
    item.id = "agentwatch-status";
    if (statusBar === null) {
      this.app.shell.add(item, "top", { rank: 1000 });
    } else {
      statusBar.registerStatusItem("jupyter-agentwatch:status", { item, align: "left", rank: 0 });
    }
  }

  #addSidebar(): void {
    const panel = new this.host.Widget({ node: this.#sidebar.node });
    panel.id = PANEL;
    panel.title.label = "Agents";
    panel.title.caption = "Agent runs";
    panel.addClass("aw-sidebar-panel");
    this.app.shell.add(panel, "right", { rank: 900 });
  }

  #addCommands(palette: Palette | null): void {
    const commands: [string, string, () => unknown][] = [
      ["agentwatch:kill-all", "Kill All Agent Runs…", async () => { await this.#askAndKill(); }],
      ["agentwatch:show-runs", "Show Agent Runs", () => { this.app.shell.activateById(PANEL); }],
      ["agentwatch:notify", "Notify Me on This Desktop When an Agent Run Trips", requestDesktop],
    ];
    for (const [id, label, execute] of commands) {
      this.app.commands.addCommand(id, { label, execute });
      palette?.addItem({ command: id, category: CATEGORY });
    }
  }

  #draw(): void {
    const { runs, problem, isHere } = this.#runs;
    const frozen = runs.filter((run) => run.state === "frozen").length;
    const more = frozen > 0 ? `, ${frozen} frozen` : "";
    const text = isHere ? `${count(runs.length, "agent run")}${more}` : "agent runs: no answer";
    say(this.#button, runs.length > 0 ? `■ ${text} · kill all` : text);
    this.#button.setAttribute("data-live", String(runs.length > 0));
    this.#button.setAttribute("aria-label", runs.length > 0 ? `${text}; kill all` : text);
    this.#button.title = problem;
    this.#sidebar.show(runs, problem);
    if (isHere && problem === "") {
      this.#notices.settle(runs);
    }
  }

  async #askAndKill(): Promise<void> {
    const runs = this.#runs.runs;
    const { Dialog, showDialog } = this.host.apputils;
    if (this.#isAsking) {
      return;
    }
    this.#isAsking = true;
    try {
      const buttons = [Dialog.cancelButton({ label: "Cancel" }), Dialog.warnButton({ label: "Kill all" })];
      const title = "Kill all agent runs?";
      const asked = await showDialog({ title, body: question(runs), buttons, defaultButton: 1 });
      if (!asked.button.accept) {
        return;
      }
      say(this.#result, "sending…");
      const outcome = await killAll(this.server, this.app, runs);
      fill(this.#result, outcome.text);
      this.#result.setAttribute("data-phase", outcome.isConfirmed ? "confirmed" : "unconfirmed");
      const tell = outcome.isConfirmed ? this.host.apputils.Notification.success : this.host.apputils.Notification.error;
      tell(outcome.text, { autoClose: outcome.isConfirmed ? 8000 : false });
    } finally {
      this.#isAsking = false;
    }
  }
}

async function requestDesktop(): Promise<void> {
  if (typeof Notification !== "undefined") {
    await Notification.requestPermission(); // browsers ask only where a person's click is the cause
  }
}
