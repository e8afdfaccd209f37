// Pictures of arrays in Treescope's trees, made when their place comes into sight.
//
// Python writes <llama-loupe-picture data-tree data-array> where a picture belongs; an undisplayed
// widget, which every notebook has at most one of, carries the questions.

import { fill, sentence } from "./dom";
import { type Link } from "./link";

type Ask = (tree: string, array: number) => Promise<string>;

// Every widget brings its own copy of this module; the newest kernel's widget answers for all.
const KEY = Symbol.for("llama_loupe.pictures");
const CHANGED = "llama-loupe-pictures";
const page = globalThis as unknown as Record<symbol, Ask | undefined>;

export function answerWith(link: Link): void {
  page[KEY] = async (tree, array) => new TextDecoder().decode((await link.ask([], "picture", { tree, array }, `${tree} ${array}`)).html.data);
  document.dispatchEvent(new Event(CHANGED));
}

export function definePicture(): void {
  if (typeof customElements === "undefined" || customElements.get("llama-loupe-picture")) return;
  customElements.define(
    "llama-loupe-picture",
    class extends HTMLElement {
      private seen: IntersectionObserver | null = null;
      private readonly retry = () => void this.draw();

      connectedCallback(): void {
        this.seen = new IntersectionObserver((entries) => {
          if (entries.some((entry) => entry.isIntersecting)) void this.draw();
        });
        this.seen.observe(this);
      }

      disconnectedCallback(): void {
        this.seen?.disconnect();
        document.removeEventListener(CHANGED, this.retry);
      }

      private async draw(): Promise<void> {
        this.seen?.disconnect();
        document.removeEventListener(CHANGED, this.retry);
        const ask = page[KEY];
        if (!ask) return document.addEventListener(CHANGED, this.retry);
        try {
          this.show(await ask(this.dataset.tree!, Number(this.dataset.array)));
        } catch (error) {
          this.title = sentence(error);
        }
      }

      /** Treescope's scripts look for their element in the document, and this is in a shadow of it. */
      private show(html: string): void {
        const place = document.createElement("div");
        place.style.display = "none";
        document.body.append(place);
        place.append(document.createRange().createContextualFragment(html));
        const pictures = place.querySelectorAll("treescope-container");
        if (pictures.length) this.replaceChildren(...pictures);
        else fill(this, place.textContent);
        place.remove();
      }
    },
  );
}
