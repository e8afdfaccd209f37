"""Rotary position embeddings, with Llama 3.1's scaling of the frequencies, or a linear one."""

from __future__ import annotations

import functools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llama_jax.config import LlamaConfig, RopeScaling

__all__ = ["inverse_frequencies", "rotary_tables", "rotate"]


def inverse_frequencies(config: LlamaConfig) -> np.ndarray:
    """`[head_dim / 2]` f32 angles per position, bit-equal to transformers' and Meta's.

    They are made by the references' f32 operations in the references' order: one unit in the last
    place moves the cosine by 5e-3 at position 131,071. Wavelengths that the scaling leaves alone,
    blends and slows are told apart as in `apply_scaling` of Meta's reference.

    >>> frequencies = inverse_frequencies(LlamaConfig.preset("llama-3.1-8b"))
    >>> [f"{frequency:.7g}" for frequency in frequencies[[0, 29, 63]]]
    ['1', '0.002166571', '3.068926e-07']
    """
    return _inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)


@functools.lru_cache(maxsize=64)
def _inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    one = np.float32(1)
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # The power is rounded once, from f64: numpy's own f32 power differs from torch's.
    frequencies = one / np.power(float(theta), exponents.astype(np.float64)).astype(np.float32)
    if scaling is not None and scaling.rope_type == "linear":
        frequencies = frequencies / np.float32(scaling.factor)
    elif scaling is not None:
        original, low, high, factor = map(
            np.float32,
            (
                scaling.original_max_position_embeddings,
                scaling.low_freq_factor,
                scaling.high_freq_factor,
                scaling.factor,
            ),
        )
        # Torch divides a number by a tensor as number * (1 / tensor), rounding twice.
        wavelengths = np.float32(2 * math.pi) * (one / frequencies)
        smooth = (original * (one / wavelengths) - low) / (high - low)
        blended = (one - smooth) * frequencies / factor + smooth * frequencies
        slow, fast = wavelengths > original / low, wavelengths < original / high
        frequencies = np.where(slow, frequencies / factor, np.where(fast, frequencies, blended))
    frequencies.setflags(write=False)
    return frequencies


def rotary_tables(
    config: LlamaConfig, positions: Int[Array, "B T"], dtype: jnp.dtype = jnp.float32
) -> tuple[Float[Array, "B T H/2"], Float[Array, "B T H/2"]]:
    """Cosines and sines of every position's angles, in `dtype` (f32 or f64)."""
    angles = positions[..., None].astype(dtype) * inverse_frequencies(config).astype(dtype)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B T N H"], cos: Float[Array, "B T H/2"], sin: Float[Array, "B T H/2"]
) -> Float[Array, "B T N H"]:
    """Turns the pairs (j, j + H/2) of every head by its position's angles, in the tables' dtype.

    The halves are Hugging Face's layout of the pairs; Meta's files hold them interleaved.
    """
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    turned = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
    return turned.astype(x.dtype)
