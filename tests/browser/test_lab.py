"""Notebooks in a real JupyterLab."""

import sys
from pathlib import Path

import nbformat

TREE = """
import jax.numpy as jnp
{"weights": [jnp.arange(64.0).reshape(8, 8)], "name": "cria"}
"""


def write(place: Path, *cells: str) -> str:
    """A notebook with these code cells; its name below the server's root."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, place)
    return place.name


def test_the_kernel_is_the_python_that_runs_the_tests(lab):
    lab.open(write(lab.lab.root / "kernel.ipynb", "import sys", "print(sys.prefix)"))
    lab.run_all()
    assert lab.text(1).strip() == sys.prefix


def test_an_error_in_a_cell_is_reported(lab):
    lab.open(write(lab.lab.root / "error.ipynb", "1", "1 / 0", "2"))
    lab.run_all()
    [error] = lab.errors()
    assert error.startswith("cell 1:") and "ZeroDivisionError" in error


def test_the_loupe_draws_trees_in_the_colours_of_the_theme(lab):
    lab.open(write(lab.lab.root / "themes.ipynb", "%load_ext llama_loupe", TREE))
    lab.run_all()
    assert not lab.errors()
    tree = lab.drawn(1).locator("treescope-container")
    assert tree.locator("canvas").count() == 1
    assert "'name': 'cria'" in tree.locator(".treescope_root").inner_text()
    assert tree.evaluate("element => getComputedStyle(element).filter") == "none"
    lab.theme("JupyterLab Dark")
    assert tree.evaluate("element => getComputedStyle(element).filter") != "none"


def test_a_hostile_label_runs_no_script(lab):
    hostile = "</script></template><img src=x onerror='window.hacked=1'>"
    lab.open(
        write(
            lab.lab.root / "label.ipynb",
            "import numpy as np, treescope, llama_loupe as loupe",
            f'labels = loupe.token_labels(["a", {hostile!r}])',
            "treescope.render_array(np.eye(2), axis_item_labels={0: labels, 1: labels})",
        )
    )
    lab.run_all()
    assert not lab.errors()
    figure = lab.drawn(2).locator("treescope-container")
    canvas = figure.locator("canvas")
    size = canvas.bounding_box()
    canvas.hover(position={"x": size["width"] * 0.6, "y": size["height"] * 0.6})
    tip = figure.locator(".hovertip")
    tip.wait_for(state="visible")
    assert hostile in tip.inner_text().replace("\u200b", "")
    assert lab.page.evaluate("window.hacked") is None


def test_an_array_in_a_tree_is_drawn_when_its_node_is_opened(lab):
    cells = (
        "%load_ext llama_loupe\nfrom llama_jax import Llama\nllama = Llama.from_pretrained('cria')",
        "llama.model",
        "import treescope\ntreescope.display(llama.model.layers[0])",
    )
    lab.open(write(lab.lab.root / "opened.ipynb", *cells))
    lab.run_all()
    assert not lab.errors()
    for cell in (1, 2):
        tree = lab.drawn(cell).locator("treescope-container").first
        assert not tree.locator("canvas").count()
        # By its own toggles: whoever opens a node sees what is in it.
        toggles = tree.locator("input.foldable_node_toggle")
        toggles.evaluate_all("all => all.forEach(one => one.checked || one.click())")
        picture = tree.locator("llama-loupe-picture treescope-container").first
        picture.locator("canvas").first.wait_for(state="visible")
    page = "".join(lab.outputs(1)[0]["data"]["text/html"])
    assert len(page) < 300_000
