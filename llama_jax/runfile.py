"""A run in one file: safetensors, with what is not an array as JSON in the header's metadata.

Checksums cover every byte: one for each array, and one for the header, in its own metadata.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import zlib
from typing import TYPE_CHECKING, Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from llama_jax.base.replacing import as_path, replacing_file, settle
from llama_jax.capture import Capture
from llama_jax.checkpoint.tensors import DTYPES, CheckpointError, TensorInfo, on_host, read_header
from llama_jax.config import LlamaConfig, RopeScaling
from llama_jax.dtypes import as_dtype
from llama_jax.model.tap import TopK

if TYPE_CHECKING:
    from llama_jax.llama import Llama
    from llama_jax.run import Run

__all__ = ["FORMAT", "RunFileError", "read", "versions", "write"]

#: Raised with every change that an older reader would misread.
FORMAT = 1
_METADATA = "llama_jax.run"
_SEAL, _UNSEALED = "llama_jax.header", "00000000"  # the CRC-32 of a header that has zeros for it
_INDICES = "#indices"  # behind a point's name: the second part of a TopK
_STORED = {**DTYPES, "I32": np.dtype("int32"), "I64": np.dtype("int64")}


class RunFileError(ValueError):
    """A file that holds no run that this version, or this llama, can take."""


def write(path: str | os.PathLike[str], run: Run) -> None:
    """See `Run.save`. Raises `RunFileError` where there can be no file `path`."""
    as_path(path)  # before anything is brought to the host
    arrays: dict[str, Any] = {"tokens": run.tokens, "lengths": run.lengths, "logits": run.logits}
    for name, value in run.captured.items():
        if isinstance(value, TopK):
            arrays[_key(name)], arrays[_key(name) + _INDICES] = value
        elif value is not run.logits:
            arrays[_key(name)] = value
    llama = run.llama
    tokenizer = None if llama is None else llama.tokenizer
    about = {
        "format": FORMAT,
        "model": run.model,
        "config": dataclasses.asdict(run.config),
        "dtype": run.dtype,
        "captures": {name: _plain(capture) for name, capture in run.captures.items()},
        "edited": list(run.edited),
        "pieces": tokenizer and [tokenizer.pieces(row.tolist()) for row in run.tokens],
        "versions": dict(run.versions),
        "sealed": True,
    }
    with replacing_file(path, RunFileError) as new:
        on_disk = {name: on_host(array) for name, array in arrays.items()}
        about["checksums"] = {
            n: zlib.crc32(a.reshape(-1).view(np.uint8).data) for n, a in on_disk.items()
        }
        save_file(on_disk, new, metadata={_METADATA: json.dumps(about), _SEAL: _UNSEALED})
        with open(new, "rb+") as file:
            at, checksum = _seal(file.read(_header_size(new)))
            file.seek(at)
            file.write(checksum)


def read(path: str | os.PathLike[str], llama: Llama | None, verify: bool) -> dict[str, Any]:
    """The fields of a `Run` but its llama; arrays are mapped. `verify` reads the file through."""
    path = as_path(path)
    settle(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; Run.save writes one.")
    before = path.stat()
    try:
        tensors, metadata = read_header(path)
    except CheckpointError as error:
        raise RunFileError(str(error)) from None
    try:
        if _SEAL in metadata:
            _check_seal(path, metadata[_SEAL])
        about = json.loads(metadata[_METADATA])
        if about["format"] > FORMAT:
            raise RunFileError(
                f"{path} has format {about['format']}, written by llama-jax "
                f"{about.get('versions', {}).get('llama-jax')}; this is "
                f"{versions()['llama-jax']}, which reads up to {FORMAT}. "
                "Install a newer llama-jax to open it."
            )
        config = _config(about["config"])
        captures = {name: _capture(name, plain) for name, plain in about["captures"].items()}
        arrays = {name: _mapped(path, info) for name, info in tensors.items()}
        now = path.stat()
        if (now.st_ino, now.st_mtime_ns) != (before.st_ino, before.st_mtime_ns):
            raise RunFileError(f"{path} was written to while it was read. Open it again.")
        if verify:
            _verify(path, tensors, about["checksums"])
        logits = arrays["logits"]
        captured = {name: _value(name, arrays) for name in captures}
        fields = {
            "config": config,
            "tokens": np.array(arrays["tokens"]),
            "lengths": np.array(arrays["lengths"]),
            "logits": logits,
            "captured": captured,
            "captures": captures,
            "edited": tuple(about["edited"]),
            "dtype": as_dtype(about["dtype"]).name,
            "model": about["model"],
            "versions": about["versions"],
        }
        if about.get("sealed") and _SEAL not in metadata:
            raise RunFileError(_damaged(path, "the header"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, RunFileError):
            raise
        raise RunFileError(f"{path} is no run, or a damaged one: {error!r}.") from None
    if llama is not None and llama.config != config:
        raise RunFileError(
            f"{path} is a run of {about['model'] or 'a model'} with {config}; the llama given has "
            f"{llama.config}."
        )
    return fields


def _value(name: str, arrays: dict[str, Any]) -> Any:
    key = _key(name)
    if key + _INDICES in arrays:
        return TopK(arrays[key], arrays[key + _INDICES])
    return arrays[name] if name == "logits" and key not in arrays else arrays[key]


def _key(name: str) -> str:
    """What a captured point is called in the file, where `logits` are the run's own."""
    return "captured.logits" if name == "logits" else name


def _mapped(path: pathlib.Path, info: TensorInfo) -> np.ndarray:
    dtype = _STORED[info.dtype]
    if not info.nbytes:
        return np.zeros(info.shape, dtype)
    return np.memmap(path, dtype, "r", info.offset, info.shape)


def _verify(path: pathlib.Path, tensors: dict[str, TensorInfo], expected: dict[str, int]) -> None:
    with open(path, "rb") as file:
        for name, info in tensors.items():
            file.seek(info.offset)
            found, rest = 0, info.nbytes
            while rest:
                block = file.read(min(rest, 2**22))
                found, rest = zlib.crc32(block, found), rest - len(block)
            if found != expected[name]:
                raise RunFileError(_damaged(path, name))


def _header_size(path: pathlib.Path) -> int:
    with open(path, "rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def _seal(header: bytes) -> tuple[int, bytes]:
    """Where in a header its checksum is, and what it must be."""
    key = f'"{_SEAL}":"'.encode()
    at, size = header.index(key) + len(key), len(_UNSEALED)
    checksum = zlib.crc32(header[:at] + _UNSEALED.encode() + header[at + size :])
    return at, b"%08x" % checksum


def _check_seal(path: pathlib.Path, given: str) -> None:
    with open(path, "rb") as file:
        _, expected = _seal(file.read(_header_size(path)))
    if given.encode() != expected:
        raise RunFileError(_damaged(path, "the header"))


def _damaged(path: pathlib.Path, what: str) -> str:
    return (
        f"{path} is damaged: the bytes of {what} are not those that were written. Save the run "
        "again, or get the file anew."
    )


def _plain(capture: Capture) -> dict[str, Any]:
    return {
        "positions": _plain_choice(capture.positions),
        "heads": _plain_choice(capture.heads),
        "reduce": capture.reduce,
        "dtype": None if capture.dtype is None else capture.dtype.name,
    }


def _plain_choice(choice: Any) -> Any:
    if isinstance(choice, slice):
        return {"slice": [choice.start, choice.stop, choice.step]}
    return choice


def _capture(name: str, plain: dict[str, Any]) -> Capture:
    positions, heads = (
        slice(*choice["slice"]) if isinstance(choice, dict) else choice
        for choice in (plain["positions"], plain["heads"])
    )
    dtype = plain["dtype"]
    return Capture(name, positions, heads, plain["reduce"], dtype and jnp.dtype(dtype))


def _config(plain: dict[str, Any]) -> LlamaConfig:
    scaling = plain["rope_scaling"]
    return LlamaConfig(**{**plain, "rope_scaling": scaling and RopeScaling(**scaling)})


def versions() -> dict[str, str]:
    """The libraries at work."""
    import llama_jax

    return {m.__name__.replace("_", "-"): m.__version__ for m in (llama_jax, jax, flax, np)}
