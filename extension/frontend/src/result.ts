// What an analysis found: an array of named axes as a map, as bars or as a number, and tables.

import { statusLine } from "./canvas";
import { Chart as Drawing } from "./chart";
import { SCALES, type ScaleName } from "./colour";
import { type Context, type Draw, empty, within } from "./context";
import { choice, facts, fill, h, quoted, sentence, set, share, visible } from "./dom";
import { Heatmap, type Source, exactly, matrix } from "./heatmap";
import type { Chosen } from "./selection";
import { Tiles } from "./tiles";
import type { NumberArray } from "./wire";

type Names = string[] | NumberArray;

export interface Axis {
  name: string;
  plural: string;
  size: number;
  /** What each index stands for, where that is not the index itself. */
  names: Names | null;
  /** Where each stands for several: the last of them. */
  lasts: Names | null;
}

interface Chart {
  name: string;
  value: string;
  /** What it is, where that is not plain. */
  note: string;
  axes: string[];
  diverging: boolean;
  scale: ScaleName;
  limits: [number, number] | null;
  line: boolean;
  /** Null where only tiles of it can be had. */
  values: NumberArray | null;
  /** The largest entries: [k, axes] where, and [k] what. */
  top: { at: NumberArray; values: NumberArray };
}

interface Column {
  name: string;
  texts: string[];
  order: NumberArray | null;
}

interface Payload {
  facts: [string, string][];
  charts: Chart[];
  axes: Record<string, Axis>;
  pieces: string[] | null;
  /** Where to begin, by axis; by default at the strongest entry. */
  start?: Record<string, number>;
  /** Below the map, the chosen column of every chart; all have two axes. */
  profile?: boolean;
  sentence?: string | null;
  code?: string | null;
  columns?: Column[];
  count?: number;
}

export const result: Draw = (element, context) => {
  const payload: Payload = context.payload;
  if (payload.facts.length) element.append(facts(payload.facts));
  if (payload.charts.length) new Charts(element, context, payload);
  if (payload.columns) element.append(sheet(payload.columns, payload.count!, (i) => layerOf(context, payload.columns![0].texts[i])));
  if (payload.sentence) {
    const note = h("div");
    empty(note, { sentence: payload.sentence, code: payload.code });
    element.append(note);
  }
};

/** Chooses the layer that a weight or a point lies in. */
function layerOf(context: Context, name: string): (() => void) | null {
  const found = /(?:^|\.)layers\.(\d+)\./.exec(name);
  return found && (() => context.select({ layer: Number(found[1]) }));
}

const LINKED: Record<string, keyof Chosen> = { batch: "row", position: "token", layer: "layer", head: "head" };

/** What an index along an axis stands for. */
export function item(axis: Axis, index: number, names = axis.names): string | number {
  return names === null ? index : Array.isArray(names) ? names[index] : names.data[index];
}

export function called(axis: Axis, index: number): string {
  const [first, last] = [item(axis, index), item(axis, index, axis.lasts ?? axis.names)];
  return visible(first === last ? String(first) : `${first} to ${last}`, 40);
}

/** What choosing an index chooses for all views: of `12.mlp` its layer. */
export function chosen(axis: Axis, index: number): Partial<Chosen> {
  const at = item(axis, index);
  if (typeof at === "number") return LINKED[axis.name] ? { [LINKED[axis.name]]: at } : {};
  const [, layer, head] = (axis.name === "component" && /^(\d+)\.(?:head\.(\d+)$)?/.exec(at)) || [];
  return layer === undefined ? {} : head === undefined ? { layer: Number(layer) } : { layer: Number(layer), head: Number(head) };
}

/** The index that goes with a selection of which something has changed, or null. */
export function follow(axis: Axis, now: number, value: Chosen, before: Chosen | null): number | null {
  const fits = (index: number): boolean => {
    const part = Object.entries(chosen(axis, index)) as [keyof Chosen, number][];
    return part.some(([key]) => value[key] !== before?.[key]) && part.every(([key, at]) => value[key] === at);
  };
  if (!(axis.name in LINKED) && axis.name !== "component") return null;
  if (fits(now)) return now;
  const kind = (index: number) => String(item(axis, index)).replace(/^\d+/, "");
  let first: number | null = null;
  for (let index = 0; index < axis.size; index++) {
    if (!fits(index)) continue;
    if (typeof item(axis, index) === "number" || kind(index) === kind(now)) return index;
    first ??= index;
  }
  return first;
}

// A choice of more items would take a browser long.
const MOST_ITEMS = 1000;

/** One of several charts, a slice of it, and its strongest entries. */
class Charts {
  private readonly at: Record<string, number> = {};
  private chart: Chart;
  private down: Axis | null = null;
  private across: Axis | null = null;
  private others: { axis: Axis; element: HTMLElement; show(index: number): void }[] = [];
  private picture: { point(): void } | null = null;
  private ended: AbortController | null = null;
  private readonly choices = h("span", { class: "loupe-tools" });
  private readonly note = h("div", { class: "loupe-where" });
  private readonly found = h("div", { class: "loupe-found" });
  private readonly place = h("section");
  private readonly profile: Profile | null;
  private readonly tiles: Tiles;

  constructor(element: HTMLElement, private readonly context: Context, private readonly payload: Payload) {
    const { charts, axes } = payload;
    const { selection, signal } = context;
    const names = charts.map((chart, i) => [String(i), chart.name] as const);
    const shown = charts.length > 1 && choice("show", names, "0", (i) => this.show(charts[Number(i)]));
    this.tiles = new Tiles(context);
    this.chart = charts[0];
    for (const name of Object.keys(axes)) this.at[name] = 0;
    const { top } = this.chart;
    if (top.at.shape[0]) this.chart.axes.forEach((name, k) => (this.at[name] = top.at.data[k]));
    Object.assign(this.at, payload.start);
    this.follow(selection.value, null);
    this.profile = payload.profile ? new Profile(context, payload, (part) => this.choose(part)) : null;
    element.append(h("div", { class: "loupe-tools" }, shown, this.choices), this.note, this.found);
    selection.on((value, before) => this.follow(value, before) && this.point(), signal);
    this.show(this.chart);
  }

  private follow(value: Chosen, before: Chosen | null): boolean {
    let moved = false;
    for (const [name, axis] of Object.entries(this.payload.axes)) {
      const found = follow(axis, this.at[name], value, before);
      if (found === null || found === this.at[name]) continue;
      this.at[name] = found;
      moved = true;
    }
    return moved;
  }

  private choose(part: Record<string, number>): void {
    Object.assign(this.at, part);
    this.point();
    const { axes } = this.payload;
    const found = this.chart.axes.filter((name) => name !== "batch" || axes[name].size > 1);
    this.context.select(Object.assign({}, ...found.map((name) => chosen(axes[name], this.at[name]))));
  }

  /** Puts everything where `at` is. */
  private point(): void {
    for (const { axis, show } of this.others) show(this.at[axis.name]);
    this.picture?.point();
    void this.profile?.show(this.chart, this.at);
  }

  private show(chart: Chart): void {
    this.ended?.abort();
    this.ended = within(this.context.signal);
    this.chart = chart;
    const big = chart.axes.map((name) => this.payload.axes[name]).filter((axis) => axis.size > 1);
    [this.down, this.across] = [big.at(-2) ?? null, big.at(-1) ?? null];
    this.others = big.slice(0, -2).map((axis) => this.pick(axis));
    fill(this.choices, ...this.others.map(({ element }) => element));
    fill(this.note, visible(chart.note));
    fill(this.found, h("div", {}, this.place, this.profile?.element), this.ranked());
    const { values } = chart;
    this.picture = null;
    if (this.profile && !this.down && this.across?.name === chart.axes[0]) fill(this.found, this.profile.element); // of the only column
    else if (!this.across) {
      fill(this.place, h("output", { class: "loupe-single" }, exactly(values!.data[0])), h("div", { class: "loupe-where" }, visible(chart.value)));
    } else this.picture = this.down || !values ? this.map(this.down, this.across) : this.bars(this.across, values);
    this.point();
  }

  /** A choice for an axis that is not drawn. */
  private pick(axis: Axis): { axis: Axis; element: HTMLElement; show(index: number): void } {
    const { pieces } = this.payload;
    let element: HTMLLabelElement;
    if (axis.size <= MOST_ITEMS) {
      const items = Array.from({ length: axis.size }, (_, i) => [String(i), named(axis, i, pieces)] as const);
      element = choice(singular(axis), items, String(this.at[axis.name]), (i) => this.choose({ [axis.name]: Number(i) }));
    } else {
      const last = axis.size - 1;
      const input: HTMLInputElement = h("input", {
        attributes: { type: "number", min: 0, max: last, title: `0 to ${last}` },
        on: { change: () => this.choose({ [axis.name]: Math.max(0, Math.min(last, Math.round(Number(input.value)) || 0)) }) },
      });
      element = h("label", {}, `${singular(axis)} `, input);
    }
    const field = element.querySelector<HTMLInputElement | HTMLSelectElement>("select, input")!;
    return { axis, element, show: (index) => (field.value = String(index)) };
  }

  private map(down: Axis | null, across: Axis): { point(): void } {
    const { chart, ended } = this;
    const { pieces } = this.payload;
    const label = (axis: Axis | null) => (axis && pieces && texts(axis) ? (i: number) => piece(axis, i, pieces) : undefined);
    const source: Source = {
      height: down?.size ?? 1,
      width: across.size,
      rowName: down?.plural ?? "rows",
      columnName: across.plural,
      rowLabel: label(down),
      columnLabel: label(across),
      rowCalled: (row) => (down ? called(down, row) : String(row)),
      columnCalled: (column) => called(across, column),
      cells: (...asked) => this.cells(...asked),
      // A query reads no key behind it.
      masked: down?.name === "position" && across.name === "key" ? (_, bottom, left) => item(across, left) > item(down, bottom - 1, down.lasts ?? down.names) : undefined,
    };
    const map = new Heatmap(source, {
      value: visible(chart.value, 60),
      label: `${visible(chart.name, 60)}: ${down?.plural ?? ""} down, ${across.plural} across`,
      diverging: chart.diverging,
      range: chart.limits ?? undefined,
      scale: chart.scale,
      pools: Math.max(source.height, source.width) > 128 ? ["max", "mean"] : ["max"],
      signal: ended!.signal,
      chosen: (row, column) => this.choose({ ...(down && { [down.name]: row }), [across.name]: column }),
      key: (event) => {
        const [step, axis] = [{ PageUp: -1, PageDown: 1 }[event.key], this.others.at(-1)?.axis];
        if (!step || !axis) return false;
        this.choose({ [axis.name]: Math.max(0, Math.min(axis.size - 1, this.at[axis.name] + step)) });
        return true;
      },
    });
    fill(this.place, map.element);
    return {
      point: () => {
        map.point(down ? this.at[down.name] : 0, this.at[across.name]);
        map.change(source); // another slice, perhaps, and the status tells what is there
      },
    };
  }

  private cells(...asked: Parameters<Source["cells"]>): ReturnType<Source["cells"]> {
    const { chart, down, across, at } = this;
    const { axes, charts } = this.payload;
    const start = chart.axes.map((name) => (axes[name] === down || axes[name] === across ? 0 : at[name]));
    const [height, width] = [down?.size ?? 1, across!.size];
    if (!chart.values) return this.tiles.cells({ chart: charts.indexOf(chart), at: start }, height, width, ...asked);
    const first = chart.axes.reduce((sum, name, k) => sum * axes[name].size + start[k], 0);
    return matrix(chart.values.data.subarray(first, first + height * width), width)(...asked);
  }

  private bars(axis: Axis, values: NumberArray): { point(): void } {
    const { chart } = this;
    const bars = new Bars(axis, this.payload.pieces, this.ended!.signal, (index) => this.choose({ [axis.name]: index }));
    bars.show(values.data, chart);
    fill(this.place, bars.element);
    return { point: () => bars.point(this.at[axis.name]) };
  }

  /** The entries of the largest magnitude, anywhere in the chart. */
  private ranked(): HTMLElement | null {
    const { chart, payload } = this;
    const { at, values } = chart.top;
    if (values.data.length < 2 || chart.line) return null;
    const axes = chart.axes.map((name) => payload.axes[name]);
    const long = axes.filter((axis) => axis.size > 1).map(singular).join(" · ");
    const entries = Array.from(values.data, (value, i) => {
      const where = axes.map((axis, k) => [axis.name, at.data[i * axes.length + k]] as const);
      const said = axes.map((axis, k) => axis.size > 1 && named(axis, where[k][1], payload.pieces)).filter(Boolean);
      const part = Math.abs(value / (values.data[0] || 1));
      const act = () => this.choose(Object.fromEntries(where));
      return h("li", {}, share(part, act, h("span", {}, said.join(" · ")), h("span", { class: "loupe-value" }, exactly(value))));
    });
    return h("section", {}, h("div", { class: "loupe-where" }, `Strongest entries: ${long}`), h("ol", { class: "loupe-ranked" }, ...entries));
  }
}

function singular(axis: Axis): string {
  return axis.name === "batch" ? "row" : visible(axis.name.replaceAll("_", " "), 40);
}

/** Whether its indices are tokens of the prompt. */
function texts(axis: Axis): boolean {
  return axis.name === "position" || axis.name === "key";
}

function piece(axis: Axis, index: number, pieces: string[]): string {
  return pieces[Number(item(axis, index))] ?? "";
}

function named(axis: Axis, index: number, pieces: string[] | null): string {
  return pieces && texts(axis) ? `${called(axis, index)} ${quoted(piece(axis, index, pieces), 24)}` : called(axis, index);
}

/** The chosen column of a map as bars, and of all charts of that kind as a table. */
class Profile {
  readonly element = h("section", { attributes: { "aria-label": "The chosen column" } });
  private readonly title = h("div", { class: "loupe-title" });
  private readonly table = h("div");
  private bars: Bars | null = null;
  private shown = "";
  private asked = 0;

  constructor(private readonly context: Context, private readonly payload: Payload, private readonly choose: (part: Record<string, number>) => void) {
    this.element.append(this.title);
  }

  async show(chart: Chart, at: Record<string, number>): Promise<void> {
    const { payload, context } = this;
    const [down, across] = chart.axes.map((name) => payload.axes[name]);
    const alike = payload.charts.filter((other) => other.axes.join() === chart.axes.join());
    const column = at[across.name];
    const key = JSON.stringify([payload.charts.indexOf(chart), column]);
    if (key === this.shown) return this.bars?.point(at[down.name]);
    this.shown = key;
    const asked = ++this.asked;
    const first = payload.charts.indexOf(alike[0]);
    let columns: ArrayLike<number>[];
    try {
      const [n, width] = [down.size, across.size];
      if (chart.values) columns = alike.map(({ values }) => Float32Array.from({ length: n }, (_, i) => values!.data[i * width + column]));
      else {
        const { values } = await context.ask("column", { chart: first, at: column });
        columns = alike.map((_, k) => values.data.subarray(k * n, (k + 1) * n));
      }
    } catch (error) {
      if (asked === this.asked) fill(this.title, sentence(error));
      return;
    }
    if (asked !== this.asked) return;
    fill(this.title, `${visible(chart.name)} at ${singular(across)} ${named(across, column, payload.pieces)}`);
    if (this.bars?.axis !== down) this.bars = new Bars(down, payload.pieces, context.signal, (index) => this.choose({ [down.name]: index }));
    this.bars.show(columns[alike.indexOf(chart)], chart);
    this.bars.point(at[down.name]);
    const rows = Array.from({ length: down.size }, (_, i) => i);
    const named_: Column = { name: singular(down), texts: rows.map((i) => called(down, i)), order: { data: Int32Array.from(rows), shape: [down.size] } };
    const numbers = alike.map((other, k): Column => ({
      name: other.value,
      texts: Array.from(columns[k], exactly),
      order: { data: Float32Array.from(columns[k]), shape: [down.size] },
    }));
    fill(this.table, sheet([named_, ...numbers], down.size, (i) => () => this.choose({ [down.name]: i })));
    fill(this.element, this.title, h("div", { class: "loupe-profile" }, this.bars.element, this.table));
  }
}

/** The numbers along one axis. */
class Bars {
  readonly element: HTMLElement;
  private readonly chart: Drawing;
  private values: ArrayLike<number> = [];
  private about: Pick<Chart, "name" | "value" | "line"> = { name: "", value: "", line: false };
  private scale: ScaleName = "linear";

  constructor(readonly axis: Axis, private readonly pieces: string[] | null, signal: AbortSignal, chosen: (index: number) => void) {
    this.chart = new Drawing(signal, 190, chosen);
    const scale = choice("scale", SCALES, this.scale, (name) => {
      this.scale = name as ScaleName;
      this.draw();
    });
    this.element = h("div", {}, h("div", { class: "loupe-tools" }, scale), this.chart.element);
  }

  show(values: ArrayLike<number>, about: Pick<Chart, "name" | "value" | "line">): void {
    Object.assign(this, { values, about });
    this.draw();
  }

  point(index: number): void {
    this.chart.point(index);
  }

  private draw(): void {
    const { axis, pieces, values, about, scale } = this;
    this.chart.show({
      label: `${visible(about.name, 60)} by ${singular(axis)}`,
      values,
      line: about.line,
      scale,
      name: (i, each) => (each && pieces && texts(axis) ? visible(piece(axis, i, pieces), 9) : visible(String(item(axis, i)), 12)),
      describe: (i) => `${singular(axis)} ${named(axis, i, pieces)}: ${visible(about.value, 60)} ${exactly(values[i])}`,
    });
  }
}

const MOST_ROWS = 200;

/** Which rows come first: by a column, NaN and what is absent last. */
export function sorted(column: Column, downward: boolean): number[] {
  const numbers = column.order?.data;
  const order = column.texts.map((_, i) => i);
  return order.sort((a, b) => {
    const turn = downward ? -1 : 1;
    if (!numbers) return turn * column.texts[a].localeCompare(column.texts[b], "en", { numeric: true }) || a - b;
    const [x, y] = [numbers[a], numbers[b]];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number(Number.isNaN(x)) - Number(Number.isNaN(y)) || a - b;
    return turn * (x < y ? -1 : x > y ? 1 : 0) || a - b;
  });
}

/** A table that a click on a column's name sorts. */
function sheet(columns: Column[], count: number, act: (row: number) => (() => void) | null): HTMLElement {
  const body = h("tbody");
  const status = statusLine();
  const heads = columns.map((column) =>
    h("th", { class: column.order && column !== columns[0] ? "loupe-value" : "", attributes: { scope: "col" } }, h("button", { attributes: { type: "button" }, on: { click: () => sort(column) } }, visible(column.name))),
  );
  let [by, downward] = [null as Column | null, false];
  const draw = () => {
    const here = columns[0]?.texts.length ?? 0;
    const order = by ? sorted(by, downward) : Array.from({ length: here }, (_, i) => i);
    const shown = order.slice(0, MOST_ROWS);
    fill(
      body,
      ...shown.map((row) =>
        h("tr", {}, ...columns.map((column, k) => {
          const text = visible(column.texts[row]);
          const action = k ? null : act(row);
          const inside = action ? h("button", { on: { click: action }, attributes: { type: "button" } }, text) : text;
          return k ? h("td", { class: column.order ? "loupe-value" : "" }, inside) : h("th", { attributes: { scope: "row" } }, inside);
        })),
      ),
    );
    const cut = count > here ? ` of the first ${here.toLocaleString("en")}` : "";
    const sortedBy = by ? `, by ${visible(by.name)}, ${downward ? "largest" : "smallest"} first` : "";
    fill(status, shown.length < count || by ? `${shown.length.toLocaleString("en")} of ${count.toLocaleString("en")} rows${sortedBy}${by ? cut : ""}` : "");
  };
  const sort = (column: Column) => {
    downward = by === column ? !downward : column.order !== null;
    by = column;
    heads.forEach((head, k) => set(head, "aria-sort", columns[k] === by && (downward ? "descending" : "ascending")));
    draw();
  };
  draw();
  const table = h("table", {}, h("thead", {}, h("tr", {}, ...heads)), body);
  return h("div", {}, h("div", { class: "loupe-sheet", attributes: { tabindex: 0, role: "group", "aria-label": "Table" } }, table), status);
}
