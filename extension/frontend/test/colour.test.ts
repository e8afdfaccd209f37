import { expect, test } from "vitest";
import { BAD, colourOf, colours, limits, place, scaleOver, valueAt } from "../src/colour";

test("a value and the number at the colour bar are each other's inverse", () => {
  for (const name of ["linear", "sqrt"] as const)
    for (const diverging of [false, true]) {
      const scale = scaleOver(diverging ? -2 : 0, 3, diverging, name);
      for (const value of [scale.low, 0.1, 0.5, 1, scale.high]) expect(valueAt(scale, place(scale, value))).toBeCloseTo(value, 6);
    }
  const log = scaleOver(0, 3, false, "log");
  for (const value of [0.001, 0.1, 3]) expect(valueAt(log, place(log, value))).toBeCloseTo(value, 6);
});

test("diverging limits are symmetric and zero is in the middle", () => {
  const scale = scaleOver(-1, 4, true);
  expect([scale.low, scale.high, place(scale, 0)]).toEqual([-4, 4, 0.5]);
  expect(place(scale, -2) + place(scale, 2)).toBe(1);
});

test("what is not finite has a colour that no map has", () => {
  const scale = scaleOver(0, 1, false);
  for (const map of ["viridis", "cividis", "diverging"] as const)
    for (const dark of [false, true]) {
      const table = colours(map, dark);
      expect(table).toHaveLength(256);
      expect([...table]).not.toContain(BAD);
      for (const value of [Number.NaN, Infinity, -Infinity]) expect(colourOf(scale, table, value)).toBe(BAD);
    }
});

test("limits leave out what is masked or not finite, and count it", () => {
  expect(limits([1, Number.NaN, -3, Infinity, 99], (i) => i === 4)).toEqual({ low: -3, high: 1, bad: 2 });
  expect(limits([])).toEqual({ low: 0, high: 1, bad: 0 });
});
