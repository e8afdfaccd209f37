"""Weights from files into a model: one tensor at a time, with a bar, and a look at each."""

from __future__ import annotations

import math
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import tqdm.auto
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool

from llama_jax.base.modes import jit
from llama_jax.checkpoint.folder import in_words
from llama_jax.checkpoint.tensors import DTYPES, CheckpointError, Part
from llama_jax.config import LlamaConfig
from llama_jax.dtypes import as_dtype
from llama_jax.memory import check_fits
from llama_jax.model import place_of, shapes
from llama_jax.model.product import wide
from llama_jax.parallel import parts

__all__ = ["Source", "check_finite", "expected", "fill"]


class Source(Protocol):
    """A tensor in files, in whatever pieces; `dtype` is safetensors' name of what is stored."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def place(self) -> tuple[pathlib.Path, int]: ...

    def read(self, dtype: np.dtype, part: Part | None = None) -> tuple[np.ndarray, bool]:
        """The tensor, or a part of it, as `dtype`, in memory that JAX takes over.

        Also says whether all of it is finite.
        """
        ...


def expected(
    config: LlamaConfig, held: int, directory: str | os.PathLike[str]
) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter that files with `held` tensors are to have, by name.

    Raises `CheckpointError` where that cannot be: every layer has several tensors.
    """
    if config.num_hidden_layers > held:
        raise CheckpointError(
            f"{directory}: the config says {config.num_hidden_layers:,} layers, and the files have "
            f"{held:,} tensors. Do they belong together?"
        )
    return shapes(config)


def fill(
    slots: Mapping[str, nnx.Param],
    sources: Mapping[str, Source],
    dtype: Any,
    directory: str | os.PathLike[str],
    progress: bool = True,
    mesh: Mesh | None = None,
) -> None:
    """Puts each source's weights into the slot of its name, as stored or cast to `dtype`.

    What the slot holds says where: of a weight that several devices share out, each part is read
    once by each process that has a device for it, and nothing else of it.

    Raises `MemoryError` before anything is read where there is no room. float64 becomes float32
    unless JAX has 64 bits switched on. Weights with NaN or infinity are named in a warning.
    """
    order = sorted(slots, key=lambda name: sources[name].place)
    if dtype is None:
        dtypes = {n: jax.dtypes.canonicalize_dtype(DTYPES[sources[n].dtype]) for n in order}
    else:
        dtypes = dict.fromkeys(order, as_dtype(dtype))
    size = sum(math.prod(sources[name].shape) * dtypes[name].itemsize for name in order)
    check_fits(size, str(directory), parts("F W", mesh))
    quiet = not progress or size < 200e6
    finite: dict[str, bool] = {}
    with tqdm.auto.tqdm(desc="Loading", total=size, unit="B", unit_scale=1, disable=quiet) as bar:
        for name in order:
            place = place_of(slots[name].get_value())
            array, finite[name] = _array(sources[name], dtypes[name], place)
            slots[name].set_value(array)
            bar.update(array.nbytes)
    _warn(finite, directory)


def _array(source: Source, dtype: np.dtype, place: NamedSharding | None) -> tuple[Array, bool]:
    if place is None:
        array, finite = source.read(dtype)
        return jax.device_put(array).block_until_ready(), finite  # one on its way at a time
    holders: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in place.addressable_devices_indices_map(source.shape).items():
        assert index is not None
        spans = (at.indices(size)[:2] for at, size in zip(index, source.shape, strict=True))
        holders.setdefault(tuple(spans), []).append(device)
    arrays, finite = [], True
    for held, devices in holders.items():
        part, known = source.read(dtype, tuple(slice(*span) for span in held))
        finite &= known
        arrays += [jax.device_put(part, device).block_until_ready() for device in devices]
    return jax.make_array_from_single_device_arrays(source.shape, place, arrays), finite


def check_finite(arrays: Mapping[str, Array], directory: str | os.PathLike[str]) -> None:
    """Warns, with their names, of arrays with NaN or infinity."""
    _warn({name: _finite(array) for name, array in arrays.items()}, directory)


def _warn(finite: Mapping[str, bool | Bool[Array, ""]], directory: str | os.PathLike[str]) -> None:
    broken = [name for name in finite if not finite[name]]
    if broken:
        warnings.warn(
            f"{directory}: NaN or infinity in {len(broken)} of {len(finite)} weights, "
            f"{in_words(broken)}. llama_jax.analysis.weight_statistics counts them.",
            stacklevel=4,
        )


@jit
def _finite(array: Array) -> Bool[Array, ""]:
    # 0 times what is not finite is NaN; on a CPU this sum is six times faster than `isfinite`.
    return jnp.isfinite(jnp.sum(array.astype(wide(array.dtype)) * 0))
