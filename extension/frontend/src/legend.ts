// A colour bar with numbers.

import { fill, h, number } from "./dom";

export class Legend {
  private readonly bar = h("canvas", { class: "loupe-bar", attributes: { width: 256, height: 1, "aria-hidden": "true" } });
  private readonly parts = [h("span"), h("span"), h("span")];
  readonly element = h("div", { class: "loupe-legend" }, this.parts[0], this.bar, this.parts[1], this.parts[2]);

  /** `value` says which number stands at a part of the bar; `bad` how many are not finite. */
  show(colours: Uint32Array, value: (part: number) => number, text: string, bad: number, more = ""): void {
    const brush = this.bar.getContext("2d")!;
    const image = brush.createImageData(256, 1);
    // Half-way along the bar stands the number that is half-way along the scale.
    new Uint32Array(image.data.buffer).set(colours);
    brush.putImageData(image, 0, 0);
    // What a logarithm and its inverse leave of a whole number is rounded away.
    const at = (part: number) => number(Number(value(part).toPrecision(7)));
    fill(this.parts[0], at(0));
    fill(this.parts[1], at(1));
    fill(this.parts[2], `${text}, ${at(0.5)} in the middle${more && ` · ${more}`}`, ...broken(bad));
  }
}

/** How many numbers are not finite, and their colour; nothing where all are. */
export function broken(bad: number): (string | HTMLElement)[] {
  return bad ? [` · ${bad.toLocaleString("en")} not finite `, h("i", { class: "loupe-bad" })] : [];
}
