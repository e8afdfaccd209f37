import { expect, test } from "vitest";
import { BAD, colourOf, colours, inkOn, limits, marks, place, scaleOver, valueAt } from "../src/colour";

test("a value and the number at the colour bar are each other's inverse", () => {
  for (const name of ["linear", "sqrt", "counts"] as const)
    for (const diverging of [false, true]) {
      const scale = scaleOver(diverging ? -2 : 0, 3, diverging, name);
      for (const value of [scale.low, 0.1, 0.5, 1, scale.high]) expect(valueAt(scale, place(scale, value))).toBeCloseTo(value, 6);
    }
  const log = scaleOver(0, 3, false, "log");
  for (const value of [0.001, 0.1, 3]) expect(valueAt(log, place(log, value))).toBeCloseTo(value, 6);
  const deep = scaleOver(0, 3, false, "log", 9);
  expect(valueAt(deep, place(deep, 1e-8))).toBeCloseTo(1e-8, 12);
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

test("marks are round numbers within the limits", () => {
  expect(marks(-2.8, 16.6, "linear")).toEqual([0, 5, 10, 15]);
  expect(marks(0, 0.7, "sqrt")).toEqual([0, 0.2, 0.4, 0.6]);
  expect(marks(-50, 1000, "log")).toEqual([0, 1000, 100, 10, -10, 1, -1]);
  expect(marks(0, 1000, "log", 2)).toEqual([0, 1000, 100]);
  expect(marks(0, 4200, "counts")).toEqual([0, 1000, 100, 10, 1]);
  for (const scale of ["linear", "sqrt", "log", "counts"] as const) expect(marks(0, 0, scale)).toEqual([0]);
});

test("ink has at least the contrast that WCAG asks for, on every colour of every map", () => {
  const linear = (part: number) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  for (const map of ["viridis", "cividis", "diverging"] as const)
    for (const dark of [false, true])
      for (const colour of colours(map, dark)) {
        const [r, g, b] = [0, 8, 16].map((shift) => linear(((colour >> shift) & 255) / 255));
        const light = 0.2126 * r + 0.7152 * g + 0.0722 * b;
        const contrast = inkOn(colour) === "#000" ? (light + 0.05) / 0.05 : 1.05 / (light + 0.05);
        expect(contrast).toBeGreaterThan(4.5);
      }
});
