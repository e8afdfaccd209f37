import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import Llama
from llama_jax.llama import PromptError
from llama_jax.points import PointError, resolve
from tests.tiny import GQA, compiled

TOKENS = np.random.default_rng(1).integers(0, GQA.vocab_size, (2, 12))


@pytest.fixture(scope="module")
def llama():
    return Llama.random(GQA, std=0.3)


def test_a_run_holds_exactly_what_was_asked_for(llama):
    run = llama.run(TOKENS, capture=("resid_post", ("pattern", -1)))
    assert run.names == (
        "layers.0.resid_post",
        "layers.1.resid_post",
        "layers.2.self_attn.pattern",
        "layers.2.resid_post",
    )
    assert run["pattern"].shape == (2, 4, 12, 12)
    assert set(run["resid_post"]) == set(run.names) - {"layers.2.self_attn.pattern"}
    assert run["resid_post", 0] is run["blocks.0.hook_resid_post"]


@pytest.mark.parametrize(
    "capture", ["*", "layers.*.self_attn.*", "hook_z", ("z", 1), [("q", 0), "embed"], ()]
)
def test_every_asked_for_point_is_returned(llama, capture):
    assert llama.run(TOKENS, capture=capture).names == resolve(capture, 3)


def test_plain_execution_captures_the_same_as_compiled(llama):
    compiled_run = llama.run(TOKENS, capture="*")
    with jax.disable_jit():
        plain = llama.run(TOKENS, capture="*")
    assert plain.names == compiled_run.names
    for name in plain.names:
        np.testing.assert_allclose(plain[name], compiled_run[name], atol=5e-5, err_msg=name)


def test_a_point_that_was_not_captured_says_how_to_get_it(llama):
    run = llama.run(TOKENS, capture="embed")
    with pytest.raises(PointError, match=r"holds embed.*capture='pattern'"):
        run["pattern"]
    with pytest.raises(PointError, match="Near: pattern"):
        run["patern"]
    assert run["logits"] is run.logits


def test_logits_last_are_the_logits_at_each_row_s_own_end(llama):
    rows = [TOKENS[0].tolist(), TOKENS[1, :7].tolist()]
    every, last = llama.run(rows), llama.run(rows, logits="last")
    assert last.logits.shape == (2, 1, GQA.vocab_size)
    np.testing.assert_allclose(last.logits[0, 0], every.logits[0, 11], atol=2e-5)
    np.testing.assert_allclose(last.logits[1, 0], every.logits[1, 6], atol=2e-5)
    with pytest.raises(ValueError, match="'all' or 'last'"):
        llama.run(rows, logits="first")


def test_nothing_is_squeezed_and_one_row_of_tokens_is_a_batch_of_one(llama):
    run = llama.run(TOKENS[0], capture="embed")
    assert run.tokens.shape == (1, 12) and run.logits.shape == (1, 12, 96)
    assert run["embed"].shape == (1, 12, 32)


def test_a_second_run_of_the_same_shapes_compiles_nothing(llama):
    llama.run(TOKENS, capture="resid_post")
    with compiled() as programs:
        llama.run((TOKENS + 1) % 96, capture=["hook_resid_post"])
    assert not programs


def test_a_weight_changed_in_place_counts_from_the_next_run():
    llama = Llama.random(GQA, std=0.3)
    before = llama.run(TOKENS).logits
    down = llama.model.layers[2].mlp.down_proj.weight
    down.set_value(jnp.zeros_like(down.get_value()))
    run = llama.run(TOKENS, capture=("mlp.out", 2))
    assert (run["mlp.out"] == 0).all()
    assert jnp.abs(run.logits - before).max() > 0.1


def test_top_gives_the_likeliest_tokens_of_a_position(llama):
    run = llama.run([TOKENS[0].tolist(), TOKENS[1, :7].tolist()])
    expected = jax.nn.softmax(run.logits[1, 6])
    top = run.top(3, row=1)
    assert [c.token for c in top] == jnp.argsort(-expected)[:3].tolist()
    np.testing.assert_allclose([c.probability for c in top], jnp.sort(expected)[::-1][:3], 1e-6)
    assert run.top(3, position=6, row=1) == top
    with pytest.raises(IndexError, match="7 tokens"):
        run.top(3, position=7, row=1)
    with pytest.raises(ValueError, match="k is 97; it must be 1 to 96"):
        run.top(97)
    with pytest.raises(IndexError, match="logits='all'"):
        llama.run(TOKENS, logits="last").top(1, position=0)


def test_its_size_is_that_of_its_arrays(llama):
    run = llama.run(TOKENS, capture=("embed", "logits"))
    assert run.nbytes == run["embed"].nbytes + run.logits.nbytes
    assert "2 x 12 tokens" in repr(run)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([], "empty"),
        ([[]], "empty"),
        ([[1, 2], []], r"row 1\) is empty"),
        ([1, 96], "Token 96 at position 1.*96 tokens, 0 to 95"),
        ([1, -1], "Token -1"),
        ([0.5], "float64"),
        (5, "The prompt is 5"),
        (None, "The prompt is None"),
        (np.zeros((1, 1, 1), int), "shape"),
        ("text", "without a tokenizer"),
        (["text"], "without a tokenizer"),
    ],
)
def test_a_prompt_that_cannot_be_taken_is_a_clear_error(llama, prompt, says):
    with pytest.raises(PromptError, match=says):
        llama.run(prompt)


def test_a_model_that_cannot_fit_is_refused_before_anything_is_made():
    with pytest.raises(MemoryError, match=r"llama-3.1-405b takes 1,511.9 GiB"):
        Llama.random("llama-3.1-405b")


def test_an_abstract_llama_says_that_it_has_no_weights():
    with pytest.raises(ValueError, match="abstract"):
        Llama.abstract("llama-3.2-1b").run([1, 2])


def test_a_dtype_is_taken_by_either_name():
    short = Llama.random(dataclasses.replace(GQA, num_hidden_layers=1), dtype="bf16")
    assert short.model.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="bfloat16"):
        Llama.random(GQA, dtype="float3")
