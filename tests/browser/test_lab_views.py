"""Views in a real JupyterLab and Notebook 7: what crosses to the kernel and back."""

from __future__ import annotations

import subprocess
import sys

import nbclient
import nbformat
import pytest
from playwright.sync_api import Page

from tests.browser.conftest import lab_page, opened
from tests.browser.lab import IDLE, NOTEBOOK, LabPage, environment
from tests.browser.test_lab import write

OPEN = """
%load_ext llama_loupe
import time
import llama_loupe as loupe
from llama_jax import Llama
llama = Llama.from_pretrained("cria")
chosen = loupe.Selection(layer=0, head=0)
run = llama.run("When Mary and John went to the market, John", capture=("q_rot", "k_rot"))
"""
VIEW = "loupe.attention(run, selection=chosen)"
SAY = "print(chosen)"


def open_and_run(lab: LabPage, name: str, *cells: str) -> LabPage:
    lab.open(write(lab.lab.root / f"{name}.ipynb", OPEN, VIEW, *cells))
    for index in (0, 1):
        lab.run_cell(index)
    assert not lab.errors(), lab.errors()
    drawn(lab.page)
    return lab


def drawn(page: Page) -> None:
    """The view is here, and its map has come from the kernel."""
    page.locator(".loupe-map canvas[tabindex]").wait_for(state="visible")
    page.wait_for_function(
        "document.querySelector('.loupe-map canvas[tabindex]').ariaLabel?.includes('Largest')"
    )


def title(page: Page, layer: int, head: int):
    return page.get_by_text(f"Layer {layer}, head {head}, which reads")


@pytest.fixture(scope="module")
def shown(browser, lab_server, request):
    """One notebook for the tests that follow, in the order of this file."""
    busy = "import os\nwhile not os.path.exists('go'): time.sleep(0.05)"
    with opened(browser, request.node) as page, lab_page(page, lab_server, request.node) as lab:
        yield open_and_run(lab, "shown", SAY, "chosen.layer, chosen.head = 3, 7", busy)


def choose(lab: LabPage, layer: int, head: int) -> None:
    """By the keyboard, from the first head."""
    atlas = lab.page.locator(".loupe-atlas canvas")
    atlas.focus()
    for key in ("Home", *["ArrowDown"] * layer, *["ArrowRight"] * head):
        atlas.press(key)


def says(lab: LabPage) -> str:
    lab.run_cell(2)
    return lab.text(2).strip()


def test_choosing_reaches_python_and_python_s_choice_the_page(shown):
    active = shown.page.evaluate(f"{NOTEBOOK}.content.activeCellIndex")
    choose(shown, 1, 1)
    title(shown.page, 1, 1).wait_for()
    assert shown.page.evaluate(f"{NOTEBOOK}.content.activeCellIndex") == active
    assert says(shown) == "Selection(row=0, layer=1, head=1)"
    shown.run_cell(3)
    title(shown.page, 3, 7).wait_for()
    assert says(shown) == "Selection(row=0, layer=3, head=7)"


def test_choosing_while_a_cell_runs_loses_nothing(shown):
    shown.start_cell(4)
    choose(shown, 2, 1)
    title(shown.page, 2, 1).wait_for()  # the page does not wait for the kernel
    (shown.lab.root / "go").touch()
    shown.wait()
    drawn(shown.page)
    assert says(shown) == "Selection(row=0, layer=2, head=1)"


def test_a_view_comes_back_after_a_reload(shown):
    choose(shown, 1, 0)
    title(shown.page, 1, 0).wait_for()
    assert says(shown) == "Selection(row=0, layer=1, head=0)"
    shown.command("docmanager:save")
    shown.page.reload()
    shown.page.wait_for_function("() => !!window.jupyterapp")
    shown.page.evaluate("() => window.jupyterapp.restored")
    drawn(shown.page)
    title(shown.page, 1, 0).wait_for()
    choose(shown, 2, 0)
    title(shown.page, 2, 0).wait_for()
    drawn(shown.page)


def test_a_second_tab_shows_the_same_view(shown):
    shown.command("docmanager:save")
    other = LabPage(shown.page.context.new_page(), shown.lab)
    place = shown.page.url.split("/tree/")[1]
    other.page.goto(
        f"{shown.lab.address}/lab/workspaces/other/tree/{place}?token={shown.lab.token}"
    )
    drawn(other.page)
    choose(other, 1, 0)
    title(other.page, 1, 0).wait_for()
    other.page.close()


def test_after_a_restart_the_view_stays_and_says_so(shown):
    shown.page.evaluate(f"() => {NOTEBOOK}.sessionContext.session.kernel.restart()")
    shown.page.get_by_text("The kernel that drew this is gone").wait_for()
    assert shown.page.locator(".loupe-atlas canvas").is_visible()


def test_a_view_that_only_the_page_holds_lives_as_long_as_the_page(lab):
    show = "import weakref\nown = llama.run('One day', capture=('q_rot', 'k_rot'))\n"
    show += "seen = [*globals().get('seen', ()), weakref.ref(own)]\nloupe.show(own)\ndel own"
    alive = "import gc; gc.collect(); print([one() is not None for one in seen])"
    open_and_run(lab, "held", show, alive)
    for _ in range(3):
        lab.run_cell(2)
        lab.page.locator(".loupe-page .loupe-atlas canvas").wait_for(state="visible")
    lab.page.wait_for_timeout(300)
    lab.run_cell(3)
    assert lab.text(3).strip() == "[False, False, True]"
    lab.command("docmanager:save")
    lab.page.reload()
    lab.page.wait_for_function("() => !!window.jupyterapp")
    lab.page.evaluate("() => window.jupyterapp.restored")
    atlas = lab.page.locator(".loupe-page .loupe-atlas canvas")
    atlas.wait_for(state="visible")
    lab.page.wait_for_function(IDLE)
    atlas.press("ArrowDown")
    lab.page.locator(
        ".loupe-page [aria-label^='Attention of layer 1'][aria-label*='Largest']"
    ).wait_for()


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A notebook that another process executed."""
    place = tmp_path_factory.mktemp("elsewhere") / "executed.ipynb"
    write(place, OPEN, VIEW)
    notebook = nbformat.read(place, 4)
    nbclient.NotebookClient(notebook, timeout=120).execute()
    return notebook


# Jupyter trusts contents, wherever they lie: the notebook is trusted last.
@pytest.mark.parametrize("trusted", [False, True], ids=["not trusted", "trusted"])
def test_a_notebook_that_was_executed_elsewhere_is_drawn(lab, executed, trusted):
    bundle = executed.cells[1].outputs[0]["data"]
    assert bundle["text/plain"].startswith("Attention: ") and bundle["image/png"]
    place = lab.lab.root / f"executed-{trusted}.ipynb"
    nbformat.write(executed, place)
    if trusted:
        command = [sys.executable, "-m", "jupyter", "trust", str(place)]
        subprocess.run(command, check=True, env=environment(lab.lab.root.parent))
    lab.open(place.name)
    if trusted:  # from the saved state, without a kernel that knows of it
        lab.page.locator(".loupe-atlas canvas").wait_for(state="visible")
        title(lab.page, 0, 0).wait_for()
    else:
        lab.page.locator(".jp-RenderedImage img").wait_for(state="visible")


@pytest.mark.theirs(
    "Cannot read properties of undefined (reading 'schema')",
    "Command 'filebrowser:open-path' not registered.",
)
def test_notebook_7_shows_a_view(page, lab_server):
    name = write(lab_server.root / "seven.ipynb", OPEN, VIEW)
    page.goto(f"{lab_server.address}/notebooks/{name}?token={lab_server.token}")
    page.wait_for_function("() => !!window.jupyterapp", timeout=60_000)
    page.evaluate("() => window.jupyterapp.restored")
    page.wait_for_selector(".jp-CodeCell")
    page.wait_for_timeout(1000)
    page.evaluate("() => void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.locator(".loupe-atlas canvas").wait_for(state="visible", timeout=60_000)
    drawn(page)
    LabPage(page, lab_server).wait()
    page.locator(".loupe-atlas canvas").click(position={"x": 60, "y": 90})
    title(page, 1, 0).wait_for()
    page.locator(".loupe-atlas canvas").press("ArrowDown")
    title(page, 2, 0).wait_for()
