"""What is no run, no number and no token is said so, and never rounded to one that is."""

import pytest

from llama_jax import Llama
from llama_jax.analysis import (
    attention_map,
    direct_logit_attribution,
    head_scores,
    logit,
    logit_lens,
    patch_sweep,
    qk_circuit,
    residual_decomposition,
)
from tests.tiny import GQA

PROMPT = [[1, 2, 3, 4]]


@pytest.fixture(scope="module")
def run():
    return Llama.random(GQA, std=0.3).run(PROMPT, "*")


def test_a_llama_where_a_run_is_needed(run):
    for question in (
        logit_lens,
        residual_decomposition,
        lambda given: attention_map(given, 0, 0),
        lambda given: direct_logit_attribution(given, 5),
    ):
        with pytest.raises(TypeError, match=r"is of a Run, as llama.run"):
            question(run.llama)
    with pytest.raises(TypeError, match="is of a Llama or a Run; this is a str"):
        head_scores("Once")


def test_a_fraction_is_no_head_no_row_and_no_token(run):
    with pytest.raises(TypeError, match=r"head is 1.5; it must be an integer"):
        attention_map(run, 0, 1.5)
    with pytest.raises(TypeError, match=r"layer is 0.5"):
        qk_circuit(run.llama, 0.5, 0)
    with pytest.raises(TypeError, match="row is 'a'"):
        attention_map(run, 0, 0, row="a")
    with pytest.raises(TypeError):
        logit(1.5)
    with pytest.raises(ValueError, match=r"Token 1.5: a token is an integer"):
        logit_lens(run).probability(1.5)


def test_counts_and_ranges_that_do_not_fit(run):
    with pytest.raises(IndexError, match="There is no row 5: 1 of them"):
        logit_lens(run).candidates(0, row=5)
    with pytest.raises(ValueError, match="k is 0; it must be 1 to 96"):
        logit_lens(run).candidates(0, k=0)
    with pytest.raises(ValueError, match="3 tokens are named for a batch of 1 rows"):
        direct_logit_attribution(run, [1, 2, 3])
    with pytest.raises(ValueError, match="queries is 3; it must be a pair"):
        attention_map(run, 0, 0, queries=3)


def test_a_sweep_of_nothing_and_by_nothing(run):
    with pytest.raises(ValueError, match="names no tensor"):
        patch_sweep(run.llama, PROMPT, PROMPT, point=(), metric=logit(1))
    with pytest.raises(ValueError, match="by=None: a sweep over"):
        patch_sweep(run.llama, PROMPT, PROMPT, by=None, metric=logit(1))
    with pytest.raises(TypeError, match=r"metric is 3; it must be a function"):
        patch_sweep(run.llama, PROMPT, PROMPT, metric=3)
