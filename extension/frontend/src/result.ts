// What an analysis found: an array of named axes as a map, as bars or as a number, and tables.

import { BAD_CSS, DECADES, type ScaleName, colours, css, limits, place, scaleOver } from "./colour";
import { type Context, type Draw, empty, within } from "./context";
import { choice, fill, h, number, quoted, set, visible } from "./dom";
import { edges, ticks } from "./grid";
import { Heatmap, type Source, exactly, matrix } from "./heatmap";
import type { Chosen } from "./selection";
import { onTheme, themeOf } from "./theme";
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
  if (payload.facts.length)
    element.append(h("dl", { class: "loupe-said" }, ...payload.facts.map(([name, said]) => h("div", {}, h("dt", {}, visible(name)), h("dd", {}, visible(said))))));
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

  private cells(...[window, rows, columns, pool]: Parameters<Source["cells"]>): ReturnType<Source["cells"]> {
    const { chart, down, across, at } = this;
    const { axes, charts } = this.payload;
    const start = chart.axes.map((name) => (axes[name] === down || axes[name] === across ? 0 : at[name]));
    const [height, width] = [down?.size ?? 1, across!.size];
    if (!chart.values) return this.tiles.cells({ chart: charts.indexOf(chart), at: start }, height, width, window, rows, columns, pool);
    const first = chart.axes.reduce((sum, name, k) => sum * axes[name].size + start[k], 0);
    return matrix(chart.values.data.subarray(first, first + height * width), width)(window, rows, columns, pool);
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
      const button = h(
        "button",
        { attributes: { type: "button" }, on: { click: () => this.choose(Object.fromEntries(where)) } },
        h("span", {}, said.join(" · ")),
        h("span", { class: "loupe-value" }, exactly(value)),
      );
      button.style.setProperty("--loupe-part", `${100 * Math.abs(value / (values.data[0] || 1))}%`);
      return h("li", {}, button);
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
      if (asked === this.asked) fill(this.title, error instanceof Error ? error.message : String(error));
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

const SIDES = { left: 64, right: 8, top: 8 };
const TALL = 190;

/** Numbers side by side, as bars or as a line. */
class Bars {
  readonly element: HTMLElement;
  private readonly canvas = h("canvas", { attributes: { tabindex: 0, role: "img" } });
  private readonly status = h("div", { class: "loupe-status", attributes: { "aria-live": "polite" } });
  private values: ArrayLike<number> = [];
  private chart: Pick<Chart, "name" | "value" | "line"> = { name: "", value: "", line: false };
  private scale: ScaleName = "linear";
  private cursor = 0;
  private bad = 0;
  private wide = 0;

  constructor(readonly axis: Axis, private readonly pieces: string[] | null, signal: AbortSignal, private readonly chosen: (index: number) => void) {
    const scales = [["linear", "linear"], ["sqrt", "square root"], ["log", "log"]] as const;
    const tools = h("div", { class: "loupe-tools" }, choice("scale", scales, this.scale, (name) => {
      this.scale = name as ScaleName;
      this.paint();
    }));
    this.element = h("div", { class: "loupe-bars" }, tools, this.canvas, this.status);
    const { canvas } = this;
    canvas.addEventListener("pointermove", (event) => this.tell(this.under(event)), { signal });
    canvas.addEventListener("pointerleave", () => this.tell(this.cursor), { signal });
    canvas.addEventListener("click", (event) => chosen(this.under(event)), { signal });
    canvas.addEventListener("keydown", (event) => this.pressed(event), { signal });
    onTheme(() => this.paint(), signal);
    const observer = new ResizeObserver(() => this.paint());
    observer.observe(this.element);
    signal.addEventListener("abort", () => observer.disconnect());
  }

  show(values: ArrayLike<number>, chart: Pick<Chart, "name" | "value" | "line">): void {
    Object.assign(this, { values, chart });
  }

  point(index: number): void {
    this.cursor = index;
    this.tell(index);
    this.paint();
  }

  private describe(index: number): string {
    return `${singular(this.axis)} ${named(this.axis, index, this.pieces)}: ${visible(this.chart.value, 60)} ${exactly(this.values[index])}`;
  }

  private tell(index: number): void {
    fill(this.status, `${this.describe(index)}${this.bad ? ` · ${this.bad.toLocaleString("en")} not finite ` : ""}`, this.bad > 0 && h("i", { class: "loupe-bad" }));
  }

  private under(event: MouseEvent): number {
    const part = (event.clientX - this.canvas.getBoundingClientRect().left - SIDES.left) / this.wide;
    return Math.max(0, Math.min(this.axis.size - 1, Math.floor(part * this.axis.size)));
  }

  private pressed(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const last = this.axis.size - 1;
    const step = Math.max(1, Math.floor(this.axis.size / this.wide));
    const by = { ArrowLeft: -step, ArrowRight: step, PageUp: -10 * step, PageDown: 10 * step, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") this.canvas.blur();
    else if (by === undefined) return;
    else this.chosen(Math.max(0, Math.min(last, this.cursor + by)));
    event.preventDefault();
    event.stopPropagation();
  }

  private paint(): void {
    const { canvas, values, axis, chart } = this;
    const n = axis.size;
    const full = Math.min(this.element.clientWidth, SIDES.left + SIDES.right + Math.max(240, n * 64));
    if (!full || !this.element.isConnected || !values.length) return;
    this.wide = Math.max(60, full - SIDES.left - SIDES.right);
    const { wide } = this;
    const dx = wide / n;
    const every = dx >= 13; // each has a label, upright where it is narrow
    const flat = dx >= 44 || !every;
    const under = flat ? 24 : 60;
    const ratio = devicePixelRatio || 1;
    const height = SIDES.top + TALL + under;
    canvas.width = Math.round((wide + SIDES.left + SIDES.right) * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.width = `${wide + SIDES.left + SIDES.right}px`;
    canvas.style.height = `${height}px`;
    const found = limits(values);
    this.bad = found.bad;
    const [low, high] = [Math.min(0, found.low), Math.max(0, found.high)];
    const scale = scaleOver(low, high, low < 0, this.scale);
    const [bottom, top] = [place(scale, low), place(scale, high)];
    const y = (value: number) => SIDES.top + TALL * (1 - (place(scale, value) - bottom) / (top - bottom || 1));
    const theme = themeOf(this.element);
    const table = colours("diverging", theme.dark);
    const context = canvas.getContext("2d")!;
    context.scale(ratio, ratio);
    context.font = theme.font;
    context.textBaseline = "middle";
    context.textAlign = "right";
    context.strokeStyle = theme.line;
    for (const value of marks(low, high, this.scale)) {
      context.fillStyle = theme.faint;
      context.fillText(number(value), SIDES.left - 6, y(value), SIDES.left - 8);
      context.fillStyle = theme.line;
      context.globalAlpha = 0.4;
      context.fillRect(SIDES.left, Math.round(y(value)), wide, 1);
      context.globalAlpha = 1;
    }
    const zero = y(0);
    const cuts = edges(0, n, Math.max(1, Math.floor(wide)));
    const x = (index: number) => SIDES.left + (index * wide) / n;
    const signed = low < 0;
    context.lineWidth = 1.5;
    context.strokeStyle = context.fillStyle = theme.accent;
    if (chart.line) context.beginPath();
    for (let i = 0; i + 1 < cuts.length; i++) {
      const part = Array.prototype.slice.call(values, cuts[i], cuts[i + 1]) as number[];
      const span = limits(part);
      const [left, right] = [x(cuts[i]), x(cuts[i + 1])];
      if (span.bad) {
        context.fillStyle = BAD_CSS;
        context.fillRect(left, SIDES.top, Math.max(1, right - left - 1), TALL);
        context.fillStyle = theme.accent;
      }
      if (span.bad === part.length) continue;
      if (chart.line) {
        context.lineTo((left + right) / 2, y(span.high));
        if (n < 100) context.fillRect((left + right) / 2 - 2, y(span.high) - 2, 4, 4);
        continue;
      }
      const gap = Math.min(4, (right - left) / 5);
      for (const value of span.low === span.high ? [span.high] : [span.low, span.high]) {
        if (signed) context.fillStyle = css(table[value < 0 ? 36 : 220]);
        const [a, b] = [Math.min(zero, y(value)), Math.max(zero, y(value))];
        context.fillRect(left + gap / 2, a, Math.max(1, right - left - gap), Math.max(value ? 1 : 0, b - a));
      }
    }
    if (chart.line) context.stroke();
    context.fillStyle = theme.ink;
    context.fillRect(SIDES.left, Math.round(zero), wide, 1);
    for (const index of ticks(0, n, every ? Infinity : wide / 60)) {
      const text = texts(axis) && this.pieces && every ? visible(piece(axis, index, this.pieces), 9) : visible(String(item(axis, index)), 12);
      context.save();
      context.translate(x(index + 0.5), SIDES.top + TALL + (flat ? 12 : 6));
      context.textAlign = flat ? "center" : "right";
      if (!flat) context.rotate(-Math.PI / 2);
      context.fillText(text, 0, 0, flat ? Math.max(dx - 4, 40) : under - 8);
      context.restore();
    }
    context.strokeStyle = theme.ink;
    context.lineWidth = 1;
    context.strokeRect(Math.round(x(this.cursor)) + 0.5, SIDES.top - 2.5, Math.max(3, Math.round(dx) - 1), TALL + 5);
    set(canvas, "aria-label", `${visible(chart.name, 60)} by ${singular(axis)}, ${number(found.low)} to ${number(found.high)}. ${this.describe(this.cursor)}. Arrow keys move.`);
  }
}

/** Round numbers between two, for the lines behind bars. */
export function marks(low: number, high: number, scale: ScaleName): number[] {
  const most = Math.max(-low, high) || 1;
  const inside = (value: number) => value >= low && value <= high;
  if (scale === "log") {
    const powers = Array.from({ length: DECADES }, (_, k) => 10 ** (Math.floor(Math.log10(most)) - k));
    return [0, ...powers.flatMap((power) => [power, -power])].filter(inside);
  }
  const raw = (high - low || 1) / 5;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((times) => times * power >= raw)! * power;
  return Array.from({ length: 13 }, (_, k) => Number(((Math.ceil(low / step) + k) * step).toPrecision(12))).filter(inside);
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
  const status = h("div", { class: "loupe-status", attributes: { "aria-live": "polite" } });
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
