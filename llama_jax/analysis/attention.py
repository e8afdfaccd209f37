"""Any part of an attention map at any size, exactly, without the map."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llama_jax.analysis.needs import a_run, held, need, pieces_of
from llama_jax.analysis.results import Result
from llama_jax.base.choice import numbered
from llama_jax.base.largest import largest
from llama_jax.base.modes import jit
from llama_jax.model.product import product, wide
from llama_jax.run import Run

__all__ = ["AttentionMap", "attention_map"]

# Probabilities of so many (query, key) pairs exist at once: 16 MiB in f32.
PAIRS_AT_ONCE = 2**22


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AttentionMap(Result):
    """A tile of one head's attention: `values` [m, n], cells of queries down, of keys across.

    Cell (i, j) pools the queries `query_edges[i]` to `query_edges[i + 1] - 1` and the keys
    `key_edges[j]` to `key_edges[j + 1] - 1`.
    """

    layer: int
    head: int
    row: int
    query_edges: Int[np.ndarray, " m+1"]
    key_edges: Int[np.ndarray, " n+1"]
    pool: str

    def _summary(self) -> str:
        a, b = (f"{edges[0]} to {edges[-1] - 1}" for edges in (self.query_edges, self.key_edges))
        return f"layer {self.layer}, head {self.head}, queries {a}, keys {b}, {self.pool}"

    def _drawn(self) -> Mapping[str, Any]:
        return {**super()._drawn(), "around_zero": False, "vmin": 0.0, "vmax": 1.0}


def attention_map(
    run: Run,
    layer: int,
    head: int,
    row: int = 0,
    queries: tuple[int, int] | None = None,
    keys: tuple[int, int] | None = None,
    shape: tuple[int, int] = (256, 256),
    pool: Literal["max", "mean"] = "max",
) -> AttentionMap:
    """The attention of one head over a range of queries and keys, pooled to at most `shape` cells.

    Made from the run's `q_rot` and `k_rot`: `softmax(q k^T / sqrt(H))` of each query over all keys
    that it may read, then of the range asked for the maximum or mean of each cell. `queries` and
    `keys` are half-open ranges of the row's positions, all by default; cells are cut as
    `numpy.array_split` cuts, and a range no longer than its side of `shape` is not pooled, so that
    `queries=(t, t + 1)` is one exact row. Keys behind a query count as the zeros that they are.

    At most 2^22 probabilities exist at once: memory grows with the prompt's length, not with its
    square. Ranges of about equal size share a compiled program. Equals pooling `pattern` whole, to
    1e-6 in f32; the pattern of a model of narrow dtype was rounded to it, this is f32.

    Raises `MissingPointError`, `IndexError`, and `ValueError` for an empty range.

    >>> from llama_jax import Llama
    >>> run = Llama.from_pretrained("cria").run("Once upon a time", capture=("q_rot", "k_rot"))
    >>> tile = attention_map(run, layer=0, head=5, queries=(4, 5))
    >>> tile.values.shape, abs(float(tile.values.sum()) - 1) < 1e-5
    ((1, 5), True)
    """
    a_run(run, "An attention map")
    layer = numbered("layer", layer, run.config.num_hidden_layers)
    head = numbered("head", head, run.config.num_attention_heads)
    row = numbered("row", row, len(run.lengths))
    if pool not in ("max", "mean"):
        raise ValueError(f"pool is {pool!r}; it must be 'max' or 'mean'.")
    length = int(run.lengths[row])
    spans = [_span(span, length, n) for span, n in ((queries, "queries"), (keys, "keys"))]
    for point in ("q_rot", "k_rot"):
        if not held(run, (point, layer)):
            need(run, (point, layer), "An attention map", ("q_rot", "k_rot"))
    for point in ("scores", "pattern"):
        if f"layers.{layer}.self_attn.{point}" in run.edited:
            raise ValueError(
                f"This run's {point} of layer {layer} were edited, so queries and keys do not tell "
                "them: capture='pattern' holds them."
            )
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"shape is {shape}; it must be two sizes of 1 or more.")
    edges = [_edges(*span, cells) for span, cells in zip(spans, shape, strict=True)]
    values = _tile(
        jnp.asarray(run["q_rot", layer]),
        jnp.asarray(run["k_rot", layer]),
        np.array([row, head, length], np.int32),
        *(_members(cut) for cut in edges),
        pool,
    )
    firsts = {"position": edges[0][:-1].tolist(), "key": edges[1][:-1].tolist()}
    return AttentionMap(
        values,
        ("position", "key"),
        layer,
        head,
        row,
        edges[0],
        edges[1],
        pool,
        coordinates=firsts,
        pieces=pieces_of(run),
    )


def _span(span: tuple[int, int] | None, length: int, what: str) -> tuple[int, int]:
    if span is not None and (np.ndim(span) != 1 or len(span) != 2):
        raise ValueError(f"{what} is {span!r}; it must be a pair, the first and behind the last.")
    start, stop = (0, length) if span is None else span
    if not 0 <= start < stop <= length:
        raise ValueError(
            f"{what}=({start}, {stop}): a range within the row's {length} positions, such as "
            f"(0, {length}), is needed."
        )
    return start, stop


def _edges(start: int, stop: int, cells: int) -> Int[np.ndarray, " n+1"]:
    """Where the cells begin, and the end; longer cells come first, as in `np.array_split`."""
    cells = min(cells, stop - start)
    size, longer = divmod(stop - start, cells)
    widths = np.full(cells, size) + (np.arange(cells) < longer)
    return start + np.concatenate([[0], np.cumsum(widths)])


def _members(edges: Int[np.ndarray, " n+1"]) -> Int[np.ndarray, "n w"]:
    """The positions in each cell, -1 where it has fewer than the widest rounded up.

    Widths are powers of two, so that tiles of about equal size share a program.
    """
    widths = np.diff(edges)
    most = 1 << int(widths.max() - 1).bit_length()
    inside = np.arange(most) < widths[:, None]
    return np.where(inside, edges[:-1, None] + np.arange(most), -1).astype(np.int32)


@functools.partial(jit, static_argnums=5)
def _tile(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    which: Int[Array, " 3"],
    queries: Int[Array, "m u"],
    keys: Int[Array, "n w"],
    pool: str,
) -> Float[Array, "m n"]:
    row, head, length = which
    group = q.shape[2] // k.shape[2]
    mine, theirs = q[row, :, head], k[row, :, head // group]
    positions = jnp.arange(k.shape[1])
    inside = keys.reshape(-1) >= 0

    def cells(query: Int[Array, ""]) -> Float[Array, " n"]:
        """One query's probabilities, pooled over the cells of keys."""
        scores = product("H,SH->S", mine[query], theirs) * q.shape[-1] ** -0.5
        readable = (positions <= query) & (positions < length)
        pattern = jax.nn.softmax(jnp.where(readable, scores, -jnp.inf)).astype(wide(q.dtype))
        chosen = jnp.where(inside, pattern[keys.reshape(-1)], 0).reshape(keys.shape)
        return largest(chosen, axis=1) if pool == "max" else jnp.sum(chosen, axis=1)

    at_once = max(1, PAIRS_AT_ONCE // (k.shape[1] + keys.size))
    flat = queries.reshape(-1)
    found = jax.lax.map(cells, jnp.maximum(flat, 0), batch_size=min(at_once, flat.size))
    found = jnp.where(flat[:, None] >= 0, found, 0).reshape(*queries.shape, -1)
    if pool == "max":
        return largest(found, axis=1)
    counts = jnp.sum(queries >= 0, axis=1)[:, None] * jnp.sum(keys >= 0, axis=1)
    return jnp.sum(found, axis=1) / counts
