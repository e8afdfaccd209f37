"""The vocabulary: the name, the axes and the TransformerLens alias of every tensor inside a Llama.

Axes: B batch, T query position, S key position, D model, N query heads, K key/value heads,
H head size, F feed-forward, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
import numbers
from collections.abc import Iterable
from typing import Any

__all__ = ["POINTS", "Point", "PointError", "Points", "resolve"]


class PointError(KeyError):
    """A name that no tensor of this model has."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclasses.dataclass(frozen=True)
class Point:
    """One kind of tensor; `{i}` in a name stands for the number of the layer."""

    name: str
    axes: str
    alias: str | None = None

    @property
    def in_layer(self) -> bool:
        return self.name.startswith("layers.")

    @property
    def local(self) -> str:
        """The name inside its layer (`self_attn.pattern`), the same in every layer."""
        return self.name.removeprefix("layers.{i}.")


def _norm(name: str, alias: str) -> tuple[Point, ...]:
    return (
        Point(f"{name}.scale", "B T 1", f"{alias}.hook_scale"),
        Point(f"{name}.normalized", "B T D", f"{alias}.hook_normalized"),
        Point(f"{name}.out", "B T D"),
    )


def _in_layer(name: str, axes: str, alias: str) -> Point:
    return Point(f"layers.{{i}}.{name}", axes, f"blocks.{{i}}.{alias}")


# In the order in which the forward pass makes them.
POINTS: tuple[Point, ...] = (
    Point("embed", "B T D", "hook_embed"),
    _in_layer("resid_pre", "B T D", "hook_resid_pre"),
    *_norm("layers.{i}.input_layernorm", "blocks.{i}.ln1"),
    _in_layer("self_attn.q", "B T N H", "attn.hook_q"),
    _in_layer("self_attn.k", "B T K H", "attn.hook_k"),
    _in_layer("self_attn.v", "B T K H", "attn.hook_v"),
    _in_layer("self_attn.q_rot", "B T N H", "attn.hook_rot_q"),
    _in_layer("self_attn.k_rot", "B T K H", "attn.hook_rot_k"),
    _in_layer("self_attn.scores", "B N T S", "attn.hook_attn_scores"),
    _in_layer("self_attn.pattern", "B N T S", "attn.hook_pattern"),
    _in_layer("self_attn.z", "B T N H", "attn.hook_z"),
    _in_layer("self_attn.head_out", "B T N D", "attn.hook_result"),
    _in_layer("self_attn.out", "B T D", "hook_attn_out"),
    _in_layer("resid_mid", "B T D", "hook_resid_mid"),
    *_norm("layers.{i}.post_attention_layernorm", "blocks.{i}.ln2"),
    _in_layer("mlp.gate", "B T F", "mlp.hook_pre"),
    _in_layer("mlp.up", "B T F", "mlp.hook_pre_linear"),
    _in_layer("mlp.act", "B T F", "mlp.hook_post"),
    _in_layer("mlp.out", "B T D", "hook_mlp_out"),
    _in_layer("resid_post", "B T D", "hook_resid_post"),
    *_norm("norm", "ln_final"),
    Point("logits", "B T V"),
)

# What may be asked for: a name, a (name, layer) pair, or several of these.
Points = str | tuple[str, int] | Iterable["str | tuple[str, int]"]


def resolve(points: Points, num_layers: int) -> tuple[str, ...]:
    """The full names that `points` means in a model of `num_layers` layers, in forward order.

    A name matches by dotted suffix (`"pattern"`, `"self_attn.out"`), as a glob
    (`"layers.*.self_attn.pattern"`) or by its TransformerLens alias; a pair `(name, layer)` narrows
    it to one layer, counted from the end where negative. A bare string is one item; a tuple whose
    second item is an integer is one pair; any other iterable holds several items. Raises
    `PointError` for a name that matches nothing, listing the nearest ones.

    >>> resolve(("pattern", -1), num_layers=4)
    ('layers.3.self_attn.pattern',)
    >>> resolve(["embed", "blocks.0.hook_resid_post"], num_layers=4)
    ('embed', 'layers.0.resid_post')
    """
    wanted: set[str] = set()
    for item in _items(points):
        wanted.update(_match(item, num_layers))
    return tuple(name for name in _names(num_layers) if name in wanted)


def _items(points: Points) -> list[str | tuple[str, int]]:
    alone = isinstance(points, str) or _is_pair(points)
    items: list[Any] = [points] if alone else list(points)
    for item in items:
        if not (isinstance(item, str) or _is_pair(item)):
            raise PointError(
                f"{item!r} is not a point: give a name such as 'resid_post', a pair such as "
                "('pattern', 3), or several of these."
            )
    return items


def _is_pair(item: object) -> bool:
    return (
        isinstance(item, tuple)
        and len(item) == 2
        and isinstance(item[0], str)
        and isinstance(item[1], numbers.Integral)
        and not isinstance(item[1], bool)
    )


@functools.lru_cache(maxsize=8)
def _names(num_layers: int) -> dict[str, str | None]:
    """Every full name -> its full alias, in forward order."""
    first = next(n for n, point in enumerate(POINTS) if point.in_layer)
    last = max(n for n, point in enumerate(POINTS) if point.in_layer)
    names = {point.name: point.alias for point in POINTS[:first]}
    for i in range(num_layers):
        for point in POINTS[first : last + 1]:
            names[point.name.format(i=i)] = point.alias and point.alias.format(i=i)
    return names | {point.name: point.alias for point in POINTS[last + 1 :]}


@functools.lru_cache(maxsize=1024)
def _match(item: str | tuple[str, int], num_layers: int) -> tuple[str, ...]:
    pattern, layer = (item, None) if isinstance(item, str) else item
    names = _names(num_layers)
    found = [
        name
        for name, alias in names.items()
        if _fits(pattern, name) or (alias is not None and _fits(pattern, alias))
    ]
    if not found:
        raise PointError(_unknown(pattern, names, num_layers))
    if layer is None:
        return tuple(found)
    if not -num_layers <= layer < num_layers:
        raise PointError(
            f"({pattern!r}, {layer}) asks for layer {layer}; this model has {num_layers} layers, "
            f"0 to {num_layers - 1} (or -{num_layers} to -1 from the end)."
        )
    prefix = f"layers.{layer % num_layers}."
    inside = tuple(name for name in found if name.startswith(prefix))
    if not inside:
        raise PointError(f"({pattern!r}, {layer}): {found[0]!r} is not in layer {layer}.")
    return inside


def _fits(pattern: str, name: str) -> bool:
    """`*` in a whole name crosses dots; in a suffix it stands for one part."""
    if fnmatch.fnmatchcase(name, pattern):
        return True
    parts, wanted = name.split("."), pattern.split(".")
    return len(wanted) <= len(parts) and all(
        fnmatch.fnmatchcase(part, want)
        for part, want in zip(parts[-len(wanted) :], wanted, strict=True)
    )


def _unknown(pattern: str, names: dict[str, str | None], num_layers: int) -> str:
    candidates = list(names) + [alias for alias in names.values() if alias]
    suffixes = {name.split(".", 2)[2] for name in names if name.startswith("layers.")}
    suffixes |= {name.rsplit(".", 1)[1] for name in names if "." in name}
    near = difflib.get_close_matches(pattern, sorted(suffixes) + candidates, n=3, cutoff=0.5)
    hint = f" Near: {', '.join(near)}." if near else ""
    if pattern.startswith(("layers.", "blocks.")):
        hint += f" This model has layers 0 to {num_layers - 1}."
    return f"No point is called {pattern!r}.{hint} llama_jax.points.POINTS lists all of them."
