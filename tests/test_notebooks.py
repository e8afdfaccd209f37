"""Each notebook runs from top to bottom; tests/browser looks at it in JupyterLab."""

import pathlib
import re

import nbclient
import nbformat
import pytest

from llama_jax import Llama, analysis

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"


def outputs(cell) -> str:
    """The plain text of a cell's outputs."""
    return "".join(
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for output in cell.get("outputs", ())
    )


def executed(name):
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": FOLDER}}
    ).execute()
    return notebook


@pytest.fixture(scope="module")
def opened():
    return executed("01_open_a_llama.ipynb")


@pytest.fixture(scope="module")
def asked():
    return executed("02_ask_it_questions.ipynb")


@pytest.fixture(scope="module")
def shared_out():
    return executed("05_many_devices.ipynb")


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


def test_the_second_notebook_shows_what_it_says(asked):
    shown = {cell.source: outputs(cell) for cell in asked.cells if cell.cell_type == "code"}

    def of(code):
        (text,) = (text for source, text in shown.items() if code in source)
        return text

    # Her name on its own token, then on John's, then at the end.
    sites = [line.split()[1:3] for line in of("nlargest").splitlines()[1:]]
    assert sorted(sites[:4]) == [["0", "2"], ["1", "4"], ["2", "14"], ["3", "14"]]
    shares = [float(share) for share in re.findall(r"([\d.]+)%", of("def without"))]
    assert shares[0] > 95 and shares[1] < 5 and shares[2] > 90
    assert "without [(0, 3), (0, 7), (0, 6)]" in of("def without")
    layers = of("lens.candidates").splitlines()
    assert "honey" not in layers[0] and all("' honey' 99" in line for line in layers[1:4])
    assert "4 layers x 8 heads" in of('scores["induction"]')
    assert "94% of 16 names" in of("qk_circuit")
    assert float(re.search(r"copying ([\d.]+)", of("composition_scores"))[1]) > 0.8
    composed = re.search(r"of layer 0:(( [\d.]+)+)", of("composition_scores"))
    scores = [float(score) for score in composed[1].split()]
    assert max(scores) == scores[5]
    total = re.search(r"sum ([\d.]+), the model's own ([\d.]+)", of("parts = "))
    assert float(total[1]) == pytest.approx(float(total[2]), abs=2e-4)


def test_what_the_second_notebook_says_about_heads_is_so():
    llama = Llama.from_pretrained("cria")
    scores = analysis.head_scores(llama)
    assert float(scores.induction[1].min()) > 0.8  # all heads of layer 1
    assert float(scores.induction[0].max()) < 0.1 and float(scores.induction[2:].max()) < 0.1
    assert scores.top("previous_token", 1)[0][:2] == (0, 5)
    mary = "When Mary and John went to the market, John gave a basket to"
    run = llama.run(mary, ("embed", "self_attn.out", "mlp.out", "z", "norm.scale"))
    parts = analysis.direct_logit_attribution(run, (" Mary", " John"))
    by_name = dict(zip(parts.along("component"), parts.values[0].tolist(), strict=True))
    assert by_name["1.attn"] < -1 and min(by_name["2.attn"], by_name["3.attn"]) > 1
    heads = analysis.direct_logit_attribution(run, (" Mary", " John"), by="head").values[0, 1]
    assert float(heads[0]) > 1 and float(heads[7]) > 1 and float(heads[1:7].max()) < 0


def test_the_fifth_notebook_shows_what_it_says(shared_out):
    shown = {cell.source: outputs(cell) for cell in shared_out.cells if cell.cell_type == "code"}

    def of(code):
        (text,) = (text for source, text in shown.items() if code in source)
        return text

    assert of("jax.devices()").count("CpuDevice") == 8
    held = of("llama.placement").splitlines()
    assert held[3].startswith("cpu:2   data 0, tensor 2  4–5    2         320–479  1024–1535")
    assert "['cpu:2', 'cpu:6']" in of("addressable_shards")
    assert float(of("at most apart").split()[0]) < 1e-4
    assert "9 all-reduce" in of('"local"') and "all-gather" not in of('"local"')
    assert "v5p:2x2x4" in of("devices=None") and "94.5 GiB" in of("h200:8")


@pytest.mark.parametrize("notebook", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(notebook):
    for cell in nbformat.read(notebook, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
