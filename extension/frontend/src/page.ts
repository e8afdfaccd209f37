// Several views on one page, beside and below each other.

import { type Draw, empty } from "./context";
import { h } from "./dom";

export const page: Draw = (element, { payload, child }) => {
  for (const [index, inner] of payload.children.entries()) {
    const place = h("div", { class: `loupe-place loupe-at-${payload.places[index]}` });
    element.append(place);
    child(index, inner, place);
  }
  if (!payload.missing.length) return;
  const note = h("div", { class: "loupe-place" });
  empty(note, { sentence: `Not captured, so not shown: ${payload.missing.join(", ")}. To see everything:`, code: payload.code });
  element.append(note);
};
