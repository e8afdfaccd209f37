"""What an array of any size holds: a picture of the whole of it, and statistics to trust.

The array stays on the devices that hold it (`cells.py`).
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int
from tqdm.auto import tqdm

from llama_jax.analysis import results
from llama_jax.analysis.cells import Term, as_matrix, on_host, over_cells, plain, total, unit
from llama_jax.base.modes import jit
from llama_jax.model import leaves_of, parameters, tap
from llama_jax.model.tap import AnyArray
from llama_jax.tables import Table

if TYPE_CHECKING:
    import pandas

    from llama_jax.llama import Llama

__all__ = ["Overview", "Statistics", "WeightStatistics", "overview", "weight_statistics"]

_Row = TypeVar("_Row", bound=Any)

BINS = 64
MOST_ROWS = 40  # a longer table shows equal weights of all layers in one line
CELLS = (64, 64)  # of sums that only become statistics


class Statistics(NamedTuple):
    """What an array holds. NaN and infinities are counted, and left out of everything else.

    `std` divides by the number of entries, `norm` is the Euclidean (Frobenius) norm; mean, minimum,
    maximum and std are NaN where nothing is finite. `name` is a parameter's.
    """

    name: str | None
    shape: tuple[int, ...]
    dtype: str
    mean: float
    std: float
    minimum: float
    maximum: float
    norm: float
    zeros: int
    nans: int
    infinities: int

    def __str__(self) -> str:
        counts = {"zeros": self.zeros, "NaN": self.nans, "infinite": self.infinities}
        shown = "".join(f", {count:,} {what}" for what, count in counts.items() if count)
        return (
            f"{' x '.join(map(str, self.shape)) or 'one'} {self.dtype}: mean {self.mean:.4g}, "
            f"std {self.std:.4g}, {self.minimum:.4g} to {self.maximum:.4g}{shown}"
        )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Overview:
    """A whole array in few cells; made by `overview`.

    `max_abs` and `mean` are its largest magnitude and its mean in each cell. `histogram` counts its
    finite entries between the 65 `edges`, each bin without its right edge but the last, as
    `numpy.histogram` does.
    """

    max_abs: Float[Array, "m n"]
    mean: Float[Array, "m n"]
    histogram: Int[np.ndarray, " 64"]
    edges: Float[np.ndarray, " 65"]
    statistics: Statistics

    def __repr__(self) -> str:
        return f"Overview({self.statistics})"

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        from treescope import figures

        drawn = {
            "max_abs": self._drawn(self.max_abs, jnp.max),
            "mean": self._drawn(self.mean, jnp.mean),
        }
        as_part = figures.treescope_part_from_display_object
        return results.node(self, drawn, path, lambda figure, path: as_part(figure))

    def _drawn(self, cells: Float[Array, "m n"], combine: Callable[..., Array]) -> Any:
        *down, across = self.statistics.shape or (1,)
        cuts = [_cuts(math.prod(down), cells.shape[0]), _cuts(across, cells.shape[1])]
        if cells.size > results.MOST_CELLS:  # the picture would leave out the middle
            most = math.isqrt(results.MOST_CELLS)
            cuts = [cut[_cuts(len(cut) - 1, most)] for cut in cuts]
            cells = tap.cells(tap.cells(cells, 0, most, combine), 1, most, combine)
        axes = ("row", "column")
        labels = {
            axis: [f"{start} to {stop - 1}" for start, stop in itertools.pairwise(cut)]
            for axis, cut in zip(axes, cuts, strict=True)
        }
        return results.picture(cells, axes, labels, around_zero=combine is jnp.mean)


def overview(array: AnyArray, shape: tuple[int, int] = (256, 256)) -> Overview:
    """The whole of an array in at most `shape` cells, a histogram, and statistics.

    `array` is a JAX or NumPy array of any shape but an empty one, of integers, booleans or real
    numbers. It is taken as a matrix: the last axis across, all others joined down; a vector is one
    row. Both axes are cut as `numpy.array_split` cuts. Computed in f32 (f64 where an entry has 8
    bytes), by one program for each shape and dtype, where the array is; one that lies across
    devices stays there. Raises `TypeError` for other dtypes and `ValueError` for an empty array.

    The maps are f32. A NaN makes its cell NaN in both, an infinity makes its cell's `max_abs`
    infinite. The largest `max_abs` is the largest magnitude, exactly (wider entries rounded to
    f32); the mean of `mean` weighted by the cells' sizes is the mean; the histogram counts every
    finite entry once, exactly between the edges that it gives. `std` and `norm` are right to 1e-6
    of themselves, the mean to 1e-6 of `std`. Subnormal entries count as zeros where the device
    flushes them, as XLA's CPU backend does.

    >>> weight = jnp.zeros((300, 1000)).at[123, 456].set(-7.0)
    >>> found = overview(weight)
    >>> found
    Overview(300 x 1000 float32: mean -2.333e-05, std 0.01278, -7 to 0, 299,999 zeros)
    >>> found.max_abs.shape, float(found.max_abs.max())
    ((256, 256), 7.0)
    """
    _check(array, shape)
    sums, counts, edges = on_host(_overview, array, shape=shape)
    return Overview(
        jnp.asarray(sums.max_abs),
        jnp.asarray(sums.mean),
        np.diff(counts.sum(1, dtype=np.int64), prepend=0, append=sums.finite.sum(dtype=np.int64)),
        edges.astype(np.float64),
        _statistics(None, array, sums),
    )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Rows(Table, Generic[_Row]):
    """Rows, each a NamedTuple with a name: iterable, found by name, and a data frame."""

    rows: tuple[_Row, ...]

    def __iter__(self) -> Iterator[_Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> _Row:
        for row in self.rows:
            if row.name == name:
                return row
        near = difflib.get_close_matches(name, [row.name for row in self.rows], n=3, cutoff=0.3)
        raise KeyError(f"There is no row {name!r}. Near: {', '.join(near)}.")

    def to_dataframe(self) -> pandas.DataFrame:
        """A line for each row, a column for each of its fields."""
        import pandas

        return pandas.DataFrame(list(self.rows))


class WeightStatistics(Rows[Statistics]):
    """`Statistics` of each weight, by name; prints as a table.

    A table of more than 40 rows shows equal weights of all layers in one line: `a … b` is from the
    smallest to the largest of them, minimum and maximum are of all, and counts are added up.
    """

    def _table(self) -> tuple[Sequence[str], Sequence[Sequence[str]], str]:
        kinds: dict[object, list[Statistics]] = collections.defaultdict(list)
        for row in self.rows:
            kind = re.sub(r"\.\d+\.", ".{i}.", str(row.name))
            folds = len(self.rows) > MOST_ROWS
            kinds[(kind, row.shape, row.dtype) if folds else row.name].append(row)
        size = sum(math.prod(row.shape) for row in self.rows)
        last = f"{size:,} entries in {len(self.rows)} weights"
        return Statistics._fields, [_line(rows) for rows in kinds.values()], last


def weight_statistics(llama: Llama) -> WeightStatistics:
    """Mean, deviation, range, norm and what is not finite, of every weight.

    By names of `llama_jax.model.parameters`, in their order. Weights of one shape and dtype share
    one program. Raises `ValueError` for an abstract Llama.

    >>> from llama_jax import Llama
    >>> found = weight_statistics(Llama.from_pretrained("cria"))
    >>> found["norm.weight"].shape, found["norm.weight"].nans
    ((192,), 0)
    """
    leaves_of(llama.model)
    named = parameters(llama.model)
    rows = []
    for name in tqdm(named, desc="weights", unit="array", leave=False, delay=1):
        array = named[name].get_value()
        rows.append(_statistics(name, array, on_host(_summed, array, shape=CELLS)))
    return WeightStatistics(tuple(rows))


class _Sums(NamedTuple):
    """Over cells, and over all; `total` and `squares` are of x / unit - centre for finite x."""

    finite: Int[Array, "m n"]
    zeros: Int[Array, "m n"]
    nans: Int[Array, "m n"]
    total: Float[Array, "m n"]
    squares: Float[Array, "m n"]
    low: Float[Array, ""]
    high: Float[Array, ""]
    unit: Float[Array, ""]
    centre: Float[Array, ""]
    max_abs: Float[Array, "m n"]
    mean: Float[Array, "m n"]


@functools.partial(jit, static_argnames="shape")
def _summed(array: Array, shape: tuple[int, int]) -> _Sums:
    x = as_matrix(array)

    def counted(part: Array) -> list[Term]:
        found = (jnp.isfinite(part), part == 0, jnp.isnan(part))
        return [plain(lax.add, each.astype(jnp.int32), 0) for each in found]

    def ranged(part: Array) -> list[Term]:
        finite = jnp.isfinite(part)
        return [
            plain(lax.min, jnp.where(finite, part, jnp.inf), jnp.inf),
            plain(lax.max, jnp.where(finite, part, -jnp.inf), -jnp.inf),
            plain(lax.add, jnp.where(finite, 0, part), 0),
            plain(lax.add, jnp.where(finite, 0, jnp.abs(part)), 0),
        ]

    finite, zeros, nans = over_cells(x, shape, counted)
    low, high, rest, rest_abs = over_cells(x, shape, ranged)
    largest = jnp.where(finite > 0, jnp.maximum(-low, high), 0)
    scale = unit(jnp.max(largest))

    # Around the median of some entries, so that neither a mean far from zero nor an outlier eats
    # the digits of all others.
    rows, columns = (-(-size // 32) for size in x.shape)
    some = x[::rows, ::columns]
    some = jnp.sort(jnp.where(jnp.isfinite(some), some / scale, 0), axis=None)
    centre = some[some.size // 2]

    def moments(part: Array) -> list[Term]:
        apart = jnp.where(jnp.isfinite(part), part / scale - centre, 0)
        return [total(apart), total(apart * apart)]

    sums, squares = over_cells(x, shape, moments)
    mean = (centre + sums / jnp.maximum(finite, 1)) * scale
    return _Sums(
        finite,
        zeros,
        nans,
        sums,
        squares,
        jnp.min(low),
        jnp.max(high),
        scale,
        centre,
        (largest + rest_abs).astype(jnp.float32),
        (mean + rest).astype(jnp.float32),
    )


@functools.partial(jit, static_argnames="shape")
def _overview(
    array: Array, shape: tuple[int, int]
) -> tuple[_Sums, Int[Array, "63 m"], Float[Array, " 65"]]:
    """The sums, how many finite entries lie below each inner edge in each row of cells, edges."""
    sums = _summed(array, shape)
    edges = _edges(sums.low, sums.high, sums.unit)

    def below(some: Float[Array, " 7"]) -> Int[Array, "7 m"]:
        # Tied to the edges, or XLA would cast the array once for all passes, which makes a copy.
        given, some = lax.optimization_barrier((array, some))

        def counted(part: Array) -> list[Term]:
            part = jnp.where(jnp.isfinite(part), part, jnp.inf)
            return [plain(lax.add, (part < edge).astype(jnp.int32), 0) for edge in some]

        return over_cells(as_matrix(given), (shape[0], 1), counted)[..., 0]

    # Comparing is exact and takes no memory. At seven edges a pass it takes as long as a scatter on
    # a CPU, which needs an index for each entry; a sort takes a hundred times longer.
    counts = lax.map(below, edges[1:-1].reshape(-1, 7))
    return sums, counts.reshape(BINS - 1, -1), edges


def _edges(
    low: Float[Array, ""], high: Float[Array, ""], scale: Float[Array, ""]
) -> Float[Array, " 65"]:
    """As `numpy.histogram` makes them: 0 to 1 of nothing, half a unit around a single value."""
    low, high = jnp.where(low > high, 0, low), jnp.where(low > high, 1, high)
    around = jnp.where(low == high, 0.5, 0)
    low, high = (low - around) / scale, (high + around) / scale  # high - low must not overflow
    edges = low + (high - low) * jnp.linspace(0, 1, BINS + 1, dtype=low.dtype)
    return edges.at[-1].set(high) * scale


def _statistics(name: str | None, array: AnyArray, sums: _Sums) -> Statistics:
    finite, zeros, nans = (int(counts.sum(dtype=np.int64)) for counts in sums[:3])
    mean = std = low = high = math.nan
    norm = 0.0
    if finite:
        scale, centre = float(sums.unit), float(sums.centre)
        shift = float(sums.total.sum(dtype=np.float64)) / finite
        square = float(sums.squares.sum(dtype=np.float64)) / finite
        variance = max(square - shift**2, 0.0)
        mean, std = (centre + shift) * scale, math.sqrt(variance) * scale
        norm = math.sqrt(finite * (variance + (centre + shift) ** 2)) * scale
        low, high = float(sums.low), float(sums.high)
    infinities = array.size - finite - nans
    shape, dtype = tuple(array.shape), array.dtype.name
    return Statistics(name, shape, dtype, mean, std, low, high, norm, zeros, nans, infinities)


def _check(array: Any, shape: tuple[int, int]) -> None:
    if not isinstance(array, jax.Array | np.ndarray):
        raise TypeError(
            f"overview takes a JAX or NumPy array, not {type(array).__name__}; a parameter's is "
            "parameter.get_value()."
        )
    real = (jnp.bool_, jnp.integer, jnp.floating)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in real):
        raise TypeError(
            f"overview of {array.dtype}: entries must be integers, booleans or real numbers; of "
            "complex ones take .real, .imag or abs()."
        )
    if not array.size:
        raise ValueError(f"overview of an array of shape {list(array.shape)}: it has no entries.")
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"shape is {shape}; it must be two positive numbers of cells.")


def _cuts(length: int, cells: int) -> Int[np.ndarray, " cells+1"]:
    """Where `tap.cells` cuts: cell i is from the i-th to the next."""
    cells = min(cells, length)
    size, longer = divmod(length, cells)
    return np.arange(cells + 1) * size + np.minimum(np.arange(cells + 1), longer)


def _line(rows: Sequence[Statistics]) -> list[str]:
    first = rows[0]
    name = str(first.name)
    if len(rows) > 1:
        name = re.sub(r"\.\d+\.", ".{i}.", name) + f" ({len(rows)})"

    def span(values: Sequence[float]) -> str:
        ends = [f"{value:.3g}" for value in (np.min(values), np.max(values))]
        return " … ".join(dict.fromkeys(ends))

    columns = dict(zip(Statistics._fields, zip(*rows, strict=True), strict=True))
    return [
        name,
        " x ".join(map(str, first.shape)),
        first.dtype,
        *(span(columns[field]) for field in ("mean", "std")),
        f"{np.min(columns['minimum']):.3g}",
        f"{np.max(columns['maximum']):.3g}",
        span(columns["norm"]),
        *(f"{sum(columns[field]):,}" for field in ("zeros", "nans", "infinities")),
    ]
