"""Each notebook runs from top to bottom; tests/browser looks at it in JupyterLab."""

import pathlib

import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"


def outputs(cell) -> str:
    """The plain text of a cell's outputs."""
    return "".join(
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for output in cell.get("outputs", ())
    )


@pytest.fixture(scope="module")
def opened():
    notebook = nbformat.read(FOLDER / "01_open_a_llama.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": FOLDER}}
    ).execute()
    return notebook


def test_every_cell_of_the_first_notebook_shows_something(opened):
    for cell in opened.cells:
        if cell.cell_type == "code":
            assert outputs(cell), cell.source


def test_the_first_notebook_shows_what_it_says(opened):
    shown = {cell.source: outputs(cell) for cell in opened.cells if cell.cell_type == "code"}
    (top,) = (text for source, text in shown.items() if "run.top" in source)
    assert top.splitlines()[0].endswith("' Mary'")  # the likeliest token comes first
    (tree,) = (text for source, text in shown.items() if "405b" in source)
    assert "405,853,388,800" in tree
    (steered,) = (text for source, text in shown.items() if "Steer" in source)
    plain, pushed = steered.strip().split("\n\n")
    assert "winter" in pushed and "now" in pushed and "winter" not in plain
    (proof,) = (text for source, text in shown.items() if ".check()" in source)
    assert "13 pass" in proof
    (price,) = (text for source, text in shown.items() if "giant.plan" in source)
    assert "total: 2.0 TiB" in price and "total: 126.5 MiB" in price
    (story,) = (text for source, text in shown.items() if "llama.stream" in source)
    assert len(story.split()) > 40


@pytest.mark.parametrize("notebook", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(notebook):
    for cell in nbformat.read(notebook, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
