"""Others' Llamas: projections with biases, rotary frequencies scaled linearly."""

import dataclasses

import numpy as np
import pytest

from llama_jax import Ablate, Llama, Patch, Run, analysis, fit
from llama_jax.config import RopeScaling
from llama_jax.model import parameters
from llama_jax.model.rope import inverse_frequencies
from tests.tiny import GQA

CONFIG = dataclasses.replace(
    GQA,
    num_hidden_layers=2,
    attention_bias=True,
    mlp_bias=True,
    rope_scaling=RopeScaling(4.0, rope_type="linear"),
)
ROWS = [np.arange(20).tolist(), (np.arange(13) * 5 % 96).tolist()]


def biased(config=CONFIG, **how):
    """Random weights; the biases too, which `Llama.random` leaves at zero."""
    llama, rng = Llama.random(config, std=0.3, **how), np.random.default_rng(0)
    names = [name for name in parameters(llama.model) if name.endswith(".bias")]
    shapes = {name: parameters(llama.model)[name].get_value().shape for name in names}
    return llama.edited({name: rng.normal(size=shape) for name, shape in shapes.items()})


@pytest.fixture(scope="module")
def llama():
    return biased()


@pytest.fixture(scope="module")
def run(llama):
    return llama.run(ROWS, "*")


def test_every_projection_in_a_layer_has_a_bias_of_its_outputs(llama):
    slots = parameters(llama.model)
    found = {n: s.get_value().shape for n, s in slots.items() if n.endswith(".bias")}
    inside = {
        "self_attn.q_proj": 64,
        "self_attn.k_proj": 32,
        "self_attn.v_proj": 32,
        "self_attn.o_proj": 32,
        "mlp.gate_proj": 48,
        "mlp.up_proj": 48,
        "mlp.down_proj": 32,
    }
    assert found == {f"layers.{i}.{n}.bias": (size,) for n, size in inside.items() for i in (0, 1)}
    assert sum(slot.get_value().size for slot in slots.values()) == CONFIG.parameter_count
    fresh = parameters(Llama.random(CONFIG).model)
    assert not any(np.any(fresh[name].get_value()) for name in found)


def test_linear_scaling_divides_every_frequency():
    plain = dataclasses.replace(CONFIG, rope_scaling=None)
    np.testing.assert_array_equal(inverse_frequencies(CONFIG), inverse_frequencies(plain) / 4)


@pytest.mark.exact
def test_every_identity_holds_with_biases(run):
    check = run.check()
    assert check.passed, check
    assert all(outcome.passed for outcome in check)


def test_a_changed_head_leaves_the_bias_in_the_sum(llama, run):
    of_layer = "layers.1.self_attn."
    edited = llama.run(ROWS, "self_attn.out", edits=Ablate(f"{of_layer}head_out", heads=[2]))
    expected = run[f"{of_layer}out"] - run[f"{of_layer}head_out"][:, :, 2]
    for row, length in enumerate(run.lengths):
        np.testing.assert_allclose(
            edited[f"{of_layer}out"][row, :length], expected[row, :length], atol=1e-5
        )


@pytest.mark.exact
def test_a_patch_of_everything_by_itself_changes_nothing(llama):
    names = ("q", "head_out", "act", "resid_mid")
    run = llama.run(ROWS, names)
    edits = [Patch(name, run) for name in names]
    np.testing.assert_array_equal(llama.run(ROWS, edits=edits).logits, run.logits)


def test_writing_equals_a_run_of_what_was_written(llama):
    out = llama.generate(ROWS, 6, temperature=0, capture="resid_post")
    rows = [row + new.tolist() for row, new in zip(ROWS, out.tokens, strict=True)]
    again = llama.run([row[:-1] for row in rows], "resid_post")
    for row, tokens in enumerate(rows):
        count = len(tokens) - 1
        np.testing.assert_allclose(
            out["resid_post", 1][row, :count], again["resid_post", 1][row, :count], atol=2e-5
        )


def test_attribution_leaves_nothing_over_by_layer_and_the_biases_by_head(llama, run):
    by_layer = analysis.direct_logit_attribution(run, 5)
    np.testing.assert_allclose(by_layer.remainder, 0, atol=1e-4)
    parts = analysis.residual_decomposition(run, positions=[-1], by="head")
    last = np.stack([run["resid_post", 1][row, n - 1] for row, n in enumerate(run.lengths)])
    np.testing.assert_allclose(parts.values[:, 0].sum(axis=1), last, atol=1e-4)
    names = parts.along("component")
    assert names[:6] == ["embed", *(f"0.head.{head}" for head in range(4)), "0.bias"]
    bias = parameters(llama.model)["layers.0.self_attn.o_proj.bias"].get_value()
    np.testing.assert_array_equal(parts.values[0, 0, 5], bias)


def test_gradients_with_respect_to_a_bias_are_those_of_what_it_adds_to(llama):
    def metric(logits):
        return logits[:, 7]

    found = llama.gradients(ROWS, metric, ("layers.1.mlp.down_proj.bias", "layers.1.mlp.out"))
    total = sum(
        found["layers.1.mlp.out"][row, :length].sum(axis=0)
        for row, length in enumerate(map(len, ROWS))
    )
    np.testing.assert_allclose(found["layers.1.mlp.down_proj.bias"], total, atol=1e-5)


@pytest.mark.parametrize("format", ["huggingface", "orbax"])
def test_a_checkpoint_with_biases_is_written_and_read_bit_for_bit(llama, tmp_path, format):
    llama.save(tmp_path / "llama", format)
    again = Llama.from_pretrained(tmp_path / "llama")
    assert again.config == CONFIG
    for name, slot in parameters(llama.model).items():
        np.testing.assert_array_equal(
            parameters(again.model)[name].get_value(), slot.get_value(), err_msg=name
        )


def test_a_saved_run_knows_its_config(run, tmp_path):
    run.save(tmp_path / "x.run")
    assert Run.load(tmp_path / "x.run").config == CONFIG


def test_fit_counts_the_biases():
    from_shapes = fit(CONFIG, "h100:1", context=64)
    assert from_shapes.breakdown["weights"] == 2 * CONFIG.parameter_count
