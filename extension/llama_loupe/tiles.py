"""Windows of matrices of any size, pooled where they lie: no more than a screen reaches the host.

What lies in the host's memory is read there by NumPy without a copy. Of what lies on accelerators
each device pools its own part, and their cells are put together here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import SingleDeviceSharding

from llama_jax.base.modes import jit
from llama_loupe.arrays import cuts
from llama_loupe.view import ViewError, integer, one_of

__all__ = ["POOLS", "TILE", "Matrix", "Span", "Tile", "asked", "even", "tile", "whole"]

TILE = 256  # cells along a side of a tile
POOLS = ("max", "mean")

Span = tuple[int, int]  # from the first to before the last


class Tile(NamedTuple):
    """Cell (i, j) pools rows `rows[i]` to `rows[i + 1] - 1` and the like columns."""

    values: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


class Part(NamedTuple):
    """What one device holds: the corner of it in the matrix, the array, where to look in that."""

    top: int
    left: int
    data: Any
    lead: tuple[int, ...]


class Matrix:
    """An array as a matrix: its first axes are fixed at `lead`, the next one goes down, the others
    are joined and go across; of one axis there is one row. Nothing is copied.

    `causal` says that what is above the diagonal means nothing, and counts as 0.
    """

    def __init__(self, array: Any, lead: tuple[int, ...] = (), causal: bool = False) -> None:
        if isinstance(array, jax.Array):
            if array.is_deleted():
                raise ViewError("This array was donated to a computation, and is gone.")
            if not array.is_fully_addressable:
                raise ViewError("Parts of this array are on other hosts, where they stay.")
        self.array, self.lead, self.causal = array, lead, causal
        rest = array.shape[len(lead) :]
        self.shape = (1, *rest) if len(rest) == 1 else (rest[0], math.prod(rest[1:]))
        self.at_hand = isinstance(array, np.ndarray) or {d.platform for d in array.devices()} == {
            "cpu"
        }

    def parts(self) -> Iterator[Part]:
        """Each entry once."""
        array, lead = self.array, self.lead
        if isinstance(array, np.ndarray):
            yield Part(0, 0, array, lead)
            return
        rest = array.shape[len(lead) :]
        if array.sharding.shard_shape(array.shape)[len(lead) + 2 :] != rest[2:]:
            # Its columns do not lie side by side.
            array = jax.device_put(array, SingleDeviceSharding(next(iter(array.devices()))))
        for shard in array.addressable_shards:
            if shard.replica_id:
                continue
            starts = [part.start or 0 for part in shard.index]
            own = tuple(at - starts[axis] for axis, at in enumerate(lead))
            if any(not 0 <= at < shard.data.shape[axis] for axis, at in enumerate(own)):
                continue
            corner = [*starts[len(lead) :], 0]
            if len(rest) == 1:
                corner = [0, *corner]
            yield Part(corner[0], corner[1] * math.prod(rest[2:]), shard.data, own)

    def read(self, rows: Span, columns: Span) -> np.ndarray:
        """Entries of what is at hand; a view where one part has them all."""
        found = None
        for part in self._here:
            top, left, values = part
            down = max(rows[0] - top, 0), min(rows[1] - top, len(values))
            across = max(columns[0] - left, 0), min(columns[1] - left, values.shape[1])
            if down[0] >= down[1] or across[0] >= across[1]:
                continue
            here = values[slice(*down), slice(*across)]
            shape = (rows[1] - rows[0], columns[1] - columns[0])
            if here.shape == shape:
                return here
            if found is None:
                found = np.empty(shape, values.dtype)
            to = top + down[0] - rows[0], left + across[0] - columns[0]
            found[to[0] : to[0] + here.shape[0], to[1] : to[1] + here.shape[1]] = here
        assert found is not None
        return found

    @functools.cached_property
    def _here(self) -> list[tuple[int, int, np.ndarray]]:
        found = []
        for part in self.parts():
            values = np.asarray(part.data)[part.lead]
            shape = (1, -1) if values.ndim == 1 else (len(values), -1)
            found.append((part.top, part.left, values.reshape(shape)))
        return found


def tile(
    matrix: Matrix, rows: Span, columns: Span, cells: Sequence[int], pool: str, other: Any = None
) -> Tile:
    """A window of a matrix in at most `cells`, cut as `numpy.array_split` cuts; f32 or f64.

    A cell is the entry of the largest magnitude in it, with its sign (of two the negative one), or
    the mean. NaN is larger than everything. With an `other` matrix of that shape the entries are
    `other - matrix`, in f32 or wider, and 0 where both are the same, infinite or NaN too.
    """
    edges = [
        start + cuts(stop - start, min(most, stop - start))
        for (start, stop), most in zip((rows, columns), cells, strict=True)
    ]
    both = [matrix] if other is None else [matrix, other]
    if all(each.at_hand for each in both):
        values = _by_numpy(both, edges, pool)
    else:
        values = _on_devices(both, edges, pool)
    return Tile(values, *(edge.astype(np.int32) for edge in edges))


def asked(
    arguments: Mapping[str, Any], shape: Sequence[int]
) -> tuple[Span, Span, tuple[int, int], str]:
    """The window, the cells and the pool that a page asks for, checked."""
    spans = []
    for size, first, last in zip(shape, ("top", "left"), ("bottom", "right"), strict=True):
        stop = integer(arguments, last, size + 1, 1)
        spans.append((integer(arguments, first, stop), stop))
    cells = (
        integer(arguments, "rows", TILE + 1, 1),
        integer(arguments, "columns", TILE + 1, 1),
    )
    return spans[0], spans[1], cells, one_of(arguments, "pool", POOLS)


def even(span: int, most: int) -> int:
    """How many cells, at most `most`, make almost all of them equally long.

    Of two lengths half and half the longer cells have the larger maxima, and a border would be
    seen that is not there. `frontend/src/grid.ts` counts likewise.

    >>> even(400, 256), even(401, 256), even(10, 256)
    (200, 201, 10)
    """
    return -(-span // -(-span // most))


def whole(shape: Sequence[int]) -> dict[str, Any]:
    """The window, the cells and the pool with which a page first asks for a matrix."""
    height, width = shape
    window = {"top": 0, "left": 0, "bottom": height, "right": width}
    return {**window, "rows": even(height, TILE), "columns": even(width, TILE), "pool": "max"}


def _by_numpy(both: list[Matrix], edges: list[np.ndarray], pool: str) -> np.ndarray:
    down, across = edges
    span = (int(across[0]), int(across[-1]))
    found = []
    for top, bottom in zip(down[:-1].tolist(), down[1:].tolist(), strict=True):
        blocks = [matrix.read((top, bottom), span) for matrix in both]
        block = blocks[0] if len(blocks) == 1 else _apart(*blocks)
        if both[0].causal and span[1] > top + 1:
            above = np.arange(*span) > np.arange(top, bottom)[:, None]
            block = np.where(above, np.zeros((), block.dtype), block)
        if pool == "max":
            keys = np.maximum.reduceat(_keys(block).max(0), across[:-1] - across[0])
            found.append(_of_keys(keys, block.dtype))
        else:
            wide = block.astype(np.promote_types(_wide(block.dtype), np.float32))
            with np.errstate(invalid="ignore", over="ignore"):
                sums = np.add.reduceat(wide.sum(0, dtype=np.float64), across[:-1] - across[0])
            found.append(sums / ((bottom - top) * np.diff(across)))
    stacked = np.stack(found)
    return stacked.astype(np.float64 if _is_wide(both) else np.float32)


def _is_wide(both: list[Matrix]) -> bool:
    return any(each.array.dtype.itemsize == 8 for each in both)


def _wide(dtype: Any) -> Any:
    """f32, or f64 where an entry has 8 bytes."""
    return np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """b - a."""
    dtype = np.promote_types(_wide(a.dtype), _wide(b.dtype))
    a, b = a.astype(dtype), b.astype(dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = b - a
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    apart[same] = 0
    return apart


def _keys(block: np.ndarray) -> np.ndarray:
    """Whole numbers in the order of magnitude, NaN above all: a float's bits, the sign moved last.

    So a maximum of keys is that of magnitudes and knows the sign, of bf16 as fast as of f32.
    """
    if not jnp.issubdtype(block.dtype, jnp.floating):
        block = block.astype(_wide(block.dtype))
    bits = block.view(f"u{block.dtype.itemsize}")
    return (bits << 1) | (bits >> (8 * bits.itemsize - 1))


def _of_keys(keys: np.ndarray, dtype: Any) -> np.ndarray:
    """The numbers that have these keys."""
    bits = (keys >> 1) | (keys << (8 * keys.itemsize - 1))
    return bits.view(dtype if jnp.issubdtype(dtype, jnp.floating) else _wide(dtype))


def _on_devices(both: list[Matrix], edges: list[np.ndarray], pool: str) -> np.ndarray:
    if len(both) == 2:
        both = _alike(*both)
    wide = _is_wide(both)
    kind = np.float64 if wide else np.float32
    first = both[0]
    found: Any = np.zeros([len(edge) - 1 for edge in edges], kind)
    keys = found.view(np.uint64 if wide else np.uint32)
    with jax.enable_x64(wide):
        running = []
        for parts in zip(*(matrix.parts() for matrix in both), strict=True):
            part = parts[0]
            rest = part.data.shape[len(part.lead) :]
            sizes = (1, *rest) if len(rest) == 1 else (rest[0], math.prod(rest[1:]))
            members = [
                _members(edge - start, size)
                for edge, start, size in zip(edges, (part.top, part.left), sizes, strict=True)
            ]
            if any((each < 0).all() for each in members):
                continue
            corner = np.array([part.top, part.left], np.int32)
            data, lead = [each.data for each in parts], np.array(part.lead, np.int32)
            running.append(_pooled(data, lead, *members, corner, pool, first.causal))
        for cells in jax.device_get(running):  # all devices work before the first is waited for
            cells = cells[: found.shape[0], : found.shape[1]]
            if pool == "max":
                np.maximum(keys, cells, out=keys)
            else:
                found += cells
    if pool == "max":
        return _of_keys(keys, found.dtype)
    return found / np.outer(*map(np.diff, edges)).astype(kind)


def _alike(a: Matrix, b: Matrix) -> list[Matrix]:
    """Both laid out alike on accelerators; where they are not, both on one."""
    x, y = a.array, b.array
    if (
        isinstance(x, jax.Array)
        and isinstance(y, jax.Array)
        and a.lead == b.lead
        and x.sharding.is_equivalent_to(y.sharding, x.ndim)
    ):
        return [a, b]
    place = SingleDeviceSharding(next(iter((y if a.at_hand else x).devices())))
    return [Matrix(jax.device_put(each.array, place), each.lead, each.causal) for each in (a, b)]


def _members(edges: np.ndarray, size: int) -> np.ndarray:
    """Which of `size` entries each cell has, and -1 for none.

    Always 256 cells, of a power of two of entries each, so that few programs serve all windows.
    """
    widths = np.diff(edges)
    most = 2 ** max(0, int(widths.max()) - 1).bit_length()
    at = edges[:-1, None] + np.arange(most)
    known = (np.arange(most) < widths[:, None]) & (at >= 0) & (at < size)
    found = np.full((TILE, most), -1, np.int32)
    found[: len(widths)] = np.where(known, at, -1)
    return found


@functools.partial(jit, static_argnames=("pool", "causal"))
def _pooled(
    data: list[Any], lead: Any, rows: Any, columns: Any, corner: Any, pool: str, causal: bool
) -> Any:
    """Keys of the largest entry, or sums, of those that are here, of each cell.

    One row of cells after the other, so that little is made beside the array.
    """
    matrices = []
    for x in data:
        for k in range(lead.shape[0]):
            x = lax.dynamic_index_in_dim(x, lead[k], 0, keepdims=False)
        matrices.append(x.reshape((1, -1) if x.ndim == 1 else (x.shape[0], -1)))
    combine = jnp.max if pool == "max" else jnp.sum

    def row_of_cells(members: Any) -> Any:
        taken = [matrix[jnp.maximum(members, 0)] for matrix in matrices]
        a, *rest = (x.astype(jnp.float64 if x.dtype.itemsize == 8 else jnp.float32) for x in taken)
        x = a
        for b in rest:
            x = jnp.where((a == b) | (jnp.isnan(a) & jnp.isnan(b)), 0, b - a)
        if causal:
            across = jnp.arange(x.shape[1]) + corner[1]
            x = jnp.where(across > (members + corner[0])[:, None], 0, x)
        if pool == "max":
            kind = jnp.uint64 if x.dtype.itemsize == 8 else jnp.uint32
            bits = lax.bitcast_convert_type(x, kind)
            x = (bits << 1) | (bits >> (8 * x.dtype.itemsize - 1))
        x = combine(jnp.where(members[:, None] < 0, 0, x), axis=0)
        return combine(jnp.where(columns < 0, 0, x[jnp.maximum(columns, 0)]), axis=1)

    return lax.map(row_of_cells, rows)
