"""Keys and values of the tokens seen so far: a value that is passed in, donated and returned."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_jax.config import LlamaConfig

__all__ = ["Cache", "append", "empty_cache"]


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


def empty_cache(config: LlamaConfig, batch: int, size: int, dtype: jnp.dtype) -> Cache:
    """Room for `size` positions of `batch` sequences: `2 * L * B * S * K * H` numbers."""
    shape = (batch, size, config.num_key_value_heads, config.head_dim)
    layers = range(config.num_hidden_layers)
    return Cache(
        keys=tuple(jnp.zeros(shape, dtype) for _ in layers),
        values=tuple(jnp.zeros(shape, dtype) for _ in layers),
        lengths=jnp.zeros((batch,), jnp.int32),
    )


def append(
    stored: Float[Array, "B S K H"], new: Float[Array, "B T K H"], lengths: Int[Array, " B"]
) -> Float[Array, "B S K H"]:
    """Writes each row's new positions behind its own length.

    `lengths + T` must not exceed S: `dynamic_update_slice` would move the write back instead.
    """
    write = jax.vmap(lambda row, block, at: jax.lax.dynamic_update_slice(row, block, (at, 0, 0)))
    return write(stored, new.astype(stored.dtype), lengths)
