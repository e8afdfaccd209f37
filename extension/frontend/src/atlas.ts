// Many small pictures, of which one is chosen.

import { cleared, drawing, keys, resized, statusLine } from "./canvas";
import type { Context } from "./context";
import { fill, h, set } from "./dom";
import { type Theme, onTheme, themeOf } from "./theme";

export const GAP = 3;
export const GUTTER = { left: 34, top: 18 };

export abstract class Atlas {
  readonly element: HTMLElement;
  protected readonly tools = h("div", { class: "loupe-tools" });
  protected readonly frame = h("div", { class: "loupe-atlas" });
  protected readonly status = statusLine();
  protected tile = { width: 0, height: 0 };
  protected marked = 0;
  private readonly canvas = drawing();
  private picture: OffscreenCanvas | null = null;

  constructor(protected readonly context: Context, protected readonly count: number, private readonly label: string) {
    const { canvas, frame } = this;
    const { signal } = context;
    frame.append(canvas);
    this.element = h("div", {}, this.tools, frame, this.status);
    const tell = (at: number) => fill(this.status, this.describe(at));
    canvas.addEventListener("click", (event) => this.under(event, (at) => this.choose(at)), { signal });
    canvas.addEventListener("pointermove", (event) => this.under(event, tell), { signal });
    canvas.addEventListener("pointerleave", () => tell(this.marked), { signal });
    const step = (down: number, across: number) => () => {
      const to = this.beside(down, across);
      if (to !== undefined) this.choose(to);
    };
    keys(canvas, signal, {
      ArrowUp: step(-1, 0),
      ArrowDown: step(1, 0),
      ArrowLeft: step(0, -1),
      ArrowRight: step(0, 1),
      PageUp: step(-8, 0),
      PageDown: step(8, 0),
      Home: step(-Infinity, 0),
      End: step(Infinity, 0),
    });
    onTheme(() => this.paint(true), signal);
    resized(this.element, signal, () => this.paint());
  }

  /** A picture in words. */
  protected abstract describe(at: number): string;
  protected abstract choose(at: number): void;
  /** The picture so many rows and columns from the marked one. */
  protected abstract beside(down: number, across: number): number | undefined;
  /** Sets `tile` for so much room. */
  protected abstract fit(room: number): void;
  /** Where the left upper corner of a picture is. */
  protected abstract corner(at: number): [x: number, y: number];
  protected abstract paintTile(brush: OffscreenCanvasRenderingContext2D, at: number, theme: Theme): void;
  protected abstract paintLabels(brush: CanvasRenderingContext2D): void;

  mark(at: number): void {
    this.marked = at;
    this.paint();
    fill(this.status, this.describe(at));
    const { frame, tile } = this;
    const [x, y] = this.corner(at);
    if (y < frame.scrollTop) frame.scrollTop = y - GUTTER.top;
    else if (y + tile.height > frame.scrollTop + frame.clientHeight) frame.scrollTop = y + tile.height - frame.clientHeight + GAP;
    if (x < frame.scrollLeft) frame.scrollLeft = x - GUTTER.left;
    else if (x + tile.width > frame.scrollLeft + frame.clientWidth) frame.scrollLeft = x + tile.width - frame.clientWidth + GAP;
  }

  /** Paints one picture again, as soon as any are painted. */
  protected repaint(at: number): void {
    if (this.picture) this.paintTile(this.picture.getContext("2d")!, at, themeOf(this.element));
  }

  /** `again`: all pictures. */
  protected paint(again = false): void {
    const { canvas, element, tile, count } = this;
    if (!element.isConnected || !element.clientWidth) return;
    this.fit(element.clientWidth - GUTTER.left - 16);
    let [width, height] = [0, 0];
    for (let at = 0; at < count; at++) {
      const [x, y] = this.corner(at);
      [width, height] = [Math.max(width, x + tile.width + GAP), Math.max(height, y + tile.height + GAP)];
    }
    const theme = themeOf(element);
    const brush = cleared(canvas, width, height);
    if (again || this.picture?.width !== canvas.width || this.picture.height !== canvas.height) {
      this.picture = new OffscreenCanvas(canvas.width, canvas.height);
      for (let at = 0; at < count; at++) this.paintTile(this.picture.getContext("2d")!, at, theme);
    }
    brush.save();
    brush.resetTransform();
    brush.drawImage(this.picture!, 0, 0);
    brush.restore();
    brush.font = theme.font;
    brush.fillStyle = theme.faint;
    brush.textBaseline = "middle";
    this.paintLabels(brush);
    const [x, y] = this.corner(this.marked);
    brush.lineWidth = 2;
    brush.strokeStyle = theme.ink;
    brush.strokeRect(x - 1.5, y - 1.5, tile.width + 3, tile.height + 3);
    set(canvas, "aria-label", `${this.label}. ${this.describe(this.marked)}. Arrow keys choose one.`);
  }

  private under(event: MouseEvent, act: (at: number) => void): void {
    const [x, y] = [event.offsetX, event.offsetY];
    for (let at = 0; at < this.count; at++) {
      const [left, top] = this.corner(at);
      if (x >= left && x < left + this.tile.width + GAP && y >= top && y < top + this.tile.height + GAP) return act(at);
    }
  }
}

/**
 * A matrix of codes as the pixels of a box: of the codes under a pixel the largest counts. What is
 * masked, and all of it where there are no codes, is `ground`.
 */
export function paintCodes(
  brush: OffscreenCanvasRenderingContext2D,
  box: readonly [x: number, y: number, width: number, height: number],
  ground: string,
  codes: ArrayLike<number> | null,
  [rows, columns]: readonly number[],
  colour: Uint32Array,
  masked?: (lastRow: number, firstColumn: number) => boolean,
): void {
  const [left, top, wide, tall] = box.map((pixels) => Math.round(pixels * (devicePixelRatio || 1)));
  const image = brush.createImageData(wide, tall);
  const pixels = new Uint32Array(image.data.buffer);
  const spans = (size: number, cells: number) =>
    Array.from({ length: size }, (_, p) => {
      const from = Math.floor((p * cells) / size);
      return [from, Math.max(from + 1, Math.floor(((p + 1) * cells) / size))];
    });
  const across = spans(wide, columns);
  for (const [row, [first, last]] of spans(tall, rows).entries())
    for (let column = 0; column < wide && codes; column++) {
      const [from, to] = across[column];
      if (masked?.(last - 1, from)) continue;
      let most = 0;
      for (let i = first; i < last; i++) for (let j = from; j < to; j++) most = Math.max(most, codes[i * columns + j]);
      pixels[row * wide + column] = colour[most];
    }
  brush.putImageData(image, left, top);
  brush.globalCompositeOperation = "destination-over";
  brush.fillStyle = ground;
  brush.fillRect(left, top, wide, tall);
  brush.globalCompositeOperation = "source-over";
}
