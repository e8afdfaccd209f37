// Every head's map in one atlas, one of them by zooming, and what the chosen token reads.

import { type ScaleName, colourOf, colours, scaleOver } from "./colour";
import { type Context, type Draw, empty } from "./context";
import { button, choice, fill, h, number, quoted, set, visible } from "./dom";
import { type Cells, type Window, edges, whole } from "./grid";
import { Heatmap, MOST_CELLS, type Pool, type Source, exactly, matrix } from "./heatmap";
import { onTheme, themeOf } from "./theme";
import type { NumberArray } from "./wire";

interface Payload {
  layers: number[];
  heads: number;
  groups: number;
  length: number;
  tokens: string[];
  /** [layers, heads, n, n]: 255 times the square root of each cell's largest probability. */
  atlas: NumberArray;
  /** Whether single cells can be asked for; if not, what to capture. */
  detail: boolean;
  sentence: string | null;
  code: string | null;
  scores: string[];
}

const MOST_READ = 12;

export const attention: Draw = (element, context) => {
  const payload: Payload = context.payload;
  const { selection, signal } = context;
  const start = { layer: selection.value.layer ?? payload.layers[0], head: selection.value.head ?? 0 };
  const has = (layer: number | null): layer is number => layer !== null && payload.layers.includes(layer);
  let layer = has(start.layer) ? start.layer : payload.layers[0];
  let head = Math.min(start.head, payload.heads - 1);

  const left = h("section", { attributes: { "aria-label": "All heads" } });
  const right = h("section", { attributes: { "aria-label": "One head" } });
  element.append(left, right);

  const maps = new Maps(context, payload);
  const name = h("div", { class: "loupe-title" });
  const map = new Heatmap(maps.source(layer, head), {
    value: "attention",
    label: "Attention map",
    range: [0, 1],
    scale: "sqrt",
    pools: payload.detail ? ["max", "mean"] : ["max"],
    square: true,
    signal,
    chosen: (query) => context.select({ token: query }),
    key: (event) => {
      const step = { PageUp: -1, PageDown: 1 }[event.key];
      if (!step) return false;
      const at = payload.layers.indexOf(layer) + step;
      if (at >= 0 && at < payload.layers.length) context.select({ layer: payload.layers[at], head });
      return true;
    },
  });
  const reads = new Reads(context, payload, maps);
  right.append(name, map.element);
  if (!payload.detail && payload.sentence) {
    const note = h("div");
    empty(note, { sentence: payload.sentence, code: payload.code });
    right.append(note);
  }
  right.append(reads.element);
  const atlas = new Atlas(context, payload);
  left.append(atlas.element);

  const changed = () => {
    fill(name, `Layer ${layer}, head ${head}${payload.groups < payload.heads ? `, which reads key/value head ${kvOf(payload, head)}` : ""}`);
    map.change(maps.source(layer, head), { label: `Attention of layer ${layer}, head ${head}` });
    const { token } = selection.value;
    if (token !== null && token < payload.length) map.point(token, map.column ?? token);
    atlas.mark(layer, head);
    reads.show(layer, head, token);
  };
  selection.on((value, before) => {
    if (has(value.layer)) layer = value.layer;
    if (value.head !== null && value.head < payload.heads) head = value.head;
    if (value.layer !== before.layer || value.head !== before.head || value.token !== before.token) changed();
  }, signal);
  changed();
};

function kvOf(payload: Payload, head: number): number {
  return Math.floor(head / (payload.heads / payload.groups));
}

/** The maps of single heads, as far as they can be had. */
class Maps {
  // Whole maps that are exact serve every zoom of them: the last 64 that were looked at.
  private readonly exact = new Map<string, Float32Array>();

  constructor(private readonly context: Context, private readonly payload: Payload) {}

  source(layer: number, head: number): Source {
    const { payload } = this;
    return {
      height: payload.length,
      width: payload.length,
      rowName: "queries",
      columnName: "keys",
      rowLabel: (row) => payload.tokens[row],
      columnLabel: (column) => payload.tokens[column],
      cells: (window, rows, columns, pool) => this.cells(layer, head, window, rows, columns, pool),
      masked: (_, bottom, left) => left >= bottom,
    };
  }

  private async cells(layer: number, head: number, window: Window, rows: number, columns: number, pool: Pool, slot = "tile"): Promise<Cells> {
    const { payload, context } = this;
    const { length } = payload;
    if (!payload.detail) return this.thumbnail(layer, head);
    const key = `${layer}.${head}`;
    const known = this.exact.get(key);
    if (known) return matrix(known, length)(window, rows, columns, pool);
    const args = { layer, head, ...window, rows, columns, pool };
    const tile = await context.ask("tile", args, slot);
    const found: Cells = { rows: tile.rows.data, columns: tile.columns.data, values: tile.values.data };
    if (tile.values.data.length === length * length) {
      if (this.exact.size >= 64) this.exact.delete(this.exact.keys().next().value!);
      this.exact.set(key, tile.values.data);
    }
    return found;
  }

  private thumbnail(layer: number, head: number): Cells {
    const { atlas, length, layers, heads } = this.payload;
    const n = atlas.shape[2];
    const start = (layers.indexOf(layer) * heads + head) * n * n;
    const cuts = edges(0, length, n);
    return { rows: cuts, columns: cuts, values: Float32Array.from(atlas.data.subarray(start, start + n * n), (code) => (code / 255) ** 2) };
  }

  /** What one query reads: a probability for each key. */
  async row(layer: number, head: number, query: number): Promise<ArrayLike<number>> {
    const { length } = this.payload;
    const key = `${layer}.${head}`;
    // One question gets all rows of a short prompt's map; an exported file holds its answer.
    if (length <= MOST_CELLS && !this.exact.has(key))
      await this.cells(layer, head, whole(length, length), length, length, "max", "rows");
    const known = this.exact.get(key);
    if (known) return known.subarray(query * length, (query + 1) * length);
    return (await this.context.ask("row", { layer, head, query })).values.data;
  }
}

/** The chosen token's strongest reads: lines to where they are, and a list of them. */
class Reads {
  readonly element = h("div");
  private readonly canvas = h("canvas", { attributes: { "aria-hidden": "true" } });
  private readonly title = h("div", { class: "loupe-where" });
  private readonly list = h("ol", { class: "loupe-reads" });
  private asked = 0;
  private drawn: { query: number; found: [number, number][] } | null = null;

  constructor(private readonly context: Context, private readonly payload: Payload, private readonly maps: Maps) {
    this.element.append(this.title, this.canvas, this.list);
    onTheme(() => this.paint(), context.signal);
    const observer = new ResizeObserver(() => this.paint());
    observer.observe(this.element);
    context.signal.addEventListener("abort", () => observer.disconnect());
  }

  async show(layer: number, head: number, query: number | null): Promise<void> {
    const asked = ++this.asked;
    const { payload } = this;
    if (query === null || query >= payload.length || !payload.detail) {
      fill(this.title, payload.detail ? "Choose a row of the map to see what that token reads." : "");
      fill(this.list);
      this.drawn = null;
      return this.paint();
    }
    let row: ArrayLike<number>;
    try {
      row = await this.maps.row(layer, head, query);
    } catch (error) {
      if (asked === this.asked) fill(this.title, error instanceof Error ? error.message : String(error));
      return;
    }
    if (asked !== this.asked) return;
    const order = Array.from({ length: query + 1 }, (_, key) => key).sort((a, b) => row[b] - row[a] || a - b);
    const found = order.slice(0, MOST_READ).filter((key) => row[key] > 0).map((key): [number, number] => [key, row[key]]);
    const sum = found.reduce((total, [, weight]) => total + weight, 0);
    fill(this.title, `Token ${query} ${quoted(payload.tokens[query])} reads, in layer ${layer}, head ${head} (these are ${number(Math.min(1, sum) * 100)} %):`);
    fill(
      this.list,
      ...found.map(([key, weight]) => {
        const item = h(
            "button",
            { class: "loupe-share", on: { click: () => this.context.select({ token: key }) }, attributes: { type: "button", title: `Choose token ${key}` } },
            h("span", { class: "loupe-where" }, key),
            h("span", { class: "loupe-token" }, visible(payload.tokens[key], 24)),
            h("span", {}, exactly(Number(weight.toPrecision(4)))),
        );
        item.style.setProperty("--loupe-share", `${100 * weight}%`);
        return h("li", {}, item);
      }),
    );
    this.drawn = { query, found };
    this.paint();
  }

  private paint(): void {
    const { canvas, drawn, payload } = this;
    const width = this.element.clientWidth;
    canvas.style.display = drawn ? "block" : "none";
    if (!drawn || !width) return;
    const height = 72;
    const ratio = devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d")!;
    const theme = themeOf(this.element);
    context.scale(ratio, ratio);
    const x = (at: number) => 8 + ((at + 0.5) * (width - 16)) / payload.length;
    const ground = height - 8;
    context.strokeStyle = theme.line;
    context.beginPath();
    context.moveTo(8, ground + 0.5);
    context.lineTo(width - 8, ground + 0.5);
    context.stroke();
    context.strokeStyle = theme.accent;
    context.fillStyle = theme.accent;
    for (const [key, weight] of [...drawn.found].reverse()) {
      const [from, to] = [x(drawn.query), x(key)];
      const middle = (from + to) / 2;
      const rise = key === drawn.query ? 18 : Math.min(height - 14, 14 + Math.abs(from - to) / 3);
      context.globalAlpha = 0.25 + 0.75 * Math.sqrt(weight);
      context.lineWidth = 0.5 + 4 * weight;
      context.beginPath();
      context.moveTo(key === drawn.query ? from - 5 : from, ground);
      context.quadraticCurveTo(middle, ground - 2 * rise + 14, key === drawn.query ? to + 5 : to, ground);
      context.stroke();
      context.beginPath();
      context.arc(to, ground, 1.5 + 2.5 * weight, 0, 7);
      context.fill();
    }
    context.globalAlpha = 1;
    context.fillStyle = theme.ink;
    context.fillRect(x(drawn.query) - 1.5, ground - 5, 3, 10);
  }
}

const GAP = 3;
const GUTTER = { left: 34, top: 18 };

/** One small map for every head, in rows of a layer each or in the order of a score. */
class Atlas {
  readonly element: HTMLElement;
  private readonly canvas = h("canvas", { attributes: { tabindex: 0, role: "img" } });
  private readonly status = h("div", { class: "loupe-status", attributes: { "aria-live": "polite" } });
  private readonly frame = h("div", { class: "loupe-atlas" });
  private order: number[]; // numbers of heads, counted through all layers, in the order of drawing
  private sorted = "";
  private scores: { names: string[]; values: NumberArray } | null = null;
  private side = 0;
  private scale: ScaleName = "sqrt";
  private marked = 0;
  private picture: OffscreenCanvas | null = null;
  private largest: Uint8Array;

  constructor(private readonly context: Context, private readonly payload: Payload) {
    const { layers, heads, atlas } = payload;
    const count = layers.length * heads;
    const area = atlas.shape[2] ** 2;
    this.order = Array.from({ length: count }, (_, i) => i);
    this.largest = Uint8Array.from(this.order, (i) => {
      let most = 0;
      for (let k = i * area; k < (i + 1) * area; k++) most = Math.max(most, atlas.data[k]);
      return most;
    });
    const scales = [["sqrt", "square root"], ["linear", "linear"], ["log", "log"]] as const;
    const sorts = [["", "layer and head"], ...payload.scores.map((name) => [name, name.replaceAll("_", " ")] as const)] as const;
    const tools = h(
      "div",
      { class: "loupe-tools" },
      choice("order", sorts, "", (name) => void this.sort(name)),
      choice("scale", scales, this.scale, (name) => {
        this.scale = name as ScaleName;
        this.picture = null;
        this.paint();
      }),
      button("◀", () => this.step(-1), "The head before"),
      button("▶", () => this.step(1), "The next head"),
    );
    this.frame.append(this.canvas);
    this.element = h("div", {}, tools, this.frame, this.status);
    this.listen();
  }

  mark(layer: number, head: number): void {
    this.marked = this.payload.layers.indexOf(layer) * this.payload.heads + head;
    this.paint();
    fill(this.status, this.describe(this.marked));
    const [x, y] = this.corner(this.order.indexOf(this.marked));
    const { frame, side } = this;
    if (y < frame.scrollTop) frame.scrollTop = y - GUTTER.top;
    else if (y + side > frame.scrollTop + frame.clientHeight) frame.scrollTop = y + side - frame.clientHeight + GAP;
    if (x < frame.scrollLeft) frame.scrollLeft = x - GUTTER.left;
    else if (x + side > frame.scrollLeft + frame.clientWidth) frame.scrollLeft = x + side - frame.clientWidth + GAP;
  }

  private describe(number_: number): string {
    const { layers, heads, groups } = this.payload;
    const head = number_ % heads;
    const shared = groups < heads ? `, key/value head ${kvOf(this.payload, head)}` : "";
    const most = `largest ≈ ${number((this.largest[number_] / 255) ** 2)}`;
    const score = this.sorted && this.scores ? `, ${this.sorted.replaceAll("_", " ")} ${number(this.score(number_))}` : "";
    return `Layer ${layers[Math.floor(number_ / heads)]}, head ${head}${shared}: ${most}${score}`;
  }

  private score(number_: number): number {
    const { names, values } = this.scores!;
    const count = this.order.length;
    return values.data[names.indexOf(this.sorted) * count + number_];
  }

  private async sort(name: string): Promise<void> {
    this.sorted = name;
    const natural = this.order.map((_, i) => i);
    if (name) {
      fill(this.status, "measuring the heads …");
      try {
        this.scores ??= await this.context.ask("scores");
      } catch (error) {
        fill(this.status, error instanceof Error ? error.message : String(error));
        return;
      }
      const value = (i: number) => (Number.isNaN(this.score(i)) ? -Infinity : this.score(i));
      natural.sort((a, b) => value(b) - value(a) || a - b);
    }
    this.order = natural;
    this.picture = null;
    this.paint();
    fill(this.status, name ? `The highest ${name.replaceAll("_", " ")}: ${this.describe(natural[0])}` : this.describe(this.marked));
  }

  private step(by: number): void {
    const at = this.order.indexOf(this.marked) + by;
    if (at >= 0 && at < this.order.length) this.choose(this.order[at]);
  }

  private choose(number_: number): void {
    const { layers, heads } = this.payload;
    this.context.select({ layer: layers[Math.floor(number_ / heads)], head: number_ % heads });
  }

  /** Between groups of heads that share keys there is a wider gap. */
  private corner(at: number): [number, number] {
    const { heads, groups } = this.payload;
    const column = at % heads;
    const between = this.sorted || groups === heads || groups === 1 ? 0 : Math.floor(column / (heads / groups)) * 4;
    return [GUTTER.left + column * (this.side + GAP) + between, GUTTER.top + Math.floor(at / heads) * (this.side + GAP)];
  }

  private resize(): boolean {
    const { heads, groups, layers } = this.payload;
    const room = this.element.clientWidth - GUTTER.left - 4 * groups - 16;
    const side = Math.max(18, Math.min(96, Math.floor(room / heads) - GAP));
    const known = side === this.side;
    this.side = side;
    const ratio = devicePixelRatio || 1;
    const [width, height] = [this.corner(heads - 1)[0] + side + 2, GUTTER.top + layers.length * (side + GAP) + 2];
    if (known && this.canvas.width === Math.round(width * ratio)) return false;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    this.picture = null;
    return true;
  }

  private paint(): void {
    if (!this.element.isConnected || !this.element.clientWidth) return;
    this.resize();
    const { canvas, side, payload } = this;
    const theme = themeOf(this.element);
    const ratio = devicePixelRatio || 1;
    this.picture ??= this.pictured(theme.dark, theme.masked, ratio);
    const context = canvas.getContext("2d")!;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(this.picture, 0, 0);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.font = theme.font;
    context.fillStyle = theme.faint;
    context.textBaseline = "middle";
    if (!this.sorted) {
      context.textAlign = "right";
      const tall = Math.max(1, Math.ceil(14 / (side + GAP)));
      for (let i = 0; i < payload.layers.length; i += tall) context.fillText(`L${payload.layers[i]}`, GUTTER.left - 6, this.corner(i * payload.heads)[1] + side / 2);
      context.textAlign = "center";
      const wide = Math.max(1, Math.ceil(20 / (side + GAP)));
      for (let k = 0; k < payload.heads; k += wide) context.fillText(String(k), this.corner(k)[0] + side / 2, GUTTER.top / 2);
    }
    const [x, y] = this.corner(this.order.indexOf(this.marked));
    context.lineWidth = 2;
    context.strokeStyle = theme.accent;
    context.strokeRect(x - 1, y - 1, side + 2, side + 2);
    set(canvas, "aria-label", `Small attention maps of ${payload.layers.length} layers with ${payload.heads} heads each. ${this.describe(this.marked)}. Arrow keys choose a head.`);
  }

  /** All maps; of the cells under a pixel the largest counts. */
  private pictured(dark: boolean, masked: string, ratio: number): OffscreenCanvas {
    const { canvas, payload } = this;
    const n = payload.atlas.shape[2];
    const pixels = Math.round(this.side * ratio);
    const codes = payload.atlas.data as Uint8Array;
    const cuts = edges(0, payload.length, n);
    const scale = scaleOver(0, 1, false, this.scale);
    const table = colours("viridis", dark);
    const colour = Uint32Array.from({ length: 256 }, (_, code) => colourOf(scale, table, (code / 255) ** 2));
    const from = Int32Array.from({ length: pixels }, (_, p) => Math.floor((p * n) / pixels));
    const to = Int32Array.from({ length: pixels }, (_, p) => Math.max(from[p] + 1, Math.ceil(((p + 1) * n) / pixels)));
    const layer = new OffscreenCanvas(canvas.width, canvas.height);
    const context = layer.getContext("2d")!;
    const image = context.createImageData(pixels, pixels);
    const out = new Uint32Array(image.data.buffer);
    const small = new OffscreenCanvas(pixels, pixels);
    const smallContext = small.getContext("2d")!;
    context.fillStyle = masked;
    for (const [at, number_] of this.order.entries()) {
      const base = number_ * n * n;
      for (let y = 0; y < pixels; y++) {
        const last = cuts[to[y]] - 1;
        for (let x = 0; x < pixels; x++) {
          if (cuts[from[x]] > last) {
            out[y * pixels + x] = 0;
            continue;
          }
          let most = 0;
          for (let i = from[y]; i < to[y]; i++)
            for (let j = from[x]; j < to[x]; j++) {
              const code = codes[base + i * n + j];
              if (code > most) most = code;
            }
          out[y * pixels + x] = colour[most];
        }
      }
      const [left, top] = this.corner(at).map((part) => Math.round(part * ratio));
      context.fillRect(left, top, pixels, pixels);
      smallContext.putImageData(image, 0, 0);
      context.drawImage(small, left, top);
    }
    return layer;
  }

  private under(event: MouseEvent): number | null {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const { heads } = this.payload;
    const row = Math.floor((y - GUTTER.top) / (this.side + GAP));
    if (row < 0 || row * heads >= this.order.length) return null;
    for (let column = 0; column < heads; column++) {
      const [left] = this.corner(column);
      if (x >= left && x < left + this.side + GAP) return this.order[row * heads + column] ?? null;
    }
    return null;
  }

  private listen(): void {
    const { canvas, context } = this;
    const { signal } = context;
    canvas.addEventListener("click", (event) => {
      const found = this.under(event);
      if (found !== null) this.choose(found);
    }, { signal });
    canvas.addEventListener("pointermove", (event) => {
      const found = this.under(event);
      if (found !== null) fill(this.status, this.describe(found));
    }, { signal });
    canvas.addEventListener("pointerleave", () => fill(this.status, this.describe(this.marked)), { signal });
    canvas.addEventListener("keydown", (event) => {
      const { heads } = this.payload;
      const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -heads, ArrowDown: heads, PageUp: -heads, PageDown: heads }[event.key];
      if (by !== undefined) this.step(by);
      else if (event.key === "Home") this.choose(this.order[0]);
      else if (event.key === "End") this.choose(this.order[this.order.length - 1]);
      else if (event.key === "Escape") canvas.blur();
      else return;
      event.preventDefault();
      event.stopPropagation();
    }, { signal });
    onTheme(() => {
      this.picture = null;
      this.paint();
    }, signal);
    const observer = new ResizeObserver(() => this.paint());
    observer.observe(this.element);
    signal.addEventListener("abort", () => observer.disconnect());
  }
}

