// The logit lens: layers down, the last on top, and tokens across; what each layer would say next.

import { type ScaleName, css, inkOn, limits } from "./colour";
import type { Context, Draw } from "./context";
import { button, choice, fill, h, number, quoted, set } from "./dom";
import { exactly } from "./heatmap";
import { onTheme, themeOf } from "./theme";
import { Legend, Ramp, likely, shown } from "./tokens";
import type { NumberArray } from "./wire";

/** Of a block of columns, each [layers, columns]; the texts row after row. */
type Block = Partial<Record<string, NumberArray>> & { texts: string[] };

interface Payload {
  layers: number[];
  point: string;
  tokens: string[];
  /** Of each column the token after which the layers speak. */
  positions: NumberArray;
  block: number;
  /** The columns of the overview. */
  samples: NumberArray;
  vocabulary: number;
  kl: boolean;
  start: number;
  first: Block;
}

interface Measure {
  name: string;
  text: string;
  /** In a sentence, of a layer. */
  said: string;
  unit: string;
  scale: ScaleName;
}

const MEASURES: Measure[] = [
  { name: "top", text: "probability of what it would say", said: "probability", unit: "", scale: "linear" },
  { name: "next", text: "probability of the token that came", said: "the token that came has probability", unit: "", scale: "linear" },
  { name: "rank", text: "rank of the token that came", said: "the token that came has rank", unit: "", scale: "log" },
  { name: "entropy", text: "entropy", said: "entropy", unit: "nats", scale: "linear" },
  { name: "kl", text: "KL(model || layer)", said: "KL(model || layer)", unit: "nats", scale: "linear" },
];
const COLUMN = 78;
const MOST_COLUMNS = 64;

export const lens: Draw = (element, context) => {
  new Lens(element, context);
};

class Lens {
  private readonly payload: Payload;
  private readonly columns: number;
  private measure = MEASURES[0];
  private from = 0;
  private count = 8;
  private readonly blocks = new Map<number, Block>();
  private readonly wanted = new Set<number>();
  private highest = 0; // divergence seen so far
  private ramp: Ramp;
  private cells: HTMLButtonElement[][] = [];
  private stop: HTMLButtonElement | null = null;

  private readonly legend = new Legend();
  private readonly where = h("span", { class: "loupe-where" });
  private readonly table = h("table", { attributes: { role: "grid" } });
  private readonly status = h("div", { class: "loupe-status", attributes: { "aria-live": "polite" } });
  private readonly earlier = button("‹", () => this.page(-1), "Earlier tokens");
  private readonly later = button("›", () => this.page(1), "Later tokens");
  private readonly overview: Overview;
  private readonly cell: Cell;

  constructor(private readonly element: HTMLElement, private readonly context: Context) {
    this.payload = context.payload;
    const { payload } = this;
    this.columns = payload.positions.data.length;
    const measures = MEASURES.filter(({ name }) => name !== "kl" || payload.kl).map(({ name, text }) => [name, text] as const);
    const tools = h(
      "div",
      { class: "loupe-tools" },
      choice("colour", measures, this.measure.name, (name) => {
        this.measure = MEASURES.find((each) => each.name === name)!;
        this.paint();
      }),
      h("span", { class: "loupe-pages" }, this.earlier, this.later, this.where),
    );
    this.overview = new Overview(context, payload, (column) => this.move(column - (this.count >> 1)), (by) => this.page(by));
    this.cell = new Cell(context, payload);
    const scroll = h("div", { class: "loupe-grid" }, this.table);
    const grid = h("div", {}, tools, this.legend.element, this.overview.element, scroll, this.status);
    element.append(grid, this.cell.element);
    this.keep(payload.start, payload.first);
    this.ramp = this.ramped();
    this.listen(grid);
  }

  private listen(grid: HTMLElement): void {
    const { table, context } = this;
    const { signal, selection } = context;
    const at = (event: Event) => (event.target as Element).closest?.("button");
    table.addEventListener("click", (event) => this.choose(at(event)), { signal });
    table.addEventListener("pointerover", (event) => this.say(at(event)), { signal });
    table.addEventListener("pointerleave", () => this.say(null), { signal });
    table.addEventListener("focusin", (event) => this.say(at(event)), { signal });
    table.addEventListener("keydown", (event) => this.pressed(event), { signal });
    selection.on(() => this.chosen(), signal);
    onTheme(() => this.paint(), signal);
    const observer = new ResizeObserver(() => {
      const count = Math.max(2, Math.min(MOST_COLUMNS, this.columns, Math.floor((grid.clientWidth - 90) / COLUMN)));
      if (count === this.count && this.cells.length) return this.overview.paint(this.from, this.count, this.ramp, this.measure.name);
      this.count = count;
      this.build();
      this.chosen();
      this.overview.start(this.columns > this.count);
    });
    observer.observe(grid);
    signal.addEventListener("abort", () => observer.disconnect());
    this.overview.came = () => this.paint();
  }

  private keep(start: number, block: Block): void {
    this.blocks.set(start, block);
    // A long session looks at many: the oldest are asked for again.
    if (this.blocks.size > 64) this.blocks.delete(this.blocks.keys().next().value!);
  }

  /** Column of the chosen token, -1 where it is none of them. */
  private get column(): number {
    const { token } = this.context.selection.value;
    return token === null ? -1 : Array.prototype.indexOf.call(this.payload.positions.data, token);
  }

  private get layer(): number {
    const { layers } = this.payload;
    const found = layers.indexOf(this.context.selection.value.layer ?? -1);
    return found < 0 ? layers.length - 1 : found;
  }

  private page(by: number): void {
    this.move(this.from + by * this.count);
  }

  private move(from: number): void {
    from = Math.max(0, Math.min(this.columns - this.count, from));
    if (from === this.from) return;
    this.from = from;
    this.build();
  }

  /** The selection moved, here or elsewhere. */
  private chosen(): void {
    const { column } = this;
    if (column >= 0 && column < this.from) this.move(column);
    else if (column >= this.from + this.count) this.move(column - this.count + 1);
    this.mark();
    this.overview.paint(this.from, this.count, this.ramp, this.measure.name);
    this.cell.show(column < 0 ? null : this.payload.positions.data[column], this.layer);
  }

  private mark(): void {
    const held = this.table.contains(document.activeElement) || this.table.contains((this.table.getRootNode() as ShadowRoot).activeElement);
    if (this.stop) {
      set(this.stop, "aria-current", null);
      set(this.stop, "tabindex", -1);
    }
    const inside = this.column >= this.from && this.column < this.from + this.count;
    this.stop = this.cells[this.layer]?.[inside ? this.column - this.from : 0] ?? null;
    if (!this.stop) return;
    set(this.stop, "tabindex", 0);
    if (inside) set(this.stop, "aria-current", "true");
    if (held) this.stop.focus({ preventScroll: true });
    const scroll = this.table.parentElement!;
    const [top, low] = [this.stop.offsetTop - 48, this.stop.offsetTop + 72];
    if (inside && top < scroll.scrollTop) scroll.scrollTop = top;
    else if (inside && low > scroll.scrollTop + scroll.clientHeight) scroll.scrollTop = low - scroll.clientHeight;
  }

  /** The table of the window; texts come as they are there. */
  private build(): void {
    const { payload, from, count } = this;
    const { layers, tokens, positions } = payload;
    const head = (text: string, token: number) => {
      const none = token >= tokens.length;
      const made = [h("span", { class: "loupe-where" }, none ? "" : token), h("span", { class: "loupe-token" }, none ? "?" : shown(tokens[token], 24))];
      return h("th", { attributes: { scope: "col", "aria-label": none ? "the end" : `${text} ${token} ${quoted(tokens[token], 24)}` } }, h("div", {}, ...made));
    };
    const across = Array.from({ length: count }, (_, i) => positions.data[from + i]);
    this.cells = layers.map((layer, row) =>
      across.map((_, i) => h("button", { class: "loupe-token", attributes: { type: "button", tabindex: -1, "data-row": row, "data-column": from + i, "data-layer": layer } })),
    );
    const rows = layers.map((layer, row) =>
      h("tr", {}, h("th", { attributes: { scope: "row" } }, `layer ${layer}`), ...this.cells[row].map((made) => h("td", {}, made))),
    );
    this.table.style.maxWidth = `${80 + count * 150}px`;
    fill(
      this.table,
      h("thead", {}, h("tr", {}, h("th", {}, "came next"), ...across.map((token) => head("came next:", token + 1)))),
      h("tbody", {}, ...rows.reverse()),
      h("tfoot", {}, h("tr", {}, h("th", {}, "after token"), ...across.map((token) => head("after token", token)))),
    );
    set(this.table, "aria-label", `What each layer (${payload.point}) would say after each token; the last layer is on top. Arrow keys choose a cell, Page Up and Down turn pages.`);
    const all = this.columns === count;
    fill(this.where, all ? `all ${count} tokens` : `columns ${from} to ${from + count - 1} of ${this.columns.toLocaleString("en")}`);
    this.earlier.disabled = from === 0;
    this.later.disabled = from + count >= this.columns;
    this.earlier.hidden = this.later.hidden = all;
    this.stop = null;
    this.mark();
    this.paint();
    for (let start = from - (from % payload.block); start < from + count; start += payload.block) void this.fetch(start);
  }

  private async fetch(start: number): Promise<void> {
    if (this.blocks.has(start) || this.wanted.has(start)) return;
    this.wanted.add(start);
    try {
      this.keep(start, await this.context.ask("cells", { from: start }, `cells ${start}`));
      this.paint();
    } catch (error) {
      fill(this.status, error instanceof Error ? error.message : String(error));
    } finally {
      this.wanted.delete(start);
    }
  }

  /** The value of a cell: undefined where it has not come, null where there is none. */
  private value(row: number, column: number, name = this.measure.name): number | null | undefined {
    if ((name === "next" || name === "rank") && this.payload.positions.data[column] + 1 >= this.payload.tokens.length) return null;
    const { block } = this.payload;
    const found = this.blocks.get(column - (column % block))?.[name];
    return found && found.data[row * found.shape[1] + (column % block)];
  }

  private text(row: number, column: number): string {
    const { block } = this.payload;
    const found = this.blocks.get(column - (column % block));
    return found ? found.texts[row * found.top!.shape[1] + (column % block)] : "…";
  }

  private ramped(): Ramp {
    const { name, scale } = this.measure;
    const parts = [...this.blocks.values()].map((block) => block[name]?.data ?? []);
    if (name === "kl") for (const part of [...parts, ...this.overview.values(name)]) this.highest = Math.max(this.highest, limits(part).high);
    const high = { top: 1, next: 1, rank: this.payload.vocabulary - 1, entropy: Math.log(this.payload.vocabulary), kl: this.highest }[name]!;
    return new Ramp(0, high, scale, themeOf(this.element).dark, 1, name === "rank");
  }

  private paint(): void {
    this.ramp = this.ramped();
    let bad = 0;
    for (const [row, line] of this.cells.entries())
      for (const [i, made] of line.entries()) {
        const column = this.from + i;
        const value = this.value(row, column);
        const colour = typeof value === "number" ? this.ramp.colour(value) : null;
        if (typeof value === "number" && !Number.isFinite(value)) bad++;
        fill(made, shown(this.text(row, column), 24));
        made.style.background = colour === null ? "" : css(colour);
        made.style.color = colour === null ? "" : inkOn(colour);
        made.classList.toggle("loupe-right", this.value(row, column, "rank") === 0);
      }
    const { text, unit } = this.measure;
    this.legend.show(this.ramp, unit ? `${text}, ${unit}` : text, bad);
    this.overview.paint(this.from, this.count, this.ramp, this.measure.name);
    this.say(null);
  }

  private say(made: HTMLElement | null | undefined): void {
    made ??= this.column >= this.from && this.column < this.from + this.count ? this.stop : null;
    if (!made) return fill(this.status, "Bold: what the layer would say is what came. Choose a cell to look into it.");
    const [row, column] = [Number(made.dataset.row), Number(made.dataset.column)];
    const { tokens, positions, layers, point } = this.payload;
    const value = this.value(row, column);
    const token = positions.data[column];
    const { said, unit } = this.measure;
    const number_ = value === undefined ? "not here yet" : value === null ? "no token came" : `${said} ${exactly(value)}${unit && ` ${unit}`}`;
    fill(this.status, `After token ${token} ${quoted(tokens[token], 24)} layer ${layers[row]} (${point}) would say ${quoted(this.text(row, column), 24)}; ${number_}`);
  }

  private choose(made: HTMLElement | null | undefined): void {
    if (made) this.context.select({ token: this.payload.positions.data[Number(made.dataset.column)], layer: Number(made.dataset.layer) });
  }

  private pressed(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.stop) return;
    const { layers, positions } = this.payload;
    const [row, column] = [Number(this.stop.dataset.row), Number(this.stop.dataset.column)];
    const turn: Record<string, [number, number]> = {
      ArrowUp: [1, 0],
      ArrowDown: [-1, 0],
      ArrowLeft: [0, -1],
      ArrowRight: [0, 1],
      PageUp: [0, -this.count],
      PageDown: [0, this.count],
      Home: [0, -column],
      End: [0, this.columns],
    };
    const by = turn[event.key];
    if (!by) return;
    const to = (at: number, size: number) => Math.max(0, Math.min(size - 1, at));
    this.context.select({ token: positions.data[to(column + by[1], this.columns)], layer: layers[to(row + by[0], layers.length)] });
    event.preventDefault();
    event.stopPropagation();
  }
}

/** A canvas of `width` x `height` css pixels, cleared, in the theme's font. */
function cleared(canvas: HTMLCanvasElement, width: number, height: number): CanvasRenderingContext2D {
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d")!;
  context.scale(ratio, ratio);
  return context;
}

/** The whole prompt, or an even sample of it, and where in it the window stands. */
class Overview {
  private readonly canvas = h("canvas", { attributes: { tabindex: 0, role: "img" } });
  readonly element = h("div", { class: "loupe-overview" }, this.canvas);
  came: () => void = () => {};
  private readonly parts: Block[] = [];
  private started = false;
  private shown = false;

  constructor(private readonly context: Context, private readonly payload: Payload, go: (column: number) => void, page: (by: number) => void) {
    const { signal } = context;
    this.canvas.addEventListener("click", (event) => {
      const box = this.canvas.getBoundingClientRect();
      go(Math.floor(((event.clientX - box.left) / box.width) * payload.positions.data.length));
    }, { signal });
    this.canvas.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -1, PageDown: 1, Home: -1e9, End: 1e9 }[event.key];
      if (by === undefined) return;
      page(by);
      event.preventDefault();
      event.stopPropagation();
    }, { signal });
  }

  values(name: string): ArrayLike<number>[] {
    return this.parts.map((part) => part[name]?.data ?? []);
  }

  /** Asks for its parts one after the other, so that others' questions come in between. */
  async start(shown: boolean): Promise<void> {
    this.shown = shown;
    this.element.hidden = !shown;
    if (!shown || this.started) return this.came();
    this.started = true;
    const { samples, block } = this.payload;
    for (let start = 0; start < samples.data.length; start += block) {
      try {
        this.parts.push(await this.context.ask("overview", { from: start }));
      } catch {
        return;
      }
      if (this.context.signal.aborted) return;
      this.came();
    }
  }

  paint(from: number, count: number, ramp: Ramp, name: string): void {
    const width = this.element.clientWidth;
    if (!this.shown || !width) return;
    const { layers, samples, positions, tokens } = this.payload;
    const columns = positions.data.length;
    const theme = themeOf(this.element);
    const height = Math.max(24, Math.min(96, 4 * layers.length));
    const context = cleared(this.canvas, width, height + 4);
    context.fillStyle = theme.masked;
    context.fillRect(0, 2, width, height);
    const edge = (sample: number) => ((sample < samples.data.length ? samples.data[sample] : columns) / columns) * width;
    let sample = 0;
    for (const part of this.parts) {
      const { data, shape } = part[name]!;
      for (let i = 0; i < shape[1]; i++, sample++) {
        if ((name === "next" || name === "rank") && positions.data[samples.data[sample]] + 1 >= tokens.length) continue;
        for (let row = 0; row < layers.length; row++) {
          const top = 2 + ((layers.length - 1 - row) * height) / layers.length;
          context.fillStyle = css(ramp.colour(data[row * shape[1] + i]));
          context.fillRect(edge(sample), top, edge(sample + 1) - edge(sample) + 0.5, height / layers.length + 0.5);
        }
      }
    }
    const [left, right] = [(from / columns) * width, ((from + count) / columns) * width];
    for (const [stroke, line] of [[theme.ground, 4], [theme.ink, 2]] as const) {
      context.strokeStyle = stroke;
      context.lineWidth = line;
      context.strokeRect(Math.max(1, left), 2, Math.max(4, Math.min(right, width - 1) - Math.max(1, left)), height);
    }
    const every = samples.data.length < columns ? `; ${samples.data.length} of them are drawn` : "";
    const text = `The whole prompt, ${columns.toLocaleString("en")} tokens${every}. The frame is the window below: columns ${from} to ${from + count - 1}. Arrow keys turn pages.`;
    set(this.canvas, "aria-label", text);
    set(this.canvas, "title", text);
  }
}

/** One cell: its likeliest tokens, and one of them through all layers. */
class Cell {
  private readonly title = h("div", { class: "loupe-title" });
  private readonly list = h("div");
  private readonly named = h("div", { class: "loupe-where" });
  private readonly canvas = h("canvas", { attributes: { tabindex: 0, role: "img" } });
  private readonly said = h("div", { class: "loupe-status", attributes: { "aria-live": "polite" } });
  private readonly chart: HTMLElement;
  readonly element: HTMLElement;
  private scale: ScaleName = "linear";
  private found: any = null;
  private at: { token: number; row: number } | null = null;
  private picked = 0;

  constructor(private readonly context: Context, private readonly payload: Payload) {
    const scales = [["linear", "linear"], ["log", "log"]] as const;
    const scale = choice("probability", scales, this.scale, (name) => {
      this.scale = name as ScaleName;
      this.paint();
    });
    this.chart = h("div", {}, this.named, scale, this.canvas, this.said);
    this.element = h("div", { class: "loupe-cell" }, this.title, this.list, this.chart);
    const { signal } = context;
    const { layers } = payload;
    this.canvas.addEventListener("click", (event) => {
      const part = (event.offsetX - CHART.left) / (this.canvas.clientWidth - CHART.left - CHART.right);
      const row = Math.round(part * (layers.length - 1));
      context.select({ layer: layers[Math.max(0, Math.min(layers.length - 1, row))] });
    }, { signal });
    this.canvas.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const layer = by && this.at ? layers[this.at.row + by] : undefined;
      if (!by) return;
      if (layer !== undefined) context.select({ layer });
      event.preventDefault();
      event.stopPropagation();
    }, { signal });
    onTheme(() => this.paint(), signal);
    const observer = new ResizeObserver(() => this.paint());
    observer.observe(this.element);
    signal.addEventListener("abort", () => observer.disconnect());
    this.show(null, 0);
  }

  async show(token: number | null, row: number): Promise<void> {
    if (this.at && token === this.at.token && row === this.at.row) return;
    const at = token === null ? null : { token, row };
    this.at = at;
    this.chart.hidden = !this.found || !at;
    if (!at) {
      fill(this.title, "Choose a cell to see its likeliest tokens, and to follow one through the layers.");
      this.found = null;
      return fill(this.list);
    }
    const { tokens, layers } = this.payload;
    try {
      const found = await this.context.ask("cell", { token, layer: layers[row] });
      if (this.at !== at) return;
      const before = this.found?.ids.data[this.picked];
      const kept = before === undefined ? -1 : found.ids.data.indexOf(before);
      this.picked = kept >= 0 ? kept : (found.next ?? 0);
      this.found = found;
      fill(this.title, `After token ${token} ${quoted(tokens[at.token], 24)} layer ${layers[row]} would say:`);
      this.draw();
    } catch (error) {
      if (this.at === at) fill(this.title, error instanceof Error ? error.message : String(error));
    }
  }

  private draw(): void {
    const { found, at, payload } = this;
    const count = payload.layers.length;
    const here = found.ids.data.length;
    const probabilities = Array.from({ length: here }, (_, i) => found.probabilities.data[i * count + at!.row]);
    const held = this.list.contains(document.activeElement);
    const list = likely({ texts: found.texts, probabilities, real: found.next }, (index) => {
      this.picked = index;
      this.draw();
    }, this.picked);
    fill(this.list, list);
    if (held) list.querySelectorAll("button")[this.picked]?.focus();
    this.chart.hidden = false;
    const name = quoted(found.texts[this.picked], 24);
    fill(this.named, `${name} after token ${at!.token}, layer by layer`);
    const [p, rank] = [found.probabilities.data, found.ranks.data].map((data) => data[this.picked * count + at!.row]);
    fill(this.said, `${name} in layer ${payload.layers[at!.row]}: probability ${exactly(p)}, rank ${exactly(rank)}`);
    this.paint();
  }

  /** Probability above, rank below, layers from left to right. */
  private paint(): void {
    const { canvas, found, at, payload } = this;
    const width = Math.min(460, this.element.clientWidth);
    if (!found || !at || !width || !canvas.isConnected) return;
    const theme = themeOf(this.element);
    const { layers } = payload;
    const count = layers.length;
    const context = cleared(canvas, width, 2 * (CHART.height + CHART.gap) + 8);
    const slice = (data: ArrayLike<number>) => Array.from({ length: count }, (_, i) => data[this.picked * count + i]);
    const probabilities = slice(found.probabilities.data);
    const ranks = slice(found.ranks.data);
    const x = (i: number) => CHART.left + (count > 1 ? i / (count - 1) : 0.5) * (width - CHART.left - CHART.right);
    context.font = theme.font;
    context.textBaseline = "middle";
    const least = Math.max(1e-12, Math.min(...probabilities.filter((p) => p > 0), 0.1));
    const decades = -Math.floor(Math.log10(least));
    const log = this.scale === "log";
    const worst = Math.max(1, ...ranks.filter(Number.isFinite));
    const panels = [
      { values: probabilities, part: (p: number) => (log ? Math.max(0, 1 + Math.log10(p) / decades) : p), high: "1", low: log ? `10${superscript(-decades)}` : "0", name: "p" },
      { values: ranks, part: (rank: number) => 1 - Math.log1p(rank) / Math.log1p(worst), high: "0", low: number(worst), name: "rank" },
    ];
    for (const [n, { values, part, high, low, name }] of panels.entries()) {
      const top = 10 + n * (CHART.height + CHART.gap);
      const y = (value: number) => top + (1 - part(value)) * CHART.height;
      context.strokeStyle = theme.line;
      context.lineWidth = 1;
      context.strokeRect(CHART.left - 8.5, top - 4.5, width - CHART.left - CHART.right + 17, CHART.height + 9);
      context.fillStyle = theme.faint;
      context.textAlign = "right";
      for (const [text, line] of [[high, top], [name, top + CHART.height / 2], [low, top + CHART.height]] as const) context.fillText(text, CHART.left - 14, line);
      context.textAlign = "center";
      const every = Math.ceil((count * 26) / (width - CHART.left - CHART.right));
      for (let i = 0; i < count; i += every) context.fillText(String(layers[i]), x(i), top + CHART.height + 16);
      context.strokeStyle = context.fillStyle = theme.accent;
      context.lineWidth = 1.5;
      context.beginPath();
      for (const [i, value] of values.entries()) if (Number.isFinite(value)) context.lineTo(x(i), y(value));
      context.stroke();
      for (const [i, value] of values.entries()) {
        if (!Number.isFinite(value)) continue;
        context.beginPath();
        context.arc(x(i), y(value), i === at.row ? 4.5 : 2.5, 0, 7);
        context.fill();
      }
    }
    const largest = probabilities.indexOf(Math.max(...probabilities));
    set(canvas, "aria-label", `${this.named.textContent}. Probability ${number(probabilities[0])} in layer ${layers[0]}, at most ${number(probabilities[largest])} in layer ${layers[largest]}, ${number(probabilities[count - 1])} in layer ${layers[count - 1]}. Arrow keys choose a layer.`);
  }
}

const CHART = { left: 60, right: 14, height: 72, gap: 34 };

function superscript(value: number): string {
  return String(value).replace("-", "⁻").replace(/\d/g, (digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(digit)]);
}
