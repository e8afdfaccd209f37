"""What analyses give prints, tabulates and draws itself, whatever the tokens say."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import treescope

from llama_jax import Llama, analysis
from llama_jax.analysis import Result
from llama_jax.tables import Table
from tests.extension.test_labels import HOSTILE, page_of, tags


class Shown:
    """A rendered value, in the form that `page_of` takes."""

    def __init__(self, value):
        self.value = value

    def _repr_html_(self):
        return treescope.render_to_html(self.value, compressed=True)


@pytest.fixture(scope="module")
def found():
    llama = Llama.from_pretrained("cria")
    run = llama.run("Once upon a", "*")
    metric = analysis.logit_difference(" time", " day")
    return {
        "lens": analysis.logit_lens(run),
        "probability": analysis.logit_lens(run).of(" time"),
        "layers": analysis.direct_logit_attribution(run, " time", position=None),
        "heads": analysis.direct_logit_attribution(run, " time", by="head"),
        "stream": analysis.residual_decomposition(run),
        "sweep": analysis.patch_sweep(llama, "Once upon a", "One day the", metric=metric),
        "scores": analysis.head_scores(run),
        "induction": analysis.head_scores(run)["induction"],
        "circuit": analysis.qk_circuit(llama, 0, 0),
        "composition": analysis.composition_scores(llama),
        "map": analysis.attention_map(run, 0, 0),
        "gradients": analysis.integrated_gradients(llama, "Once upon a", metric, steps=2),
        "overview": analysis.overview(run["resid_post", 0]),
        "statistics": analysis.weight_statistics(llama),
        "difference": analysis.compare(run, run),
    }


def test_each_has_a_short_repr_and_a_picture_or_a_table(found):
    for name, result in found.items():
        lines = repr(result).splitlines()
        assert len(lines[0]) < 200, name
        page = page_of(Shown(result))
        assert isinstance(result, Table) or type(result).__name__ in page, name
        assert len(page) < 500_000, name


def test_each_but_circuits_and_pictures_is_a_table(found):
    for name, result in found.items():
        if name not in ("circuit", "overview"):
            assert len(result.to_dataframe()) > 1, name


def test_arrays_of_results_are_jax_arrays_with_named_axes(found):
    for name, result in found.items():
        if isinstance(result, Result):
            assert isinstance(result.values, jnp.ndarray), name
            assert len(result.axes) == result.values.ndim, name
            assert all(
                len(result.along(axis)) == size
                for axis, size in zip(result.axes, result.values.shape, strict=True)
            ), name


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_tokens_add_no_tag_to_the_page(piece):
    result = Result(jnp.eye(2), ("layer", "position"), pieces=[piece, "b"], title=piece)
    harmless = dataclasses.replace(result, pieces=["a", "b"], title="a")
    page = page_of(Shown(result))
    # Long text may be laid out in more lines: there are more tags, and none of another kind.
    assert set(tags(page)) == set(tags(page_of(Shown(harmless))))
    assert piece not in page


def test_not_a_number_and_infinity_are_drawn():
    result = Result(jnp.array([[np.nan, np.inf], [-np.inf, 2.0]]), ("layer", "head"))
    assert "Result" in page_of(Shown(result))
    assert repr(result) == "Result(2 layers x 2 heads, 2 to 2)"
    empty = Result(jnp.full((1, 1), np.nan), ("layer", "head"))
    assert repr(empty) == "Result(one value, no finite value)" and page_of(Shown(empty))
