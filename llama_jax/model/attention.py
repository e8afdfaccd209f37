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


# Above so many queries and scores a layer's T x S maps are made a block of queries at a time.
BLOCK = 512
LARGEST_MAP = 2**26  # scores, 256 MiB of them in f32
# So many stay in a CPU's cache from the one product to the other, forwards and backwards.
CACHED_MAP = 2**19


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
    taps: Taps,
) -> Float[Array, "B T N H"]:
    """`softmax(q k^T / sqrt(H)) v`, softmax in at least f32; query head n reads head n // (N // K).

    The softmax is cast to the dtype of the activations before it weighs the values, as both
    references do; the point `pattern` is that tensor. Whole maps are made where somebody wants to
    see or change one, and where they are small.
    """
    batch, queries, heads, _ = q.shape
    scores = batch * heads * queries * k.shape[1]
    if taps.wants("scores") or taps.wants("pattern"):
        z = _attend(q, k, v, mask, taps)
    elif queries > BLOCK and scores > LARGEST_MAP:
        z = _by_queries(q, k, v, mask)
    elif batch > 1 and queries > 1 and scores > CACHED_MAP:
        z = jax.lax.platform_dependent(q, k, v, mask, cpu=_by_rows, default=_attend)
    else:
        z = _attend(q, k, v, mask)
    return taps("z", z)


def _by_queries(q: Array, k: Array, v: Array, mask: Array) -> Float[Array, "B T N H"]:
    batch, queries, heads, size = q.shape
    rest = -queries % BLOCK
    blocks = (
        jnp.pad(q, ((0, 0), (0, rest), (0, 0), (0, 0))),
        jnp.pad(mask, ((0, 0), (0, rest), (0, 0)), constant_values=True),
    )
    by_block = tuple(x.reshape(batch, -1, BLOCK, *x.shape[2:]).swapaxes(0, 1) for x in blocks)
    one = jax.checkpoint(lambda block: _attend(block[0], k, v, block[1]))
    z = jax.lax.map(one, by_block)
    return z.swapaxes(0, 1).reshape(batch, -1, heads, size)[:, :queries]


def _by_rows(q: Array, k: Array, v: Array, mask: Array) -> Float[Array, "B T N H"]:
    batch, queries, heads, _ = q.shape
    at_once = max(1, CACHED_MAP // (heads * queries * k.shape[1]))
    at_once = next(rows for rows in range(min(at_once, batch), 0, -1) if batch % rows == 0)
    rows = tuple(x.reshape(-1, at_once, *x.shape[1:]) for x in (q, k, v, mask))
    # What the way back needs is made again, in the cache, rather than kept.
    return jax.lax.map(jax.checkpoint(lambda row: _attend(*row)), rows).reshape(q.shape)


def _attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
    taps: Taps | None = None,
) -> Float[Array, "B T N H"]:
    batch, queries, heads, size = q.shape
    groups = k.shape[2]
    # The small tensors are brought into the order of the products, not the T x S ones.
    grouped = q.reshape(batch, queries, groups, heads // groups, size).transpose(0, 2, 3, 1, 4)
    scores = product("BKGTH,BSKH->BKGTS", grouped, k).reshape(batch, heads, queries, -1)
    readable = mask[:, None]
    scores = jnp.where(readable, scores * size**-0.5, -jnp.inf)
    # Whatever an edit says, no query reads what comes after it, padding, or the cache's free room.
    scores = scores if taps is None else taps("scores", scores, readable, -jnp.inf)
    pattern = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    pattern = pattern if taps is None else taps("pattern", pattern, readable, 0)
    by_group = pattern.reshape(batch, groups, heads // groups, queries, -1)
    z = product("BKGTS,BSKH->BKGTH", by_group, v).transpose(0, 3, 1, 2, 4)
    return z.reshape(q.shape).astype(q.dtype)
