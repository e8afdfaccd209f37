"""Where there is NaN, everything that compares, ranks, pools, samples or checks says so."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import Capture, Llama, analysis
from llama_jax.model import parameters
from tests.tiny import GQA

K = "layers.1.self_attn.k_proj.weight"


def broken(llama, name, at=(0, 3)):
    weight = np.array(parameters(llama.model)[name].get_value())
    weight[at] = np.nan
    return llama.edited({name: weight})


@pytest.fixture(scope="module")
def llama():
    return Llama.random(GQA, std=0.3)


@pytest.fixture(scope="module")
def sick(llama):
    return broken(llama, K)


@pytest.mark.parametrize("at", [(0, 0), (0, 3), (17, 31), (31, 0)])
def test_one_nan_among_weights_is_what_differs_most(llama, at):
    name = "layers.2.self_attn.k_proj.weight"
    other = broken(llama, name, at)
    for found in (analysis.compare(llama, other), analysis.compare(other, llama)):
        first = found.top(1)[0]
        assert first.name == name and np.isnan(first.max_abs) and np.isnan(first.relative)
        assert first.where == at and "1 of 30 differ" in str(found)
    assert all(row.max_abs == 0 for row in analysis.compare(other, other).rows)


def test_a_run_that_is_nan_differs_from_one_that_is_not(llama, sick):
    points = ("k", "resid_post", "pattern")
    found = analysis.compare(llama.run([[1, 2, 3]], points), sick.run([[1, 2, 3]], points))
    broken = {row.name for row in found.rows if np.isnan(row.max_abs)}
    assert "layers.1.self_attn.k" in broken and "logits" in broken
    assert {row.name: row.max_abs for row in found.rows}["layers.0.resid_post"] == 0
    logits = next(row for row in found.rows if row.name == "logits")
    assert np.isnan(logits.kl)


def test_check_fails_and_names_where_it_begins(sick):
    for capture in ("*", "resid_post", ()):
        found = sick.run([[1, 2, 3], [4, 5]], capture).check()
        assert not found.passed
        first = found.outcomes[-1]
        assert first.name == "everything is finite" and first.passed is False
        assert "first at layers.1.self_attn.k, row 0, position 0" in first.note
        assert "run once more" in first.note
    lens = next(o for o in sick.run([[1, 2, 3]], "*").check() if "lens" in o.name)
    assert lens.passed is False and np.isnan(lens.error)


def test_check_of_a_finite_run_says_nothing_of_it(llama):
    found = llama.run([[1, 2, 3], [4, 5]], "*").check()
    assert found.passed and not any("finite" in outcome.name for outcome in found)


def test_no_token_is_named_where_logits_are_nan(sick):
    run = sick.run([[1, 2, 3]], "resid_post")
    for candidate in (*run.top(2), *analysis.logit_lens(run).candidates(2)):
        assert (candidate.token, candidate.text) == (-1, "NaN") and np.isnan(candidate.probability)


def test_a_rank_among_nan_is_nan(sick):
    lens = analysis.logit_lens(sick.run([[1, 2, 3]], "resid_post"))
    assert np.isnan(lens.rank(5)[1:]).all() and not np.isnan(lens.rank(5)[0]).any()
    assert np.isnan(lens.entropy[1:]).all()


def test_generating_warns_once_and_names_the_step(llama, sick):
    with pytest.warns(UserWarning, match=r"Step 0: the logits of row 0 are NaN.*check\(\)") as seen:
        sick.generate([1, 2, 3], 4, temperature=0)
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llama.generate([1, 2, 3], 4)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_pooled_maps_keep_nan(sick, n):
    pooled = sick.run([[1, 2, 3]], Capture(("pattern", 1), reduce=("max_pool", n)))["pattern"]
    assert np.isnan(jnp.asarray(pooled)[:, :2]).any()
