"""Pictures of every view for the README, in light and dark: `python -m tests.browser.screenshots`.

Each is made by the bundle and by Python's answers, as in the tests, and kept in 128 colours.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

import llama_loupe as loupe
from llama_jax import Ablate, Llama, analysis
from tests.browser import chromium
from tests.browser.loupe import show

FOLDER = Path(__file__).parents[2] / "docs" / "images"
PROMPT = "When Mary and John went to the market, John gave a basket to"
STORY = PROMPT + " Mary. Then Mary gave the basket to Tom. Tom was happy. "
POINTS = ("q_rot", "k_rot", "embed", "self_attn.out", "mlp.out", "resid_post")
WIDTH = 1000


def views() -> dict[str, Callable[[], loupe.View]]:
    llama = Llama.from_pretrained("cria")
    run = llama.run(PROMPT, capture=POINTS)
    long = llama.run(STORY * 4, capture=("q_rot", "k_rot"))
    last = int(run.lengths[0]) - 1

    def chosen(**also: int) -> loupe.Selection:
        return loupe.Selection(**{"layer": 1, "head": 6, "token": last, **also})

    metric = analysis.logit_difference(" Mary", " Rosa")
    return {
        "page": lambda: loupe.page(run, selection=chosen()),
        "attention": lambda: loupe.attention(long, selection=chosen(token=110)),
        "tokens": lambda: loupe.tokens(long, selection=chosen(token=47)),
        "lens": lambda: loupe.lens(run, selection=chosen(layer=3)),
        "weights": lambda: loupe.weights(llama, selection=chosen()),
        "residual": lambda: loupe.residual(run, selection=chosen()),
        "sweep": lambda: loupe.result(
            analysis.patch_sweep(
                llama,
                PROMPT,
                PROMPT.replace("Mary", "Rosa"),
                point="resid_pre",
                metric=metric,
                by="layer,position",
            )
        ),
        "compare": lambda: loupe.compare(
            run, llama.run(PROMPT, capture=POINTS, edits=Ablate(("z", 1), heads=6))
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="views, all by default")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.find())
        for name, make in views().items():
            if args.names and name not in args.names:
                continue
            view = make()
            for dark in (False, True):
                page = browser.new_page(viewport={"width": WIDTH, "height": 700})
                place = args.folder / f"{name}-{'dark' if dark else 'light'}.png"
                place.write_bytes(picture(page, view, dark))
                print(f"{place}: {place.stat().st_size / 1e3:.0f} kB")
                page.close()
        browser.close()


def picture(page: Page, view: loupe.View, dark: bool) -> bytes:
    """The view alone, whole."""
    show(page, view, dark)
    page.wait_for_timeout(1500)  # what it asked for has come
    shot = page.locator(".loupe").first.screenshot()
    holder = io.BytesIO()
    few = Image.open(io.BytesIO(shot)).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few.save(holder, "PNG", optimize=True)
    return holder.getvalue()


if __name__ == "__main__":
    main()
