// The logit lens: layers down, the last on top, and tokens across; what each layer would say next.

import { cleared, drawing, keys, resized, statusLine } from "./canvas";
import { Chart } from "./chart";
import { type ScaleName, css, inkOn, limits } from "./colour";
import type { Context, Draw } from "./context";
import { button, choice, fill, h, quoted, sentence, set } from "./dom";
import { exactly } from "./heatmap";
import { Legend } from "./legend";
import { onTheme, themeOf } from "./theme";
import { Ramp, likely, shown } from "./tokens";
import type { NumberArray } from "./wire";

/** Of some columns: a number [layers, columns] of each measure; the texts row after row. */
type Block = Record<string, NumberArray> & { texts: string[] };

interface Measure {
  name: string;
  text: string;
  /** Before the number, in a sentence. */
  said: string;
  unit: string;
  /** The strongest colour's value; null where it is the largest that is here. */
  high: number | null;
  /** Whether it is of the token that came next. */
  next: boolean;
}

interface Payload {
  layers: number[];
  point: string;
  tokens: string[];
  /** Of each column the token after which the layers speak. */
  positions: NumberArray;
  measures: Measure[];
  block: number;
  /** The columns of the overview. */
  samples: NumberArray;
  start: number;
  first: Block;
}

const COLUMN = 78; // pixels that a text needs
const MOST_COLUMNS = 64;
const NAME = 24; // characters of a token

export const lens: Draw = (element, context) => {
  const payload: Payload = context.payload;
  const { layers, tokens, measures, block } = payload;
  const positions = payload.positions.data;
  const { selection, signal } = context;
  const size = positions.length;
  const blocks = new Map<number, Block | null>([[payload.start, payload.first]]); // null: asked for
  let measure = measures[0];
  let [from, count] = [0, 0];
  let cells: HTMLButtonElement[][] = [];
  let stop: HTMLButtonElement | undefined;

  const legend = new Legend();
  const where = h("span", { class: "loupe-where" });
  const table = h("table", { attributes: { role: "grid" } });
  const scroll = h("div", { class: "loupe-grid" }, table);
  const status = statusLine();
  const page = (by: number) => move(from + by * count);
  const pages = [button("‹", () => page(-1), "Earlier tokens"), button("›", () => page(1), "Later tokens")];
  const whole = overview(context, payload, page, (column) => move(column - (count >> 1)), () => paint());
  const detail = cell(context, payload);
  const colour = choice("colour", measures.map(({ name, text }) => [name, text] as const), measure.name, (name) => {
    measure = measures.find((each) => each.name === name)!;
    paint();
  });
  const tools = h("div", { class: "loupe-tools" }, colour, ...pages, where);
  const grid = h("div", {}, tools, legend.element, whole.element, scroll, status);
  element.append(grid, detail.element);

  const chosenColumn = () => positions.indexOf(selection.value.token ?? -1);
  const chosenRow = () => {
    const row = layers.indexOf(selection.value.layer ?? -1);
    return row < 0 ? layers.length - 1 : row;
  };

  function move(to: number): void {
    to = Math.max(0, Math.min(size - count, to));
    if (to === from) return;
    from = to;
    build();
  }

  /** The table of the window; texts come when they are here. */
  function build(): void {
    const across = Array.from(positions.subarray(from, from + count));
    const head = (what: string, token: number) => {
      const text = tokens[token];
      const parts = text === undefined ? ["?"] : [h("span", { class: "loupe-where" }, token), h("span", { class: "loupe-token" }, shown(text, NAME))];
      return h("th", { attributes: { scope: "col", "aria-label": `${what} ${token} ${quoted(text ?? "?", NAME)}` } }, h("div", {}, ...parts));
    };
    const heads = (what: string, by: number) => h("tr", {}, h("th", {}, what), ...across.map((token) => head(what, token + by)));
    cells = layers.map((_, row) =>
      across.map((_, i) => h("button", { class: "loupe-token", attributes: { type: "button", tabindex: -1, "data-row": row, "data-column": from + i } })),
    );
    const rows = cells.map((line, row) => h("tr", {}, h("th", { attributes: { scope: "row" } }, `layer ${layers[row]}`), ...line.map((made) => h("td", {}, made))));
    fill(table, h("thead", {}, heads("came next", 1)), h("tbody", {}, ...rows.reverse()), h("tfoot", {}, heads("after token", 0)));
    table.style.maxWidth = `${80 + count * 150}px`;
    set(table, "aria-label", `What each layer (${payload.point}) would say after each token, the last layer on top. Arrow keys choose a cell, Page Up and Down turn pages.`);
    fill(where, size === count ? `all ${size} tokens` : `columns ${from} to ${from + count - 1} of ${size.toLocaleString("en")}`);
    pages[0].disabled = from === 0;
    pages[1].disabled = from + count >= size;
    for (const each of pages) each.hidden = size === count;
    mark();
    paint();
    for (let start = from - (from % block); start < from + count; start += block) void fetch(start);
  }

  async function fetch(start: number): Promise<void> {
    if (blocks.has(start)) return;
    blocks.set(start, null);
    try {
      blocks.set(start, await context.ask("cells", { from: start }, `cells ${start}`));
      paint();
    } catch (error) {
      blocks.delete(start);
      fill(status, sentence(error));
    }
  }

  /** Where a cell stands in its block. */
  const find = (row: number, column: number): [Block | null | undefined, number] => {
    const found = blocks.get(column - (column % block));
    return [found, found ? row * found.top.shape[1] + (column % block) : 0];
  };
  const textOf = (row: number, column: number) => {
    const [found, at] = find(row, column);
    return found ? found.texts[at] : "…";
  };
  /** Undefined where there is none, or it has not come. */
  const valueOf = (row: number, column: number, name = measure.name, next = measure.next) => {
    const [found, at] = find(row, column);
    return next && positions[column] + 1 >= tokens.length ? undefined : found?.[name].data[at];
  };

  function paint(): void {
    const here = [...blocks.values(), ...whole.parts].map((part) => limits(part?.[measure.name].data ?? [0]).high);
    const rank = measure.name === "rank";
    const ramp = new Ramp(0, measure.high ?? Math.max(...here), rank ? "counts" : "linear", themeOf(element).dark, measure.high === 1 ? -1 : 1);
    let bad = 0;
    for (const line of cells)
      for (const made of line) {
        const [row, column] = placeOf(made);
        const value = valueOf(row, column);
        const colour = value === undefined ? null : ramp.colour(value);
        if (value !== undefined && !Number.isFinite(value)) bad++;
        fill(made, shown(textOf(row, column), NAME));
        made.style.backgroundColor = colour === null ? "" : css(colour);
        made.style.color = colour === null ? "" : inkOn(colour);
        made.classList.toggle("loupe-right", valueOf(row, column, "rank", true) === 0);
      }
    legend.show(ramp.colours, (part) => ramp.at(part), `${measure.text}${measure.unit && `, ${measure.unit}`}`, bad, "bold: it came next");
    whole.paint(from, count, ramp, measure);
    say();
  }

  const placeOf = (made: HTMLElement) => [Number(made.dataset.row), Number(made.dataset.column)];
  const under = (event: Event) => (event.target as Element).closest<HTMLElement>("[data-row]");

  function say(made: HTMLElement | null = null): void {
    made ??= table.querySelector<HTMLElement>("[aria-current]");
    if (!made) return fill(status, "Point at a cell to see its number; choose it to look into it.");
    const [row, column] = placeOf(made);
    const value = valueOf(row, column);
    const token = positions[column];
    const rest = value === undefined ? "" : `; ${measure.said} ${exactly(value)}${measure.unit && ` ${measure.unit}`}`;
    fill(status, `After token ${token} ${quoted(tokens[token], NAME)} layer ${layers[row]} (${payload.point}) would say ${quoted(textOf(row, column), NAME)}${rest}`);
  }

  /** The tab stop and the frame, where the selection is. */
  function mark(): void {
    const held = table.matches(":focus-within");
    if (stop) {
      set(stop, "aria-current", null);
      set(stop, "tabindex", -1);
    }
    const column = chosenColumn() - from;
    const inside = column >= 0 && column < count;
    stop = cells[chosenRow()][inside ? column : 0];
    set(stop, "tabindex", 0);
    set(stop, "aria-current", inside && "true");
    if (held) stop.focus({ preventScroll: true });
    // Clear of the header and the footer, which stay in place.
    const at = stop.getBoundingClientRect().top - table.getBoundingClientRect().top;
    scroll.scrollTop = Math.max(Math.min(scroll.scrollTop, at - 48), at + 72 - scroll.clientHeight);
  }

  function follow(): void {
    const column = chosenColumn();
    if (column >= 0 && (column < from || column >= from + count)) move(column - (count >> 1));
    mark();
    say();
    detail.show(column < 0 ? null : positions[column], chosenRow());
  }

  const select = (row: number, column: number) => {
    const to = (at: number, end: number) => Math.max(0, Math.min(end - 1, at));
    // A table that is built anew keeps the focus it had.
    const held = table.matches(":focus-within");
    context.select({ token: positions[to(column, size)], layer: layers[to(row, layers.length)] });
    if (held) stop?.focus({ preventScroll: true });
  };
  table.addEventListener("click", (event) => {
    const made = under(event);
    if (made) select(...(placeOf(made) as [number, number]));
  }, { signal });
  table.addEventListener("pointerover", (event) => say(under(event)), { signal });
  table.addEventListener("pointerleave", () => say(), { signal });
  table.addEventListener("focusin", (event) => say(under(event)), { signal });
  keys(table, signal, {
    ArrowUp: () => turn(1, 0),
    ArrowDown: () => turn(-1, 0),
    ArrowLeft: () => turn(0, -1),
    ArrowRight: () => turn(0, 1),
    PageUp: () => turn(0, -count),
    PageDown: () => turn(0, count),
    Home: () => turn(0, -size),
    End: () => turn(0, size),
  });
  const turn = (rows: number, columns: number) => {
    const [row, column] = placeOf(stop!);
    select(row + rows, column + columns);
  };
  selection.on(follow, signal);
  onTheme(paint, signal);
  resized(grid, signal, () => {
    const fits = Math.max(1, Math.min(MOST_COLUMNS, size, Math.floor((grid.clientWidth - 90) / COLUMN)));
    if (fits === count) return paint();
    count = fits;
    from = Math.min(from, size - count);
    whole.start(size > count);
    build();
    follow();
  });
};

/** The whole prompt, or an even sample of it, and where in it the window stands. */
function overview(context: Context, payload: Payload, page: (by: number) => void, go: (column: number) => void, came: () => void) {
  const canvas = drawing();
  const element = h("div", { class: "loupe-overview", attributes: { hidden: true } }, canvas);
  const { layers, tokens } = payload;
  const positions = payload.positions.data;
  const samples = payload.samples.data;
  const parts: Block[] = [];
  let started = false;
  canvas.addEventListener("click", (event) => go(Math.floor((event.offsetX / canvas.clientWidth) * positions.length)), { signal: context.signal });
  const [back, on] = [() => page(-1), () => page(1)];
  keys(canvas, context.signal, { ArrowLeft: back, PageUp: back, ArrowRight: on, PageDown: on, Home: () => go(0), End: () => go(positions.length) });

  /** Asks for its parts one after the other, so that other questions come in between. */
  async function start(visible: boolean): Promise<void> {
    element.hidden = !visible;
    if (!visible || started) return;
    started = true;
    for (let at = 0; at < samples.length && !context.signal.aborted; at += payload.block) {
      try {
        parts.push(await context.ask("overview", { from: at }));
      } catch {
        return;
      }
      came();
    }
  }

  function paint(from: number, count: number, ramp: Ramp, { name, next }: Measure): void {
    const width = element.clientWidth;
    if (!width) return;
    const columns = positions.length;
    const theme = themeOf(element);
    const tall = Math.max(1, Math.min(6, Math.floor(96 / layers.length)));
    const height = tall * layers.length;
    const brush = cleared(canvas, width, height + 4);
    brush.fillStyle = theme.masked;
    brush.fillRect(0, 2, width, height);
    const edge = (column: number) => Math.round((column / columns) * width);
    let sample = 0;
    for (const { [name]: { data, shape } } of parts)
      for (let i = 0; i < shape[1]; i++, sample++) {
        const [left, right] = [edge(samples[sample]), edge(samples[sample + 1] ?? columns)];
        if (next && positions[samples[sample]] + 1 >= tokens.length) continue;
        for (let row = 0; row < layers.length; row++) {
          brush.fillStyle = css(ramp.colour(data[row * shape[1] + i]));
          brush.fillRect(left, 2 + (layers.length - 1 - row) * tall, right - left, tall);
        }
      }
    const left = Math.max(1, edge(from));
    for (const [colour, line] of [[theme.ground, 4], [theme.ink, 2]] as const) {
      brush.strokeStyle = colour;
      brush.lineWidth = line;
      brush.strokeRect(left, 2, Math.max(4, Math.min(edge(from + count), width - 1) - left), height);
    }
    const drawn = samples.length < columns ? `, of which ${samples.length} are drawn` : "";
    const text = `The whole: ${columns.toLocaleString("en")} tokens${drawn}. The frame is the window below, columns ${from} to ${from + count - 1}. Arrow keys turn pages.`;
    set(canvas, "aria-label", text);
    set(canvas, "title", text);
  }
  return { element, parts, start, paint };
}

/** One cell: its likeliest tokens, and one of them through all layers. */
function cell(context: Context, payload: Payload) {
  const { layers, tokens } = payload;
  const title = h("div", { class: "loupe-title" });
  const list = h("div");
  const name = h("div", { class: "loupe-where" });
  const said = statusLine();
  let found: { ids: NumberArray; texts: string[]; next: number | null; probabilities: NumberArray; ranks: NumberArray } | null = null;
  let at: { token: number; row: number } | null = null;
  let picked = 0;
  let scale: ScaleName = "linear";
  const select = (row: number) => context.select({ layer: layers[row] });
  const axis = choice("probability", [["linear", "linear"], ["log", "log"]], scale, (value) => {
    scale = value as ScaleName;
    paint();
  });
  const [above, under] = [0, 1].map(() => new Chart(context.signal, 72, select, said));
  const chart = h("div", { attributes: { hidden: true } }, name, axis, above.element, h("div", {}, "rank"), under.element, said);
  const element = h("div", { class: "loupe-cell" }, title, list, chart);

  async function show(token: number | null, row: number): Promise<void> {
    if (token === null) {
      at = found = null;
      chart.hidden = true;
      fill(title, "Choose a cell to see its likeliest tokens, and to follow one through the layers.");
      return fill(list);
    }
    if (at?.token === token && at.row === row) return;
    const asked = (at = { token, row });
    try {
      const came = await context.ask("cell", { token, layer: layers[row] });
      if (at !== asked) return;
      const before = found ? came.ids.data.indexOf(found.ids.data[picked]) : -1;
      picked = before >= 0 ? before : (came.next ?? 0);
      found = came;
      fill(title, `After token ${token} ${quoted(tokens[token], NAME)} layer ${layers[row]} would say:`);
      draw();
    } catch (error) {
      if (at === asked) fill(title, sentence(error));
    }
  }

  /** The picked token's numbers, layer by layer. */
  const path = ({ data }: NumberArray, index = picked) => Array.from(data.subarray(index * layers.length, (index + 1) * layers.length));

  function draw(): void {
    const { texts, next, probabilities } = found!;
    const { token, row } = at!;
    const held = list.matches(":focus-within");
    const here = texts.map((_, index) => path(probabilities, index)[row]);
    fill(list, likely({ texts, probabilities: here, real: next }, (index) => {
      picked = index;
      draw();
    }, picked));
    if (held) list.querySelectorAll("button")[picked].focus();
    chart.hidden = false;
    const text = quoted(texts[picked], NAME);
    fill(name, `${text} after token ${token}, layer by layer:`);
    paint();
  }

  /** Probability above, rank below, layers from left to right. */
  function paint(): void {
    const { texts, probabilities, ranks } = found!;
    const both = [path(probabilities), path(ranks)];
    const text = quoted(texts[picked], NAME);
    const least = Math.max(1e-12, Math.min(0.1, ...both[0].filter((p) => p > 0)));
    const common = {
      line: true,
      name: (i: number) => String(layers[i]),
      describe: (i: number) => `${text} in layer ${layers[i]}: probability ${exactly(both[0][i])}, rank ${exactly(both[1][i])}`,
    };
    above.show({ ...common, label: "Probability", values: both[0], scale, decades: Math.ceil(-Math.log10(least)), limits: [0, 1] });
    under.show({ ...common, label: "Rank", values: both[1], scale: "counts", limits: [0, Math.max(1, limits(both[1]).high)], down: true });
    for (const each of [above, under]) each.point(at!.row);
  }
  return { element, show };
}
