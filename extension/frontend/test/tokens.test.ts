import { describe, expect, it } from "vitest";
import { BAD, inkOn } from "../src/colour";
import { Ramp, shown } from "../src/tokens";

describe("shown", () => {
  it("marks what would not be seen, and leaves a word's own space", () => {
    expect(shown(" upon")).toBe(" upon");
    expect(shown("a b")).toBe("a b");
    expect(shown(".\n\n")).toBe(".↵↵");
    expect(shown("\t  x ")).toBe("→··x·");
    expect(shown("\u202ex")).toBe("\\u{202e}x");
  });
});

describe("Ramp", () => {
  it("gives back the value of each part", () => {
    for (const name of ["linear", "sqrt", "log", "counts"] as const) {
      const ramp = new Ramp(0, 12, name, false);
      expect(ramp.at(0)).toBe(0);
      expect(ramp.at(1)).toBeCloseTo(12, 9);
      expect(ramp.colour(0)).toBe(ramp.colours[0]);
      expect(ramp.colour(12)).toBe(ramp.colours[255]);
    }
  });
  it("counts from zero by the logarithm of one more", () => {
    const ramp = new Ramp(0, 127_999, "counts", false);
    expect(Math.round(ramp.at(1))).toBe(127_999);
    expect(ramp.colour(1)).toBe(ramp.colours[15]); // 255 ln 2 / ln 128,000
  });
  it("makes the smallest the strongest where that is asked", () => {
    const ramp = new Ramp(-8, 0, "linear", true, 1, -1);
    expect(ramp.colour(-8)).toBe(ramp.colours[255]);
    expect(ramp.at(1)).toBe(-8);
  });
  it("has no colour of its own for what is no number", () => {
    const ramp = new Ramp(0, 1, "linear", false);
    for (const value of [NaN, Infinity, -Infinity]) expect(ramp.colour(value)).toBe(BAD);
  });
  it("can be written on in black or in white", () => {
    const linear = (part: number) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    for (const [dark, side] of [[true, 1], [true, -1], [false, 1], [false, -1]] as const)
      for (const colour of new Ramp(0, 1, "linear", dark, side).colours) {
        const [r, g, b] = [0, 8, 16].map((shift) => linear(((colour >> shift) & 255) / 255));
        const light = 0.2126 * r + 0.7152 * g + 0.0722 * b;
        const contrast = inkOn(colour) === "#000" ? (light + 0.05) / 0.05 : 1.05 / (light + 0.05);
        expect(contrast).toBeGreaterThan(4.4);
      }
  });
});
