"""A large array in a tree: a picture of the whole of it, where Treescope shows its corners."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import treescope
from jax.sharding import AxisType, Mesh, NamedSharding, use_abstract_mesh
from treescope import figures
from treescope import rendering_parts as parts

from llama_jax.analysis import overview
from llama_jax.analysis.weights import Statistics

# What has at most so many entries, and none of its axes longer than 128, is drawn entry by entry.
EXACT = treescope.ArrayAutovisualizer(maximum_size=1000)
# Cells of a picture, about 6 KB of page, and how many down and across at most.
CELLS, DOWN, ACROSS = 2304, 48, 96
# Up to this size what lies in the host's memory is pooled there, by NumPy: XLA compiles for a
# second for each shape, and every prompt's captures have their own.
AT_ONCE = 1_000_000
MOST_KEYS = 1000  # Treescope fails on so many, when NumPy prints what it is left to print
NOT_FINITE = "rgb(255, 0, 255)"  # as Treescope marks it, on black


class Pooled(NamedTuple):
    """The largest magnitude in each cell, counts of finite entries between edges, statistics."""

    cells: np.ndarray
    histogram: np.ndarray
    edges: np.ndarray
    statistics: Statistics


def draw(value: Any, path: str | None) -> treescope.VisualizationFromTreescopePart | None:
    """An autovisualizer: of a large array of real numbers a picture of the whole, or Treescope's.

    An array is a matrix here: its last axis across, all others joined down in the order in which
    they lie, and a vector one row. A cell has the colour of the largest magnitude in it, so a
    single entry shows wherever it is. Arrays that are small, of integers, booleans or complex
    numbers, and keys are left to Treescope.
    """
    if is_array(value) and not value.size:
        return None
    mesh = value.mesh if isinstance(value, NamedSharding) else value
    if isinstance(mesh, Mesh) and any("<" in str(axis) for axis in mesh.axis_names):
        return None  # Treescope (0.1.10) would make markup of it
    if not is_large(value):
        return EXACT(value, path)
    summary, lines = contents(value)
    drawn = parts.RenderableAndLineAnnotations(
        folded(value, f": {summary}", lines), parts.build_copy_button(path)
    )
    return treescope.VisualizationFromTreescopePart(drawn)


def draw_unfolded(value: Any, path: str | None) -> treescope.VisualizationFromTreescopePart | None:
    """`draw` without the line that names a large array and folds its picture away."""
    if not is_large(value):
        return draw(value, path)
    summary, lines = contents(value)
    drawn = parts.on_separate_lines([comment(summary), *lines])
    return treescope.VisualizationFromTreescopePart(
        parts.RenderableAndLineAnnotations(drawn, parts.empty_part())
    )


def is_array(value: Any) -> bool:
    return isinstance(value, (jax.Array, np.ndarray))


def has_picture(value: Any) -> bool:
    """Whether `draw` draws it, for sure."""
    if isinstance(value, jax.core.Tracer) or not is_array(value) or value.size < 2:
        return False
    if isinstance(value, jax.Array):
        if value.is_deleted() or not value.is_fully_addressable:
            return False
    elif type(value) not in (np.ndarray, np.memmap):  # a masked array hides some of its entries
        return False
    return any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))


def is_large(value: Any) -> bool:
    """Whether Treescope would show corners of it, and `llama_jax.analysis.overview` the whole."""
    if not has_picture(value):
        return False
    exact = value.size <= EXACT.maximum_size and max(value.shape) <= EXACT.cutoff_size_per_axis
    real = jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize <= 8
    return real and not exact


def contents(value: Any) -> tuple[str, list[Any]]:
    """The statistics of a large array in a line, and the lines of its picture."""
    down, across = as_matrix(value.shape)
    rows = min(down, DOWN)
    columns = min(across, CELLS // rows, ACROSS)
    found = pooled(value, (rows, columns))
    # The pointer and the legend name a cell by the entries in it.
    entries = [ranges(rows, value.shape[:-1] or (1,)), ranges(columns, value.shape[-1:])]
    drawn = figures.treescope_part_from_display_object(picture(found, value.shape, entries))
    summary = str(found.statistics).partition(": ")[2]
    return summary, [drawn, *legend(found, value.ndim, entries), comment(place(value))]


def folded(value: Any, said: str, lines: list[Any]) -> Any:
    """`<jax.Array float32(64, 64)>`, with `said` about it; opened it shows the lines."""
    return parts.build_custom_foldable_tree_node(
        label=parts.abbreviation_color(parts.siblings("<", name(value), said)),
        contents=parts.siblings(
            parts.fold_condition(expanded=parts.indented_children(lines)),
            parts.abbreviation_color(parts.text(">")),
        ),
        expand_state=parts.ExpandState.WEAKLY_EXPANDED,
    ).renderable


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return math.prod(shape[:-1]), shape[-1]


def pooled(array: Any, shape: tuple[int, int]) -> Pooled:
    """Computed where the array lies; of an accelerator's, no more than cells comes to the host."""
    at_hand = isinstance(array, np.ndarray) or [x.platform for x in array.devices()] == ["cpu"]
    if at_hand and array.size <= AT_ONCE:
        return pooled_by_numpy(np.asarray(array), shape)
    found = overview(array, shape)
    return Pooled(np.asarray(found.max_abs), found.histogram, found.edges, found.statistics)


def pooled_by_numpy(array: np.ndarray, shape: tuple[int, int]) -> Pooled:
    """What `overview` finds, in f64."""
    wide = array.astype(np.float64).reshape(as_matrix(array.shape))
    starts = [cuts(*each)[:-1] for each in zip(wide.shape, shape, strict=True)]
    cells = np.maximum.reduceat(np.abs(wide), starts[0], axis=0)
    cells = np.maximum.reduceat(cells, starts[1], axis=1)
    finite = wide[np.isfinite(wide)]
    zeros, nans = int((wide == 0).sum()), int(np.isnan(wide).sum())
    mean = std = minimum = maximum = math.nan
    low, high, norm = 0.0, 1.0, 0.0
    if finite.size:
        low, high = minimum, maximum = float(finite.min()), float(finite.max())
        scale = max(-low, high) or 1.0  # squares must not overflow
        mean, std, norm = (
            float(of(finite / scale)) * scale for of in (np.mean, np.std, np.linalg.norm)
        )
    statistics = Statistics(
        name=None,
        shape=array.shape,
        dtype=array.dtype.name,
        mean=mean,
        std=std,
        minimum=minimum,
        maximum=maximum,
        norm=norm,
        zeros=zeros,
        nans=nans,
        infinities=wide.size - finite.size - nans,
    )
    apart = 0.5 if low == high else 0.0
    edges = np.linspace(low - apart, high + apart, 65)  # `np.histogram` refuses narrow ranges
    with np.errstate(over="ignore"):
        few = cells.astype(np.float32)
    return Pooled(few, np.histogram(finite, edges)[0], edges, statistics)


def cuts(length: int, cells: int) -> np.ndarray:
    """Where `numpy.array_split` cuts, which is where `overview` does: from each to the next."""
    size, longer = divmod(length, cells)
    at = np.arange(cells + 1)
    return at * size + np.minimum(at, longer)


def ranges(cells: int, axes: tuple[int, ...]) -> list[str]:
    """
    >>> ranges(2, (5,)), ranges(4, (2, 3))
    (['0 to 2', '3 to 4'], ['[0, 0] to [0, 1]', '[0, 2] to [1, 0]', '[1, 1]', '[1, 2]'])
    """
    at = cuts(math.prod(axes), cells)
    first, last = (
        [
            str([*map(int, index)]) if len(axes) > 1 else str(index[0])
            for index in zip(*each, strict=True)
        ]
        for each in (np.unravel_index(at[:-1], axes), np.unravel_index(at[1:] - 1, axes))
    )
    return [a if a == b else f"{a} to {b}" for a, b in zip(first, last, strict=True)]


def picture(found: Pooled, shape: tuple[int, ...], entries: list[list[str]]) -> Any:
    """Treescope's heatmap of the cells."""
    # Of the 24 bits of a number 8 are kept, which halves the page.
    few = (found.cells.view(np.uint32) & 0xFFFF0000).view(np.float32)
    joined = f" (axes 0 to {len(shape) - 2} joined)" if len(shape) > 2 else ""
    names = [f"{'x'.join(map(str, shape[:-1]))} rows{joined}", f"{shape[-1]} columns"]
    if len(shape) == 1:
        names = ["", f"{shape[0]} entries"]
    return treescope.render_array(
        np.where(np.isfinite(found.cells), few, np.nan),
        rows=[0],
        columns=[1],
        continuous=True,
        around_zero=False,
        vmin=0.0,
        vmax=largest(found) or 1.0,
        colormap=colours(),
        axis_labels=dict(enumerate(names)),
        axis_item_labels=dict(enumerate(entries)),
    )


def colours() -> list[tuple[int, int, int]]:
    """From zero up, without the darkest: black is what is not finite."""
    return treescope.default_sequential_colormap.get()[:-2]


def largest(found: Pooled) -> float:
    return float(np.max(found.cells, where=np.isfinite(found.cells), initial=0))


def legend(found: Pooled, rank: int, entries: list[list[str]]) -> list[Any]:
    """The colours with their numbers, how the entries are spread, and what is not finite."""

    def first(cells: np.ndarray) -> str:
        row, column = (entries[axis][at] for axis, at in enumerate(np.argwhere(cells)[0]))
        return f"in entries {column}" if rank == 1 else f"in rows {row}, columns {column}"

    top, gradient = largest(found), ", ".join(f"rgb{tuple(colour)}" for colour in colours())
    fill = f"background: linear-gradient(to right, {gradient}); outline: 1px solid silver"
    said = " largest magnitude in a cell"
    if top:
        said += f"; {top:.4g} is {first(found.cells == top)}"
    lines = [parts.siblings(number(0), block(128, 10, fill), number(top or 1), comment(said))]

    heights = 100 * found.histogram / max(found.histogram.max(), 1)
    heights = np.where(found.histogram > 0, np.maximum(heights, 8), 0)  # one entry is seen too
    steps = [
        f"{at * 100 / heights.size:g}% {100 - height:.0f}%"
        for i, height in enumerate(heights)
        for at in (i, i + 1)
    ]
    fill = (
        f"background: rgb(41, 66, 162); clip-path: polygon(0 100%, {', '.join(steps)}, 100% 100%)"
    )
    ends = (number(edge) for edge in found.edges[[0, -1]])
    lines.append(
        parts.siblings(next(ends), block(128, 24, fill), next(ends), comment(" entries by value"))
    )

    bad = ~np.isfinite(found.cells)
    if bad.any():
        fill = f"background: black; outline: 2px solid {NOT_FINITE}; outline-offset: -2px"
        said = f" not finite: {bad.sum()} cells, the first {first(bad)}"
        lines.append(parts.siblings(block(10, 10, fill), comment(said)))
    return lines


def comment(said: str) -> Any:
    return parts.comment_color(parts.text(said))


def number(value: float) -> Any:
    return parts.text(f"{value:.4g}")


def block(width: int, height: int, style: str) -> Any:
    size = f"display: inline-block; width: {width}px; height: {height}px; margin: 0 0.5ch"
    return parts.custom_style(parts.text(""), f"{size}; {style}")


def name(value: Any) -> Any:
    """Type, dtype and shape, without a look at the entries."""
    adapter = treescope.type_registries.lookup_ndarray_adapter(value)
    return adapter.get_array_summary(value, fast=True)


def place(value: Any) -> str:
    """Where an array is: its device, or how it is laid out on several."""
    if isinstance(value, np.ndarray):
        return "in the host's memory"
    sharding, devices = value.sharding, value.devices()
    if len(devices) == 1:
        (device,) = devices
        return f"on {device.platform} {device.id}"
    piece = f"{sharding.shard_shape(value.shape)} on each of {len(devices)} devices"
    if not isinstance(sharding, NamedSharding):
        return piece
    mesh = ", ".join(f"{axis} {size}" for axis, size in sharding.mesh.shape.items())
    return f"{sharding.spec} on the mesh {mesh}: {piece}"


def on_auto_mesh(node: Any, path: str | None, node_renderer: Any) -> Any:
    """A wrapper hook: Treescope (0.1.10) fails on a large array whose mesh has Explicit axes.

    It is given the array on the same devices as a mesh of Auto axes, for which no byte is moved.
    """
    if not isinstance(node, jax.Array) or isinstance(node, jax.core.Tracer) or node.is_deleted():
        return NotImplemented
    old = node.sharding
    if not isinstance(old, NamedSharding) or AxisType.Explicit not in old.mesh.axis_types:
        return NotImplemented
    names = old.mesh.axis_names
    mesh = Mesh(old.mesh.devices, names, axis_types=(AxisType.Auto,) * len(names))
    new = NamedSharding(mesh, old.spec, memory_kind=old.memory_kind)
    with use_abstract_mesh(mesh.abstract_mesh):
        return node_renderer(jax.device_put(node, new), path)


def are_keys(value: Any) -> bool:
    """Whether they are random keys, and so many that Treescope would show corners of them."""
    if not isinstance(value, jax.Array) or isinstance(value, jax.core.Tracer):
        return False
    return jnp.issubdtype(value.dtype, jax.dtypes.prng_key) and value.size >= MOST_KEYS


def naming(named: Callable[[Any], bool] = is_large) -> Callable[..., Any]:
    """A handler: arrays of which no picture is drawn, and that are to be `named`, are no more.

    Treescope (0.1.10) describes what it draws once more, and copies all of it for that. On many
    random keys it fails.
    """

    def handler(node: Any, path: str | None, subtree_renderer: Any) -> Any:
        if not named(node) and not are_keys(node):
            return NotImplemented
        line = parts.abbreviation_color(parts.siblings("<", name(node), ">"))
        return parts.RenderableAndLineAnnotations(line, parts.build_copy_button(path))

    return handler
