"""The logit lens in a browser: the grid, its window, one cell, hostile tokens."""

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from llama_jax import Llama, Run
from llama_loupe.selection import Selection
from llama_loupe.views.lens import lens
from tests.browser.loupe import show

TEXT = "Once upon a time there was a girl called Rosa. She had a red ball. One day, Rosa gave"
HOSTILE = ["</script>", "<img src=x onerror=alert(1)>", "\u202edlrow", "x" * 10_000]


@pytest.fixture(scope="module")
def llama() -> Llama:
    return Llama.from_pretrained("cria")


@pytest.fixture(scope="module")
def run(llama: Llama) -> Run:
    return llama.run(f"{TEXT} the ball to Mary. {TEXT}", capture="resid_post")


def said(value: float) -> str:
    return str(np.float32(value)).replace("e-0", "e-").replace("-", "−")


def test_the_last_layer_is_on_top_and_each_column_says_what_came(page: Page, llama: Llama) -> None:
    view = lens(llama.run("Once upon a time", capture="resid_post"))
    show(page, view)
    grid = page.locator(".loupe-grid")
    expect(grid.locator("tbody tr")).to_have_count(4)
    assert grid.locator("tbody th").all_inner_texts() == [f"layer {n}" for n in (3, 2, 1, 0)]
    texts = view.answer("cells", {"from": 0})["texts"]
    assert grid.locator("tbody tr").first.locator("button").all_inner_texts() == texts[15:]
    assert [t.split("\n")[-1] for t in grid.locator("thead th").all_inner_texts()][1:3] == [
        "Once",
        " upon",
    ]
    # What would have come after the end is not known.
    expect(grid.locator("thead th").last).to_have_text("?")
    expect(page.locator(".loupe-overview")).to_be_hidden()
    page.get_by_label("colour").select_option("rank")
    last = grid.locator("tbody tr").first.locator("button").last
    assert last.evaluate("b => b.style.backgroundColor") == ""


def test_a_click_chooses_token_and_layer_and_shows_what_is_likely_there(page, run) -> None:
    view = lens(run)
    show(page, view)
    page.locator(".loupe-grid [data-row='2'][data-column='5']").click()
    found = view.answer("cell", {"token": 5, "layer": 2})
    status = page.locator(".loupe-status").first
    expect(status).to_contain_text("After token 5 “ there” layer 2 (resid_post) would say")
    expect(status).to_contain_text(f"probability {said(found['probabilities'][0, 2])}")
    sent = page.evaluate("said.filter(m => m.kind === 'select')")
    assert sent == [{"kind": "select", "token": 5, "layer": 2}]
    expect(page.locator(".loupe-likely li")).to_have_count(len(found["ids"]))
    # The token that came is followed until another one is picked.
    named = page.locator(".loupe-cell .loupe-status")
    real = found["next"]
    p, rank = found["probabilities"][real, 2], found["ranks"][real, 2]
    expect(named).to_have_text(f"“ was” in layer 2: probability {said(p)}, rank {rank:.0f}")
    page.locator(".loupe-likely button").nth(1).click()
    p = found["probabilities"][1, 2]
    expect(named).to_contain_text(f"probability {said(p)}, rank 1")
    drawn = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v)"
    assert all(page.locator(".loupe-cell canvas").nth(n).evaluate(drawn) for n in (0, 1))


def test_keys_move_the_cell_and_the_window_with_it(page: Page, run: Run) -> None:
    show(page, lens(run, selection=Selection(token=1, layer=3)))
    chosen = page.locator(".loupe-grid [aria-current]")
    expect(chosen).to_have_attribute("data-column", "1")
    chosen.focus()
    page.keyboard.press("ArrowDown")
    expect(chosen).to_have_attribute("data-row", "2")
    page.keyboard.press("PageDown")
    page.keyboard.press("PageDown")
    expect(chosen).not_to_have_attribute("data-column", "1")
    expect(chosen).to_be_focused()
    page.keyboard.press("End")
    expect(chosen).to_have_attribute("data-column", str(len(run.tokens[0]) - 1))
    expect(chosen).not_to_have_text("…")
    assert page.locator(".loupe-grid [tabindex='0']").count() == 1
    page.evaluate("model.emit('msg:custom', {kind: 'selected', chosen: {token: 0, layer: 0}})")
    expect(chosen).to_have_attribute("data-column", "0")


def test_the_overview_shows_the_whole_and_moves_the_window(page: Page, run: Run) -> None:
    show(page, lens(run))
    canvas = page.locator(".loupe-overview canvas")
    expect(canvas).to_have_attribute("aria-label", r := canvas.get_attribute("aria-label") or "")
    assert f"{len(run.tokens[0])} tokens" in r
    box = canvas.bounding_box()
    assert box
    canvas.click(position={"x": box["width"] - 2, "y": 10})
    cells = page.locator(".loupe-grid tbody tr").first.locator("button")
    expect(cells.last).to_have_attribute("data-column", str(len(run.tokens[0]) - 1))
    expect(cells.last).not_to_have_text("…")
    page.get_by_label("Earlier tokens").click()
    expect(cells.last).not_to_have_attribute("data-column", str(len(run.tokens[0]) - 1))
    expect(page.get_by_label("Later tokens")).to_be_enabled()


def test_hostile_tokens_are_text(page: Page, run: Run, monkeypatch) -> None:
    monkeypatch.setattr(
        Llama, "pieces", lambda self, ids: [HOSTILE[i % 4] for i in range(np.size(ids))]
    )
    dialogs = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message) or dialog.dismiss())
    show(page, lens(run, selection=Selection(token=1, layer=0)))
    expect(page.locator(".loupe-likely li").first).to_contain_text("</script>")
    assert page.locator(".loupe-grid tbody button").first.inner_text().startswith("</script>")
    assert page.locator("img").count() == 0 and not dialogs
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_without_the_stream_the_page_says_what_to_capture(page: Page, llama: Llama) -> None:
    show(page, lens(llama.run("One day")))
    expect(page.locator(".loupe-code")).to_have_text(
        'run = llama.run(prompt, capture="resid_post")'
    )
