// A matrix of any size: the whole of it in few cells, and by zooming every single entry.

import { below, cleared, drawing, resized, statusLine } from "./canvas";
import { type MapName, SCALES, type Scale, type ScaleName, colourOf, colours, inkOn, limits, scaleOver, valueAt } from "./colour";
import { button, choice, fill, h, number, quoted, sentence, set, visible } from "./dom";
import { type Cells, type Window, cellOf, edges, even, moved, same, showing, ticks, under, whole, zoomed } from "./grid";
import { Legend } from "./legend";
import { onTheme, themeOf } from "./theme";

export type Pool = "max" | "mean";

export const POOLS = [["max", "largest"], ["mean", "mean"]] as const;

export interface Source {
  height: number;
  width: number;
  rowName: string;
  columnName: string;
  /** Texts of single rows and columns, where they have some. */
  rowLabel?(row: number): string;
  columnLabel?(column: number): string;
  /** What single rows and columns are called where that is not their index. */
  rowCalled?(row: number): string;
  columnCalled?(column: number): string;
  /** The window in at most so many cells. */
  cells(window: Window, rows: number, columns: number, pool: Pool): Promise<Cells> | Cells;
  /** Whether no entry of these rows and columns can hold a value. */
  masked?(top: number, bottom: number, left: number, right: number): boolean;
}

export interface Settings {
  /** What a value is, as in "probability". */
  value: string;
  label: string;
  diverging?: boolean;
  /** The scale's ends, where they are not those of what is seen. */
  range?: [number, number];
  pools?: readonly Pool[];
  scale?: ScaleName;
  map?: MapName;
  /** Rows and columns are of one kind, and a square is a square. */
  square?: boolean;
  maxHeight?: number;
  signal: AbortSignal;
  /** The cursor came to an entry by the reader's hand. */
  chosen?(row: number, column: number): void;
  /** The window has moved; the pointer is over an entry. */
  moved?(window: Window): void;
  pointed?(row: number, column: number): void;
  /** Keys that are not the map's own. Returns whether it was one of the owner's. */
  key?(event: KeyboardEvent): boolean;
}

// A cell that has no pixel of its own would be lost, and 256 x 256 numbers are 256 kB.
export const MOST_CELLS = 256;
const cellsOn = (pixels: number) => (pixels > 0 ? Math.min(MOST_CELLS, 2 ** Math.floor(Math.log2(pixels))) : MOST_CELLS);
// Pixels that a label needs, and that it needs to stand across.
const READABLE = 13;
const WIDE = 44;

export class Heatmap {
  readonly element: HTMLElement;
  private readonly canvas = drawing();
  private readonly legend = new Legend();
  private readonly status = statusLine();
  private readonly where = h("span", { class: "loupe-where" });
  private window: Window;
  private cells: Cells | null = null;
  private scale: Scale = scaleOver(0, 1, false);
  private pool: Pool;
  private scaleName: ScaleName;
  private map: MapName;
  private cursor: { row: number; column: number } | null = null;
  private bad = 0;
  private wanted = 0;
  private side = { width: 0, height: 0 };
  private gutter = { left: 92, bottom: 64, top: 18, right: 10 };
  private frame = 0;
  private problem = "";

  constructor(private source: Source, private readonly settings: Settings) {
    this.window = whole(source.height, source.width);
    this.pool = settings.pools?.[0] ?? "max";
    this.scaleName = settings.scale ?? "linear";
    this.map = settings.diverging ? "diverging" : (settings.map ?? "viridis");
    const maps = [["viridis", "viridis"], ["cividis", "cividis"]] as const;
    const tools = h(
      "div",
      { class: "loupe-tools" },
      button("+", () => this.zoom(0.5), "Zoom in"),
      button("−", () => this.zoom(2), "Zoom out"),
      button("all", () => this.show(whole(this.source.height, this.source.width)), "Show the whole"),
      choice("scale", SCALES, this.scaleName, (name) => this.set({ scaleName: name as ScaleName })),
      (settings.pools?.length ?? 0) > 1 &&
        choice("cell", POOLS, this.pool, (name) => {
          this.pool = name as Pool;
          this.refresh();
        }),
      !settings.diverging && choice("colours", maps, this.map, (name) => this.set({ map: name as MapName })),
    );
    this.element = h("div", { class: "loupe-map" }, tools, this.canvas, h("div", { class: "loupe-under" }, this.legend.element, this.where), this.status);
    this.listen();
  }

  private set(changes: { scaleName?: ScaleName; map?: MapName }): void {
    Object.assign(this, changes);
    this.scale = { ...this.scale, name: this.scaleName };
    this.draw();
  }

  /** Another matrix; the window stays where both are of one size. */
  change(source: Source, settings: Partial<Settings> = {}): void {
    const kept = source.height === this.source.height && source.width === this.source.width;
    this.source = source;
    Object.assign(this.settings, settings);
    if (!kept) {
      this.window = whole(source.height, source.width);
      this.cursor = null;
    }
    this.cells = null; // what is said of a cell is never the other matrix's
    this.resize();
    this.refresh();
  }

  /** The column under the cursor. */
  get column(): number | null {
    return this.cursor?.column ?? null;
  }

  get view(): Window {
    return this.window;
  }

  /** Moves the window; what was there is stretched until the new cells come. */
  show(window: Window): void {
    if (same(window, this.window) && this.cells) return;
    this.window = window;
    this.draw();
    this.refresh();
    this.settings.moved?.(window);
  }

  /** Puts the cursor on an entry without calling `chosen`. */
  point(row: number | null, column: number | null): void {
    this.cursor = row === null || column === null ? null : { row, column };
    if (this.cursor) this.show(showing(this.window, this.cursor.row, this.cursor.column, this.source.height, this.source.width));
    this.draw();
  }

  /** The value of the cell that holds an entry, as far as it is here. */
  valueAt(row: number, column: number): number | null {
    const cells = this.cells;
    if (!cells) return null;
    const [last, right] = [cells.rows[cells.rows.length - 1], cells.columns[cells.columns.length - 1]];
    if (row < cells.rows[0] || row >= last || column < cells.columns[0] || column >= right) return null;
    const [i, j] = [cellOf(cells.rows, row), cellOf(cells.columns, column)];
    return cells.values[i * (cells.columns.length - 1) + j];
  }

  private zoom(factor: number, at = this.cursor): void {
    const { window, source } = this;
    const row = at?.row ?? (window.top + window.bottom - 1) / 2;
    const column = at?.column ?? (window.left + window.right - 1) / 2;
    this.show(zoomed(window, factor, row, column, source.height, source.width));
  }

  private async refresh(): Promise<void> {
    const { window, source, pool } = this;
    const asked = ++this.wanted;
    const rows = even(window.bottom - window.top, cellsOn(this.side.height));
    const columns = even(window.right - window.left, cellsOn(this.side.width));
    const late = setTimeout(() => asked === this.wanted && this.say("waiting for the kernel, which is busy"), 1000);
    try {
      const cells = await source.cells(window, rows, columns, pool);
      if (asked !== this.wanted) return;
      this.cells = cells;
      this.problem = "";
    } catch (error) {
      if (asked !== this.wanted) return;
      this.problem = sentence(error);
    } finally {
      clearTimeout(late);
    }
    this.rescale();
    this.draw();
    this.tell();
    this.element.dispatchEvent(new CustomEvent("loupe-drawn"));
  }

  private rescale(): void {
    if (!this.cells) return;
    const across = this.cells.columns.length - 1;
    const found = limits(this.cells.values, (i) => this.isMasked(Math.floor(i / across), i % across));
    this.bad = found.bad;
    const [low, high] = this.settings.range ?? [this.settings.diverging ? found.low : Math.min(0, found.low), found.high];
    this.scale = scaleOver(low, high, !!this.settings.diverging, this.scaleName);
  }

  private isMasked(i: number, j: number): boolean {
    const { rows, columns } = this.cells!;
    return !!this.source.masked?.(rows[i], rows[i + 1], columns[j], columns[j + 1]);
  }

  private resize(): void {
    this.gutter.left = this.source.rowLabel ? 92 : 52;
    const room = Math.max(120, this.element.clientWidth - this.gutter.left - this.gutter.right);
    const most = this.settings.maxHeight ?? 480;
    const { height, width } = this.source;
    const long = this.settings.square ? Math.min(room, most) : room;
    const tall = this.settings.square ? long : Math.min(most, Math.max(height * 18, Math.min(room * (height / width), most)));
    const wide = this.settings.square ? long : Math.min(room, Math.max(160, Math.max(width * 44, tall * (width / height))));
    this.side = { width: Math.floor(Math.min(room, wide)), height: Math.floor(Math.max(18, tall)) };
    // Texts that have too little room across are turned.
    this.gutter.bottom = this.source.columnLabel && this.side.width / width < WIDE ? 64 : 24;
    const { gutter, side } = this;
    cleared(this.canvas, side.width + gutter.left + gutter.right, side.height + gutter.top + gutter.bottom);
  }

  private draw(): void {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.paint());
  }

  private paint(): void {
    const { cells, canvas, side, window } = this;
    if (!side.width || !this.element.isConnected) return;
    const theme = themeOf(this.element);
    const ratio = devicePixelRatio || 1;
    const context = canvas.getContext("2d")!;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    const table = colours(this.map, theme.dark);
    const [wide, tall] = [Math.round(side.width * ratio), Math.round(side.height * ratio)];
    if (cells) {
      const image = context.createImageData(wide, tall);
      const pixels = new Uint32Array(image.data.buffer);
      const across = under(cells.columns, window.left, window.right, wide);
      const down = under(cells.rows, window.top, window.bottom, tall);
      const count = cells.columns.length - 1;
      const line = new Uint32Array(wide);
      let before = -2;
      for (let y = 0; y < tall; y++) {
        const i = down[y];
        if (i !== before) {
          line.fill(0);
          let [cell, colour] = [-1, 0];
          for (let x = 0; x < wide && i >= 0; x++) {
            const j = across[x];
            if (j !== cell) {
              cell = j;
              colour = j < 0 || this.isMasked(i, j) ? 0 : colourOf(this.scale, table, cells.values[i * count + j]);
            }
            line[x] = colour;
          }
          before = i;
        }
        pixels.set(line, y * wide);
      }
      // What is left transparent is masked, or has not come yet.
      const layer = new OffscreenCanvas(wide, tall);
      layer.getContext("2d")!.putImageData(image, 0, 0);
      context.fillStyle = theme.masked;
      context.fillRect(this.gutter.left * ratio, this.gutter.top * ratio, wide, tall);
      context.drawImage(layer, Math.round(this.gutter.left * ratio), Math.round(this.gutter.top * ratio));
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.strokeStyle = theme.line;
    context.strokeRect(this.gutter.left - 0.5, this.gutter.top - 0.5, side.width + 1, side.height + 1);
    this.paintNumbers(context, table);
    this.paintAxes(context, theme.ink, theme.faint, theme.font);
    this.paintCursor(context);
    this.paintLegend(table);
  }

  /** Where cells are large enough, their numbers. */
  private paintNumbers(context: CanvasRenderingContext2D, table: Uint32Array): void {
    const { cells, window, side } = this;
    if (!cells) return;
    const [dx, dy] = [side.width / (window.right - window.left), side.height / (window.bottom - window.top)];
    const single = cells.rows[1] - cells.rows[0] === 1 && cells.columns[1] - cells.columns[0] === 1;
    if (!single || dx < 42 || dy < 16) return;
    context.font = "11px monospace";
    context.textAlign = "center";
    context.textBaseline = "middle";
    const across = cells.columns.length - 1;
    for (let row = window.top; row < window.bottom; row++) {
      for (let column = window.left; column < window.right; column++) {
        const value = this.valueAt(row, column);
        if (value === null) continue;
        const [i, j] = [cellOf(cells.rows, row), cellOf(cells.columns, column)];
        if (across <= j || this.isMasked(i, j)) continue;
        context.fillStyle = inkOn(colourOf(this.scale, table, value));
        context.fillText(number(Number(value.toPrecision(3))), this.gutter.left + (column + 0.5 - window.left) * dx, this.gutter.top + (row + 0.5 - window.top) * dy, dx - 2);
      }
    }
  }

  private paintAxes(context: CanvasRenderingContext2D, ink: string, faint: string, font: string): void {
    const { window, side, source } = this;
    const [dx, dy] = [side.width / (window.right - window.left), side.height / (window.bottom - window.top)];
    context.font = font;
    context.textBaseline = "middle";
    context.textAlign = "right";
    context.fillStyle = faint;
    context.fillText(`${source.rowName} ↓`, this.gutter.left - 6, this.gutter.top / 2, this.gutter.left - 10);
    context.fillText(`${source.columnName} →`, this.gutter.left - 6, this.gutter.top + side.height + 12, this.gutter.left - 10);
    context.fillStyle = ink;
    const everyRow = dy >= READABLE;
    const rows = everyRow ? ticks(window.top, window.bottom, Infinity) : ticks(window.top, window.bottom, Math.max(2, side.height / 40));
    for (const row of rows) {
      const text = everyRow && source.rowLabel ? visible(source.rowLabel(row), 14) : (source.rowCalled ?? String)(row);
      context.fillText(text, this.gutter.left - 6, this.gutter.top + (row + 0.5 - window.top) * dy, this.gutter.left - 10);
    }
    const everyColumn = dx >= READABLE;
    const columns = everyColumn ? ticks(window.left, window.right, Infinity) : ticks(window.left, window.right, Math.max(2, side.width / 60));
    const flat = dx >= WIDE || !everyColumn || !source.columnLabel;
    for (const column of columns) {
      const text = everyColumn && source.columnLabel ? visible(source.columnLabel(column), flat ? 14 : 9) : (source.columnCalled ?? String)(column);
      const middle = this.gutter.left + (column + 0.5 - window.left) * dx;
      below(context, text, middle, this.gutter.top + side.height, flat, flat ? Math.max(dx - 4, 30) : this.gutter.bottom - 8);
    }
  }

  private paintCursor(context: CanvasRenderingContext2D): void {
    const { cursor, window, side, cells } = this;
    if (!cursor) return;
    const [dx, dy] = [side.width / (window.right - window.left), side.height / (window.bottom - window.top)];
    const cut = (cuts: ArrayLike<number> | undefined, at: number): [number, number] => {
      if (!cuts || at < cuts[0] || at >= cuts[cuts.length - 1]) return [at, at + 1];
      const cell = cellOf(cuts, at);
      return [cuts[cell], cuts[cell + 1]];
    };
    const [top, bottom] = cut(cells?.rows, cursor.row);
    const [left, right] = cut(cells?.columns, cursor.column);
    context.save();
    context.beginPath();
    context.rect(this.gutter.left - 3, this.gutter.top - 3, side.width + 6, side.height + 6);
    context.clip();
    const x = this.gutter.left + (left - window.left) * dx;
    const y = this.gutter.top + (top - window.top) * dy;
    const [w, t] = [Math.max(3, (right - left) * dx), Math.max(3, (bottom - top) * dy)];
    // Seen on every colour of every map.
    for (const [line, colour] of [[4, "#000"], [2, "#fff"]] as const) {
      context.lineWidth = line;
      context.strokeStyle = colour;
      context.strokeRect(x - 1, y - 1, w + 2, t + 2);
    }
    context.restore();
  }

  private paintLegend(table: Uint32Array): void {
    this.legend.show(table, (part) => valueAt(this.scale, part), this.settings.value, this.bad);
    const { window, source } = this;
    const span = (name: string, a: number, b: number, size: number, called: (index: number) => string = String) =>
      a === 0 && b === size ? `all ${size.toLocaleString("en")} ${name}` : `${name} ${called(a)} to ${called(b - 1)} of ${size.toLocaleString("en")}`;
    fill(this.where, `${span(source.rowName, window.top, window.bottom, source.height, source.rowCalled)}; ${span(source.columnName, window.left, window.right, source.width, source.columnCalled)}`);
    set(this.canvas, "aria-label", `${this.settings.label}. ${this.where.textContent}. ${this.summary()} Arrow keys move, plus and minus zoom, 0 shows all.`);
  }

  /** The largest of what is seen, in words. */
  private summary(): string {
    const { cells } = this;
    if (!cells) return "Nothing has come yet.";
    let best = -1;
    const across = cells.columns.length - 1;
    for (let i = 0; i < cells.values.length; i++) {
      if (!Number.isFinite(cells.values[i]) || this.isMasked(Math.floor(i / across), i % across)) continue;
      if (best < 0 || Math.abs(cells.values[i]) > Math.abs(cells.values[best])) best = i;
    }
    if (best < 0) return "No finite value.";
    return `Largest: ${this.describe(cells.rows[Math.floor(best / across)], cells.columns[best % across])}.`;
  }

  /** What stands at an entry, as a sentence. */
  describe(row: number, column: number): string {
    const { cells, source } = this;
    if (!cells) return "";
    const value = this.valueAt(row, column);
    if (value === null) return "";
    const [i, j] = [cellOf(cells.rows, row), cellOf(cells.columns, column)];
    const name = (what: string, cuts: ArrayLike<number>, at: number, label?: (index: number) => string, called: (index: number) => string = String) => {
      const [first, last] = [cuts[at], cuts[at + 1] - 1];
      if (first !== last) return `${what} ${called(first)} to ${called(last)}`;
      const text = label?.(first);
      return text === undefined || text === String(first) ? `${what} ${called(first)}` : `${what} ${called(first)} ${quoted(text)}`;
    };
    const one = (plural: string) => (plural.endsWith("ies") ? `${plural.slice(0, -3)}y` : plural.replace(/s$/, ""));
    const places = [
      name(one(source.rowName), cells.rows, i, source.rowLabel?.bind(source), source.rowCalled),
      name(one(source.columnName), cells.columns, j, source.columnLabel?.bind(source), source.columnCalled),
    ].join(", ");
    if (this.isMasked(i, j)) return `${places}: masked`;
    const size = (cells.rows[i + 1] - cells.rows[i]) * (cells.columns[j + 1] - cells.columns[j]);
    const pooled = size > 1 ? ` (${this.pool === "max" ? "largest" : "mean"} of ${size.toLocaleString("en")})` : "";
    return `${places}: ${this.settings.value} ${exactly(value)}${pooled}`;
  }

  private tell(): void {
    if (this.problem) return this.say(this.problem);
    this.say(this.cursor ? this.describe(this.cursor.row, this.cursor.column) : this.bad ? `${this.bad} cells hold NaN or infinity` : "");
  }

  private said = 0;
  private saying: ReturnType<typeof setTimeout> | undefined;
  /** At most four times a second, so that a screen reader can follow. */
  private say(text: string): void {
    clearTimeout(this.saying);
    const now = () => {
      this.said = performance.now();
      fill(this.status, text);
    };
    const rest = this.said + 250 - performance.now();
    if (rest <= 0) now();
    else this.saying = setTimeout(now, rest);
  }

  /** The entry under the pointer. */
  private entry(event: MouseEvent): { row: number; column: number } | null {
    const box = this.canvas.getBoundingClientRect();
    const x = (event.clientX - box.left - this.gutter.left) / this.side.width;
    const y = (event.clientY - box.top - this.gutter.top) / this.side.height;
    if (x < 0 || x >= 1 || y < 0 || y >= 1) return null;
    const { top, bottom, left, right } = this.window;
    return { row: Math.floor(top + y * (bottom - top)), column: Math.floor(left + x * (right - left)) };
  }

  private listen(): void {
    const { canvas, settings } = this;
    const { signal } = settings;
    let drag: { x: number; y: number; window: Window; moved: boolean } | null = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      drag = { x: event.clientX, y: event.clientY, window: this.window, moved: false };
      canvas.setPointerCapture(event.pointerId);
    }, { signal });
    canvas.addEventListener("pointermove", (event) => {
      if (drag) {
        const rows = ((drag.y - event.clientY) / this.side.height) * (drag.window.bottom - drag.window.top);
        const columns = ((drag.x - event.clientX) / this.side.width) * (drag.window.right - drag.window.left);
        drag.moved ||= Math.abs(drag.x - event.clientX) + Math.abs(drag.y - event.clientY) > 4;
        if (drag.moved) this.show(moved(drag.window, Math.round(rows), Math.round(columns), this.source.height, this.source.width));
        return;
      }
      const at = this.entry(event);
      if (!at) return;
      this.say(this.describe(at.row, at.column));
      settings.pointed?.(at.row, at.column);
    }, { signal });
    canvas.addEventListener("pointerup", (event) => {
      const clicked = drag && !drag.moved;
      drag = null;
      const at = clicked ? this.entry(event) : null;
      if (at) this.choose(at.row, at.column);
    }, { signal });
    canvas.addEventListener("pointercancel", () => (drag = null), { signal });
    canvas.addEventListener("pointerleave", () => this.tell(), { signal });
    canvas.addEventListener("dblclick", (event) => {
      const at = this.entry(event);
      if (at) this.zoom(event.shiftKey ? 4 : 0.25, at);
    }, { signal });
    canvas.addEventListener("wheel", (event) => {
      // A page scrolls over a map that nobody works in.
      if (!event.ctrlKey && document.activeElement !== canvas && this.element.getRootNode() instanceof Document) return;
      const at = this.entry(event);
      if (!at) return;
      event.preventDefault();
      this.zoom(event.deltaY < 0 ? 0.8 : 1.25, at);
    }, { signal, passive: false });
    canvas.addEventListener("keydown", (event) => {
      if (this.pressed(event) || settings.key?.(event)) {
        event.preventDefault();
        event.stopPropagation();
      }
    }, { signal });
    onTheme(() => this.draw(), signal);
    resized(this.element, signal, () => {
      const { width, height } = this.side;
      this.resize();
      if (!this.side.width) return;
      this.draw();
      if (!this.cells || Math.abs(width - this.side.width) > 32 || Math.abs(height - this.side.height) > 32) this.refresh();
    });
    signal.addEventListener("abort", () => {
      cancelAnimationFrame(this.frame);
      clearTimeout(this.saying);
    });
  }

  private pressed(event: KeyboardEvent): boolean {
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
    const { window, cells, source } = this;
    const at = this.cursor ?? { row: window.top, column: window.left };
    const step = (cuts: ArrayLike<number> | undefined, from: number, by: number, size: number) => {
      if (!cuts || from < cuts[0] || from >= cuts[cuts.length - 1]) return Math.max(0, Math.min(size - 1, from + by));
      const cell = cellOf(cuts, from);
      return Math.max(0, Math.min(size - 1, by > 0 ? cuts[cell + 1] : cuts[cell] - 1));
    };
    const turns: Record<string, [number, number]> = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const turn = turns[event.key];
    if (turn) {
      const row = turn[0] ? step(cells?.rows, at.row, turn[0], source.height) : at.row;
      const column = turn[1] ? step(cells?.columns, at.column, turn[1], source.width) : at.column;
      this.choose(row, column);
    } else if (event.key === "+" || event.key === "=") this.zoom(0.5);
    else if (event.key === "-") this.zoom(2);
    else if (event.key === "0") this.show(whole(source.height, source.width));
    else if (event.key === "Home") this.choose(at.row, 0);
    else if (event.key === "End") this.choose(at.row, source.width - 1);
    else if (event.key === "Escape") this.canvas.blur();
    else return false;
    return true;
  }

  private choose(row: number, column: number): void {
    this.point(row, column);
    this.tell();
    this.settings.chosen?.(row, column);
  }
}

/** Enough digits to tell a 32-bit number from all others. */
export function exactly(value: number): string {
  if (!Number.isFinite(value)) return number(value);
  let short = Math.fround(value) === value ? shortest(value) : String(value);
  if (value !== 0 && Math.abs(value) < 1e-4) short = Number(short).toExponential();
  return short.replaceAll("-", "−");
}

function shortest(value: number): string {
  for (let digits = 1; digits <= 9; digits++) {
    const text = String(Number(value.toPrecision(digits)));
    if (Math.fround(Number(text)) === value) return text;
  }
  return String(value);
}

/** A matrix that is here whole; pooled as a window of it is asked for. */
export function matrix(values: ArrayLike<number>, width: number): Source["cells"] {
  return (window, rows, columns, pool) => {
    const down = edges(window.top, window.bottom, rows);
    const across = edges(window.left, window.right, columns);
    const found = new Float64Array((down.length - 1) * (across.length - 1));
    for (let i = 0; i + 1 < down.length; i++)
      for (let j = 0; j + 1 < across.length; j++) {
        let [most, sum, broken] = [0, 0, null as number | null];
        for (let row = down[i]; row < down[i + 1]; row++)
          for (let column = across[j]; column < across[j + 1]; column++) {
            const value = values[row * width + column];
            if (!Number.isFinite(value) && !Number.isNaN(broken)) broken = value;
            if (Math.abs(value) > Math.abs(most)) most = value;
            sum += value;
          }
        const count = (down[i + 1] - down[i]) * (across[j + 1] - across[j]);
        found[i * (across.length - 1) + j] = broken ?? (pool === "max" ? most : sum / count);
      }
    return { rows: down, columns: across, values: found };
  };
}


