/** The part of plotly.js that we use. */
declare module "plotly.js-basic-dist-min" {
  export interface Plot extends HTMLElement {
    readonly layout?: { xaxis?: { range?: unknown; autorange?: unknown } };
    on(event: "plotly_relayout", callback: (change: Record<string, unknown>) => void): void;
    on(event: "plotly_click", callback: (event: { points: { customdata?: unknown }[] }) => void): void;
  }
  export type Trace = Record<string, unknown>;
  export type Layout = Record<string, unknown>;
  export type Config = Record<string, unknown>;
  const Plotly: {
    newPlot(place: HTMLElement, traces: Trace[], layout: Layout, config: Config): Promise<Plot>;
    react(place: HTMLElement, traces: Trace[], layout: Layout, config: Config): Promise<Plot>;
    relayout(place: HTMLElement, layout: Layout): Promise<Plot>;
    extendTraces(
      place: HTMLElement,
      update: { x: number[][]; y: (number | null)[][] },
      indices: number[],
      most: number,
    ): Promise<Plot>;
    purge(place: HTMLElement): void;
    Plots: { resize(place: HTMLElement): Promise<void> };
  };
  export default Plotly;
}
