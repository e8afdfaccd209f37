"""Results and the residual stream in a browser: what is drawn, chosen and said."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from llama_jax import Llama, analysis
from llama_jax.analysis import Comparison, Difference, HeadScores, PatchSweep, Result
from llama_loupe import Selection, export
from llama_loupe.views.residual import residual
from llama_loupe.views.results import result
from tests.browser.loupe import show, theme

WRITES = ("embed", "self_attn.out", "mlp.out")
TEXT = "When Mary and John went to the market, John gave a basket to"
rng = np.random.default_rng(0)
HOSTILE = ["</script>", "<img src=x onerror=alert(1)>", "\u202eabc", "a" * 10_000, "\udc80", "\0"]


@pytest.fixture(scope="module")
def run():
    return Llama.from_pretrained("cria").run(TEXT, capture=WRITES)


def normal(*shape):
    return jnp.asarray(rng.normal(size=shape).astype(np.float32))


ROWS = tuple(
    Difference(f"layers.{i}.norm", "point", (i * 37 % 300) / 7, i, (i,)) for i in range(300)
)
VIEWS = {
    "map": lambda run: result(
        PatchSweep(normal(4, 6), ("layer", "position"), "resid_pre", 4.1, -3.7, "difference")
    ),
    "scores": lambda run: result(HeadScores(*(normal(4, 8) ** 2 for _ in range(6)))),
    "tiles": lambda run: result(Result(normal(3, 200, 400), ("layer", "position", "neuron"))),
    "bars": lambda run: result(
        Result(normal(15), ("position",), pieces=run.llama.pieces(run.tokens[0]))
    ),
    "number": lambda run: result(Result(normal(1, 1), ("layer", "head"))),
    "circuit": lambda run: result(analysis.qk_circuit(run.llama, 1, 3)),
    "table": lambda run: result(Comparison(ROWS[:40])),
    "residual": residual,
    "position": lambda run: residual(analysis.residual_decomposition(run, positions=[-1])),
    "nothing": lambda run: residual(run.llama.run("Once")),
}


def status(page: Page, place=".loupe-map") -> str:
    page.wait_for_timeout(300)  # it speaks at most four times a second
    return page.locator(f"{place} .loupe-status").inner_text()


def number(text: str) -> np.float32:
    return np.float32(re.sub("−", "-", text.split()[-1]))


def selected(page: Page) -> dict:
    return page.evaluate("window.said.filter(message => message.kind === 'select').at(-1)")


@pytest.mark.parametrize("name", VIEWS)
def test_axe_finds_nothing_and_nothing_is_wider_than_the_page(page: Page, run, name):
    view = VIEWS[name](run)
    show(page, view)
    for width, dark in ((420, False), (1200, False), (700, True)):
        page.set_viewport_size({"width": width, "height": 900})
        theme(page, dark)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page)
    assert not found.response["violations"], found.generate_report()


def test_a_cell_is_chosen_by_keyboard_and_says_its_number(page: Page):
    sweep = PatchSweep(
        normal(3, 6),
        ("layer", "position"),
        "resid_pre",
        4.1,
        -3.7,
        "difference",
        coordinates={"layer": [2, 5, 9]},
        pieces=["one", " two", " three", " four", " five", " six"],
    )
    effect = np.asarray(sweep.effect)
    show(page, result(sweep, selection=Selection(layer=5, token=2)))
    said = status(page)
    assert said.startswith("layer 5, position 2 “ three”: effect ")
    assert number(said) == effect[1, 2]
    canvas = page.locator(".loupe-map canvas[tabindex]")
    canvas.press("ArrowDown")
    canvas.press("ArrowRight")
    assert number(status(page)) == effect[2, 3]
    assert selected(page) == {"kind": "select", "layer": 9, "token": 3}
    page.locator("select").first.select_option("values")
    assert number(status(page)) == np.asarray(sweep.values)[2, 3]


def test_views_of_one_selection_follow_it(page: Page):
    values = normal(4, 8)
    show(page, result(Result(values, ("layer", "head"))))
    chosen = {"row": 0, "token": None, "layer": 2, "head": 7}
    page.evaluate("chosen => window.model.emit('msg:custom', {kind: 'selected', chosen})", chosen)
    said = status(page)
    assert said.startswith("layer 2, head 7:") and number(said) == values[2, 7]


def test_a_strong_entry_is_found_wherever_it_is(page: Page):
    values = normal(3, 200, 400).at[2, 150, 333].set(-40).at[1, 7, 9].set(30)
    show(page, result(Result(values, ("layer", "position", "neuron"))))
    first = page.locator(".loupe-ranked button").first
    assert first.inner_text().split("\n") == ["2 · 150 · 333", "−40"]
    assert page.get_by_label("layer").input_value() == "2"
    page.locator(".loupe-ranked button").nth(1).click()
    assert page.get_by_label("layer").input_value() == "1"
    assert number(status(page).split(" (")[0]) == 30
    assert selected(page) == {"kind": "select", "layer": 1, "token": 7}
    canvas = page.locator(".loupe-map canvas[tabindex]")
    canvas.press("PageUp")
    assert page.get_by_label("layer").input_value() == "0"
    for _ in range(8):
        canvas.press("+")
        page.wait_for_timeout(60)
    assert number(status(page)) == values[0, 7, 9]


def test_bars_are_chosen_by_keyboard_and_by_clicking(page: Page):
    values = normal(15).at[4].set(jnp.nan)
    show(page, result(Result(values, ("position",), title="loss")))
    canvas = page.locator(".loupe-chart canvas")
    canvas.focus()
    canvas.press("Home")
    canvas.press("ArrowRight")
    said = page.locator(".loupe-chart .loupe-status")
    expect(said).to_have_text(re.compile("^position 1: loss .* · 1 not finite"))
    assert np.float32(said.inner_text().split()[3].replace("−", "-")) == values[1]
    assert selected(page) == {"kind": "select", "token": 1}
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] - 12, "y": 80})
    assert selected(page)["token"] == 14
    assert page.evaluate(
        """canvas => new Set(new Uint32Array(canvas.getContext("2d").getImageData(
          0, 0, canvas.width, canvas.height).data.buffer)).has(0xffff00ff)""",
        canvas.element_handle(),
    )


def test_a_table_is_sorted_by_a_click(page: Page):
    show(page, result(Comparison(ROWS)))
    names = page.locator("tbody th")
    assert names.count() == 200 and names.first.inner_text() == "layers.0.norm"
    page.get_by_role("button", name="relative").click()
    most = max(range(300), key=lambda i: ROWS[i].relative)
    assert names.first.inner_text() == f"layers.{most}.norm"
    assert page.locator("thead [aria-sort]").get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="relative").click()
    assert names.first.inner_text() == "layers.0.norm"
    names.nth(1).locator("button").click()
    least = sorted(range(300), key=lambda i: ROWS[i].relative)[1]
    assert selected(page) == {"kind": "select", "layer": least}


def test_the_stream_at_a_position_is_told_part_by_part(page: Page, run):
    view = residual(run, position=4)
    written = np.asarray(analysis.residual_decomposition(run).norms.values)[0]
    show(page, view)
    said = status(page)
    assert "position 4 “ John”: written " in said
    rows = page.locator("tbody tr")
    assert rows.count() == 9
    cells = rows.nth(3).inner_text().split()
    assert cells[0] == "1.attn"
    assert np.float32(cells[1]) == pytest.approx(written[4, 3], rel=1e-5)
    rows.nth(3).locator("button").click()
    assert selected(page) == {"kind": "select", "token": 4, "layer": 1}
    assert status(page).startswith("component 1.attn, position 4")
    page.locator("select").first.select_option("projection on the final stream")
    shares = [np.float32(row.split()[3].replace("−", "-")) for row in rows.all_inner_texts()]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    bars = page.locator(".loupe-chart canvas")
    bars.press("End")
    assert selected(page)["layer"] == 3


def test_columns_of_a_long_prompt_are_asked_for(page: Page, run, monkeypatch):
    monkeypatch.setattr("llama_loupe.views.results.WHOLE", 10)
    view = residual(run, position=4)
    show(page, view)
    page.wait_for_selector("tbody tr")
    cells = page.locator("tbody tr").nth(3).inner_text().split()
    assert np.float32(cells[1]) == view.charts[0].values[3, 4]
    asked = page.evaluate("window.said.filter(message => message.what === 'column').at(-1).args")
    assert asked == {"chart": 0, "at": 4}


@pytest.mark.parametrize("shape", [(6, 6), (6,)], ids=["map", "bars"])
def test_hostile_texts_run_nothing_and_break_nothing(page: Page, tmp_path, shape):
    said: list[str] = []
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    axes = ("component", "position")[: len(shape)]
    found = Result(
        normal(*shape), axes, coordinates={"component": HOSTILE}, pieces=HOSTILE, title=HOSTILE[1]
    )
    view = result(found)
    show(page, view)
    page.wait_for_timeout(200)
    for button in page.locator(".loupe-ranked button").all():
        button.click()
    assert page.locator("img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    assert "\u202e" not in page.locator("body").inner_text()
    export(view, tmp_path / "hostile.html")
    page.goto((tmp_path / "hostile.html").as_uri())
    page.wait_for_selector("body[data-ready]")
    assert not said
