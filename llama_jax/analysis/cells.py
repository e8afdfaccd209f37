"""Reductions of an array of any size over cells: where it lies, in few passes, and accurate.

Nothing of the array's size is made beside it. What comes to the host are sums over cells, some
hundred by some hundred, which are added up in f64 there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from llama_jax.model.tap import AnyArray, cells

__all__ = ["Term", "as_matrix", "on_host", "over_cells", "plain", "total", "unit"]


def on_host(program: Callable[..., Any], *arrays: AnyArray, **static: Any) -> Any:
    """What `program` gives, on the host; it may reshape its arrays, and finds 64 bits as 64.

    All are put where the first one is that lies on a mesh; those of its shape are laid out like it.
    Meshes are Explicit by default and refuse to reshape an axis that is sharded, so the arrays go
    in as on the same mesh with Auto axes, for which no byte is moved.
    """
    with jax.enable_x64(any(array.dtype.itemsize == 8 for array in arrays)):
        given = [jnp.asarray(array) for array in arrays]
        main = next((x for x in given if isinstance(x.sharding, NamedSharding)), given[0])
        sharding = main.sharding
        if not isinstance(sharding, NamedSharding):
            placed = [
                x if x.devices() == main.devices() else jax.device_put(x, sharding) for x in given
            ]
            return jax.device_get(program(*placed, **static))
        names = sharding.mesh.axis_names
        mesh = Mesh(sharding.mesh.devices, names, axis_types=(AxisType.Auto,) * len(names))
        alike, whole = NamedSharding(mesh, sharding.spec), NamedSharding(mesh, P())
        placed = [jax.device_put(x, alike if x.shape == main.shape else whole) for x in given]
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.device_get(program(*placed, **static))


def over_cells(
    matrix: Float[Array, "R C"], shape: tuple[int, int], terms: Callable[[Array], Sequence[Term]]
) -> Float[Array, "k m n"]:
    """The k reductions that `terms` gives of a part of the matrix, over each cell.

    One reduction of several terms, because XLA's CPU backend then makes no array of any of them.
    """

    def reduced(part: Float[Array, "m h n w"], axis: int) -> Float[Array, "m 1 n k"]:
        operators, operands, start = map(list, zip(*terms(part), strict=True))

        def both(one: Sequence[Any], other: Sequence[Any]) -> list[Any]:
            return [f(a, b) for f, a, b in zip(operators, one, other, strict=True)]

        found = lax.reduce(operands, start, both, (1, 3))
        parts = [sum(x) if isinstance(x, tuple) else x for x in found]
        return jnp.stack(parts, axis=-1)[:, None]

    def rows(part: Float[Array, "m h C"], axis: int) -> Float[Array, "m n k"]:
        return cells(part, 2, shape[1], reduced)[:, 0]

    return jnp.moveaxis(cells(matrix, 0, shape[0], rows), -1, 0)


# An associative operator, what it combines, and what it starts from.
Term = tuple[Callable[[Any, Any], Any], Any, Any]


def total(x: Array) -> Term:
    """A sum that carries along what its additions round off, so any number of entries may come.

    Source: Knuth, "The Art of Computer Programming", volume 2, section 4.2.2, theorem B.
    """
    zero = jnp.zeros((), x.dtype)
    return _two_sum, (x, jnp.zeros_like(x)), (zero, zero)


def _two_sum(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, lost_x), (y, lost_y) = a, b
    both = x + y
    of_y = both - x
    return both, lost_x + lost_y + ((x - (both - of_y)) + (y - of_y))


def plain(operator: Callable[[Any, Any], Any], x: Array, start: float) -> Term:
    return operator, x, jnp.asarray(start, x.dtype)


def as_matrix(x: Array) -> Float[Array, "R C"]:
    """The last axis across, all others down, in f32; in f64 where an entry has 8 bytes."""
    x = x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x.reshape(1, -1)
    return x.astype(jnp.float64 if x.dtype.itemsize == 8 else jnp.float32)


def unit(largest: Float[Array, ""]) -> Float[Array, ""]:
    """A power of two; in multiples of it squares can be summed, and small entries do not vanish."""
    exponent_only = lax.reduce_precision(largest * 2.0**-50, jnp.finfo(largest.dtype).nexp, 0)
    return jnp.maximum(exponent_only, jnp.finfo(largest.dtype).tiny)
