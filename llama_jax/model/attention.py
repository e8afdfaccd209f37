"""Causal grouped-query attention over the keys and values of one layer."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from llama_jax.model.product import product
from llama_jax.model.tap import NO_TAPS, Pool, Taps

__all__ = ["attend", "causal_mask"]


def causal_mask(
    positions: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    size: int,
    documents: Int[Array, "B T"] | None = None,
) -> Bool[Array, "B T S"]:
    """True where a query may read a key: not after it, and within its row's `lengths` tokens.

    With `documents` also within its own: equal numbers are one document.
    """
    keys = jnp.arange(size)
    mask = (keys <= positions[..., None]) & (keys < lengths[:, None, None])
    if documents is not None:
        mask &= documents[:, :, None] == documents[:, None, :]
    return mask


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
    see or change one, and where they are small; one that is pooled is pooled block by block.
    """
    batch, queries, heads, _ = q.shape
    devices = 1 if taps.mesh is None else taps.mesh.size
    scores = batch * heads * queries * k.shape[1] // devices
    if queries > 1:  # each device has some of the queries, and needs all keys
        k, v = taps.shard(k, "B S K H"), taps.shard(v, "B S K H")
    large = queries > BLOCK and scores > LARGEST_MAP
    pool = taps.pool("pattern") if large and not taps.wants("scores") else None
    if pool is not None:
        z, pooled = _by_queries(q, k, v, mask, taps, pool)
        taps.keep("pattern", pooled)
    elif taps.wants("scores") or taps.wants("pattern"):
        z = _attend(q, k, v, mask, taps)
    elif large:
        z, _ = _by_queries(q, k, v, mask, taps)
    elif batch > 1 and queries > 1 and scores > CACHED_MAP and devices == 1:
        z = jax.lax.platform_dependent(q, k, v, mask, cpu=_by_rows, default=_whole)
    else:
        z = _attend(q, k, v, mask, taps)
    return taps("z", z)


def _by_queries(
    q: Array, k: Array, v: Array, mask: Array, taps: Taps, pool: Pool | None = None
) -> tuple[Float[Array, "B T N H"], Array | None]:
    """A block of queries at a time; also the pooled pattern, where a `pool` is given."""
    batch, queries, heads, size = q.shape
    # Each block has queries of every device that shares out the positions.
    parts = 1 if taps.mesh is None else taps.mesh.shape["sequence"]
    parts = parts if queries % parts == 0 else 1
    block = max(BLOCK // parts, 1)
    rest = -(queries // parts) % block

    def by_block(x: Array, fill: bool) -> Array:
        x = x.reshape(batch, parts, -1, *x.shape[2:])
        room = ((0, 0), (0, 0), (0, rest), *[(0, 0)] * (x.ndim - 3))
        x = jnp.pad(x, room, constant_values=fill)
        x = x.reshape(batch, parts, -1, block, *x.shape[3:]).transpose(
            2, 0, 1, 3, *range(4, x.ndim + 1)
        )
        return x.reshape(-1, batch, parts * block, *x.shape[4:])

    def one(block: tuple[Array, Array]) -> tuple[Array, Array | None]:
        if pool is None:
            return _attend(block[0], k, v, block[1], taps), None
        found: list[Array] = []
        z = _attend(block[0], k, v, block[1], taps, lambda x: found.append(pool.over_keys(x)))
        return z, found[0]

    blocks = (by_block(q, False), by_block(mask, True))
    z, pooled = jax.lax.map(jax.checkpoint(one), blocks)
    if pool is not None:
        pooled = jnp.moveaxis(pooled, 0, 2).reshape(*pooled.shape[1:3], -1, pooled.shape[-1])
        pooled = pool.over_queries(pooled[:, :, :queries], q.dtype)
    z = z.reshape(-1, batch, parts, block, heads, size).transpose(1, 2, 0, 3, 4, 5)
    z = z.reshape(batch, parts, -1, heads, size)[:, :, : queries // parts].reshape(q.shape)
    return z, pooled


def _whole(q: Array, k: Array, v: Array, mask: Array) -> Float[Array, "B T N H"]:
    return _attend(q, k, v, mask, NO_TAPS)


def _by_rows(q: Array, k: Array, v: Array, mask: Array) -> Float[Array, "B T N H"]:
    batch, queries, heads, _ = q.shape
    at_once = max(1, CACHED_MAP // (heads * queries * k.shape[1]))
    at_once = next(rows for rows in range(min(at_once, batch), 0, -1) if batch % rows == 0)
    rows = tuple(x.reshape(-1, at_once, *x.shape[1:]) for x in (q, k, v, mask))
    # What the way back needs is made again, in the cache, rather than kept.
    return jax.lax.map(jax.checkpoint(lambda row: _whole(*row)), rows).reshape(q.shape)


def _attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
    taps: Taps,
    see: Callable[[Float[Array, "B N T S"]], None] | None = None,
) -> Float[Array, "B T N H"]:
    batch, queries, heads, size = q.shape
    groups = k.shape[2]
    # The small tensors are brought into the order of the products, not the T x S ones.
    grouped = q.reshape(batch, queries, groups, heads // groups, size).transpose(0, 2, 3, 1, 4)
    grouped = taps.shard(grouped, "B K G T H")
    scores = product("BKGTH,BSKH->BKGTS", grouped, k).reshape(batch, heads, queries, -1)
    readable = mask[:, None]
    scores = jnp.where(readable, scores * size**-0.5, -jnp.inf)
    # Whatever an edit says, no query reads what comes after it, padding, or the cache's free room.
    if taps.wants("scores"):
        scores = taps("scores", scores, readable, -jnp.inf)
    pattern = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    if see is not None:
        see(pattern)
    elif taps.wants("pattern"):
        pattern = taps("pattern", pattern, readable, 0)
    by_group = pattern.reshape(batch, groups, heads // groups, queries, -1)
    z = product("BKGTS,BSKH->BKGTH", by_group, v).transpose(0, 3, 1, 2, 4)
    return z.reshape(q.shape).astype(q.dtype)
