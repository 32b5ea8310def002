/** Elements without markup: attributes and text nodes only. */

import { shown } from "./text";

/** Attributes of an element; `false` leaves one out. */
export type Attributes = Record<string, string | number | boolean>;

/** What can stand in an element: another one, or text, which is made safe. */
export type Child = Node | string;

/** Make an element. */
export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false) {
      made.setAttribute(name, value === true ? "" : String(value));
    }
  }
  fill(made, ...children);
  return made;
}

/** Replace what stands in an element. */
export function fill(parent: Element, ...children: Child[]): void {
  parent.replaceChildren(...children.map((child) => (typeof child === "string" ? shown(child) : child)));
}

/** Set an element's text, only where it differs: screen readers and layout hear of each change. */
export function say(target: Element, text: string): void {
  const safe = shown(text);
  if (target.textContent !== safe) {
    target.textContent = safe;
  }
}

/** Put a style sheet into the document or shadow tree that holds an element, once. */
export function dress(place: Element, sheet: string): void {
  const root = place.getRootNode();
  const parent = root instanceof ShadowRoot ? root : document.head;
  const mark = "data-agentwatch-style";
  if (parent.querySelector(`style[${mark}]`) === null) {
    const style = document.createElement("style");
    style.setAttribute(mark, "");
    style.textContent = sheet;
    parent.append(style);
  }
}
