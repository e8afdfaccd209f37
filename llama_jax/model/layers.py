"""A list of layers that folds when it is drawn: equal layers are shown once."""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from typing import Any

import jax
from flax import nnx

__all__ = ["Layers"]


class Layers(nnx.List):
    """`nnx.List` that Treescope draws with paths that evaluate (`model.layers[3]`), folded.

    Of layers in a row whose types, shapes and dtypes are equal only the first is drawn.
    """

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        from treescope import rendering_parts as parts

        children, start = [], 0
        for _, run in itertools.groupby(self, key=_structure):
            stop = start + len(list(run))
            child_path = None if path is None else f"{path}[{start}]"
            children.append(subtree_renderer(self[start], path=child_path))
            if stop - start > 1:
                rest = parts.comment_color(parts.text(_rest(path, start, stop)))
                children.append(parts.fold_condition(collapsed=parts.text(", …"), expanded=rest))
            start = stop
        return parts.build_foldable_tree_node_from_children(
            prefix=parts.siblings(parts.maybe_qualified_type_name(type(self)), "(["),
            children=children,
            suffix=parts.text("])"),
            path=path,
            comma_separated=False,
            first_line_annotation=parts.comment_color(parts.text(f"  # {len(self)} layers")),
        )


def _structure(layer: nnx.Module) -> Hashable:
    leaves, structure = jax.tree.flatten(layer)
    return structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)


def _rest(path: str | None, start: int, stop: int) -> str:
    where = path or "layers"
    if stop - start == 2:
        return f"# {where}[{start + 1}]: the same types and shapes"
    return f"# {where}[{start + 1}] to {where}[{stop - 1}]: the same types and shapes"
