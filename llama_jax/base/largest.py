"""Maxima that say NaN where there is one: XLA's on a CPU pass it over."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

__all__ = ["index_of_largest", "largest"]


def largest(x: Array, axis: int | None = None) -> Array:
    """The maximum along an axis, or of all; NaN where there is one."""
    return jnp.where(jnp.any(jnp.isnan(x), axis=axis), jnp.nan, jnp.max(x, axis=axis))


def index_of_largest(x: Array, axis: int = -1) -> Array:
    """Where the maximum along an axis is; of the first NaN, where there is one."""
    nan = jnp.isnan(x)
    return jnp.where(jnp.any(nan, axis=axis), jnp.argmax(nan, axis=axis), jnp.argmax(x, axis=axis))
