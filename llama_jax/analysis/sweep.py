"""The logits of many forward passes that differ by one patch each, at the price of what differs.

A patch at layer L and position t leaves alone the layers below L, and the positions before t in all
layers: their residual streams, keys and values are those of the one run, the *receiver*. So of each
patched pass only the positions from t on are computed, from layer L on, and in the last layer only
the last query. These pieces have all lengths from 1 to T. They are packed into bins of one length,
long ones beside short ones, and a batch of bins goes through the model's own layers one by one, so
that one compiled layer serves every layer, site and prompt of these shapes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from llama_jax.base.modes import jit
from llama_jax.config import LlamaConfig
from llama_jax.memory import readable
from llama_jax.model import Context, Layer, Model, leaves_of, readout
from llama_jax.model.product import wide
from llama_jax.model.rope import rotary_tables
from llama_jax.model.tap import NO_TAPS, AnyArray, Put, Tap, Taps
from llama_jax.plan import BudgetError

__all__ = ["AXES", "Patches", "Receiver", "Site", "patched_logits"]

# What a sweep may go over beside layers, and the axes of a tensor that this chooses along.
AXES = {"position": "T", "head": "NK", "key": "S", "neuron": "F"}

# As many positions at once keep the matrix products busy and a CPU's caches from overflowing.
POSITIONS_AT_ONCE = 1024


class Site(NamedTuple):
    """One patched pass for each row of the batch."""

    at: tuple[int, ...]  # its coordinates, in the order of `Patches.by`
    starts: dict[int, int]  # row -> first position that it changes; rows it does not change lack


@dataclasses.dataclass(frozen=True)
class Patches:
    """What a site puts in: of the donors' tensors the part at the site's coordinates.

    What enters `layer` is the receiver's `stream`, with the donor `entering` put into it where
    there is one. `inside` are donors of the point `local` inside layers, by their numbers.
    """

    axes: str
    local: str
    by: tuple[str, ...]  # of AXES
    layer: int
    stream: Float[Array, "B T D"]
    entering: Float[Array, "B T D"] | None
    inside: Mapping[int, Array]


@dataclasses.dataclass(frozen=True)
class Receiver:
    """The run that patches go into: the keys and values of its layers, and what it says itself."""

    model: Model
    lengths: Int[np.ndarray, " B"]
    keys: Sequence[Float[Array, "B T K H"]]
    values: Sequence[Float[Array, "B T K H"]]
    logits: Float[Array, "B V"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """Where the pieces lie: C positions of each of G bins, the last ones of Q pieces a bin."""

    rows: Int[AnyArray, " G"]  # the row of the batch that a bin's pieces belong to
    item: Int[AnyArray, "G C"]  # which piece; -1 where nothing is
    position: Int[AnyArray, "G C"]  # its position in the prompt
    start: Int[AnyArray, "G C"]  # the first position of its piece
    ends: Int[AnyArray, "G Q"]  # where each piece ends
    site: Int[AnyArray, "G Q"]  # whose piece it is; as many as there are sites where nothing is
    at: Int[AnyArray, "I A"]  # the coordinates of each piece's site


def patched_logits(
    receiver: Receiver, patches: Patches, sites: Sequence[Site], room: int
) -> Iterator[tuple[Sequence[Site], Float[Array, "sites B V"]]]:
    """Last-position logits of the patched passes, some sites at a time, in at most `room` bytes."""
    config = receiver.model.config
    capacity = max(
        int(receiver.lengths[row]) - start for site in sites for row, start in site.starts.items()
    )
    prompt = receiver.keys[0].shape[1]
    price = _bytes_of_a_bin(config, receiver.model.dtype, prompt, capacity)
    needed = max(len(site.starts) for site in sites)
    if needed * price > room:
        raise BudgetError(
            f"One patched pass over {needed} rows of {prompt} tokens takes about "
            f"{readable(needed * price)}; {readable(max(room, 0))} of the budget are left. A "
            "larger budget=, shorter prompts or fewer rows would do."
        )
    at_once = max(needed, min(POSITIONS_AT_ONCE // capacity, room // price))
    for chunk, packed in _pack(sites, receiver.lengths, capacity, at_once):
        yield chunk, _chunk(receiver, patches, packed, len(chunk))


def _chunk(
    receiver: Receiver, patches: Patches, packed: Packed, count: int
) -> Float[Array, "sites B V"]:
    model, last = receiver.model, receiver.model.config.num_hidden_layers - 1
    context = _context(model.config, wide(model.dtype), packed, receiver.keys[0].shape[1])
    x = _enter(patches.axes, patches.by, patches.stream, packed, patches.entering)
    only = None
    for i in range(patches.layer, last + 1):
        leaves, structure = jax.tree.flatten(model.layers[i])
        donor = patches.inside.get(i)
        if i == last and donor is None:
            only = jnp.asarray(packed.ends)
        point = () if donor is None else (patches.local, patches.axes, patches.by)
        cached = (receiver.keys[i], receiver.values[i])
        x = _step(structure, point, leaves, x, context, packed, cached, donor, only)
    ends = packed.ends if only is None else None
    every, whole = leaves_of(model)
    return _logits(whole, count, every, x, ends, packed, receiver.logits)


@functools.partial(jit, static_argnums=(0, 1, 3))
def _context(config: LlamaConfig, dtype: Any, packed: Packed, prompt: int) -> Context:
    """Each position reads the receiver's before its piece, and its own piece's up to itself."""
    position = jnp.asarray(packed.position)
    cos, sin = rotary_tables(config, position, dtype)
    bins, capacity = packed.item.shape
    before = jnp.arange(prompt) < packed.start[:, :, None]
    same = packed.item[:, :, None] == packed.item[:, None, :]
    own = same & (position[:, None, :] <= position[:, :, None])
    mask = jnp.concatenate((before, own), axis=-1)
    return Context(cos, sin, mask, jnp.full(bins, prompt), jnp.full(bins, capacity))


@functools.partial(jit, static_argnums=(0, 1))
def _enter(
    axes: str, by: tuple[str, ...], stream: Array, packed: Packed, donor: Array | None
) -> Float[Array, "G C D"]:
    x = _at(stream, packed)
    if donor is None:
        return x
    return jnp.where(_where(axes, by, donor.shape, packed), _at(donor, packed), x)


@functools.partial(jit, static_argnums=(0, 1))
def _step(
    structure: Any,
    point: tuple[str, str, tuple[str, ...]] | tuple[()],
    leaves: list[Array],
    x: Float[Array, "G C D"],
    context: Context,
    packed: Packed,
    cached: tuple[Array, Array],
    donor: Array | None,
    only: Int[Array, "G Q"] | None,
) -> Float[Array, "G C D"]:
    layer: Layer = jax.tree.unflatten(structure, leaves)
    taps = NO_TAPS
    if point:
        assert donor is not None
        local, axes, by = point
        value = _donated(axes, donor, packed)
        put = Put(axes, _where(axes, by, donor.shape, packed), value)
        taps = Taps({local: Tap((put,))}, context.lengths)
    room = ((0, 0), (0, x.shape[1]), (0, 0), (0, 0))
    keys, values = (jnp.pad(each[packed.rows], room) for each in cached)
    return layer(x, context, (keys, values), taps, only)[0]


@functools.partial(jit, static_argnums=(0, 1))
def _logits(
    structure: Any,
    count: int,
    leaves: tuple[Array, ...],
    x: Float[Array, "G C D"],
    ends: Int[Array, "G Q"] | None,
    packed: Packed,
    plain: Float[Array, "B V"],
) -> Float[Array, "sites B V"]:
    if ends is not None:
        x = jnp.take_along_axis(x, ends[..., None], axis=1)
    made = readout(jax.tree.unflatten(structure, leaves), x)
    rows = jnp.broadcast_to(packed.rows[:, None], packed.site.shape)
    every = jnp.broadcast_to(plain, (count, *plain.shape))
    return every.at[packed.site, rows].set(made, mode="drop")


def _at(array: Array, packed: Packed) -> Array:
    """Of an array [B, T, …] what belongs to each packed position, [G, C, …]."""
    return array[packed.rows[:, None], packed.position]


def _keys(packed: Packed, prompt: int) -> Int[Array, "G S"]:
    """The position in the prompt of every key that a bin sees: the receiver's, then its own."""
    bins = packed.rows.shape[0]
    receiver = jnp.broadcast_to(jnp.arange(prompt), (bins, prompt))
    return jnp.concatenate((receiver, packed.position), axis=1)


def _donated(axes: str, donor: Array, packed: Packed) -> Array:
    """The donor's tensor in the places of the bins."""
    letters = axes.split()
    time = letters.index("T")
    value = jnp.moveaxis(_at(jnp.moveaxis(donor, time, 1), packed), 1, time)
    if letters[-1] != "S":
        return value
    keys = _keys(packed, donor.shape[-1])
    index = keys.reshape(keys.shape[0], *[1] * (value.ndim - 2), keys.shape[1])
    return jnp.take_along_axis(value, index, axis=-1)


def _where(
    axes: str, by: tuple[str, ...], shape: tuple[int, ...], packed: Packed
) -> Bool[Array, ...]:
    """True at each piece's own site; of full rank, 1 along axes that are patched whole."""
    letters = axes.split()
    others = [letter for letter in letters if letter not in "BT"]
    own = {name: packed.at[packed.item, n][..., None] for n, name in enumerate(by)}  # [G, C, 1]
    mask = packed.item >= 0
    if "position" in own:
        mask &= own["position"][..., 0] == packed.position
    mask = mask.reshape(*mask.shape, *[1] * len(others))
    for n, letter in enumerate(others):
        name = next((name for name in own if letter in AXES[name]), None)
        if name is None:
            continue
        size = shape[letters.index(letter)]
        places = _keys(packed, size) if letter == "S" else jnp.arange(size)[None]
        chosen = own[name] == places[:, None, :]
        lead, width = mask.shape[:2], chosen.shape[2]
        ones = [1] * len(others)
        mask = mask & chosen.reshape(*lead, *ones[:n], width, *ones[n + 1 :])
    return jnp.moveaxis(mask, 1, letters.index("T"))


def _pack(
    sites: Sequence[Site], lengths: Int[np.ndarray, " B"], capacity: int, at_once: int
) -> Iterator[tuple[Sequence[Site], Packed]]:
    """The sites in chunks of at most `at_once` bins, all of them of two sizes or three."""
    by_length = sorted(sites, key=lambda site: min(site.starts.values()))
    half = (len(sites) + 1) // 2
    longest, shortest = by_length[:half], by_length[half:][::-1]
    mixed = [site for pair in zip(longest, shortest, strict=False) for site in pair]
    mixed += longest[len(shortest) :]
    # Chunks of about equal numbers of bins, since the last one is padded to the size of the others.
    total = sum(int(lengths[row]) - at for site in sites for row, at in site.starts.items())
    chunks = -(-total // (capacity * at_once))
    goal = min(at_once, -(-total // (capacity * chunks)))
    planned: list[tuple[list[Site], list[_Bin]]] = [([], [])]
    for site in mixed:
        if not _fitted(planned[-1], site, lengths, capacity, goal):
            planned.append(([], []))
            _fitted(planned[-1], site, lengths, capacity, at_once)
    most = max(len(bins) for _, bins in planned)
    pieces = max(len(b.pieces) for _, bins in planned for b in bins)
    for chunk, bins in planned:
        size = most if 2 * len(bins) > most else 1 << (len(bins) - 1).bit_length()
        yield chunk, _packed(chunk, bins, size, pieces, capacity)


@dataclasses.dataclass
class _Bin:
    row: int
    free: int
    pieces: list[tuple[int, int, int]]  # number of the site in its chunk, first position, length


def _fitted(
    plan: tuple[list[Site], list[_Bin]],
    site: Site,
    lengths: Int[np.ndarray, " B"],
    capacity: int,
    most: int,
) -> bool:
    """Puts the site's pieces into the first bins that have room, or, beyond `most` bins, none."""
    chunk, bins = plan
    found: list[tuple[int, int, _Bin | None]] = []
    for row, start in site.starts.items():
        size = int(lengths[row]) - start
        found.append((row, start, next((b for b in bins if b.row == row and b.free >= size), None)))
    if chunk and len(bins) + sum(place is None for *_, place in found) > most:
        return False
    for row, start, place in found:
        if place is None:
            place = _Bin(row, capacity, [])
            bins.append(place)
        size = int(lengths[row]) - start
        place.free -= size
        place.pieces.append((len(chunk), start, size))
    chunk.append(site)
    return True


def _packed(
    chunk: Sequence[Site], bins: Sequence[_Bin], size: int, pieces: int, capacity: int
) -> Packed:
    rows = np.zeros(size, np.int32)
    item = np.full((size, capacity), -1, np.int32)
    position, start = np.zeros_like(item), np.zeros_like(item)
    ends = np.zeros((size, pieces), np.int32)
    site = np.full((size, pieces), len(chunk), np.int32)
    for g, place in enumerate(bins):
        rows[g], used = place.row, 0
        for q, (number, first, length) in enumerate(place.pieces):
            part = slice(used, used + length)
            item[g, part], start[g, part] = number, first
            position[g, part] = np.arange(first, first + length)
            used += length
            ends[g, q], site[g, q] = used - 1, number
    at = np.array([site.at for site in chunk], np.int32).reshape(len(chunk), -1)
    return Packed(rows, item, position, start, ends, site, at)


def _bytes_of_a_bin(config: LlamaConfig, dtype: Any, prompt: int, capacity: int) -> int:
    """About what a bin takes in one layer and at the end."""
    c, keys = config, prompt + capacity
    heads = 4 * c.num_attention_heads + 4 * c.num_key_value_heads
    activations = capacity * (6 * c.hidden_size + heads * c.head_dim + 3 * c.intermediate_size)
    maps = 2 * c.num_attention_heads * capacity * keys
    cached = 2 * keys * c.num_key_value_heads * c.head_dim
    return (activations + cached) * dtype.itemsize + 4 * (maps + 4 * c.vocab_size)
