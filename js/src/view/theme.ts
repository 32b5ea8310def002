/** Colours for what plotly.js draws: it takes no CSS variables, so they are read, and read again when the theme changes. */

/** The colours of the theme that an element stands in. */
export interface Theme {
  readonly text: string;
  readonly muted: string;
  readonly grid: string;
  readonly allow: string;
  readonly ask: string;
  readonly deny: string;
  readonly process: string;
}

/** Colours of lines, told apart by people who see few colours (after Okabe and Ito, 2008; on white without their yellow). */
const ON_LIGHT = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a4c93", "#777777"];
const ON_DARK = ["#56b4e9", "#e69f00", "#2bbf95", "#e59ac6", "#f0e442", "#ff8c42", "#b39ddb", "#bdbdbd"];

/** Return the colours of lines for the theme that an element stands in. */
export function linesOf(place: Element): readonly string[] {
  return isLight(getComputedStyle(place).color) ? ON_DARK : ON_LIGHT;
}

/** Say whether a colour, as browsers compute it, is a light one. */
export function isLight(colour: string): boolean {
  const [red = 0, green = 0, blue = 0] = (/rgba?\(([^)]*)\)/.exec(colour)?.[1] ?? "").split(/[\s,/]+/).map(Number);
  return 0.299 * red + 0.587 * green + 0.114 * blue > 128;
}

/** Read the colours that hold where an element stands. */
export function themeOf(place: Element): Theme {
  const style = getComputedStyle(place);
  const read = (name: string, otherwise: string): string => style.getPropertyValue(name).trim() || otherwise;
  return {
    text: read("--jp-ui-font-color1", "#222"),
    muted: read("--jp-ui-font-color2", "#666"),
    grid: read("--jp-border-color2", "#ddd"),
    allow: read("--jp-success-color1", "#388e3c"),
    ask: read("--jp-warn-color1", "#f57c00"),
    deny: read("--jp-error-color1", "#d32f2f"),
    process: read("--jp-brand-color1", "#1976d2"),
  };
}

/** Call a function whenever the theme of the page changes; returns how to stop. */
export function onTheme(changed: () => void): () => void {
  const observer = new MutationObserver(changed);
  observer.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-name", "class"] });
  const query = typeof matchMedia === "undefined" ? null : matchMedia("(prefers-color-scheme: dark)");
  query?.addEventListener("change", changed);
  return () => {
    observer.disconnect();
    query?.removeEventListener("change", changed);
  };
}

/** Settings that all plots share: transparent, quiet, and without MathJax, which would read agents' text. */
export const PLOT_CONFIG = { displaylogo: false, displayModeBar: false, responsive: false, typesetMath: false };

/** Return the part of a layout that all plots share. */
export function plotLayout(theme: Theme): Record<string, unknown> {
  const axis = { gridcolor: theme.grid, zerolinecolor: theme.grid, linecolor: theme.grid, color: theme.muted };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: theme.text, size: 11 },
    margin: { l: 44, r: 8, t: 24, b: 24 },
    showlegend: false,
    hoverlabel: { namelength: -1 },
    xaxis: { ...axis },
    yaxis: { ...axis },
  };
}
