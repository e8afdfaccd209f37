import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.config import LlamaConfig
from llama_jax.model import Model, attention, empty_cache, forward, parameters
from llama_jax.model.tap import Take, Tap, Taps
from llama_jax.points import POINTS, point_of, resolve
from tests.tiny import GQA, MHA, MQA, model

pytestmark = pytest.mark.exact

TOKENS = np.random.default_rng(0).integers(0, GQA.vocab_size, (2, 40)).astype(np.int32)
FULL = np.array([40, 40], np.int32)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _forward(structure, leaves, tokens, lengths, cache=None, capture=frozenset()):
    taps = {name: Tap(take=Take(point_of(name).axes)) for name in capture}
    return forward(jax.tree.unflatten(structure, leaves), tokens, lengths, cache, taps)


def run(made, tokens, lengths, cache=None, capture=frozenset()):
    leaves, structure = jax.tree.flatten(made)
    return _forward(structure, tuple(leaves), tokens, lengths, cache, capture)


def close(logits):
    """1e-5 of the largest logit: f32 sums in another order differ by that much."""
    return {"rtol": 0, "atol": 1e-5 * max(1.0, float(jnp.abs(logits).max()))}


@pytest.mark.parametrize("config", [MHA, GQA, MQA], ids=["MHA", "GQA", "MQA"])
@pytest.mark.parametrize("chunk", [40, 16, 1])
def test_prefill_in_chunks_or_token_by_token_is_the_full_forward(config, chunk):
    made = model(config)
    full = run(made, TOKENS, FULL).logits
    cache = empty_cache(config, 2, 48, jnp.float32)
    for start in range(0, 40, chunk):
        block = np.zeros((2, chunk), np.int32)
        part = TOKENS[:, start : start + chunk]
        block[:, : part.shape[1]] = part
        real = np.full(2, part.shape[1], np.int32)
        result = run(made, block, real, cache)
        cache = result.cache
        got = result.logits[:, : part.shape[1]]
        np.testing.assert_allclose(got, full[:, start : start + chunk], **close(full))
    assert cache.lengths.tolist() == [40, 40]


def test_each_row_of_an_uneven_batch_is_the_row_alone():
    made = model()
    lengths = np.array([40, 23], np.int32)
    both = run(made, TOKENS, lengths, capture=frozenset(resolve("pattern", 3)))
    alone = run(made, TOKENS[1:, :23], lengths[1:], capture=frozenset(resolve("pattern", 3)))
    np.testing.assert_allclose(both.logits[1:, :23], alone.logits, **close(alone.logits))
    for name, pattern in alone.captured.items():
        np.testing.assert_allclose(both.captured[name][1:, :, :23, :23], pattern, atol=1e-5)
        assert (both.captured[name][1, :, :, 23:] == 0).all()


def test_every_point_is_returned_with_the_shape_of_its_axes():
    sizes = dict(zip("BTSDNKHFV1", (2, 40, 40, 32, 4, 2, 16, 48, 96, 1), strict=True))
    names = resolve("*", 3)
    captured = run(model(), TOKENS, FULL, capture=frozenset(names)).captured
    assert set(captured) == set(names)
    for point in POINTS:
        shape = tuple(sizes[axis] for axis in point.axes.split())
        assert captured[point.name.format(i=1)].shape == shape, point.name


def test_capturing_changes_no_logit():
    made = model()
    captured = run(made, TOKENS, FULL, capture=frozenset(resolve("*", 3)))
    plain = run(made, TOKENS, FULL).logits
    np.testing.assert_allclose(captured.logits, plain, **close(plain))


def test_the_points_of_a_layer_are_consistent():
    made = model()
    seen = run(made, TOKENS, FULL, capture=frozenset(resolve("*", 3))).captured
    layer = {n.removeprefix("layers.1."): x for n, x in seen.items() if n.startswith("layers.1.")}
    pattern = layer["self_attn.pattern"]
    np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-6)
    assert (np.triu(pattern, 1) == 0).all()
    k, v = (jnp.repeat(layer[f"self_attn.{n}"], 2, axis=2) for n in ("k_rot", "v"))
    scores = jnp.einsum("BTNH,BSNH->BNTS", layer["self_attn.q_rot"], k) / 4
    finite = jnp.isfinite(layer["self_attn.scores"])
    assert (finite == jnp.tril(jnp.ones((40, 40), bool))).all()
    np.testing.assert_allclose(layer["self_attn.scores"][finite], scores[finite], atol=2e-5)
    z = jnp.einsum("BNTS,BSNH->BTNH", pattern, v)
    np.testing.assert_allclose(layer["self_attn.z"], z, atol=1e-5)
    heads = layer["self_attn.head_out"].sum(2)
    np.testing.assert_allclose(layer["self_attn.out"], heads, atol=1e-4)
    mid = layer["resid_pre"] + layer["self_attn.out"]
    np.testing.assert_array_equal(layer["resid_mid"], mid)
    np.testing.assert_array_equal(layer["resid_post"], mid + layer["mlp.out"])
    np.testing.assert_array_equal(layer["resid_post"], seen["layers.2.resid_pre"])
    act = jax.nn.silu(layer["mlp.gate"]) * layer["mlp.up"]
    np.testing.assert_allclose(layer["mlp.act"], act, rtol=1e-5, atol=1e-6)
    normed = layer["input_layernorm.normalized"]
    np.testing.assert_allclose(
        normed * layer["input_layernorm.scale"], layer["resid_pre"], rtol=1e-5, atol=1e-6
    )


def _lowered(capture=frozenset()):
    leaves, structure = jax.tree.flatten(model())
    jax.clear_caches()
    return _forward.lower(structure, tuple(leaves), TOKENS, FULL, None, capture).as_text()


def test_without_capture_the_program_is_the_one_without_taps(monkeypatch):
    with_taps = _lowered()
    monkeypatch.setattr(Taps, "__call__", lambda self, name, x: x)
    monkeypatch.setattr(Taps, "wants", lambda self, name: False)
    monkeypatch.setattr(Taps, "edits", lambda self, name: False)
    assert _lowered() == with_taps


def test_equal_layers_share_one_trace():
    assert len(re.findall(r"func\.func private @_layer\w*\(", _lowered())) == 1
    everywhere = frozenset(resolve("pattern", 3))
    assert len(re.findall(r"func\.func private @_layer\w*\(", _lowered(everywhere))) == 1


@pytest.mark.parametrize("config", [MHA, GQA, MQA], ids=["MHA", "GQA", "MQA"])
def test_grouped_heads_are_full_heads_that_repeat_keys_and_values(config):
    grouped, full = model(config), model(MHA)
    repeats = 4 // config.num_key_value_heads
    for name, parameter in parameters(full).items():
        value = parameters(grouped)[name].get_value()
        if "k_proj" in name or "v_proj" in name:
            value = jnp.repeat(value.reshape(-1, 16, 32), repeats, axis=0).reshape(64, 32)
        parameter.set_value(value)
    expected = run(full, TOKENS, FULL).logits
    np.testing.assert_allclose(run(grouped, TOKENS, FULL).logits, expected, **close(expected))


def test_f64_stays_f64_through_norms_softmax_and_rope():
    with jax.enable_x64(True):
        made = model(dtype=jnp.float64)
        seen = run(made, TOKENS, FULL, capture=frozenset(resolve(("scale", "pattern", "z"), 3)))
        assert {x.dtype for x in (seen.logits, *seen.captured.values())} == {np.dtype("float64")}


def test_bf16_keeps_norms_softmax_and_logits_in_f32():
    seen = run(model(dtype=jnp.bfloat16), TOKENS, FULL, capture=frozenset(resolve("*", 3)))
    wide = {n.split(".")[-1] for n, x in seen.captured.items() if x.dtype == jnp.float32}
    assert wide == {"scale", "scores", "logits"}
    # Three layers of bf16's 2^-8 steps, with weights as large as these: some percent.
    exact = run(model(), TOKENS, FULL).logits
    assert jnp.abs(seen.logits - exact).mean() < 0.03 * jnp.abs(exact).max()


def test_an_abstract_model_has_the_published_number_of_parameters_and_no_memory():
    made = Model(LlamaConfig.preset("llama-3.1-405b"), jnp.bfloat16)
    leaves = jax.tree.leaves(made)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert sum(leaf.size for leaf in leaves) == 405_853_388_800


def test_a_tied_head_is_not_a_second_parameter():
    names = parameters(Model(LlamaConfig.preset("llama-3.2-1b")))
    assert "lm_head.weight" not in names
    assert "lm_head.weight" in parameters(Model(LlamaConfig.preset("llama-3.1-8b")))


def test_random_weights_depend_on_the_seed_and_the_name():
    same, other = parameters(model(seed=0)), parameters(model(seed=1))
    for name, parameter in parameters(model(seed=0)).items():
        assert (parameter.get_value() == same[name].get_value()).all()
        if "norm" not in name:
            assert (parameter.get_value() != other[name].get_value()).any()
    a, b = (same[f"layers.{i}.mlp.up_proj.weight"].get_value() for i in (0, 1))
    assert (a != b).any()


def test_maps_made_row_by_row_give_the_same_and_the_same_gradients(monkeypatch):
    made = model()
    leaves, structure = jax.tree.flatten(made)
    lengths = np.array([40, 23], np.int32)

    def loss(leaves):
        logits = forward(jax.tree.unflatten(structure, leaves), TOKENS, lengths).logits
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1)), logits

    def both():
        jax.clear_caches()
        (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(leaves)
        return logits, gradients

    whole = both()
    monkeypatch.setattr(attention, "CACHED_MAP", 4 * 40 * 40)
    rows = both()
    jax.clear_caches()
    np.testing.assert_allclose(rows[0], whole[0], **close(whole[0]))
    for one, other in zip(rows[1], whole[1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(other).max()))


def test_maps_made_a_block_of_queries_at_a_time_give_the_same(monkeypatch):
    lengths = np.array([40, 23], np.int32)
    whole = run(model(), TOKENS, lengths, capture=frozenset(resolve("z", 3)))
    monkeypatch.setattr(attention, "BLOCK", 16)
    monkeypatch.setattr(attention, "LARGEST_MAP", 0)
    jax.clear_caches()
    lowered = _lowered(frozenset(resolve("z", 3)))
    assert "2x4x16x40xf32" in lowered and "2x4x40x40xf32" not in lowered
    blocks = run(model(), TOKENS, lengths, capture=frozenset(resolve("z", 3)))
    np.testing.assert_allclose(blocks.logits, whole.logits, **close(whole.logits))
    # Who wants one layer's map has that layer's made whole.
    lowered = _lowered(frozenset(resolve(("pattern", 1), 3)))
    assert "2x4x40x40xf32" in lowered and "2x4x16x40xf32" in lowered
    jax.clear_caches()
