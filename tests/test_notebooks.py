"""What the notebooks say; tests/browser/test_notebooks.py runs them."""

import pathlib

import nbformat
import pytest

from llama_jax import Llama, analysis

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"


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


@pytest.mark.parametrize("notebook", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(notebook):
    for cell in nbformat.read(notebook, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
