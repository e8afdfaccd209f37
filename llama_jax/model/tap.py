"""Where the inside of the model is read and changed: every named tensor passes one `tap(name, x)`.

What happens there is a `Tap`: some edits, then perhaps a capture. Taps are pytrees. Their kinds,
names and reductions are structure, so they shape the compiled program; masks, values and positions
are arrays, so new ones reuse it. Without taps the program is the one of a model that has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from llama_jax.base.largest import largest
from llama_jax.base.modes import standard
from llama_jax.model.product import wide
from llama_jax.parallel import Layout
from llama_jax.points import axes_inside

__all__ = [
    "NO_TAPS",
    "Add",
    "Call",
    "Edit",
    "EditError",
    "Mean",
    "Pool",
    "Put",
    "Reduce",
    "Take",
    "Tap",
    "Taps",
    "TopK",
    "along",
    "cells",
    "real_positions",
    "treats_positions_alike",
]

# How a captured tensor is made smaller; see `llama_jax.Capture`.
Reduce = Literal["last", "norm"] | tuple[Literal["max_pool", "mean_pool", "topk"], int] | None


class EditError(ValueError):
    """An edit that does not fit the tensor at its point."""


class TopK(NamedTuple):
    """The largest entries along the last axis, largest first, and where they are."""

    values: Float[Array, "... k"]
    indices: Int[Array, "... k"]


_T = TypeVar("_T")
AnyArray = Array | np.ndarray


@dataclass_transform(frozen_default=True, eq_default=False)
def _tree(*static: str) -> Callable[[type[_T]], type[_T]]:
    """A frozen dataclass that is a pytree; fields named in `static` belong to its structure."""

    def wrap(cls: type[_T]) -> type[_T]:
        made = dataclasses.dataclass(frozen=True, eq=False)(cls)
        data = [f.name for f in dataclasses.fields(made) if f.name not in static]  # type: ignore
        jax.tree_util.register_dataclass(made, data, list(static))
        return made

    return wrap


@_tree("axes")
class Put:
    """Where the mask is true: `value`."""

    axes: str
    where: Bool[AnyArray, ...]
    value: AnyArray

    def __call__(self, x: Array, lengths: Int[Array, " B"]) -> Array:
        return jnp.where(self.where, self.value.astype(x.dtype), x)

    def at(self, positions: Int[Array, "B T"]) -> Put:
        where, value = (along(self.axes, a, positions) for a in (self.where, self.value))
        return dataclasses.replace(self, where=where, value=value)


@_tree("axes")
class Add:
    """Where the mask is true: plus `value`, added in at least f32. -0.0 changes no bit."""

    axes: str
    where: Bool[AnyArray, ...]
    value: AnyArray

    def __call__(self, x: Array, lengths: Int[Array, " B"]) -> Array:
        added = x.astype(wide(x.dtype)) + self.value
        return jnp.where(self.where, added.astype(x.dtype), x)

    def at(self, positions: Int[Array, "B T"]) -> Add:
        where, value = (along(self.axes, a, positions) for a in (self.where, self.value))
        return dataclasses.replace(self, where=where, value=value)


@_tree("axes")
class Mean:
    """Where the mask is true: the mean over the batch and the real positions of this forward."""

    axes: str
    where: Bool[AnyArray, ...]

    def __call__(self, x: Array, lengths: Int[Array, " B"]) -> Array:
        batch_and_positions = (0, self.axes.split().index("T"))
        real = real_positions(self.axes, x, lengths)
        total = jnp.sum(jnp.where(real, x, 0), batch_and_positions, wide(x.dtype), keepdims=True)
        mean = total / jnp.maximum(jnp.sum(real), 1)
        return jnp.where(self.where, mean.astype(x.dtype), x)

    def at(self, positions: Int[Array, "B T"]) -> Mean:
        return dataclasses.replace(self, where=along(self.axes, self.where, positions))


@_tree("function", "point")
class Call:
    """What `function` makes of the tensor, in the shape and the dtype that it has."""

    function: Callable[[Array], Array]
    point: str

    def __call__(self, x: Array, lengths: Int[Array, " B"]) -> Array:
        made = jnp.asarray(self.function(x))
        if made.shape != x.shape:
            raise EditError(
                f"Replace at {self.point}: the function gives shape {list(made.shape)}; the tensor "
                f"there has {list(x.shape)}."
            )
        return made.astype(x.dtype)

    def at(self, positions: Int[Array, "B T"]) -> Call:
        return self


Edit = Put | Add | Mean | Call


@_tree("axes", "heads", "reduce", "dtype")
class Take:
    """What is kept of a tensor: some heads, some positions of each row, reduced, cast."""

    axes: str
    heads: tuple[int, ...] | None = None
    positions: Int[AnyArray, "B P"] | None = None
    reduce: Reduce = None
    dtype: np.dtype | None = None

    @standard
    def __call__(
        self, x: Array, lengths: Int[Array, " B"], keys: Int[Array, " B"] | None = None
    ) -> Array | TopK:
        """`lengths` says how many queries of each row are real, `keys` how many keys: as many."""
        axes = self.axes.split()
        if self.heads is not None:
            x = jnp.take(x, np.array(self.heads), axis=axes.index("N" if "N" in axes else "K"))
        queries = lengths
        if self.positions is not None:
            x = along(self.axes, x, self.positions)
            queries = jnp.full_like(lengths, self.positions.shape[1])
        if self.reduce == "last":
            x = along(self.axes, x, jnp.maximum(queries - 1, 0)[:, None])
        elif self.reduce == "norm":
            x = jnp.linalg.norm(x.astype(wide(x.dtype)), axis=-1)
        elif self.reduce is not None and self.reduce[0] == "topk":
            values, indices = jax.lax.top_k(x, self.reduce[1])
            return TopK(values if self.dtype is None else values.astype(self.dtype), indices)
        elif self.reduce is not None:
            x = _pooled(self.axes, x, self.reduce, queries, lengths if keys is None else keys)
        return x if self.dtype is None else x.astype(self.dtype)

    @property
    def rest(self) -> Take:
        """What is left to do with all positions at hand, where the others came one by one."""
        axes = self.axes
        if self.reduce == "norm":
            axes = axes.rsplit(" ", 1)[0]
        alike = treats_positions_alike(self.reduce)
        return dataclasses.replace(
            self,
            axes=axes,
            heads=None,
            reduce=None if alike else self.reduce,
            dtype=None if alike else self.dtype,
        )


@_tree()
class Tap:
    """What happens at one point: the edits in their order, then the capture."""

    edits: tuple[Edit, ...] = ()
    take: Take | None = None

    def at(self, positions: Int[Array, "B T"]) -> Tap:
        """Of masks and values that span a whole sequence the parts at `positions`."""
        return dataclasses.replace(self, edits=tuple(edit.at(positions) for edit in self.edits))


class Taps:
    """Applies the taps of one traced call by their names inside it, and collects the captures.

    A tap where nothing is asked for is the identity. What is captured must be returned by the
    function that is being traced: nothing survives a `jax.jit` by mutation.

    >>> taps = Taps({"self_attn.z": Tap(take=Take("B T N H"))}, jnp.array([5]))
    >>> inside = taps.at("self_attn")
    >>> _ = inside("z", jnp.zeros((1, 5, 4, 2))), inside("out", jnp.zeros((1, 5, 8)))
    >>> {name: array.shape for name, array in taps.captured.items()}
    {'self_attn.z': (1, 5, 4, 2)}
    """

    def __init__(
        self, taps: Mapping[str, Tap], lengths: Int[Array, " B"], layout: Layout | None = None
    ) -> None:
        self.captured: dict[str, Any] = {}
        self._taps = taps
        self._lengths = lengths
        self._layout = layout
        self._prefix = ""

    def __call__(self, name: str, x: Array, where: Array | None = None, other: float = 0) -> Array:
        """What becomes of `x`; after an edit it is `other` wherever `where` is false, as before."""
        name = self._prefix + name
        if self._layout is not None:
            return self._laid_out(name, self.shard(x, axes_inside(name)), where, other)
        return self._changed(name, x, where, other)

    def shard(self, x: Array, axes: str) -> Array:
        """`x` as the mesh, where there is one, shares out tensors with these axes."""
        return x if self._layout is None else self._layout.shard(x, axes)

    @property
    def mesh(self) -> Mesh | None:
        return None if self._layout is None else self._layout.mesh

    def _changed(self, name: str, x: Array, where: Array | None, other: float) -> Array:
        tap = self._taps.get(name)
        if tap is None:
            return x
        for edit in tap.edits:
            x = edit(x, self._lengths)
        if tap.edits and where is not None:
            x = jnp.where(where, x, other)
        if tap.take is not None:
            self.captured[name] = tap.take(x, self._lengths)
        return x

    def _laid_out(self, name: str, x: Array, where: Array | None, other: float) -> Array:
        """Taps see tensors without the padding that a mesh needs; what they keep is shared out."""
        tap, layout, axes = self._taps.get(name), self._layout, axes_inside(name)
        if tap is None or layout is None:
            return x
        inner = layout.cut(x, axes)
        inner = self._changed(
            name, inner, None if where is None else layout.cut(where, axes), other
        )
        if tap.take is not None:
            letters = axes.split()
            self.captured[name] = jax.tree.map(
                lambda kept: layout.shard(kept, letters[: kept.ndim]), self.captured[name]
            )
        if tap.edits:
            inner = jax.lax.dynamic_update_slice(x, inner, (0,) * x.ndim)
        return layout.shard(inner, axes) if tap.edits else x

    def wants(self, name: str) -> bool:
        """Whether anything is asked of `name`: what exists only for that is made only then."""
        return self._prefix + name in self._taps

    def pool(self, name: str) -> Pool | None:
        """What pools `name`, where that is all that is asked of it: it can be made in parts."""
        tap = self._taps.get(self._prefix + name)
        if tap is None or tap.edits or tap.take is None or self._layout is not None:
            return None
        reduce = tap.take.reduce
        pools = isinstance(reduce, tuple) and reduce[0] != "topk"
        return Pool(tap.take, self._lengths) if pools and tap.take.positions is None else None

    def keep(self, name: str, value: Any) -> None:
        """Captures `value`, which was made in parts, as what was asked of `name`."""
        self.captured[self._prefix + name] = value

    def edits(self, name: str) -> bool:
        """Whether `name` is changed."""
        tap = self._taps.get(self._prefix + name)
        return tap is not None and bool(tap.edits)

    def at(self, part: str) -> Taps:
        """The same collection, seen from inside the submodule `part`."""
        inside = Taps(self._taps, self._lengths, self._layout)
        inside.captured = self.captured
        inside._prefix = f"{self._prefix}{part}."
        return inside


NO_TAPS = Taps({}, np.zeros(0, np.int32))  # type: ignore[arg-type]


def treats_positions_alike(reduce: Reduce) -> bool:
    """Whether it can be done position by position, before all of them are there."""
    return reduce is None or reduce == "norm" or reduce[0] == "topk"


def along(axes: str, array: AnyArray, positions: Int[AnyArray, "B P"]) -> Array:
    """Of each row of `array` its own `positions`; an array that has no T, or one of 1, stays."""
    axis = axes.split().index("T")
    if array.ndim == 0 or array.shape[axis] == 1:
        return jnp.asarray(array)
    shape = [1] * array.ndim
    shape[0], shape[axis] = positions.shape
    return jnp.take_along_axis(array, positions.reshape(shape), axis=axis, mode="clip")


def real_positions(
    axes: str, x: Array, lengths: Int[Array, " B"], along: str = "T"
) -> Bool[Array, ...]:
    """True at each row's first `lengths` positions, in a shape that goes with `x`."""
    axis = axes.split().index(along)
    shape = [1] * x.ndim
    shape[0], shape[axis] = len(lengths), x.shape[axis]
    return (jnp.arange(x.shape[axis]) < lengths[:, None]).reshape(shape)


def _pooled(
    axes: str, x: Array, reduce: Any, queries: Int[Array, " B"], keys: Int[Array, " B"]
) -> Array:
    """The maximum or the mean of each cell of positions, without padding and masked scores.

    A cell of nothing but padding is 0, one of nothing but masked scores is -inf.
    """
    kind, count = reduce
    real = real_positions(axes, x, queries)
    if "S" in axes.split():
        real = real & real_positions(axes, x, keys, along="S")
    real = jnp.broadcast_to(real, x.shape)
    seen = real & (x != -jnp.inf)
    over = [axis for axis, name in enumerate(axes.split()) if name in "TS"]

    def gather(array: Array, combine: Callable[..., Array]) -> Array:
        for axis in over:
            array = cells(array, axis, count, combine)
        return array

    if kind == "max_pool":
        pooled = gather(jnp.where(seen, x, -jnp.inf), largest)
    else:
        counts = gather(seen.astype(jnp.int32), jnp.sum)
        total = gather(jnp.where(seen, x, 0).astype(wide(x.dtype)), jnp.sum)
        pooled = jnp.where(counts > 0, total / jnp.maximum(counts, 1), -jnp.inf)
    return jnp.where(gather(real, jnp.any), pooled, 0).astype(x.dtype)


class Pool(NamedTuple):
    """What `Take` does with a whole pattern, done to a block of its queries at a time.

    Queries and keys are the same positions. Largest values are those of the whole; means are sums
    in another order.
    """

    take: Take
    lengths: Int[Array, " B"]

    @property
    def _rule(self) -> tuple[Callable[..., Array], float]:
        assert isinstance(self.take.reduce, tuple)
        return (largest, -jnp.inf) if self.take.reduce[0] == "max_pool" else (jnp.sum, 0.0)

    def over_keys(self, block: Float[Array, "B N t S"]) -> Float[Array, "B N t n"]:
        if self.take.heads is not None:
            block = jnp.take(block, np.array(self.take.heads), axis=1)
        return self._along(block.astype(wide(block.dtype)), "S")

    def over_queries(self, rows: Float[Array, "B N T n"], dtype: Any) -> Float[Array, "B N m n"]:
        assert isinstance(self.take.reduce, tuple)
        pooled = self._along(rows, "T")
        if self.take.reduce[0] == "mean_pool":
            real = (jnp.arange(rows.shape[2]) < self.lengths[:, None]).astype(pooled.dtype)
            counts = cells(real, 1, self.take.reduce[1], jnp.sum)
            pooled = pooled / jnp.maximum(counts[:, None, :, None] * counts[:, None, None], 1)
        pooled = jnp.where(pooled == -jnp.inf, 0, pooled).astype(dtype)
        return pooled if self.take.dtype is None else pooled.astype(self.take.dtype)

    def _along(self, x: Array, axis: str) -> Array:
        assert isinstance(self.take.reduce, tuple)
        combine, nothing = self._rule
        real = real_positions("B N T S", x, self.lengths, along=axis)
        at = ["B", "N", "T", "S"].index(axis)
        return cells(jnp.where(real, x, nothing), at, self.take.reduce[1], combine)


def cells(array: Array, axis: int, most: int, combine: Callable[..., Array]) -> Array:
    """`combine` over each of at most `most` pieces of an axis, cut as `np.array_split` cuts."""
    length = array.shape[axis]
    most = min(most, length)
    size, longer = divmod(length, most)
    parts, start = [], 0
    for count, width in ((longer, size + 1), (most - longer, size)):
        if count:
            part = jax.lax.slice_in_dim(array, start, start + count * width, axis=axis)
            shape = (*array.shape[:axis], count, width, *array.shape[axis + 1 :])
            parts.append(combine(part.reshape(shape), axis=axis + 1))
            start += count * width
    return jnp.concatenate(parts, axis=axis)
