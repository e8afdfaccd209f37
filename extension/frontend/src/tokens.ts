// The text of a run: each token a button in the colour of a measure, and what was likely in its place.

import { statusLine } from "./canvas";
import { SCALES, type Scale, type ScaleName, colourOf, colours, css, inkOn, limits, scaleOver, valueAt } from "./colour";
import { type Context, type Draw, empty } from "./context";
import { choice, fill, h, number, quoted, sentence, set, visible } from "./dom";
import { exactly } from "./heatmap";
import { Legend } from "./legend";
import { onTheme, themeOf } from "./theme";
import type { NumberArray } from "./wire";

interface Measure {
  name: string;
  text: string;
  unit: string;
  meaning: string;
  layers: number[];
}

interface Values {
  values: NumberArray;
  /** 1 where a token has a value. */
  known: NumberArray;
}

interface Payload {
  tokens: string[];
  measures: Measure[];
  first: Values | null;
  /** Whether the likeliest tokens can be asked for. */
  tops: boolean;
  sentence: string | null;
  code: string | null;
}

/** From numbers to colours that begin at the page's own ground, so that text on them is read. */
export class Ramp {
  private readonly scale: Scale;
  readonly colours: Uint32Array;

  /** `side` of the diverging map: 1 is warm, -1 cool. `sign` -1: the smallest are the strongest. */
  constructor(low: number, high: number, name: ScaleName, dark: boolean, side = 1, private readonly sign = 1) {
    this.scale = sign < 0 ? scaleOver(-high, -low, false, name) : scaleOver(low, high, false, name);
    const both = colours("diverging", dark);
    this.colours = Uint32Array.from({ length: 256 }, (_, i) => both[Math.round(127.5 + side * (0.5 + 0.42 * i))]);
  }

  colour(value: number): number {
    return colourOf(this.scale, this.colours, this.sign * value);
  }

  /** The value that has `part` of the full colour. */
  at(part: number): number {
    return this.sign * valueAt(this.scale, part);
  }
}

export interface Likely {
  texts: string[];
  probabilities: ArrayLike<number>;
  /** Which of them it really was. */
  real: number | null;
}

/** Tokens with their probabilities, each a bar, or a button where one may be picked. */
export function likely(found: Likely, pick?: (index: number) => void, picked?: number): HTMLOListElement {
  const row = (text: string, index: number) => {
    const p = found.probabilities[index];
    const bar = h("i");
    bar.style.width = `${Number.isFinite(p) ? 100 * p : 0}%`;
    const parts = [
      h("span", { class: "loupe-token" }, shown(text)),
      h("span", { class: "loupe-track" }, bar),
      h("span", { attributes: { title: exactly(p) } }, number(p)),
      index === found.real && h("b", { attributes: { title: "the token that really came" } }, "came"),
    ];
    if (!pick) return h("li", {}, h("div", {}, ...parts));
    return h("li", {}, h("button", { on: { click: () => pick(index) }, attributes: { type: "button", "aria-pressed": index === picked ? "true" : "false" } }, ...parts));
  };
  return h("ol", { class: "loupe-likely" }, ...found.texts.map(row));
}

/** A token's text in which breaks, tabs and spaces that stand at an end or in a row are seen. */
export function shown(text: string, most = 200): string {
  const marked = text.replace(/\n/g, "↵").replace(/\t/g, "→");
  return visible(marked, most).replace(/ {2,}| $/g, (spaces) => "·".repeat(spaces.length));
}

const isNorm = ({ text }: Measure) => text.startsWith("norm");
const scaleFor = (measure: Measure): ScaleName => (measure.name === "rank" ? "counts" : isNorm(measure) ? "sqrt" : "linear");

export const tokens: Draw = (element, context) => {
  const payload: Payload = context.payload;
  const { selection, signal } = context;
  let measure: Measure | undefined = payload.measures[0];
  let scale: ScaleName = measure ? scaleFor(measure) : "linear";
  let values: Values | null = payload.first;
  const layer = () => {
    const { layers } = measure!;
    const chosen = selection.value.layer;
    return chosen !== null && layers.includes(chosen) ? chosen : (layers[0] ?? null);
  };

  const legend = new Legend();
  const meaning = h("div", { class: "loupe-where" });
  const status = statusLine();
  const layerPlace = h("span");
  const scalePlace = h("span");
  const buttons = payload.tokens.map((piece, at) =>
    h("button", { class: "loupe-token", attributes: { type: "button", tabindex: -1, "data-at": at } }, shown(piece)),
  );
  const lines = buttons.flatMap((made, at) => (payload.tokens[at].includes("\n") ? [made, h("br")] : [made]));
  const text = h("div", { class: "loupe-text", attributes: { role: "group", "aria-label": "The text. Arrow keys move, Enter chooses a token." } }, ...lines);
  const expected = new Expected(context, payload);
  const left = h("div", {});
  if (measure) {
    const items = payload.measures.map(({ name, text }) => [name, text] as const);
    left.append(
      h("div", { class: "loupe-tools" }, choice("colour", items, measure.name, (name) => take(name)), layerPlace, scalePlace),
      legend.element,
      meaning,
    );
  }
  left.append(text, status);
  if (payload.sentence) {
    const note = h("div");
    empty(note, { sentence: payload.sentence, code: payload.code });
    left.append(note);
  }
  element.append(left);
  if (payload.tops) element.append(expected.element);

  function take(name: string): void {
    measure = payload.measures.find((each) => each.name === name)!;
    scale = scaleFor(measure);
    tools();
    void load();
  }
  function tools(): void {
    if (!measure) return;
    const items = measure.layers.map((each) => [String(each), String(each)] as const);
    fill(layerPlace, items.length > 0 && choice("layer", items, String(layer()), (value) => choose(Number(value))));
    // The logarithm of a rank is that of one more.
    const scales = measure.name === "rank" ? SCALES.map(([name, text]) => [name === "log" ? "counts" : name, text] as const) : SCALES;
    fill(scalePlace, choice("scale", scales, scale, (value) => {
      scale = value as ScaleName;
      paint();
    }));
    fill(meaning, measure.meaning);
  }
  function choose(value: number): void {
    if (selection.value.layer === value) void load();
    else context.select({ layer: value });
  }
  async function load(): Promise<void> {
    const wanted = measure!;
    fill(status, "…");
    try {
      const found = await context.ask("values", { measure: wanted.name, layer: layer() });
      if (wanted !== measure) return;
      values = found;
    } catch (error) {
      if (wanted !== measure) return;
      values = null;
      fill(status, sentence(error));
      paint();
      return;
    }
    paint();
    say();
  }

  function paint(): void {
    const known = values?.known.data;
    const numbers = values?.values.data;
    const { low, high, bad } = limits(numbers ?? [], (at) => !known![at]);
    const sign = measure?.name === "logprob" ? -1 : 1;
    // Norms are far from zero, and of the first token often far from the others'.
    const norm = !!measure && isNorm(measure);
    const ends = norm ? [low, high] : [Math.min(0, low), Math.max(0, high)];
    const ramp = new Ramp(ends[0], ends[1], scale, themeOf(element).dark, norm ? -1 : 1, sign);
    for (const [at, made] of buttons.entries()) {
      const here = !!known?.[at];
      const colour = here ? ramp.colour(numbers![at]) : 0;
      made.style.backgroundColor = here ? css(colour) : "";
      made.style.color = here ? inkOn(colour) : "";
      made.classList.toggle("loupe-none", !here);
    }
    if (measure) legend.show(ramp.colours, (part) => ramp.at(part), `${measure.text}${measure.unit && `, ${measure.unit}`}`, bad);
  }

  // What is told of: the token under the pointer, else that with the focus, else the chosen one.
  let [hovered, focused] = [null as number | null, null as number | null];
  let stop = 0;
  const about = () => hovered ?? focused ?? inside(selection.value.token);
  const inside = (at: number | null) => (at !== null && at < buttons.length ? at : null);
  function say(): void {
    const at = about();
    expected.show(at ?? buttons.length - 1);
    if (at === null) return fill(status, measure ? "Point at a token to see its number; choose it for all views." : "");
    const name = `Token ${at} ${quoted(payload.tokens[at])}`;
    if (!measure || !values) return fill(status, name);
    const what = measure.layers.length ? `${measure.text}, layer ${layer()},` : measure.text;
    if (!values.known.data[at]) return fill(status, `${name} has no ${measure.text}${at === 0 && !isNorm(measure) ? ": nothing stands before it" : ""}`);
    fill(status, `${name}: ${what} ${exactly(values.values.data[at])}${measure.unit && ` ${measure.unit}`}`);
  }
  function rove(at: number): void {
    set(buttons[stop], "tabindex", -1);
    stop = at;
    set(buttons[stop], "tabindex", 0);
  }
  function mark(before: number | null): void {
    if (inside(before) !== null) set(buttons[before!], "aria-current", null);
    const at = inside(selection.value.token);
    if (at === null) return;
    set(buttons[at], "aria-current", "true");
    rove(at);
    const { offsetTop, offsetHeight } = buttons[at];
    if (offsetTop < text.scrollTop) text.scrollTop = offsetTop - 4;
    else if (offsetTop + offsetHeight > text.scrollTop + text.clientHeight) text.scrollTop = offsetTop + offsetHeight - text.clientHeight + 4;
  }
  const under = (event: Event) => {
    const made = (event.target as Element).closest?.("[data-at]");
    return made ? Number(made.getAttribute("data-at")) : null;
  };

  /** The token above or below, as the lines have turned out. */
  function beside(at: number, down: boolean): number {
    const middle = (made: HTMLElement) => made.offsetLeft + made.offsetWidth / 2;
    const top = buttons[at].offsetTop;
    const step = down ? 1 : -1;
    let [best, line] = [at, null as number | null];
    for (let i = at + step; i >= 0 && i < buttons.length; i += step) {
      if (Math.abs(buttons[i].offsetTop - top) < 4) continue;
      line ??= buttons[i].offsetTop;
      if (Math.abs(buttons[i].offsetTop - line) >= 4) break;
      if (best === at || Math.abs(middle(buttons[i]) - middle(buttons[at])) < Math.abs(middle(buttons[best]) - middle(buttons[at]))) best = i;
    }
    return best;
  }

  const listen = <K extends keyof HTMLElementEventMap>(name: K, act: (event: HTMLElementEventMap[K]) => void) => text.addEventListener(name, act, { signal });
  listen("click", (event) => {
    const at = under(event);
    if (at !== null) context.select({ token: at });
  });
  listen("pointerover", (event) => {
    hovered = under(event);
    say();
  });
  listen("pointerleave", () => {
    hovered = null;
    say();
  });
  listen("focusin", (event) => {
    focused = under(event);
    if (focused !== null) rove(focused);
    say();
  });
  listen("focusout", () => {
    focused = null;
    say();
  });
  listen("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const to: Record<string, () => number> = {
      ArrowLeft: () => stop - 1,
      ArrowRight: () => stop + 1,
      ArrowUp: () => beside(stop, false),
      ArrowDown: () => beside(stop, true),
      Home: () => 0,
      End: () => buttons.length - 1,
    };
    const at = to[event.key]?.();
    if (at === undefined) return;
    buttons[Math.max(0, Math.min(buttons.length - 1, at))].focus();
    event.preventDefault();
    event.stopPropagation();
  });

  selection.on((value, before) => {
    if (value.token !== before.token) mark(before.token);
    if (value.layer !== before.layer && measure?.layers.length) {
      const select = layerPlace.querySelector("select");
      if (select) select.value = String(layer());
      void load();
    }
    say();
  }, signal);
  onTheme(paint, signal);
  tools();
  rove(0);
  mark(null);
  paint();
  if (measure && layer() !== (measure.layers[0] ?? null)) void load();
  say();
};

/** The likeliest tokens in the place of one. */
class Expected {
  private readonly title = h("div", { class: "loupe-where" });
  private readonly list = h("div");
  readonly element = h("div", { class: "loupe-expected" }, this.title, this.list);
  private readonly known = new Map<number, any>();
  private at: number | undefined;
  private later: ReturnType<typeof setTimeout> | undefined;

  constructor(private readonly context: Context, private readonly payload: Payload) {
    context.signal.addEventListener("abort", () => clearTimeout(this.later));
  }

  show(at: number): void {
    if (at === this.at || !this.payload.tops) return;
    this.at = at;
    clearTimeout(this.later);
    if (at < 1) {
      fill(this.title, "Nothing stands before the first token, so nothing was expected.");
      return fill(this.list);
    }
    if (this.known.has(at)) this.draw(at);
    // A hand on its way elsewhere asks nothing.
    else this.later = setTimeout(() => this.fetch(at), 100);
  }

  private async fetch(at: number): Promise<void> {
    try {
      const found = await this.context.ask("top", { token: at });
      if (this.known.size >= 512) this.known.delete(this.known.keys().next().value!);
      this.known.set(at, found);
      if (at === this.at) this.draw(at);
    } catch (error) {
      if (at !== this.at) return;
      fill(this.title, sentence(error));
      fill(this.list);
    }
  }

  private draw(at: number): void {
    const found = this.known.get(at);
    const [p, rank] = found.own.data;
    const name = quoted(this.payload.tokens[at], 24);
    fill(this.title, `Before token ${at} ${name} the model expected:`);
    const place = found.ids.data.indexOf(found.id);
    fill(
      this.list,
      likely({ texts: found.texts, probabilities: found.probabilities.data, real: place < 0 ? null : place }),
      h("div", {}, `${name}: probability ${exactly(p)}, rank ${exactly(rank)}`),
    );
  }
}
