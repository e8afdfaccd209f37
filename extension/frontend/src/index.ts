// One file for every view. anywidget calls `render`; a file that stands alone starts itself.

import { attention } from "./attention";
import { compare } from "./compare";
import { type Context, type Draw, empty } from "./context";
import { fill, h, set } from "./dom";
import { lens } from "./lens";
import { type Link, type Model, type Said, connect, recorded } from "./link";
import { page } from "./page";
import { answerWith, definePicture } from "./pictures";
import { result } from "./result";
import { type Selection, sharedSelection } from "./selection";
import { tokens } from "./tokens";
import { weights } from "./weights";
import { type Buffer, unpack } from "./wire";

const VIEWS: Record<string, Draw> = {
  attention,
  compare,
  empty: (element, { payload }) => empty(element, payload),
  lens,
  page,
  result,
  tokens,
  weights,
};

function draw(payload: any, element: HTMLElement, link: Link, selection: Selection, path: number[], signal: AbortSignal): void {
  const context: Context = {
    payload,
    ask: (what, args = {}, slot) => link.ask(path, what, args, slot),
    selection,
    select(part) {
      if (selection.set(part)) link.tell({ kind: "select", ...part });
    },
    child: (index, inner, place) => draw(inner, place, link, selection, [...path, index], signal),
    signal,
  };
  const view = VIEWS[payload.view];
  const body = h("div", { class: `loupe-view loupe-${payload.view}` });
  const titled = payload.title ? h("div", { class: "loupe-title" }, payload.title) : null;
  element.append(h("section", { attributes: { "aria-label": payload.title || payload.view } }, titled, body));
  if (view) view(body, context);
  else fill(body, `This page cannot draw “${payload.view}”: it is older than the kernel's llama_loupe. Reload it.`);
}

/** Draws all that Python sent into `element`. */
export function show(tree: unknown, buffers: readonly Buffer[], element: HTMLElement, link: Link, signal: AbortSignal): Selection {
  const payload = unpack(tree, buffers);
  const root = h("div", { class: "loupe", attributes: { role: "group", "aria-label": payload.label } });
  // Jupyter looks for this from the focused element outwards, but first whether a shortcut is meant
  // for that element itself: so it has to stand there.
  root.addEventListener("focusin", (event) => set(event.target as Element, "data-lm-suppress-shortcuts", "true"));
  element.append(root);
  const selection = sharedSelection(payload.selection.id, payload.selection.chosen);
  draw(payload, root, link, selection, [], signal);
  return selection;
}

function render({ model, el, signal }: { model: Model; el: HTMLElement; signal?: AbortSignal }): () => void {
  const ended = new AbortController();
  signal?.addEventListener("abort", () => ended.abort());
  let selection: Selection | undefined;
  const note = h("div", { class: "loupe-note", attributes: { role: "status" } });
  const hear = (said: Said) => {
    if (said.kind === "selected") selection?.set(said.chosen);
    else if (said.kind === "gone") fill(note, "The kernel that drew this is gone. What is drawn stays; run the cell again to look closer.");
  };
  const link = connect(model, hear, ended.signal);
  selection = show(model.get("payload"), model.get("buffers"), el, link, ended.signal);
  el.querySelector(".loupe")!.append(note);
  // After a reload the selection may have moved on.
  link.tell({ kind: "hello" });
  return () => {
    link.tell({ kind: "bye" }); // what nobody looks at any more can be let go
    ended.abort();
  };
}

/** Called for every widget, also for one that is never displayed. */
function initialize({ model }: { model: Model }): void {
  definePicture();
  if (model.get("payload")?.view === "pictures") answerWith(connect(model, () => {}, new AbortController().signal));
}

export default { initialize, render };

/** An exported file: `<script type="application/json" id="llama-loupe">` holds what to draw. */
async function alone(): Promise<void> {
  const holder = document.getElementById("llama-loupe");
  if (!holder) return;
  const { payload, answers, buffers } = JSON.parse(holder.textContent!);
  const inflated = await Promise.all((buffers as string[]).map(inflate));
  const place = h("main", {}, h("h1", { class: "loupe-unseen" }, payload.label));
  document.body.append(place);
  show(payload, inflated, place, recorded(answers, inflated), new AbortController().signal);
  document.body.dataset.ready = "true";
}

/** base64 of gzip. */
async function inflate(text: string): Promise<ArrayBuffer> {
  const packed = Uint8Array.from(atob(text), (mark) => mark.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

if (typeof document !== "undefined") void alone();
