"""Keys and values of the tokens seen so far: a value that is passed in, donated and returned."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from llama_jax.config import LlamaConfig
from llama_jax.parallel import parts, sharding

__all__ = ["CACHE_AXES", "Cache", "append", "append_shared", "empty_cache"]

CACHE_AXES = "B C K H"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys (after RoPE) and values of each layer, left-aligned, with every row's own length.

    Positions at and beyond a row's length hold nothing that is ever read.
    """

    keys: tuple[Float[Array, "B S K H"], ...]
    values: tuple[Float[Array, "B S K H"], ...]
    lengths: Int[Array, " B"]

    @property
    def size(self) -> int:
        """How many positions there is room for."""
        return self.keys[0].shape[1]


def empty_cache(
    config: LlamaConfig, batch: int, size: int, dtype: jnp.dtype, mesh: Mesh | None = None
) -> Cache:
    """Room for `size` positions of `batch` sequences: `2 * L * B * S * K * H` numbers.

    On a mesh there are as many rows as it divides, and each device holds its part.
    """
    batch += -batch % parts("B", mesh)
    shape = (batch, size, config.num_key_value_heads, config.head_dim)
    layers = range(config.num_hidden_layers)
    place = None if mesh is None else sharding(CACHE_AXES, mesh, shape)
    everywhere = None if mesh is None else sharding("1", mesh)
    return Cache(
        keys=tuple(jnp.zeros(shape, dtype, device=place) for _ in layers),
        values=tuple(jnp.zeros(shape, dtype, device=place) for _ in layers),
        lengths=jnp.zeros((batch,), jnp.int32, device=everywhere),
    )


def append(
    stored: Float[Array, "B S K H"], new: Float[Array, "B T K H"], lengths: Int[Array, " B"]
) -> Float[Array, "B S K H"]:
    """Writes each row's new positions behind its own length.

    `lengths + T` must not exceed S: `dynamic_update_slice` would move the write back instead.
    """
    zero = jnp.zeros((), lengths.dtype)  # 64 bits are refused beside 32
    write = jax.vmap(
        lambda row, block, at: jax.lax.dynamic_update_slice(row, block, (at, zero, zero))
    )
    return write(stored, new.astype(stored.dtype), lengths)


def append_shared(
    stored: Float[Array, "B S K H"], new: Float[Array, "B T K H"], lengths: Int[Array, " B"]
) -> Float[Array, "B S K H"]:
    """As `append`, for positions that lie on several devices: each takes those of its own.

    All of the cache is read and written, and nothing of it is sent.
    """
    source = jnp.arange(stored.shape[1]) - lengths[:, None]
    here = (source >= 0) & (source < new.shape[1])
    taken = jnp.take_along_axis(new, source[..., None, None], axis=1, mode="clip")
    return jnp.where(here[..., None, None], taken.astype(stored.dtype), stored)
