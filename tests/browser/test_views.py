"""What holds for every view, in a browser without Jupyter."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

import llama_loupe as loupe
from llama_jax import Ablate, Llama, analysis
from llama_loupe.views.attention import Attention
from tests.browser.conftest import opened
from tests.browser.loupe import show, theme

TEXT = "When Mary and John went to the market, John gave a basket to"
HOSTILE = [
    "</script><script>window.broken = 1</script>",
    "<img src=x onerror='window.broken = 1'>",
    "</template>",
    "\u2028",
    "\udc80",
    "\u202eright to left",
    "\x1b[31mred\x1b[0m",
    "a" * 10_000,
    "\u0301" * 300,
    "\0",
]


@pytest.fixture(scope="module")
def llama():
    return Llama.from_pretrained("cria")


@pytest.fixture(scope="module")
def run(llama):
    points = ("q_rot", "k_rot", "embed", "self_attn.out", "mlp.out", "resid_post")
    return llama.run(TEXT, capture=points)


MAKERS = {
    "attention": lambda llama, run: loupe.attention(run),
    "tokens": lambda llama, run: loupe.tokens(run),
    "lens": lambda llama, run: loupe.lens(run),
    "weights": lambda llama, run: loupe.weights(llama),
    "residual": lambda llama, run: loupe.residual(run),
    "result": lambda llama, run: loupe.result(analysis.head_scores(llama)),
    "compare": lambda llama, run: loupe.compare(
        run, llama.run(TEXT, capture=tuple(run.captures), edits=Ablate(("z", 1), heads=6))
    ),
    "page": lambda llama, run: loupe.page(run),
    "empty": lambda llama, run: loupe.attention(llama.run(TEXT)),
}


@pytest.fixture(scope="module", params=MAKERS)
def view(request, llama, run):
    return MAKERS[request.param](llama, run)


@pytest.fixture(scope="module")
def shown(browser, request, view):
    """One page for all that is looked at in a view, in the order of this file."""
    with opened(browser, request.node) as page:
        show(page, view)
        page.wait_for_timeout(300)
        yield page


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing(shown: Page, dark):
    theme(shown, dark)
    found = Axe().run(shown)
    assert not found.response["violations"], found.generate_report()


def test_it_is_drawn_again_when_the_theme_changes(shown: Page):
    theme(shown, dark=False)
    shown.wait_for_timeout(300)
    light = shown.screenshot()
    theme(shown, dark=True)
    shown.wait_for_timeout(300)
    dark = shown.screenshot()
    assert light != dark
    colour = shown.evaluate("getComputedStyle(document.querySelector('.loupe')).backgroundColor")
    assert colour == "rgb(17, 17, 17)"


@pytest.mark.parametrize("width", [420, 1400])
def test_it_stays_within_its_width(shown: Page, width):
    shown.set_viewport_size({"width": width, "height": 900})
    shown.wait_for_timeout(300)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width


def test_everything_can_be_reached_and_seen_by_keyboard(shown: Page):
    shown.set_viewport_size({"width": 1200, "height": 900})
    seen = set()
    for _ in range(60):
        shown.keyboard.press("Tab")
        at = shown.evaluate(
            """() => {
              const at = document.activeElement;
              if (at === document.body) return null;
              const style = getComputedStyle(at);
              window.tabs ??= []; if (!window.tabs.includes(at)) window.tabs.push(at);
              return [window.tabs.indexOf(at), at.tagName, style.outlineStyle !== 'none'];
            }"""
        )
        if at is None:
            break
        assert at[2], f"{at[1]} shows no focus"
        seen.add(at[0])
    clickable = "button, select, input, canvas[tabindex='0'], [tabindex='0']"
    count = shown.locator(clickable).evaluate_all(
        "all => all.filter(one => one.checkVisibility()).length"
    )
    # A group of tokens or cells is one stop, in which arrows move.
    assert min(count, 60) >= len(seen) > 0


def test_it_ends_without_a_trace(shown: Page):
    """The last of a view's tests: what it still did afterwards would be an error of the page."""
    shown.evaluate("() => { window.dispose(); document.getElementById('place').replaceChildren() }")
    theme(shown, dark=False)
    shown.wait_for_timeout(200)


def test_an_exported_file_works_alone(page: Page, view, tmp_path):
    place = tmp_path / "view.html"
    loupe.export(view, place)
    refused: list[str] = []
    page.on("console", lambda said: refused.append(said.text) if said.type == "error" else None)
    page.goto(place.as_uri())
    page.wait_for_selector("body[data-ready]")
    page.wait_for_timeout(300)
    assert not refused
    assert not (found := Axe().run(page)).response["violations"], found.generate_report()
    assert page.locator(".loupe-view").first.inner_text().strip() or page.locator("canvas").count()


# Attention


def canvases(page: Page):
    page.wait_for_timeout(300)
    return page.locator(".loupe-atlas canvas"), page.locator(".loupe-map canvas[tabindex]")


def test_a_head_is_chosen_by_clicking_and_by_arrows(page: Page, run):
    show(page, loupe.attention(run))
    atlas, _ = canvases(page)
    title = page.get_by_text("Layer 0, head 0, which reads")
    assert title.is_visible()
    atlas.focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowRight"):
        atlas.press(key)
    assert page.get_by_text("Layer 1, head 2, which reads key/value head 1").is_visible()
    said = page.evaluate("window.said.filter(m => m.kind === 'select')")
    assert said[-1] == {"kind": "select", "layer": 1, "head": 2}
    atlas.click(position={"x": 40, "y": 30})
    assert title.is_visible()


def test_the_number_that_is_shown_is_the_array_s(page: Page, llama):
    run = llama.run(TEXT, capture=("q_rot", "k_rot", "pattern"))
    view = loupe.attention(run, selection=loupe.Selection(layer=1, head=6))
    show(page, view)
    _, canvas = canvases(page)
    canvas.focus()
    canvas.press("Home")
    for _ in range(9):
        canvas.press("ArrowDown")
    for _ in range(4):
        canvas.press("ArrowRight")
    page.wait_for_timeout(400)
    said = page.locator(".loupe-map .loupe-status").inner_text()
    assert said.startswith("query 9 “,”, key 4 “ John”: attention ")
    value = float(said.rpartition(" ")[2].replace("−", "-"))
    pattern = run["pattern", 1][0, 6]
    assert value == pattern[9, 4]


def test_what_a_token_reads_is_listed_and_can_be_followed(page: Page, run):
    view = loupe.attention(run, selection=loupe.Selection(layer=1, head=6, token=13))
    show(page, view)
    page.wait_for_selector(".loupe-reads button")
    row = view.answer("row", {"layer": 1, "head": 6, "query": 13})["values"]
    first = page.locator(".loupe-reads button").first
    assert first.inner_text().split()[0] == str(row.argmax())
    first.click()
    assert page.evaluate("window.said.at(-1).token") == row.argmax()


def test_zooming_asks_for_exact_cells_and_keeps_the_cursor(page: Page, llama):
    run = llama.run(" ".join([TEXT] * 30), capture=("q_rot", "k_rot"))
    assert run.tokens.shape[1] > 300  # more than the cells of a tile
    view = loupe.attention(run, selection=loupe.Selection(layer=0, head=5, token=200))
    show(page, view)
    _, canvas = canvases(page)
    canvas.focus()
    for _ in range(5):
        canvas.press("+")
        page.wait_for_timeout(150)
    asked = page.evaluate("window.said.filter(m => m.what === 'tile').at(-1).args")
    assert asked["rows"] == asked["bottom"] - asked["top"] < 30  # single queries
    assert asked["top"] <= 200 < asked["bottom"]


def test_masked_cells_are_told_from_zeros(page: Page, run):
    show(page, loupe.attention(run))
    _, canvas = canvases(page)
    canvas.focus()
    canvas.press("Home")
    canvas.press("End")
    page.wait_for_timeout(300)
    assert page.locator(".loupe-map .loupe-status").inner_text().endswith(": masked")


def test_hostile_tokens_are_text(page: Page, run, monkeypatch):
    view = Attention(run, 0, loupe.Selection(token=12, layer=0, head=0))
    texts = [HOSTILE[i % len(HOSTILE)] for i in range(view.length)]
    view.data = lambda data=view.data: {**data(), "tokens": texts}
    show(page, view)
    page.wait_for_selector(".loupe-reads button")
    assert page.evaluate("window.broken") is None
    assert page.locator("#place script, #place img, #place template").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200


def test_pooled_maps_say_how_to_zoom(page: Page, llama):
    from llama_jax import Capture

    run = llama.run(TEXT, capture=Capture("pattern", reduce=("max_pool", 8)))
    show(page, loupe.attention(run))
    page.wait_for_timeout(200)
    assert page.locator(".loupe-code").inner_text().count("q_rot") == 1


def test_sorting_by_a_score_brings_the_best_head_first(page: Page, run):
    show(page, loupe.attention(run))
    atlas, _ = canvases(page)
    page.get_by_label("order").select_option("previous_token")
    page.wait_for_selector("text=The highest previous token")
    atlas.focus()
    atlas.press("Home")
    layer, head, _ = analysis.head_scores(run).top("previous_token", 1)[0]
    assert page.get_by_text(f"Layer {layer}, head {head}, which reads").is_visible()


def test_two_views_of_one_selection_move_together(page: Page, run):
    from llama_loupe.views.page import Page as Views

    selection = loupe.Selection(layer=0, head=0)
    views = [("a", loupe.attention(run, selection=selection)) for _ in range(2)]
    show(page, Views("two", views, [], selection))
    atlas = page.locator(".loupe-atlas canvas")
    page.wait_for_timeout(300)
    atlas.first.focus()
    atlas.first.press("ArrowDown")
    assert page.get_by_text("Layer 1, head 0, which reads").count() == 2


def test_a_kernel_that_is_gone_is_said(page: Page, run):
    show(page, loupe.attention(run))
    canvases(page)
    page.evaluate("window.model.emit('comm_live_update')")
    assert page.get_by_text("The kernel that drew this is gone").is_visible()
    assert page.locator("canvas").count() >= 3
