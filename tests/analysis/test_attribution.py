"""Who wrote what: sums with nothing left over."""

import dataclasses

import numpy as np
import pytest

from llama_jax import Ablate, Capture, Llama
from llama_jax.analysis import (
    MissingPointError,
    direct_logit_attribution,
    log_probability,
    logit_difference,
    residual_decomposition,
)
from llama_jax.llama import PromptError
from tests.tiny import GQA, MQA

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11]]
ALL = ("embed", "self_attn.out", "mlp.out", "z", "act", "norm.scale", "resid_post")


@pytest.fixture(scope="module", params=[(GQA, False), (MQA, True)], ids=["GQA", "MQA-tied"])
def run(request):
    config, tied = request.param
    llama = Llama.random(dataclasses.replace(config, tie_word_embeddings=tied), std=0.3)
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.5, 2, 32)
    return llama.edited({"norm.weight": scales}).run(PROMPTS, ALL)


def test_the_layers_sum_to_the_logit_at_every_position(run):
    found = direct_logit_attribution(run, 5, position=None)
    assert found.axes == ("batch", "position", "component")
    np.testing.assert_allclose(found.values.sum(-1), run.logits[:, :, 5], atol=1e-4)
    np.testing.assert_allclose(found.logit, run.logits[:, :, 5])
    assert np.abs(found.remainder).max() < 1e-4


@pytest.mark.parametrize("pair", [(5, 9), logit_difference(5, 9)])
def test_a_pair_is_a_difference_of_logits(run, pair):
    found = direct_logit_attribution(run, pair)
    assert found.axes == ("batch", "component") and found.values.shape == (2, 7)
    expected = [
        run.logits[0, 6, 5] - run.logits[0, 6, 9],
        run.logits[1, 3, 5] - run.logits[1, 3, 9],
    ]
    np.testing.assert_allclose(found.values.sum(-1), expected, atol=1e-4)


def test_heads_sum_to_their_layer_and_neurons_to_theirs(run):
    layers = direct_logit_attribution(run, 5, [0, -1]).values
    heads = direct_logit_attribution(run, 5, [0, -1], by="head")
    neurons = direct_logit_attribution(run, 5, [0, -1], by="neuron")
    assert heads.values.shape == (2, 2, 3, 4) and neurons.values.shape == (2, 2, 3, 48)
    np.testing.assert_allclose(heads.values.sum(-1), layers[..., 1::2], atol=1e-5)
    np.testing.assert_allclose(neurons.values.sum(-1), layers[..., 2::2], atol=1e-5)
    np.testing.assert_allclose(
        heads.remainder, layers[..., 0] + layers[..., 2::2].sum(-1), atol=1e-4
    )


def test_a_head_s_part_is_what_goes_when_it_is_silenced_with_the_scale_held(run):
    llama, layer, head = run.llama, 2, 1
    scale = run["norm.scale"]
    edits = [Ablate(("z", layer), heads=[head]), Ablate("norm.scale", to=scale)]
    # In the last layer a head acts through the MLP too: that is held as well.
    edits.append(Ablate(("mlp.out", layer), to=run["mlp.out", layer]))
    gone = llama.run(PROMPTS, edits=edits).logits
    found = direct_logit_attribution(run, 5, by="head")
    lost = [run.logits[0, 6, 5] - gone[0, 6, 5], run.logits[1, 3, 5] - gone[1, 3, 5]]
    np.testing.assert_allclose(found.values[:, layer, head], lost, atol=1e-4)


def test_each_row_may_ask_for_its_own_token(run):
    found = direct_logit_attribution(run, ((5, 6), (7, 8)))
    np.testing.assert_allclose(found.logit[1], run.logits[1, 3, 6] - run.logits[1, 3, 8], atol=1e-5)


def test_the_scale_may_come_from_the_norm_the_last_stream_or_the_sum(run):
    llama = run.llama
    expected = direct_logit_attribution(run, 5).values
    for capture in (("embed", "self_attn.out", "mlp.out"), (*ALL[:3], ("resid_post", -1))):
        found = direct_logit_attribution(llama.run(PROMPTS, capture, logits="last"), 5)
        np.testing.assert_allclose(found.values, expected, atol=1e-5)


def test_the_parts_sum_to_the_last_stream(run):
    for by, count in (("layer", 7), ("head", 1 + 3 * 5)):
        found = residual_decomposition(run, by=by)
        assert found.values.shape == (2, 7, count, 32)
        assert len(found.along("component")) == count
        np.testing.assert_allclose(found.values.sum(2), run["resid_post", -1], atol=1e-5)
    accumulated = residual_decomposition(run).accumulated.values
    np.testing.assert_allclose(accumulated[:, :, 2], run["resid_post", 0], atol=1e-5)
    np.testing.assert_allclose(accumulated[:, :, -1], run["resid_post", 2], atol=1e-5)


def test_a_projection_onto_an_unembedding_is_the_attribution_before_the_norm(run):
    model = run.llama.model
    head = model.embed_tokens if run.config.tie_word_embeddings else model.lm_head
    direction = head.weight[...][5] * model.norm.weight[...]
    found = residual_decomposition(run, positions=[-1]).project(direction)
    scale = np.stack([run["norm.scale"][0, 6], run["norm.scale"][1, 3]])
    expected = direct_logit_attribution(run, 5).values
    np.testing.assert_allclose(found.values[:, 0] / scale, expected, atol=1e-5)
    norms = residual_decomposition(run, positions=[-1]).norms.values
    np.testing.assert_allclose(norms[0, 0, 0], np.linalg.norm(run["embed"][0, 6]), rtol=1e-5)


def test_the_largest_parts_come_first_with_their_names():
    llama = Llama.from_pretrained("cria")
    run = llama.run("Once upon a", ("z", "norm.scale", "embed", "self_attn.out", "mlp.out"))
    found = direct_logit_attribution(run, " time", by="head")
    (layer, head), value = found.top(1)[0]
    assert value == pytest.approx(float(np.abs(found.values[0]).max()))
    assert float(found.values[0, layer, head]) == value
    assert "logit(' time')" in repr(found)
    assert direct_logit_attribution(run, " time").top(9)[0][0][0] in found_components()
    table = direct_logit_attribution(run, " time", position=None).to_dataframe()
    assert list(table.columns) == ["batch", "position", "position_token", "component", "value"]


def found_components():
    return ["embed", *(f"{i}.{kind}" for i in range(4) for kind in ("attn", "mlp"))]


def test_what_is_missing_is_said_as_code(run):
    llama = run.llama
    with pytest.raises(MissingPointError, match=r"capture=\('embed', 'self_attn.out', 'mlp.out'\)"):
        direct_logit_attribution(llama.run(PROMPTS), 5)
    with pytest.raises(MissingPointError, match=r"capture=\('z', 'norm.scale'\)"):
        direct_logit_attribution(llama.run(PROMPTS, "z"), 5, by="head")
    with pytest.raises(MissingPointError, match="holds only a part of it"):
        direct_logit_attribution(llama.run(PROMPTS, Capture("z", heads=[0])), 5, by="head")
    with pytest.raises(MissingPointError, match=r"capture=\('embed', 'z', 'mlp.out'\)"):
        residual_decomposition(llama.run(PROMPTS, "embed"), by="head")
    with pytest.raises(ValueError, match="must be 'layer', 'head' or 'neuron'"):
        direct_logit_attribution(run, 5, by="expert")
    with pytest.raises(ValueError, match="not linear in the logits"):
        direct_logit_attribution(run, log_probability(5))
    with pytest.raises(PromptError, match="Token 96: the vocabulary is 0 to 95"):
        direct_logit_attribution(run, 96)
    with pytest.raises(ValueError, match="position 7 of row 0"):
        direct_logit_attribution(run, 5, 7)
    last = llama.run(PROMPTS, ALL, logits="last")
    with pytest.raises(ValueError, match="logits='all'"):
        direct_logit_attribution(last, 5, 0)
