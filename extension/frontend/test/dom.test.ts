import { expect, test } from "vitest";
import { number, visible } from "../src/dom";
import { exactly } from "../src/heatmap";

test("what could not be seen, or would turn the text around it, is written out", () => {
  expect(visible("a\u202eb\u0000\n\u2028\u200b\x1b[31m")).toBe("a\\u{202e}b\\u{0}\\n\\u{2028}\\u{200b}\\u{1b}[31m");
  expect(visible("</script>")).toBe("</script>");
  expect(visible("\ud800")).toBe("\\u{d800}");
});

test("long texts are cut by characters, not in the middle of one", () => {
  expect(visible("🦙".repeat(10_000), 5)).toBe("🦙🦙🦙🦙…");
});

test("numbers are short", () => {
  expect([0, 0.123456, -1234567.8, 3, Number.NaN, -Infinity, 0.00001].map(number)).toEqual(["0", "0.1235", "−1.23e+6", "3", "NaN", "−∞", "1.00e−5"]);
});

test("an exact number reads back as the same 32 bits", () => {
  let seed = 1;
  for (let i = 0; i < 1000; i++) {
    seed = (seed * 48271) % 2147483647;
    const value = Math.fround((seed / 2147483647 - 0.5) * 10 ** ((i % 20) - 10));
    expect(Math.fround(Number(exactly(value).replaceAll("−", "-")))).toBe(value);
  }
});
