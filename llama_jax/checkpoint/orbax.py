"""Orbax checkpoints: a Hugging Face folder with its weights in `weights.orbax/`, array by array.

Orbax writes and reads each array in pieces, so that processes and devices take their own; what it
restores lies where it was asked to lie.
"""

from __future__ import annotations

import gc
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

from llama_jax.checkpoint import huggingface
from llama_jax.checkpoint.filling import check_finite, expected
from llama_jax.checkpoint.folder import existing, in_words, replaceable, replacing
from llama_jax.checkpoint.tensors import CheckpointError, listed
from llama_jax.config import LlamaConfig
from llama_jax.dtypes import as_dtype
from llama_jax.memory import check_fits
from llama_jax.model import Model, parameters, place_of
from llama_jax.parallel import parts
from llama_jax.text import Tokenizer

__all__ = ["checked", "is_orbax", "load", "save"]

Path = str | os.PathLike[str]
WEIGHTS = "weights.orbax"
GROUP = 128 * 2**20


def is_orbax(directory: pathlib.Path) -> bool:
    """Whether a folder's weights were written by `save`."""
    return (directory / WEIGHTS).is_dir()


def checked(directory: Path, config: LlamaConfig) -> dict[str, Any]:
    """What Orbax says of each array, where they are what a model of this config needs.

    No weight is read. Raises `CheckpointError`, which lists names and shapes that do not fit.
    """
    import orbax.checkpoint as ocp  # takes a second to import: only who reads should pay

    directory = existing(directory).absolute()  # Orbax takes no other
    with _checkpointer(ocp) as checkpointer:
        try:
            stored = dict(checkpointer.metadata(directory / WEIGHTS).item_metadata.tree)
        except Exception as error:  # of many kinds, from several libraries
            raise CheckpointError(
                f"{directory / WEIGHTS} is not a whole Orbax checkpoint: {_said(error)}."
            ) from None
    wanted = expected(config, len(stored), directory)
    problems = [
        f"{name}: stored as {_shape(stored, name) or 'nothing'}, "
        f"config says {list(wanted[name]) if name in wanted else 'no such tensor'}"
        for name in sorted(stored.keys() | wanted.keys())
        if name not in wanted or _shape(stored, name) != list(wanted[name])
    ]
    if problems:
        lines = "".join(f"\n  {line}" for line in listed(problems))
        raise CheckpointError(f"{directory}: weights and config.json do not fit.{lines}")
    return stored


def _shape(stored: dict[str, Any], name: str) -> list[int] | None:
    shape = getattr(stored.get(name), "shape", None)
    return None if shape is None else list(shape)


def load(
    directory: Path,
    model: Model,
    dtype: Any = None,
    shardings: Any = None,
    tensors: dict[str, Any] | None = None,
) -> None:
    """Fills `model` with the weights of a checkpoint, as stored or cast to `dtype`.

    They lie where the model says, or where `shardings` does, by names of parameters.
    All names and shapes are checked before any weight is read (`checked`, of which `tensors` is the
    answer where it was asked before). Raises `CheckpointError`, `MemoryError`.
    """
    import orbax.checkpoint as ocp

    directory = existing(directory).absolute()
    stored = checked(directory, model.config) if tensors is None else tensors
    slots = parameters(model)
    wanted = {name: slot.get_value() for name, slot in slots.items()}
    largest = max(math.prod(shape.shape) for shape in wanted.values())
    with _checkpointer(ocp, 8 * largest) as checkpointer:
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = {}
        for name, shape in wanted.items():
            kind = jax.dtypes.canonicalize_dtype(stored[name].dtype)
            place = (shardings or {}).get(name) or place_of(shape) or here
            kind = kind if dtype is None else as_dtype(dtype)
            abstract[name] = jax.ShapeDtypeStruct(shape.shape, kind, sharding=place)
        size = sum(x.size * x.dtype.itemsize for x in abstract.values())
        check_fits(size, str(directory), parts("F W", model.mesh))
        # The largest first, a few at a time: what Orbax holds on the way is then never on top of
        # all the others.
        order = sorted(abstract, key=lambda name: -abstract[name].size)
        try:
            for names in _groups({name: abstract[name] for name in order}):
                some = {name: abstract[name] for name in names}
                arguments = ocp.checkpoint_utils.construct_restore_args(some)
                restored = checkpointer.restore(
                    directory / WEIGHTS,
                    args=ocp.args.PyTreeRestore(
                        item=some, restore_args=arguments, partial_restore=True
                    ),
                )
                for name in names:
                    slots[name].set_value(restored[name])
                gc.collect()  # what Orbax leaves behind refers to itself, and holds a copy
        except Exception as error:
            raise CheckpointError(
                f"{directory / WEIGHTS} cannot be read: {_said(error)}. Is it a copy that broke "
                "off?"
            ) from None
    check_finite({name: slot.get_value() for name, slot in slots.items()}, directory)


def save(
    directory: Path,
    model: Model,
    tokenizer: Tokenizer | None = None,
    stop_tokens: tuple[int, ...] = (),
) -> None:
    """Writes a checkpoint that takes the place of `directory` when it is whole.

    After an error or an interrupt the old one is as it was.
    """
    import orbax.checkpoint as ocp

    directory = replaceable(directory)
    weights = {name: slot.get_value() for name, slot in parameters(model).items()}
    if not all(isinstance(weight, jax.Array) for weight in weights.values()):
        raise CheckpointError(
            f"The model is abstract: there are no weights to save in {directory}."
        )
    largest = max(weight.nbytes for weight in weights.values())
    with replacing(directory) as new, _checkpointer(ocp, largest) as checkpointer:
        huggingface.write_configs(new, model, tokenizer, list(stop_tokens))
        checkpointer.save(new / WEIGHTS, args=ocp.args.PyTreeSave(weights))


def _groups(arrays: dict[str, jax.ShapeDtypeStruct]) -> Iterator[list[str]]:
    """Names of arrays that make up to 128 MiB together, or of one that is larger."""
    names: list[str] = []
    room = GROUP
    for name, array in arrays.items():
        size = array.size * array.dtype.itemsize
        if names and size > room:
            yield names
            names, room = [], GROUP
        names.append(name)
        room -= size
    yield names


def _checkpointer(ocp: Any, largest: int = 0) -> Any:
    """One that has as little on its way at once as its `largest` array allows, in whole GB."""
    limit = 1 + largest // 10**9
    handler = ocp.PyTreeCheckpointHandler(
        save_concurrent_gb=limit,
        restore_concurrent_gb=limit,
        use_compression=False,  # weights shrink by a fifth and are read at half the speed
    )
    return ocp.Checkpointer(handler)


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return in_words(lines[:1])[:300] or type(error).__name__
