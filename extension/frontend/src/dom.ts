// Elements are made here. Text only ever becomes text nodes and attributes: no markup is parsed.

export type Child = Node | string | number | null | undefined | false;
type Handlers = { [K in keyof HTMLElementEventMap]?: (event: HTMLElementEventMap[K]) => void };

export interface Options {
  class?: string;
  on?: Handlers;
  attributes?: Record<string, string | number | boolean | null | undefined>;
}

export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  options: Options = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  if (options.class) made.className = options.class;
  for (const [name, value] of Object.entries(options.attributes ?? {})) set(made, name, value);
  for (const [name, handler] of Object.entries(options.on ?? {}))
    made.addEventListener(name, handler as EventListener);
  fill(made, ...children);
  return made;
}

export function set(element: Element, name: string, value: string | number | boolean | null | undefined): void {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else element.setAttribute(name, value === true ? "" : String(value));
}

export function fill(element: Element, ...children: Child[]): void {
  const shown = children.filter((child) => child !== null && child !== undefined && child !== false);
  element.replaceChildren(...shown.map((child) => (child instanceof Node ? child : String(child))));
}

export function button(label: string, action: () => void, title?: string): HTMLButtonElement {
  return h("button", { on: { click: action }, attributes: { type: "button", title, "aria-label": title } }, label);
}

/** A button behind whose text a bar has a part of its width. */
export function share(part: number, action: () => void, ...children: Child[]): HTMLButtonElement {
  const made = h("button", { class: "loupe-share", on: { click: action }, attributes: { type: "button" } }, ...children);
  made.style.setProperty("--loupe-share", `${100 * part}%`);
  return made;
}

/** Names with what is said of each; null where there is nothing to say. */
export function facts(said: readonly (readonly [name: string, text: string] | null)[]): HTMLDListElement {
  const one = ([name, text]: readonly [string, string]) => h("div", {}, h("dt", {}, visible(name)), h("dd", {}, visible(text)));
  return h("dl", { class: "loupe-facts" }, ...said.map((each) => each && one(each)));
}

/** What an error says to a reader. */
export function sentence(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** A labelled choice of one of several; `act` is told which. */
export function choice(
  label: string,
  items: readonly (readonly [value: string, text: string])[],
  value: string,
  act: (value: string) => void,
): HTMLLabelElement {
  const options = items.map(([item, text]) =>
    h("option", { attributes: { value: item, selected: item === value } }, visible(text)),
  );
  const select = h("select", { on: { change: () => act(select.value) } }, ...options);
  return h("label", {}, `${label} `, select);
}

// What would not be seen, or would turn or stack what is around it, written as an escape.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu;
const NAMED: Record<string, string> = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };

/** Text as a reader can see it, cut to `most` characters. */
export function visible(text: string, most = 200): string {
  const marks = [...text];
  const cut = marks.length > most ? [...marks.slice(0, most - 1), "…"] : marks;
  return cut.join("").replace(UNSEEN, (mark) => NAMED[mark] ?? `\\u{${mark.codePointAt(0)!.toString(16)}}`);
}

/** A token between quotes, for sentences. */
export function quoted(text: string, most = 40): string {
  return `“${visible(text, most)}”`;
}

/** A number as people read it: four digits that count. */
export function number(value: number): string {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return value.toLocaleString("en").replaceAll("-", "−");
  const size = Math.abs(value);
  const text = size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
  return text.replaceAll("-", "−");
}
