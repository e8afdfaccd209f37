"""What an analysis gives: an array of named axes that prints, draws and tabulates itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from llama_jax.text import token_labels

if TYPE_CHECKING:
    import pandas

__all__ = ["Result", "node", "picture"]

# A picture shows so many cells whole; of more, the edges.
MOST_CELLS = 40_000


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Result:
    """An array with a name for each axis, and what each index along an axis stands for.

    `coordinates` gives an axis its numbers or names where they are not 0, 1, 2, …; `pieces` are the
    texts of the prompt's tokens, where there is one prompt and a tokenizer; `title` says what the
    values are.

    >>> found = Result(jnp.eye(2), ("layer", "head"), title="scores")
    >>> found
    Result(scores: 2 layers x 2 heads, 0 to 1)
    >>> found.to_dataframe().value.tolist()
    [1.0, 0.0, 0.0, 1.0]
    """

    values: Float[Array, ...]
    axes: tuple[str, ...]
    coordinates: Mapping[str, Sequence[int | str]] = dataclasses.field(
        default_factory=dict, kw_only=True
    )
    pieces: Sequence[str] | None = dataclasses.field(default=None, kw_only=True)
    title: str = dataclasses.field(default="", kw_only=True)

    def along(self, axis: str) -> Sequence[int | str]:
        """What the indices along an axis stand for: layers, heads, positions, names."""
        size = self.values.shape[self.axes.index(axis)]
        return self.coordinates.get(axis, range(size))

    def to_dataframe(self) -> pandas.DataFrame:
        """A row for each entry of `values`, a column for each axis, and the value in the last."""
        import pandas

        index = pandas.MultiIndex.from_product(map(self.along, self.axes), names=self.axes)
        table = index.to_frame(index=False)
        if self.pieces is not None:
            for axis in ("position", "key"):
                if axis in self.axes:
                    texts = [self.pieces[at] for at in table[axis]]
                    table.insert(table.columns.get_loc(axis) + 1, f"{axis}_token", texts)
        table["value"] = np.asarray(self.values, np.float64).ravel()
        return table

    def _summary(self) -> str:
        """A line about the values, for people."""
        values = np.asarray(self.values, np.float64)
        finite = values[np.isfinite(values)]
        if not finite.size:
            return "no finite value"
        return f"{finite.min():.4g} to {finite.max():.4g}"

    def _drawn(self) -> Mapping[str, Any]:
        """What the picture shows: arguments of `picture`."""
        return {
            "values": self.values,
            "axes": self.axes,
            "labels": {axis: self._labels(axis) for axis in self.axes},
        }

    def _labels(self, axis: str) -> list[str]:
        found = self.along(axis)
        if self.pieces is None or axis not in ("position", "key"):
            return [str(item) for item in found]
        return [f"{at} {self.pieces[int(at)]}" for at in found]

    def __repr__(self) -> str:
        sizes = " x ".join(
            f"{size} {_plural(axis)}"
            for size, axis in zip(self.values.shape, self.axes, strict=True)
            if size > 1
        )
        title = f"{self.title}: " if self.title else ""
        return f"{type(self).__name__}({title}{sizes or 'one value'}, {self._summary()})"

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return node(self, fields, path, subtree_renderer, picture(**self._drawn()))


def node(
    owner: Any,
    children: Mapping[str, Any],
    path: str | None,
    subtree_renderer: Any,
    figure: Any = None,
) -> Any:
    """Treescope's form of a result: a line about it and a picture, with its parts folded below."""
    from treescope import figures
    from treescope import rendering_parts as parts

    entries = []
    for name, value in children.items():
        child_path = None if path is None else f"{path}.{name}"
        child = subtree_renderer(value, path=child_path)
        entries.append(parts.siblings_with_annotations(f"{name} = ", child, ","))
    if figure is not None:
        drawn = figures.treescope_part_from_display_object(figure)
        inside = parts.fold_condition(
            collapsed=parts.text("…"), expanded=parts.indented_children(entries)
        )
        folded = parts.build_custom_foldable_tree_node(
            label=parts.text("parts "), contents=inside, expand_state=parts.ExpandState.COLLAPSED
        ).renderable
        entries = [drawn, folded]
    name, _, rest = repr(owner).partition("(")
    return parts.build_foldable_tree_node_from_children(
        prefix=parts.siblings(parts.maybe_qualified_type_name(type(owner)), "("),
        children=entries,
        suffix=")",
        path=path,
        comma_separated=False,
        first_line_annotation=parts.comment_color(parts.text(f"  # {rest.removesuffix(')')}")),
        expand_state=parts.ExpandState.EXPANDED,
    )


def _plural(axis: str) -> str:
    """
    >>> _plural("head"), _plural("batch"), _plural("query"), _plural("to_head")
    ('heads', 'rows', 'queries', 'to_heads')
    """
    if axis == "batch":
        return "rows"
    return f"{axis[:-1]}ies" if axis.endswith("ry") else f"{axis}s"


def picture(
    values: Any,
    axes: Sequence[str],
    labels: Mapping[str, Sequence[str]],
    around_zero: bool = True,
    vmin: float | None = None,
    vmax: float | None = None,
) -> Any:
    """Treescope's heatmap: the last axis across, the one before it down, others beside each other.

    Axes of size 1 are left out. Colours span all finite values, so that none is cut off. Labels,
    which are shown for the cell under the pointer, may hold any text.
    """
    import treescope

    values = jnp.asarray(values)
    kept = [i for i, size in enumerate(values.shape) if size > 1] or [values.ndim - 1]
    names = {at: axes[i] for at, i in enumerate(kept)}
    shown = values.reshape([values.shape[i] for i in kept])
    last = shown.ndim - 1
    rows, columns = ([last - 1], [*range(last - 1), last]) if last else ([], [last])
    finite = jnp.where(jnp.isfinite(shown), jnp.abs(shown) if around_zero else shown, 0)
    return treescope.render_array(
        shown,
        rows=rows,
        columns=columns,
        truncate=shown.size > MOST_CELLS,
        around_zero=around_zero,
        vmin=None if around_zero else (float(finite.min()) if vmin is None else vmin),
        vmax=(float(finite.max()) or 1.0) if vmax is None else vmax,
        axis_labels={at: token_labels([name])[0] for at, name in names.items()},
        axis_item_labels={
            at: token_labels(labels[name]) for at, name in names.items() if name in labels
        },
        pixels_per_cell=min(20, max(3, 900 // shown.shape[-1])),
    )
