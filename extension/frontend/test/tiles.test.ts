import { expect, test } from "vitest";
import { ranked } from "../src/compare";
import { Tiles, coarser } from "../src/tiles";
import { effectiveRank } from "../src/weights";

const cells = (rows: number[], columns: number[], values: number[]) => ({ rows, columns, values });

test("cells put together keep the largest magnitude and its sign", () => {
  const found = coarser(cells([0, 2, 4, 5], [0, 1, 2], [1, -5, 2, 3, -4, 0]), 2, 1, "max");
  expect(Array.from(found.values)).toEqual([-5, -4]);
  expect(Array.from(found.rows)).toEqual([0, 4, 5]);
  expect(Array.from(found.columns)).toEqual([0, 2]);
});

test("NaN and infinity are larger than every number", () => {
  for (const order of [[1, NaN, Infinity], [Infinity, 1, NaN], [NaN, Infinity, 1]])
    expect(coarser(cells([0, 1], [0, 1, 2, 3], order), 1, 1, "max").values[0]).toBeNaN();
  expect(coarser(cells([0, 1], [0, 1, 2], [-Infinity, 9]), 1, 1, "max").values[0]).toBe(-Infinity);
});

test("means count entries, not cells", () => {
  expect(coarser(cells([0, 3, 4], [0, 1], [1, 5]), 1, 1, "mean").values[0]).toBe(2);
});

test("what is coarse enough stays as it is", () => {
  const given = cells([0, 1, 2], [0, 1], [1, 2]);
  expect(coarser(given, 2, 1, "max")).toBe(given);
});

const tile = (value: number) => ({ rows: { data: [0, 300] }, columns: { data: [0, 300] }, values: { data: [value] } });

test("a small matrix is asked for once, a superseded window again", async () => {
  const asked: any[] = [];
  const settle: ((answer: any) => void)[] = [];
  const tiles = new Tiles({ ask: (_: string, args: any) => (asked.push(args), new Promise((done) => settle.push(done))) } as any);
  const window = (top: number) => ({ top, bottom: top + 300, left: 0, right: 300 });
  const first = tiles.cells({}, 999, 300, window(0), 1, 1, "max");
  const again = tiles.cells({}, 999, 300, window(0), 8, 8, "max");
  expect(asked.length).toBe(1);
  void tiles.cells({}, 999, 300, window(5), 1, 1, "max");
  const third = tiles.cells({}, 999, 300, window(0), 1, 1, "max");
  expect(asked.map(({ top }) => top)).toEqual([0, 5, 0]);
  settle[2](tile(7));
  expect((await third).values[0]).toBe(7);
  settle[0](tile(7));
  await Promise.all([first, again]);
  await tiles.cells({}, 999, 300, window(0), 1, 1, "max");
  expect(asked.length).toBe(3);
});

test("zooming into a matrix that is here asks nothing", async () => {
  let asked = 0;
  const answer = { rows: { data: [0, 1, 2] }, columns: { data: [0, 1, 2] }, values: { data: [1, 2, 3, -4] } };
  const tiles = new Tiles({ ask: () => (asked++, Promise.resolve(answer)) } as any);
  const at = (top: number) => tiles.cells({}, 2, 2, { top, bottom: 2, left: 0, right: 2 }, 1, 2, "max");
  expect(Array.from((await at(0)).values)).toEqual([3, -4]);
  expect(Array.from((await at(1)).values)).toEqual([3, -4]);
  expect(asked).toBe(1);
});

test("the effective rank of equal values is their number, of one value 1", () => {
  expect(effectiveRank([2, 2, 2, 2])).toBeCloseTo(4);
  expect(effectiveRank([5, 0, 0])).toBeCloseTo(1);
  expect(effectiveRank([0, 0])).toBe(0);
});

test("a list is ranked by any column, NaN first, what has none last", () => {
  const numbers = [0.1, 1, NaN, 0, 0, NaN, 3, NaN, 0, 0, 0.5, 2, 0.3, 0, 0].map(Number);
  const rows = Float64Array.from(numbers);
  expect(ranked(rows, 0, () => true)).toEqual([1, 2, 0]);
  expect(ranked(rows, 1, () => true)).toEqual([1, 2, 0]);
  expect(ranked(rows, 2, (row) => row === 2)).toEqual([2, 0, 1]);
});
