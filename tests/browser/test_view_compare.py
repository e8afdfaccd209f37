"""The view of what differs, in a browser without Jupyter."""

from __future__ import annotations

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from llama_jax import Llama, analysis
from llama_jax.model import parameters
from llama_loupe.views import compare as module
from llama_loupe.views.compare import compare
from tests.browser.loupe import show

ONE = "Once upon a time there was a little girl named Lily."
OTHER = "Once upon a time there was a little boy named Lily."
Q = "layers.2.self_attn.q_proj.weight"
STATUS = ".loupe-compare section > .loupe-status"
HOSTILE = [
    "</script><script>window.broken = 1</script>",
    "<img src=x onerror='window.broken = 1'>",
    "\u202eright to left",
    "a" * 10_000,
    "\0",
]


@pytest.fixture(scope="module")
def llama():
    return Llama.from_pretrained("cria")


@pytest.fixture(scope="module")
def runs(llama):
    return [llama.run(text, capture=("resid_post", "pattern", "z")) for text in (ONE, OTHER)]


@pytest.fixture(scope="module")
def changed(llama):
    values = np.array(parameters(llama.model)[Q].get_value())
    values[123, 45] += 0.5
    return llama.edited({Q: values})


def numbers(page: Page) -> list[float]:
    """a, b and b - a, as the status says them."""
    said = page.locator(STATUS).inner_text().rsplit(": ", 1)[1].replace("−", "-")
    return [float(part.split("(")[0].split()[-1]) for part in said.split(" · ")]


def test_one_changed_entry_is_found_and_its_three_numbers_said(page: Page, llama, changed):
    show(page, compare(llama, changed))
    expect(page.locator(".loupe-changes tbody tr")).to_have_count(1)
    page.get_by_role("button", name="go to the largest change").click()
    expect(page.locator(STATUS)).to_contain_text("row 123, column 45: a")
    one, other = (np.asarray(parameters(x.model)[Q].get_value()) for x in (llama, changed))
    values = [one[123, 45], other[123, 45], other[123, 45] - one[123, 45]]
    assert np.float32(numbers(page)).tolist() == values
    windows = page.locator(".loupe-side .loupe-where").all_inner_texts()
    assert len(set(windows)) == 1 and "rows 91 to 154" in windows[0]
    bars = page.locator(".loupe-side .loupe-legend").all_inner_texts()
    assert bars[0].replace("a,", "b,") == bars[1] != bars[2]


def test_all_three_zoom_and_point_together(page: Page, runs):
    show(page, compare(*runs))
    page.locator(".loupe-change canvas[tabindex]").focus()
    page.keyboard.press("+")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(page.locator(STATUS)).to_contain_text("column 1 ")
    assert len(set(page.locator(".loupe-side .loupe-where").all_inner_texts())) == 1
    row = int(page.locator(STATUS).inner_text().split()[1])
    name = page.locator(".loupe-compare .loupe-title").last.inner_text()
    values = [np.asarray(run[name])[0, row].ravel()[1] for run in runs]
    assert np.float32(numbers(page)).tolist() == [*values, values[1] - values[0]]
    told = page.evaluate("window.said.filter(message => message.kind === 'select').at(-1)")
    assert told["token"] == row
    page.locator(".loupe-a canvas[tabindex]").hover(position={"x": 150, "y": 100})
    expect(page.locator(STATUS)).not_to_contain_text("column 1 ")


def test_the_list_is_sorted_and_a_row_of_it_chosen(page: Page, runs):
    view = compare(*runs)
    show(page, view)
    page.get_by_role("button", name="largest |b − a|").click()
    order = sorted(view.comparison, key=lambda row: -row.max_abs)
    first = page.locator(".loupe-changes tbody tr").first
    expect(first.locator("button")).to_have_text(order[0].name)
    page.locator(".loupe-changes tbody button", has_text="layers.1.self_attn.pattern").click()
    expect(page.locator(".loupe-compare .loupe-title").last).to_have_text(
        "layers.1.self_attn.pattern"
    )
    expect(page.locator(".loupe-side")).to_have_count(3)
    page.locator("label", has_text="head").locator("select").select_option("6")
    told = page.evaluate("window.said.filter(message => message.kind === 'select')")
    assert [one.get("layer", one.get("head")) for one in told] == [1, 6]
    chosen = {"row": 0, "token": None, "layer": 3, "head": 2}
    page.evaluate("c => model.emit('msg:custom', {kind: 'selected', chosen: c})", chosen)
    expect(page.locator(".loupe-compare .loupe-title").last).to_have_text(
        "layers.3.self_attn.pattern"
    )


def test_a_lens_row_lists_layers(page: Page, runs):
    show(page, compare(*runs))
    page.locator(".loupe-changes tbody button", has_text="layers.2.lens").click()
    layers = page.locator(".loupe-reads button", has_text="layer")
    expect(layers).to_have_count(4)
    layers.nth(1).click()
    expect(page.locator(".loupe-compare .loupe-title").last).to_have_text("layers.1.lens")
    expect(page.locator(".loupe-side")).to_have_count(0)


def test_hostile_tokens_are_text(page: Page, runs, monkeypatch):
    def hostile(run, row):
        return [HOSTILE[at % len(HOSTILE)] for at in range(int(run.lengths[row]))]

    monkeypatch.setattr(module, "pieces", hostile)
    show(page, compare(*runs))
    page.wait_for_timeout(200)
    expect(page.locator(".loupe-reads button")).to_have_count(1)
    page.locator(".loupe-reads button").click()
    assert page.locator("#place script, #place img").count() == 0
    assert page.evaluate("window.broken") is None


def test_a_comparison_alone_is_a_list(page: Page, llama, changed):
    show(page, compare(analysis.compare(llama, changed)))
    page.get_by_role("button", name="more").click()
    expect(page.locator(".loupe-changes tbody tr")).to_have_count(38)
    expect(page.locator(".loupe-side")).to_have_count(0)


def test_rows_of_a_batch_are_turned_to(page: Page, llama):
    one, other = (llama.run([ONE, text], capture="resid_post") for text in (ONE, OTHER))
    view = compare(one, other)
    show(page, view)
    page.get_by_role("button", name="go to the largest change").click()
    expect(page.locator(".loupe-reads button")).to_have_text("9 “ girl” → “ boy”")
    expect(page.locator(STATUS)).to_contain_text("position 9")
    first = next(row for row in view.comparison if row.kind == "point")
    assert abs(numbers(page)[2]) == np.float32(first.max_abs)
