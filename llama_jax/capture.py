"""What to keep of a forward pass: `Capture`, what it will take, and finding it afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from llama_jax.base.choice import Choice, Read, chosen, integer, read
from llama_jax.config import LlamaConfig
from llama_jax.dtypes import as_dtype
from llama_jax.model.tap import Edit, Reduce, Take, Tap, treats_positions_alike
from llama_jax.points import Point, PointError, Points, is_pair, point_of, resolve

__all__ = [
    "Capture",
    "CaptureError",
    "Captured",
    "Captures",
    "Heads",
    "Positions",
    "heads_of",
    "of_prompt",
    "positions_of",
    "rows_of",
    "takes",
    "taps_for",
    "wanted",
]

Heads = Choice
Positions = Choice


class CaptureError(ValueError):
    """A `Capture` that its point, or its prompt, cannot give."""


@dataclasses.dataclass(frozen=True)
class Capture:
    """A point, and how much of it to keep. What is left out never leaves the compiled program.

    `point` takes every form of name that `llama_jax.points.resolve` takes. `heads` chooses query
    heads (key/value heads of `k`, `v`, `k_rot`), negative ones from the last. `positions` chooses
    positions T of each row, in the order given, negative ones from the row's own end; T becomes
    their number. Both take an integer, several, a slice, or a boolean mask as long as the axis (of
    positions the prompt's T). `dtype` is what the result is stored in.

    `reduce` is done last, in the program:

    - `"last"`: the last position of each row; T becomes 1. `positions` are then left alone.
    - `"norm"`: the Euclidean norm over the last axis, in at least f32; that axis goes.
    - `("max_pool", n)`, `("mean_pool", n)`: the maximum or mean over cells of positions, T and,
      in a map, S, of which at most n are made of each, cut as `numpy.array_split` cuts. Padding
      and masked scores do not count; zeros above a pattern's diagonal do.
    - `("topk", k)`: the k largest entries of the last axis and their indices, a `TopK`.

    >>> from llama_jax import Llama
    >>> llama = Llama.from_pretrained("cria")
    >>> norms = llama.run("Once upon a time", Capture("resid_post", reduce="norm"))
    >>> norms["resid_post", 0].shape
    (1, 5)
    """

    point: Points
    positions: Positions | None = None
    heads: Heads | None = None
    reduce: Reduce = None
    dtype: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.point, str) and np.iterable(self.point):
            object.__setattr__(self, "point", tuple(self.point))
        for name in ("positions", "heads"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _read(getattr(self, name), name))
        object.__setattr__(self, "reduce", _reduce(self.reduce))
        if self.dtype is not None:
            object.__setattr__(self, "dtype", as_dtype(self.dtype))
        if self.reduce == "last" and self.positions is not None:
            raise CaptureError("positions= and reduce='last' both choose positions: give one.")

    @property
    def whole(self) -> bool:
        """Whether it keeps all heads and positions as they are, in whatever dtype."""
        return self.positions is None and self.heads is None and self.reduce is None

    @property
    def while_writing(self) -> Capture:
        """The part that can be done while positions come one by one."""
        if treats_positions_alike(self.reduce):
            return dataclasses.replace(self, positions=None)
        return dataclasses.replace(self, positions=None, reduce=None, dtype=None)

    @property
    def plain(self) -> bool:
        """Whether it is the tensor itself."""
        return self.whole and self.dtype is None


# What `capture=` takes: points, Captures, or several of either.
Captures = Points | Capture | Iterable["str | tuple[str, int] | Capture"]


def wanted(captures: Captures, num_layers: int) -> dict[str, Capture]:
    """Full name -> what to keep of it, in forward order; of two for one point the later counts."""
    single = isinstance(captures, str | Capture) or is_pair(captures) or not np.iterable(captures)
    items: list[Any] = [captures] if single else list(captures)  # type: ignore[arg-type]
    found: dict[str, Capture] = {}
    for item in items:
        capture = item if isinstance(item, Capture) else Capture(item)
        found.update(dict.fromkeys(resolve(capture.point, num_layers), capture))
    return {name: found[name] for name in resolve("*", num_layers) if name in found}


def takes(
    captures: Mapping[str, Capture], config: LlamaConfig, lengths: Int[np.ndarray, " B"]
) -> dict[str, Take]:
    """What the compiled program does for each of `captures`. Raises `CaptureError`."""
    made: dict[tuple[int, str], Take] = {}
    for name, capture in captures.items():
        key = (id(capture), point_of(name).name)
        if key not in made:
            made[key] = _take(name, capture, config, lengths)
    return {name: made[id(c), point_of(name).name] for name, c in captures.items()}


def taps_for(
    captures: Mapping[str, Capture],
    changes: Mapping[str, tuple[Edit, ...]],
    config: LlamaConfig,
    lengths: Int[np.ndarray, " B"],
) -> dict[str, Tap]:
    """What the compiled program is given: a `Tap` for every point that is captured or changed."""
    kept = takes(captures, config, lengths)
    names = [*kept, *(name for name in changes if name not in kept)]
    return {name: Tap(changes.get(name, ()), kept.get(name)) for name in names}


class Captured:
    """What was captured, by name: mixed into `Run`, `Generation`, `Step` and `Gradients`."""

    config: LlamaConfig
    captured: Mapping[str, Any]

    def __getitem__(self, points: Points) -> Any:
        """The captured array of that name, or `{full name: array}` where several match.

        Takes every form of name that `capture` takes; a `Capture` with `("topk", k)` gives a
        `TopK`. Raises `PointError` (a `KeyError`) for a name that no tensor has, and for one that
        was not captured.
        """
        names = resolve(points, self.config.num_hidden_layers)
        found = {name: self.captured[name] for name in names if name in self.captured}
        if not found:
            has = ", ".join(self.names[:6]) + (", …" if len(self.names) > 6 else "")
            raise PointError(
                f"{points!r} was not captured. This {type(self).__name__.lower()} holds "
                f"{has or 'no points'}; ask for more with capture={points!r}."
            )
        return next(iter(found.values())) if len(found) == 1 else found

    def stack(self, points: Points) -> Array:
        """A point of every layer that holds it as one array `[L, ...]`, whatever the depth.

        The layers are in the order of `names`; of one layer it is `[1, ...]`. Raises `PointError`
        where the name means points of several kinds, and `ValueError` where their shapes differ.

        >>> from llama_jax import Llama
        >>> llama = Llama.from_pretrained("cria")
        >>> llama.run("Once upon a time", "pattern").stack("pattern").shape
        (4, 1, 8, 5, 5)
        """
        found = self[points]
        if not isinstance(found, dict):
            found = {"": found}
        kinds = {point_of(name).name for name in found if name}
        shapes = {tuple(map(np.shape, jax.tree.leaves(array))) for array in found.values()}
        if len(kinds) > 1:
            raise PointError(f"{points!r} means {', '.join(sorted(kinds))}: stack one of them.")
        if len(shapes) > 1:
            raise ValueError(f"{points!r} has other shapes in other layers: {sorted(shapes)}.")
        return jax.tree.map(lambda *parts: jnp.stack(parts), *found.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Full names of what was captured, in the order of the forward pass."""
        return tuple(self.captured)


def positions_of(
    positions: Positions, lengths: Int[np.ndarray, " B"], what: str, more: int = 0
) -> Int[np.ndarray, "B P"]:
    """The positions chosen of each row, from its start; `what` begins the message of an error.

    Negative ones count from the row's end; others may lie in the `more` positions behind it.
    """
    found = _read(positions, f"{what}: positions")
    if isinstance(found, slice):
        rows = [list(range(*found.indices(int(length)))) for length in lengths]
        if len({len(row) for row in rows}) > 1 or not rows[0]:
            counts = [len(row) for row in rows]
            raise CaptureError(
                f"{what}: {found} chooses {counts} positions of rows of {lengths.tolist()} "
                "tokens; choose equally many, and at least one, of each."
            )
        return np.array(rows, np.int32)
    if isinstance(found[0], bool):
        found = _chosen(found, "position", int(lengths.max()), what)
    numbers = np.array(found, np.int64)
    for row, length in enumerate(lengths):
        bad = numbers[(numbers < -length) | (numbers >= length + more)]
        if len(bad):
            raise CaptureError(
                f"{what}: position {bad[0]} of row {row}, which has {length} tokens: 0 to "
                f"{length + more - 1}, or -{length} to -1 from its end."
            )
    return np.where(numbers < 0, numbers + lengths[:, None], numbers).astype(np.int32)


def rows_of(tokens: Int[np.ndarray, "B T"], lengths: Int[np.ndarray, " B"]) -> list[list[int]]:
    """The tokens of each row, without padding."""
    return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]


def of_prompt(
    captures: Mapping[str, Capture], lengths: Int[np.ndarray, " B"]
) -> dict[str, Capture]:
    """Masks, which are as long as the prompt, as the positions that they choose: for what grows."""
    found = dict(captures)
    for name, capture in captures.items():
        chosen = capture.positions
        if isinstance(chosen, tuple) and isinstance(chosen[0], bool):
            numbers = _chosen(chosen, "position", int(lengths.max()), f"Capture of {name}")
            found[name] = dataclasses.replace(capture, positions=numbers)
    return found


def heads_of(heads: Heads, point: Point, config: LlamaConfig, what: str) -> tuple[int, ...]:
    """The heads chosen, from the first; `what` begins the message of an error."""
    axes = point.axes.split()
    if "N" in axes:
        kind, count = "query head", config.num_attention_heads
    elif "K" in axes:
        kind, count = "key/value head", config.num_key_value_heads
    else:
        raise CaptureError(f"{what}: heads= was given, but this point has no heads ({point.axes}).")
    return _chosen(heads, kind, count, what)


def _take(name: str, capture: Capture, config: LlamaConfig, lengths: Int[np.ndarray, " B"]) -> Take:
    point, what = point_of(name), f"Capture of {name}"
    heads = None
    if capture.heads is not None:
        heads = heads_of(capture.heads, point, config, what)
    positions = None
    if capture.positions is not None:
        positions = positions_of(capture.positions, lengths, what)
    reduce = capture.reduce
    if isinstance(reduce, tuple) and reduce[0] == "topk":
        size = point.shape(config, 1, 1, int(lengths.max()))[-1]
        if reduce[1] > size:
            raise CaptureError(f"{what}: the {reduce[1]} largest of {size} entries were asked for.")
    return Take(point.axes, heads, positions, reduce, capture.dtype)


def _read(given: Any, what: str) -> Read:
    try:
        return read(given, what)
    except TypeError as error:
        raise CaptureError(str(error)) from None


def _chosen(given: Any, one: str, count: int, what: str) -> tuple[int, ...]:
    try:
        return chosen(given, one, count)
    except (TypeError, IndexError) as error:
        raise CaptureError(f"{what}: {error}") from None


def _reduce(reduce: Any) -> Reduce:
    if reduce is None or reduce in ("last", "norm"):
        return reduce
    if isinstance(reduce, Sequence) and not isinstance(reduce, str) and len(reduce) == 2:
        kind, size = reduce
        named = kind in ("max_pool", "mean_pool", "topk")
        if named and (integer(size) or 0) > 0:
            return (kind, int(size))
    raise CaptureError(
        f"reduce is {reduce!r}; it must be 'last', 'norm', ('max_pool', n), ('mean_pool', n), "
        "('topk', k) or None."
    )
