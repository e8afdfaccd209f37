"""The text in a browser: colours, keys, the shared selection, hostile tokens."""

import re

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from llama_jax import Llama, Run
from llama_loupe.selection import Selection
from llama_loupe.views.tokens import tokens
from tests.browser.loupe import show, theme

TEXT = "Once upon a time there was a girl called Rosa.\n\nOne day, Rosa gave the ball to"
HOSTILE = ["</script>", "<img src=x onerror=alert(1)>", "\u202edlrow", "x" * 10_000, " \n", "  "]


@pytest.fixture(scope="module")
def llama() -> Llama:
    return Llama.from_pretrained("cria")


@pytest.fixture(scope="module")
def run(llama: Llama) -> Run:
    return llama.run(TEXT, capture="resid_post")


def said(value: float) -> str:
    """As few digits as tell an f32 from all others, as the page says it."""
    return str(np.float32(value)).replace("e-0", "e-").replace("-", "−")


def test_each_token_is_a_button_in_its_colour(page: Page, run: Run) -> None:
    view = tokens(run)
    show(page, view)
    buttons = page.locator(".loupe-text button")
    expect(buttons).to_have_count(view.length)
    assert buttons.all_inner_texts()[9:12] == [" called", " Rosa", ".↵↵"]
    assert page.locator(".loupe-text br").count() == 1
    shades = buttons.evaluate_all("all => all.map(b => b.style.backgroundColor)")
    assert shades[0] == "" and all(shade.startswith("rgb") for shade in shades[1:])
    theme(page, dark=True)
    assert buttons.evaluate_all("all => all.map(b => b.style.backgroundColor)")[1:] != shades[1:]
    # One stop of the Tab key.
    assert page.locator(".loupe-text button[tabindex='0']").count() == 1


def test_a_token_tells_its_exact_number_and_what_was_likely_in_its_place(page, run) -> None:
    view = tokens(run)
    show(page, view)
    page.locator(".loupe-text button").nth(5).hover()
    loss = view.answer("values", {"measure": "loss", "layer": None})["values"][5]
    expect(page.locator(".loupe-status")).to_have_text(f"Token 5 “ there”: loss {said(loss)} nats")
    rows = page.locator(".loupe-likely li")
    expect(rows).to_have_count(10)
    expect(rows.first).to_contain_text(" there")
    expect(rows.first).to_contain_text("came")
    own = view.answer("top", {"token": 5})["own"][0]
    text = f"“ there”: probability {said(own)}, rank 0"
    expect(page.locator(".loupe-expected")).to_contain_text(text)


@pytest.mark.parametrize("width", [700, 1200])
def test_the_list_has_its_room_from_the_start(page: Page, run: Run, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    view = tokens(run)
    show(page, view)
    place = page.locator(".loupe-expected")
    expect(place).to_contain_text(f"Before token {view.length - 1} “ to”")
    heights = set()
    for at in (5, 0, 12):
        page.locator(".loupe-text button").nth(at).hover()
        expect(place).to_contain_text("first token" if at == 0 else f"Before token {at} ")
        heights.add(place.bounding_box()["height"])
    assert len(heights) == 1 and heights.pop() < 250


def test_keys_move_and_choosing_selects_for_all(page: Page, run: Run) -> None:
    view = tokens(run, selection=Selection(token=2, layer=1))
    show(page, view)
    chosen = page.locator(".loupe-text [aria-current]")
    expect(chosen).to_have_text(" upon")
    chosen.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator(":focus")).to_have_text(" time")
    expect(chosen).to_have_text(" upon")
    page.keyboard.press("Enter")
    expect(chosen).to_have_text(" time")
    assert page.evaluate("said.filter(m => m.kind === 'select')") == [
        {"kind": "select", "token": 4}
    ]
    page.keyboard.press("End")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.offsetTop") < page.locator(
        ".loupe-text button"
    ).last.evaluate("b => b.offsetTop")
    page.evaluate("model.emit('msg:custom', {kind: 'selected', chosen: {token: 1}})")
    expect(chosen).to_have_text("Once")


def test_another_measure_is_fetched_and_follows_the_layer(page: Page, run: Run) -> None:
    view = tokens(run, selection=Selection(token=4))
    show(page, view)
    for measure, name, layer in (("kl", "KL(model || layer)", 0), ("resid_post", "norm", 2)):
        page.get_by_label("colour").select_option(measure)
        page.locator(".loupe-tools select").nth(1).select_option(str(layer))
        value = view.answer("values", {"measure": measure, "layer": layer})["values"][4]
        status = page.locator(".loupe-status")
        expect(status).to_contain_text(re.compile(re.escape(name) + f".*, layer {layer}, "))
        expect(status).to_contain_text(said(value))
    sent = page.evaluate("said.filter(m => m.kind === 'select').map(m => m.layer)")
    assert sent == [0, 2]


def test_hostile_tokens_are_text(page: Page, run: Run) -> None:
    view = tokens(run)
    view.texts = [*HOSTILE, *view.texts[len(HOSTILE) :]]
    dialogs = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message) or dialog.dismiss())
    show(page, view)
    texts = page.locator(".loupe-text button").all_inner_texts()
    assert texts[:3] == ["</script>", "<img src=x onerror=alert(1)>", "\\u{202e}dlrow"]
    assert len(texts[3]) <= 300 and texts[4:6] == [" ↵", "··"]
    for at in range(6):
        page.locator(".loupe-text button").nth(at).hover()
    assert page.locator("img").count() == 0 and not dialogs
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
