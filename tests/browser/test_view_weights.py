"""The view of a model's weights, in a browser without Jupyter."""

from __future__ import annotations

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from llama_jax import Llama
from llama_jax.model import parameters
from llama_loupe.selection import Selection
from llama_loupe.views import weights as module
from llama_loupe.views.weights import weights
from tests.browser.loupe import show

Q = "layers.2.self_attn.q_proj.weight"
ATLAS = "section[aria-label='All weights']"
ONE = "section[aria-label='One weight']"
PLOTS = "section[aria-label='Its histogram and singular values']"


@pytest.fixture(scope="module")
def llama():
    return Llama.from_pretrained("cria")


def array(llama, name):
    return np.asarray(parameters(llama.model)[name].get_value())


def test_it_draws_and_the_status_has_the_arrays_number(page: Page, llama):
    selection = Selection(layer=2)
    show(page, weights(llama, selection=selection))
    expect(page.locator(f"{ONE} .loupe-title")).to_have_text(Q)
    canvas = page.locator(f"{ONE} .loupe-map canvas[tabindex]")
    canvas.focus()
    for key in ("+", "+", "+", "+", "Home"):
        page.keyboard.press(key)
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    status = page.locator(f"{ONE} .loupe-map .loupe-status")
    expect(status).to_contain_text("column 5: weight")
    row = int(status.inner_text().split(",")[0].removeprefix("row "))
    said = float(status.inner_text().split()[-1].replace("−", "-"))
    assert np.float32(said) == array(llama, Q)[row, 5]
    told = page.evaluate("window.said.filter(message => message.kind === 'select').at(-1)")
    assert (told["layer"], told["head"]) == (2, row // 32)


def test_the_keyboard_and_the_mouse_choose_a_weight(page: Page, llama):
    show(page, weights(llama, selection=Selection(layer=0)))
    atlas = page.locator(f"{ATLAS} canvas")
    atlas.focus()
    title = page.locator(f"{ONE} .loupe-title")
    for key, name in (
        ("ArrowRight", "layers.0.self_attn.k_proj.weight"),
        ("ArrowDown", "layers.1.self_attn.k_proj.weight"),
        ("End", "layers.3.self_attn.k_proj.weight"),
        ("Home", "norm.weight"),
    ):
        page.keyboard.press(key)
        expect(title).to_have_text(name)
    atlas.click(position={"x": 60, "y": 40})
    expect(title).to_have_text("embed_tokens.weight")
    atlas.hover(position={"x": 60, "y": 130})
    expect(page.locator(f"{ATLAS} .loupe-status")).to_contain_text("layers.0.input_layernorm")
    page.evaluate("model.emit('msg:custom', {kind: 'selected', chosen: {row: 0, layer: 3}})")
    page.wait_for_timeout(100)
    expect(title).to_have_text("embed_tokens.weight")


def test_the_layer_chosen_elsewhere_is_followed(page: Page, llama):
    show(page, weights(llama))
    chosen = {"row": 0, "token": None, "layer": 3, "head": None}
    page.evaluate("c => model.emit('msg:custom', {kind: 'selected', chosen: c})", chosen)
    expect(page.locator(f"{ONE} .loupe-title")).to_have_text("layers.3.self_attn.q_proj.weight")


def test_the_histogram_and_the_singular_values_are_read_by_keyboard(page: Page, llama):
    show(page, weights(llama, selection=Selection(layer=2)))
    counts, _ = np.histogram(array(llama, Q).astype(np.float64), 64)
    page.locator(f"{PLOTS} canvas").first.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(page.locator(f"{PLOTS} .loupe-status").first).to_contain_text(f": {counts[1]:,} entries")
    page.get_by_role("button", name="Compute the singular values").click()
    status = page.locator(f"{PLOTS} .loupe-status").last
    expect(status).to_contain_text("effective rank")
    values = np.linalg.svd(array(llama, Q), compute_uv=False)
    largest = float(status.inner_text().split()[1].rstrip(","))
    assert largest == pytest.approx(values[0], rel=1e-4)


def test_a_large_model_is_looked_at_as_it_comes_into_sight(page: Page, llama, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 0)
    page.set_viewport_size({"width": 1000, "height": 700})
    view = weights(llama, selection=Selection(layer=1))
    show(page, view)
    expect(page.locator(f"{ATLAS} .loupe-tools span")).to_be_empty()
    asked = page.evaluate("window.said.filter(m => m.what === 'look').map(m => m.args.name)")
    assert asked[0] == "layers.1.self_attn.q_proj.weight"
    assert sorted(asked) == sorted(parameters(llama.model))


def test_a_weight_that_is_gone_is_said_and_the_others_stay(page: Page, monkeypatch):
    llama = Llama.from_pretrained("cria")
    monkeypatch.setattr(module, "AT_ONCE", 0)
    view = weights(llama, selection=Selection(layer=0))
    parameters(llama.model)[Q].get_value().delete()
    show(page, view)
    expect(page.locator(f"{ATLAS} .loupe-tools span")).to_have_text("37 of 38 looked at")
    page.locator(f"{ATLAS} canvas").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(page.locator(f"{ATLAS} .loupe-status")).to_contain_text("donated to a computation")
    page.keyboard.press("ArrowRight")
    expect(page.locator(f"{ATLAS} .loupe-status")).to_contain_text("mean")


def test_parts_of_a_sharded_weight_are_shown(page: Page):
    llama = Llama.from_pretrained("cria", mesh={"tensor": 4})
    show(page, weights(llama, selection=Selection(layer=2)))
    part = page.locator(".loupe-parts button").nth(1)
    expect(part).to_have_text("cpu 1: rows 64–127, columns 0–191")
    part.click()
    expect(page.locator(f"{ONE} .loupe-under .loupe-where")).to_contain_text("rows 64 to 127")


def test_an_abstract_llama_says_what_to_do(page: Page):
    show(page, weights(Llama.abstract("llama-3.1-8b")))
    expect(page.locator(".loupe-code")).to_have_text('loupe.weights(Llama.from_pretrained("cria"))')
