// Every head's map in one atlas, one of them by zooming, and what the chosen token reads.

import { Atlas, GAP, GUTTER, paintCodes } from "./atlas";
import { cleared, resized } from "./canvas";
import { SCALES, type ScaleName, colourOf, colours, scaleOver } from "./colour";
import { type Context, type Draw, empty } from "./context";
import { button, choice, fill, h, number, quoted, sentence, share, visible } from "./dom";
import { type Cells, type Window, whole } from "./grid";
import { Heatmap, MOST_CELLS, type Pool, type Source, exactly, matrix } from "./heatmap";
import { type Theme, onTheme, themeOf } from "./theme";
import type { NumberArray } from "./wire";

interface Payload {
  layers: number[];
  heads: number;
  groups: number;
  length: number;
  tokens: string[];
  /** [layers, heads, n, n]: 254 times the square root of each cell's largest probability, 255 for NaN. */
  atlas: NumberArray;
  /** Where its cells begin, and the end. */
  cuts: NumberArray;
  /** Whether single cells can be asked for; if not, what to capture. */
  detail: boolean;
  sentence: string | null;
  code: string | null;
  scores: string[];
}

const MOST_READ = 12;

// As `llama_loupe/views/attention.py` codes them.
const NAN = 255;
const probability = (code: number) => (code / 254) ** 2;

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
  if (payload.sentence) {
    const note = h("div");
    empty(note, { sentence: payload.sentence, code: payload.code });
    right.append(note);
  }
  right.append(reads.element);
  const atlas = new Heads(context, payload);
  left.append(atlas.element);

  let seen = "";
  const changed = () => {
    fill(name, `Layer ${layer}, head ${head}${payload.groups < payload.heads ? `, which reads key/value head ${kvOf(payload, head)}` : ""}`);
    if (seen !== `${layer}.${head}`) map.change(maps.source(layer, head), { label: `Attention of layer ${layer}, head ${head}` });
    seen = `${layer}.${head}`;
    const { token } = selection.value;
    if (token !== null && token < payload.length) map.point(token, map.column ?? token);
    atlas.point(layer, head);
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
    if (!payload.detail) return this.pooled(layer, head);
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

  /** What the forward pass made of it. */
  private async pooled(layer: number, head: number): Promise<Cells> {
    const tile = await this.context.ask("pooled", { layer, head });
    return { rows: tile.rows.data, columns: tile.columns.data, values: tile.values.data };
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
    resized(this.element, context.signal, () => this.paint());
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
      if (asked === this.asked) fill(this.title, sentence(error));
      return;
    }
    if (asked !== this.asked) return;
    const broken = Array.from(row).some((weight) => !Number.isFinite(weight));
    const order = Array.from({ length: query + 1 }, (_, key) => key).sort((a, b) => row[b] - row[a] || a - b);
    const found = order.slice(0, MOST_READ).filter((key) => row[key] > 0).map((key): [number, number] => [key, row[key]]);
    const sum = found.reduce((total, [, weight]) => total + weight, 0);
    fill(this.title, `Token ${query} ${quoted(payload.tokens[query])} reads, in layer ${layer}, head ${head} (${broken ? "NaN" : `these are ${number(Math.min(1, sum) * 100)} %`}):`);
    fill(
      this.list,
      ...found.map(([key, weight]) =>
        h("li", {}, share(
          weight,
          () => this.context.select({ token: key }),
          h("span", { class: "loupe-where" }, key),
          h("span", { class: "loupe-token" }, visible(payload.tokens[key], 24)),
          h("span", {}, exactly(Number(weight.toPrecision(4)))),
        )),
      ),
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
    const context = cleared(canvas, width, height);
    const theme = themeOf(this.element);
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

/** One small map for every head, in rows of a layer each or in the order of a score. */
class Heads extends Atlas {
  private readonly largest: Uint8Array;
  private order: number[]; // numbers of heads, counted through all layers, in the order of drawing
  private placed: number[]; // where in it each head is
  private sorted = "";
  private scores: { names: string[]; values: NumberArray } | null = null;
  private scale: ScaleName = "sqrt";

  constructor(context: Context, private readonly payload: Payload) {
    const { layers, heads, atlas } = payload;
    const count = layers.length * heads;
    super(context, count, `Small attention maps of ${layers.length} layers with ${heads} heads each`);
    const area = atlas.shape[2] ** 2;
    this.order = this.placed = Array.from({ length: count }, (_, i) => i);
    this.largest = Uint8Array.from(this.order, (i) => {
      let most = 0;
      for (let k = i * area; k < (i + 1) * area; k++) most = Math.max(most, atlas.data[k]);
      return most;
    });
    const sorts = [["", "layer and head"], ...payload.scores.map((name) => [name, name.replaceAll("_", " ")] as const)] as const;
    fill(
      this.tools,
      choice("order", sorts, "", (name) => void this.sort(name)),
      choice("scale", SCALES, this.scale, (name) => {
        this.scale = name as ScaleName;
        this.paint(true);
      }),
      button("◀", () => this.step(-1), "The head before"),
      button("▶", () => this.step(1), "The next head"),
    );
  }

  point(layer: number, head: number): void {
    this.mark(this.payload.layers.indexOf(layer) * this.payload.heads + head);
  }

  protected describe(at: number): string {
    const { layers, heads, groups } = this.payload;
    const head = at % heads;
    const shared = groups < heads ? `, key/value head ${kvOf(this.payload, head)}` : "";
    const most = this.largest[at] === NAN ? "NaN" : `largest ≈ ${number(Number(probability(this.largest[at]).toPrecision(2)))}`;
    const score = this.sorted && this.scores ? `, ${this.sorted.replaceAll("_", " ")} ${number(this.score(at))}` : "";
    return `Layer ${layers[Math.floor(at / heads)]}, head ${head}${shared}: ${most}${score}`;
  }

  private score(at: number): number {
    const { names, values } = this.scores!;
    return values.data[names.indexOf(this.sorted) * this.count + at];
  }

  private async sort(name: string): Promise<void> {
    this.sorted = name;
    const order = this.order.map((_, i) => i);
    if (name) {
      fill(this.status, "measuring the heads …");
      try {
        this.scores ??= await this.context.ask("scores");
      } catch (error) {
        fill(this.status, sentence(error));
        return;
      }
      const value = (i: number) => (Number.isNaN(this.score(i)) ? -Infinity : this.score(i));
      order.sort((a, b) => value(b) - value(a) || a - b);
    }
    this.order = order;
    this.placed = [];
    for (const [place, at] of order.entries()) this.placed[at] = place;
    this.paint(true);
    fill(this.status, name ? `The highest ${name.replaceAll("_", " ")}: ${this.describe(order[0])}` : this.describe(this.marked));
  }

  protected beside(down: number, across: number): number | undefined {
    const { count, order, payload } = this;
    if (!Number.isFinite(down)) return order[down < 0 ? 0 : count - 1];
    return order[this.placed[this.marked] + Math.sign(down) * payload.heads + across];
  }

  private step(by: number): void {
    const to = this.beside(0, by);
    if (to !== undefined) this.choose(to);
  }

  protected choose(at: number): void {
    const { layers, heads } = this.payload;
    this.context.select({ layer: layers[Math.floor(at / heads)], head: at % heads });
  }

  protected fit(room: number): void {
    const { heads, groups } = this.payload;
    const side = Math.max(10, Math.min(96, Math.floor((room - 4 * groups) / heads) - GAP));
    Object.assign(this.tile, { width: side, height: side });
  }

  /** Between groups of heads that share keys there is a wider gap. */
  protected corner(at: number): [number, number] {
    const { heads, groups } = this.payload;
    const place = this.placed[at];
    const column = place % heads;
    const between = this.sorted || groups === heads || groups === 1 ? 0 : Math.floor(column / (heads / groups)) * 4;
    const step = this.tile.width + GAP;
    return [GUTTER.left + column * step + between, GUTTER.top + Math.floor(place / heads) * step];
  }

  protected paintLabels(brush: CanvasRenderingContext2D): void {
    if (this.sorted) return;
    const { layers, heads } = this.payload;
    const { width } = this.tile;
    brush.textAlign = "right";
    for (let i = 0; i < layers.length; i += Math.ceil(14 / (width + GAP))) brush.fillText(`L${layers[i]}`, GUTTER.left - 6, this.corner(i * heads)[1] + width / 2);
    brush.textAlign = "center";
    for (let k = 0; k < heads; k += Math.ceil(20 / (width + GAP))) brush.fillText(String(k), this.corner(k)[0] + width / 2, GUTTER.top / 2);
  }

  protected paintTile(brush: OffscreenCanvasRenderingContext2D, at: number, theme: Theme): void {
    const { atlas, cuts: { data: cuts } } = this.payload;
    const n = atlas.shape[2];
    const { width } = this.tile;
    const codes = (atlas.data as Uint8Array).subarray(at * n * n, (at + 1) * n * n);
    paintCodes(brush, [...this.corner(at), width, width], theme.masked, codes, [n, n], this.colours(theme.dark), (row, column) => cuts[column] >= cuts[row + 1]);
  }

  private colours(dark: boolean): Uint32Array {
    const scale = scaleOver(0, 1, false, this.scale);
    const table = colours("viridis", dark);
    return Uint32Array.from({ length: 256 }, (_, code) => colourOf(scale, table, code === NAN ? Number.NaN : probability(code)));
  }
}
