// What every drawing needs: a canvas of the screen's pixels, its keys, its size, what is said below.

import { h } from "./dom";

export const drawing = () => h("canvas", { attributes: { tabindex: 0, role: "img" } });
export const statusLine = () => h("div", { class: "loupe-status", attributes: { "aria-live": "polite" } });

/** A canvas of so many pixels of the page, cleared. */
export function cleared(canvas: HTMLCanvasElement, width: number, height: number): CanvasRenderingContext2D {
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const brush = canvas.getContext("2d")!;
  brush.scale(ratio, ratio);
  return brush;
}

export function resized(element: Element, signal: AbortSignal, act: () => void): void {
  const observer = new ResizeObserver(act);
  observer.observe(element);
  signal.addEventListener("abort", () => observer.disconnect());
}

/** What keys do while an element has the focus; Escape leaves it. */
export function keys(element: HTMLElement, signal: AbortSignal, acts: Record<string, () => void>): void {
  element.addEventListener("keydown", (event) => {
    const act = event.key === "Escape" ? () => (event.target as HTMLElement).blur() : acts[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    act();
    event.preventDefault();
    event.stopPropagation();
  }, { signal });
}

/** The text below a place on an axis: upright where the axis has little room for it. */
export function below(brush: CanvasRenderingContext2D, text: string, x: number, y: number, flat: boolean, most: number): void {
  brush.save();
  brush.translate(x, y + (flat ? 12 : 6));
  brush.textAlign = flat ? "center" : "right";
  if (!flat) brush.rotate(-Math.PI / 2);
  brush.fillText(text, 0, 0, most);
  brush.restore();
}
