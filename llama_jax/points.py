"""The vocabulary: the name, the axes and the TransformerLens alias of every tensor inside a Llama.

Axes: B batch, T query position, S key position, D model, N query heads, K key/value heads,
H head size, F feed-forward, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
import re
from collections.abc import Iterable
from typing import Any

from llama_jax.base.choice import integer
from llama_jax.config import LlamaConfig

__all__ = [
    "POINTS",
    "Point",
    "PointError",
    "Points",
    "axes_inside",
    "is_pair",
    "point_of",
    "resolve",
    "resolve_weights",
]


class PointError(KeyError):
    """A name that no tensor of this model has."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclasses.dataclass(frozen=True)
class Point:
    """One kind of tensor; `{i}` in a name stands for the number of the layer.

    `alias` is TransformerLens' name, `modules` are the modules whose output it is. `wide` ones are
    f32 where the activations are narrower.
    """

    name: str
    axes: str
    alias: str | None = None
    modules: tuple[str, ...] = ()
    wide: bool = False

    @property
    def in_layer(self) -> bool:
        return self.name.startswith("layers.")

    @property
    def local(self) -> str:
        """The name inside its layer (`self_attn.pattern`), the same in every layer."""
        return self.name.removeprefix("layers.{i}.")

    def shape(self, config: LlamaConfig, batch: int, queries: int, keys: int) -> tuple[int, ...]:
        """The sizes of its axes in a forward pass over `queries` positions that sees `keys`."""
        sizes = {
            "B": batch,
            "T": queries,
            "S": keys,
            "D": config.hidden_size,
            "N": config.num_attention_heads,
            "K": config.num_key_value_heads,
            "H": config.head_dim,
            "F": config.intermediate_size,
            "V": config.vocab_size,
            "1": 1,
        }
        return tuple(sizes[axis] for axis in self.axes.split())


def _norm(name: str, alias: str) -> tuple[Point, ...]:
    return (
        Point(f"{name}.scale", "B T 1", f"{alias}.hook_scale", wide=True),
        Point(f"{name}.normalized", "B T D", f"{alias}.hook_normalized"),
        Point(f"{name}.out", "B T D", modules=(name,)),
    )


def _in_layer(name: str, axes: str, alias: str, *modules: str, wide: bool = False) -> Point:
    paths = tuple(f"layers.{{i}}.{module}".rstrip(".") for module in modules)
    return Point(f"layers.{{i}}.{name}", axes, f"blocks.{{i}}.{alias}", paths, wide)


# In the order in which the forward pass makes them.
POINTS: tuple[Point, ...] = (
    Point("embed", "B T D", "hook_embed", ("embed_tokens",)),
    _in_layer("resid_pre", "B T D", "hook_resid_pre"),
    *_norm("layers.{i}.input_layernorm", "blocks.{i}.ln1"),
    _in_layer("self_attn.q", "B T N H", "attn.hook_q", "self_attn.q_proj"),
    _in_layer("self_attn.k", "B T K H", "attn.hook_k", "self_attn.k_proj"),
    _in_layer("self_attn.v", "B T K H", "attn.hook_v", "self_attn.v_proj"),
    _in_layer("self_attn.q_rot", "B T N H", "attn.hook_rot_q"),
    _in_layer("self_attn.k_rot", "B T K H", "attn.hook_rot_k"),
    _in_layer("self_attn.scores", "B N T S", "attn.hook_attn_scores", wide=True),
    _in_layer("self_attn.pattern", "B N T S", "attn.hook_pattern"),
    _in_layer("self_attn.z", "B T N H", "attn.hook_z"),
    _in_layer("self_attn.head_out", "B T N D", "attn.hook_result"),
    _in_layer("self_attn.out", "B T D", "hook_attn_out", "self_attn", "self_attn.o_proj"),
    _in_layer("resid_mid", "B T D", "hook_resid_mid"),
    *_norm("layers.{i}.post_attention_layernorm", "blocks.{i}.ln2"),
    _in_layer("mlp.gate", "B T F", "mlp.hook_pre", "mlp.gate_proj"),
    _in_layer("mlp.up", "B T F", "mlp.hook_pre_linear", "mlp.up_proj"),
    _in_layer("mlp.act", "B T F", "mlp.hook_post"),
    _in_layer("mlp.out", "B T D", "hook_mlp_out", "mlp", "mlp.down_proj"),
    _in_layer("resid_post", "B T D", "hook_resid_post", ""),
    *_norm("norm", "ln_final"),
    Point("logits", "B T V", modules=("lm_head",), wide=True),
)

# What may be asked for: a name, a (name, layer) pair, or several of these.
Points = str | tuple[str, int] | Iterable["str | tuple[str, int]"]


def resolve(points: Points, num_layers: int) -> tuple[str, ...]:
    """The full names that `points` means in a model of `num_layers` layers, in forward order.

    A name matches by dotted suffix (`"pattern"`, `"self_attn.out"`), as a glob
    (`"layers.*.self_attn.pattern"`), by its TransformerLens alias, or by the path of the module
    that gives it (`"model.layers[3].mlp.up_proj"`, also without `model.`); a pair `(name, layer)`
    narrows it to one layer, counted from the end where negative. A bare string is one item; a tuple
    whose second item is an integer is one pair; any other iterable holds several items. Raises
    `PointError` for a name that matches nothing, listing the nearest ones.

    >>> resolve(("pattern", -1), num_layers=4)
    ('layers.3.self_attn.pattern',)
    >>> resolve(["embed", "blocks.0.hook_resid_post"], num_layers=4)
    ('embed', 'layers.0.resid_post')
    >>> resolve("llama.model.layers[2].self_attn.q_proj", num_layers=4)
    ('layers.2.self_attn.q',)
    """
    wanted: set[str] = set()
    for item in _items(points):
        wanted.update(_match(item, num_layers))
    return tuple(name for name in _names(num_layers) if name in wanted)


def _items(points: Points) -> list[str | tuple[str, int]]:
    single = isinstance(points, str) or is_pair(points) or not isinstance(points, Iterable)
    items: list[Any] = [points] if single else list(points)
    for item in items:
        if not (isinstance(item, str) or is_pair(item)):
            raise PointError(
                f"{item!r} is not a point: give a name such as 'resid_post', a pair such as "
                "('pattern', 3), or several of these."
            )
    return items


def is_pair(item: object) -> bool:
    """Whether it is a `(name, layer)` pair, one item where a tuple of names would be several."""
    return (
        isinstance(item, tuple)
        and len(item) == 2
        and isinstance(item[0], str)
        and integer(item[1]) is not None
    )


@functools.lru_cache(maxsize=8)
def _names(num_layers: int) -> dict[str, tuple[str, ...]]:
    """Every full name -> its other full names, in forward order."""
    first = next(n for n, point in enumerate(POINTS) if point.in_layer)
    last = max(n for n, point in enumerate(POINTS) if point.in_layer)
    in_order = [(point, 0) for point in POINTS[:first]]
    in_order += [(point, i) for i in range(num_layers) for point in POINTS[first : last + 1]]
    in_order += [(point, 0) for point in POINTS[last + 1 :]]
    return {
        point.name.format(i=i): tuple(
            other.format(i=i) for other in (point.alias, *point.modules) if other is not None
        )
        for point, i in in_order
    }


@functools.lru_cache(maxsize=1024)
def _match(item: str | tuple[str, int], num_layers: int) -> tuple[str, ...]:
    written, layer = (item, None) if isinstance(item, str) else item
    pattern = _dotted(written)
    if not re.search(r"[^\W\d_]|\*|\?", pattern):  # "3" would mean all that ends in it
        raise PointError(
            f"{written!r} is not the name of a point. A layer is an integer beside a name, as in "
            "('pattern', 3)."
        )
    names = _names(num_layers)
    found = [
        name
        for name, others in names.items()
        if any(_fits(pattern, candidate) for candidate in (name, *others))
    ]
    if not found:
        raise PointError(_unknown(written, names, num_layers))
    if layer is None:
        return tuple(found)
    if not -num_layers <= layer < num_layers:
        raise PointError(
            f"({written!r}, {layer}) asks for layer {layer}; this model has {num_layers} layers, "
            f"0 to {num_layers - 1} (or -{num_layers} to -1 from the end)."
        )
    prefix = f"layers.{layer % num_layers}."
    inside = tuple(name for name in found if name.startswith(prefix))
    if not inside:
        raise PointError(f"({written!r}, {layer}): {found[0]!r} is not in layer {layer}.")
    return inside


def _dotted(path: str) -> str:
    """A path as Python writes it, `llama.model.layers[3].mlp`, as the names here: `layers.3.mlp`.

    >>> _dotted("model.layers[3].self_attn.o_proj"), _dotted(".norm"), _dotted("pattern")
    ('layers.3.self_attn.o_proj', 'norm', 'pattern')
    """
    path = re.sub(r"""^.*\[['"](.+)['"]\]$""", r"\1", path)  # run['layers.3.mlp.out']
    path = re.sub(r"\[(\d+)\]", r".\1", path).removeprefix(".")
    path = re.sub(r"\.(weight|bias)(\.value|\[\.\.\.\]|\.get_value\(\))$", r".\1", path)
    return re.sub(r"^(\w+\.)*?(?=(embed_tokens|layers|norm|lm_head)(\.|$))", "", path)


def _fits(pattern: str, name: str) -> bool:
    """`*` in a whole name crosses dots; in a suffix it stands for one part."""
    if fnmatch.fnmatchcase(name, pattern):
        return True
    parts, wanted = name.split("."), pattern.split(".")
    return len(wanted) <= len(parts) and all(
        fnmatch.fnmatchcase(part, want)
        for part, want in zip(parts[-len(wanted) :], wanted, strict=True)
    )


@functools.lru_cache(maxsize=8192)
def point_of(name: str) -> Point:
    """The kind of the tensor with that full name.

    >>> point_of("layers.3.self_attn.pattern").axes
    'B N T S'
    """
    return _KINDS[re.sub(r"^layers\.\d+\.", "layers.{i}.", name)]


_KINDS = {point.name: point for point in POINTS}
_INSIDE = {point.local: point.axes for point in POINTS}


def axes_inside(name: str) -> str:
    """The axes of a point by its name inside its layer, or by its full name outside of layers.

    >>> axes_inside("self_attn.pattern"), axes_inside("embed")
    ('B N T S', 'B T D')
    """
    return _INSIDE[name]


def resolve_weights(item: object, names: Iterable[str]) -> tuple[str, ...]:
    """Those of the weights' `names` that `item` means: a path, suffix, glob or pair; maybe none.

    >>> resolve_weights("model.layers[1].mlp.up_proj.weight", ["layers.1.mlp.up_proj.weight"])
    ('layers.1.mlp.up_proj.weight',)
    """
    pair: Any = item if is_pair(item) else (item, None)
    pattern, layer = pair
    if not isinstance(pattern, str) or not _dotted(pattern).endswith(("weight", "bias")):
        return ()
    found = tuple(name for name in names if _fits(_dotted(pattern), name))
    if layer is None:
        return found
    numbers = sorted({int(name.split(".")[1]) for name in found if name.startswith("layers.")})
    chosen = f"layers.{layer if layer >= 0 else numbers[-1] + 1 + layer}." if numbers else ""
    return tuple(name for name in found if chosen and name.startswith(chosen))


def _unknown(pattern: str, names: dict[str, tuple[str, ...]], num_layers: int) -> str:
    module, _, kind = _dotted(pattern).rpartition(".")
    if module and kind in ("weight", "bias"):
        return f"{pattern!r} is a {kind}, not a point; {module!r} means what comes out there."
    candidates = list(names) + [other for others in names.values() for other in others]
    suffixes = {name.split(".", 2)[2] for name in names if name.startswith("layers.")}
    suffixes |= {name.rsplit(".", 1)[1] for name in names if "." in name}
    near = difflib.get_close_matches(pattern, sorted(suffixes) + candidates, n=3, cutoff=0.5)
    hint = f" Near: {', '.join(near)}." if near else ""
    if pattern.startswith(("layers.", "blocks.")):
        hint += f" This model has layers 0 to {num_layers - 1}."
    return f"No point is called {pattern!r}.{hint} llama_jax.points.POINTS lists all of them."
