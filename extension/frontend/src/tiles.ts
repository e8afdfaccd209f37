// Windows of large matrices, as `llama_loupe/tiles.py` answers for them.

import type { Context } from "./context";
import { type Cells, type Window, edges, even, whole } from "./grid";
import { type Pool, matrix } from "./heatmap";

const TILE = 256; // cells along a side, at the most
const KEPT = 16; // answers

/** The larger magnitude, as Python has it: NaN above infinity above numbers. */
function larger(a: number, b: number): number {
  return Number.isNaN(a) || Math.abs(a) >= Math.abs(b) ? a : b;
}

/** Cells put together until there are at most so many. */
export function coarser(cells: Cells, rows: number, columns: number, pool: Pool): Cells {
  const [tall, wide] = [cells.rows.length - 1, cells.columns.length - 1];
  if (tall <= rows && wide <= columns) return cells;
  const [down, across] = [edges(0, tall, even(tall, rows)), edges(0, wide, even(wide, columns))];
  const values = new Float64Array((down.length - 1) * (across.length - 1));
  for (let i = 0, at = 0; i + 1 < down.length; i++)
    for (let j = 0; j + 1 < across.length; j++, at++) {
      let [most, sum, size] = [0, 0, 0];
      for (let row = down[i]; row < down[i + 1]; row++)
        for (let column = across[j]; column < across[j + 1]; column++) {
          const value = cells.values[row * wide + column];
          const area = (cells.rows[row + 1] - cells.rows[row]) * (cells.columns[column + 1] - cells.columns[column]);
          most = larger(most, value);
          sum += area * value;
          size += area;
        }
      values[at] = pool === "max" ? most : sum / size;
    }
  return { rows: down.map((cut) => cells.rows[cut]), columns: across.map((cut) => cells.columns[cut]), values };
}

/**
 * Tiles of a view's matrices. All maps that show one window share a question, whatever their sizes,
 * and a matrix of at most 256 x 256 entries is asked for once.
 */
export class Tiles {
  private readonly known = new Map<string, any>();
  // Of all that were asked, the last one is answered; see `link.ts`.
  private last: { key: string; answer: Promise<any> } | null = null;

  constructor(private readonly context: Context) {}

  /** `part` of the answer for what `about` names. */
  async cells(about: object, height: number, width: number, window: Window, rows: number, columns: number, pool: Pool, part = "values"): Promise<Cells> {
    const small = height <= TILE && width <= TILE;
    const { top, bottom, left, right } = small ? whole(height, width) : window;
    const size = { rows: even(bottom - top, TILE), columns: even(right - left, TILE) };
    const tile = await this.ask({ ...about, top, bottom, left, right, ...size, pool: small ? "max" : pool });
    const values = tile[part].data;
    if (small) return matrix(values, width)(window, rows, columns, pool);
    return coarser({ rows: tile.rows.data, columns: tile.columns.data, values }, rows, columns, pool);
  }

  private async ask(args: object): Promise<any> {
    const key = JSON.stringify(args);
    if (this.known.has(key)) return this.known.get(key);
    if (this.last?.key !== key) this.last = { key, answer: this.context.ask("tile", args) };
    const asked = this.last;
    try {
      const answer = await asked.answer;
      if (this.known.size >= KEPT) this.known.delete(this.known.keys().next().value!);
      this.known.set(key, answer);
      return answer;
    } finally {
      if (this.last === asked) this.last = null;
    }
  }
}
