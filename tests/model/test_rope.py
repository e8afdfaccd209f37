import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.config import LlamaConfig
from llama_jax.model.rope import inverse_frequencies, rotary_tables, rotate
from tests.tiny import GQA


def test_factor_8_leaves_29_frequencies_blends_6_and_slows_29():
    plain = inverse_frequencies(LlamaConfig.preset("llama-3-8b"))
    scaled = inverse_frequencies(LlamaConfig.preset("llama-3.1-8b"))
    assert (scaled[:29] == plain[:29]).all()
    assert (scaled[35:] == plain[35:] / 8).all()
    # As printed by Meta's reference, to eight digits.
    blended = [0.0021665706, 0.0013718937, 0.00085675146, 0.00052484602, 0.00031269370]
    np.testing.assert_allclose(scaled[29:34], blended, rtol=2e-7)
    np.testing.assert_allclose(scaled[[34, 63]], [0.00017850779, 3.0689259e-07], rtol=1e-7)


def test_factor_32_of_the_small_models_comes_from_the_config():
    plain = inverse_frequencies(LlamaConfig.preset("llama-3-8b"))
    scaled = inverse_frequencies(LlamaConfig.preset("llama-3.2-3b"))
    assert (scaled[35:] == plain[35:] / 32).all()


def test_the_test_model_meets_all_three_bands():
    plain = inverse_frequencies(dataclasses.replace(GQA, rope_scaling=None))
    ratio = inverse_frequencies(GQA) / plain
    assert (ratio == 1).sum() == 2 and (ratio == 1 / 8).sum() == 5


@pytest.mark.parametrize("position", [0, 1, 1000, 8191, 131071])
def test_tables_are_those_of_exact_arithmetic_on_the_f32_angle(position):
    config = LlamaConfig.preset("llama-3.1-8b")
    cos, sin = rotary_tables(config, jnp.array([[position]]))
    angle = (np.float32(position) * inverse_frequencies(config)).astype(np.float64)
    np.testing.assert_allclose(cos[0, 0], np.cos(angle), atol=2e-7)
    np.testing.assert_allclose(sin[0, 0], np.sin(angle), atol=2e-7)


def test_a_rotation_keeps_lengths_and_depends_on_the_distance_alone():
    config = LlamaConfig.preset("llama-3.2-1b")
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 64)), jnp.float32) for _ in range(2))

    def at(x, position):
        return rotate(x, *rotary_tables(config, jnp.array([[position]])))

    np.testing.assert_allclose(jnp.linalg.norm(at(q, 77)), jnp.linalg.norm(q), rtol=1e-6)
    near = jnp.sum(at(q, 9) * at(k, 4))
    np.testing.assert_allclose(jnp.sum(at(q, 1009) * at(k, 1004)), near, atol=2e-3)
    assert jnp.abs(jnp.sum(at(q, 9) * at(k, 0)) - near) > 0.1
