"""Weights: every matrix of a model in an atlas, and one of them down to single entries."""

from __future__ import annotations

import functools
import itertools
import math
import re
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from tqdm.auto import tqdm

from llama_jax import Llama
from llama_jax.base.modes import jit
from llama_jax.memory import readable
from llama_jax.model import parameters
from llama_loupe import image
from llama_loupe.arrays import as_matrix, place, pooled
from llama_loupe.selection import Selection
from llama_loupe.tiles import Matrix, asked, even, tile, whole
from llama_loupe.view import Question, View, ViewError

__all__ = ["Weights", "weights"]

ATLAS = 4_000_000  # bytes of all small pictures of a model, each with its histogram
LOOK = 900  # bytes of what comes with a picture
MOST_CELLS = 64  # along a side of a small picture
AT_ONCE = 8_000_000  # a model of so many entries on one CPU is looked at before it is drawn
MOST_SINGULAR = 8192 * 8192  # entries of a matrix whose singular values are computed
MOST_PARTS = 64  # of a sharded weight that are listed
BAD = 255  # the code of a cell that holds NaN or infinity

# In the order of the forward pass; any others stand behind.
OUTSIDE = ("embed_tokens.weight", "norm.weight", "lm_head.weight")
KINDS = (
    "input_layernorm",
    *(f"self_attn.{part}_proj" for part in "qkvo"),
    "post_attention_layernorm",
    *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
)
NUMBERS = ("mean", "std", "minimum", "maximum", "norm", "zeros", "nans", "infinities")


class Weights(View):
    """See `weights`."""

    name = "weights"

    def __init__(self, llama: Llama, selection: Selection | None) -> None:
        named = f" of {llama.name}" if llama.name else ""
        config = llama.config
        sizes = {"layer": config.num_hidden_layers, "head": config.num_attention_heads}
        super().__init__(f"Weights{named}: {llama!r}", selection, **sizes)
        self.llama = llama
        self.slots = _in_order(parameters(llama.model))
        self.abstract = not all(isinstance(x.get_value(), jax.Array) for x in self.slots.values())
        if self.abstract:
            self.name = "empty"  # type: ignore[misc]
        shapes = [slot.get_value().shape for slot in self.slots.values()]
        self.entries = sum(math.prod(shape) for shape in shapes)
        room = ATLAS / len(shapes) - LOOK
        self.side = min(MOST_CELLS, max(8, int(max(room, 0) ** 0.5)))
        self._looks: dict[str, tuple[Any, dict[str, Any]]] = {}

    def data(self) -> dict[str, Any]:
        if self.abstract:
            kept = (slot.get_value() for slot in self.slots.values())
            nbytes = sum(math.prod(array.shape) * array.dtype.itemsize for array in kept)
            return {
                "sentence": f"This Llama has shapes and no weights: {len(self.slots)} arrays of "
                f"{self.entries:,} entries, which would take {readable(nbytes)}. Open one "
                "that has some:",
                "code": 'loupe.weights(Llama.from_pretrained("cria"))',
            }
        config = self.llama.config
        arrays = {name: slot.get_value() for name, slot in self.slots.items()}
        return {
            "weights": [
                {"name": name, "shape": list(array.shape), "dtype": array.dtype.name}
                for name, array in arrays.items()
            ],
            "looks": [self.look(name) for name in self.slots] if self.is_small else [],
            "headDim": config.head_dim,
            "group": config.num_attention_heads // config.num_key_value_heads,
        }

    @functools.cached_property
    def is_small(self) -> bool:
        """Whether it is looked at in a moment: NumPy compiles nothing."""
        if self.entries > AT_ONCE:
            return False
        devices = set().union(*(slot.get_value().devices() for slot in self.slots.values()))
        return [device.platform for device in devices] == ["cpu"]

    def array(self, name: str) -> Any:
        """The weight that has that name now."""
        array = self.slots[name].get_value()
        if array.is_deleted():
            raise ViewError(f"{name} was donated to a computation, and is gone.")
        return array

    def look(self, name: str) -> dict[str, Any]:
        """A small picture of a weight, its statistics, its histogram, and where it lies."""
        array = self.array(name)
        if name in self._looks and self._looks[name][0]() is array:
            return self._looks[name][1]
        if not array.is_fully_addressable:
            raise ViewError(f"Parts of {name} are on other hosts, where they stay.")
        shape = as_matrix(array.shape)
        overview = pooled(array, tuple(even(size, self.side) for size in shape))  # type: ignore
        cells = overview.cells
        most = np.max(cells, where=np.isfinite(cells), initial=0)
        with np.errstate(invalid="ignore"):
            codes = np.ceil((BAD - 1) * np.sqrt(cells / (most or 1)))
        numbers = [getattr(overview.statistics, field) for field in NUMBERS]
        found = {
            "codes": np.where(np.isfinite(cells), codes, BAD).astype(np.uint8),
            "most": np.array([most], np.float32),
            "numbers": np.array(numbers, np.float64),
            "histogram": overview.histogram.astype(np.float64),
            "ends": np.array(overview.edges[[0, -1]], np.float64),
            "place": place(array),
            "parts": _parts(array),
        }
        self._looks[name] = weakref.ref(array), found
        return found

    def answer(self, what: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if what not in ("look", "tile", "singular_values") or self.abstract:
            return super().answer(what, arguments)
        name = arguments.get("name")
        if not isinstance(name, str) or name not in self.slots:
            raise ViewError(f"There is no weight {name!r}.")
        if what == "look":
            return self.look(name)
        if what == "singular_values":
            return {"values": self.singular_values(name)}
        matrix = Matrix(self.array(name))
        return tile(matrix, *asked(arguments, matrix.shape))._asdict()

    def singular_values(self, name: str) -> np.ndarray:
        """The largest first, in f32, on one device."""
        array = self.array(name)
        if array.ndim != 2:
            raise ViewError(f"{name} is a vector: it has no singular values beside its norm.")
        if array.size > MOST_SINGULAR:
            raise ViewError(
                f"{name} is {array.shape[0]:,} x {array.shape[1]:,}, {array.size:,} entries; "
                f"singular values are computed of at most {MOST_SINGULAR:,}."
            )
        alone = jax.device_put(array, SingleDeviceSharding(next(iter(array.devices()))))
        values = np.asarray(_singular_values(alone))
        if not np.isfinite(values).all():
            raise ViewError(f"{name} has no singular values: it holds NaN or infinity.")
        return values

    def questions(self) -> Iterator[Question]:
        if self.abstract:
            return
        layer = self.selection.layer or 0
        names = sorted(self.slots, key=lambda name: not name.startswith(f"layers.{layer}."))
        if not self.is_small:
            for name in tqdm(names, "Looking at weights", unit="weight"):
                yield "look", {"name": name}
        for name in names:
            shape = as_matrix(self.slots[name].get_value().shape)
            yield "tile", {"name": name, **whole(shape)}
        for name in names if self.is_small else ():  # of one layer: they take a while
            if name.startswith(f"layers.{layer}.") and min(self.slots[name].get_value().shape) > 1:
                yield "singular_values", {"name": name}

    def cells(self) -> image.Cells | None:
        """The small pictures, layers down, kinds across; of a large model there are none yet."""
        if self.abstract or not self.is_small:
            return None
        layers: dict[str, list[np.ndarray]] = {}
        for name, look in zip(self.slots, self._data["looks"], strict=True):
            layer = re.match(r"layers\.(\d+)\.", name)
            codes = look["codes"].astype(np.float64)
            codes[codes == BAD] = np.nan
            codes = codes[np.arange(self.side) * len(codes) // self.side]
            codes = codes[:, np.arange(self.side) * codes.shape[1] // self.side]
            layers.setdefault(layer[1] if layer else "", []).append((codes / (BAD - 1)) ** 2)
        across = max(map(len, layers.values()))
        side = self.side + 1
        values = np.zeros((len(layers) * side, across * side))
        mask = np.ones(values.shape, bool)
        for (i, row), j in itertools.product(enumerate(layers.values()), range(across)):
            if j < len(row):
                inside = np.s_[i * side : (i + 1) * side - 1, j * side : (j + 1) * side - 1]
                values[inside], mask[inside] = row[j], False
        return image.Cells(values, mask=mask, low=0.0, high=1.0)

    def text(self) -> str:
        if self.abstract:
            return f"{self.title}: nothing to show. {self._data['sentence']} {self._data['code']}"
        said = f"{self.title}, {len(self.slots)} weights, {self.entries:,} entries"
        if not self.is_small:
            return said
        bad = sum(look["numbers"][-2:].sum() for look in self._data["looks"])
        return f"{said}, {int(bad):,} of them not finite" if bad else f"{said}, all finite"


def weights(llama: Llama, *, selection: Selection | None = None) -> Weights:
    """Every weight of a model in an atlas; choose one and zoom to its single entries.

    Layers go down, kinds across; the embedding, the final norm and the head stand apart. A weight
    is a matrix `[out, in]`, as in the file; a norm's is one row. In the atlas a cell has the colour
    of the largest magnitude in it, so that an outlier shows wherever it is. The map of one weight
    shows in each cell the entry of the largest magnitude with its sign, or the mean; zoomed in, the
    exact entries, at the most 256 x 256 at a time. With it come mean, deviation, range, a
    histogram, which device holds which part and, when asked, the singular values of a matrix of at
    most 8,192 x 8,192 entries.

    A model of more than 8 million entries, or on accelerators, is drawn at once, and what is in
    sight is looked at while the page is open: about a second for each layer of an 8B model on two
    CPU cores. Everything is computed where the weight is.

    >>> weights(Llama.from_pretrained("cria"))
    Weights of cria: Llama(2,459,328 parameters in float32: ...), 38 weights, 2,459,328 entries,
    all finite
    """
    if not isinstance(llama, Llama):
        raise TypeError(
            f"weights takes a Llama, not {type(llama).__name__}: "
            'loupe.weights(Llama.from_pretrained("cria")).'
        )
    return Weights(llama, selection)


def _in_order(slots: Mapping[str, Any]) -> dict[str, Any]:
    """Layer by layer, each in the order of the forward pass; what is in none, first."""

    def key(name: str) -> tuple[int, int, str, bool]:
        match = re.match(r"layers\.(\d+)\.(.*)\.(weight|bias)$", name)
        if not match:
            return -1, OUTSIDE.index(name) if name in OUTSIDE else len(OUTSIDE), name, False
        known = match[2] in KINDS
        at = KINDS.index(match[2]) if known else len(KINDS)
        return int(match[1]), at, match[2], match[3] == "bias"

    return {name: slots[name] for name in sorted(slots, key=key)}


def _parts(array: jax.Array) -> list[dict[str, Any]]:
    """Rows and columns of each part of an array that is shared out, and who holds it."""
    holders: dict[tuple[int, ...], list[str]] = {}
    places: Mapping[Any, Any] = array.sharding.devices_indices_map(array.shape)
    for device, index in places.items():
        spans = [part.indices(n)[:2] for part, n in zip(index, array.shape, strict=True)]
        key = tuple(itertools.chain([0, 1] if array.ndim == 1 else [], *spans))
        holders.setdefault(key, []).append(f"{device.platform} {device.id}")
    if len(holders) == 1:
        return []
    listed = sorted(holders.items())[:MOST_PARTS]
    return [{"window": list(key), "devices": ", ".join(devices)} for key, devices in listed]


@jit
def _singular_values(array: Any) -> Any:
    return jnp.linalg.svd(array.astype(jnp.float32), compute_uv=False)
