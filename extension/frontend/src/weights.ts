// Every weight in one atlas, one of them by zooming, its histogram and its singular values.

import { Atlas, GAP, GUTTER, paintCodes } from "./atlas";
import { resized } from "./canvas";
import { Chart } from "./chart";
import { BAD, BAD_CSS, SCALES, type ScaleName, colourOf, colours, scaleOver } from "./colour";
import type { Context, Draw } from "./context";
import { button, choice, facts, fill, h, number, sentence, visible } from "./dom";
import { Heatmap, type Source, exactly } from "./heatmap";
import type { Theme } from "./theme";
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

const BROKEN = 255; // the code of a cell that holds NaN or infinity

const sized = ({ shape, dtype }: Weight) => `${shape.map((n) => n.toLocaleString("en")).join(" × ")} ${dtype}`;

export const weights: Draw = (element, context) => {
  const payload: Payload = context.payload;
  const { selection, signal } = context;
  const shapeOf = (at: number): [number, number] => {
    const { shape } = payload.weights[at];
    return shape.length === 1 ? [1, shape[0]] : [shape[0], shape[1]];
  };
  const atlas = new Pictures(context, payload, (at) => choose(at), (at) => at === chosen && told());
  const start = atlas.near(selection.value.layer ?? 0, "self_attn.q_proj");
  let chosen = start;

  const title = h("div", { class: "loupe-title" });
  const known = h("div");
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
      cells: (...asked: Parameters<Source["cells"]>) => tiles.cells({ name }, height, width, ...asked),
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
  const histogram = new Chart(signal, TALL);
  const counts = choice("counts", [["counts", "log"], ["linear", "linear"]], "counts", () => told());
  const spectrum = new Chart(signal, TALL);
  const compute = button("Singular values", () => void decompose(), "Compute the singular values of this matrix");
  const found = new Map<number, ArrayLike<number>>();
  const right = h(
    "section",
    { attributes: { "aria-label": "One weight" } },
    title,
    known,
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
    fill(known, facts([["shape", sized(weight)], ...(look ? factsOf(look) : [["", atlas.failed.get(chosen) ?? "looking …"] as const])]));
    if (look) {
      const { data } = look.histogram;
      const [low, high] = look.ends.data;
      const zero = -low / (high - low);
      const edge = (i: number) => low + ((high - low) * i) / data.length;
      histogram.show({
        label: "Histogram",
        values: data,
        scale: counts.querySelector("select")!.value as ScaleName,
        marks: [[0, number(low)], [1, number(high)], ...(zero > 0.3 && zero < 0.7 ? [[zero, "0"] as const] : [])],
        describe: (i) => `${number(edge(i))} to ${number(edge(i + 1))}: ${data[i].toLocaleString("en")} entries`,
      });
    } else histogram.show(null);
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
      if (at === chosen) fill(spectrum.status, sentence(error));
      return;
    }
    if (at === chosen) plotSingular();
  }

  function plotSingular(): void {
    const values = found.get(chosen);
    compute.disabled = !!values || shapeOf(chosen)[0] === 1;
    if (!values) return spectrum.show(null);
    const last = values.length - 1;
    const least = Math.min(...Array.from(values).filter((value) => value > 0));
    spectrum.show({
      label: "Singular values",
      values,
      line: true,
      scale: "log",
      decades: Math.max(1, Math.min(8, Math.ceil(Math.log10(values[0] / least)))) || 1,
      marks: [[0, "1"], [1, String(values.length)]],
      describe: (i) => `singular value ${i + 1} of ${values.length}: ${exactly(values[i])}`,
      summary: `largest ${exactly(values[0])}, smallest ${exactly(values[last])}, effective rank ${number(effectiveRank(values))} of ${values.length}`,
    });
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

function factsOf({ numbers, place, parts }: Look): ([string, string] | null)[] {
  const [mean, std, low, high, norm, zeros, nans, infinities] = numbers.data;
  const count = (value: number) => value.toLocaleString("en");
  return [
    ["mean", number(mean)],
    ["std", number(std)],
    ["min", exactly(low)],
    ["max", exactly(high)],
    ["norm", number(norm)],
    zeros > 0 ? ["zeros", count(zeros)] : null,
    ["NaN", count(nans)],
    infinities > 0 ? ["infinite", count(infinities)] : null,
    parts.length ? null : ["where", place],
  ];
}

const TALL = 114; // pixels of a chart
const APART = 18; // pixels between what is in no layer and the layers
const SHORT: Record<string, string> = { input_layernorm: "norm 1", post_attention_layernorm: "norm 2", embed_tokens: "embed" };

interface Spot {
  row: number;
  column: number;
  layer: number | null;
  kind: string;
}

/** A small picture of each weight, layers down and kinds across; those in sight are asked for. */
class Pictures extends Atlas {
  readonly looks = new Map<number, Look>();
  readonly failed = new Map<number, string>();
  private readonly spots: Spot[];
  private readonly kinds: string[];
  private readonly rows: number;
  private readonly apart: number; // how many are in no layer: they are row 0
  private readonly progress = h("span", { class: "loupe-where" });
  private scale: ScaleName = "linear";
  private shared = false;
  private seen = false;
  private asking = false;

  constructor(
    context: Context,
    private readonly payload: Payload,
    protected readonly choose: (at: number) => void,
    private readonly came: (at: number) => void,
  ) {
    const { weights } = payload;
    super(context, weights.length, `Small pictures of ${weights.length} weights`);
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
    fill(
      this.tools,
      choice("range", whose, "own", (value) => {
        this.shared = value === "shared";
        this.paint(true);
      }),
      choice("scale", SCALES, this.scale, (value) => {
        this.scale = value as ScaleName;
        this.paint(true);
      }),
      this.progress,
    );
    resized(this.frame, context.signal, () => void this.fetch());
    this.frame.addEventListener("scroll", () => void this.fetch(), { signal: context.signal });
    const sight = new IntersectionObserver((entries) => {
      this.seen = entries.some((entry) => entry.isIntersecting);
      void this.fetch();
    });
    sight.observe(this.frame);
    context.signal.addEventListener("abort", () => sight.disconnect());
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
    super.mark(at);
    void this.fetch();
  }

  protected describe(at: number): string {
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
        this.failed.set(at, sentence(error));
      }
      this.came(at);
      const most = this.looks.get(at)?.most.data[0] ?? 0;
      this.repaint(at);
      this.paint(this.shared && most >= this.most());
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

  protected corner(at: number): [number, number] {
    const { row, column } = this.spots[at];
    const { width, height } = this.tile;
    const down = row && this.apart ? GUTTER.top + APART : 0;
    return [GUTTER.left + column * (width + GAP), GUTTER.top + (this.apart ? row : row - 1) * (height + GAP) + down];
  }

  protected fit(room: number): void {
    const width = Math.max(20, Math.min(96, Math.floor(room / Math.max(this.kinds.length, this.apart)) - GAP));
    const height = Math.min(width, Math.max(26, Math.floor(420 / this.rows)));
    Object.assign(this.tile, { width, height });
  }

  protected paintLabels(brush: CanvasRenderingContext2D): void {
    const { tile, kinds, spots } = this;
    brush.textAlign = "center";
    const label = (kind: string, x: number, y: number) => {
      const last = kind.split(".").pop()!;
      brush.fillText(visible(SHORT[last] ?? last.replace(/_proj$/, ""), 12), x + tile.width / 2, y - GUTTER.top / 2, tile.width + GAP);
    };
    for (const [at, { row, kind }] of spots.entries()) if (!row) label(kind, ...this.corner(at));
    const first = spots.findIndex(({ row }) => row === 1);
    for (const kind of kinds) label(kind, this.corner(spots.findIndex((spot) => spot.row && spot.kind === kind))[0], this.corner(first)[1]);
    brush.textAlign = "right";
    for (const [at, { column, layer }] of spots.entries())
      if (!column && layer !== null) brush.fillText(`L${layer}`, GUTTER.left - 5, this.corner(at)[1] + tile.height / 2);
  }

  /** A vector is a strip. */
  protected paintTile(brush: OffscreenCanvasRenderingContext2D, at: number, theme: Theme): void {
    const look = this.looks.get(at);
    const [x, y] = this.corner(at);
    const { width, height } = this.tile;
    const tall = this.payload.weights[at].shape.length === 1 ? Math.min(height, 12) : height;
    const box = [x, y + (height - tall) / 2, width, tall] as const;
    const most = look?.most.data[0] ?? 0;
    const scale = scaleOver(0, (this.shared ? this.most() : most) || 1, false, this.scale);
    const table = colours("viridis", theme.dark);
    const colour = Uint32Array.from({ length: 256 }, (_, code) => (code === BROKEN ? BAD : colourOf(scale, table, most * (code / (BROKEN - 1)) ** 2)));
    paintCodes(brush, box, theme.masked, look?.codes.data ?? null, look?.codes.shape ?? [1, 1], colour);
    if (!look || !(look.numbers.data[6] + look.numbers.data[7])) return;
    const ratio = devicePixelRatio || 1;
    brush.lineWidth = 2 * ratio;
    brush.strokeStyle = BAD_CSS;
    brush.strokeRect(...(box.map((pixels) => pixels * ratio) as [number, number, number, number]));
  }

  protected beside(down: number, across: number): number | undefined {
    const { row, column } = this.spots[this.marked];
    const to = Math.max(this.apart ? 0 : 1, Math.min(this.rows - 1, row + down));
    const inRow = this.spots.map((spot, at) => [spot, at] as const).filter(([spot]) => spot.row === to);
    const wanted = Math.min(column + across, Math.max(...inRow.map(([spot]) => spot.column)));
    return inRow.find(([spot]) => spot.column === wanted)?.[1];
  }
}
