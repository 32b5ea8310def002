/**
 * The container that JupyterLab loads a prebuilt extension from (webpack's module federation, as plain code): it takes
 * the modules that it shares with JupyterLab from there, so that tokens are the same objects, and bundles nothing else.
 */

import type { AppUtils, Host, LuminoWidget, Plugin } from "./host";
import { plugin } from "./plugin";

type Factory = () => unknown;
type Shared = Record<string, Record<string, { get(): Factory | Promise<Factory> }>>;

interface Container {
  init(scope: Shared): void;
  get(module: string): Promise<() => { __esModule: true; default: Plugin }>;
}

let shared: Shared = {};

async function take(name: string): Promise<unknown> {
  const [entry] = Object.values(shared[name] ?? {});
  if (entry === undefined) {
    return null;
  }
  const factory = await entry.get();
  return factory();
}

async function host(): Promise<Host> {
  const [apputils, statusbar, widgets] = await Promise.all([
    take("@jupyterlab/apputils"),
    take("@jupyterlab/statusbar"),
    take("@lumino/widgets"),
  ]);
  if (apputils === null || widgets === null) {
    throw new Error("jupyter-agentwatch: this front-end shares neither @jupyterlab/apputils nor @lumino/widgets");
  }
  return {
    apputils: apputils as AppUtils,
    statusbar: statusbar as Host["statusbar"],
    Widget: (widgets as { Widget: new (options: { node: HTMLElement }) => LuminoWidget }).Widget,
  };
}

const container: Container = {
  init(scope) {
    shared = scope;
  },
  async get() {
    const made = plugin(await host());
    return () => ({ __esModule: true, default: made }); // without the mark, JupyterLab takes the module for the plugin
  },
};

const page = window as unknown as { _JUPYTERLAB?: Record<string, Container> };
page._JUPYTERLAB ??= {};
page._JUPYTERLAB["jupyter-agentwatch"] = container;
