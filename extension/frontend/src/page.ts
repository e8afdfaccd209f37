// Several views on one page, beside and below each other.

import type { Draw } from "./context";
import { h } from "./dom";

export const page: Draw = (element, { payload, child }) => {
  for (const [index, inner] of payload.children.entries()) {
    const place = h("div", { class: `loupe-place loupe-${payload.places[index]}` });
    element.append(place);
    child(index, inner, place);
  }
};
