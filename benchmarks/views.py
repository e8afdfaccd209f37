"""Size and time of attention views: ours, BertViz, CircuitsVis and Treescope on the same arrays.

    python -m benchmarks.views --repeat 3

Bytes are what a page gets to draw the view at first, seconds those that Python takes to make it and
Chromium to draw it, and a zoom the time from a key to the new tile, which Python computes. BertViz
and CircuitsVis load their programs from the network, so without one their pages stay empty: of them
the size of the HTML is compared, and the time that Chromium needs to read it. A peer that is not
installed is left out. Needs Chromium (`make browser`).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from playwright.sync_api import Browser, Error, sync_playwright

import llama_loupe as loupe
from llama_jax import Capture, Llama, LlamaConfig
from tests.browser import chromium
from tests.browser.loupe import show

SHAPES = {"cria": (4, 8, 4), "8B": (32, 32, 8), "70B": (80, 64, 8)}
DRAWN = (
    "document.querySelector('.loupe-map canvas[tabindex]')?.ariaLabel?.includes('Largest')"
    " && document.querySelector('.loupe-atlas canvas')?.width > 300"
)
# From a key to the tile that it asked for.
ZOOM = """key => new Promise(done => {
  const map = document.querySelector('.loupe-map');
  const start = performance.now();
  map.addEventListener('loupe-drawn', () => done(performance.now() - start), { once: true });
  map.querySelector('canvas[tabindex]').dispatchEvent(new KeyboardEvent('keydown', { key }));
})"""


@dataclasses.dataclass
class Row:
    shape: str
    tokens: int
    view: str
    nbytes: int
    python: float
    browser: float | None = None
    zoom: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512, 2048, 8192])
    parser.add_argument("--large", type=int, default=1024, help="tokens of the 8B and 70B shapes")
    parser.add_argument("--longest", type=int, default=8192, help="tokens of the 8B, pooled")
    parser.add_argument("--one-layer", type=int, default=32768, help="tokens of one layer's maps")
    args = parser.parse_args()
    rows: list[Row] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.find())
        cases = [("cria", tokens) for tokens in args.tokens]
        cases += [("8B", args.large)]
        makers = [measured(browser, *case, args.repeat) for case in cases]
        makers.append(pooled(browser, "70B", args.large, args.repeat))
        makers.append(pooled(browser, "8B", args.longest, args.repeat))
        makers.append(one_layer(browser, "cria", args.one_layer, args.repeat))
        for maker in makers:
            for row in maker:
                rows.append(row)
                print(said(row), file=sys.stderr, flush=True)
        browser.close()
    print(f"{jax.devices()[0].device_kind}, medians of {args.repeat}\n")
    print("| heads of | tokens | | page, kB | made, s | drawn, s | zoom, ms |")
    print("|---" * 7 + "|")
    for row in rows:
        print(said(row))


def said(row: Row) -> str:
    drawn = "" if row.browser is None else f"{row.browser:.2f}"
    zoom = "" if row.zoom is None else f"{row.zoom:.0f}"
    return (
        f"| {row.shape} | {row.tokens:,} | {row.view} | {row.nbytes / 1e3:,.0f} | "
        f"{row.python:.2f} | {drawn} | {zoom} |"
    )


def model(shape: str) -> Llama:
    """As many layers and heads as the model of that name, each head of 8 numbers."""
    if shape == "cria":
        return Llama.from_pretrained("cria")
    layers, heads, groups = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=8,
    )
    return Llama.random(config, seed=0)


def prompt_of(tokens: int) -> np.ndarray:
    return np.random.default_rng(0).integers(5, 500, (1, tokens))


def measured(browser: Browser, shape: str, tokens: int, repeat: int) -> Iterator[Row]:
    llama, prompt = model(shape), prompt_of(tokens)
    run = llama.run(prompt, capture=("q_rot", "k_rot"), logits="last")
    yield ours(browser, shape, tokens, run, repeat)
    yield from pooled(browser, shape, tokens, repeat)
    layers, heads, _ = SHAPES[shape]
    numbers = layers * heads * tokens**2
    if numbers > 5e7:  # their pages hold 20 bytes a number, and Chromium ends itself
        return
    run = llama.run(prompt, capture="pattern", logits="last")
    patterns = np.stack([np.asarray(array[0]) for array in run["pattern"].values()])
    texts = [str(token) for token in prompt[0]]
    for title, page in peers(patterns, texts):
        yield theirs(browser, shape, tokens, title, page, repeat)


def pooled(browser: Browser, shape: str, tokens: int, repeat: int) -> Iterator[Row]:
    started = time.perf_counter()
    capture = Capture("pattern", reduce=("max_pool", 64))
    run = model(shape).run(prompt_of(tokens), capture=capture, logits="last")
    jax.block_until_ready(run.logits)
    seconds = time.perf_counter() - started
    print(f"  (the forward that pools, compiled: {seconds:.1f} s)", file=sys.stderr)
    yield ours(browser, shape, tokens, run, repeat, "ours, pooled in the forward")


def one_layer(browser: Browser, shape: str, tokens: int, repeat: int) -> Iterator[Row]:
    points = [("q_rot", 1), ("k_rot", 1)]
    run = model(shape).run(prompt_of(tokens), capture=points, logits="last")
    yield ours(browser, f"{shape}, one layer", tokens, run, repeat)


def ours(
    browser: Browser, shape: str, tokens: int, run: Any, repeat: int, title: str = "ours"
) -> Row:
    made, drawn, zooms, nbytes = [], [], [], 0
    loupe.attention(run).packed()  # compiled
    for _ in range(repeat):
        started = time.perf_counter()
        view = loupe.attention(run)
        payload, buffers = view.packed()
        made.append(time.perf_counter() - started)
        nbytes = sum(map(len, buffers)) + len(str(payload))
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        started = time.perf_counter()
        show(page, view)
        page.wait_for_function(DRAWN, timeout=120_000)
        drawn.append(time.perf_counter() - started)
        if view.detail and tokens > 256:
            zooms += [page.evaluate(ZOOM, key) for key in "++++--"]
        page.close()
    zoom = statistics.median(zooms) if zooms else None
    return Row(
        shape, tokens, title, nbytes, statistics.median(made), statistics.median(drawn), zoom
    )


def theirs(browser: Browser, shape: str, tokens: int, title: str, page_of: Any, repeat: int) -> Row:
    made, drawn, text = [], [], ""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "page.html")
        for _ in range(repeat):
            started = time.perf_counter()
            text = page_of()
            made.append(time.perf_counter() - started)
            place.write_text(f"<!doctype html><meta charset=utf-8><body>{text}")
            page = browser.new_page()
            page.route("http*://**", lambda route: route.abort())
            started = time.perf_counter()
            try:
                page.goto(place.as_uri(), timeout=120_000)
            except Error as error:
                title += f" (Chromium: {error.message.splitlines()[0]})"
                break
            drawn.append(time.perf_counter() - started)
            page.close()
    seconds = statistics.median(drawn) if drawn else None
    return Row(shape, tokens, title, len(text), statistics.median(made), seconds)


def peers(patterns: np.ndarray, texts: list[str]) -> Iterator[tuple[str, Any]]:
    """Each a name and a function that makes the HTML; `patterns` is [layers, heads, T, T]."""
    import treescope

    yield (
        "Treescope, one layer's figure, cut to its edges",
        lambda: treescope.render_array(patterns[0], rows=[1], columns=[2, 0])._repr_html_(),
    )
    try:
        import torch
        from bertviz import head_view, model_view

        maps = tuple(torch.tensor(layer[None]) for layer in patterns)
        yield "BertViz head_view", lambda: head_view(maps, texts, html_action="return").data
        yield "BertViz model_view", lambda: model_view(maps, texts, html_action="return").data
    except ImportError as error:
        print(f"  BertViz is left out: {error}", file=sys.stderr)
    try:
        from circuitsvis.attention import attention_patterns

        yield (
            "CircuitsVis, one layer",
            lambda: str(attention_patterns(texts, patterns[0]).local_src),
        )
    except ImportError as error:
        print(f"  CircuitsVis is left out: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
