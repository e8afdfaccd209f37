"""One table from the axes of tensors to the axes of a mesh, and the helper that lays arrays by it.

A mesh has the axes `data` (copies of the weights, each with rows of the batch), `fsdp` (rows of the
batch too, and a part of every weight, gathered for the product that needs it), `sequence`
(positions; the keys and values of all are gathered for attention), `tensor` (heads, neurons,
vocabulary) and `group`, which is made here: where `tensor` is larger than the number of key/value
heads, each of these is held by `group` devices, that share out its query heads.

Axes are Auto: a constraint here and there, and the compiler lays out the rest.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from llama_jax.base.choice import integer
from llama_jax.config import LlamaConfig

__all__ = [
    "AXES",
    "RULES",
    "Layout",
    "MeshError",
    "abstract_mesh",
    "make_mesh",
    "mesh_sizes",
    "parts",
    "shard",
    "sharding",
    "spec",
    "weight_axes",
    "weight_shardings",
]

#: What a user may name.
AXES = ("data", "fsdp", "sequence", "tensor")
_INSIDE = (*AXES, "group")
# Always said: what JAX takes for granted has changed between its releases.
_AUTO = (AxisType.Auto,) * len(_INSIDE)

#: Axes of tensors (those of `llama_jax.points`, and four more) -> axes of the mesh.
RULES: Mapping[str, tuple[str, ...]] = {
    "B": ("data", "fsdp"),
    "T": ("sequence",),
    "S": (),  # a query reads all keys
    "C": ("sequence",),  # positions of a cache
    "D": (),
    "W": ("fsdp",),  # the model's width, in a weight
    "N": ("tensor", "group"),
    "K": ("tensor",),
    "G": ("group",),  # query heads of one key/value head
    "F": ("tensor", "group"),
    "V": ("tensor", "group"),
    "H": (),
    "1": (),
}

# Axes of each weight [out, in]; N and K stand for that many heads of H rows or columns.
_WEIGHTS = {
    "embed_tokens": "V W",
    "q_proj": "N W",
    "k_proj": "K W",
    "v_proj": "K W",
    "o_proj": "W N",
    "gate_proj": "F W",
    "up_proj": "F W",
    "down_proj": "W F",
    "lm_head": "V W",
}


_MOST = 2**31 - 1


class MeshError(ValueError):
    """Devices, or parts of a tensor, that cannot be shared out as asked."""


def make_mesh(
    given: Mapping[str, int] | str | Mesh | None,
    config: LlamaConfig,
    devices: Sequence[Any] | None = None,
) -> Mesh | None:
    """The mesh that is meant, checked against the sizes of a model; None stays None.

    `given` maps names of `AXES` to sizes, or says so in text (`"data=2, tensor=4"`), or is a
    `jax.sharding.Mesh` with these names. Axes that are not named have size 1. The first devices
    are taken (or those of `devices`) where there are more than the sizes multiply to. Raises
    `MeshError` where there are fewer, and for a size that does not divide what it shares out.

    >>> make_mesh({}, LlamaConfig.preset("llama-3.1-8b")).shape["tensor"]
    1
    """
    if given is None:
        return None
    sizes = mesh_sizes(given.shape if isinstance(given, Mesh) else given, config)
    if isinstance(given, Mesh):  # each device stays at its place
        order = [given.axis_names.index(axis) for axis in _INSIDE if axis in given.axis_names]
        devices = list(given.devices.transpose(order).flat)
    shape = tuple(sizes[axis] for axis in _INSIDE)
    available = list(jax.devices() if devices is None else devices)
    needed = math.prod(shape)
    if needed > len(available):
        raise MeshError(
            f"{_said(sizes)} makes {needed} devices, and there are {len(available)}: "
            f"{available[0].platform if available else 'none'}. Smaller sizes would do; "
            "XLA_FLAGS=--xla_force_host_platform_device_count=8, set before JAX starts, makes 8 "
            "of a CPU."
        )
    if devices is not None:  # in the order that was given
        return Mesh(np.array(available[:needed]).reshape(shape), _INSIDE, axis_types=_AUTO)
    return jax.make_mesh(shape, _INSIDE, axis_types=_AUTO, devices=available[:needed])


def abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """A mesh of no devices: shapes can be laid out on it, and programs lowered.

    >>> abstract_mesh(mesh_sizes("tensor=8", LlamaConfig.preset("llama-3.1-8b"))).shape["tensor"]
    8
    """
    shape = tuple(sizes.get(axis, 1) for axis in _INSIDE)
    return AbstractMesh(shape, _INSIDE, axis_types=_AUTO)


def mesh_sizes(given: Mapping[str, int] | str, config: LlamaConfig) -> dict[str, int]:
    """The size of every axis of a mesh, `group` among them, checked against those of a model.

    >>> mesh_sizes("tensor=16", LlamaConfig.preset("llama-3.1-70b"))
    {'data': 1, 'fsdp': 1, 'sequence': 1, 'tensor': 8, 'group': 2}
    """
    sizes = _sizes(_read(given) if isinstance(given, str) else given)
    if math.prod(sizes.values()) > _MOST:
        raise MeshError(f"{_said(sizes)} makes more devices than there can be.")
    tensor, heads = sizes["tensor"], config.num_key_value_heads
    sizes["tensor"] = min(tensor, heads)
    sizes["group"] *= tensor // sizes["tensor"]
    if tensor % sizes["tensor"] or heads % sizes["tensor"]:
        raise MeshError(
            f"k_proj.weight: tensor={tensor} does not share out {heads} key/value heads: one must "
            f"divide the other. {_divisors(heads, config.num_attention_heads)}"
        )
    _check(sizes, config)
    return sizes


def spec(
    axes: str | Sequence[str],
    mesh: Mesh,
    shape: Sequence[int] | None = None,
    rules: Mapping[str, tuple[str, ...]] = RULES,
) -> PartitionSpec:
    """Which axes of the mesh share out each axis of a tensor.

    With a `shape` an axis that they do not divide stays whole. Raises `MeshError` where two axes
    of one tensor ask for the same axis of the mesh, or one has no rule.

    >>> mesh = abstract_mesh({"data": 2, "tensor": 4})
    >>> [*spec("B T F", mesh)], [*spec("B T F", mesh, (3, 8, 8))]
    (['data', None, 'tensor'], [None, None, 'tensor'])
    """
    letters = axes.split() if isinstance(axes, str) else list(axes)
    taken: dict[str, str] = {}
    found: list[Any] = []
    for position, letter in enumerate(letters):
        if letter not in rules:
            raise MeshError(f"{' '.join(letters)}: no rule says how {letter} is shared out.")
        names = tuple(name for name in rules[letter] if mesh.shape.get(name, 1) > 1)
        for name in names:
            if name in taken:
                raise MeshError(
                    f"{' '.join(letters)}: {taken[name]} and {letter} are both shared out along "
                    f"{name} ({mesh.shape[name]} devices); a tensor can be cut along it once."
                )
            taken[name] = letter
        if shape is not None and shape[position] % math.prod(mesh.shape[n] for n in names):
            names = ()
        found.append(None if not names else names[0] if len(names) == 1 else names)
    return PartitionSpec(*found)


def sharding(
    axes: str | Sequence[str], mesh: Mesh, shape: Sequence[int] | None = None
) -> NamedSharding:
    """Where the parts of a tensor with these axes lie."""
    return NamedSharding(mesh, spec(axes, mesh, shape))


def shard(x: Array, axes: str | Sequence[str], mesh: Mesh | None) -> Array:
    """`x`, laid out by the rules; as it is where there is no mesh. For `jax.jit`."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(axes, mesh, x.shape)))


def weight_axes(name: str) -> str:
    """The axes of a parameter, by its name; norms have D, which nothing shares out.

    >>> weight_axes("layers.0.self_attn.o_proj.weight"), weight_axes("norm.weight")
    ('W N', 'D')
    >>> weight_axes("layers.0.self_attn.k_proj.bias")  # shared out as the outputs that it adds to
    'K'
    """
    module, kind = name.split(".")[-2:]
    axes = _WEIGHTS.get(module, "D")
    return axes.split()[0] if kind == "bias" else axes


def weight_shardings(names: Iterable[str], mesh: Mesh | None) -> dict[str, NamedSharding | None]:
    """Where each parameter lies, by its name; None where there is no mesh. Norms are everywhere.

    >>> mesh = abstract_mesh({"data": 2, "tensor": 4})
    >>> found = weight_shardings(["layers.0.self_attn.o_proj.weight"], mesh)
    >>> [*found["layers.0.self_attn.o_proj.weight"].spec]
    [None, 'tensor']
    """
    if mesh is None:
        return dict.fromkeys(names)
    return {name: sharding(weight_axes(name), mesh) for name in names}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the arrays of one forward pass lie: on which mesh, and how much of them is no padding."""

    mesh: Mesh
    rows: int  # of the batch
    queries: int
    keys: int | None  # None where keys are a cache's

    @classmethod
    def of(cls, mesh: Mesh, tokens: Int[Array, "B T"], cached: bool) -> Layout:
        """That of a batch of tokens."""
        rows, queries = tokens.shape
        return cls(mesh, rows, queries, None if cached else queries)

    def padded(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"]
    ) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
        """With rows of one token and positions that no length counts, so that the mesh divides."""
        rows = -self.rows % parts("B", self.mesh)
        cached = self.keys is None  # then chunks are of a few sizes as they are
        queries = 0 if cached else -self.queries % self.mesh.shape["sequence"]
        tokens = jnp.pad(tokens, ((0, rows), (0, queries)))
        lengths = jnp.pad(lengths, (0, rows), constant_values=1)
        return self.shard(tokens, "B T"), lengths

    def shard(self, x: Array, axes: str | Sequence[str]) -> Array:
        return shard(x, axes, self.mesh)

    def cut(self, x: Array, axes: str) -> Array:
        """Without the padding."""
        sizes = {"B": self.rows, "T": self.queries, "S": self.keys}
        letters = axes.split()
        padded = {
            axis: size
            for axis, letter in enumerate(letters)
            if (size := sizes.get(letter)) is not None and 1 < x.shape[axis] != size
        }
        if padded:  # what is left the mesh does not divide: each device gets all of it
            x = self.shard(x, ["1" if a in padded else l for a, l in enumerate(letters)])
        for axis, size in padded.items():
            x = jax.lax.slice_in_dim(x, 0, size, axis=axis)
        return x


def parts(axes: str, mesh: Mesh | None) -> int:
    """How many parts a tensor with these axes is cut into.

    >>> parts("B T D", None)
    1
    """
    if mesh is None:
        return 1
    return math.prod(mesh.shape[name] for letter in axes.split() for name in RULES[letter])


def _read(text: str) -> dict[str, int]:
    sizes = {}
    for item in filter(None, re.split(r"[\s,]+", text)):
        name, equals, size = item.partition("=")
        if not equals or not re.fullmatch(r"[0-9]{1,9}", size):
            raise MeshError(
                f'{item!r} in mesh={text!r}: write an axis and its size, as "tensor=8" or '
                '"data=2, tensor=4".'
            )
        if name in sizes:
            raise MeshError(f"mesh={text!r} names {name} twice.")
        sizes[name] = int(size)
    return sizes


def _sizes(given: Mapping[str, int]) -> dict[str, int]:
    if not isinstance(given, Mapping):
        raise MeshError(
            f'mesh is {given!r}; it must be text such as "tensor=8", sizes by axis such as '
            '{"data": 2, "tensor": 4}, or a jax.sharding.Mesh.'
        )
    for name, size in given.items():
        if name not in _INSIDE:
            near = difflib.get_close_matches(str(name), AXES, n=1)
            raise MeshError(
                f"A mesh has no axis {name!r}; it has {', '.join(AXES)}."
                + (f" Is {near[0]} meant?" if near else "")
            )
        whole = integer(size)
        if whole is None or whole < 1:
            raise MeshError(f"{name}={size!r}: a size is a whole number of devices, from 1 on.")
    return {axis: int(given.get(axis, 1)) for axis in _INSIDE}


def _check(sizes: Mapping[str, int], config: LlamaConfig) -> None:
    """Raises where a weight cannot be cut as the rules say."""
    count = {
        "N": (config.num_attention_heads, "query heads"),
        "F": (config.intermediate_size, "neurons"),
        "V": (config.vocab_size, "tokens of the vocabulary"),
        "W": (config.hidden_size, "of the model's width"),
    }
    for module, axes in _WEIGHTS.items():
        for letter in axes.split():
            cuts = math.prod(sizes[name] for name in RULES[letter])
            if letter in count and count[letter][0] % cuts:
                size, what = count[letter]
                asked = f"{RULES[letter][0]}={cuts}"
                raise MeshError(
                    f"{module}.weight: {asked} does not divide {size:,} {what} "
                    f"({size} / {cuts}). {_divisors(size)}"
                )


def _divisors(*sizes: int) -> str:
    most = math.gcd(*sizes)
    found = [n for n in range(1, most + 1) if most % n == 0]
    return f"What would: {', '.join(map(str, found[:12]))}{', …' if len(found) > 12 else ''}."


def _said(sizes: Mapping[str, int]) -> str:
    shown = {axis: sizes[axis] for axis in AXES}
    shown["tensor"] *= sizes["group"]
    return ", ".join(f"{axis}={size}" for axis, size in shown.items() if size > 1) or "One device"
