"""The logit lens: the model's own readout, at every layer, without all logits at once."""

import dataclasses

import jax
import numpy as np
import pytest

from llama_jax import Ablate, Capture, Llama
from llama_jax.analysis import MissingPointError, lens, logit_lens
from tests.tiny import GQA, MHA

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def run(request):
    config = dataclasses.replace(GQA, tie_word_embeddings=request.param)
    return Llama.random(config, std=0.3).run(PROMPTS, "resid_post")


def softmax(logits):
    shifted = np.exp(np.float64(logits) - np.max(logits, -1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def by_hand(run, layer):
    """The final norm and the unembedding in NumPy, f64."""
    model = run.llama.model
    x = np.float64(run["resid_post", layer])
    normed = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + run.config.rms_norm_eps)
    head = model.embed_tokens if run.config.tie_word_embeddings else model.lm_head
    return normed * np.float64(model.norm.weight[...]) @ np.float64(head.weight[...]).T


def test_the_last_layer_s_lens_is_the_model(run):
    np.testing.assert_allclose(logit_lens(run).logits_at(-1), run.logits, atol=1e-5)


def test_every_layer_is_read_by_the_final_norm_and_the_unembedding(run):
    found = logit_lens(run)
    for layer in range(3):
        np.testing.assert_allclose(found.logits_at(layer), by_hand(run, layer), atol=5e-5)


@pytest.mark.parametrize("at_once", [2**24, 300])
def test_statistics_are_those_of_the_whole_logits(run, monkeypatch, at_once):
    monkeypatch.setattr(lens, "LOGITS_AT_ONCE", at_once)  # 3 positions at a time
    jax.clear_caches()
    found = logit_lens(run)
    p = np.stack([softmax(by_hand(run, layer)) for layer in range(3)])
    np.testing.assert_allclose(found.probability(5), p[..., 5], atol=1e-5)
    np.testing.assert_allclose(found.entropy, -np.sum(p * np.log(p), -1), atol=2e-4)
    kl = np.sum(p[-1] * (np.log(p[-1]) - np.log(p)), -1)
    np.testing.assert_allclose(found.kl, kl, atol=2e-4)
    assert (np.asarray(found.kl[-1]) == 0).all()
    np.testing.assert_array_equal(found.rank(5), (p > p[..., 5:6]).sum(-1))
    top = found.top(4)
    np.testing.assert_array_equal(top.indices, np.argsort(-p, -1, kind="stable")[..., :4])
    np.testing.assert_allclose(top.values, -np.sort(-p, -1)[..., :4], atol=1e-5)


def test_each_position_may_have_its_own_token(run):
    following = np.roll(run.tokens, -1, axis=1)
    found = logit_lens(run).log_probability(following)
    np.testing.assert_allclose(-found[-1][0, :-1], run.loss[0], atol=1e-5)
    ranks = logit_lens(run).rank(np.asarray(run.logits.argmax(-1)))
    assert (np.asarray(ranks[-1]) == 0).all()


def test_without_writes_all_layers_say_the_same():
    llama = Llama.random(MHA, std=0.3)
    silent = [Ablate("self_attn.out"), Ablate("mlp.out")]
    found = logit_lens(llama.run(PROMPTS, "resid_post", edits=silent))
    for layer in range(3):
        np.testing.assert_array_equal(found.logits_at(layer), found.logits_at(-1))


def test_some_positions_are_enough(run):
    llama = run.llama
    whole, part = logit_lens(run), llama.run(PROMPTS, Capture("resid_post", positions=[0, -2]))
    found = logit_lens(part)
    assert found.positions.tolist() == [[0, 5], [0, 2]]
    np.testing.assert_allclose(found.entropy[:, 1, 1], whole.entropy[:, 1, 2], atol=1e-5)
    last = logit_lens(llama.run(PROMPTS, Capture("resid_post", reduce="last"), logits="last"))
    np.testing.assert_allclose(last.kl[:, :, 0], whole.kl[:, [0, 1], [6, 3]], atol=1e-5)


def test_candidates_have_texts_and_count_from_the_end_of_the_lens():
    llama = Llama.from_pretrained("cria")
    run = llama.run("Once upon a", "resid_post")
    found = logit_lens(run)
    assert found.candidates(-1)[0] == run.top(1)[0]
    assert found.candidates(-1, position=1)[0] == run.top(1, position=1)[0]
    last = logit_lens(llama.run("Once upon a", Capture("resid_post", positions=[1, -1])))
    assert last.candidates(-1, k=3)[0].text == " time"


def test_it_is_a_table(run):
    table = logit_lens(run).to_dataframe(k=2)
    assert len(table) == 3 * 2 * 7
    assert list(table.columns[:5]) == ["layer", "batch", "position", "entropy", "kl"]
    table = logit_lens(Llama.from_pretrained("cria").run("Once upon a", "resid_post"))
    last = table.to_dataframe().iloc[-1]
    assert last.top_token == " time" and last.position_token == " a" and last.kl == 0


def test_layers_and_other_streams_are_chosen_by_point(run):
    llama = run.llama
    other = llama.run(PROMPTS, ("resid_pre", "resid_mid"))
    found = logit_lens(other, ("resid_pre", 2))
    assert found.layers == [2] and "LogitLens(resid_pre of 1 layers" in repr(found)
    np.testing.assert_allclose(found.logits_at(0), logit_lens(run).logits_at(1), atol=1e-5)
    with pytest.raises(MissingPointError, match="capture='resid_post'"):
        _ = logit_lens(other, "resid_mid").kl


def test_what_is_missing_is_said_as_code(run):
    llama = run.llama
    with pytest.raises(MissingPointError, match=r"llama.run\(prompt, capture='resid_post'\)"):
        logit_lens(llama.run(PROMPTS, "z"))
    with pytest.raises(MissingPointError, match="holds only as"):
        logit_lens(llama.run(PROMPTS, Capture("resid_post", reduce="norm")))
    with pytest.raises(ValueError, match="reads the residual stream"):
        logit_lens(run, "mlp.out")
    with pytest.raises(ValueError, match="the vocabulary is 0 to 95"):
        logit_lens(run).probability(96)
    with pytest.raises(IndexError, match="There is no layer 3: 3 of them, 0 to 2"):
        logit_lens(run).logits_at(3)
    with pytest.raises(ValueError, match=r"llama=llama"):
        logit_lens(dataclasses.replace(run, llama=None))
