import { expect, test } from "vitest";
import { type Axis, called, chosen, follow, sorted } from "../src/result";

const nothing = { row: 0, token: null, layer: null, head: null };

function axis(name: string, names: Axis["names"], size: number, lasts: Axis["lasts"] = null): Axis {
  return { name, plural: `${name}s`, size, names, lasts };
}

const numbers = (...data: number[]) => ({ data: Int32Array.from(data), shape: [data.length] });
const layers = axis("layer", numbers(2, 5, 9), 3);
const parts = axis("component", ["embed", "0.attn", "0.mlp", "1.head.0", "1.head.1", "1.mlp"], 6);

test("what is chosen is what an index stands for", () => {
  expect(chosen(layers, 1)).toEqual({ layer: 5 });
  expect(chosen(axis("position", null, 4), 3)).toEqual({ token: 3 });
  expect(chosen(axis("batch", null, 4), 3)).toEqual({ row: 3 });
  expect(chosen(axis("neuron", null, 4), 3)).toEqual({});
  expect(chosen(axis("layer", ["1", "2"], 2), 1)).toEqual({});
  expect(parts.names).toHaveLength(6);
  expect([0, 2, 4].map((i) => chosen(parts, i))).toEqual([{}, { layer: 0 }, { layer: 1, head: 1 }]);
});

test("a selection that has changed is followed to the index that stands for it", () => {
  expect(follow(layers, 0, { ...nothing, layer: 9 }, nothing)).toBe(2);
  expect(follow(layers, 0, { ...nothing, layer: 3 }, nothing)).toBe(null);
  expect(follow(layers, 0, { ...nothing, token: 2 }, nothing)).toBe(null);
  const five = { ...nothing, layer: 5 };
  expect(follow(layers, 0, { ...five, token: 2 }, five)).toBe(null); // the layer is the old one
  expect(follow(layers, 0, five, null)).toBe(1); // at the start all counts
});

test("of a layer's components the one of the same kind is followed to", () => {
  expect(follow(parts, 2, { ...nothing, layer: 1 }, nothing)).toBe(5);
  expect(follow(parts, 5, { ...nothing, layer: 0 }, nothing)).toBe(2);
  expect(follow(parts, 0, { ...nothing, layer: 0 }, nothing)).toBe(1);
  expect(follow(parts, 1, { ...nothing, layer: 0 }, nothing)).toBe(1);
  const there = { ...nothing, layer: 1 };
  expect(follow(parts, 3, { ...there, head: 1 }, there)).toBe(4);
});

test("an index that stands for several says so", () => {
  expect(called(axis("row", numbers(0, 8), 2, numbers(7, 15)), 1)).toBe("8 to 15");
  expect(called(axis("row", null, 2), 1)).toBe("1");
  expect(called(axis("component", ["a\u202eb"], 1), 0)).toBe("a\\u{202e}b");
});

test("rows are sorted, what is no number last", () => {
  const column = { name: "x", texts: ["1", "", "3", "3"], order: { data: Float64Array.of(1, NaN, 3, 3), shape: [4] } };
  expect(sorted(column, true)).toEqual([2, 3, 0, 1]);
  expect(sorted(column, false)).toEqual([0, 2, 3, 1]);
  expect(sorted({ name: "n", texts: ["a.10", "a.9", "b"], order: null }, false)).toEqual([1, 0, 2]);
});
