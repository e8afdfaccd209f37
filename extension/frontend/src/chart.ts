// Numbers side by side, as bars or as a line, which the pointer and the arrow keys read.

import { below, cleared, drawing, keys, resized, statusLine } from "./canvas";
import { BAD_CSS, type ScaleName, colours, css, limits, marks, place, scaleOver } from "./colour";
import { fill, h, number, set } from "./dom";
import { edges, ticks } from "./grid";
import { broken } from "./legend";
import { onTheme, themeOf } from "./theme";

export interface Drawn {
  /** What the numbers are, for who does not see them. */
  label: string;
  values: ArrayLike<number>;
  scale: ScaleName;
  /** How many powers of ten a log scale goes down. */
  decades?: number;
  /** Between which the values can lie, where that is known. */
  limits?: [number, number];
  line?: boolean;
  /** Zero stands on top. */
  down?: boolean;
  /** The text under an entry; `each` where all entries have room for theirs. */
  name?(index: number, each: boolean): string;
  /** Texts along the axis, from 0 to 1, where entries have no names. */
  marks?: readonly (readonly [at: number, text: string])[];
  describe(index: number): string;
  /** What is said while nothing is pointed at. */
  summary?: string;
}

const SIDES = { left: 64, right: 26, top: 8 };
// Pixels that a text under an entry needs, and that it needs to stand across.
const READABLE = 13;
const WIDE = 44;

export class Chart {
  private readonly canvas = drawing();
  readonly element: HTMLElement;
  private drawn: Drawn | null = null;
  private cursor: number | null = null;
  private hovered: number | null = null;
  private wide = 60;
  private bad = 0;

  /** `chosen` is called by click and key; without it the cursor just moves there. */
  constructor(
    signal: AbortSignal,
    private readonly tall: number,
    chosen = (index: number) => this.point(index),
    readonly status = statusLine(),
  ) {
    const { canvas } = this;
    canvas.hidden = true;
    this.element = h("div", { class: "loupe-chart" }, canvas, status);
    const hover = (index: number | null) => {
      this.hovered = index;
      this.tell();
      this.paint();
    };
    canvas.addEventListener("pointermove", (event) => hover(this.under(event)), { signal });
    canvas.addEventListener("pointerleave", () => hover(null), { signal });
    canvas.addEventListener("click", (event) => chosen(this.under(event)), { signal });
    const step = (by: number) => () => chosen(this.inside((this.cursor ?? 0) + by * Math.max(1, Math.floor(this.count / this.wide))));
    keys(canvas, signal, { ArrowLeft: step(-1), ArrowRight: step(1), PageUp: step(-10), PageDown: step(10), Home: step(-Infinity), End: step(Infinity) });
    onTheme(() => this.paint(), signal);
    resized(this.element, signal, () => this.paint());
  }

  private get count(): number {
    return this.drawn?.values.length ?? 0;
  }

  private get at(): number | null {
    return this.hovered ?? this.cursor;
  }

  private inside(index: number): number {
    return Math.max(0, Math.min(this.count - 1, index));
  }

  /** Null takes the chart away. */
  show(drawn: Drawn | null): void {
    this.drawn = drawn;
    this.cursor = drawn && this.cursor !== null ? this.inside(this.cursor) : null;
    this.canvas.hidden = !drawn;
    this.bad = drawn ? limits(drawn.values).bad : 0;
    this.tell();
    this.paint();
  }

  point(index: number): void {
    this.cursor = index;
    this.tell();
    this.paint();
  }

  private tell(): void {
    const { drawn, at } = this;
    fill(this.status, drawn && (at === null ? drawn.summary : drawn.describe(at)), ...broken(this.bad));
  }

  private under(event: MouseEvent): number {
    const part = (event.clientX - this.canvas.getBoundingClientRect().left - SIDES.left) / this.wide;
    return this.inside(Math.floor(part * this.count));
  }

  private paint(): void {
    const { canvas, drawn, tall, element, count, at } = this;
    const full = Math.min(element.clientWidth, SIDES.left + SIDES.right + Math.max(240, count * 64));
    if (!drawn || !count || !full) return;
    const { line, down, decades } = drawn;
    const values = Array.from(drawn.values);
    const wide = (this.wide = Math.max(60, full - SIDES.left - SIDES.right));
    const dx = wide / count;
    const each = dx >= READABLE;
    const flat = dx >= WIDE || !each || !!drawn.marks;
    const room = flat ? 24 : 60;
    const brush = cleared(canvas, wide + SIDES.left + SIDES.right, SIDES.top + tall + room);
    const theme = themeOf(element);
    const found = limits(values);
    const [low, high] = drawn.limits ?? [Math.min(0, found.low), Math.max(0, found.high)];
    const scale = scaleOver(low, high, low < 0, drawn.scale, decades);
    const [bottom, top] = [place(scale, low), place(scale, high)];
    const y = (value: number) => {
      const part = (place(scale, value) - bottom) / (top - bottom || 1);
      return SIDES.top + tall * (down ? part : 1 - part);
    };
    const x = (index: number) => SIDES.left + (index * wide) / count;
    brush.font = theme.font;
    brush.textBaseline = "middle";
    brush.textAlign = "right";
    const said: number[] = [];
    for (const value of marks(low, high, drawn.scale, decades, tall / 36)) {
      const level = y(value);
      brush.fillStyle = theme.line;
      brush.globalAlpha = 0.4;
      brush.fillRect(SIDES.left, Math.round(level), wide, 1);
      brush.globalAlpha = 1;
      if (said.some((other) => Math.abs(other - level) < 15)) continue;
      said.push(level);
      brush.fillStyle = theme.faint;
      brush.fillText(number(value), SIDES.left - 6, level, SIDES.left - 8);
    }
    const zero = y(0);
    const cuts = edges(0, count, Math.floor(wide));
    const signs = colours("diverging", theme.dark);
    let joined = false; // no line crosses what has no number
    brush.lineWidth = 1.5;
    brush.strokeStyle = theme.accent;
    brush.beginPath();
    for (let i = 0; i + 1 < cuts.length; i++) {
      const [left, right] = [x(cuts[i]), x(cuts[i + 1])];
      const part = limits(values.slice(cuts[i], cuts[i + 1]));
      if (part.bad) {
        brush.fillStyle = BAD_CSS;
        brush.fillRect(left, SIDES.top, Math.max(1, right - left - 1), tall);
      }
      if (part.bad === cuts[i + 1] - cuts[i]) {
        joined = false;
        continue;
      }
      const gap = Math.min(4, (right - left) / 5);
      for (const value of new Set([part.low, part.high])) {
        brush.fillStyle = low < 0 && !line ? css(signs[value < 0 ? 36 : 220]) : theme.accent;
        const end = y(value);
        if (!line) brush.fillRect(left + gap / 2, Math.min(zero, end), Math.max(1, right - left - gap), Math.max(value ? 1 : 0, Math.abs(zero - end)));
        else {
          brush[joined ? "lineTo" : "moveTo"]((left + right) / 2, end);
          joined = true;
          if (count < 100) brush.fillRect((left + right) / 2 - 2, end - 2, 4, 4);
        }
      }
    }
    if (line) brush.stroke();
    brush.fillStyle = theme.ink;
    brush.fillRect(SIDES.left, Math.round(zero), wide, 1);
    const names = () => ticks(0, count, each ? Infinity : wide / 60).map((index) => [(index + 0.5) / count, drawn.name?.(index, each) ?? ""] as const);
    for (const [part, text] of drawn.marks ?? names())
      below(brush, text, SIDES.left + part * wide, SIDES.top + tall, flat, drawn.marks ? SIDES.left : flat ? Math.max(dx - 4, 40) : room - 8);
    if (at !== null && line) {
      const [middle, value] = [x(at + 0.5), values[at]];
      brush.fillRect(middle - 0.5, SIDES.top, 1, tall);
      if (Number.isFinite(value)) brush.fillRect(middle - 3.5, y(value) - 3.5, 7, 7);
    } else if (at !== null) {
      brush.strokeStyle = theme.ink;
      brush.lineWidth = 1;
      brush.strokeRect(Math.round(x(at)) + 0.5, SIDES.top - 2.5, Math.max(3, Math.round(dx) - 1), tall + 5);
    }
    set(canvas, "aria-label", `${drawn.label}, ${number(found.low)} to ${number(found.high)}. ${this.status.textContent}. Arrow keys move.`);
  }
}
