// What a view is given: its data, the way to Python, and the selection that it shares.

import { fill, h } from "./dom";
import type { Chosen, Selection } from "./selection";

export interface Context {
  payload: any;
  /** Of two questions for the same slot, which is `what` unless it is named, the later counts. */
  ask(what: string, args?: unknown, slot?: string): Promise<any>;
  selection: Selection;
  /** Chooses for all views, and for Python. */
  select(part: Partial<Chosen>): void;
  /** Draws another view inside this one. */
  child(index: number, payload: any, element: HTMLElement): void;
  signal: AbortSignal;
}

export type Draw = (element: HTMLElement, context: Context) => void;

/** What to do for a view that has nothing to show: a sentence and a line of code. */
export function empty(element: HTMLElement, payload: { sentence: string; code?: string | null }): void {
  fill(
    element,
    h("p", { class: "loupe-empty" }, payload.sentence),
    payload.code ? h("pre", { class: "loupe-code", attributes: { tabindex: 0, "aria-label": "code" } }, payload.code) : null,
  );
}

/** A signal that ends with `outer`, and before it when what it belongs to is replaced. */
export function within(outer: AbortSignal): AbortController {
  const inner = new AbortController();
  if (outer.aborted) inner.abort();
  else outer.addEventListener("abort", () => inner.abort(), { signal: inner.signal });
  return inner;
}
