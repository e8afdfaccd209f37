// From a number to a colour. Colours are 32 bits as ImageData lays them out: alpha, blue, green, red.

import { BERLIN, CIVIDIS, RDBU, VIRIDIS } from "./tables";

export type MapName = "viridis" | "cividis" | "diverging";
/** `counts` is log(1 + value), for what begins at zero. */
export type ScaleName = "linear" | "sqrt" | "log" | "counts";

export const SCALES = [["linear", "linear"], ["sqrt", "square root"], ["log", "log"]] as const;

/** NaN and infinity: in no map. */
export const BAD = 0xffff00ff;
export const BAD_CSS = "#ff00ff";

function table(hexadecimal: string): Uint32Array {
  const part = (at: number, channel: number) => Number.parseInt(hexadecimal.slice(6 * at + 2 * channel, 6 * at + 2 * channel + 2), 16);
  return Uint32Array.from({ length: 256 }, (_, i) => {
    const [at, rest] = [Math.floor(i / 5), (i % 5) / 5];
    const [red, green, blue] = [0, 1, 2].map((c) => Math.round(part(at, c) + (rest && rest * (part(at + 1, c) - part(at, c)))));
    return 0xff000000 | (blue << 16) | (green << 8) | red;
  });
}

const TABLES = { viridis: table(VIRIDIS), cividis: table(CIVIDIS), light: table(RDBU), dark: table(BERLIN) };

/** 256 colours. What is near zero in the diverging map is near the page's own ground. */
export function colours(map: MapName, dark: boolean): Uint32Array {
  return map === "diverging" ? TABLES[dark ? "dark" : "light"] : TABLES[map];
}

export function css(colour: number): string {
  return `rgb(${colour & 255}, ${(colour >> 8) & 255}, ${(colour >> 16) & 255})`;
}

/** Black or white, whichever has more contrast (WCAG 2's relative luminance). */
export function inkOn(colour: number): string {
  const [r, g, b] = [0, 8, 16].map((shift) => (((colour >> shift) & 255) / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#000" : "#fff";
}

// A log scale shows so many powers of ten below the largest value, if it does not say how many.
export const DECADES = 4;

export interface Scale {
  name: ScaleName;
  low: number;
  high: number;
  /** Colours around zero, to both sides equally. */
  diverging: boolean;
  decades: number;
}

/** A scale over these limits; of a diverging one they become symmetric. */
export function scaleOver(low: number, high: number, diverging: boolean, name: ScaleName = "linear", decades = DECADES): Scale {
  if (diverging) {
    const most = Math.max(Math.abs(low), Math.abs(high)) || 1;
    return { name, low: -most, high: most, diverging, decades };
  }
  return { name, low, high: high > low ? high : low + 1, diverging, decades };
}

/** Where a finite value stands on the scale: 0 to 1. */
export function place(scale: Scale, value: number): number {
  const { low, high, diverging } = scale;
  const size = diverging ? high : high - low;
  const part = bent(scale, Math.max(0, Math.min(1, (diverging ? Math.abs(value) : value - low) / size)), size);
  return diverging ? 0.5 + (value < 0 ? -part : part) / 2 : part;
}

function bent({ name, decades }: Scale, part: number, size: number): number {
  if (name === "sqrt") return Math.sqrt(part);
  if (name === "log") return part > 0 ? Math.max(0, 1 + Math.log10(part) / decades) : 0;
  return name === "counts" ? Math.log1p(part * size) / Math.log1p(size) : part;
}

/** The value that stands at `part` of the scale, for the numbers at a colour bar. */
export function valueAt(scale: Scale, part: number): number {
  const { low, high, diverging } = scale;
  if (!diverging) return low + unbent(scale, part, high - low) * (high - low);
  const side = 2 * part - 1;
  return Math.sign(side) * unbent(scale, Math.abs(side), high) * high;
}

function unbent({ name, decades }: Scale, part: number, size: number): number {
  if (name === "sqrt") return part * part;
  if (name === "log") return part > 0 ? 10 ** ((part - 1) * decades) : 0;
  return name === "counts" ? Math.expm1(part * Math.log1p(size)) / size : part;
}

/** Round numbers on a scale between two values, about `most` of them, for lines behind a chart. */
export function marks(low: number, high: number, name: ScaleName, decades = DECADES, most = 5): number[] {
  const inside = (value: number) => value >= low && value <= high;
  if (name === "log" || name === "counts") {
    const first = Math.floor(Math.log10(Math.max(-low, high) || 1));
    const powers = Array.from({ length: name === "log" ? Math.ceil(decades) : first + 1 }, (_, k) => 10 ** (first - k));
    return [0, ...powers.flatMap((power) => [power, -power])].filter(inside);
  }
  const raw = (high - low || 1) / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((times) => times * power >= raw)! * power;
  return Array.from({ length: 13 }, (_, k) => Number(((Math.ceil(low / step) + k) * step).toPrecision(12))).filter(inside);
}

export function colourOf(scale: Scale, colours: Uint32Array, value: number): number {
  if (!Number.isFinite(value)) return BAD;
  return colours[Math.round(255 * place(scale, value))];
}

export interface Limits {
  low: number;
  high: number;
  bad: number;
}

/** The finite values' limits, and how many others there are; `skip` says which do not count. */
export function limits(values: ArrayLike<number>, skip?: (index: number) => boolean): Limits {
  let [low, high, bad] = [Infinity, -Infinity, 0];
  for (let i = 0; i < values.length; i++) {
    if (skip?.(i)) continue;
    const value = values[i];
    if (!Number.isFinite(value)) bad++;
    else {
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return low <= high ? { low, high, bad } : { low: 0, high: 1, bad };
}
