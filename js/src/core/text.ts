/** The one way in which text that an agent could choose reaches a page: visible characters only, never markup. */

const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu;

/** Characters kept of one text. */
export const LONGEST = 400;

/**
 * Return text that is safe to show: controls, bidi and invisible characters as escapes, cut to a length.
 *
 * The server has done the same; this is for what came another way.
 */
export function shown(value: unknown, limit = LONGEST): string {
  const text = typeof value === "string" ? value : value === undefined || value === null ? "" : JSON.stringify(value);
  const kept = text.slice(0, limit).replace(HIDDEN, escaped);
  return text.length > limit ? `${kept}… (+${text.length - limit} characters)` : kept;
}

/**
 * Return text for plotly.js, which reads a few tags and entities in labels, and gives $…$ to MathJax where the page has
 * it: there are none left afterwards.
 */
export function plotted(value: unknown, limit = 80): string {
  const text = shown(value, limit).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  return text.replace(/\$/g, "&#36;");
}

/** Return text on one line, its line breaks as a sign that people know, whether they were made visible before or not. */
export function oneLine(text: string): string {
  const lines = text.split(/(?:\\x0d)?\\x0a|\r?\n/).map((line) => line.trim());
  return lines.join(" \u23ce ").replace(/^(?: ?\u23ce ?)+|(?: ?\u23ce ?)+$/g, "").trim();
}

/** Return a number of bytes as people write it. */
export function bytes(count: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let size = count;
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${unit === 0 || size >= 100 ? Math.round(size) : size.toFixed(1)} ${units[unit] ?? ""}`;
}

/** Return a duration in seconds as "h:mm:ss". */
export function clock(seconds: number): string {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (value: number): string => String(value).padStart(2, "0");
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}

/** Return a number with its noun: "1 process", "3 processes". */
export function count(number: number, one: string, many = `${one}s`): string {
  return `${number} ${number === 1 ? one : many}`;
}

function escaped(char: string): string {
  const code = char.codePointAt(0) ?? 0;
  if (code < 0x100) {
    return `\\x${code.toString(16).padStart(2, "0")}`;
  }
  return code < 0x10000 ? `\\u${code.toString(16).padStart(4, "0")}` : `\\U${code.toString(16).padStart(8, "0")}`;
}
