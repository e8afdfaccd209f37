"""Changing tensors inside a forward pass: `Ablate`, `Patch`, `Steer`, `Replace`.

Here a user's words become what the compiled program takes: heads and positions a mask, donors and
vectors values (`llama_jax.model.tap`). So new ones of the same shapes reuse the program.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from llama_jax.capture import CaptureError, Heads, Positions, heads_of, positions_of
from llama_jax.config import LlamaConfig
from llama_jax.model import tap
from llama_jax.model.tap import EditError
from llama_jax.points import PointError, Points, point_of, resolve

if TYPE_CHECKING:
    from llama_jax.run import Run

__all__ = ["Ablate", "Edit", "Patch", "Place", "Replace", "Steer", "edits_at"]


@dataclasses.dataclass(frozen=True, eq=False)
class Ablate:
    """Puts a constant in the place of a tensor, or of some heads and positions of it.

    `to` is a number, an array that broadcasts to the tensor, or `"mean"`: the mean over the batch
    and the real positions of this very forward pass (in `generate`: of each chunk or step). `point`
    takes every form of name, so one edit may stand for many layers.

    >>> from llama_jax import Llama
    >>> llama = Llama.from_pretrained("cria")
    >>> run = llama.run("Once upon a time", ("z", 1), edits=[Ablate(("z", 1), heads=[2])])
    >>> bool((run["z"][:, :, 2] == 0).all()), bool((run["z"][:, :, 3] == 0).all())
    (True, False)
    """

    point: Points
    heads: Heads | None = None
    positions: Positions | None = None
    to: Any = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Patch:
    """Puts what another run had in the place of a tensor, or of some heads and positions of it.

    `donor` is a `Run` that captured the point whole, a mapping from full names to arrays, or one
    array. One row serves a whole batch. Where the donor's prompt has another length, `positions`
    must be given, and each counts in its own row: -1 is the receiver's last position and takes the
    donor's last.
    """

    point: Points
    donor: Run | Mapping[str, Array] | Array
    positions: Positions | None = None
    heads: Heads | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Steer:
    """Adds `scale * vector` to a tensor, at some positions or at all.

    `vector` broadcasts to the tensor: `[D]` for the residual stream. A scale of 0 changes no bit.
    """

    point: Points
    vector: Array
    scale: float = 1.0
    positions: Positions | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Replace:
    """Puts `fn(x)` in the place of the tensor `x`; it must keep the shape.

    `fn` is traced by JAX, once for each new function object and shape: define it once to compile
    once. In `generate` it meets the prompt in chunks, padded on the right, then single positions.
    """

    point: Points
    fn: Callable[[Array], Array]


Edit = Ablate | Patch | Steer | Replace


class Place(NamedTuple):
    """The sequences that edits are for: how long they are, and how long they may become."""

    config: LlamaConfig
    dtype: jnp.dtype  # of sums: at least f32
    lengths: Int[np.ndarray, " B"]
    queries: int  # T of the prompts
    size: int  # positions that a mask spans: T, or the cache's
    more: int = 0  # positions that come behind each row

    def shape(self, name: str) -> tuple[int, ...]:
        return point_of(name).shape(self.config, len(self.lengths), self.queries, self.queries)


def edits_at(edits: Edit | Iterable[Edit], place: Place) -> dict[str, tuple[tap.Edit, ...]]:
    """Full name -> what is done there, in the order of `edits`.

    Raises `EditError`, and `PointError`.
    """
    if isinstance(edits, Edit):
        edits = [edits]
    if not isinstance(edits, Iterable):
        raise EditError(f"edits is {edits!r}; give Ablate, Patch, Steer, Replace, or several.")
    made: dict[str, tuple[tap.Edit, ...]] = {}
    for edit in edits:
        if not isinstance(edit, Edit):
            raise EditError(f"{edit!r} is not an edit: give Ablate, Patch, Steer or Replace.")
        same: dict[str, tap.Edit] = {}  # equal points of different layers share their arrays
        for name in resolve(edit.point, place.config.num_hidden_layers):
            kind = name if isinstance(edit, Patch) else point_of(name).name
            if kind not in same:
                try:
                    same[kind] = _made(edit, name, place)
                except CaptureError as error:  # of heads and positions, which captures have too
                    raise EditError(str(error)) from None
            made[name] = (*made.get(name, ()), same[kind])
    return made


def _made(edit: Edit, name: str, place: Place) -> tap.Edit:
    point = point_of(name)
    if isinstance(edit, Replace):
        if not callable(edit.fn):
            raise EditError(f"Replace at {name}: {edit.fn!r} is no function.")
        if point.local in _MAPS:
            warnings.warn(
                f"Replace at {name}: what the function gives where a query may not read (above the "
                "diagonal, padding) is masked again.",
                stacklevel=2,
            )
        return tap.Call(edit.fn, point.local)
    what = f"{type(edit).__name__} at {name}"
    reach = _reach(edit.positions, place, what)
    heads = None
    if not isinstance(edit, Steer) and edit.heads is not None:
        heads = heads_of(edit.heads, point, place.config, what)
    if isinstance(edit, Steer):
        value, reach = _fitted(edit.vector, reach, name, place, what)
        value = value.astype(place.dtype) * jnp.asarray(edit.scale, place.dtype)
        # Added to 0.0, -0.0 leaves it, and 0.0 to -0.0 does not.
        value = jnp.where(value == 0, -0.0, value)
        return tap.Add(point.axes, _mask(reach, heads, name, place), value)
    if isinstance(edit, Ablate) and isinstance(edit.to, str):
        if edit.to != "mean":
            raise EditError(f"{what}: to is {edit.to!r}; it must be a number, 'mean' or an array.")
        return tap.Mean(point.axes, _mask(reach, heads, name, place))
    if isinstance(edit, Ablate):
        value, reach = _fitted(edit.to, reach, name, place, what)
    else:
        value, reach = _donated(edit, reach, name, place, what)
    return tap.Put(point.axes, _mask(reach, heads, name, place), value)


def _reach(positions: Positions | None, place: Place, what: str) -> Bool[np.ndarray, "B T"]:
    """Which positions of each row are edited."""
    reach = np.zeros((len(place.lengths), place.size), bool)
    if positions is None:
        reach[:] = True
    elif isinstance(positions, slice):
        for row, length in zip(reach, map(int, place.lengths), strict=True):
            row[_range(positions, length, length + place.more)] = True
        if not reach.any(axis=1).all():
            raise EditError(
                f"{what}: {positions} chooses no position of rows of {place.lengths.tolist()} "
                "tokens."
            )
    else:
        chosen = positions_of(positions, place.lengths, what, place.more)
        np.put_along_axis(reach, chosen, True, axis=1)
    return reach


def _range(positions: slice, length: int, end: int) -> range:
    """The positions of a slice up to `end`; negative ones count from `length`, the prompt's end."""
    start, stop = (
        at if at is None or at >= 0 else max(at + length, 0)
        for at in (positions.start, positions.stop)
    )
    return range(*slice(start, stop, positions.step).indices(end))


def _mask(
    reach: Bool[np.ndarray, "B T"], heads: tuple[int, ...] | None, name: str, place: Place
) -> Bool[np.ndarray, ...]:
    """True where the tensor is changed; of full rank, and as large whatever is chosen."""
    axes = point_of(name).axes.split()
    shape = [1] * len(axes)
    shape[0], shape[axes.index("T")] = reach.shape
    mask = reach.reshape(shape)
    for axis, kind in enumerate(axes):
        if kind in "NK":
            count = place.shape(name)[axis]
            chosen = np.isin(np.arange(count), range(count) if heads is None else heads)
            mask = mask & chosen.reshape([-1 if a == axis else 1 for a in range(len(axes))])
    return mask


def _fitted(
    value: Any, reach: Bool[np.ndarray, "B T"], name: str, place: Place, what: str
) -> tuple[Array, Bool[np.ndarray, "B T"]]:
    """A number or an array as one that the tensor takes, and the positions that it is there for."""
    try:
        array = jnp.asarray(value, None if hasattr(value, "dtype") else place.dtype)
    except (TypeError, ValueError):
        raise EditError(f"{what}: {value!r} is neither a number nor an array.") from None
    if array.ndim == 0:
        return array, reach
    shape, axes = place.shape(name), point_of(name).axes.split()
    padded = (1,) * (len(shape) - array.ndim) + array.shape
    if len(padded) > len(shape) or not all(a in (1, b) for a, b in zip(padded, shape, strict=True)):
        raise EditError(
            f"{what}: the array given has shape {list(array.shape)}; the tensor there has "
            f"{list(shape)} ({' '.join(axes)}), and the one must broadcast to the other."
        )
    _refuse_unread(array, name, what)
    if padded[axes.index("T")] > 1:
        reach = reach & (np.arange(place.size) < place.lengths[:, None])
    return _with_room(array.reshape(padded), axes, place), reach


# Maps of queries and keys, and what stands in them where a query may not read.
_MAPS = {"self_attn.scores": -np.inf, "self_attn.pattern": 0.0}


def _refuse_unread(array: Array, name: str, what: str) -> None:
    """Raises where a map that is given by hand has something that no query may read."""
    unread = _MAPS.get(point_of(name).local)
    if what.startswith("Steer"):
        unread = 0.0 if unread is not None else None  # nothing is added
    if unread is None or array.ndim < 2 or 1 in array.shape[-2:]:
        return
    above = np.triu(np.ones(array.shape[-2:], bool), 1)
    given = np.asarray(array)[..., above]
    if not (given == unread).all():
        raise EditError(
            f"{what}: the array has values above the diagonal, where no query may read; they would "
            f"be masked again. Put {unread:g} there: np.tril, or np.where(np.tri(T) > 0, array, "
            f"{unread:g})."
        )


def _with_room(array: Array, axes: list[str], place: Place) -> Array:
    """An array made for the prompts' keys, with zeros for those that are yet to come."""
    if axes[-1] != "S" or array.shape[-1] < place.queries or place.queries == place.size:
        return array
    room = [(0, 0)] * (array.ndim - 1) + [(0, place.size - array.shape[-1])]
    return jnp.pad(array, room)


def _donated(
    edit: Patch, reach: Bool[np.ndarray, "B T"], name: str, place: Place, what: str
) -> tuple[Array, Bool[np.ndarray, "B T"]]:
    array, lengths = _donor(edit.donor, name, what)
    shape, axes = place.shape(name), point_of(name).axes.split()
    at = axes.index("T")
    others = [a for a in range(1, len(axes)) if axes[a] not in "TS"]
    fits = (
        array.ndim == len(shape)
        and array.shape[0] in (1, shape[0])
        and all(array.shape[a] == shape[a] for a in others)
    )
    same_length = fits and all(array.shape[a] == shape[a] for a in range(1, len(axes)))
    listed = edit.positions is not None and not isinstance(edit.positions, slice)
    if not fits or not (same_length or (listed and "S" not in axes)):
        hint = ""
        if fits and "S" not in axes:
            hint = (
                " Prompts of different lengths need positions= as a list, each counted in its own "
                "row."
            )
        raise EditError(
            f"{what}: the donor has shape {list(array.shape)}; the tensor there has {list(shape)} "
            f"({' '.join(axes)}).{hint}"
        )
    if lengths is None:  # not a run's
        _refuse_unread(array, name, what)
    theirs = np.full(array.shape[0], array.shape[at]) if lengths is None else lengths
    theirs = np.broadcast_to(theirs, place.lengths.shape)
    if not listed:
        if lengths is not None and (theirs < place.lengths).any():
            raise EditError(
                f"{what}: the donor's rows have {theirs.tolist()} tokens, those here "
                f"{place.lengths.tolist()}; what is not there cannot be put in. Choose positions= "
                "as a list, each counted in its own row."
            )
        reach = reach & (np.arange(place.size) < place.lengths[:, None])
        return _with_room(array, axes, place), reach
    assert edit.positions is not None
    source = positions_of(edit.positions, theirs, f"{what}, in the donor")
    target = positions_of(edit.positions, place.lengths, what, place.more)
    if same_length and (source == target).all() and (target < array.shape[at]).all():
        return _with_room(array, axes, place), reach
    index = np.zeros((len(place.lengths), place.size), np.int32)
    np.put_along_axis(index, target, source, axis=1)
    index_shape = [1] * array.ndim
    index_shape[0], index_shape[at] = index.shape
    moved = jnp.take_along_axis(array, index.reshape(index_shape), axis=at)
    return _with_room(moved, axes, place), reach


def _donor(donor: Any, name: str, what: str) -> tuple[Array, Int[np.ndarray, " B"] | None]:
    """The donor's array for the point, and its rows' lengths where it knows them."""
    captures = getattr(donor, "captures", None)
    if captures is not None:  # a Run
        if name not in donor.captured:
            raise PointError(f"{what}: the donor did not capture it. Run it with capture={name!r}.")
        if not captures[name].whole:
            raise EditError(f"{what}: the donor holds only a part of it, {captures[name]}.")
        return jnp.asarray(donor.captured[name]), donor.lengths
    if isinstance(donor, Mapping):
        if name not in donor:
            raise PointError(f"{what}: the donor has no {name!r}; it has {', '.join(donor)}.")
        return jnp.asarray(donor[name]), None
    try:
        return jnp.asarray(donor), None
    except (TypeError, ValueError):
        raise EditError(
            f"{what}: the donor is a {type(donor).__name__}; give a Run, a mapping from full names "
            "to arrays, or an array."
        ) from None
