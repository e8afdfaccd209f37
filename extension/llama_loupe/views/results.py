"""What an analysis found: maps, bars and numbers of named axes, and tables."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from llama_jax.analysis import (
    SVD,
    AttentionMap,
    Attribution,
    Decomposition,
    Factored,
    HeadScores,
    IntegratedGradients,
    Overview,
    PatchSweep,
    Result,
)
from llama_jax.analysis.cells import on_host
from llama_jax.base.modes import jit
from llama_jax.memory import readable
from llama_jax.tables import Table
from llama_loupe import image, tiles
from llama_loupe.arrays import cuts
from llama_loupe.selection import Selection
from llama_loupe.view import Question, View, ViewError, f32, integer
from llama_loupe.views.rows import bounded, widened

__all__ = ["Axis", "Chart", "Charts", "Reading", "Sheet", "result"]

WHOLE = 65_536  # numbers of a chart that is sent as it is
STRONGEST = 20
MOST_ROWS = 2_000  # of a table that are sent
LARGEST_PRODUCT = 4096  # rows or columns of a product of factors that is made


class Axis(NamedTuple):
    """What the indices along an axis stand for; `lasts` where each stands for several."""

    names: Sequence[int | str]
    lasts: Sequence[int | str] | None = None


class Chart(NamedTuple):
    """One array to look at. `value` says what a number of it is, `note` what that means."""

    name: str
    values: Any
    axes: tuple[str, ...]
    value: str = "value"
    diverging: bool = False  # also where the numbers have one sign only
    scale: str = "linear"
    limits: tuple[float, float] | None = None
    line: bool = False
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What a result holds, whatever its class."""

    title: str
    said: str
    charts: Sequence[Chart]
    axes: Mapping[str, Axis]
    facts: Sequence[tuple[str, str]] = ()
    pieces: Sequence[str] | None = None


class Charts(View):
    """See `result`."""

    name = "result"

    def __init__(
        self, reading: Reading, selection: Selection | None, row: int | None = None
    ) -> None:
        super().__init__(reading.title, selection, row)
        self.reading = reading
        self.charts = [chart for chart in reading.charts if math.prod(_shape(chart))]
        if not self.charts:
            self.name = "empty"  # type: ignore[misc]

    def data(self) -> dict[str, Any]:
        if not self.charts:
            return {"sentence": "There is not a single number in it.", "code": None}
        reading = self.reading
        used = dict.fromkeys(axis for chart in self.charts for axis in chart.axes)
        return {
            "facts": reading.facts,
            "pieces": None if reading.pieces is None else bounded(reading.pieces),
            "axes": {name: _axis(name, reading.axes[name]) for name in used},
            "charts": [_chart(chart) for chart in self.charts],
        }

    def answer(self, what: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if what != "tile" or not self.charts:
            return super().answer(what, arguments)
        chart = self.charts[integer(arguments, "chart", len(self.charts))]
        at = arguments.get("at")
        shape = _shape(chart)
        if not isinstance(at, list | tuple) or len(at) != len(shape):
            raise ViewError(f"at is {at!r}; it must be {len(shape)} integers.")
        start = tuple(integer({"at": x}, "at", size) for x, size in zip(at, shape, strict=True))
        matrix = _matrix(chart, start)
        return tiles.tile(matrix, *tiles.asked(arguments, matrix.shape))._asdict()

    def questions(self) -> Iterator[Question]:
        for number, chart in enumerate(self.charts):
            shape = _shape(chart)
            if math.prod(shape) > WHOLE:
                others = [1 if axis in _shown(shape) else size for axis, size in enumerate(shape)]
                for at in np.ndindex(*others):
                    yield "tile", self._slice(number, at)

    def _slice(self, number: int, at: tuple[int, ...]) -> dict[str, Any]:
        """What a page asks for a slice in one tile."""
        return {
            "chart": number,
            "at": list(at),
            **tiles.whole(_matrix(self.charts[number], at).shape),
        }

    def cells(self) -> image.Cells | None:
        if not self.charts or math.prod(_shape(self.charts[0])) < 2:
            return None
        chart, drawn = self.charts[0], self._data["charts"][0]
        best = drawn["top"]["at"]
        at = tuple(best[0].tolist()) if len(best) else (0,) * len(chart.axes)
        shown = _shown(_shape(chart))
        at = tuple(0 if axis in shown else index for axis, index in enumerate(at))
        tile = self.answer("tile", self._slice(0, at))
        low, high = chart.limits or (None, None)
        return image.Cells(tile["values"], drawn["diverging"], low=low, high=high)

    def text(self) -> str:
        return self.reading.said


class Sheet(View):
    """A table; see `result`."""

    name = "result"

    def __init__(self, found: Any, selection: Selection | None) -> None:
        self.rows: list[Any] = list(found)
        super().__init__(f"{type(found).__name__}: {len(self.rows):,} rows", selection)
        self.found = found

    def data(self) -> dict[str, Any]:
        rows = self.rows[:MOST_ROWS]
        fields = rows[0]._fields if rows else ()
        columns = [_column(name, [getattr(row, name) for row in rows]) for name in fields]
        return {"facts": (), "charts": (), "columns": columns, "count": len(self.rows)}

    def text(self) -> str:
        return repr(self.found)


def result(found: Any, *, selection: Selection | None = None) -> View:
    """A picture of what an analysis gave: `Result` and its subclasses, scores, circuits, tables.

    - any `Result`, such as `PatchSweep`, `Attribution` and `IntegratedGradients`: the last two axes
      of more than one entry down and across, a choice for each other axis; one axis as bars; one
      value as a number;
    - `HeadScores`: layers down, heads across, a choice of the score;
    - `Factored` and `SVD`: the singular values as a line, and matrices of at most 4,096 rows and
      columns;
    - `Overview`: its maps and its histogram;
    - `WeightStatistics`, `Comparison` and other tables of rows: a table to sort, of which 200 rows
      are shown and the first 2,000 are sent.

    Axes named batch, position, layer and head, and components such as `3.mlp`, set the selection
    and follow it, by what their indices stand for. The 20 entries of the largest magnitude, of all
    axes, stand in a list. Numbers are f32 and exact; of arrays of more than 65,536 numbers a page
    gets at most 256 x 256 cells at a time, each with the entry of the largest magnitude in it or
    their mean. Raises `TypeError` for anything else.

    >>> from llama_jax import Llama, analysis
    >>> result(analysis.head_scores(Llama.from_pretrained("cria")))
    HeadScores(4 layers x 8 heads; highest: previous_token 0.5 ...
    """
    if isinstance(found, Table) and _is_rows(found):
        return Sheet(found, selection)
    return Charts(_read(found), selection)


@functools.singledispatch
def _read(found: Any) -> Reading:
    raise TypeError(
        f"result takes what an analysis gives, such as a Result, HeadScores or a circuit, not "
        f"{type(found).__name__}."
    )


@_read.register
def _(found: Result) -> Reading:
    title = found.title or type(found).__name__
    return _of_result(
        found, title, [Chart(title, found.values, found.axes, found.title or "value")]
    )


@_read.register
def _(found: PatchSweep) -> Reading:
    axes = _heads(found.axes, found.point)
    effect = "What the patch changes: the metric with it, less that of the corrupted run."
    share = "The effect, where clean less corrupted is 1: at 1 a patch brings all of it back."
    charts = [
        Chart("effect", found.effect, axes, "effect", diverging=True, note=effect),
        Chart("restored", found.restored, axes, "restored", diverging=True, note=share),
        Chart("values", found.values, axes, "metric", note="The metric with the patch."),
    ]
    facts = [
        ("metric", found.metric),
        ("clean", exact(found.clean)),
        ("corrupted", exact(found.corrupted)),
    ]
    if found.estimated:
        facts.append(("how", "estimated from one gradient"))
    return _of_result(found, f"Patching {found.point}", charts, facts)


@_read.register
def _(found: Attribution) -> Reading:
    name = f"part of {found.target}"
    charts = [Chart(name, found.values, found.axes, "part", diverging=True)]
    explained = {"to explain": found.logit, "not explained": found.remainder}
    facts = []
    for what, values in explained.items():
        if values.size == 1:
            facts.append((what, exact(values.item())))
        else:
            charts.append(Chart(what, values, found.axes[: values.ndim], found.target))
    return _of_result(found, f"Direct attribution of {found.target}", charts, facts)


@_read.register
def _(found: IntegratedGradients) -> Reading:
    axes = _heads(found.axes, found.point)
    charts = [
        Chart("sum of each position", found.by_position.values, axes[:-1], "part", diverging=True),
        Chart("every entry", found.values, axes, "part", diverging=True),
    ]
    facts = []
    if found.metric.size == 1:
        whole = {"metric": found.metric, "baseline": found.baseline, "not explained": found.error}
        facts = [(what, exact(value.item())) for what, value in whole.items()]
    return _of_result(found, f"Integrated gradients at {found.point}", charts, facts)


@_read.register
def _(found: AttentionMap) -> Reading:
    chart = Chart("attention", found.values, found.axes, "attention", False, "sqrt", (0.0, 1.0))
    reading = _of_result(found, f"Attention of layer {found.layer}, head {found.head}", [chart])
    edges = {"position": found.query_edges, "key": found.key_edges}
    axes = {name: Axis(cut[:-1].tolist(), (cut[1:] - 1).tolist()) for name, cut in edges.items()}
    return dataclasses.replace(reading, axes=axes)


@_read.register
def _(found: Decomposition) -> Reading:
    charts = [
        Chart("length", found.norms.values, found.axes[:3], "length"),
        Chart("every entry", found.values, found.axes),
    ]
    return _of_result(found, "Parts of the residual stream", charts)


@_read.register
def _(found: HeadScores) -> Reading:
    charts = [
        Chart(
            score.replace("_", " "),
            found[score].values,
            found.axes,
            "nats" if score == "entropy" else "share of attention",
        )
        for score in found
    ]
    return Reading(
        title="What heads look at",
        said=repr(found),
        charts=charts,
        axes=_axes(found["entropy"]),
    )


@_read.register
def _(found: Factored) -> Reading:
    rows, columns = found.shape
    s = found.svd().S
    charts = [Chart("singular values", s, ("singular value",), "singular value", line=True)]
    facts = [
        ("shape", f"{rows:,} x {columns:,}"),
        ("rank", f"at most {len(s)}"),
        ("Frobenius norm", exact(found.norm())),
    ]
    if rows == columns:
        facts.append(("copying score", _copying(found)))
    if max(rows, columns) <= LARGEST_PRODUCT:
        charts.append(Chart("matrix", found.matrix(), ("row", "column"), "entry", diverging=True))
    else:
        facts.append(("matrix", f"not made: it would take {readable(4 * rows * columns)}"))
    return _of_charts(
        f"Circuit {found.name}" if found.name else "Product", repr(found), charts, facts
    )


@_read.register
def _(found: SVD) -> Reading:
    (rows, _), columns = found.U.shape, found.Vh.shape[1]
    charts = [
        Chart("singular values", found.S, ("singular value",), "singular value", line=True),
        Chart("U, left vectors", found.U, ("row", "singular value"), "entry", diverging=True),
        Chart("Vh, right vectors", found.Vh, ("singular value", "column"), "entry", diverging=True),
    ]
    said = f"SVD({rows} x {columns}, {len(found.S)} singular values)"
    return _of_charts("Singular value decomposition", said, charts)


@_read.register
def _(found: Overview) -> Reading:
    told = found.statistics
    *down, across = told.shape or (1,)
    edges = [
        cuts(size, count)
        for size, count in zip((math.prod(down), across), found.max_abs.shape, strict=True)
    ]
    ends = [f"{edge:.4g}".replace("-", "−") for edge in found.edges]
    axes = {
        name: Axis(cut[:-1].tolist(), (cut[1:] - 1).tolist())
        for name, cut in zip(("row", "column"), edges, strict=True)
    } | {"bin": Axis(ends[:-1], ends[1:])}
    charts = [
        Chart("largest magnitude", found.max_abs, ("row", "column"), "largest magnitude"),
        Chart("mean", found.mean, ("row", "column"), "mean", diverging=True),
        Chart("histogram", found.histogram, ("bin",), "entries"),
    ]
    names = ("mean", "std", "minimum", "maximum", "norm", "zeros", "nans", "infinities")
    facts = [("dtype", told.dtype), *((name, _cell(getattr(told, name))) for name in names)]
    title = f"Overview: {told.name or ' x '.join(map(str, told.shape)) or 'one number'}"
    return Reading(title=title, said=repr(found), charts=charts, axes=axes, facts=facts)


def _of_result(
    found: Result,
    title: str,
    charts: Sequence[Chart],
    facts: Sequence[tuple[str, str]] = (),
) -> Reading:
    axes = _axes(found)
    if "head" in axes:
        axes["key/value head"] = axes["head"]
    return Reading(
        title=title, said=repr(found), charts=charts, axes=axes, facts=facts, pieces=found.pieces
    )


def _of_charts(
    title: str, said: str, charts: Sequence[Chart], facts: Sequence[tuple[str, str]] = ()
) -> Reading:
    axes = {
        name: Axis(range(size))
        for chart in charts
        for name, size in zip(chart.axes, _shape(chart), strict=True)
    }
    return Reading(title=title, said=said, charts=charts, axes=axes, facts=facts)


def _axes(found: Result) -> dict[str, Axis]:
    return {name: Axis(found.along(name)) for name in found.axes}


def _heads(axes: Sequence[str], point: str) -> tuple[str, ...]:
    """A key/value head is no query head, and does not choose one."""
    shared = point.rpartition("self_attn.")[2] in ("k", "v", "k_rot")
    return tuple("key/value head" if shared and axis == "head" else axis for axis in axes)


def _copying(found: Factored) -> str:
    try:
        with np.errstate(invalid="ignore"):
            return exact(found.copying())
    except np.linalg.LinAlgError:
        return "nan"


def exact(value: Any) -> str:
    """The shortest decimal that is this f32 and no other."""
    return str(np.float32(value)).replace("-", "−")


def _shape(chart: Chart) -> tuple[int, ...]:
    return tuple(np.shape(chart.values))


def _shown(shape: Sequence[int]) -> tuple[int | None, int | None]:
    """The axes down and across."""
    long = [axis for axis, size in enumerate(shape) if size > 1]
    return (long[-2] if len(long) > 1 else None), (long[-1] if long else None)


def _matrix(chart: Chart, at: tuple[int, ...]) -> tiles.Matrix:
    """The slice of a chart that is drawn."""
    down, _ = _shown(_shape(chart))
    return tiles.Matrix(
        chart.values.reshape(-1) if down is None else chart.values,
        () if down is None else at[:down],
    )


def _axis(name: str, axis: Axis) -> dict[str, Any]:
    called = "row" if name == "batch" else name.replace("_", " ")
    return {
        "name": name,
        "plural": f"{called[:-1]}ies" if called.endswith("ry") else f"{called}s",
        "size": len(axis.names),
        "names": None if list(axis.names) == list(range(len(axis.names))) else _sent(axis.names),
        "lasts": None if axis.lasts is None else _sent(axis.lasts),
    }


def _sent(names: Sequence[int | str]) -> Any:
    numbers = all(isinstance(name, int | np.integer) for name in names)
    return np.array(names, np.int32) if numbers else [str(name) for name in names]


def _chart(chart: Chart) -> dict[str, Any]:
    shape = _shape(chart)
    whole = math.prod(shape) <= WHOLE
    if whole:
        values = f32(jax.device_get(chart.values))
        order = np.argsort(-np.where(np.isfinite(values), np.abs(values), -1), None, "stable")
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        flat, best = order[:STRONGEST], values.reshape(-1)[order[:STRONGEST]]
    else:
        values = None
        rows, inner, best, low, high = on_host(_surveyed, chart.values, count=STRONGEST)
        flat = rows.astype(np.int64) * shape[-1] + inner
    known = np.isfinite(best)
    at = np.stack(np.unravel_index(flat[known], shape), -1) if shape else np.zeros((1, 0))
    return {
        "name": chart.name,
        "value": chart.value,
        "note": chart.note,
        "axes": chart.axes,
        "diverging": chart.limits is None and bool(chart.diverging or low < 0 < high),
        "scale": chart.scale,
        "limits": chart.limits,
        "line": chart.line,
        "values": values,
        "top": {"at": at.astype(np.int32), "values": f32(best[known])},
    }


@functools.partial(jit, static_argnames="count")
def _surveyed(values: Any, count: int) -> tuple[Any, ...]:
    """Where in which row the entries of the largest magnitude are, and the limits of all."""
    values = widened(values)
    finite = jnp.isfinite(values)
    size = jnp.where(finite, jnp.abs(values), -1).reshape(-1, values.shape[-1])
    inside = min(count, size.shape[1])
    largest, at = lax.top_k(size, inside)
    signed = jnp.take_along_axis(values.reshape(size.shape), at, axis=1)
    _, which = lax.top_k(largest.reshape(-1), min(count, largest.size))
    ends = (
        jnp.min(jnp.where(finite, values, jnp.inf)),
        jnp.max(jnp.where(finite, values, -jnp.inf)),
    )
    return which // inside, at.reshape(-1)[which], signed.reshape(-1)[which], *ends


def _is_rows(found: Any) -> bool:
    return hasattr(found, "__iter__") and all(hasattr(row, "_fields") for row in found)


def _column(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """Texts, and numbers to sort by where all that is there are numbers."""
    numbers = all(value is None or isinstance(value, int | float) for value in values)
    order = [math.nan if value is None else float(value) for value in values] if numbers else None
    return {
        "name": name,
        "texts": [_cell(value, " x " if name == "shape" else ", ") for value in values],
        "order": None if order is None else np.array(order, np.float64),
    }


def _cell(value: Any, between: str = ", ") -> str:
    """
    >>> _cell((3, 4)), _cell(1234), _cell(0.1234567), _cell(None)
    ('3, 4', '1,234', '0.123457', '')
    """
    if isinstance(value, tuple):
        return between.join(map(str, value))
    if value is None or isinstance(value, str | bool):
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int | np.integer) else f"{value:.6g}".replace("-", "−")
