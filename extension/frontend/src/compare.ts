// What differs between two runs or two models: a ranked list, and a, b and b − a side by side.

import { statusLine } from "./canvas";
import { SCALES, type ScaleName, limits } from "./colour";
import { type Context, type Draw, within } from "./context";
import { button, choice, facts, fill, h, number, quoted, sentence, share, visible } from "./dom";
import { type Window, whole, zoomed } from "./grid";
import { Heatmap, POOLS, type Pool, type Settings, type Source, exactly } from "./heatmap";
import { Tiles } from "./tiles";
import type { NumberArray } from "./wire";

/** A matrix; what is 0 is as long as the prompt. */
interface Form {
  height: number;
  width: number;
  /** How many maps there are to choose from. */
  heads: number;
  /** How many columns are of one head. */
  size: number;
}

interface Prompt {
  length: number;
  tokens: string[];
  differ: number;
  positions: NumberArray;
  others: string[];
}

interface Payload {
  names: string[];
  kinds: string[];
  /** [n, 5]: relative, largest, KL, flipped, variation; NaN where there is none. */
  numbers: NumberArray;
  where: string[];
  /** [n, 4]: row of the batch, head, row and column of the largest difference, or -1. */
  spots: NumberArray;
  forms: Record<string, Form>;
  form: string[];
  labels: [string, string];
  notes: string[];
  batch: number;
  row: number;
  prompt: Prompt | null;
}

const COLUMNS = ["relative", "largest |b − a|", "KL, nats"];
const AT_ONCE = 100; // rows of the list
const AROUND = 32; // entries to each side of the largest change
const PARTS = ["a", "b", "change"] as const;
const NAMES = { a: "a", b: "b", change: "b − a" };

export const compare: Draw = (element, context) => {
  const list = new List(context, context.payload);
  element.append(list.element);
  const { labels, form } = context.payload as Payload;
  if (!labels[0]) return;
  const maps = new Maps(context, context.payload, (i) => list.choose(i));
  element.append(maps.element);
  list.chosen = (i) => maps.show(i);
  list.choose(Math.max(0, form.findIndex(Boolean)));
};

const layerOf = (name: string): number | null => Number(/^layers\.(\d+)\./.exec(name)?.[1] ?? NaN) || (name.startsWith("layers.0.") ? 0 : null);

/** The order of a column, the largest first; what is NaN on one side only is larger than all. */
export function ranked(numbers: ArrayLike<number>, column: number, has: (row: number) => boolean): number[] {
  const value = (row: number) => {
    const at = numbers[row * 5 + column];
    return !has(row) ? -1 : Number.isNaN(at) ? Infinity : at;
  };
  return Array.from({ length: numbers.length / 5 }, (_, row) => row).sort((a, b) => value(b) - value(a) || a - b);
}

/** All differences, by size. */
class List {
  readonly element: HTMLElement;
  chosen: (row: number) => void = () => {};
  private readonly head = h("tr");
  private readonly body = h("tbody");
  private readonly more = button("more", () => this.show(this.shown + AT_ONCE));
  private readonly frame = h("div", { class: "loupe-changes" }, h("table", {}, h("thead", {}, this.head), this.body), this.more);
  private readonly buttons = new Map<number, HTMLButtonElement>();
  private sorted = 0;
  private shown = AT_ONCE;
  private marked = 0;

  constructor(private readonly context: Context, private readonly payload: Payload) {
    const { names, notes, numbers } = payload;
    const changed = names.filter((_, i) => numbers.data[5 * i + 1] !== 0).length;
    const said = `${changed.toLocaleString("en")} of ${names.length.toLocaleString("en")} differ`;
    this.element = h(
      "section",
      { attributes: { "aria-label": "What changed most" } },
      h("div", { class: "loupe-where" }, said, ...notes.flatMap((note) => [" · ", visible(note)])),
      this.frame,
    );
    this.show(Math.max(1, Math.min(AT_ONCE, changed)));
    context.selection.on((value, before) => {
      if (value.layer === null || value.layer === before.layer || value.layer === layerOf(names[this.marked])) return;
      const found = names.indexOf(names[this.marked].replace(/^layers\.\d+/, `layers.${value.layer}`));
      if (found >= 0) this.choose(found);
    }, context.signal);
  }

  choose(row: number): void {
    this.buttons.get(this.marked)?.removeAttribute("aria-current");
    this.marked = row;
    const made = this.buttons.get(row);
    made?.setAttribute("aria-current", "true");
    const hidden = made && made.getBoundingClientRect().bottom - this.frame.getBoundingClientRect().bottom;
    if (hidden && hidden > 0) this.frame.scrollTop += hidden;
    this.chosen(row);
  }

  private show(most: number): void {
    const { names, kinds, numbers, where } = this.payload;
    this.shown = most;
    const { data } = numbers;
    const hasKl = (row: number) => kinds[row] === "logits" || kinds[row] === "lens";
    const kl = names.some((_, row) => hasKl(row));
    const order = ranked(data, this.sorted, (row) => this.sorted < 2 || hasKl(row));
    const largest = data[5 * order[0] + this.sorted];
    const headers = COLUMNS.slice(0, kl ? 3 : 2).map((name, column) => {
      const sort = () => {
        this.sorted = column;
        this.show(this.shown);
        this.head.querySelectorAll("button")[column].focus();
      };
      return h("th", { attributes: { scope: "col", "aria-sort": column === this.sorted && "descending" } }, button(name, sort));
    });
    fill(this.head, h("th", { attributes: { scope: "col" } }, h("span", {}, "what")), ...headers, h("th", { attributes: { scope: "col" } }, "where"));
    this.buttons.clear();
    const rows = order.slice(0, most).map((row) => {
      const act = () => {
        this.choose(row);
        const layer = layerOf(names[row]);
        if (layer !== null) this.context.select({ layer });
      };
      const value = data[5 * row + this.sorted];
      const part = value / largest;
      const made = share(part >= 0 ? part : Number(!(value <= 0)), act, visible(names[row]));
      if (row === this.marked) made.setAttribute("aria-current", "true");
      this.buttons.set(row, made);
      const cells = headers.map((_, column) => h("td", { class: "loupe-value" }, column < 2 || hasKl(row) ? number(data[5 * row + column]) : ""));
      return h("tr", {}, h("th", { attributes: { scope: "row" } }, made), ...cells, h("td", { class: "loupe-where" }, where[row]));
    });
    fill(this.body, ...rows);
    this.more.hidden = most >= names.length;
  }
}

/** a, b and b − a of what was chosen, at one window. */
class Maps {
  readonly element: HTMLElement;
  private readonly tiles: Tiles;
  private readonly title = h("div", { class: "loupe-title" });
  private readonly known = h("div");
  private readonly tools = h("div", { class: "loupe-tools" });
  private readonly place = h("div");
  private readonly status = statusLine();
  private readonly changes = h("div");
  private prompt: Prompt | null;
  private maps: Heatmap[] = [];
  private ended: AbortController | null = null;
  private at = 0; // in the list
  private row: number;
  private head = 0;
  private scale: ScaleName = "linear";
  private pool: Pool = "max";
  private cursor: { row: number; column: number } | null = null;
  private common: [number, number] = [0, 1];

  constructor(private readonly context: Context, private readonly payload: Payload, private readonly choose: (at: number) => void) {
    const { selection, signal } = context;
    this.tiles = new Tiles(context);
    this.prompt = payload.prompt;
    this.row = payload.row;
    this.head = selection.value.head ?? 0;
    this.element = h("section", { attributes: { "aria-label": "a, b and their difference" } }, this.title, this.known, this.tools, this.place, this.status, this.changes);
    this.tell();
    selection.on((value, before) => {
      const form = this.form;
      if (value.head !== before.head && value.head !== null && form?.heads && value.head < form.heads && value.head !== this.head) {
        this.head = value.head;
        this.draw();
      }
      if (value.row !== before.row && value.row < payload.batch) void this.turn(value.row);
      if (value.token !== before.token && value.token !== null && form && !form.height && value.token < this.prompt!.length)
        this.point(value.token, this.cursor?.column ?? 0);
    }, signal);
  }

  private get form(): Form | undefined {
    return this.payload.forms[this.payload.form[this.at]];
  }

  /** Height and width of the matrix. */
  private get size(): [number, number] {
    const { height, width } = this.form!;
    const length = this.prompt?.length ?? 1;
    return [height || length, width || length];
  }

  show(at: number): void {
    const { payload } = this;
    this.at = at;
    const [relative, most, kl, flipped, variation] = payload.numbers.data.subarray(5 * at, 5 * at + 5);
    const kind = payload.kinds[at];
    fill(this.title, visible(payload.names[at]));
    const logits = kind === "logits" || kind === "lens";
    const told = facts([
      ["relative", number(relative)],
      ["largest |b − a|", `${exactly(most)} at ${payload.where[at]}`],
      logits ? ["KL(a ‖ b)", `${number(kl)} nats`] : null,
      logits ? ["top token differs at", `${number(100 * flipped)} %`] : null,
      payload.names[at].endsWith(".pattern") ? ["total variation", number(variation)] : null,
    ]);
    fill(this.known, told);
    const spot = payload.spots.data.subarray(4 * at, 4 * at + 4);
    if (spot[1] >= 0) this.head = spot[1];
    this.cursor = null;
    this.draw();
    if (this.form && (spot[0] < 0 || spot[0] === this.row)) this.point(spot[2], spot[3]);
  }

  /** Another row of the batch. */
  private async turn(row: number): Promise<void> {
    if (row === this.row || !this.prompt) return;
    try {
      this.prompt = await this.context.ask("prompt", { row });
    } catch (error) {
      return fill(this.status, sentence(error));
    }
    this.row = row;
    this.cursor = null;
    this.tell();
    this.draw();
  }

  /** To the entry that changed most. */
  private async go(): Promise<void> {
    const [row, head, i, j] = this.payload.spots.data.subarray(4 * this.at, 4 * this.at + 4);
    if (row >= 0) await this.turn(row);
    if (head >= 0 && head !== this.head) {
      this.head = head;
      this.draw();
    }
    const [height, width] = this.size;
    const span = (at: number, size: number) => [Math.max(0, Math.min(at - AROUND, size - 2 * AROUND)), Math.min(size, Math.max(at + AROUND, 2 * AROUND))];
    const [[top, bottom], [left, right]] = [span(i, height), span(j, width)];
    this.maps[0].show({ top, bottom, left, right });
    this.point(i, j);
  }

  private draw(): void {
    this.ended?.abort();
    this.ended = within(this.context.signal);
    const { payload, form } = this;
    const before = this.maps[0]?.view;
    this.maps = [];
    fill(this.tools);
    fill(this.status);
    if (!form) return this.lens();
    const [height, width] = this.size;
    const numbered = (count: number) => Array.from({ length: count }, (_, i) => [String(i), String(i)] as const);
    const zoom = (factor: number) => {
      const { view } = this.maps[0];
      const { row, column } = this.cursor ?? { row: (view.top + view.bottom - 1) / 2, column: (view.left + view.right - 1) / 2 };
      this.maps[0].show(zoomed(view, factor, row, column, height, width));
    };
    const again = () => this.draw();
    fill(
      this.tools,
      button("+", () => zoom(0.5), "Zoom in"),
      button("−", () => zoom(2), "Zoom out"),
      button("all", () => this.maps[0].show(whole(height, width)), "Show the whole"),
      button("go to the largest change", () => void this.go()),
      payload.batch > 1 && choice("row", numbered(payload.batch), String(this.row), (row) => {
        void this.turn(Number(row));
        this.context.select({ row: Number(row) });
      }),
      form.heads > 0 && choice("head", numbered(form.heads), String(this.head), (head) => {
        this.head = Number(head);
        again();
        this.context.select({ head: this.head });
      }),
      choice("scale", SCALES, this.scale, (name) => ((this.scale = name as ScaleName), again())),
      choice("cell", POOLS, this.pool, (name) => ((this.pool = name as Pool), again())),
    );
    this.maps = PARTS.map((part) => this.map(part, height, width));
    const figures = this.maps.map((map, i) => h("figure", { class: `loupe-side loupe-${PARTS[i]}` }, h("figcaption", {}, NAMES[PARTS[i]]), map.element));
    fill(this.place, h("div", { class: "loupe-sides" }, ...figures));
    if (before && before.bottom <= height && before.right <= width && this.kept === `${height} ${width}`) this.maps[0].show(before);
    this.kept = `${height} ${width}`;
    if (this.cursor) this.point(this.cursor.row, this.cursor.column);
  }

  private kept = "";

  private map(part: (typeof PARTS)[number], height: number, width: number): Heatmap {
    const form = this.form!;
    const { names, kinds } = this.payload;
    const name = names[this.at];
    const about = { name, row: this.row, head: form.heads ? this.head : 0 };
    const [tokens, weight] = [this.prompt?.tokens, kinds[this.at] === "weight"];
    const label = (yes: boolean) => (yes && tokens ? (i: number) => tokens[i] : undefined);
    const source: Source = {
      height,
      width,
      rowName: form.height ? "rows" : form.width ? "positions" : "queries",
      columnName: form.width ? "columns" : "keys",
      rowLabel: label(!form.height),
      columnLabel: label(!form.width),
      masked: form.width ? undefined : (_, bottom, left) => left >= bottom,
      cells: async (window, rows, columns, pool) => {
        const found = (side: string) => this.tiles.cells(about, height, width, window, rows, columns, pool, side);
        const cells = await found(part);
        if (part === "change") return cells;
        const other = await found(part === "a" ? "b" : "a");
        const [one, two] = [limits(cells.values), limits(other.values)];
        this.common = [Math.min(0, one.low, two.low), Math.max(one.high, two.high)];
        return cells;
      },
    };
    const common = () => (part === "change" ? undefined : this.common);
    const settings: Settings = {
      value: NAMES[part],
      label: `${NAMES[part]} of ${visible(name)}`,
      diverging: part === "change" || !name.endsWith(".pattern"),
      get range() {
        return common();
      },
      scale: this.scale,
      pools: [this.pool],
      maxHeight: 340,
      signal: this.ended!.signal,
      moved: (window) => this.link(window),
      pointed: (row, column) => this.tellOf(row, column),
      chosen: (row, column) => {
        this.point(row, column);
        this.context.select({
          ...(!form.height && { token: row }),
          ...(form.heads && { head: this.head, layer: layerOf(name) }),
          ...(form.size && !weight && this.headOf(column)),
        });
      },
    };
    const map = new Heatmap(source, settings);
    map.element.addEventListener("loupe-drawn", () => this.cursor && this.tellOf(this.cursor.row, this.cursor.column), { signal: this.ended!.signal });
    return map;
  }

  private headOf(column: number): { head: number } | null {
    return /\.(q|q_rot|z|head_out)$/.test(this.payload.names[this.at]) ? { head: Math.floor(column / this.form!.size) } : null;
  }

  private link(window: Window): void {
    for (const map of this.maps) if (map.view.top !== window.top || map.view.bottom !== window.bottom || map.view.left !== window.left || map.view.right !== window.right) map.show(window);
  }

  private point(row: number, column: number): void {
    this.cursor = { row, column };
    for (const map of this.maps) map.point(row, column);
    this.tellOf(row, column);
  }

  /** One line: where, and all three numbers. */
  private tellOf(row: number, column: number): void {
    const said = this.maps.map((map) => map.describe(row, column));
    if (said.some((text) => !text)) return;
    const cut = said[0].lastIndexOf(": ");
    const head = this.form?.size ? ` (head ${Math.floor(column / this.form.size)})` : "";
    fill(this.status, `${said[0].slice(0, cut)}${head}: `, said.map((text) => text.slice(text.lastIndexOf(": ") + 2)).join(" · "));
  }

  /** Layers of the lens are numbers only. */
  private lens(): void {
    const { names, kinds, numbers } = this.payload;
    const layers = names.map((_, i) => i).filter((i) => kinds[i] === "lens").sort((a, b) => layerOf(names[a])! - layerOf(names[b])!);
    const most = Math.max(...layers.map((i) => numbers.data[5 * i + 2])) || 1;
    const items = layers.map((i) => {
      const [kl, flipped] = numbers.data.subarray(5 * i + 2, 5 * i + 4);
      const act = () => {
        this.choose(i);
        this.context.select({ layer: layerOf(names[i]) });
      };
      const made = share(kl / most, act, `layer ${layerOf(names[i])}: ${number(kl)} nats, top token differs at ${number(100 * flipped)} %`);
      if (i === this.at) made.setAttribute("aria-current", "true");
      return h("li", {}, made);
    });
    fill(this.place, h("div", { class: "loupe-where" }, "What each layer would say, as the logit lens reads it: KL(a ‖ b), the mean over positions. Its logits are not kept, so there is no map."), h("ol", { class: "loupe-reads" }, ...items));
  }

  /** Where the prompts differ. */
  private tell(): void {
    const { prompt } = this;
    if (!prompt?.differ) return fill(this.changes, this.payload.batch > 1 && prompt && "The tokens of this row are the same.");
    const { positions, others, tokens, differ } = prompt;
    const items = others.map((other, i) => {
      const at = positions.data[i];
      return h("li", {}, button(`${at} ${quoted(tokens[at], 20)} → ${quoted(other, 20)}`, () => this.context.select({ token: at })));
    });
    const rest = differ > others.length ? `, the first ${others.length} of them` : "";
    fill(this.changes, h("div", { class: "loupe-where" }, `Tokens differ at ${differ.toLocaleString("en")} of ${prompt.length.toLocaleString("en")} positions${rest} (a → b):`), h("ol", { class: "loupe-reads" }, ...items));
  }
}
