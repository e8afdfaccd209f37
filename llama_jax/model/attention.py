"""Causal grouped-query attention over the keys and values of one layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from llama_jax.model.product import product
from llama_jax.model.tap import Taps

__all__ = ["attend", "causal_mask"]


def causal_mask(
    positions: Int[Array, "B T"], lengths: Int[Array, " B"], size: int
) -> Bool[Array, "B T S"]:
    """True where a query may read a key: not after it, and within its row's `lengths` tokens."""
    keys = jnp.arange(size)
    return (keys <= positions[..., None]) & (keys < lengths[:, None, None])


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
    taps: Taps,
) -> Float[Array, "B T N H"]:
    """`softmax(q k^T / sqrt(H)) v`, softmax in at least f32; query head n reads head n // (N // K).

    The softmax is cast to the dtype of the activations before it weighs the values, as both
    references do; the point `pattern` is that tensor.
    """
    batch, queries, heads, size = q.shape
    groups = k.shape[2]
    # The small tensors are brought into the order of the products, not the T x S ones.
    grouped = q.reshape(batch, queries, groups, heads // groups, size).transpose(0, 2, 3, 1, 4)
    scores = product("BKGTH,BSKH->BKGTS", grouped, k).reshape(batch, heads, queries, -1)
    scores = taps("scores", jnp.where(mask[:, None], scores * size**-0.5, -jnp.inf))
    pattern = taps("pattern", jax.nn.softmax(scores, axis=-1).astype(q.dtype))
    by_group = pattern.reshape(batch, groups, heads // groups, queries, -1)
    z = product("BKGTS,BSKH->BKGTH", by_group, v).transpose(0, 3, 1, 2, 4)
    return taps("z", z.reshape(q.shape).astype(q.dtype))
