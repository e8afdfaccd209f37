"""Each notebook is run once, in a real JupyterLab; what it shows and what it says is looked at."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from tests.browser.conftest import lab_page, opened
from tests.browser.lab import LabPage, plain

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


class Executed:
    """A notebook that ran to its end: its cells, and the page that shows them."""

    def __init__(self, name: str, cells: list[dict[str, Any]], lab: LabPage | None) -> None:
        self.name, self.cells, self.lab = name, cells, lab

    def __getitem__(self, code: str) -> str:
        """The plain text of the outputs of the one cell whose source has `code` in it."""
        (cell,) = (cell for cell in self.code if code in "".join(cell["source"]))
        return "".join(map(plain, cell["outputs"]))

    @property
    def code(self) -> list[dict[str, Any]]:
        return [cell for cell in self.cells if cell["cell_type"] == "code"]


@pytest.fixture(scope="module", params=NOTEBOOKS)
def executed(request) -> Iterator[Executed]:
    if os.environ.get("NO_BROWSER"):  # then without a page
        notebook = nbformat.read(FOLDER / request.param, as_version=4)
        nbclient.NotebookClient(
            notebook, timeout=300, resources={"metadata": {"path": FOLDER}}
        ).execute()
        yield Executed(request.param, notebook.cells, None)
        return
    browser, server = map(request.getfixturevalue, ("browser", "lab_server"))
    shutil.copy(FOLDER / request.param, server.root / request.param)
    with opened(browser, request.node) as page, lab_page(page, server, request.node) as lab:
        lab.open(request.param)
        lab.command("notebook:clear-all-cell-outputs")
        lab.run_all(seconds=300)
        yield Executed(request.param, lab.cells(), lab)


def test_it_runs_without_an_error_and_everything_is_drawn(executed):
    errors = [out for cell in executed.code for out in cell["outputs"] if "ename" in out]
    assert not errors, "\n".join(map(plain, errors))
    assert all(cell["execution_count"] for cell in executed.code)
    if executed.lab is None:
        pytest.skip("NO_BROWSER is set: what it drew was not looked at")
    for index, cell in enumerate(executed.cells):
        if cell.get("outputs"):
            executed.lab.drawn(index)


def test_it_shows_what_it_says(executed):
    SAYS[executed.name](executed)


def opens_a_llama(shown: Executed) -> None:
    for cell in shown.code:
        assert cell["outputs"], cell["source"]
    assert shown["run.top"].splitlines()[0].endswith("' Mary'")  # the likeliest comes first
    assert "405,853,388,800" in shown["405b"]
    plain_text, pushed = shown["Steer"].strip().split("\n\n")
    assert "winter" in pushed and "now" in pushed and "winter" not in plain_text
    assert "13 pass" in shown[".check()"]
    price = shown["giant.plan"]
    assert "total: 2.0 TiB" in price and "total: 126.5 MiB" in price
    assert len(shown["llama.stream"].split()) > 40


def asks_it_questions(shown: Executed) -> None:
    # Her name on its own token, then on John's, then at the end.
    sites = [line.split()[1:3] for line in shown["nlargest"].splitlines()[1:]]
    assert sorted(sites[:4]) == [["0", "2"], ["1", "4"], ["2", "14"], ["3", "14"]]
    shares = [float(share) for share in re.findall(r"([\d.]+)%", shown["def without"])]
    assert shares[0] > 95 and shares[1] < 5 and shares[2] > 90
    assert "without [(0, 3), (0, 7), (0, 6)]" in shown["def without"]
    layers = shown["lens.candidates"].splitlines()
    assert "honey" not in layers[0] and all("' honey' 99" in line for line in layers[1:4])
    assert "4 layers x 8 heads" in shown['scores["induction"]']
    assert "94% of 16 names" in shown["qk_circuit"]
    assert float(re.search(r"copying ([\d.]+)", shown["composition_scores"])[1]) > 0.8
    composed = re.search(r"of layer 0:(( [\d.]+)+)", shown["composition_scores"])
    scores = [float(score) for score in composed[1].split()]
    assert max(scores) == scores[5]
    total = re.search(r"sum ([\d.]+), the model's own ([\d.]+)", shown["parts = "])
    assert float(total[1]) == pytest.approx(float(total[2]), abs=2e-4)


def looks_closer(shown: Executed) -> None:
    assert any("application/vnd.jupyter.widget-view+json" in str(cell) for cell in shown.code)


def uses_many_devices(shown: Executed) -> None:
    assert shown["jax.devices()"].count("CpuDevice") == 8
    held = shown["llama.placement"].splitlines()
    assert held[3].startswith("cpu:2   data 0, tensor 2  4–5    2         320–479  1024–1535")
    assert "['cpu:2', 'cpu:6']" in shown["addressable_shards"]
    assert float(shown["at most apart"].split()[0]) < 1e-4
    assert "9 all-reduce" in shown['"local"'] and "all-gather" not in shown['"local"']
    assert "v5p:2x2x4" in shown["devices=None"] and "94.5 GiB" in shown["h200:8"]


SAYS = dict(
    zip(NOTEBOOKS, (opens_a_llama, asks_it_questions, looks_closer, uses_many_devices), strict=True)
)
