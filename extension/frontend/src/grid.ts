// Windows of a matrix, and the cells into which a window is pooled. Nothing here draws.

/** Rows `top` to `bottom - 1`, columns `left` to `right - 1`. */
export interface Window {
  top: number;
  bottom: number;
  left: number;
  right: number;
}

/** Cell (i, j) pools rows `rows[i]` to `rows[i + 1] - 1` and the like columns. */
export interface Cells {
  rows: ArrayLike<number>;
  columns: ArrayLike<number>;
  values: ArrayLike<number>;
}

export function whole(height: number, width: number): Window {
  return { top: 0, bottom: height, left: 0, right: width };
}

export function same(a: Window, b: Window): boolean {
  return a.top === b.top && a.bottom === b.bottom && a.left === b.left && a.right === b.right;
}

/** Where `numpy.array_split` cuts: longer cells come first. */
export function edges(start: number, stop: number, most: number): Int32Array {
  const count = Math.max(1, Math.min(most, stop - start));
  const size = Math.floor((stop - start) / count);
  const longer = (stop - start) % count;
  return Int32Array.from({ length: count + 1 }, (_, i) => start + i * size + Math.min(i, longer));
}

/** How many cells, at most `most`, make almost all of them equally long. */
export function even(span: number, most: number): number {
  return Math.ceil(span / Math.ceil(span / most));
}

/** Which cell holds an index; `cuts` ascend. */
export function cellOf(cuts: ArrayLike<number>, index: number): number {
  let [low, high] = [0, cuts.length - 2];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (cuts[middle] <= index) low = middle;
    else high = middle - 1;
  }
  return low;
}

// No window shows fewer entries along an axis, unless the matrix has fewer.
const FEWEST = 4;

/** The window `factor` times as large, in which `row` and `column` stay where they are. */
export function zoomed(from: Window, factor: number, row: number, column: number, height: number, width: number): Window {
  const [top, bottom] = scaled(from.top, from.bottom, factor, row, height);
  const [left, right] = scaled(from.left, from.right, factor, column, width);
  return { top, bottom, left, right };
}

function scaled(start: number, stop: number, factor: number, at: number, size: number): [number, number] {
  const span = Math.min(size, Math.max(Math.min(FEWEST, size), Math.round((stop - start) * factor)));
  const part = (at + 0.5 - start) / (stop - start);
  const first = Math.round(at + 0.5 - part * span);
  const begin = Math.max(0, Math.min(size - span, first));
  return [begin, begin + span];
}

export function moved(from: Window, rows: number, columns: number, height: number, width: number): Window {
  const top = Math.max(0, Math.min(height - (from.bottom - from.top), from.top + rows));
  const left = Math.max(0, Math.min(width - (from.right - from.left), from.left + columns));
  return { top, bottom: top + from.bottom - from.top, left, right: left + from.right - from.left };
}

/** The window, moved as little as it takes to show an entry. */
export function showing(from: Window, row: number, column: number, height: number, width: number): Window {
  const off = (at: number, start: number, stop: number) => (at < start ? at - start : at >= stop ? at - stop + 1 : 0);
  return moved(from, off(row, from.top, from.bottom), off(column, from.left, from.right), height, width);
}

/** About `most` round numbers from start to stop - 1. */
export function ticks(start: number, stop: number, most: number): number[] {
  const span = Math.max(1, stop - start);
  let step = 1;
  for (let k = 0; span / step > most; k++) step = [1, 2, 5][k % 3] * 10 ** Math.floor(k / 3);
  const found: number[] = [];
  for (let at = Math.ceil(start / step) * step; at < stop; at += step) found.push(at);
  return found;
}

/** For each of `pixels` along an axis the cell under it, -1 where there is none. */
export function under(cuts: ArrayLike<number>, start: number, stop: number, pixels: number): Int32Array {
  const found = new Int32Array(pixels);
  const last = cuts[cuts.length - 1];
  let cell = 0;
  for (let p = 0; p < pixels; p++) {
    const at = start + ((p + 0.5) * (stop - start)) / pixels;
    while (cell < cuts.length - 2 && cuts[cell + 1] <= at) cell++;
    found[p] = at >= cuts[0] && at < last ? cell : -1;
  }
  return found;
}
