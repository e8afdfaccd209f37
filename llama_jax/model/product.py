"""Matrix products: wide accumulation, full precision where the operands are wide, fast in bf16."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["linear", "product", "wide"]


def wide(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype to compute sums in: at least f32, and f64 where the operands are."""
    return jnp.promote_types(dtype, jnp.float32)


def product(subscripts: str, a: Array, b: Array) -> Array:
    """`einsum`, accumulated and returned in at least f32.

    A wide result type reaches the fast kernels for bf16 operands on a CPU. On GPU and TPU f32
    operands would be rounded to TF32 or bf16 unless the highest precision is asked for.
    """
    dtype = jnp.promote_types(a.dtype, b.dtype)
    return jnp.einsum(
        subscripts,
        a.astype(dtype),
        b.astype(dtype),
        preferred_element_type=wide(dtype),
        precision=jax.lax.Precision.HIGHEST if dtype == wide(dtype) else None,
    )


def linear(x: Float[Array, "... I"], weight: Float[Array, "O I"]) -> Float[Array, "... O"]:
    """`x @ weight.T` in at least f32, for weights as Hugging Face stores them, `[out, in]`."""
    one_slow_row = math.prod(x.shape[:-1]) == 1 and x.dtype != wide(x.dtype)
    if one_slow_row:
        return jax.lax.platform_dependent(x, weight, cpu=_row_twice, default=_rows)
    return _rows(x, weight)


def _rows(x: Float[Array, "... I"], weight: Float[Array, "O I"]) -> Float[Array, "... O"]:
    return product("...I,OI->...O", x, weight)


def _row_twice(x: Float[Array, "... I"], weight: Float[Array, "O I"]) -> Float[Array, "... O"]:
    # XLA's CPU backend has no fast low-precision kernel for one row; two rows are 11x faster.
    row = x.reshape(1, -1)
    twice = _rows(jnp.concatenate((row, row)), weight)
    return twice[:1].reshape(*x.shape[:-1], -1)
