"""How Treescope draws a `Run`: a tree of points, layer by layer, with shapes and bytes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import jax

from llama_jax.memory import readable

if TYPE_CHECKING:
    from llama_jax.run import Run

__all__ = ["draw"]


def draw(run: Run, path: str | None, subtree_renderer: Any) -> Any:
    """Points are folded by layer; each one's copied path reads it from the run."""
    from treescope import rendering_parts as parts

    layers: dict[str, list[str]] = {}
    for name in run.captured:
        match = re.match(r"layers\.\d+", name)
        layers.setdefault(match[0] if match else "", []).append(name)

    def entry(label: str, value: Any, own_path: str | None) -> Any:
        return parts.siblings_with_annotations(
            f"{label} = ",
            subtree_renderer(value, path=own_path),
            ",",
            extra_annotations=[parts.comment_color(parts.text(f"  # {readable(_nbytes(value))}"))],
        )

    def point(name: str) -> Any:
        own_path = None if path is None else f"{path}[{name!r}]"
        return entry(name, run.captured[name], own_path)

    def attribute(name: str) -> Any:
        return entry(name, getattr(run, name), None if path is None else f"{path}.{name}")

    children = [attribute("tokens"), attribute("lengths"), attribute("logits")]
    for layer, names in layers.items():
        if not layer:
            children.extend(point(name) for name in names if name != "logits")
            continue
        size = sum(_nbytes(run.captured[name]) for name in names)
        children.append(
            parts.build_foldable_tree_node_from_children(
                prefix=parts.text(f"{layer}: "),
                children=[point(name) for name in names],
                suffix="",
                comma_separated=False,
                first_line_annotation=parts.comment_color(
                    parts.text(f"  # {len(names)} points, {readable(size)}")
                ),
            )
        )
    return parts.build_foldable_tree_node_from_children(
        prefix=parts.siblings(parts.maybe_qualified_type_name(type(run)), "("),
        children=children,
        suffix=")",
        path=path,
        comma_separated=False,
        first_line_annotation=parts.comment_color(parts.text(f"  # {run!r}")),
    )


def _nbytes(value: Any) -> int:
    return sum(part.nbytes for part in jax.tree.leaves(value))
