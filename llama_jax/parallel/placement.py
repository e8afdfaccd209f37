"""Who holds what: of each device its heads, neurons, tokens, rows and bytes."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from llama_jax.config import LlamaConfig
from llama_jax.memory import readable
from llama_jax.parallel.mesh import RULES
from llama_jax.tables import Table

if TYPE_CHECKING:
    from jax.sharding import Mesh

__all__ = ["Placement", "bars", "placement"]

# Treescope's page is turned inside out in a dark theme, so these are chosen for a light one.
COLOURS = (
    "#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#eeca3b", "#b279a2", "#9d755d",
)  # fmt: skip
MOST_LINES = 64


@dataclasses.dataclass(frozen=True)
class Share:
    """What one device holds. Ranges are [first, stop) along each axis that is shared out."""

    device: str
    at: Mapping[str, int]  # its place on the mesh
    heads: tuple[int, int]
    kv_heads: tuple[int, int]
    neurons: tuple[int, int]
    vocabulary: tuple[int, int]
    width: tuple[int, int]
    nbytes: int


@dataclasses.dataclass(frozen=True, repr=False)
class Placement(Table):
    """Of each device what it holds of every layer; `rows` has an entry a device.

    >>> from llama_jax import Llama
    >>> Llama.abstract("llama-3.1-8b", mesh={}).placement.rows[0].kv_heads
    (0, 8)
    """

    mesh: Mapping[str, int]
    layers: int
    rows: tuple[Share, ...]

    def _table(self) -> tuple[Sequence[str], Sequence[Sequence[str]], str]:
        ranges = ("heads", "kv_heads", "neurons", "vocabulary", "width")
        varied = [
            name for name in ranges if len({getattr(row, name) for row in self.rows}) > 1
        ] or ["heads", "kv_heads"]
        axes = [axis for axis, size in self.mesh.items() if size > 1]
        rows = [
            [
                row.device,
                ", ".join(f"{axis} {row.at[axis]}" for axis in axes) or "all",
                *(_range(getattr(row, name)) for name in varied),
                readable(row.nbytes),
            ]
            for row in self.rows[:MOST_LINES]
        ]
        header = ("device", "place", *(name.replace("_", " ") for name in varied), "weights")
        total = sum(row.nbytes for row in self.rows)
        last = f"of each of {self.layers} layers; {readable(total)} on {len(self.rows)} devices"
        if len(self.rows) > MOST_LINES:
            last = f"… and {len(self.rows) - MOST_LINES} more\n{last}"
        return header, rows, last

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        """The table, and the mesh: devices of one colour hold the same heads."""
        from treescope import rendering_parts as parts

        colours: dict[tuple[int, int], str] = {}
        for row in self.rows:
            colours.setdefault(row.heads, COLOURS[len(colours) % len(COLOURS)])
        by_place = collections.defaultdict(list)
        for row in self.rows:
            rest = tuple(n for axis, n in row.at.items() if axis not in ("tensor", "group"))
            by_place[rest].append(row)
        lines: list[Any] = [parts.text(repr(self))]
        for rest, line in itertools.islice(by_place.items(), 16):
            names = [axis for axis in self.mesh if axis not in ("tensor", "group")]
            places = ", ".join(
                f"{axis} {n}" for axis, n in zip(names, rest, strict=True) if self.mesh[axis] > 1
            )
            cells = [
                parts.custom_style(
                    parts.text(f"{row.device.rsplit('_', 1)[-1]:>3} "),
                    f"background:{colours[row.heads]};color:white;margin-right:2px;",
                )
                for row in line[:MOST_LINES]
            ]
            note = parts.comment_color(parts.text(f"  {places}" if places else ""))
            lines.append(parts.siblings(*cells, note))
        lines.append(parts.comment_color(parts.text("devices of one colour hold the same heads")))
        return parts.on_separate_lines(lines)


def placement(config: LlamaConfig, mesh: Mesh | None, weights: Sequence[Any]) -> Placement:
    """Who holds what of these weights, arrays or shapes that say where their parts lie."""
    sizes = {
        "heads": ("N", config.num_attention_heads),
        "kv_heads": ("K", config.num_key_value_heads),
        "neurons": ("F", config.intermediate_size),
        "vocabulary": ("V", config.vocab_size),
        "width": ("W", config.hidden_size),
    }
    shape = {} if mesh is None else dict(mesh.shape)
    if mesh is None:
        devices: list[tuple[str, dict[str, int]]] = [(_device(weights), {})]
        nbytes = sum(math.prod(x.shape) * x.dtype.itemsize for x in weights)
    else:
        devices = [
            (str(device), dict(zip(mesh.axis_names, map(int, index), strict=True)))
            for index, device in np.ndenumerate(mesh.devices)
        ]
        parts = ((x.sharding.shard_shape(x.shape), x.dtype.itemsize) for x in weights)
        nbytes = sum(math.prod(part) * itemsize for part, itemsize in parts)
    rows = []
    for device, at in devices:
        spans = {name: _part(letter, n, at, shape) for name, (letter, n) in sizes.items()}
        rows.append(Share(device=device, at=at, nbytes=nbytes, **spans))
    return Placement(shape, config.num_hidden_layers, tuple(rows))


def bars(sizes: Mapping[str, int], limit: int, width: int = 48) -> Any:
    """A bar of coloured parts against a limit, for Treescope."""
    from treescope import rendering_parts as parts

    scale = width / max(limit, sum(sizes.values()))
    cells = [
        parts.custom_style(
            parts.text(" "),
            f"display:inline-block;height:1em;width:{size * scale:.2f}ch;"
            f"background:{COLOURS[i % len(COLOURS)]};",
        )
        for i, size in enumerate(sizes.values())
        if size * scale >= 0.05
    ]
    free = limit - sum(sizes.values())
    if free > 0:
        edge = "display:inline-block;height:1em;box-sizing:border-box;border:1px solid #bbb;"
        cells.append(parts.custom_style(parts.text(" "), f"{edge}width:{free * scale:.2f}ch;"))
    else:
        over = f" {readable(-free)} too much"
        cells.append(parts.error_color(parts.text(over)))
    return parts.siblings(*cells)


def _part(
    letter: str, size: int, at: Mapping[str, int], shape: Mapping[str, int]
) -> tuple[int, int]:
    number, count = 0, 1
    for axis in RULES[letter]:
        extent = shape.get(axis, 1)
        number, count = number * extent + at.get(axis, 0), count * extent
    return number * size // count, (number + 1) * size // count


def _range(span: tuple[int, int]) -> str:
    first, stop = span
    return str(first) if stop - first == 1 else f"{first}–{stop - 1}"


def _device(weights: Sequence[Any]) -> str:
    if weights and isinstance(weights[0], jax.Array):
        return ", ".join(map(str, weights[0].devices()))
    return str(jax.devices()[0])
