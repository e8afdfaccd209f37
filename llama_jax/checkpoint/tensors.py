"""One safetensors file: what its header says, and its tensors as arrays.

`safetensors` checks the file. The bytes are read here, into memory that a `jax.Array` on a CPU
takes over; JAX has to copy what `safetensors` itself returns, which is several times slower.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from llama_jax.base.fields import parse_json

__all__ = [
    "DTYPES",
    "CheckpointError",
    "Part",
    "TensorInfo",
    "aligned",
    "equal",
    "is_finite",
    "listed",
    "on_host",
    "read_header",
    "whole",
]

#: What is read, by the format's names.
DTYPES: dict[str, np.dtype] = {
    "BF16": jnp.dtype("bfloat16"),
    "F16": jnp.dtype("float16"),
    "F32": jnp.dtype("float32"),
    "F64": jnp.dtype("float64"),
}

#: Along each axis from where to where.
Part = tuple[slice, ...]


class CheckpointError(ValueError):
    """Files that are not a whole checkpoint, or not one of this model."""


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `nbytes` from `offset` in `file`; `dtype` is the format's name of it."""

    file: pathlib.Path
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def place(self) -> tuple[pathlib.Path, int]:
        """Where reading begins: in this order files are read from front to back."""
        return self.file, self.offset

    def read(self, dtype: np.dtype, part: Part | None = None) -> tuple[np.ndarray, bool]:
        """The tensor, or a part of it, as `dtype`, in memory that JAX takes over.

        Also says whether all of it is finite.
        """
        array = aligned(self.shape if part is None else _shape(part), dtype)
        return array, self.read_into(array, part)

    def read_into(self, array: np.ndarray, part: Part | None = None) -> bool:
        """Reads it into an array, cast a few megabytes at a time; of a part only its own bytes.

        Returns whether all that was read is finite.
        """
        rows, *columns = whole(self.shape) if part is None else part
        if columns != [*whole(self.shape[1:])]:
            stored = np.memmap(self.file, DTYPES[self.dtype], "r", self.offset, self.shape)
            array[...] = stored[part]
            return is_finite(np.ascontiguousarray(array))
        size = self.nbytes // self.shape[0]
        here = dataclasses.replace(
            self,
            offset=self.offset + rows.start * size,
            nbytes=(rows.stop - rows.start) * size,
            shape=(rows.stop - rows.start, *self.shape[1:]),
        )
        if array.flags.c_contiguous:
            return _read_into(here, array)
        one_piece = np.empty(here.shape, DTYPES[self.dtype])
        finite = _read_into(here, one_piece)
        array[...] = one_piece
        return finite


def whole(shape: tuple[int, ...]) -> Part:
    """All of a tensor, as a part of it."""
    return tuple(slice(0, size) for size in shape)


def _shape(part: Part) -> tuple[int, ...]:
    return tuple(along.stop - along.start for along in part)


def read_header(file: pathlib.Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Every tensor of a file by its name, and the file's metadata.

    Raises `CheckpointError` where the file is not whole.
    """
    try:
        with safe_open(file, framework="np"):
            pass  # it has compared the header with itself and with the length of the file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} ({file.stat().st_size:,} bytes) is not a whole safetensors file: {error}. "
            "Is it a download that broke off, or a Git LFS pointer?"
        ) from None
    with open(file, "rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        text = stream.read(start - 8)
    try:
        header = parse_json(text)
    except ValueError as error:  # a name twice, of which `safetensors` takes the last
        raise CheckpointError(f"{file} has a header that is not clear: {error}.") from None
    metadata = header.pop("__metadata__", None) or {}
    tensors = {
        name: TensorInfo(
            file,
            start + tensor["data_offsets"][0],
            tensor["data_offsets"][1] - tensor["data_offsets"][0],
            tuple(tensor["shape"]),
            tensor["dtype"],
        )
        for name, tensor in header.items()
    }
    return tensors, metadata


def _read_into(info: TensorInfo, array: np.ndarray) -> bool:
    stored, flat = DTYPES[info.dtype], array.reshape(-1)
    count = _CHUNK // stored.itemsize

    def piece(start: int) -> bool:
        out = flat[start : start + count]
        with open(info.file, "rb", buffering=0) as file:
            file.seek(info.offset + start * stored.itemsize)
            if stored == array.dtype:
                _fill(file, out)
            else:
                part = np.empty(out.size, stored)
                _fill(file, part)
                out[...] = part
        return is_finite(out)  # while it is in the cache

    return all([*_READERS.map(piece, range(0, flat.size, count))])


def is_finite(array: np.ndarray) -> bool:
    """Whether no entry is NaN or infinite; `array` is in one piece, of real numbers.

    Bits of infinity and NaN are the largest of their sign, as integers. Their maximum is found
    several times faster than NumPy tells NaN apart, and without a temporary array.
    """
    width = 8 * array.itemsize
    signed, unsigned = (array.view(f"{kind}{width}") for kind in ("int", "uint"))
    infinity = int(np.array(np.inf, array.dtype).view(signed.dtype))
    below = bool(signed.max(initial=0) < infinity)
    return below and bool(unsigned.max(initial=0) < infinity + 2 ** (width - 1))


def equal(a: TensorInfo, b: TensorInfo) -> bool:
    """Whether two tensors have the same shape, dtype and bytes."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    with open(a.file, "rb") as file_a, open(b.file, "rb") as file_b:
        file_a.seek(a.offset)
        file_b.seek(b.offset)
        sizes = (min(_CHUNK, a.nbytes - start) for start in range(0, a.nbytes, _CHUNK))
        return all(file_a.read(size) == file_b.read(size) for size in sizes)


def listed(names: Sequence[str], most: int = 10) -> list[str]:
    """`names`, cut where there are too many to read in a message."""
    cut = [f"… and {len(names) - most} more"] if len(names) > most else []
    return [*names[:most], *cut]


def on_host(array: jax.Array | np.ndarray) -> np.ndarray:
    """The array in the host's memory, in one piece."""
    if isinstance(array, jax.Array) and {d.platform for d in array.devices()} != {"cpu"}:
        # An array keeps the host's copy of itself that NumPy asks for; this one takes it away.
        array = jnp.copy(array)
    return np.ascontiguousarray(array)


_CHUNK = 4 * 2**20  # bytes that fit into a cache, so that a cast finds there what was just read

# Copying from the system's cache and first touching memory take a core each its time.
_READERS = concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1), "read")


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialized memory that starts where XLA wants it to; JAX copies any other."""
    nbytes = math.prod(shape) * dtype.itemsize
    memory = np.empty(nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + nbytes].view(dtype).reshape(shape)


def _fill(file: Any, array: np.ndarray) -> None:
    rest = memoryview(array.view(np.uint8).data)
    while rest:
        count = file.readinto(rest)
        if not count:
            raise CheckpointError(f"{file.name} became shorter while it was read.")
        rest = rest[count:]
