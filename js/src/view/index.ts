/** The big part of the widget, loaded once per page: builds a dashboard, or one panel of it, for one run. */

import { dress, element } from "../core/dom";
import type { KillButton } from "../core/button";
import type { RunState } from "../core/events";
import type { Messages } from "../core/routes";
import type { Server } from "../core/server";
import { AgentPanel } from "./agent";
import { AuditPanel } from "./audit";
import { GpuPanel, ResourcesPanel } from "./charts";
import { join, type Feed } from "./feed";
import { GraphPanel } from "./graph";
import { actOver, HeaderPanel, type Act } from "./header";
import { IncidentsPanel } from "./incidents";
import { FindingsPanel, ProcessPanel, TimelinePanel } from "./lists";
import type { Panel } from "./panel";
import sheet from "../style.css";

/** What is asked for. */
export interface Request {
  readonly place: HTMLElement;
  readonly run: string;
  /** "dashboard", or the name of one panel. */
  readonly view: string;
  readonly server: Server | null;
  readonly model: Messages | null;
  readonly kill: KillButton | null;
}

type Make = (feed: Feed) => Panel;

const PANELS: Readonly<Record<string, Make>> = {
  agent: (feed) => new AgentPanel(feed),
  incidents: (feed) => new IncidentsPanel(feed),
  findings: (feed) => new FindingsPanel(feed),
  connections: (feed) => new GraphPanel(feed),
  timeline: (feed) => new TimelinePanel(feed),
  processes: (feed) => new ProcessPanel(feed),
  gpu: (feed) => new GpuPanel(feed),
  resources: (feed) => new ResourcesPanel(feed),
  audit: (feed) => new AuditPanel(feed),
};

/** Panels that need no other records: an agent that starts much makes many of those. */
const MEASURED: ReadonlySet<string> = new Set(["gpu", "resources"]);

/** Put a view into the page; returns how to take it out again. */
export function mount({ place, run, view, server, model, kill }: Request): () => void {
  const [feed, leave] = join(run, server, model, MEASURED.has(view) ? "measurements" : "all");
  const onEnd = (state: RunState): void => {
    kill?.ended({ ...state });
  };
  const makers = view === "dashboard" ? Object.values(PANELS) : [PANELS[view]].filter((make) => make !== undefined);
  const panels = makers.map((make) => make(feed));
  if (view === "dashboard") {
    panels.unshift(new HeaderPanel(feed, act(run, server, model), onEnd));
  }
  const grid = element("div", { class: "aw-panels" }, ...panels.map((panel) => panel.node));
  place.append(grid);
  dress(place, sheet);
  const resized = new ResizeObserver(() => {
    panels.forEach((panel) => {
      panel.touch();
    });
  });
  resized.observe(grid);
  return () => {
    resized.disconnect();
    panels.forEach((panel) => {
      panel.close();
    });
    leave();
    grid.remove();
  };
}

function act(run: string, server: Server | null, model: Messages | null): Act | null {
  if (server !== null) {
    return actOver(server, run);
  }
  if (model === null) {
    return null;
  }
  return async (action, body) => {
    model.send({ type: "act", action, run, ...body });
    return await Promise.resolve("");
  };
}
