/** The narrow part of JupyterLab's and Notebook 7's interfaces that the extension uses; both hand them over at run time. */

import type { Kernel } from "../core/routes";
import type { Shelf } from "./pictures";

/** A Lumino widget. */
export interface LuminoWidget {
  id: string;
  readonly node: HTMLElement;
  readonly title: { label: string; caption: string };
  addClass(name: string): void;
}

/** The application. */
export interface Application {
  readonly shell: Shelf & {
    add(widget: LuminoWidget, area: string, options?: { rank?: number }): void;
    activateById(id: string): void;
  };
  readonly commands: {
    addCommand(id: string, options: { label: string; caption?: string; execute: () => unknown }): unknown;
    execute(id: string): Promise<unknown>;
  };
  readonly serviceManager: {
    readonly kernels: { connectTo(options: { model: { id: string; name: string } }): KernelConnection };
  };
}

/** A connection to a kernel, to be let go after use. */
export interface KernelConnection extends Kernel {
  dispose(): void;
}

/** The command palette. */
export interface Palette {
  addItem(item: { command: string; category: string }): unknown;
}

/** The status bar; Notebook 7 has none. */
export interface StatusBar {
  registerStatusItem(id: string, item: { item: LuminoWidget; align: "left" | "right"; rank?: number }): unknown;
}

/** What we take from @jupyterlab/apputils. */
export interface AppUtils {
  readonly ICommandPalette: object;
  readonly Notification: {
    readonly error: (message: string, options: object) => string;
    readonly success: (message: string, options: object) => string;
    /** False where there is no such notification any more. */
    readonly update: (change: { id: string; message: string; type: string } & object) => boolean;
    readonly dismiss: (id: string) => void;
  };
  readonly Dialog: {
    readonly cancelButton: (options: { label: string }) => object;
    readonly warnButton: (options: { label: string }) => object;
  };
  readonly showDialog: (options: { title: string; body: string; buttons: object[]; defaultButton?: number }) => Promise<{
    button: { accept: boolean };
  }>;
}

/** The modules that the application shares with us. */
export interface Host {
  readonly apputils: AppUtils;
  readonly statusbar: { readonly IStatusBar: object } | null;
  readonly Widget: new (options: { node: HTMLElement }) => LuminoWidget;
}

/** What JupyterLab expects an extension to be. */
export interface Plugin {
  readonly id: string;
  readonly description: string;
  readonly autoStart: boolean;
  readonly optional: object[];
  activate(app: Application, ...services: unknown[]): void;
}
