// Every weight in one atlas, one of them by zooming, its histogram and its singular values.

import { type ScaleName, BAD, BAD_CSS, colourOf, colours, scaleOver } from "./colour";
import type { Context, Draw } from "./context";
import { type Child, button, choice, fill, h, number, set, visible } from "./dom";
import { ticks } from "./grid";
import { Heatmap, exactly } from "./heatmap";
import { onTheme, themeOf } from "./theme";
import { Tiles } from "./tiles";
import type { NumberArray } from "./wire";

interface Weight {
  name: string;
  shape: number[];
  dtype: string;
}

/** What was found of a weight. */
interface Look {
  /** Small cells: 254 times the square root of the part of `most` that is the largest in them. */
  codes: NumberArray;
  most: NumberArray;
  /** Mean, deviation, minimum, maximum, norm; how many are zero, NaN, infinite. */
  numbers: NumberArray;
  histogram: NumberArray;
  ends: NumberArray;
  place: string;
  parts: { window: [number, number, number, number]; devices: string }[];
}

interface Payload {
  weights: Weight[];
  looks: Look[];
  headDim: number;
  group: number;
}

export const SCALES = [["linear", "linear"], ["sqrt", "square root"], ["log", "log"]] as const;
const BROKEN = 255; // the code of a cell that holds NaN or infinity

const sized = ({ shape, dtype }: Weight) => `${shape.map((n) => n.toLocaleString("en")).join(" × ")} ${dtype}`;
const message = (error: unknown) => (error instanceof Error ? error.message : String(error));

export const weights: Draw = (element, context) => {
  const payload: Payload = context.payload;
  const { selection, signal } = context;
  const shapeOf = (at: number): [number, number] => {
    const { shape } = payload.weights[at];
    return shape.length === 1 ? [1, shape[0]] : [shape[0], shape[1]];
  };
  const atlas = new Atlas(context, payload, (at) => choose(at), (at) => at === chosen && told());
  const start = atlas.near(selection.value.layer ?? 0, "self_attn.q_proj");
  let chosen = start;

  const title = h("div", { class: "loupe-title" });
  const facts = h("dl", { class: "loupe-numbers" });
  const note = h("div", { class: "loupe-where" });
  const parts = h("div", { class: "loupe-parts" });
  const tiles = new Tiles(context);
  const source = (at: number) => {
    const [height, width] = shapeOf(at);
    const { name } = payload.weights[at];
    return {
      height,
      width,
      rowName: "rows",
      columnName: "columns",
      cells: (...[window, rows, columns, pool]: Parameters<ConstructorParameters<typeof Heatmap>[0]["cells"]>) =>
        tiles.cells({ name }, height, width, window, rows, columns, pool),
    };
  };
  const map = new Heatmap(source(chosen), {
    value: "weight",
    label: "Weight",
    diverging: true,
    pools: ["max", "mean"],
    maxHeight: 420,
    signal,
    chosen(row, column) {
      const head = headAt(row, column);
      context.select(head === null ? { layer: atlas.layerOf(chosen) ?? selection.value.layer } : { layer: atlas.layerOf(chosen), head });
    },
  });
  const histogram = new Plot("Histogram", signal);
  const counts = choice("counts", [["log", "log"], ["linear", "linear"]], "log", () => told());
  const spectrum = new Plot("Singular values", signal);
  const compute = button("Singular values", () => void decompose(), "Compute the singular values of this matrix");
  const found = new Map<number, ArrayLike<number>>();
  const right = h(
    "section",
    { attributes: { "aria-label": "One weight" } },
    title,
    facts,
    map.element,
    note,
    parts,
  );
  const plots = h(
    "section",
    { class: "loupe-plots", attributes: { "aria-label": "Its histogram and singular values" } },
    h("div", {}, h("div", { class: "loupe-tools" }, h("b", {}, "Histogram"), counts), histogram.element),
    h("div", {}, h("div", { class: "loupe-tools" }, compute), spectrum.element),
  );
  element.append(h("section", { attributes: { "aria-label": "All weights" } }, atlas.element), right, plots);

  /** Which head reads or writes an entry, and for keys and values the first that reads it. */
  function headAt(row: number, column: number): number | null {
    const kind = atlas.kindOf(chosen);
    const at = { q_proj: row, k_proj: row, v_proj: row, o_proj: column }[kind.replace("self_attn.", "")];
    if (at === undefined) return null;
    const head = Math.floor(at / payload.headDim);
    return /[kv]_proj/.test(kind) ? head * payload.group : head;
  }

  function choose(at: number): void {
    const layer = atlas.layerOf(at);
    const moved = at !== chosen;
    chosen = at;
    if (layer !== null && layer !== selection.value.layer) context.select({ layer });
    if (moved) changed();
  }

  function changed(): void {
    const weight = payload.weights[chosen];
    fill(title, visible(weight.name));
    map.change(source(chosen), { label: weight.name });
    const heads = { q_proj: "Rows", k_proj: "Rows", v_proj: "Rows", o_proj: "Columns" }[atlas.kindOf(chosen).replace("self_attn.", "")];
    const whose = heads && `${heads} ${payload.headDim}h to ${payload.headDim}h + ${payload.headDim - 1} are of ${/[kv]_proj/.test(weight.name) ? "key/value " : ""}head h. `;
    fill(note, `A row is an output, a column an input. ${whose ?? ""}A cell of several entries shows the one of the largest magnitude, with its sign.`);
    atlas.mark(chosen);
    told();
    plotSingular();
  }

  /** What was found of the chosen weight; again when it comes. */
  function told(): void {
    const weight = payload.weights[chosen];
    const look = atlas.looks.get(chosen);
    fill(facts, fact("shape", sized(weight)), ...(look ? factsOf(look) : [fact("", atlas.failed.get(chosen) ?? "looking …")]));
    histogram.element.hidden = !look;
    if (look) {
      const { data } = look.histogram;
      const [low, high] = look.ends.data;
      const zero = -low / (high - low);
      const edge = (i: number) => low + ((high - low) * i) / data.length;
      histogram.show({
        values: data,
        bars: true,
        log: counts.querySelector("select")!.value === "log",
        marks: [[0, number(low)], [1, number(high)], ...(zero > 0.25 && zero < 0.75 ? [[zero, "0"] as const] : [])],
        describe: (i) => `${number(edge(i))} to ${number(edge(i + 1))}: ${data[i].toLocaleString("en")} entries`,
      });
    }
    const rows = (look?.parts ?? []).map(({ window: [top, bottom, left, right], devices }) =>
      button(`${visible(devices)}: rows ${top}–${bottom - 1}, columns ${left}–${right - 1}`, () => map.show({ top, bottom, left, right }), `Show the part of ${devices}`),
    );
    fill(parts, look && rows.length > 0 && `${visible(look.place, 400)}. `, ...rows);
  }

  async function decompose(): Promise<void> {
    const at = chosen;
    const [m, n] = shapeOf(at);
    const work = (4 * m * n * Math.min(m, n)) / 1e9;
    fill(spectrum.status, `computing, about ${number(Math.max(1, Math.round(work)))} billion operations …`);
    try {
      const answer = await context.ask("singular_values", { name: payload.weights[at].name });
      found.set(at, answer.values.data);
    } catch (error) {
      if (at === chosen) fill(spectrum.status, message(error));
      return;
    }
    if (at === chosen) plotSingular();
  }

  function plotSingular(): void {
    const values = found.get(chosen);
    compute.disabled = !!values || shapeOf(chosen)[0] === 1;
    spectrum.hide();
    if (!values) return;
    const last = values.length - 1;
    spectrum.show({
      values,
      bars: false,
      log: true,
      marks: [[0, "1"], [1, String(values.length)]],
      describe: (i) => `singular value ${i + 1} of ${values.length}: ${exactly(values[i])}`,
    });
    fill(spectrum.status, `largest ${exactly(values[0])}, smallest ${exactly(values[last])}, effective rank ${number(effectiveRank(values))} of ${values.length}`);
  }

  selection.on((value, before) => {
    if (value.layer === null || value.layer === before.layer || value.layer === atlas.layerOf(chosen)) return;
    const next = atlas.near(value.layer, atlas.kindOf(chosen));
    if (atlas.layerOf(next) !== value.layer) return;
    chosen = next;
    changed();
  }, signal);
  changed();
};

/** The exponential of the entropy of the singular values, as shares of their sum (Roy and Vetterli, 2007). */
export function effectiveRank(values: ArrayLike<number>): number {
  const shares = Array.from(values);
  const sum = shares.reduce((total, value) => total + value, 0);
  if (!(sum > 0)) return 0;
  return Math.exp(-shares.reduce((total, value) => total + (value > 0 ? (value / sum) * Math.log(value / sum) : 0), 0));
}

export function fact(name: string, value: string): HTMLElement {
  return h("div", {}, h("dt", {}, name), h("dd", {}, visible(value)));
}

function factsOf({ numbers, place, parts }: Look): Child[] {
  const [mean, std, low, high, norm, zeros, nans, infinities] = numbers.data;
  const count = (value: number) => value.toLocaleString("en");
  return [
    fact("mean", number(mean)),
    fact("std", number(std)),
    fact("min", exactly(low)),
    fact("max", exactly(high)),
    fact("norm", number(norm)),
    zeros > 0 && fact("zeros", count(zeros)),
    fact("NaN", count(nans)),
    infinities > 0 && fact("infinite", count(infinities)),
    !parts.length && fact("where", place),
  ];
}

const GAP = 4;
const GUTTER = { left: 30, top: 18 };
const APART = 18; // pixels between what is in no layer and the layers
const SHORT: Record<string, string> = { input_layernorm: "norm 1", post_attention_layernorm: "norm 2", embed_tokens: "embed" };

interface Spot {
  row: number;
  column: number;
  layer: number | null;
  kind: string;
}

/** A small picture of each weight, layers down and kinds across; those in sight are asked for. */
class Atlas {
  readonly element: HTMLElement;
  readonly looks = new Map<number, Look>();
  readonly failed = new Map<number, string>();
  private readonly spots: Spot[];
  private readonly kinds: string[];
  private readonly rows: number;
  private readonly apart: number; // how many are in no layer: they are row 0
  private readonly canvas = h("canvas", { attributes: { tabindex: 0, role: "img" } });
  private readonly status = h("div", { class: "loupe-status", attributes: { "aria-live": "polite" } });
  private readonly frame = h("div", { class: "loupe-atlas" });
  private readonly progress = h("span", { class: "loupe-where" });
  private picture: OffscreenCanvas | null = null;
  private tile = { width: 0, height: 0 };
  private scale: ScaleName = "linear";
  private shared = false;
  private marked = 0;
  private seen = false;
  private asking = false;

  constructor(
    private readonly context: Context,
    private readonly payload: Payload,
    private readonly choose: (at: number) => void,
    private readonly came: (at: number) => void,
  ) {
    const { weights } = payload;
    const parsed = weights.map(({ name }) => {
      const match = name.match(/^layers\.(\d+)\.(.*)$/);
      const kind = (match ? match[2] : name).replace(/\.weight$/, "");
      return { layer: match ? Number(match[1]) : null, kind };
    });
    const layers = [...new Set(parsed.map(({ layer }) => layer).filter((layer) => layer !== null))];
    this.kinds = [...new Set(parsed.filter(({ layer }) => layer !== null).map(({ kind }) => kind))];
    this.apart = parsed.filter(({ layer }) => layer === null).length;
    let outside = 0;
    this.spots = parsed.map(({ layer, kind }) =>
      layer === null
        ? { row: 0, column: outside++, layer, kind }
        : { row: layers.indexOf(layer) + 1, column: this.kinds.indexOf(kind), layer, kind },
    );
    this.rows = layers.length + 1;
    payload.looks.forEach((look, at) => this.looks.set(at, look));
    const whose = [["own", "each its own"], ["shared", "one for all"]] as const;
    const again = () => {
      this.picture = null;
      this.paint();
    };
    const tools = h(
      "div",
      { class: "loupe-tools" },
      choice("range", whose, "own", (value) => {
        this.shared = value === "shared";
        again();
      }),
      choice("scale", SCALES, this.scale, (value) => {
        this.scale = value as ScaleName;
        again();
      }),
      this.progress,
    );
    this.frame.append(this.canvas);
    this.element = h("div", {}, tools, this.frame, this.status);
    this.listen(again);
  }

  layerOf(at: number): number | null {
    return this.spots[at].layer;
  }

  kindOf(at: number): string {
    return this.spots[at].kind;
  }

  /** The weight of that kind in a layer, or what comes nearest. */
  near(layer: number, kind: string): number {
    const found = this.spots.findIndex((spot) => spot.layer === layer && spot.kind === kind);
    return found >= 0 ? found : Math.max(0, this.spots.findIndex((spot) => spot.layer === layer || spot.kind === kind));
  }

  mark(at: number): void {
    this.marked = at;
    this.paint();
    fill(this.status, this.describe(at));
    const [, y] = this.corner(at);
    const { frame, tile } = this;
    if (y < frame.scrollTop) frame.scrollTop = y - GUTTER.top;
    else if (y + tile.height > frame.scrollTop + frame.clientHeight) frame.scrollTop = y + tile.height - frame.clientHeight + GAP;
    void this.fetch();
  }

  private describe(at: number): string {
    const weight = this.payload.weights[at];
    const look = this.looks.get(at);
    const name = `${visible(weight.name)}, ${sized(weight)}`;
    if (!look) return `${name}: ${this.failed.get(at) ?? "not looked at yet"}`;
    const [mean, std, low, high, , , nans, infinities] = look.numbers.data;
    const bad = infinities ? `, ${infinities.toLocaleString("en")} infinite` : "";
    return `${name}: mean ${number(mean)}, std ${number(std)}, ${number(low)} to ${number(high)}, ${nans.toLocaleString("en")} NaN${bad}`;
  }

  /** One at a time, so that a map which somebody waits for comes in between. */
  private async fetch(): Promise<void> {
    if (this.asking) return;
    this.asking = true;
    for (let at = this.next(); at !== null && !this.context.signal.aborted; at = this.next()) {
      try {
        this.looks.set(at, await this.context.ask("look", { name: this.payload.weights[at].name }));
      } catch (error) {
        this.failed.set(at, message(error));
      }
      this.came(at);
      const most = this.looks.get(at)?.most.data[0] ?? 0;
      if (this.shared && most >= this.most()) this.picture = null;
      else if (this.picture) this.paintTile(at);
      this.paint();
      if (at === this.marked) fill(this.status, this.describe(at));
    }
    this.asking = false;
  }

  /** What is to be asked for: the chosen one, then what is in sight. */
  private next(): number | null {
    const lacks = (at: number) => !this.looks.has(at) && !this.failed.has(at);
    const { scrollTop, clientHeight } = this.frame;
    const waiting = this.spots.map((_, at) => at).filter((at) => {
      const y = this.corner(at)[1];
      return lacks(at) && y + this.tile.height > scrollTop && y < scrollTop + clientHeight;
    });
    const total = this.spots.length;
    fill(this.progress, this.looks.size < total && `${this.looks.size.toLocaleString("en")} of ${total.toLocaleString("en")} looked at${waiting.length ? " …" : ""}`);
    if (lacks(this.marked)) return this.marked;
    return this.seen && waiting.length ? waiting[0] : null;
  }

  private most(): number {
    return Math.max(...[...this.looks.values()].map((look) => look.most.data[0]));
  }

  private corner(at: number): [number, number] {
    const { row, column } = this.spots[at];
    const { width, height } = this.tile;
    const down = row && this.apart ? GUTTER.top + APART : 0;
    return [GUTTER.left + column * (width + GAP), GUTTER.top + (this.apart ? row : row - 1) * (height + GAP) + down];
  }

  private resize(): void {
    const across = Math.max(this.kinds.length, this.apart);
    const room = this.element.clientWidth - GUTTER.left - 16;
    const width = Math.max(20, Math.min(96, Math.floor(room / across) - GAP));
    const height = Math.min(width, Math.max(26, Math.floor(420 / this.rows)));
    const ratio = devicePixelRatio || 1;
    this.tile = { width, height };
    const bottom = Math.max(...this.spots.map((_, at) => this.corner(at)[1])) + height + GAP;
    const right = GUTTER.left + across * (width + GAP);
    if (this.canvas.width === Math.round(right * ratio) && this.canvas.height === Math.round(bottom * ratio)) return;
    this.canvas.width = Math.round(right * ratio);
    this.canvas.height = Math.round(bottom * ratio);
    this.canvas.style.width = `${right}px`;
    this.canvas.style.height = `${bottom}px`;
    this.picture = null;
  }

  private paint(): void {
    if (!this.element.isConnected || !this.element.clientWidth) return;
    this.resize();
    const { canvas, tile, kinds, spots } = this;
    if (!this.picture) {
      this.picture = new OffscreenCanvas(canvas.width, canvas.height);
      spots.forEach((_, at) => this.paintTile(at));
    }
    const theme = themeOf(this.element);
    const ratio = devicePixelRatio || 1;
    const context = canvas.getContext("2d")!;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(this.picture, 0, 0);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.font = theme.font;
    context.fillStyle = theme.faint;
    context.textBaseline = "middle";
    context.textAlign = "center";
    const label = (kind: string, x: number, y: number) => {
      const last = kind.split(".").pop()!;
      context.fillText(visible(SHORT[last] ?? last.replace(/_proj$/, ""), 12), x + tile.width / 2, y - GUTTER.top / 2, tile.width + GAP);
    };
    for (const [at, { row, kind }] of spots.entries()) if (!row) label(kind, ...this.corner(at));
    const first = spots.findIndex(({ row }) => row === 1);
    for (const kind of kinds) label(kind, this.corner(spots.findIndex((spot) => spot.row && spot.kind === kind))[0], this.corner(first)[1]);
    context.textAlign = "right";
    for (const [at, { column, layer }] of spots.entries())
      if (!column && layer !== null) context.fillText(`L${layer}`, GUTTER.left - 5, this.corner(at)[1] + tile.height / 2);
    const [x, y] = this.corner(this.marked);
    context.lineWidth = 2;
    context.strokeStyle = theme.accent;
    context.strokeRect(x - 2, y - 2, tile.width + 4, tile.height + 4);
    set(canvas, "aria-label", `Small pictures of ${spots.length} weights. ${this.describe(this.marked)}. Arrow keys choose a weight.`);
  }

  /** Of the cells under a pixel the largest counts; a vector is a strip. */
  private paintTile(at: number): void {
    const theme = themeOf(this.element);
    const ratio = devicePixelRatio || 1;
    const context = this.picture!.getContext("2d")!;
    const look = this.looks.get(at);
    const strip = this.payload.weights[at].shape.length === 1;
    const [x, y] = this.corner(at);
    const wide = Math.round(this.tile.width * ratio);
    const tall = Math.round((strip ? Math.min(this.tile.height, 12) : this.tile.height) * ratio);
    const [left, top] = [Math.round(x * ratio), Math.round(y * ratio + (strip ? (this.tile.height * ratio - tall) / 2 : 0))];
    if (!look) {
      context.fillStyle = theme.masked;
      context.fillRect(left, top, wide, tall);
      return;
    }
    const { data, shape } = look.codes;
    const most = look.most.data[0];
    const scale = scaleOver(0, (this.shared ? this.most() : most) || 1, false, this.scale);
    const table = colours("viridis", theme.dark);
    const colour = Uint32Array.from({ length: 256 }, (_, code) => (code === BROKEN ? BAD : colourOf(scale, table, most * (code / (BROKEN - 1)) ** 2)));
    const image = context.createImageData(wide, tall);
    const pixels = new Uint32Array(image.data.buffer);
    const span = (p: number, size: number, cells: number) => {
      const from = Math.floor((p * cells) / size);
      return [from, Math.max(from + 1, Math.floor(((p + 1) * cells) / size))];
    };
    for (let row = 0; row < tall; row++) {
      const [first, last] = span(row, tall, shape[0]);
      for (let column = 0; column < wide; column++) {
        const [from, to] = span(column, wide, shape[1]);
        let code = 0;
        for (let i = first; i < last; i++) for (let j = from; j < to; j++) code = Math.max(code, data[i * shape[1] + j]);
        pixels[row * wide + column] = colour[code];
      }
    }
    context.putImageData(image, left, top);
    if (!(look.numbers.data[6] + look.numbers.data[7])) return;
    context.lineWidth = 2 * ratio;
    context.strokeStyle = BAD_CSS;
    context.strokeRect(left, top, wide, tall);
  }

  private under(event: MouseEvent): number | null {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const found = this.spots.findIndex((_, at) => {
      const [left, top] = this.corner(at);
      return x >= left && x < left + this.tile.width + GAP && y >= top && y < top + this.tile.height + GAP;
    });
    return found < 0 ? null : found;
  }

  /** The weight so many rows and columns away. */
  private step(down: number, across: number): number | null {
    const { row, column } = this.spots[this.marked];
    const to = Math.max(this.apart ? 0 : 1, Math.min(this.rows - 1, row + down));
    const inRow = this.spots.map((spot, at) => [spot, at] as const).filter(([spot]) => spot.row === to);
    const wanted = Math.min(column + across, Math.max(...inRow.map(([spot]) => spot.column)));
    return inRow.find(([spot]) => spot.column === wanted)?.[1] ?? null;
  }

  private listen(again: () => void): void {
    const { canvas, frame } = this;
    const { signal } = this.context;
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
      const turns: Record<string, [number, number]> = {
        ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-8, 0], PageDown: [8, 0], Home: [-this.rows, 0], End: [this.rows, 0],
      };
      const turn = turns[event.key];
      const to = turn && this.step(...turn);
      if (to !== undefined && to !== null) this.choose(to);
      else if (event.key === "Escape") canvas.blur();
      else if (!turn) return;
      event.preventDefault();
      event.stopPropagation();
    }, { signal });
    frame.addEventListener("scroll", () => void this.fetch(), { signal });
    onTheme(again, signal);
    const observer = new ResizeObserver(() => {
      this.paint();
      void this.fetch();
    });
    observer.observe(this.element);
    const sight = new IntersectionObserver((entries) => {
      this.seen = entries.some((entry) => entry.isIntersecting);
      void this.fetch();
    });
    sight.observe(frame);
    signal.addEventListener("abort", () => {
      observer.disconnect();
      sight.disconnect();
    });
  }
}

interface Drawn {
  values: ArrayLike<number>;
  bars: boolean;
  log: boolean;
  /** Texts under the axis: from 0, its left end, to 1. */
  marks: (readonly [number, string])[];
  describe(index: number): string;
}

const EDGE = { left: 64, right: 12, top: 6, bottom: 20 };
const HEIGHT = 140;
const DECADES = 8; // a line on a log scale goes so many powers of ten down

/** Numbers as bars or as a line; the pointer and the arrow keys read them. */
class Plot {
  readonly element: HTMLElement;
  readonly status = h("div", { class: "loupe-status", attributes: { "aria-live": "polite" } });
  private readonly canvas = h("canvas", { attributes: { tabindex: 0, role: "img" } });
  private drawn: Drawn | null = null;
  private at: number | null = null;

  constructor(private readonly label: string, signal: AbortSignal) {
    const { canvas } = this;
    this.element = h("div", {}, canvas, this.status);
    canvas.hidden = true;
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      const part = (event.clientX - box.left - EDGE.left) / (box.width - EDGE.left - EDGE.right);
      const count = this.drawn?.values.length ?? 0;
      if (part >= 0 && part < 1 && count) this.point(Math.floor(part * count));
    }, { signal });
    canvas.addEventListener("keydown", (event) => {
      const last = (this.drawn?.values.length ?? 0) - 1;
      const at = this.at ?? 0;
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
      if (to === undefined || last < 0) return;
      this.point(Math.max(0, Math.min(last, to)));
      event.preventDefault();
      event.stopPropagation();
    }, { signal });
    onTheme(() => this.paint(), signal);
    const observer = new ResizeObserver(() => this.paint());
    observer.observe(this.element);
    signal.addEventListener("abort", () => observer.disconnect());
  }

  show(drawn: Drawn): void {
    this.drawn = drawn;
    this.at = null;
    this.canvas.hidden = false;
    fill(this.status);
    this.paint();
  }

  hide(): void {
    this.drawn = null;
    this.canvas.hidden = true;
    fill(this.status);
  }

  private point(at: number): void {
    this.at = at;
    fill(this.status, this.drawn!.describe(at));
    this.paint();
  }

  private paint(): void {
    const { canvas, drawn } = this;
    const width = this.element.clientWidth;
    if (!drawn || !width || !this.element.isConnected) return;
    const ratio = devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = HEIGHT * ratio;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${HEIGHT}px`;
    const theme = themeOf(this.element);
    const context = canvas.getContext("2d")!;
    context.scale(ratio, ratio);
    const { values, bars, log } = drawn;
    const inner = { width: width - EDGE.left - EDGE.right, height: HEIGHT - EDGE.top - EDGE.bottom };
    const ground = EDGE.top + inner.height;
    const list = Array.from(values);
    const most = Math.max(...list) || 1;
    // Bars stand on zero entries, one entry being a tenth of a power of ten above it.
    const low = bars ? 0.5 : Math.max(Math.min(...list.filter((value) => value > 0), most), most * 10 ** -DECADES) / 1.5;
    const rise = (value: number) => (log ? Math.max(0, Math.log(value / low) / Math.log(most / low)) : value / most) * inner.height;
    context.font = theme.font;
    context.textBaseline = "middle";
    context.textAlign = "right";
    const levels = log
      ? Array.from({ length: 40 }, (_, k) => 10 ** (k - 20)).filter((level) => level >= low && level <= most)
      : ticks(0, Math.max(1, most), 4);
    let before = Infinity;
    for (const level of levels) {
      const y = Math.round(ground - rise(level)) + 0.5;
      context.fillStyle = theme.line;
      context.fillRect(EDGE.left, y, inner.width, 0.5);
      if (before - y < 16) continue;
      before = y;
      context.fillStyle = theme.faint;
      context.fillText(number(level), EDGE.left - 6, Math.max(8, y), EDGE.left - 8);
    }
    const step = inner.width / list.length;
    context.fillStyle = context.strokeStyle = theme.accent;
    if (bars) {
      for (const [i, value] of list.entries())
        if (value > 0) context.fillRect(EDGE.left + i * step, ground - Math.max(1.5, rise(value)), Math.max(1, step - 1), Math.max(1.5, rise(value)));
    } else {
      context.lineWidth = 1.5;
      context.beginPath();
      list.forEach((value, i) => context.lineTo(EDGE.left + (i + 0.5) * step, ground - rise(value)));
      context.stroke();
    }
    if (this.at !== null) {
      context.fillStyle = theme.ink;
      const x = EDGE.left + (this.at + 0.5) * step;
      context.fillRect(x - 0.5, EDGE.top, 1, inner.height);
      context.fillRect(x - 2.5, ground - rise(list[this.at]) - 2.5, 5, 5);
    }
    context.fillStyle = theme.line;
    context.fillRect(EDGE.left, ground, inner.width, 1);
    context.fillStyle = theme.faint;
    for (const [part, text] of drawn.marks) {
      context.textAlign = part < 0.1 ? "left" : part > 0.9 ? "right" : "center";
      context.fillText(text, EDGE.left + part * inner.width, ground + 11);
    }
    set(canvas, "aria-label", `${this.label}: ${drawn.describe(list.indexOf(Math.max(...list)))} at the highest. Arrow keys read.`);
  }
}
