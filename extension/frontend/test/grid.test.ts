import { expect, test } from "vitest";
import { cellOf, edges, moved, showing, ticks, under, whole, zoomed } from "../src/grid";

test("edges are numpy.array_split's", () => {
  expect([...edges(0, 10, 4)]).toEqual([0, 3, 6, 8, 10]);
  expect([...edges(5, 8, 256)]).toEqual([5, 6, 7, 8]);
});

test("every index is in the cell that its edges say", () => {
  const cuts = edges(3, 50, 7);
  for (let at = 3; at < 50; at++) {
    const cell = cellOf(cuts, at);
    expect(cuts[cell] <= at && at < cuts[cell + 1]).toBe(true);
  }
});

test("zooming keeps the entry in sight, within the matrix, and ends at single entries", () => {
  let window = whole(1000, 3000);
  for (let i = 0; i < 20; i++) {
    window = zoomed(window, 0.5, 700, 2900, 1000, 3000);
    expect(window.top <= 700 && 700 < window.bottom && window.left <= 2900 && 2900 < window.right).toBe(true);
    expect(window.top >= 0 && window.bottom <= 1000 && window.right <= 3000).toBe(true);
  }
  expect([window.bottom - window.top, window.right - window.left]).toEqual([4, 4]);
  for (let i = 0; i < 20; i++) window = zoomed(window, 2, 700, 2900, 1000, 3000);
  expect(window).toEqual(whole(1000, 3000));
});

test("a matrix of one row can be zoomed", () => {
  expect(zoomed(whole(1, 1), 0.5, 0, 0, 1, 1)).toEqual(whole(1, 1));
});

test("moving stops at the ends", () => {
  const window = { top: 10, bottom: 20, left: 0, right: 5 };
  expect(moved(window, -99, 3, 100, 100)).toEqual({ top: 0, bottom: 10, left: 3, right: 8 });
  expect(showing(window, 25, 2, 100, 100)).toEqual({ top: 16, bottom: 26, left: 0, right: 5 });
});

test("ticks are round and few", () => {
  expect(ticks(0, 100, 5)).toEqual([0, 20, 40, 60, 80]);
  expect(ticks(3, 6, 10)).toEqual([3, 4, 5]);
  expect(ticks(0, 8192, 8)).toEqual([0, 2000, 4000, 6000, 8000]);
});

test("each cell has its pixels when there are enough", () => {
  const cuts = edges(0, 10, 10);
  expect([...under(cuts, 0, 10, 10)]).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  expect([...under(cuts, -2, 12, 7)]).toEqual([-1, 1, 3, 5, 7, 9, -1]);
});
