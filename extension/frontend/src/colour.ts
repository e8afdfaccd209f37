// From a number to a colour. Colours are 32 bits as ImageData lays them out: alpha, blue, green, red.

import { BERLIN, CIVIDIS, RDBU, VIRIDIS } from "./tables";

export type MapName = "viridis" | "cividis" | "diverging";
export type ScaleName = "linear" | "sqrt" | "log";

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

/** Black or white, whichever is easier to read on `colour`. */
export function inkOn(colour: number): string {
  const light = 0.299 * (colour & 255) + 0.587 * ((colour >> 8) & 255) + 0.114 * ((colour >> 16) & 255);
  return light > 140 ? "#000" : "#fff";
}

// The log scale shows so many powers of ten below the largest value.
export const DECADES = 4;

export interface Scale {
  name: ScaleName;
  low: number;
  high: number;
  /** Colours around zero, to both sides equally. */
  diverging: boolean;
}

/** A scale over these limits; of a diverging one they become symmetric. */
export function scaleOver(low: number, high: number, diverging: boolean, name: ScaleName = "linear"): Scale {
  if (diverging) {
    const most = Math.max(Math.abs(low), Math.abs(high)) || 1;
    return { name, low: -most, high: most, diverging };
  }
  return { name, low, high: high > low ? high : low + 1, diverging };
}

/** Where a finite value stands on the scale: 0 to 1. */
export function place(scale: Scale, value: number): number {
  const { low, high, name, diverging } = scale;
  if (diverging) {
    const part = bent(name, Math.min(1, Math.abs(value) / high));
    return 0.5 + (value < 0 ? -part : part) / 2;
  }
  return bent(name, Math.max(0, Math.min(1, (value - low) / (high - low))));
}

function bent(name: ScaleName, part: number): number {
  if (name === "sqrt") return Math.sqrt(part);
  if (name === "log") return part > 0 ? Math.max(0, 1 + Math.log10(part) / DECADES) : 0;
  return part;
}

/** The value that stands at `part` of the scale, for the numbers at a colour bar. */
export function valueAt(scale: Scale, part: number): number {
  const { low, high, name, diverging } = scale;
  const unbent = (x: number) => (name === "sqrt" ? x * x : name === "log" ? (x > 0 ? 10 ** ((x - 1) * DECADES) : 0) : x);
  if (diverging) {
    const side = 2 * part - 1;
    return Math.sign(side) * unbent(Math.abs(side)) * high;
  }
  return low + unbent(part) * (high - low);
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
